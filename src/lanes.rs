//! Lanes: the jobs of one conversation in their order, one batch under way at a time; conversations side by
//! side. A plain data structure: who waits, who is next. No task, no clock.
//!
//! What waits while a batch is under way becomes the next batch: batching costs no time of its own. A
//! conversation that had its turn goes to the back of the ring, so that a busy one does not starve the others.
//!
//! Bound: nothing here is more than the consumer's prefetch window holds.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Items of type `T` in lanes named `K`.
#[derive(Debug)]
pub struct Lanes<K, T> {
    lanes: HashMap<K, Lane<T>>,
    /// Lanes that have something to do and nothing under way, in the order of their turn.
    ring: VecDeque<K>,
    waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    under_way: bool,
}

impl<K: Clone + Eq + Hash, T> Default for Lanes<K, T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), ring: VecDeque::new(), waiting: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> Lanes<K, T> {
    /// Puts an item at the end of its lane.
    pub fn push(&mut self, key: K, item: T) {
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane { waiting: VecDeque::new(), under_way: false });
        if lane.waiting.is_empty() && !lane.under_way {
            self.ring.push_back(key);
        }
        lane.waiting.push_back(item);
        self.waiting += 1;
    }

    /// The lane whose turn it is, with its first items; `take` says how many of those that wait. The lane stays
    /// occupied until [`Self::done`].
    pub fn next(&mut self, take: impl FnOnce(&VecDeque<T>) -> usize) -> Option<(K, Vec<T>)> {
        let key = self.ring.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let count = take(&lane.waiting).clamp(1, lane.waiting.len());
        let items = lane.waiting.drain(..count).collect::<Vec<_>>();
        self.waiting -= items.len();
        lane.under_way = true;
        Some((key, items))
    }

    /// The batch of a lane has ended.
    pub fn done(&mut self, key: &K) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.under_way = false;
        if lane.waiting.is_empty() {
            self.lanes.remove(key);
        } else {
            self.ring.push_back(key.clone());
        }
    }

    /// Items that wait in all lanes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes out everything that waits. Lanes with a batch under way stay occupied.
    pub fn clear(&mut self) -> Vec<T> {
        self.ring.clear();
        self.waiting = 0;
        let items = self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..)).collect();
        self.lanes.retain(|_, lane| lane.under_way);
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

    #[test]
    fn what_waits_while_a_batch_is_under_way_is_the_next_batch() {
        let mut lanes = Lanes::default();
        lanes.push("a", 1);
        assert_eq!(lanes.next(all), Some(("a", vec![1])));
        lanes.push("a", 2);
        lanes.push("a", 3);
        assert_eq!(lanes.next(all), None, "one batch of a lane at a time");
        lanes.done(&"a");
        assert_eq!(lanes.next(all), Some(("a", vec![2, 3])));
        lanes.done(&"a");
        assert_eq!((lanes.waiting(), lanes.lanes.len()), (0, 0), "an empty lane takes no memory");
    }

    #[test]
    fn a_busy_lane_goes_to_the_back_of_the_ring() {
        let mut lanes = Lanes::default();
        for number in 0..3 {
            lanes.push("busy", number);
        }
        lanes.push("other", 9);
        assert_eq!(lanes.next(|_| 1), Some(("busy", vec![0])));
        lanes.done(&"busy");
        assert_eq!(lanes.next(all), Some(("other", vec![9])));
        assert_eq!(lanes.next(all), Some(("busy", vec![1, 2])));
    }

    proptest! {
        #[test]
        fn order_in_a_lane_holds_and_nothing_is_lost(steps in proptest::collection::vec((0u8..3, 0u8..4, 1usize..5), 1..200)) {
            let mut lanes = Lanes::default();
            let mut pushed: HashMap<u8, Vec<u32>> = HashMap::new();
            let mut taken: HashMap<u8, Vec<u32>> = HashMap::new();
            let mut under_way = Vec::new();
            for (number, (action, lane, count)) in (0u32..).zip(steps) {
                match action {
                    0 => {
                        lanes.push(lane, number);
                        pushed.entry(lane).or_default().push(number);
                    }
                    1 => if let Some((lane, items)) = lanes.next(|_| count) {
                        prop_assert!(!under_way.contains(&lane));
                        under_way.push(lane);
                        taken.entry(lane).or_default().extend(items);
                    },
                    _ => if let Some(lane) = under_way.pop() {
                        lanes.done(&lane);
                    },
                }
            }
            for lane in under_way {
                lanes.done(&lane);
            }
            while let Some((lane, items)) = lanes.next(all) {
                taken.entry(lane).or_default().extend(items);
                lanes.done(&lane);
            }
            prop_assert_eq!(taken, pushed);
            prop_assert_eq!(lanes.waiting(), 0);
        }
    }
}
