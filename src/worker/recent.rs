//! What this worker has ended lately, by job. A message that comes again because its acknowledgement was lost
//! gets the verdict that it had, and not a second one.
//!
//! Certain knowledge as far as it goes; bounded, so it never says "no".

use std::collections::{HashMap, VecDeque};

use crate::pipeline::ledger::Mark;
use crate::pipeline::place::Place;
use crate::pipeline::verdict::Verdict;

/// Most jobs that are remembered.
const LIMIT: usize = 20_000;

/// Verdicts of the last jobs.
#[derive(Debug, Default)]
pub struct Recent {
    verdicts: HashMap<Mark, Entry>,
    order: VecDeque<Mark>,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    end: End,
}

/// Small: there are many, and nearly all were applied.
#[derive(Debug)]
enum End {
    /// Where the job took effect, if no ledger names it.
    Applied(Option<Box<Place>>),
    Other(Box<Verdict>),
}

impl Entry {
    fn verdict(&self) -> &Verdict {
        match &self.end {
            End::Applied(_) => &Verdict::Applied,
            End::Other(verdict) => verdict,
        }
    }

    fn place(&self) -> Option<&Place> {
        match &self.end {
            End::Applied(place) => place.as_deref(),
            End::Other(_) => None,
        }
    }
}

impl Recent {
    /// The verdict that a job has in that replay generation. What was applied is applied in all later ones. An earlier
    /// one was refused, or nobody would have replayed the job; how it was told, the ledger knows that names the effect.
    /// Where none does, not doing the job again comes first.
    #[must_use]
    pub fn find(&self, mark: &Mark, generation: u32) -> Option<&Verdict> {
        let entry = self.verdicts.get(mark)?;
        let verdict = entry.verdict();
        let binds = *verdict == Verdict::Applied && (entry.generation < generation || entry.place().is_some());
        (entry.generation == generation || binds).then_some(verdict)
    }

    /// Where a job took effect, if it did and no ledger named it.
    #[must_use]
    pub fn place(&self, mark: &Mark) -> Option<&Place> {
        self.verdicts.get(mark)?.place()
    }

    /// Remembers a verdict, and where the job took effect if no ledger names it.
    pub fn insert(&mut self, mark: Mark, generation: u32, verdict: Verdict, place: Option<Place>) {
        if let Some(End::Applied(before)) = self.verdicts.get_mut(&mark).map(|entry| &mut entry.end) {
            // A ledger that names it by now is the better witness.
            if verdict == Verdict::Applied && place.is_none() {
                *before = None;
            }
            return;
        }
        let end = match verdict {
            Verdict::Applied => End::Applied(place.map(Box::new)),
            other => End::Other(Box::new(other)),
        };
        if self.verdicts.insert(mark.clone(), Entry { generation, end }).is_none() {
            self.order.push_back(mark);
        }
        if self.order.len() > LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.verdicts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{ConversationId, JobId};
    use crate::pipeline::verdict::{Reason, Rejection};

    fn mark(name: &str) -> Mark {
        static PATTERN: std::sync::LazyLock<regex::Regex> =
            std::sync::LazyLock::new(|| regex::Regex::new("c").unwrap());
        let conversation = ConversationId::new("c", &PATTERN).unwrap();
        Mark::of_job("default", &conversation, &JobId::new(name).unwrap())
    }

    #[test]
    fn a_refusal_binds_its_generation_and_an_effect_all_later_ones() {
        let mut recent = Recent::default();
        let refused = Verdict::NotApplied(Rejection::new(Reason::TypeMismatch, ""));
        recent.insert(mark("a"), 0, refused.clone(), None);
        assert_eq!(recent.find(&mark("a"), 0), Some(&refused));
        assert_eq!(recent.find(&mark("a"), 1), None);
        recent.insert(mark("a"), 1, Verdict::Applied, None);
        recent.insert(mark("a"), 2, refused, None);
        assert_eq!(recent.find(&mark("a"), 0), None, "it was refused then");
        assert_eq!(recent.find(&mark("a"), 7), Some(&Verdict::Applied));
        let place = Place { base: None, follows: None };
        recent.insert(mark("b"), 1, Verdict::Applied, Some(place));
        assert_eq!(recent.find(&mark("b"), 0), Some(&Verdict::Applied), "no ledger would tell");
    }

    #[test]
    fn a_place_is_kept_until_a_ledger_names_the_job() {
        let place = |base: &str| Some(Place { base: Some(crate::job::Version::new(base)), follows: None });
        let mut recent = Recent::default();
        recent.insert(mark("a"), 0, Verdict::Applied, place("1"));
        recent.insert(mark("a"), 0, Verdict::Applied, place("2"));
        assert_eq!(recent.place(&mark("a")), place("1").as_ref());
        recent.insert(mark("a"), 0, Verdict::Applied, None);
        assert_eq!((recent.place(&mark("a")), recent.find(&mark("a"), 3)), (None, Some(&Verdict::Applied)));
    }

    #[test]
    fn the_oldest_go() {
        let mut recent = Recent::default();
        for number in 0..=LIMIT {
            recent.insert(mark(&number.to_string()), 0, Verdict::Applied, None);
        }
        assert_eq!(recent.find(&mark("0"), 0), None);
        assert_eq!((recent.verdicts.len(), recent.order.len()), (LIMIT, LIMIT));
    }
}
