//! The conversations that this worker knows, so that most batches need no read. Bounded in number and bytes; what
//! was not used longest goes first.

use std::collections::{BTreeMap, HashMap};

use crate::job::ConversationId;
use crate::pipeline::memory::Memory;

/// Most conversations.
const MAX_CONVERSATIONS: usize = 20_000;
/// Most bytes of all of them, roughly.
const MAX_WEIGHT: usize = 12_000_000;

/// Memories by conversation. One that is under way is taken out.
#[derive(Debug, Default)]
pub struct Memories {
    entries: HashMap<ConversationId, Entry>,
    /// By the count of their last use.
    uses: BTreeMap<u64, ConversationId>,
    clock: u64,
    weight: usize,
}

#[derive(Debug)]
struct Entry {
    /// Boxed: a table has room for twice as many.
    memory: Box<Memory>,
    used: u64,
    weight: usize,
}

impl Memories {
    /// Takes the memory of a conversation out; an unknown one is empty.
    pub fn take(&mut self, conversation: &ConversationId) -> Box<Memory> {
        let Some(entry) = self.entries.remove(conversation) else { return Box::default() };
        self.uses.remove(&entry.used);
        self.weight -= entry.weight;
        entry.memory
    }

    /// Puts the memory of a conversation back.
    pub fn put(&mut self, conversation: ConversationId, memory: Box<Memory>) {
        drop(self.take(&conversation));
        self.clock += 1;
        let weight = memory.weight();
        self.weight += weight;
        self.uses.insert(self.clock, conversation.clone());
        self.entries.insert(conversation, Entry { memory, used: self.clock, weight });
        while self.entries.len() > MAX_CONVERSATIONS || self.weight > MAX_WEIGHT {
            let Some((_, oldest)) = self.uses.pop_first() else { return };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.weight -= entry.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(number: usize) -> ConversationId {
        static PATTERN: std::sync::LazyLock<regex::Regex> =
            std::sync::LazyLock::new(|| regex::Regex::new(".").unwrap());
        ConversationId::new(&format!("conv_{number:x}"), &PATTERN).unwrap()
    }

    #[test]
    fn the_number_is_bounded_and_the_least_used_go() {
        let mut memories = Memories::default();
        for number in 0..MAX_CONVERSATIONS {
            memories.put(conversation(number), Box::default());
        }
        let first = memories.take(&conversation(0));
        memories.put(conversation(0), first);
        memories.put(conversation(MAX_CONVERSATIONS), Box::default());
        assert!(memories.entries.contains_key(&conversation(0)));
        assert!(!memories.entries.contains_key(&conversation(1)));
        assert_eq!(memories.entries.len(), memories.uses.len());
        for number in 0..=MAX_CONVERSATIONS {
            memories.take(&conversation(number));
        }
        assert_eq!((memories.weight, memories.uses.len()), (0, 0));
    }
}
