//! Lanes: the jobs of one conversation in their order, one batch under way at a time; conversations side by
//! side. A plain data structure: who waits, who is next, when. No task; the time is a parameter.
//!
//! What waits while a batch is under way becomes the next batch. A conversation that had its turn goes behind those
//! who wait, so that a busy one does not starve the others; and one that had several turns in a row rests until its
//! share of the budget of turns has a place again ([`Pace`]), so that it does not use up by many small batches what
//! the others need. Resting is waiting: whoever rested goes before those who came meanwhile. Not at all rest a full
//! batch, and a lane whose last batch was a single item: nothing comes faster there than it is done, so there is
//! nothing to fold (somebody sends one job after the other's outcome, and would only be slowed down).
//!
//! Bounds: what waits is no more than the consumer's prefetch window holds; lanes without items are kept only until
//! their turns are forgotten, so there are no more than the budget lets begin in that time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::gcra::{Budget, Gcra};

/// How often the turn of one lane may come.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Turns of one lane.
    pub turns: Budget,
    /// Items that wait for no turn: a batch of them is full.
    pub full: usize,
}

/// Items of type `T` in lanes named `K`.
#[derive(Debug)]
pub struct Lanes<K, T> {
    pace: Pace,
    epoch: Instant,
    lanes: HashMap<K, Lane<T>>,
    /// Lanes whose turn it may be, by the time since when they wait and a serial number.
    ready: BTreeMap<(u64, u64), K>,
    /// Lanes that have something to do and wait for their turn, by its time and a serial number. A lane that did not
    /// wait so long leaves its entry behind; [`Lane::state`] tells.
    resting: BTreeMap<(u64, u64), K>,
    /// Lanes that had nothing to do when their batch ended, once each, and when their turns are forgotten, roughly in
    /// order.
    cooling: VecDeque<(u64, K)>,
    serial: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    state: State,
    turns: Gcra,
    /// Items of the last batch.
    last: usize,
    is_cooling: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Its turn may be.
    Ready,
    /// Since and until then.
    Resting {
        since: u64,
        until: u64,
    },
    UnderWay,
}

impl<K: Clone + Eq + Hash, T> Lanes<K, T> {
    /// No lane yet.
    #[must_use]
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            epoch: now,
            lanes: HashMap::new(),
            ready: BTreeMap::new(),
            resting: BTreeMap::new(),
            cooling: VecDeque::new(),
            serial: 0,
            waiting: 0,
        }
    }

    /// Puts an item at the end of its lane.
    pub fn push(&mut self, now: Instant, key: K, item: T) {
        let new = || Lane {
            waiting: VecDeque::new(),
            state: State::Idle,
            turns: Gcra::default(),
            last: 0,
            is_cooling: false,
        };
        let lane = self.lanes.entry(key.clone()).or_insert_with(new);
        lane.waiting.push_back(item);
        self.waiting += 1;
        let is_full = lane.waiting.len() >= self.pace.full;
        match lane.state {
            State::Idle => self.line_up(now, key),
            State::Resting { since, .. } if is_full => self.make_ready(since, key),
            State::Resting { .. } | State::Ready | State::UnderWay => {}
        }
    }

    /// The lane whose turn it is, with its first items; `take` says how many of those that wait. The lane stays
    /// occupied until [`Self::done`].
    pub fn next(&mut self, now: Instant, take: impl FnOnce(&VecDeque<T>) -> usize) -> Option<(K, Vec<T>)> {
        let ((_, key), at) = (self.ready.pop_first()?, self.micros(now));
        let lane = self.lanes.get_mut(&key)?;
        let count = take(&lane.waiting).clamp(1, lane.waiting.len());
        let items = lane.waiting.drain(..count).collect::<Vec<_>>();
        self.waiting -= items.len();
        lane.state = State::UnderWay;
        lane.last = items.len();
        lane.turns.reserve(self.pace.turns, at);
        Some((key, items))
    }

    /// The batch of a lane has ended.
    pub fn done(&mut self, now: Instant, key: &K) {
        self.cool(now);
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.state = State::Idle;
        if !lane.waiting.is_empty() {
            self.line_up(now, key.clone());
        } else if !lane.is_cooling {
            lane.is_cooling = true;
            self.cooling.push_back((lane.turns.forgotten_at(), key.clone()));
        }
    }

    /// Lanes whose turn it may be, once [`Self::wake`] has looked.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Lets those have their turn who rested long enough.
    pub fn wake(&mut self, now: Instant) {
        let at = self.micros(now);
        while let Some(entry) = self.resting.first_entry().filter(|entry| entry.key().0 <= at) {
            let key = entry.remove();
            if let Some(State::Resting { since, until }) = self.lanes.get(&key).map(|lane| lane.state)
                && until <= at
            {
                self.make_ready(since, key);
            }
        }
    }

    /// When to [`Self::wake`] next.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Instant> {
        let ((at, _), _) = self.resting.first_key_value()?;
        Some(self.epoch + Duration::from_micros(*at))
    }

    /// A lane that has items gets its place among those who are ready, or its time.
    fn line_up(&mut self, now: Instant, key: K) {
        let at = self.micros(now);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let turn = lane.turns.next(self.pace.turns);
        if turn <= at || lane.waiting.len() >= self.pace.full || lane.last <= 1 {
            self.make_ready(at, key);
        } else {
            lane.state = State::Resting { since: at, until: turn };
            self.serial += 1;
            self.resting.insert((turn, self.serial), key);
        }
    }

    fn make_ready(&mut self, since: u64, key: K) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.state = State::Ready;
        self.serial += 1;
        self.ready.insert((since, self.serial), key);
    }

    /// Removes lanes that have nothing to do and whose turns are forgotten.
    fn cool(&mut self, now: Instant) {
        let at = self.micros(now);
        while self.cooling.front().is_some_and(|(forgotten, _)| *forgotten <= at) {
            let Some((_, key)) = self.cooling.pop_front() else { return };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            let has_nothing_to_do = lane.state == State::Idle && lane.waiting.is_empty();
            if has_nothing_to_do && lane.turns.forgotten_at() <= at {
                self.lanes.remove(&key);
            } else if has_nothing_to_do {
                self.cooling.push_back((lane.turns.forgotten_at(), key));
            } else {
                lane.is_cooling = false;
            }
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// Items that wait in all lanes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes out everything that waits. Lanes with a batch under way stay occupied.
    pub fn clear(&mut self) -> Vec<T> {
        self.ready.clear();
        self.resting.clear();
        self.waiting = 0;
        let items = self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        self.lanes.retain(|_, lane| lane.state == State::UnderWay);
        items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(waiting: &VecDeque<u32>) -> usize {
        waiting.len()
    }

    /// Lanes that rest for no time at all.
    fn lanes<K: Clone + Eq + Hash>(now: Instant) -> Lanes<K, u32> {
        Lanes::new(Pace { turns: Budget::new(1_000_000, 1_000_000), full: 64 }, now)
    }

    #[test]
    fn what_waits_while_a_batch_is_under_way_is_the_next_batch() {
        let now = Instant::now();
        let mut lanes = lanes(now);
        lanes.push(now, "a", 1);
        assert_eq!(lanes.next(now, all), Some(("a", vec![1])));
        lanes.push(now, "a", 2);
        lanes.push(now, "a", 3);
        assert_eq!(lanes.next(now, all), None, "one batch of a lane at a time");
        lanes.done(now, &"a");
        assert_eq!(lanes.next(now, all), Some(("a", vec![2, 3])));
        let later = now + Duration::from_secs(1);
        lanes.done(later, &"a");
        lanes.push(later, "b", 1);
        lanes.next(later, all);
        lanes.done(later, &"b");
        assert_eq!((lanes.waiting(), lanes.lanes.contains_key("a")), (0, false), "an empty lane takes no memory");
    }

    #[test]
    fn a_busy_lane_goes_to_the_back_of_the_ring() {
        let now = Instant::now();
        let mut lanes = lanes(now);
        for number in 0..3 {
            lanes.push(now, "busy", number);
        }
        lanes.push(now, "other", 9);
        assert_eq!(lanes.next(now, |_| 1), Some(("busy", vec![0])));
        lanes.done(now, &"busy");
        assert_eq!(lanes.next(now, all), Some(("other", vec![9])));
        assert_eq!(lanes.next(now, all), Some(("busy", vec![1, 2])));
    }

    /// Ten turns a second, two at once; four items are a full batch.
    fn paced(now: Instant) -> Lanes<&'static str, u32> {
        Lanes::new(Pace { turns: Budget::new(10, 2), full: 4 }, now)
    }

    /// Two batches of two items each, done at once.
    fn two_turns(lanes: &mut Lanes<&'static str, u32>, now: Instant) {
        for _ in 0..2 {
            lanes.push(now, "hot", 0);
            lanes.push(now, "hot", 0);
            assert_eq!(lanes.next(now, all), Some(("hot", vec![0, 0])));
            lanes.done(now, &"hot");
        }
    }

    #[test]
    fn a_lane_that_had_its_turns_rests_while_others_go_on_and_what_comes_rides_along() {
        let start = Instant::now();
        let mut lanes = paced(start);
        two_turns(&mut lanes, start);
        lanes.push(start, "hot", 2);
        lanes.push(start, "cold", 9);
        assert_eq!(lanes.next(start, all), Some(("cold", vec![9])));
        assert_eq!(lanes.next(start, all), None);
        assert_eq!(lanes.wakes_at(), Some(start + Duration::from_millis(100)));
        lanes.push(start + Duration::from_millis(50), "hot", 3);
        let turn = start + Duration::from_millis(100);
        lanes.wake(turn);
        assert_eq!(lanes.next(turn, all), Some(("hot", vec![2, 3])));
        assert_eq!((lanes.ready(), lanes.wakes_at()), (0, None));
    }

    #[test]
    fn whoever_rested_goes_before_those_who_came_meanwhile() {
        let start = Instant::now();
        let mut lanes = paced(start);
        two_turns(&mut lanes, start);
        lanes.push(start, "before", 0);
        lanes.push(start, "hot", 2);
        lanes.push(start + Duration::from_millis(1), "after", 0);
        lanes.wake(start + Duration::from_millis(100));
        let order = std::iter::from_fn(|| lanes.next(start, all)).map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(order, ["before", "hot", "after"]);
    }

    #[test]
    fn one_after_the_other_never_rests() {
        let start = Instant::now();
        let mut lanes = paced(start);
        for number in 0..20 {
            lanes.push(start, "steady", number);
            assert_eq!(lanes.next(start, all), Some(("steady", vec![number])));
            lanes.done(start, &"steady");
        }
    }

    #[test]
    fn a_full_batch_waits_for_nothing() {
        let start = Instant::now();
        let mut lanes = paced(start);
        two_turns(&mut lanes, start);
        for number in 1..=3 {
            lanes.push(start, "hot", number);
        }
        assert_eq!(lanes.ready(), 0);
        lanes.push(start, "hot", 4);
        assert_eq!(lanes.next(start, all), Some(("hot", vec![1, 2, 3, 4])));
        // The entry that it left behind makes nobody ready before his time.
        lanes.done(start, &"hot");
        lanes.push(start, "hot", 5);
        lanes.wake(start + Duration::from_millis(100));
        assert_eq!(lanes.ready(), 0);
        lanes.wake(start + Duration::from_millis(200));
        assert_eq!(lanes.ready(), 1);
    }

    #[test]
    fn turns_are_remembered_of_a_lane_that_is_empty_and_no_longer_than_they_count() {
        let start = Instant::now();
        let mut lanes = paced(start);
        two_turns(&mut lanes, start);
        lanes.push(start, "hot", 1);
        assert_eq!((lanes.ready(), lanes.clear()), (0, vec![1]));
        for number in 0..1_000_u64 {
            let now = start + Duration::from_millis(number);
            let name: &'static str = ["a", "b", "c", "d"][usize::try_from(number % 4).unwrap()];
            lanes.push(now, name, 0);
            lanes.wake(now);
            while let Some((key, _)) = lanes.next(now, all) {
                lanes.done(now, &key);
            }
        }
        assert!(lanes.lanes.len() <= 5 && lanes.cooling.len() <= 5, "{}", lanes.cooling.len());
        lanes.clear();
        assert!(lanes.lanes.is_empty());
    }

    proptest! {
        #[test]
        fn order_in_a_lane_holds_nothing_is_lost_and_nobody_has_more_than_his_turns(
            steps in proptest::collection::vec((0u8..4, 0u8..4, 1usize..5, 0u64..40_000), 1..200),
        ) {
            let start = Instant::now();
            let pace = Pace { turns: Budget::new(10, 2), full: 4 };
            let mut lanes = Lanes::new(pace, start);
            let mut now = start;
            let mut pushed: HashMap<u8, Vec<u32>> = HashMap::new();
            let mut taken: HashMap<u8, Vec<u32>> = HashMap::new();
            let mut turns: HashMap<u8, Vec<(Instant, bool)>> = HashMap::new();
            let mut last: HashMap<u8, usize> = HashMap::new();
            let mut under_way = Vec::new();
            for (number, (action, lane, count, pause)) in (0u32..).zip(steps) {
                now += Duration::from_micros(pause);
                lanes.wake(now);
                match action {
                    0 | 1 => {
                        lanes.push(now, lane, number);
                        pushed.entry(lane).or_default().push(number);
                    }
                    2 => {
                        let mut full = false;
                        let next = lanes.next(now, |waiting| { full = waiting.len() >= pace.full; count });
                        if let Some((lane, items)) = next {
                            prop_assert!(!under_way.contains(&lane));
                            under_way.push(lane);
                            let may_rest = last.insert(lane, items.len()).is_some_and(|last| last > 1) && !full;
                            turns.entry(lane).or_default().push((now, may_rest));
                            taken.entry(lane).or_default().extend(items);
                        }
                    }
                    _ => if let Some(lane) = under_way.pop() {
                        lanes.done(now, &lane);
                    },
                }
            }
            for times in turns.values() {
                for ((first, _), (third, may_rest)) in times.iter().zip(times.iter().skip(2)) {
                    prop_assert!(!may_rest || third.duration_since(*first) >= Duration::from_millis(100));
                }
            }
            for lane in under_way {
                lanes.done(now, &lane);
            }
            while lanes.waiting() > 0 {
                now = lanes.wakes_at().unwrap_or(now).max(now);
                lanes.wake(now);
                while let Some((lane, items)) = lanes.next(now, all) {
                    taken.entry(lane).or_default().extend(items);
                    lanes.done(now, &lane);
                }
            }
            prop_assert_eq!(taken, pushed);
        }
    }
}
