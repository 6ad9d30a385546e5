//! Which message was it that came back?
//!
//! RabbitMQ sends the *return* of an unroutable message before its confirm. lapin keeps returns in a list and
//! hangs the oldest one on whichever confirm comes next, so with several messages under way a return can arrive
//! with the confirm of another message. Left at that, the lost one would count as safe.
//!
//! What holds, and is used here: every confirm takes one return off the list if there is one. So a confirm that
//! brings none found the list empty: the return of its own message, if there was one, had been taken before. A
//! confirm that brings somebody else's return leaves open whether its own is still on the list; it is held back
//! until its own turns up, or until a later confirm brings none, or until nothing is under way any more.

use bytes::Bytes;

/// A message that came back; what is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) message_id: Option<String>,
    pub(super) body: Bytes,
}

/// A message that was sent, and who waits for it.
#[derive(Debug)]
pub(super) struct Sent<T> {
    /// How it is known again; `None`: it was not mandatory, so it does not come back.
    pub(super) key: Option<Returned>,
    pub(super) ticket: T,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Stored,
    Refused,
    Unroutable,
}

/// Returns without owner, and confirms that cannot be believed yet.
#[derive(Debug)]
pub(super) struct Returns<T> {
    strays: Vec<Returned>,
    held: Vec<(Sent<T>, Answer)>,
}

impl<T> Default for Returns<T> {
    fn default() -> Self {
        Self { strays: Vec::new(), held: Vec::new() }
    }
}

impl<T> Returns<T> {
    /// Takes the confirms that were dealt out together, each with the return that hung on it, and gives the
    /// answers that are certain. `idle`: nothing is under way any more.
    pub(super) fn judge(
        &mut self,
        confirms: Vec<(Sent<T>, Answer, Option<Returned>)>,
        idle: bool,
    ) -> Vec<(Sent<T>, Answer)> {
        let mut certain = Vec::with_capacity(confirms.len());
        let mut judged = Vec::with_capacity(confirms.len());
        let mut list_was_empty = false;
        for (sent, answer, carried) in confirms {
            list_was_empty |= carried.is_none();
            let brought_none = carried.is_none();
            self.strays.extend(carried);
            judged.push((sent, answer, brought_none));
        }
        // Those held back are older than every confirm of this call.
        for (sent, answer) in std::mem::take(&mut self.held) {
            self.place(&mut certain, sent, answer, list_was_empty || idle);
        }
        for (sent, answer, brought_none) in judged {
            self.place(&mut certain, sent, answer, brought_none || idle);
        }
        if idle {
            self.strays.clear();
        }
        certain
    }

    fn place(&mut self, certain: &mut Vec<(Sent<T>, Answer)>, sent: Sent<T>, answer: Answer, all_known: bool) {
        let is_own = |stray: &Returned| sent.key.as_ref() == Some(stray);
        if let Some(place) = self.strays.iter().position(is_own) {
            self.strays.swap_remove(place);
            certain.push((sent, Answer::Unroutable));
        } else if all_known || sent.key.is_none() {
            certain.push((sent, answer));
        } else {
            self.held.push((sent, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn key(number: usize) -> Returned {
        Returned { exchange: String::new(), routing_key: number.to_string(), message_id: None, body: Bytes::new() }
    }

    fn sent(number: usize) -> Sent<usize> {
        Sent { key: Some(key(number)), ticket: number }
    }

    #[test]
    fn a_return_that_hangs_on_a_neighbours_confirm_finds_its_owner() {
        let mut returns = Returns::default();
        let batch = vec![(sent(1), Answer::Stored, Some(key(2))), (sent(2), Answer::Stored, None)];
        let answers = returns.judge(batch, false);
        let answer_of = |number| answers.iter().find(|(sent, _)| sent.ticket == number).map(|(_, answer)| *answer);
        assert_eq!(answer_of(2), Some(Answer::Unroutable));
        assert_eq!(answer_of(1), None, "its own return may still be on the list");
        let answers = returns.judge(vec![(sent(3), Answer::Stored, None)], false);
        assert_eq!(answers.len(), 2, "now it is not");
    }

    #[test]
    fn what_was_not_mandatory_waits_for_nobodys_return() {
        let mut returns = Returns::default();
        let event = Sent { key: None, ticket: 1 };
        let answers = returns.judge(vec![(event, Answer::Stored, Some(key(2)))], false);
        assert_eq!(
            answers.iter().map(|(sent, answer)| (sent.ticket, *answer)).collect::<Vec<_>>(),
            [(1, Answer::Stored)]
        );
        let answers = returns.judge(vec![(sent(2), Answer::Stored, None)], false);
        assert_eq!(answers[0].1, Answer::Unroutable, "the return that the event's confirm brought is the job's");
    }

    proptest! {
        /// Plays lapin's list against every order of confirms, dealt out in batches of any size and shuffled
        /// inside each: the unroutable ones, and no others, are found, and everybody is answered.
        #[test]
        fn every_message_gets_its_own_answer(
            unroutable in prop::collection::vec(any::<bool>(), 1..20),
            order in any::<prop::sample::Index>(),
            seed in any::<u64>(),
            cuts in prop::collection::vec(any::<bool>(), 20),
        ) {
            let mut random = seed | 1;
            let mut draw = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                usize::try_from(random % u64::try_from(below).unwrap()).unwrap()
            };
            let total = unroutable.len();
            // Returns arrive in the order of publishing, at any time before the confirm of their message.
            let mut confirms = (0..total).collect::<Vec<_>>();
            confirms.rotate_left(order.index(total));
            for place in (1..total).rev() {
                if draw(2) == 0 {
                    confirms.swap(place, draw(place + 1));
                }
            }
            let mut list = VecDeque::new();
            let mut arrived = 0;
            let mut carried = Vec::new();
            for &number in &confirms {
                let until = (number + 1).max(arrived + draw(3)).min(total);
                let arriving = (arrived.min(until)..until).filter(|returned| unroutable[*returned]);
                list.extend(arriving.map(key));
                arrived = arrived.max(until);
                carried.push((number, list.pop_front()));
            }
            let mut returns = Returns::default();
            let mut answers = BTreeMap::new();
            let mut batch = Vec::new();
            for (place, (number, returned)) in carried.into_iter().enumerate() {
                batch.insert(draw(batch.len() + 1), (sent(number), Answer::Stored, returned));
                let last = place + 1 == total;
                if cuts[place] || last {
                    for (sent, answer) in returns.judge(std::mem::take(&mut batch), last) {
                        answers.insert(sent.ticket, answer);
                    }
                }
            }
            for (number, lost) in unroutable.into_iter().enumerate() {
                let expected = if lost { Answer::Unroutable } else { Answer::Stored };
                prop_assert_eq!(answers.get(&number), Some(&expected), "message {}", number);
            }
        }
    }
}
