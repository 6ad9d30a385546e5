//! When the next try of a webhook is due: a pure function of the tries so far, the receiver's `Retry-After` and a
//! number between 0 and 1 from whoever calls.
//!
//! A wait is a stay in a queue whose delay is fixed (its TTL stands in its name), so jitter cannot be any number:
//! every rung has two sisters, 20 % shorter and 20 % longer, and a delivery takes one of the three. Nothing is
//! held in memory for it, at 5 s or at 24 h.
//!
//! `Retry-After` (RFC 9110 §10.2.3, both forms) is rounded up to the next rung, never down, and capped at the
//! longest; it never brings a try forward, and what cannot be parsed counts as absent. It does not change how many
//! tries there are.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// The waits before the second and later tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    rungs: Vec<Duration>,
}

/// What happens to a delivery after a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another try after this wait; it is one of [`Schedule::delays`].
    Wait(Duration),
    /// The schedule is used up.
    Exhausted,
}

impl Schedule {
    /// The rungs as the settings have them, in whole milliseconds, in any order of length.
    #[must_use]
    pub fn new(rungs: &[Duration]) -> Self {
        Self { rungs: rungs.to_vec() }
    }

    /// Every delay that a delivery may get: the queues that the ladder needs.
    #[must_use]
    pub fn delays(&self) -> BTreeSet<Duration> {
        self.rungs.iter().flat_map(|rung| sisters(*rung)).collect()
    }

    /// Tries in all, the first one included.
    #[must_use]
    pub fn tries(&self) -> usize {
        self.rungs.len() + 1
    }

    /// Decides after the failure of try number `tries` (the first is 1). `jitter` is uniform in 0..1.
    #[must_use]
    pub fn next(&self, tries: u32, retry_after: Option<Duration>, jitter: f64) -> Next {
        let index = usize::try_from(tries).unwrap_or(usize::MAX).saturating_sub(1);
        let Some(rung) = self.rungs.get(index) else { return Next::Exhausted };
        let [shorter, same, longer] = sisters(*rung);
        let own = match jitter {
            jitter if jitter < 1.0 / 3.0 => shorter,
            jitter if jitter < 2.0 / 3.0 => same,
            _ => longer,
        };
        Next::Wait(own.max(retry_after.map_or(Duration::ZERO, |asked| self.round_up(asked))))
    }

    /// How long an event that must not be overtaken waits in its place: like [`Schedule::next`], but the last rung
    /// repeats.
    #[must_use]
    pub fn hold(&self, tries: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let last = u32::try_from(self.rungs.len()).unwrap_or(u32::MAX);
        match self.next(tries.min(last), retry_after, jitter) {
            Next::Wait(wait) => wait,
            // Settings without a single rung are refused.
            Next::Exhausted => Duration::ZERO,
        }
    }

    fn round_up(&self, asked: Duration) -> Duration {
        let fitting = self.rungs.iter().filter(|rung| **rung >= asked).min();
        fitting.or_else(|| self.rungs.iter().max()).copied().unwrap_or_default()
    }
}

/// A rung with 20 % taken away, as it is, and with 20 % added; whole milliseconds.
fn sisters(rung: Duration) -> [Duration; 3] {
    let whole = |duration: Duration| Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    [whole(rung * 4 / 5), whole(rung), whole(rung * 6 / 5)]
}

/// Reads a `Retry-After`: whole seconds or an HTTP date. A date that has passed is zero.
#[must_use]
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds is still "very long".
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standard() -> Schedule {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let hours = |hours: u64| minutes(60 * hours);
        Schedule::new(&[
            5 * SECOND,
            minutes(5),
            minutes(30),
            hours(2),
            hours(5),
            hours(10),
            hours(14),
            hours(20),
            hours(24),
        ])
    }

    #[test]
    fn ten_tries_follow_the_standard_schedule_and_then_it_is_used_up() {
        let schedule = standard();
        let waits = (1..=9).map(|tries| schedule.next(tries, None, 0.5)).collect::<Vec<_>>();
        assert_eq!(waits, schedule.rungs.iter().copied().map(Next::Wait).collect::<Vec<_>>());
        assert_eq!(schedule.tries(), 10);
        for tries in [10, 11, u32::MAX] {
            assert_eq!(schedule.next(tries, None, 0.5), Next::Exhausted);
            assert_eq!(schedule.next(tries, Some(SECOND), 0.5), Next::Exhausted, "Retry-After adds no try");
        }
    }

    #[test]
    fn in_its_place_an_event_waits_by_the_same_schedule_whose_last_rung_repeats() {
        let schedule = Schedule::new(&[5 * SECOND, 60 * SECOND]);
        let waits = [1, 2, 3, 1_000, u32::MAX].map(|tries| schedule.hold(tries, None, 0.5).as_secs());
        assert_eq!(waits, [5, 60, 60, 60, 60]);
        assert_eq!(schedule.hold(1, Some(6 * SECOND), 0.5), 60 * SECOND, "Retry-After counts there too");
    }

    #[test]
    fn jitter_takes_or_adds_a_fifth() {
        let schedule = standard();
        for (jitter, millis) in
            [(0.0, 4_000), (0.333, 4_000), (0.334, 5_000), (0.666, 5_000), (0.667, 6_000), (0.999, 6_000)]
        {
            assert_eq!(schedule.next(1, None, jitter), Next::Wait(Duration::from_millis(millis)), "{jitter}");
        }
    }

    #[test]
    fn retry_after_is_rounded_up_to_a_rung_and_capped_at_the_longest() {
        let schedule = standard();
        let asked = |seconds: u64| schedule.next(1, Some(Duration::from_secs(seconds)), 0.5);
        let wait = |seconds: u64| Next::Wait(Duration::from_secs(seconds));
        for (seconds, expected) in [
            (0, 5),
            (1, 5),
            (5, 5),
            (6, 300),
            (300, 300),
            (301, 1_800),
            (7_200, 7_200),
            (7_201, 18_000),
            (86_400, 86_400),
            (86_401, 86_400),
            (u64::MAX, 86_400),
        ] {
            assert_eq!(asked(seconds), wait(expected), "Retry-After: {seconds}");
        }
        // It never brings a try forward, and is never undercut by jitter.
        assert_eq!(schedule.next(3, Some(SECOND), 0.5), wait(1_800));
        assert_eq!(schedule.next(1, Some(5 * SECOND), 0.0), wait(5));
    }

    #[test]
    fn both_forms_of_retry_after_are_read_and_rubbish_is_absent() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, seconds) in [
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("", None),
            ("-5", None),
            ("+5", None),
            ("1.5", None),
            ("1e3", None),
            ("soon", None),
            ("5s", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(parse_retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_a_queue_of_the_ladder_within_a_fifth_of_its_rung(
            rungs in prop::collection::vec(10u64..100_000_000, 1..12), tries in 1u32..12, jitter in 0.0..1.0f64,
        ) {
            let schedule = Schedule::new(&rungs.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
            match schedule.next(tries, None, jitter) {
                Next::Exhausted => prop_assert!(tries as usize > rungs.len()),
                Next::Wait(wait) => {
                    let rung = schedule.rungs[tries as usize - 1];
                    prop_assert!(schedule.delays().contains(&wait));
                    prop_assert!(wait + Duration::from_millis(1) > rung * 4 / 5 && wait <= rung * 6 / 5);
                }
            }
        }

        #[test]
        fn no_try_comes_before_retry_after_unless_that_is_beyond_the_longest_rung(
            rungs in prop::collection::vec(10u64..100_000_000, 1..12), asked in 0u64..200_000_000, jitter in 0.0..1.0f64,
        ) {
            let schedule = Schedule::new(&rungs.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
            let asked = Duration::from_millis(asked);
            let Next::Wait(wait) = schedule.next(1, Some(asked), jitter) else { panic!("there is a rung") };
            let longest = *schedule.rungs.iter().max().unwrap();
            prop_assert!(wait >= asked.min(longest));
            prop_assert!(schedule.delays().contains(&wait));
        }

        #[test]
        fn retry_after_never_fails(value in ".*") {
            let _ = parse_retry_after(&value, SystemTime::UNIX_EPOCH);
        }
    }
}
