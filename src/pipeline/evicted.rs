//! What the ledger had to let go: the marks of applied jobs that its bounds pushed out, remembered outside it.
//!
//! The ledger counts what it evicts. A memory that covers exactly that count knows every evicted mark since it
//! began; if it began with the first eviction, absence from both proves that a job was never applied. Each
//! worker has such a memory per conversation, and Redis has one for all; either may be lost at any time, and
//! then begins anew at the low-water mark of that moment.

use std::collections::{BTreeSet, VecDeque};

use jiff::Timestamp;

use super::ledger::{LowWater, Mark};

/// Most marks that one conversation's memory keeps.
pub const MAX_MARKS: usize = 10_000;

/// The evicted marks of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Evicted {
    marks: BTreeSet<Mark>,
    /// Oldest first, with the low-water time of their eviction in seconds.
    order: VecDeque<(Mark, i64)>,
    /// Evictions that the memory knows of or began after.
    covers: u64,
    /// Entries inserted up to here are not all known (seconds since 1970); `None`: all are.
    since: Option<i64>,
}

/// What a memory says of a job that the ledger does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It was applied.
    Applied,
    /// It was never applied.
    Never,
    /// It was not applied after this instant.
    NotSince(Timestamp),
    /// Nothing.
    Nothing,
}

impl Evicted {
    /// A memory that begins now, with what the ledger has let go already.
    #[must_use]
    pub fn beginning(low: Option<LowWater>) -> Self {
        Self { covers: low.map_or(0, |low| low.evicted), since: low.map(|low| low.at), ..Self::default() }
    }

    /// A memory as kept elsewhere.
    #[must_use]
    pub fn restore(marks: Vec<Mark>, covers: u64, since: Option<i64>) -> Self {
        let mut memory = Self { covers, since, ..Self::default() };
        for mark in marks {
            memory.push(mark, since.unwrap_or_default());
        }
        memory
    }

    /// Our own write let `marks` go, and the ledger's mark went from `before` to `after`.
    pub fn extend(&mut self, before: Option<LowWater>, after: Option<LowWater>, marks: &[Mark]) {
        self.catch_up(before);
        let Some(after) = after else { return };
        for mark in marks {
            self.push(mark.clone(), after.at);
        }
        self.covers = after.evicted;
    }

    /// The ledger was seen with that low-water mark. Evictions that were missed cost reach; what is known stays.
    pub fn catch_up(&mut self, low: Option<LowWater>) {
        if !self.covers(low) {
            self.covers = low.map_or(0, |low| low.evicted);
            self.since = low.map(|low| low.at).max(self.since);
        }
    }

    fn push(&mut self, mark: Mark, at: i64) {
        if self.marks.insert(mark.clone()) {
            self.order.push_back((mark, at));
        }
        while self.order.len() > MAX_MARKS {
            let Some((oldest, at)) = self.order.pop_front() else { return };
            self.marks.remove(&oldest);
            self.since = Some(self.since.map_or(at, |since| since.max(at)));
        }
    }

    /// Whether it knows of every eviction up to `low`.
    #[must_use]
    pub fn covers(&self, low: Option<LowWater>) -> bool {
        self.covers == low.map_or(0, |low| low.evicted)
    }

    /// Whether it knows every mark that was ever let go up to `low`.
    #[must_use]
    pub fn is_complete(&self, low: Option<LowWater>) -> bool {
        self.covers(low) && self.since.is_none()
    }

    /// What it says of a job that a ledger with that low-water mark does not name.
    #[must_use]
    pub fn find(&self, mark: &Mark, low: Option<LowWater>) -> Memory {
        if self.marks.contains(mark) {
            return Memory::Applied;
        }
        if !self.covers(low) {
            return Memory::Nothing;
        }
        match self.since {
            None => Memory::Never,
            Some(since) => Timestamp::from_second(since).map_or(Memory::Nothing, Memory::NotSince),
        }
    }

    /// Marks that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{ConversationId, JobId};

    fn mark(number: usize) -> Mark {
        let conversation = ConversationId::new("c", &regex::Regex::new("c").unwrap()).unwrap();
        Mark::of_job("default", &conversation, &JobId::new(&number.to_string()).unwrap())
    }

    fn low(at: i64, evicted: u64) -> Option<LowWater> {
        Some(LowWater { at, evicted })
    }

    #[test]
    fn a_memory_from_the_beginning_knows_all() {
        let mut memory = Evicted::beginning(None);
        memory.extend(None, low(10, 1), &[mark(1)]);
        memory.extend(low(10, 1), low(20, 3), &[mark(2), mark(3)]);
        assert_eq!(memory.find(&mark(2), low(20, 3)), Memory::Applied);
        assert_eq!(memory.find(&mark(9), low(20, 3)), Memory::Never);
    }

    #[test]
    fn a_missed_eviction_is_noticed() {
        let mut memory = Evicted::beginning(None);
        memory.extend(None, low(10, 1), &[mark(1)]);
        assert_eq!(memory.find(&mark(9), low(15, 2)), Memory::Nothing, "another worker evicted one more");
        memory.extend(low(15, 2), low(20, 3), &[mark(3)]);
        assert_eq!(memory.find(&mark(9), low(20, 3)), Memory::NotSince(Timestamp::from_second(15).unwrap()));
        assert_eq!(memory.find(&mark(3), low(20, 3)), Memory::Applied);
    }

    #[test]
    fn its_bound_is_paid_with_reach() {
        let mut memory = Evicted::beginning(None);
        let mut before = None;
        for number in 0..=MAX_MARKS {
            let after = low(i64::try_from(number).unwrap(), u64::try_from(number).unwrap() + 1);
            memory.extend(before, after, &[mark(number)]);
            before = after;
        }
        assert_eq!(memory.len(), MAX_MARKS);
        assert!(!memory.is_complete(before));
        assert_eq!(memory.find(&mark(MAX_MARKS + 5), before), Memory::NotSince(Timestamp::from_second(0).unwrap()));
    }
}
