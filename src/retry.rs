//! How long to wait before something is tried again, and when to give up. Pure, but for the dice in full jitter.
//!
//! Three budgets that do not multiply: the same request again in place (a broken connection, a 5xx), a plan made
//! anew after a conflict, and the ladder of rungs in the broker. A wait that the target asks for (`Retry-After`)
//! is none of these: it pauses the whole bot.

use std::time::Duration;

use jiff::Timestamp;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use crate::config;

/// Longest wait in place.
const IN_PLACE_MAX: Duration = Duration::from_secs(2);
/// Tries to write against a version before the conversation counts as too busy.
pub const CONFLICT_TRIES: usize = 10;
/// Longest wait after a conflict.
const CONFLICT_MAX: Duration = Duration::from_millis(500);
/// Longest wait between two tries to connect to a server of ours.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Waits before the 3 repetitions in place: full jitter over 50, 100 and 200 ms, at most 2 s.
pub fn in_place_delays() -> impl Iterator<Item = Duration> + Clone {
    ExponentialBackoff::from_millis(2).factor(25).max_delay(IN_PLACE_MAX).map(jitter).take(3)
}

/// Waits after the conflicts of one batch: full jitter over 10, 20, … 500 ms. When it ends, the tries are used
/// up: [`CONFLICT_TRIES`] with the first one.
pub fn conflict_delays() -> impl Iterator<Item = Duration> + Clone {
    ExponentialBackoff::from_millis(2).factor(5).max_delay(CONFLICT_MAX).map(jitter).take(CONFLICT_TRIES - 1)
}

/// Waits between tries to connect to a server of ours, without end: full jitter over 50, 100, … 1,000 ms.
pub fn reconnect_delays() -> impl Iterator<Item = Duration> {
    ExponentialBackoff::from_millis(2).factor(25).max_delay(RECONNECT_MAX).map(jitter)
}

/// What happens to a job whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It waits on this rung.
    Rung {
        /// Index into the schedule.
        index: usize,
        /// How long it waits there.
        delay: Duration,
    },
    /// Its attempts are used up, or no rung ends before its deadline.
    GiveUp,
}

/// What happens after attempt number `attempt` (the first is 1) of a job with that deadline. The rung is the
/// attempt's own, the last one repeats; near the deadline it is the longest that still ends before.
#[must_use]
pub fn next(settings: &config::Retry, attempt: u32, now: Timestamp, deadline: Timestamp) -> Next {
    if attempt >= settings.max_attempts {
        return Next::GiveUp;
    }
    let left = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
    let own = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut rungs = settings.schedule.iter().copied().enumerate().take(own.saturating_add(1)).collect::<Vec<_>>();
    while let Some((index, delay)) = rungs.pop() {
        if delay < left {
            return Next::Rung { index, delay };
        }
    }
    Next::GiveUp
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> config::Retry {
        let schedule = [5, 30, 120, 600].map(Duration::from_secs).to_vec();
        config::Retry { schedule, max_attempts: 8, deadline: Duration::from_secs(900) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_760_000_000 + second).unwrap()
    }

    fn rung(attempt: u32, deadline: i64) -> Option<u64> {
        match next(&settings(), attempt, at(0), at(deadline)) {
            Next::Rung { delay, .. } => Some(delay.as_secs()),
            Next::GiveUp => None,
        }
    }

    #[test]
    fn a_job_climbs_the_ladder_and_stays_on_its_last_rung_until_the_eighth_attempt() {
        let climbed = (1..=8).map(|attempt| rung(attempt, 86_400)).collect::<Vec<_>>();
        let expected = [5, 30, 120, 600, 600, 600, 600].map(Some).into_iter().chain([None]).collect::<Vec<_>>();
        assert_eq!(climbed, expected);
    }

    #[test]
    fn near_its_deadline_a_job_takes_the_longest_rung_that_ends_before() {
        assert_eq!((rung(4, 601), rung(4, 600), rung(4, 100)), (Some(600), Some(120), Some(30)));
        assert_eq!((rung(4, 5), rung(1, -10)), (None, None));
    }

    #[test]
    fn waits_are_bounded_in_length_and_number() {
        for _ in 0..100 {
            let waits = in_place_delays().collect::<Vec<_>>();
            assert_eq!(waits.len(), 3);
            assert!(waits.iter().zip([50, 100, 200]).all(|(wait, most)| *wait <= Duration::from_millis(most)));
            let waits = conflict_delays().collect::<Vec<_>>();
            assert_eq!(waits.len(), CONFLICT_TRIES - 1);
            assert!(waits.iter().all(|wait| *wait <= CONFLICT_MAX));
            assert!(reconnect_delays().take(100).all(|wait| wait <= RECONNECT_MAX));
        }
    }

    proptest! {
        #[test]
        fn no_wait_ends_after_the_deadline(attempt in 0_u32..20, left in -1_000_i64..2_000) {
            if let Next::Rung { index, delay } = next(&settings(), attempt, at(0), at(left)) {
                prop_assert!(at(0) + delay < at(left));
                prop_assert_eq!(settings().schedule[index], delay);
                prop_assert!(attempt < 8);
            }
        }
    }
}
