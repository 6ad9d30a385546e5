//! The world outside of the workers: the bot platform with one conversation, the broker with one queue, Redis.
//! What of it is only there to judge (who had an effect) is marked as such and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use bytes::Bytes;
use context_injector::job::{Name, Scope, Version};
use context_injector::lease::PastVerdict;
use context_injector::pipeline::evicted::Evicted;
use context_injector::pipeline::ledger::{Ledger, LowWater, MAX_ENTRIES, Mark};
use context_injector::pipeline::snapshot::Variables;
use context_injector::target::Change;
use serde_json::{Value, json};

use crate::mutants::Mutant;
use crate::scenario::{Does, at, value};
use crate::shared::Shared;

/// What the second writer adds to `n`: above all digits of the jobs.
pub const FOREIGN: u64 = 10_000_000;

/// The conversation on the platform.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Platform {
    pub version: u64,
    pub variables: Shared<Variables>,
    /// The state before the last write, for reads that are out of date.
    pub before: Option<(u64, Shared<Variables>)>,
    /// Writes that ever were: the model's clock.
    pub clock: u8,
    /// Requests that were given up and may still arrive.
    pub flying: Vec<Shared<Request>>,
    /// To judge: what the second writer did since the conversation began.
    pub foreign: u64,
    /// To judge: effects in this life of the conversation, by job and replay generation.
    pub effects: BTreeMap<(u8, u8), u8>,
    /// To judge: jobs that had their effect in any life.
    pub ever: BTreeSet<u8>,
}

/// A PATCH under way.
#[derive(Debug, Clone)]
pub struct Request {
    pub if_match: Option<Version>,
    pub changes: Vec<Change>,
    pub body: Bytes,
    /// To judge: jobs and generations in it.
    pub jobs: Vec<(u8, u8)>,
}

impl Hash for Request {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.if_match, &self.body, &self.jobs).hash(state);
    }
}

pub fn variable(key: &str) -> Name {
    Name::new(Scope::Conversation, key)
}

pub fn version(number: u64) -> Version {
    Version::new(number.to_string())
}

impl Platform {
    pub fn new() -> Self {
        let variables = [(variable("c"), json!("open"))].into_iter().collect();
        Self { version: 1, variables: Shared::new(variables), ..Self::default() }
    }

    /// A conditional write arrives. Its new version, or the conflict.
    pub fn write(&mut self, request: &Request, does: &[Does], mutant: Option<Mutant>) -> Option<Version> {
        let holds = request.if_match.as_ref() == Some(&version(self.version));
        if !holds && mutant != Some(Mutant::NoPrecondition) {
            return None;
        }
        let mut variables = (*self.variables).clone();
        for change in &request.changes {
            match &change.value {
                Some(value) => variables.insert(change.name.clone(), value.clone()),
                None => variables.remove(&change.name),
            };
        }
        for (job, generation) in &request.jobs {
            if effect(does[usize::from(*job)], *job, &self.variables, &variables) {
                *self.effects.entry((*job, *generation)).or_default() += 1;
                self.ever.insert(*job);
            }
        }
        self.change(variables, mutant);
        Some(version(self.version))
    }

    /// The second writer: reads and writes conditionally, as a good neighbour does.
    pub fn foreign(&mut self, mutant: Option<Mutant>) {
        let mut variables = (*self.variables).clone();
        self.foreign += 1;
        let sum = number(&variables, "n") + FOREIGN;
        variables.insert(variable("n"), json!(sum));
        let mut list = list(&variables);
        list.push(json!("theirs"));
        variables.insert(variable("list"), Value::Array(list));
        variables.insert(variable("theirs"), json!(self.foreign));
        let open = variables.get(&variable("c")) == Some(&json!("open"));
        variables.insert(variable("c"), json!(if open { "shut" } else { "open" }));
        self.change(variables, mutant);
    }

    /// The conversation is cleared. Its version goes on; that it never repeats is what the guarantee rests on.
    pub fn reset(&mut self, mutant: Option<Mutant>) {
        self.foreign = 0;
        self.effects.clear();
        self.change([(variable("c"), json!("open"))].into_iter().collect(), mutant);
        if mutant == Some(Mutant::VersionRestarts) {
            self.version = 1;
        }
    }

    /// A third worker applies so many other jobs that the ledger lets go all that it had. Returns what that worker
    /// leaves in Redis before.
    pub fn flood(
        &mut self,
        ledger_key: &str,
        mutant: Option<Mutant>,
    ) -> Option<(Option<LowWater>, LowWater, Vec<Mark>)> {
        let mut variables = (*self.variables).clone();
        let mut ledger = Ledger::parse(variables.get(&variable(ledger_key))).ok()?;
        let before = ledger.low_water();
        for number in 0..MAX_ENTRIES {
            ledger.add_applied(Mark::from_text(format!("{number:012}")), &version(self.version), at(self.clock));
        }
        let (value, gone) = ledger.to_value();
        let mut changes = vec![Change { name: variable(ledger_key), value: Some(value) }];
        if let Some(mutant) = mutant {
            mutant.mutilate(&mut changes, ledger_key);
        }
        for Change { name, value } in changes {
            variables.insert(name, value?);
        }
        self.change(variables, mutant);
        ledger.low_water().map(|after| (before, after, gone))
    }

    fn change(&mut self, variables: Variables, mutant: Option<Mutant>) {
        self.before = Some((self.version, std::mem::replace(&mut self.variables, Shared::new(variables))));
        self.version += 1;
        self.clock += 1;
        if !mutant.is_some_and(Mutant::lets_old_requests_through) {
            // What names another version can never get through any more.
            let now = version(self.version);
            self.flying.retain(|request| request.if_match.as_ref() == Some(&now));
        }
    }
}

pub fn number(variables: &Variables, key: &str) -> u64 {
    variables.get(&variable(key)).and_then(Value::as_u64).unwrap_or_default()
}

pub fn list(variables: &Variables) -> Vec<Value> {
    variables.get(&variable("list")).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Whether a job had its effect between two states.
fn effect(does: Does, job: u8, before: &Variables, after: &Variables) -> bool {
    let times = |variables: &Variables| match does {
        Does::Adds => number(variables, "n") / 10_u64.pow(u32::from(job)) % 10,
        Does::Appends => u64::try_from(list(variables).iter().filter(|item| **item == value(job)).count()).unwrap(),
        Does::Sets => u64::from(variables.get(&variable("k")) == Some(&value(job))),
        Does::Takes => u64::from(variables.get(&variable("c")) == Some(&value(job))),
    };
    times(after) > times(before)
}

/// A message of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    pub id: u8,
    pub job: u8,
    pub generation: u8,
    pub attempts: u8,
    pub redelivered: bool,
    /// An earlier attempt may have had its effect.
    pub ambiguous: bool,
}

/// The queue: single active consumer, messages come back in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker {
    pub ready: Vec<Message>,
    pub unacked: Vec<Message>,
    pub active: Option<usize>,
    /// Counts the consumers: a receipt of an earlier one settles nothing.
    pub session: u8,
    next: u8,
}

impl Broker {
    pub fn new(queue: &[u8]) -> Self {
        let mut broker = Self { ready: Vec::new(), unacked: Vec::new(), active: Some(0), session: 0, next: 0 };
        for job in queue {
            broker.publish(Message {
                id: 0,
                job: *job,
                generation: 0,
                attempts: 0,
                redelivered: false,
                ambiguous: false,
            });
        }
        broker
    }

    pub fn publish(&mut self, message: Message) {
        self.ready.push(Message { id: self.next, redelivered: false, ..message });
        self.next += 1;
    }

    pub fn deliver(&mut self) -> Message {
        let message = self.ready.remove(0);
        self.unacked.push(message);
        message
    }

    pub fn ack(&mut self, id: u8, session: u8) {
        if session == self.session {
            self.unacked.retain(|message| message.id != id);
        }
    }

    /// The consumer is gone.
    pub fn take_back(&mut self) {
        let back = self.unacked.drain(..).map(|message| Message { redelivered: true, ..message });
        let back = back.collect::<Vec<_>>();
        self.ready.splice(0..0, back);
        self.active = None;
        self.session += 1;
    }
}

/// What is kept in Redis for the conversation. The lease is not among it: it proves nothing, so that the model
/// takes it as lost at every step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Redis {
    pub version: Option<Version>,
    pub verdicts: BTreeMap<u8, PastVerdict>,
    pub witness: Witness,
}

/// As `witness` keeps what ledgers had to let go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Witness {
    /// Where it begins; the inner one: since when it is whole, unless that is the first eviction.
    begins: Option<Option<i64>>,
    counts: BTreeSet<u64>,
    marks: BTreeSet<Mark>,
}

impl Witness {
    pub fn record(&mut self, before: Option<LowWater>, after: LowWater, marks: &[Mark]) {
        let begins = match (before, self.begins) {
            (None, _) => {
                self.counts.clear();
                None
            }
            (Some(before), Some(begins)) if self.counts.contains(&before.evicted) => begins,
            (Some(before), _) => Some(before.at),
        };
        self.begins = Some(begins);
        self.counts.insert(after.evicted);
        self.marks.extend(marks.iter().cloned());
    }

    pub fn recall(&self, evicted: u64) -> Option<Evicted> {
        let since = self.begins.filter(|_| self.counts.contains(&evicted))?;
        Some(Evicted::restore(self.marks.iter().cloned().collect(), evicted, since))
    }
}
