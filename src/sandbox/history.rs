//! The history: everything that changed a conversation, and every request that was not served, in one order.
//!
//! It is what a checker judges by. [`fold`] rebuilds the conversations from it and refuses a history whose links do
//! not meet, so that "lost" and "doubled" can be told apart from "somebody else wrote".
//!
//! An entry is there from the moment of its effect; how its request was answered is added when that is known
//! (`answer` is `pending` until then). The history is bounded; what is dropped is counted and folded into a base, so that
//! a long run can still be judged.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::{Changed, Context};

/// One event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Position; the first is 1, without gaps.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
    /// Who did it.
    pub writer: Writer,
    /// The request's number N; answers have `sandbox-N` as `traceId`. 0 where it was no request.
    pub request: u64,
    /// The request's method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Arc<str>>,
    /// The conversation, or `session/<session>/<user>` and `profile/<profile>` in the dialect `cognigy-v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Arc<str>>,
    /// The header `If-Match` as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<Arc<str>>,
    /// The header `traceparent` as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Arc<str>>,
    /// The version before the event, as a count; absent where nothing was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_before: Option<u64>,
    /// The version after the event, as a count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_after: Option<u64>,
    /// The version before, as clients see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_before: Option<Arc<str>>,
    /// The version after, as clients see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_after: Option<Arc<str>>,
    /// What changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Changed>,
    /// Applied, or tried and refused, some time after its request was answered or given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// The faults that were injected into the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// How the request ended for the client.
    pub answer: Answer,
}

/// What an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A write was applied.
    Write,
    /// A request changed nothing and was not served.
    Refused,
    /// A conversation was cleared and its version started again.
    Reset,
    /// An older state was loaded again.
    Rollback,
    /// The whole context was replaced through the control interface.
    Put,
    /// The conversation was deleted.
    Delete,
    /// A request was answered with success under a fault and changed nothing (a stale read, a lost write).
    Faulty,
}

/// Who changed a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writer {
    /// A client of the API.
    Client,
    /// The sandbox's own second writer.
    Second,
    /// The control interface, or a test in the same process.
    Control,
    /// The platform itself, by a fault.
    Platform,
}

/// How a request ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Not answered yet.
    Pending,
    /// The answer with this status was handed to the connection.
    Status(u16),
    /// An answer with this status whose body breaks off, is garbage or never ends.
    Damaged(u16),
    /// The connection was reset instead of an answer.
    Reset,
    /// The client went away before the answer, or none ever came.
    Unanswered,
    /// There was no request to answer.
    NoRequest,
}

/// The bounded list of entries.
#[derive(Debug)]
pub struct History {
    entries: VecDeque<Entry>,
    sizes: VecDeque<usize>,
    next: u64,
    bytes: usize,
    dropped: u64,
    /// What the dropped entries add up to, or why they do not.
    base: Result<BTreeMap<Arc<str>, Folded>, String>,
    max_entries: usize,
    max_bytes: usize,
}

impl History {
    /// An empty history with its bounds.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        History {
            entries: VecDeque::new(),
            sizes: VecDeque::new(),
            next: 1,
            bytes: 0,
            dropped: 0,
            base: Ok(BTreeMap::new()),
            max_entries: max_entries.max(1),
            max_bytes,
        }
    }

    /// Adds an entry and gives it its position.
    pub fn push(&mut self, mut entry: Entry) -> u64 {
        let seq = self.next;
        self.next += 1;
        entry.seq = seq;
        let size = size(&entry);
        self.bytes += size;
        self.entries.push_back(entry);
        self.sizes.push_back(size);
        while self.entries.len() > self.max_entries || (self.bytes > self.max_bytes && self.entries.len() > 1) {
            if let Some(oldest) = self.entries.pop_front()
                && let Ok(base) = &mut self.base
                && let Err(error) = step(base, &oldest)
            {
                self.base = Err(error);
            }
            self.bytes -= self.sizes.pop_front().unwrap_or(0);
            self.dropped += 1;
        }
        seq
    }

    /// Says how the request of an entry was answered, and by which faults.
    pub fn settle(&mut self, seq: u64, answer: Answer, faults: Vec<String>) {
        let first = self.next - self.entries.len() as u64;
        let at = seq.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) {
            entry.answer = answer;
            entry.faults = faults;
        }
    }

    /// Up to `limit` entries after the position `after`, and the position to go on from.
    pub fn after(&self, after: u64, limit: usize) -> (Vec<Entry>, u64) {
        let first = self.next - self.entries.len() as u64;
        let skip = usize::try_from(after.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        let entries: Vec<Entry> = self.entries.iter().skip(skip).take(limit).cloned().collect();
        let next = entries.last().map_or(after, |entry| entry.seq);
        (entries, next)
    }

    /// Rebuilds the conversations from everything that ever happened; see [`fold`].
    ///
    /// # Errors
    /// As [`fold`].
    pub fn folded(&self) -> Result<BTreeMap<Arc<str>, Folded>, String> {
        let mut conversations = self.base.clone()?;
        self.entries.iter().try_for_each(|entry| step(&mut conversations, entry))?;
        Ok(conversations)
    }

    /// Entries that were dropped because of the bounds.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn size(entry: &Entry) -> usize {
    // Old values are shared with the entry that wrote them, so only new ones count.
    let changes = entry.changes.iter().map(|c| 96 + c.key.len() + c.new.as_deref().map_or(0, value_size));
    320 + changes.sum::<usize>()
}

fn value_size(value: &Value) -> usize {
    32 + match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(number) => number.as_str().len(),
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| 32 + name.len() + value_size(value)).sum(),
    }
}

/// A conversation as a history tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// The version after the last entry.
    pub version: u64,
    /// The variables after the last entry.
    pub context: Context,
    /// False after a deletion.
    pub exists: bool,
}

/// Rebuilds the conversations from their entries.
///
/// # Errors
/// A sentence that names the entry whose version or old value does not follow from the entries before it.
/// An incomplete history (its beginning was dropped) is such a case.
pub fn fold<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<BTreeMap<Arc<str>, Folded>, String> {
    let mut conversations = BTreeMap::new();
    entries.into_iter().try_for_each(|entry| step(&mut conversations, entry))?;
    Ok(conversations)
}

fn step(conversations: &mut BTreeMap<Arc<str>, Folded>, entry: &Entry) -> Result<(), String> {
    let (Some(id), Some(before), Some(after)) = (&entry.conversation, entry.version_before, entry.version_after) else {
        return Ok(());
    };
    let new = || Folded { version: 1, context: Context::new(), exists: true };
    let conversation = conversations.entry(Arc::clone(id)).or_insert_with(new);
    if conversation.version != before {
        let is = conversation.version;
        return Err(format!("entry {}: version {before} expected, the history is at {is}", entry.seq));
    }
    for change in &entry.changes {
        let at = (Arc::clone(&change.key), change.scope);
        if conversation.context.get(&at) != change.old.as_ref() {
            let (scope, key) = (change.scope.name(), &change.key);
            return Err(format!("entry {}: the old value of {scope}.{key} is not that of the history", entry.seq));
        }
        match &change.new {
            Some(value) => conversation.context.insert(at, Arc::clone(value)),
            None => conversation.context.remove(&at),
        };
    }
    conversation.version = after;
    conversation.exists = entry.event != Event::Delete;
    Ok(())
}
