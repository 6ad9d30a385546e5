//! One state of everything: the world, two workers, what has been told, and how often faults may still strike.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};

use context_injector::job::Version;
use context_injector::lease::PastVerdict;
use context_injector::pipeline::endings::Tried;
use context_injector::pipeline::memory::Memory;
use context_injector::pipeline::place::Place;
use context_injector::pipeline::plan::{Fate, Plan};
use context_injector::pipeline::snapshot::{Snapshot, Variables};
use context_injector::pipeline::verdict::{Reason, Rejection, Verdict};

use crate::platform::{Broker, Message, Platform, Redis};
use crate::scenario::{FAULTS, Fault, Scenario};
use crate::shared::Shared;

/// Workers: one may be active, the other stands by; who is overtaken works on.
pub const WORKERS: usize = 2;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub platform: Platform,
    pub broker: Broker,
    pub redis: Redis,
    pub workers: [Worker; WORKERS],
    /// To judge: verdicts that were published, by job and replay generation.
    pub told: BTreeSet<(u8, u8, Said)>,
    /// To judge: what has happened that bears on the promises.
    pub happened: Happened,
    left: [u8; FAULTS],
}

/// What has happened that limits what may be promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Happened {
    /// Redis or the conversation was emptied: evidence is gone.
    pub loss: bool,
    /// The conversation was cleared, and effects with it.
    pub reset: bool,
    /// Jobs were sent onto the ladder, whose order is a promise of its own.
    pub ladder: bool,
}

impl State {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            platform: Platform::new(),
            broker: Broker::new(&scenario.queue),
            redis: Redis::default(),
            workers: Default::default(),
            told: BTreeSet::new(),
            happened: Happened::default(),
            left: scenario.budget,
        }
    }

    pub fn may(&self, fault: Fault) -> bool {
        self.left[fault as usize] > 0
    }

    /// A worker sees that another has its place: what it has not begun is not its own any more.
    pub fn notice(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        worker.lane.clear();
        if let Some(run) = &mut worker.run {
            run.noticed = true;
        }
    }

    pub fn spend(&mut self, fault: Fault) {
        self.left[fault as usize] -= 1;
    }
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Worker {
    /// What was delivered and not begun.
    pub lane: Vec<Message>,
    pub run: Option<Run>,
    pub memory: Shared<Memory>,
    /// What went into its `Recent`, in order.
    pub recent: Vec<(u8, u8, Said, Option<Place>)>,
    /// The consumer that it takes itself for: one that was overtaken does not know it until it notices.
    pub session: u8,
}

/// A batch under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Run {
    pub held: Vec<Held>,
    /// The consumer that the messages came to.
    pub session: u8,
    /// Whether the worker has noticed that it is that consumer no longer.
    pub noticed: bool,
    /// Verdicts that Redis had, and the version in its record.
    pub past: Vec<Option<PastVerdict>>,
    pub recorded: Option<Version>,
    /// Ends of the first jobs.
    pub endings: Vec<Ending>,
    /// The jobs up to here are carried out together.
    pub until: usize,
    pub base: Option<Shared<Variables>>,
    pub sent_requests: bool,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Held {
    pub message: Message,
    pub tried: Option<Tried>,
    pub before: Option<Place>,
}

/// What a batch does next; each step has one effect at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Ask Redis for the lease, and what comes with it.
    Acquire,
    /// Look at the conversation and plan.
    Look,
    /// Leave in Redis what the ledger will let go.
    Witness(Shared<Ready>),
    /// Send the plan's PATCH.
    Write(Shared<Ready>),
    /// Leave verdicts in Redis, publish, acknowledge.
    Settle { released: bool, published: usize, acked: usize },
}

/// A plan to be sent, and what it was made on.
#[derive(Debug)]
pub struct Ready {
    pub snapshot: Snapshot,
    pub plan: Plan,
}

impl Hash for Ready {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.snapshot, &self.plan.body, &self.plan.ledger, &self.plan.evicted).hash(state);
        for fate in &self.plan.fates {
            std::mem::discriminant(fate).hash(state);
            match fate {
                Fate::Applies(applied) => applied.hash(state),
                Fate::Refused(rejection) | Fate::RefusedBefore(rejection) | Fate::Unknown(rejection) => {
                    rejection.code.hash(state);
                }
                Fate::Repeat => {}
            }
        }
    }
}

/// How a job leaves its batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ending {
    Verdict {
        said: Said,
        /// What is left of it in Redis.
        left: Option<PastVerdict>,
        /// Where it took effect, if no ledger names it.
        place: Option<Place>,
    },
    Retry,
}

/// A verdict without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    Applied,
    NotApplied(Reason),
    Unknown(Reason),
}

impl From<&Verdict> for Said {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Applied => Self::Applied,
            Verdict::NotApplied(rejection) => Self::NotApplied(rejection.code),
            Verdict::Unknown(rejection) => Self::Unknown(rejection.code),
        }
    }
}

impl From<Said> for Verdict {
    fn from(said: Said) -> Self {
        match said {
            Said::Applied => Self::Applied,
            Said::NotApplied(code) => Self::NotApplied(Rejection::new(code, "")),
            Said::Unknown(code) => Self::Unknown(Rejection::new(code, "")),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::NotApplied(code) => write!(f, "not_applied({})", code.as_str()),
            Self::Unknown(code) => write!(f, "unknown({})", code.as_str()),
        }
    }
}
