//! The rate limit of one endpoint: evenly spaced tries, up to a tenth of a second's worth at once. Of this process
//! alone: several relays share an endpoint's queue, and each has the limit for itself.

use std::time::{Duration, Instant};

/// Says when the next try may begin (a leaky bucket as one instant, GCRA). Pure; `now` is a parameter.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    tolerance: Duration,
    due: Option<Instant>,
}

impl Pace {
    /// At most `per_second` tries per second; 0 is no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        // One try at once up to 10/s, a tenth of a second's worth above that.
        let tolerance = interval * (per_second / 10).saturating_sub(1);
        Self { interval, tolerance, due: None }
    }

    /// When the next try may begin, `None` for now.
    #[must_use]
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        let earliest = self.due?.checked_sub(self.tolerance)?;
        (earliest > now).then_some(earliest)
    }

    /// Counts a try that begins.
    pub fn count(&mut self, now: Instant) {
        if !self.interval.is_zero() {
            self.due = Some(self.due.map_or(now, |due| due.max(now)) + self.interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries begun within `span` by somebody who begins whenever that is allowed.
    fn begun(per_second: u32, span: Duration) -> usize {
        let start = Instant::now();
        let (mut pace, mut now, mut count) = (Pace::new(per_second), start, 0);
        while now < start + span {
            match pace.wait_until(now) {
                Some(later) => now = later,
                None => {
                    pace.count(now);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn the_limit_holds_over_every_span() {
        for per_second in [1, 2, 10, 100, 1_000] {
            let burst = (per_second as usize / 10).saturating_sub(1);
            assert_eq!(begun(per_second, Duration::from_secs(1)), per_second as usize + burst, "{per_second}/s");
            assert_eq!(begun(per_second, Duration::from_secs(10)), 10 * per_second as usize + burst, "{per_second}/s");
        }
    }

    #[test]
    fn a_pause_saves_up_no_more_than_a_tenth_of_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(50);
        pace.count(start);
        let later = start + Duration::from_secs(60);
        let at_once = (0..100).take_while(|_| {
            let free = pace.wait_until(later).is_none();
            if free {
                pace.count(later);
            }
            free
        });
        assert_eq!(at_once.count(), 5);
    }

    #[test]
    fn zero_is_no_limit() {
        let mut pace = Pace::new(0);
        let now = Instant::now();
        for _ in 0..10_000 {
            assert_eq!(pace.wait_until(now), None);
            pace.count(now);
        }
    }
}
