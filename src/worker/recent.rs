//! What this worker has ended lately, by job. A message that comes again because its acknowledgement was lost
//! gets the verdict that it had, and not a second one.
//!
//! Certain knowledge as far as it goes; bounded, so it never says "no".

use std::collections::{HashMap, VecDeque};

use crate::pipeline::ledger::Mark;
use crate::pipeline::verdict::Verdict;

/// Most jobs that are remembered.
const LIMIT: usize = 50_000;

/// Verdicts of the last jobs.
#[derive(Debug, Default)]
pub struct Recent {
    verdicts: HashMap<Mark, (u32, Verdict)>,
    order: VecDeque<Mark>,
}

impl Recent {
    /// The verdict that a job has in that replay generation. What was applied was applied in all of them.
    #[must_use]
    pub fn find(&self, mark: &Mark, generation: u32) -> Option<&Verdict> {
        let (of, verdict) = self.verdicts.get(mark)?;
        (*verdict == Verdict::Applied || *of == generation).then_some(verdict)
    }

    /// Remembers a verdict.
    pub fn insert(&mut self, mark: Mark, generation: u32, verdict: Verdict) {
        if self.verdicts.get(&mark).is_some_and(|(_, before)| *before == Verdict::Applied) {
            return;
        }
        if self.verdicts.insert(mark.clone(), (generation, verdict)).is_none() {
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
    fn a_refusal_binds_its_generation_and_an_effect_all() {
        let mut recent = Recent::default();
        let refused = Verdict::NotApplied(Rejection::new(Reason::TypeMismatch, ""));
        recent.insert(mark("a"), 0, refused.clone());
        assert_eq!(recent.find(&mark("a"), 0), Some(&refused));
        assert_eq!(recent.find(&mark("a"), 1), None);
        recent.insert(mark("a"), 1, Verdict::Applied);
        recent.insert(mark("a"), 2, refused);
        assert_eq!(recent.find(&mark("a"), 7), Some(&Verdict::Applied));
    }

    #[test]
    fn the_oldest_go() {
        let mut recent = Recent::default();
        for number in 0..=LIMIT {
            recent.insert(mark(&number.to_string()), 0, Verdict::Applied);
        }
        assert_eq!(recent.find(&mark("0"), 0), None);
        assert_eq!((recent.verdicts.len(), recent.order.len()), (LIMIT, LIMIT));
    }
}
