//! Places in the budget at hand: those that were given and not used, and those bought ahead.
//!
//! While there is far more budget than is used, asking for each place costs the requests a round trip that tells nobody
//! anything. So as many are bought ahead as were used lately, and never more than the limiter allows
//! ([`crate::limiter::Limiter::ahead`]): where the budget is what is waited for, nothing is. A place is good for [`FRESH`]
//! only, since requests that go later than their places meet those of later places; what is not used until then is lost.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a place is good for.
const FRESH: Duration = Duration::from_millis(20);
/// The use that the stock shall cover: not so long that places grow old in it.
const COVERS: Duration = Duration::from_millis(10);
/// Used less often than that in [`COVERS`], places would mostly grow old.
const WORTH_IT: u32 = 4;

/// Whether a place is still good.
pub(super) fn is_fresh(place: Instant, now: Instant) -> bool {
    now.saturating_duration_since(place) < FRESH
}

/// Places at hand.
#[derive(Debug)]
pub(super) struct Stock(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// At most one for each permit that was under way, and those bought ahead.
    places: Vec<Instant>,
    used: Used,
    is_being_filled: bool,
}

impl Stock {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Inner { places: Vec::new(), used: Used::new(now), is_being_filled: false }))
    }

    /// Takes up to `wanted` places that are still good, the freshest ones last in the stock first.
    pub fn take(&self, wanted: usize, now: Instant) -> Vec<Instant> {
        let mut inner = self.inner();
        inner.places.retain(|place| is_fresh(*place, now));
        let rest = inner.places.len().saturating_sub(wanted);
        let taken = inner.places.split_off(rest);
        inner.used.count(taken.len(), now);
        taken
    }

    /// Places were given that were not in stock.
    pub fn count(&self, places: usize, now: Instant) {
        self.inner().used.count(places, now);
    }

    /// A place that was given is not used.
    pub fn put_back(&self, place: Instant) {
        self.inner().places.push(place);
    }

    /// How many places to buy ahead now, where at most `most` may be in stock; whoever is told more than 0 says
    /// [`Self::fill`] afterwards, and nobody else is told to buy meanwhile.
    pub fn lacks(&self, now: Instant, most: impl FnOnce() -> u32) -> u32 {
        let mut inner = self.inner();
        let wanted = inner.used.lately(now);
        let at_hand = u32::try_from(inner.places.len()).unwrap_or(u32::MAX);
        if inner.is_being_filled || wanted < WORTH_IT || at_hand > wanted / 2 {
            return 0;
        }
        let lacks = wanted.min(most()).saturating_sub(at_hand);
        inner.is_being_filled = lacks > 0;
        lacks
    }

    /// Places were bought ahead.
    pub fn fill(&self, places: u32, now: Instant) {
        let mut inner = self.inner();
        inner.is_being_filled = false;
        inner.places.extend((0..places).map(|_| now));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places used in the current stretch of [`COVERS`], and in the one before.
#[derive(Debug)]
struct Used {
    since: Instant,
    now: u32,
    before: u32,
}

impl Used {
    fn new(since: Instant) -> Self {
        Self { since, now: 0, before: 0 }
    }

    fn count(&mut self, places: usize, now: Instant) {
        self.turn(now);
        self.now = self.now.saturating_add(u32::try_from(places).unwrap_or(u32::MAX));
    }

    /// How many are used in [`COVERS`].
    fn lately(&mut self, now: Instant) -> u32 {
        self.turn(now);
        self.now.max(self.before)
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= 2 * COVERS {
            *self = Self::new(now);
        } else if passed >= COVERS {
            *self = Self { since: self.since + COVERS, now: 0, before: self.now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    /// So many places are used in the stretch that begins at `start`.
    fn used(places: usize, start: Instant) -> Stock {
        let stock = Stock::new(start);
        stock.count(places, start);
        stock
    }

    #[test]
    fn what_was_used_lately_is_bought_ahead_once() {
        let start = Instant::now();
        let stock = used(40, start);
        assert_eq!(stock.lacks(start, || 1_000), 40);
        assert_eq!(stock.lacks(start, || 1_000), 0, "somebody buys already");
        stock.fill(40, start);
        assert_eq!(stock.lacks(start, || 1_000), 0, "there is enough");
        assert_eq!(stock.take(25, start).len(), 25);
        assert_eq!(stock.lacks(start, || 1_000), 50, "65 used, 15 at hand");
    }

    #[test]
    fn nothing_is_bought_where_the_budget_is_what_is_waited_for_or_little_is_used() {
        let start = Instant::now();
        assert_eq!(used(40, start).lacks(start, || 0), 0);
        let stock = used(40, start);
        stock.put_back(start);
        assert_eq!(stock.lacks(start, || 8), 7, "at most 8 in stock");
        assert_eq!(used(3, start).lacks(start, || 1_000), 0);
        assert_eq!(used(40, start).lacks(after(start, 19), || 1_000), 40);
        assert_eq!(used(40, start).lacks(after(start, 20), || 1_000), 0, "used up to then, not now");
    }

    #[test]
    fn nobody_gets_a_place_that_is_too_old() {
        let start = Instant::now();
        let stock = used(40, start);
        stock.fill(2, start);
        stock.put_back(after(start, 10));
        assert_eq!(stock.take(3, after(start, 20)), [after(start, 10)]);
        assert!(stock.take(3, after(start, 20)).is_empty());
    }
}
