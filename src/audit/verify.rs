//! Checks a stream of audit events: hashes, links, numbers, checkpoints. Pure.
//!
//! Per writer, what has been seen is kept as *pieces*, runs of events whose links are right; an event joins the
//! pieces beside it. So the order of arrival does not matter, and at the end one piece is left unless something is
//! missing. A publish that was repeated is the same event again and no fault; another event of the same number is.
//!
//! What cannot be told from the events alone:
//! - A head that is missing: older events are let go by age and size. It is a fault only where the source is known
//!   to begin at its very beginning.
//! - A tail that is missing: only a checkpoint that vouches for more than there is shows it. Events behind the last
//!   checkpoint are told as *open*.
//!
//! Bounds: 65,536 hashes per writer (an event that comes again later than that cannot be compared, which is told),
//! 65,536 pieces and 4,096 waiting checkpoints per writer, 1,000 faults in words (all are counted).

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;
use serde_json::{Map, Value};

use super::chain::{GENESIS, hash};
use super::checkpoint::{Checkpoint, key_id};
use crate::pipeline::json;

/// Hashes of one writer that are remembered.
const REMEMBERED: usize = 65_536;
/// Runs of one writer with gaps between them.
const MAX_PIECES: usize = 65_536;
/// Checkpoints of one writer whose event has not come yet.
const MAX_WAITING: usize = 4_096;
/// Faults that are told in words.
const MAX_FAULTS: usize = 1_000;

/// What kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// No event of a chain at all.
    NotAnEvent,
    /// Its hash is not that of its content.
    Tampered,
    /// It does not follow the event before it.
    BrokenLink,
    /// Two events of one writer have one number.
    Fork,
    /// Events are missing.
    Gap,
    /// A checkpoint vouches for events that are not there.
    CutOff,
    /// A checkpoint whose signature or content is wrong.
    Checkpoint,
    /// It comes again so late that it cannot be compared.
    TooLate,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// Offset in the stream, or line of the file.
    pub place: Option<u64>,
    /// Whose chain.
    pub writer: Option<String>,
    /// Which event of it.
    pub seq: Option<u64>,
    /// The event's id.
    pub id: Option<String>,
    /// What is wrong, in a sentence.
    pub text: String,
}

/// What was found of one writer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WriterReport {
    /// Its name.
    pub writer: String,
    /// Its first event that is there.
    pub first: u64,
    /// Its last event that is there.
    pub last: u64,
    /// Its events, repeats not counted.
    pub events: u64,
    /// Events that came again.
    pub repeats: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The last event that a good checkpoint covers; 0: none.
    pub covered: u64,
    /// Whether its last checkpoint says that it ended, and nothing came after.
    pub closed: bool,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// All that was read.
    pub read: u64,
    /// The place of the first that was read.
    pub begins_at: Option<u64>,
    /// Whether checkpoints were checked against a key.
    pub signatures_checked: bool,
    /// The writers, in the order of their first events.
    pub writers: Vec<WriterReport>,
    /// How many faults there are.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
}

/// Takes events in and tells what is wrong with them.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    writers: BTreeMap<String, Writer>,
    /// Names of the writers in the order of their first events.
    order: Vec<String>,
    read: u64,
    begins_at: Option<u64>,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Faults {
    count: u64,
    told: Vec<Fault>,
}

impl Faults {
    fn add(&mut self, kind: Kind, at: &At<'_>, text: impl Into<String>) {
        self.count += 1;
        if self.told.len() < MAX_FAULTS {
            let (writer, id) = (at.writer.map(str::to_owned), at.id.map(str::to_owned));
            self.told.push(Fault { kind, place: at.place, writer, seq: at.seq, id, text: text.into() });
        }
    }
}

/// Where a fault is.
#[derive(Debug, Clone, Copy, Default)]
struct At<'a> {
    place: Option<u64>,
    writer: Option<&'a str>,
    seq: Option<u64>,
    id: Option<&'a str>,
}

/// A run of events without a gap.
#[derive(Debug)]
struct Piece {
    last: u64,
    prevhash: String,
    hash: String,
}

#[derive(Debug, Default)]
struct Writer {
    /// By their first number.
    pieces: BTreeMap<u64, Piece>,
    /// The hashes of those that came last.
    hashes: BTreeMap<u64, String>,
    arrived: VecDeque<u64>,
    waiting: Vec<(Checkpoint, Option<u64>)>,
    events: u64,
    repeats: u64,
    checkpoints: u64,
    covered: u64,
    closed_at: Option<u64>,
}

impl Verifier {
    /// Checks signatures of checkpoints against `keys`; without any they are not checked.
    #[must_use]
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        let (writers, order, faults) = (BTreeMap::new(), Vec::new(), Faults::default());
        Self { keys, writers, order, read: 0, begins_at: None, faults }
    }

    /// Takes the next one; `place` is its offset or line.
    pub fn take(&mut self, place: u64, body: &[u8]) {
        self.read += 1;
        self.begins_at.get_or_insert(place);
        match read(body) {
            Ok(event) if Checkpoint::is_one(&event) => self.take_checkpoint(place, &event),
            Ok(event) => self.take_event(place, &event),
            Err(text) => {
                self.faults.add(Kind::NotAnEvent, &At { place: Some(place), ..At::default() }, text);
            }
        }
    }

    /// What was found. `from_the_beginning`: nothing was ever let go before the first that was read.
    #[must_use]
    pub fn finish(mut self, from_the_beginning: bool) -> Report {
        let mut reports = Vec::new();
        for name in &self.order {
            let Some(writer) = self.writers.remove(name) else { continue };
            let faults = &mut self.faults;
            let at = |seq: u64, place: Option<u64>| At { writer: Some(name), seq: Some(seq), place, id: None };
            let starts = writer.pieces.iter().map(|(first, piece)| (*first, piece.last)).collect::<Vec<_>>();
            let (first, last) = (starts.first().map_or(0, |p| p.0), starts.last().map_or(0, |p| p.1));
            if from_the_beginning && first > 1 {
                let text = format!("the events 1 to {} are missing, and the stream has let none go", first - 1);
                faults.add(Kind::Gap, &at(1, None), text);
            }
            for pair in starts.windows(2) {
                let text = format!("the events {} to {} are missing", pair[0].1 + 1, pair[1].0 - 1);
                faults.add(Kind::Gap, &at(pair[0].1 + 1, None), text);
            }
            for (checkpoint, place) in &writer.waiting {
                // Before the first event that is kept there is nothing to compare; a gap is told as one.
                if checkpoint.seq > last {
                    let text = format!(
                        "a checkpoint vouches for the events up to {}, but the last one that is there is {last}",
                        checkpoint.seq
                    );
                    faults.add(Kind::CutOff, &at(checkpoint.seq, *place), text);
                }
            }
            reports.push(WriterReport {
                writer: name.clone(),
                first,
                last,
                events: writer.events,
                repeats: writer.repeats,
                checkpoints: writer.checkpoints,
                covered: writer.covered,
                closed: writer.closed_at == Some(last),
            });
        }
        Report {
            read: self.read,
            begins_at: self.begins_at,
            signatures_checked: !self.keys.is_empty(),
            writers: reports,
            fault_count: self.faults.count,
            faults: self.faults.told,
        }
    }

    fn take_event(&mut self, place: u64, event: &Map<String, Value>) {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        let (id, name) = (text("id"), text("writer"));
        let seq = event.get("seq").and_then(Value::as_u64).filter(|seq| *seq > 0);
        let at = At { place: Some(place), writer: name, seq, id };
        let (Some(name), Some(seq), Some(prevhash), Some(stated)) = (name, seq, text("prevhash"), text("hash")) else {
            self.faults.add(Kind::NotAnEvent, &at, "it has no writer, seq, prevhash and hash, so it is in no chain");
            return;
        };
        if hash(event) != stated {
            // It keeps its place by the hash that it states, so that one change is one fault.
            self.faults.add(Kind::Tampered, &at, "its hash is not that of its content: it was changed");
        }
        let writer = known(&mut self.writers, &mut self.order, name);
        writer.take(seq, prevhash, stated, &at, &mut self.faults);
    }

    fn take_checkpoint(&mut self, place: u64, event: &Map<String, Value>) {
        let id = event.get("id").and_then(Value::as_str);
        let Some(checkpoint) = Checkpoint::read(event) else {
            let at = At { place: Some(place), id, ..At::default() };
            self.faults.add(Kind::Checkpoint, &at, "the checkpoint has not all of its members");
            return;
        };
        let at = At { place: Some(place), writer: Some(&checkpoint.writer), seq: Some(checkpoint.seq), id };
        if !self.keys.is_empty() {
            match self.keys.iter().find(|key| key_id(key) == checkpoint.key_id) {
                None => {
                    let text = format!("signed with key {}, which is none of those given", checkpoint.key_id);
                    self.faults.add(Kind::Checkpoint, &at, text);
                    return;
                }
                Some(key) if !Checkpoint::is_signed_by(event, key) => {
                    self.faults.add(Kind::Checkpoint, &at, "the signature is wrong");
                    return;
                }
                Some(_) => {}
            }
        }
        let writer = known(&mut self.writers, &mut self.order, &checkpoint.writer);
        writer.checkpoints += 1;
        if writer.hashes.contains_key(&checkpoint.seq) {
            writer.compare(&checkpoint, &at, &mut self.faults);
        } else if writer.waiting.len() < MAX_WAITING {
            writer.waiting.push((checkpoint, Some(place)));
        } else {
            self.faults.add(Kind::Checkpoint, &at, "too many checkpoints whose event has not come");
        }
    }
}

impl Writer {
    fn take(&mut self, seq: u64, prevhash: &str, hash: &str, at: &At<'_>, faults: &mut Faults) {
        if self.has(seq) {
            match self.hashes.get(&seq) {
                Some(known) if known == hash => self.repeats += 1,
                Some(_) => faults.add(Kind::Fork, at, "another event of the same writer has this number"),
                None => {
                    let text = format!("it comes again after more than {REMEMBERED} events and cannot be compared");
                    faults.add(Kind::TooLate, at, text);
                }
            }
            return;
        }
        self.events += 1;
        if seq == 1 && prevhash != GENESIS {
            faults.add(Kind::BrokenLink, at, "the first event of a writer names one before it");
        }
        self.join(seq, prevhash, hash, at, faults);
        self.hashes.insert(seq, hash.to_owned());
        self.arrived.push_back(seq);
        if self.arrived.len() > REMEMBERED
            && let Some(oldest) = self.arrived.pop_front()
        {
            self.hashes.remove(&oldest);
        }
        for (checkpoint, place) in
            self.waiting.extract_if(.., |(checkpoint, _)| checkpoint.seq == seq).collect::<Vec<_>>()
        {
            self.compare(&checkpoint, &At { place, ..*at }, faults);
        }
    }

    fn has(&self, seq: u64) -> bool {
        self.pieces.range(..=seq).next_back().is_some_and(|(_, piece)| piece.last >= seq)
    }

    /// Joins an event with the pieces beside it, and checks the links.
    fn join(&mut self, seq: u64, prevhash: &str, hash: &str, at: &At<'_>, faults: &mut Faults) {
        let before = self.pieces.range(..seq).next_back().filter(|(_, piece)| piece.last + 1 == seq);
        let before = before.map(|(first, _)| *first);
        let mut piece = Piece { last: seq, prevhash: prevhash.to_owned(), hash: hash.to_owned() };
        let mut first = seq;
        if let Some((start, left)) = before.and_then(|start| Some((start, self.pieces.remove(&start)?))) {
            if left.hash != prevhash {
                faults.add(Kind::BrokenLink, at, format!("its prevhash is not the hash of event {}", seq - 1));
            }
            first = start;
            piece.prevhash = left.prevhash;
        }
        if let Some(right) = seq.checked_add(1).and_then(|next| self.pieces.remove(&next)) {
            if right.prevhash != hash {
                let text = format!("event {} names another hash as that of this event", seq + 1);
                faults.add(Kind::BrokenLink, at, text);
            }
            piece.last = right.last;
            piece.hash = right.hash;
        }
        if self.pieces.len() < MAX_PIECES {
            self.pieces.insert(first, piece);
        } else {
            faults.add(
                Kind::Gap,
                at,
                format!("its chain has more than {MAX_PIECES} gaps; it is not looked at further"),
            );
        }
    }

    fn compare(&mut self, checkpoint: &Checkpoint, at: &At<'_>, faults: &mut Faults) {
        if self.hashes.get(&checkpoint.seq) == Some(&checkpoint.hash) {
            self.covered = self.covered.max(checkpoint.seq);
            if checkpoint.last {
                self.closed_at = Some(checkpoint.seq);
            }
        } else {
            faults.add(
                Kind::Checkpoint,
                at,
                "the checkpoint vouches for another event of this number: the chain was changed",
            );
        }
    }
}

fn known<'w>(writers: &'w mut BTreeMap<String, Writer>, order: &mut Vec<String>, name: &str) -> &'w mut Writer {
    if !writers.contains_key(name) {
        order.push(name.to_owned());
    }
    writers.entry(name.to_owned()).or_default()
}

/// Reads one event. Other readers must not see another one in the same bytes, so names are not there twice.
fn read(body: &[u8]) -> Result<Map<String, Value>, String> {
    let event = serde_json::from_slice::<Map<String, Value>>(body).map_err(|_| "it is no JSON object".to_owned())?;
    let event = Value::Object(event);
    if event.to_string().as_bytes() != body {
        // Not as a writer writes it; from a file, somebody may have laid it out anew.
        json::parse(body)?;
    }
    match event {
        Value::Object(event) => Ok(event),
        _ => Err("it is no JSON object".to_owned()),
    }
}

#[cfg(test)]
mod tests;
