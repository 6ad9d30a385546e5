//! One request from its arrival to its end: what is known of it, which faults struck it, and its place in the history.
//!
//! A request may end for the client before it ends for the platform (the client gives up, or a write is applied
//! late), so both sides only leave a note here; whoever comes second completes the history entry.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::faults::{Active, Asked, Kind, Operation};
use super::history::{Answer, Entry, Event, Writer};
use super::platform::{Origin, Platform};
use super::stats::now_ms;

/// One request.
pub(super) struct Exchange {
    pub platform: Arc<Platform>,
    pub faults: Arc<Active>,
    pub number: u64,
    pub method: Arc<str>,
    pub path: String,
    pub operation: Operation,
    /// In the dialect `cognigy-v2`.
    pub v2: bool,
    pub if_match: Option<Arc<str>>,
    pub traceparent: Option<Arc<str>>,
    pub authorization: Option<String>,
    pub forced: Vec<Kind>,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    conversation: Option<Arc<str>>,
    struck: Vec<Kind>,
    seq: Option<u64>,
    answer: Option<Answer>,
    writing: bool,
    /// The platform has finished with it; a late write may still come.
    worked: bool,
    recorded: bool,
}

/// What the head of a request says.
pub(super) struct Head {
    pub method: Arc<str>,
    pub path: String,
    pub operation: Operation,
    pub v2: bool,
    pub conversation: Option<Arc<str>>,
    pub if_match: Option<Arc<str>>,
    pub traceparent: Option<Arc<str>>,
    pub authorization: Option<String>,
    pub forced: Vec<Kind>,
}

impl Exchange {
    /// Counts the request in.
    pub fn new(platform: Arc<Platform>, head: Head) -> Exchange {
        platform.stats.add(|counts| {
            counts.in_flight += 1;
            counts.in_flight_most = counts.in_flight_most.max(counts.in_flight);
            match head.operation {
                Operation::Read => counts.reads += 1,
                Operation::Write => counts.writes += 1,
                Operation::Token | Operation::Other => {}
            }
        });
        let number = platform.next_request.fetch_add(1, Ordering::Relaxed);
        Exchange {
            faults: platform.faults(),
            platform,
            number,
            method: head.method,
            path: head.path,
            operation: head.operation,
            v2: head.v2,
            if_match: head.if_match,
            traceparent: head.traceparent,
            authorization: head.authorization,
            forced: head.forced,
            notes: Mutex::new(Notes { conversation: head.conversation, ..Notes::default() }),
        }
    }

    /// The request's number as answers carry it.
    pub fn trace_id(&self) -> String {
        format!("sandbox-{}", self.number)
    }

    /// The conversation, where it is known.
    pub fn conversation(&self) -> Option<Arc<str>> {
        self.notes(|notes| notes.conversation.clone())
    }

    /// Says which conversation a write is about, once its body is read.
    pub fn writes_to(&self, id: &str) {
        let id: Arc<str> = Arc::from(id);
        let first = self.platform.writing.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&id));
        if !first {
            self.platform.stats.add(|counts| counts.overlapping_writes += 1);
        }
        self.notes(|notes| {
            notes.conversation = Some(id);
            notes.writing = first;
        });
    }

    /// Whether a fault strikes; if so, it is counted.
    pub fn strikes(&self, kind: Kind) -> bool {
        let conversation = self.conversation();
        let asked = Asked {
            method: &self.method,
            operation: self.operation,
            conversation: conversation.as_deref(),
            forced: &self.forced,
        };
        let strikes = self.faults.strikes(kind, asked);
        if strikes {
            self.platform.stats.fault(kind);
            self.notes(|notes| notes.struck.push(kind));
        }
        strikes
    }

    /// What the history shall know of a write for this request.
    pub fn origin(&self, late: bool) -> Origin {
        Origin {
            writer: Some(Writer::Client),
            request: self.number,
            method: Some(Arc::clone(&self.method)),
            if_match: self.if_match.clone(),
            traceparent: self.traceparent.clone(),
            late,
        }
    }

    /// The platform itself acts on the occasion of this request.
    pub fn platform_origin(&self) -> Origin {
        Origin { writer: Some(Writer::Platform), request: self.number, ..Origin::default() }
    }

    /// A write for this request was applied and is in the history.
    pub fn applied(&self, seq: u64, keys: usize) {
        self.platform.stats.add(|counts| {
            counts.writes_applied += 1;
            counts.keys_written += keys as u64;
            counts.unconditional_writes += u64::from(self.if_match.is_none());
        });
        let (answer, struck) = self.notes(|notes| {
            notes.seq = Some(seq);
            (notes.answer, names(&notes.struck))
        });
        if let Some(answer) = answer {
            self.platform.world().history.settle(seq, answer, struck);
        }
    }

    /// How the request ended for the client. Only the first call counts.
    pub fn end(&self, answer: Answer) {
        let noted = self.notes(|notes| {
            if notes.answer.is_some() {
                return None;
            }
            notes.answer = Some(answer);
            let writing = std::mem::take(&mut notes.writing).then(|| notes.conversation.clone()).flatten();
            Some((notes.seq, names(&notes.struck), writing))
        });
        let Some((seq, struck, writing)) = noted else { return };
        if let Some(id) = writing {
            self.platform.writing.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        let status = match answer {
            Answer::Status(status) | Answer::Damaged(status) => status.to_string(),
            Answer::Reset => "reset".into(),
            Answer::Pending | Answer::Unanswered | Answer::NoRequest => "gone".into(),
        };
        let key = format!("{} {status}", self.method);
        self.platform.stats.add(|counts| {
            counts.in_flight -= 1;
            *counts.requests.entry(key).or_default() += 1;
        });
        match seq {
            Some(seq) => self.platform.world().history.settle(seq, answer, struck),
            None => self.complete(),
        }
    }

    /// The platform has finished with the request, or never will.
    pub fn worked(&self) {
        self.notes(|notes| notes.worked = true);
        self.complete();
    }

    /// Adds an entry for a request that changed nothing, once both sides are through with it.
    fn complete(&self) {
        let entry = self.notes(|notes| {
            let answer = notes.answer.filter(|_| notes.worked && notes.seq.is_none() && !notes.recorded)?;
            notes.recorded = true;
            Some((notes.conversation.clone(), names(&notes.struck), answer))
        });
        let Some((conversation, struck, answer)) = entry else { return };
        let served = matches!(answer, Answer::Status(status) if status < 400);
        if !served {
            self.record(Event::Refused, conversation, struck, answer, false);
        } else if !struck.is_empty() {
            self.record(Event::Faulty, conversation, struck, answer, false);
        }
    }

    /// A late write was tried and its precondition no longer held.
    pub fn late_refused(&self) {
        let noted = self
            .notes(|notes| (notes.conversation.clone(), names(&notes.struck), notes.answer.unwrap_or(Answer::Pending)));
        let (conversation, struck, answer) = noted;
        self.record(Event::Refused, conversation, struck, answer, true);
    }

    fn record(&self, event: Event, conversation: Option<Arc<str>>, faults: Vec<String>, answer: Answer, late: bool) {
        self.platform.world().history.push(Entry {
            seq: 0,
            at_ms: now_ms(),
            event,
            writer: Writer::Client,
            request: self.number,
            method: Some(Arc::clone(&self.method)),
            conversation,
            if_match: self.if_match.clone(),
            traceparent: self.traceparent.clone(),
            version_before: None,
            version_after: None,
            shown_before: None,
            shown_after: None,
            changes: Vec::new(),
            late,
            faults,
            answer,
        });
    }

    fn notes<T>(&self, with: impl FnOnce(&mut Notes) -> T) -> T {
        with(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn names(struck: &[Kind]) -> Vec<String> {
    struck.iter().map(|kind| kind.name().to_owned()).collect()
}
