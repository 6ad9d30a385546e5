//! The ledger: which jobs had their effect on a conversation, written inside the same PATCH as that effect.
//!
//! It lives in a reserved variable of the conversation, so that effect and record stand or fall together: a
//! worker that may be applying a job for the second time reads it first, and the PATCH's precondition makes
//! sure that what it read still holds. A *tombstone* is the opposite record: the job was given up, so a copy
//! that is still under way must not take effect. A tombstone binds one replay generation, an entry binds all
//! others.
//!
//! It is bounded (128 entries, 4 kB). The *low-water mark* is the insertion time of the newest entry that had
//! to go, with the number of all that ever had to: below it, absence alone proves nothing
//! ([`super::evicted`] remembers what went).
//!
//! Form: `{"v":1,"low":[T,evicted],"a":[[T,base,"hash…hash…"],…],"t":[[T,"hash",generation,"code"],…],"s":[["hash",n],…]}`,
//! times in seconds since 1970, oldest first; `a` groups the jobs of one PATCH.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::json;
use super::verdict::Reason;
use crate::job::{ConversationId, JobId, Name, Version};

/// Most entries and tombstones together.
pub const MAX_ENTRIES: usize = 128;
/// Most bytes of the serialised ledger.
pub const MAX_BYTES: usize = 4_096;
/// Most variables whose sequence is kept.
pub const MAX_SEQUENCES: usize = 64;

const FORMAT: u64 = 1;
const HASH_CHARS: usize = 12;
const HASH_BYTES: usize = HASH_CHARS / 4 * 3;

/// A job (or variable) as the ledger names it: 12 characters of base64url over SHA-256, unkeyed, so that every
/// worker agrees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(Arc<str>);

impl Mark {
    /// The mark of a job.
    #[must_use]
    pub fn of_job(bot: &str, conversation: &ConversationId, job: &JobId) -> Self {
        Self::of(&[bot, conversation.as_str(), job.as_str()])
    }

    fn of_variable(name: &Name) -> Self {
        Self::of(&[name.scope.as_str(), &name.key])
    }

    fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        Self(URL_SAFE_NO_PAD.encode(&hash.finalize()[..HASH_BYTES]).into())
    }

    /// A mark as it was written.
    #[must_use]
    pub fn from_text(text: String) -> Self {
        Self(text.into())
    }

    /// The mark as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the ledger knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was applied.
    Applied,
    /// It was given up in this replay generation, for this reason.
    GivenUp {
        /// The replay generation.
        generation: u32,
        /// The reason.
        code: Reason,
    },
}

/// How far back the ledger does not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LowWater {
    /// Insertion time of the newest record that had to go, in seconds since 1970.
    pub at: i64,
    /// Records that ever had to go.
    pub evicted: u64,
}

impl LowWater {
    /// The insertion time of the newest record that had to go.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp::from_second(self.at).unwrap_or(Timestamp::MAX)
    }
}

/// The ledger of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ledger {
    /// Oldest first.
    records: Vec<Record>,
    low_water: Option<LowWater>,
    /// Least recently used first.
    sequences: Vec<(Mark, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    mark: Mark,
    at: i64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    Applied { base: Value },
    GivenUp { generation: u32, code: Reason },
}

impl Record {
    /// What sorts the oldest first; of one second, entries before tombstones, since that is how they are written.
    fn age(&self) -> (i64, bool) {
        (self.at, matches!(self.kind, Kind::GivenUp { .. }))
    }
}

/// The ledger has a form that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the ledger has a form that this version does not know")]
pub struct Unreadable;

impl Ledger {
    /// Reads the reserved variable; absent is empty.
    ///
    /// # Errors
    /// [`Unreadable`]: anything but the form above. Nothing may be concluded from such a ledger.
    pub fn parse(value: Option<&Value>) -> Result<Self, Unreadable> {
        match value {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(value) => read(value).ok_or(Unreadable),
        }
    }

    /// Whether it records nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Entries and tombstones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// What is known of a job in replay generation `generation`. Its own tombstone before an entry: what was given up
    /// and then applied by a replay is told as given up to whoever still has the earlier generation.
    #[must_use]
    pub fn find(&self, mark: &Mark, generation: u32) -> Option<Found> {
        let mut applied = None;
        for record in self.records.iter().filter(|record| record.mark == *mark) {
            match record.kind {
                Kind::Applied { .. } => applied = Some(Found::Applied),
                Kind::GivenUp { generation: of, code } if of == generation => {
                    return Some(Found::GivenUp { generation, code });
                }
                Kind::GivenUp { .. } => {}
            }
        }
        applied
    }

    /// How far back it does not reach; `None`: everything is here.
    #[must_use]
    pub fn low_water(&self) -> Option<LowWater> {
        self.low_water
    }

    /// Applied jobs, but for those of which it is certain that they were written on `base` or on an older version.
    pub fn applied_since<'a>(&'a self, base: Option<&'a Version>) -> impl Iterator<Item = &'a Mark> {
        let bound = base.map(|base| (base, shown(base)));
        self.records.iter().filter_map(move |record| match &record.kind {
            Kind::Applied { base: of } => {
                let of_text = || Version::new(of.as_str().map_or_else(|| of.to_string(), ToOwned::to_owned));
                let before = bound.as_ref().is_some_and(|(base, bound)| of == bound || of_text().is_before(base));
                (!before).then_some(&record.mark)
            }
            Kind::GivenUp { .. } => None,
        })
    }

    /// The highest sequence with which `name` was set, as far as it is kept.
    #[must_use]
    pub fn sequence(&self, name: &Name) -> Option<u64> {
        let mark = Mark::of_variable(name);
        self.sequences.iter().find(|(of, _)| *of == mark).map(|(_, sequence)| *sequence)
    }

    /// Records that a job takes effect on `base`.
    pub fn add_applied(&mut self, mark: Mark, base: &Version, now: Timestamp) {
        let base = shown(base);
        self.records.retain(|record| record.mark != mark || matches!(record.kind, Kind::GivenUp { .. }));
        self.records.push(Record { mark, at: now.as_second(), kind: Kind::Applied { base } });
    }

    /// Records that a job is given up in `generation`.
    pub fn add_tombstone(&mut self, mark: Mark, generation: u32, code: Reason, now: Timestamp) {
        self.records.push(Record { mark, at: now.as_second(), kind: Kind::GivenUp { generation, code } });
    }

    /// Records the sequence with which `name` was set.
    pub fn set_sequence(&mut self, name: &Name, sequence: u64) {
        let mark = Mark::of_variable(name);
        self.sequences.retain(|(of, _)| *of != mark);
        self.sequences.push((mark, sequence));
    }

    /// Lets the oldest go until the bounds hold. Returns what is written, and the applied jobs that had to go.
    pub fn to_value(&mut self) -> (Value, Vec<Mark>) {
        let mut gone = Vec::new();
        // As whoever reads it back has them, so that all let the same go.
        self.records.sort_by_key(Record::age);
        let surplus = self.sequences.len().saturating_sub(MAX_SEQUENCES);
        self.sequences.drain(..surplus);
        while self.records.len() > MAX_ENTRIES {
            self.evict_oldest(&mut gone);
        }
        let mut value = self.write();
        while json::length(&value) > MAX_BYTES {
            if self.records.is_empty() {
                self.sequences.remove(0);
            } else {
                self.evict_oldest(&mut gone);
            }
            value = self.write();
        }
        (value, gone)
    }

    fn evict_oldest(&mut self, gone: &mut Vec<Mark>) {
        let record = self.records.remove(0);
        let before = self.low_water.unwrap_or(LowWater { at: record.at, evicted: 0 });
        self.low_water = Some(LowWater { at: before.at.max(record.at), evicted: before.evicted + 1 });
        if matches!(record.kind, Kind::Applied { .. }) {
            gone.push(record.mark);
        }
    }

    fn write(&self) -> Value {
        let mut applied: Vec<(i64, &Value, String)> = Vec::new();
        let mut given_up = Vec::new();
        for record in &self.records {
            match &record.kind {
                Kind::Applied { base } => match applied.last_mut() {
                    Some((at, group, marks)) if *at == record.at && *group == base => {
                        marks.push_str(record.mark.as_str())
                    }
                    _ => applied.push((record.at, base, record.mark.as_str().to_owned())),
                },
                Kind::GivenUp { generation, code } => {
                    given_up.push(json!([record.at, record.mark.as_str(), generation, code.as_str()]));
                }
            }
        }
        let mut value = json!({ "v": FORMAT });
        if let Some(low) = self.low_water {
            value["low"] = json!([low.at, low.evicted]);
        }
        if !applied.is_empty() {
            value["a"] = applied.iter().map(|(at, base, marks)| json!([at, base, marks])).collect();
        }
        if !given_up.is_empty() {
            value["t"] = Value::Array(given_up);
        }
        if !self.sequences.is_empty() {
            value["s"] = self.sequences.iter().map(|(mark, sequence)| json!([mark.as_str(), sequence])).collect();
        }
        value
    }
}

/// A version as the ledger shows it.
fn shown(version: &Version) -> Value {
    match version.to_json() {
        Value::String(text) => Value::String(text.chars().take(24).collect()),
        number => number,
    }
}

fn read(value: &Value) -> Option<Ledger> {
    let fields = value.as_object()?;
    if fields.get("v")?.as_u64()? != FORMAT
        || fields.keys().any(|name| !["v", "low", "a", "t", "s"].contains(&name.as_str()))
    {
        return None;
    }
    let list = |name: &str| match fields.get(name) {
        None => Some(&[][..]),
        Some(value) => value.as_array().map(Vec::as_slice),
    };
    let mut ledger = Ledger::default();
    if let Some(low) = fields.get("low") {
        let [at, evicted] = low.as_array()?.as_slice() else { return None };
        ledger.low_water = Some(LowWater { at: at.as_i64()?, evicted: evicted.as_u64()? });
    }
    for group in list("a")? {
        let [at, base, marks] = group.as_array()?.as_slice() else { return None };
        let (at, marks) = (at.as_i64()?, marks.as_str()?);
        if !(base.is_number() || base.is_string()) || !marks.is_ascii() || marks.len() % HASH_CHARS != 0 {
            return None;
        }
        for chars in marks.as_bytes().chunks(HASH_CHARS) {
            let mark = Mark(std::str::from_utf8(chars).ok()?.into());
            ledger.records.push(Record { mark, at, kind: Kind::Applied { base: base.clone() } });
        }
    }
    for tombstone in list("t")? {
        let [at, mark, generation, code] = tombstone.as_array()?.as_slice() else { return None };
        let generation = u32::try_from(generation.as_u64()?).ok()?;
        let kind = Kind::GivenUp { generation, code: Reason::parse(code.as_str()?)? };
        ledger.records.push(Record { mark: Mark(mark.as_str()?.into()), at: at.as_i64()?, kind });
    }
    for sequence in list("s")? {
        let [mark, sequence] = sequence.as_array()?.as_slice() else { return None };
        ledger.sequences.push((Mark(mark.as_str()?.into()), sequence.as_u64()?));
    }
    // Stable: records of one second keep the order in which they are written.
    ledger.records.sort_by_key(Record::age);
    Some(ledger)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::Scope;

    fn mark(number: usize) -> Mark {
        Mark::of(&[&number.to_string()])
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_760_000_000 + second).unwrap()
    }

    fn reread(ledger: &mut Ledger) -> Ledger {
        let text = ledger.to_value().0.to_string();
        Ledger::parse(Some(&serde_json::from_str(&text).unwrap())).unwrap()
    }

    #[test]
    fn marks_are_stable_between_versions_and_languages() {
        // printf 'default\0conv_1\0job-1\0' | sha256sum, first 9 bytes in base64url
        let conversation = ConversationId::new("conv_1", &regex::Regex::new("^conv_[0-9a-f]+$").unwrap()).unwrap();
        let mark = Mark::of_job("default", &conversation, &JobId::new("job-1").unwrap());
        assert_eq!(mark.as_str().len(), 12);
        assert_eq!(mark, Mark::of(&["default", "conv_1", "job-1"]));
        assert_ne!(mark, Mark::of(&["default", "conv_1j", "ob-1"]));
    }

    #[test]
    fn an_entry_binds_all_generations_and_a_tombstone_one() {
        let mut ledger = Ledger::default();
        ledger.add_applied(mark(1), &Version::new("41"), at(0));
        ledger.add_tombstone(mark(2), 3, Reason::Expired, at(1));
        let ledger = reread(&mut ledger);
        assert_eq!(ledger.find(&mark(1), 0), Some(Found::Applied));
        assert_eq!(ledger.find(&mark(1), 9), Some(Found::Applied));
        assert_eq!(ledger.find(&mark(2), 3), Some(Found::GivenUp { generation: 3, code: Reason::Expired }));
        assert_eq!(ledger.find(&mark(2), 4), None);
        assert_eq!(ledger.find(&mark(3), 0), None);
    }

    #[test]
    fn a_replay_that_is_applied_leaves_the_earlier_generation_given_up() {
        let mut ledger = Ledger::default();
        ledger.add_tombstone(mark(1), 0, Reason::TypeMismatch, at(0));
        ledger.add_applied(mark(1), &Version::new("1"), at(1));
        let ledger = reread(&mut ledger);
        assert!(matches!(ledger.find(&mark(1), 0), Some(Found::GivenUp { .. })));
        assert_eq!(ledger.find(&mark(1), 1), Some(Found::Applied));
        assert_eq!(ledger.find(&mark(1), 2), Some(Found::Applied));
    }

    #[test]
    fn the_oldest_go_and_leave_the_low_water_mark() {
        let mut ledger = Ledger::default();
        for number in 0..200 {
            ledger.add_applied(mark(number), &Version::new("7"), at(i64::try_from(number).unwrap()));
        }
        let ledger = reread(&mut ledger);
        assert_eq!(ledger.len(), MAX_ENTRIES);
        assert_eq!(ledger.low_water(), Some(LowWater { at: at(71).as_second(), evicted: 72 }));
        assert_eq!(ledger.find(&mark(71), 0), None);
        assert_eq!(ledger.find(&mark(72), 0), Some(Found::Applied));
    }

    #[test]
    fn sequences_are_kept_per_variable_and_the_least_used_go() {
        let mut ledger = Ledger::default();
        let name = |number: usize| Name::new(Scope::User, format!("k{number}"));
        for number in 0..70 {
            ledger.set_sequence(&name(number), 5);
        }
        ledger.set_sequence(&name(10), 9);
        let ledger = reread(&mut ledger);
        assert_eq!(ledger.sequence(&name(0)), None);
        assert_eq!(ledger.sequence(&name(10)), Some(9));
        assert_eq!(ledger.sequence(&Name::new(Scope::Session, "k10")), None);
    }

    #[test]
    fn what_it_does_not_know_is_unreadable() {
        let forms = [
            r#"{"v":2}"#,
            r#"{}"#,
            r#"[]"#,
            r#""x""#,
            r#"{"v":1,"x":1}"#,
            r#"{"v":1,"low":"x"}"#,
            r#"{"v":1,"a":[[1,2,"short"]]}"#,
            r#"{"v":1,"a":[[1,2]]}"#,
            r#"{"v":1,"a":{}}"#,
            r#"{"v":1,"t":[[1,"abcdefghijkl",0,"no_such_code"]]}"#,
            r#"{"v":1,"s":[["abcdefghijkl",-1]]}"#,
        ];
        for form in forms {
            assert_eq!(Ledger::parse(Some(&serde_json::from_str(form).unwrap())), Err(Unreadable), "{form}");
        }
        assert_eq!(Ledger::parse(None), Ok(Ledger::default()));
    }

    proptest! {
        #[test]
        fn it_reads_what_it_writes_within_its_bounds(
            actions in proptest::collection::vec((0usize..300, 0i64..5_000, 0u8..3, "[ -~]{1,40}"), 0..400),
        ) {
            let mut ledger = Ledger::default();
            let mut time = 0;
            for (number, step, kind, version) in actions {
                time += step;
                match kind {
                    0 => ledger.add_applied(mark(number), &Version::new(version), at(time)),
                    1 => ledger.add_tombstone(mark(number), 1, Reason::ConflictLimit, at(time)),
                    _ => ledger.set_sequence(&Name::new(Scope::User, version), 7),
                }
            }
            let (value, _) = ledger.to_value();
            prop_assert!(value.to_string().len() <= MAX_BYTES);
            prop_assert!(ledger.len() <= MAX_ENTRIES);
            let again = reread(&mut ledger);
            for number in 0..300 {
                prop_assert_eq!(again.find(&mark(number), 1), ledger.find(&mark(number), 1));
            }
            prop_assert_eq!(again.low_water(), ledger.low_water());
        }
    }
}
