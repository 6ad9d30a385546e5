//! What the parts of the process say about themselves.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, State};

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Ready,
    /// It works with less, for this reason; the process is ready all the same.
    Degraded(String),
    /// It does not work, for this reason.
    NotReady(String),
}

/// The conditions of all parts. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<RwLock<Parts>>,
}

#[derive(Debug, Default)]
struct Parts {
    conditions: BTreeMap<String, Condition>,
    stopping: bool,
}

impl Health {
    /// No part yet: not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how a part is; the first call makes it known. A part that is needed says so at start, as not ready.
    pub fn set(&self, part: &str, condition: Condition) {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        parts.conditions.insert(part.to_owned(), condition);
    }

    /// Forgets a part.
    pub fn remove(&self, part: &str) {
        self.parts.write().unwrap_or_else(PoisonError::into_inner).conditions.remove(part);
    }

    /// Not ready any more, for good: the process stops.
    pub fn stop(&self) {
        self.parts.write().unwrap_or_else(PoisonError::into_inner).stopping = true;
    }

    /// Keeps the part `rabbitmq` as the connection is, until `stop`.
    pub fn follow_broker(&self, broker: &Broker, stop: CancellationToken) {
        self.follow_connection("rabbitmq", broker, stop);
    }

    /// The same under a name of its own, for a process with several connections: RabbitMQ blocks only those that
    /// publish.
    pub fn follow_connection(&self, part: &'static str, broker: &Broker, stop: CancellationToken) {
        let (health, mut state) = (self.clone(), broker.state());
        health.set_connection(part, &state.borrow_and_update());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while state.changed().await.is_ok() {
                health.set_connection(part, &state.borrow_and_update());
            }
        }));
    }

    fn set_connection(&self, part: &'static str, state: &State) {
        let condition = condition_of(state);
        let up = u8::from(condition == Condition::Ready);
        metrics::gauge!(crate::metrics::BROKER_UP, "connection" => part).set(f64::from(up));
        self.set(part, condition);
    }

    /// How all parts are now.
    #[must_use]
    pub(super) fn report(&self) -> Report {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        let mut conditions = parts.conditions.clone();
        if parts.stopping {
            conditions.insert("process".to_owned(), Condition::NotReady("stopping".to_owned()));
        } else if conditions.is_empty() {
            conditions.insert("process".to_owned(), Condition::NotReady("starting".to_owned()));
        }
        Report { conditions }
    }
}

fn condition_of(state: &State) -> Condition {
    match state {
        State::Ready => Condition::Ready,
        State::Connecting { why } => Condition::NotReady(why.clone()),
        State::Blocked { reason } => Condition::NotReady(format!("RabbitMQ takes no messages: {reason}")),
    }
}

/// How all parts were at one moment.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) conditions: BTreeMap<String, Condition>,
}

impl Report {
    pub(super) fn is_ready(&self) -> bool {
        !self.conditions.values().any(|condition| matches!(condition, Condition::NotReady(_)))
    }

    pub(super) fn to_json(&self) -> Value {
        let parts = self.conditions.iter().map(|(part, condition)| {
            let (state, reason) = condition.describe();
            (part.clone(), json!({ "state": state, "reason": reason }))
        });
        json!({ "ready": self.is_ready(), "parts": parts.collect::<Map<_, _>>() })
    }
}

impl Condition {
    pub(super) fn describe(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Ready => ("ready", None),
            Self::Degraded(reason) => ("degraded", Some(reason)),
            Self::NotReady(reason) => ("not_ready", Some(reason)),
        }
    }
}
