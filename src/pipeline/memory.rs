//! What a worker remembers of a conversation between batches. Pure: the present is a parameter.
//!
//! Good until it is contradicted, since every write is conditional: an old memory costs a conflict and no more.
//! Nothing may be *concluded* from it without a write ([`super::plan::Plan::holds`]), so a remembered snapshot is
//! never fresh.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::evicted::Evicted;
use super::ledger::{Ledger, LowWater, Mark};
use super::plan::{Fate, Plan};
use super::snapshot::{Contents, Known, Snapshot};
use crate::job::Version;

/// How long a snapshot is good for a first plan.
const SNAPSHOT_AGE: Duration = Duration::from_secs(30);
/// Most jobs without a ledger entry that are remembered for the next one.
const UNRECORDED: usize = 64;

/// What a conversation of which only the version is known takes, its place in the cache included: bytes.
const EMPTY: usize = 600;
/// What a node of a tree of variables takes, bytes, and how many variables it usually holds.
const NODE: usize = 800;
const NODE_HOLDS: usize = 6;
/// What a mark takes with what is noted beside it, bytes.
const MARK: usize = 120;

/// What is remembered of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    /// With the instant since which it is held.
    snapshot: Option<(Snapshot, Timestamp)>,
    known: Option<Known>,
    unrecorded: Vec<Mark>,
    evicted: Evicted,
    /// When it was last noticed that the conversation was cleared.
    reset: Option<Timestamp>,
}

impl Memory {
    /// The version that the conversation has, for whoever plans on that alone. None where the ledger has anything
    /// in it: a worker that was overtaken must read it before it writes, or it would write for the second time.
    #[must_use]
    pub fn version_without_ledger(&self) -> Option<&Version> {
        let (snapshot, _) = self.snapshot.as_ref()?;
        let nothing_to_read = match &snapshot.contents {
            Contents::VersionOnly => true,
            Contents::Full { ledger, .. } => ledger.as_ref().is_ok_and(Ledger::is_empty),
        };
        snapshot.version.as_ref().filter(|_| nothing_to_read)
    }

    /// The last snapshot, if it is recent and has what is needed.
    #[must_use]
    pub fn recent(&self, needs_state: bool, now: Timestamp) -> Option<&Snapshot> {
        let (snapshot, since) = self.snapshot.as_ref()?;
        let recent = Duration::try_from(now.duration_since(*since)).is_ok_and(|age| age < SNAPSHOT_AGE);
        (recent && (!needs_state || snapshot.variables().is_some())).then_some(snapshot)
    }

    /// What a read is compared with, to see whether the conversation was cleared.
    #[must_use]
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// Jobs that were applied without an entry, and that a later job's entry must not overtake.
    #[must_use]
    pub fn unrecorded(&self) -> &[Mark] {
        &self.unrecorded
    }

    /// What the ledger had to let go.
    #[must_use]
    pub fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// The reach of the snapshot's ledger, if it had evictions that are not all known here.
    #[must_use]
    pub fn missed_evictions(&self, snapshot: &Snapshot) -> Option<LowWater> {
        let low = snapshot.ledger()?.low_water()?;
        (!self.evicted.is_complete(Some(low))).then_some(low)
    }

    /// Takes over what others remember of the evictions.
    pub fn recall(&mut self, evicted: Evicted) {
        self.evicted = evicted;
    }

    /// Keeps what was read, and tells the snapshot of an earlier reset: it binds what was published before it.
    pub fn remember(&mut self, snapshot: &mut Snapshot, now: Timestamp) {
        self.reset = snapshot.reset.or(self.reset);
        snapshot.reset = self.reset;
        self.known = Some(snapshot.known());
        if let Some(ledger) = snapshot.ledger() {
            self.evicted.catch_up(ledger.low_water());
        }
        // The next plan on it may be of another batch: then it is no longer fresh.
        self.snapshot = Some((Snapshot { fresh: false, ..snapshot.clone() }, now));
    }

    /// The snapshot was overtaken.
    pub fn forget_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// Our own write got through: the conversation is what we knew, with the plan's changes. `marks` are those of
    /// the plan's jobs; `version` is what the target told of the new version.
    pub fn advance(
        &mut self,
        plan: &Plan,
        snapshot: &Snapshot,
        version: Option<&Version>,
        marks: &[Mark],
        ledger_key: &str,
        now: Timestamp,
    ) {
        let known_before = self.known.take();
        self.snapshot = None;
        if let (Some(after), Some(before)) = (&plan.ledger, snapshot.ledger()) {
            self.evicted.extend(before.low_water(), after.low_water(), &plan.evicted);
        }
        let had_ledger = plan.ledger.is_some() || known_before.is_some_and(|known| known.had_ledger);
        if plan.ledger.is_some() {
            self.unrecorded.clear();
        } else {
            self.applied_without_entry(plan, marks);
        }
        let Some(version) = version else { return };
        self.known = Some(Known { version: Some(version.clone()), had_ledger });
        let contents = match &snapshot.contents {
            Contents::VersionOnly => Contents::VersionOnly,
            Contents::Full { variables, ledger } => {
                let mut variables = Arc::clone(variables);
                let all = Arc::make_mut(&mut variables);
                for change in plan.changes.iter().filter(|change| change.name.key != ledger_key) {
                    match &change.value {
                        Some(value) => all.insert(change.name.clone(), value.clone()),
                        None => all.remove(&change.name),
                    };
                }
                let ledger = plan.ledger.clone().map_or_else(|| ledger.clone(), Ok);
                Contents::Full { variables, ledger }
            }
        };
        let next = Snapshot { version: Some(version.clone()), contents, fresh: false, reset: self.reset };
        self.snapshot = Some((next, now));
    }

    /// Jobs of the plan took effect and no ledger names them: with its write, or because an earlier one had got through.
    pub fn applied_without_entry(&mut self, plan: &Plan, marks: &[Mark]) {
        let applied = plan.fates.iter().zip(marks).filter(|(fate, _)| matches!(fate, Fate::Applies(_)));
        self.unrecorded.extend(applied.map(|(_, mark)| mark.clone()));
        let surplus = self.unrecorded.len().saturating_sub(UNRECORDED);
        self.unrecorded.drain(..surplus);
    }

    /// Bytes that it roughly takes, for the bound of the cache that holds it.
    #[must_use]
    pub fn weight(&self) -> usize {
        let snapshot = self.snapshot.as_ref().map(|(snapshot, _)| snapshot);
        let variables = snapshot.and_then(Snapshot::variables).map_or(0, |all| {
            let nodes = 1 + all.len() / NODE_HOLDS;
            nodes * NODE + all.iter().map(|(name, value)| name.key.len() + weight(value)).sum::<usize>()
        });
        let in_ledger = snapshot.and_then(Snapshot::ledger).map_or(0, Ledger::len);
        EMPTY + variables + MARK * (in_ledger + self.unrecorded.len() + self.evicted.len())
    }
}

fn weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) => 32,
        Value::Number(_) => 56,
        Value::String(text) => 32 + text.len(),
        Value::Array(items) => 32 + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => 32 + fields.iter().map(|(name, value)| 64 + name.len() + weight(value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::{Name, Scope};
    use crate::pipeline::snapshot::Variables;

    #[test]
    fn a_version_stands_alone_only_while_there_is_no_ledger_to_read() {
        let now = Timestamp::UNIX_EPOCH;
        let version = |ledger: Option<serde_json::Value>| {
            let name = Name::new(Scope::Conversation, "_l");
            let variables = ledger.map(|value| (name, value)).into_iter().collect::<Variables>();
            let mut memory = Memory::default();
            memory.remember(&mut Snapshot::read(Some(Version::new("7")), variables, "_l", None, now), now);
            memory.version_without_ledger().cloned()
        };
        assert_eq!(version(None), Some(Version::new("7")));
        assert_eq!(version(Some(json!({"v": 1, "a": [[1, 6, "abcdefghijkl"]]}))), None);
        assert_eq!(version(Some(json!({"v": 99}))), None);
    }
}
