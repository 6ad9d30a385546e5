//! The generic cell rate algorithm (GCRA, as ITU-T I.371 has it), pure: who asks reserves the next free place in
//! time, so callers are served in order and ask once.

use std::time::Duration;

/// A budget: one request per interval, a few more at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Microseconds between requests.
    interval: u64,
    /// Microseconds by which requests may come early.
    tolerance: u64,
}

impl Budget {
    /// The budget of `per_second` requests with `burst` of them at once. The interval is rounded up to whole
    /// microseconds, so the rate is never above the setting.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_u64.div_ceil(u64::from(per_second.max(1)));
        Self { interval, tolerance: interval * u64::from(burst.max(1) - 1) }
    }

    /// The budget that no window of length `window` sees more than `requests` of: a tenth of them at once after a
    /// rest, the others evenly.
    #[must_use]
    pub fn per_window(requests: u32, window: Duration) -> Self {
        let burst = u64::from((requests / 10).max(1));
        let evenly = (u64::from(requests.max(1)) + 1 - burst).max(1);
        let micros = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
        let interval = micros.div_ceil(evenly).max(1);
        Self { interval, tolerance: interval.saturating_mul(burst - 1) }
    }

    /// One of `parts` equal shares of the budget, with `burst` requests at once after a rest.
    #[must_use]
    pub fn share(self, parts: u32, burst: u32) -> Self {
        let interval = self.interval.saturating_mul(u64::from(parts.max(1)));
        Self { interval, tolerance: interval.saturating_mul(u64::from(burst.max(1) - 1)) }
    }

    /// The same budget, but with no more than `interval` between requests.
    #[must_use]
    pub fn no_slower_than(self, interval: Duration) -> Self {
        let most = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let requests_at_once = self.tolerance / self.interval.max(1);
        let interval = self.interval.min(most.max(1));
        Self { interval, tolerance: interval.saturating_mul(requests_at_once) }
    }

    /// Microseconds between requests.
    #[must_use]
    pub fn interval(self) -> u64 {
        self.interval
    }

    /// Microseconds by which requests may come early.
    #[must_use]
    pub fn tolerance(self) -> u64 {
        self.tolerance
    }
}

/// Where the algorithm stands, in microseconds on one clock: the time at which the next request would come if all
/// came evenly ("theoretical arrival time").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gcra {
    arrival: u64,
}

impl Gcra {
    /// Reserves the next place and tells how many microseconds after `now` it is.
    pub fn reserve(&mut self, budget: Budget, now: u64) -> u64 {
        self.reserve_some(budget, now, 1, 0).1
    }

    /// Reserves the next places: at least one, and up to `wanted` of those that come within `together` microseconds.
    /// Tells how many, and how many microseconds after `now` the last of them is: at that time all may go.
    pub fn reserve_some(&mut self, budget: Budget, now: u64, wanted: u64, together: u64) -> (u64, u64) {
        let arrival = self.arrival.max(now);
        let interval = budget.interval.max(1);
        let within = (now + together + budget.tolerance).checked_sub(arrival).map_or(1, |room| room / interval + 1);
        let count = within.min(wanted).max(1);
        self.arrival = arrival + count * interval;
        let last = self.arrival - interval;
        (count, last.saturating_sub(budget.tolerance).saturating_sub(now))
    }

    /// How many requests may go at `now`.
    #[must_use]
    pub fn room(&self, budget: Budget, now: u64) -> u64 {
        let arrival = self.arrival.max(now);
        (now + budget.tolerance).checked_sub(arrival).map_or(0, |room| room / budget.interval.max(1) + 1)
    }

    /// When the next place is, on the clock of `now`.
    #[must_use]
    pub fn next(&self, budget: Budget) -> u64 {
        self.arrival.saturating_sub(budget.tolerance)
    }

    /// When all is as if nothing had ever been reserved, on the clock of `now`.
    #[must_use]
    pub fn forgotten_at(&self) -> u64 {
        self.arrival
    }

    /// How far ahead of `now` places are reserved, in microseconds.
    #[must_use]
    pub fn ahead(&self, now: u64) -> u64 {
        self.arrival.saturating_sub(now)
    }

    /// Makes sure that places are reserved for `ahead` microseconds from `now`.
    pub fn at_least(&mut self, ahead: u64, now: u64) {
        self.arrival = self.arrival.max(now + ahead);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The instants at which requests go that are asked for at `asked`.
    fn served(budget: Budget, asked: &[u64]) -> Vec<u64> {
        let mut gcra = Gcra::default();
        asked.iter().map(|now| now + gcra.reserve(budget, *now)).collect()
    }

    #[test]
    fn after_a_rest_the_burst_goes_at_once_and_the_others_evenly() {
        let budget = Budget::new(100, 5);
        let at = served(budget, &[1_000_000; 8]).into_iter().map(|at| at - 1_000_000).collect::<Vec<_>>();
        assert_eq!(at, [0, 0, 0, 0, 0, 10_000, 20_000, 30_000]);
    }

    #[test]
    fn a_share_keeps_its_burst_and_its_slowest_pace() {
        let share = Budget::new(100, 50).share(8, 3);
        assert_eq!((share.interval, share.tolerance), (80_000, 160_000));
        let share = share.no_slower_than(Duration::from_millis(20));
        assert_eq!((share.interval, share.tolerance), (20_000, 40_000));
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_is_rounded_down() {
        assert_eq!(Budget::new(3, 1).interval, 333_334);
        assert_eq!(Budget::new(0, 0), Budget::new(1, 1));
    }

    proptest! {
        #[test]
        fn a_budget_per_window_holds_in_every_window(
            requests in 1_u32..300, window in 1_000_u64..5_000_000,
            gaps in proptest::collection::vec(0_u64..20_000, 1..600),
        ) {
            let mut now = 0;
            let asked = gaps.iter().map(|gap| { now += gap; now }).collect::<Vec<_>>();
            let at = served(Budget::per_window(requests, Duration::from_micros(window)), &asked);
            for (index, start) in at.iter().enumerate() {
                let inside = at[index..].iter().take_while(|instant| **instant < start + window).count();
                prop_assert!(inside <= requests as usize, "{inside} requests in {window} µs");
            }
        }

        #[test]
        fn no_window_has_more_than_the_burst_and_its_share(
            per_second in 1_u32..2_000, burst in 1_u32..20,
            gaps in proptest::collection::vec(0_u64..50_000, 1..300), window in 1_u64..3_000_000,
        ) {
            let mut now = 0;
            let asked = gaps.iter().map(|gap| { now += gap; now }).collect::<Vec<_>>();
            let at = served(Budget::new(per_second, burst), &asked);
            for (index, start) in at.iter().enumerate() {
                let inside = at[index..].iter().take_while(|instant| **instant < start + window).count() as u64;
                let share = window.div_ceil(Budget::new(per_second, burst).interval);
                prop_assert!(inside <= u64::from(burst) + share, "{inside} requests in {window} µs");
            }
        }

        /// Who takes places together goes no earlier than who takes them one by one, and no place is lost.
        #[test]
        fn places_together_are_the_same_places(
            per_second in 1_u32..20_000, burst in 1_u32..20, together in 0_u64..5_000,
            asks in proptest::collection::vec((0_u64..50_000, 1_u64..40), 1..100),
        ) {
            let budget = Budget::new(per_second, burst);
            let (mut some, mut single, mut now) = (Gcra::default(), Gcra::default(), 0);
            for (gap, wanted) in asks {
                now += gap;
                let before = some;
                let (count, wait) = some.reserve_some(budget, now, wanted, together);
                prop_assert!((1..=wanted).contains(&count));
                let singly = (0..count).map(|_| single.reserve(budget, now)).collect::<Vec<_>>();
                prop_assert_eq!(singly.last(), Some(&wait));
                prop_assert!(count == 1 || wait <= together, "nobody waits long for others");
                let room = before.room(budget, now);
                prop_assert_eq!(room > 0, before.next(budget) <= now);
                let mut all = before;
                prop_assert!(room == 0 || all.reserve_some(budget, now, room + 1, 0) == (room, 0));
                prop_assert_eq!(some, single);
                let mut one_more = before;
                let (more, wait) = one_more.reserve_some(budget, now, wanted + 1, together);
                prop_assert!(count == wanted || more == count, "as many as may go: {} {}", more, wait);
            }
        }

        #[test]
        fn callers_are_served_in_order_and_nobody_waits_while_there_is_budget(
            gaps in proptest::collection::vec(0_u64..50_000, 1..300),
        ) {
            let budget = Budget::new(100, 5);
            let mut now = 0;
            let asked = gaps.iter().map(|gap| { now += gap; now }).collect::<Vec<_>>();
            let at = served(budget, &asked);
            prop_assert!(at.is_sorted());
            // Work conserving: who waits goes exactly one interval after somebody before.
            for (index, (asked, at_)) in asked.iter().zip(&at).enumerate() {
                if at_ > asked {
                    prop_assert!(index >= 5 && *at_ - at[index - 5] <= 5 * budget.interval);
                }
            }
        }
    }
}
