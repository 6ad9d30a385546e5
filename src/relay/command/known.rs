//! What is known of the endpoints from outside the settings: by Redis, and by the broker. Either may be away; what
//! cannot be asked is a gap that is told, and the rest is shown all the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{cannot_ask, memory};
use crate::broker::Broker;
use crate::broker::topology::{self, Names};
use crate::config::{Config, Endpoint};
use crate::relay::breaker::Saved;
use crate::relay::delivery::Receiver;
use crate::relay::gate::Disabled;
use crate::relay::held::Held;
use crate::relay::removed::{self, Removed};

/// How long RabbitMQ is waited for.
const BROKER_WAIT: Duration = Duration::from_secs(5);

/// What is known of the endpoints from outside the settings.
pub(super) struct Known {
    /// What Redis remembers, if it can be asked.
    remembered: Option<Remembered>,
    pub(super) queues: Queues,
    /// What could not be asked.
    pub(super) gaps: Vec<String>,
}

impl Known {
    pub(super) async fn gather(config: &Config) -> Self {
        let mut gaps = Vec::new();
        let remembered = remembered(config).await.map_err(|error| {
            gaps.push(format!("{error}: who is disabled or broken is not known"));
        });
        let remembered = remembered.ok();
        let queues = queues(config).await.unwrap_or_else(|error| {
            gaps.push(format!("{error}: how many events wait is not known"));
            Queues::default()
        });
        Self { remembered, queues, gaps }
    }

    /// State in a word, and why, if there is a why.
    pub(super) fn state(&self, endpoint: &Endpoint) -> (&'static str, String) {
        if let Err(unusable) = Receiver::new(endpoint) {
            return ("unusable", unusable.to_string());
        }
        let Some(Remembered { disabled, breakers, held }) = &self.remembered else { return ("unknown", String::new()) };
        if let Some(Disabled { since, reason }) = disabled.get(&endpoint.name) {
            return ("disabled", format!("{reason} (since {since:.0})"));
        }
        match breakers.get(&endpoint.name) {
            Some(Saved { open_until_ms: 1.., openings }) => {
                ("broken", format!("it does not take events; left alone {openings} time(s), probed again later"))
            }
            Some(_) => ("recovering", "it takes events again, a few at a time".to_owned()),
            None => match held.get(&endpoint.name) {
                Some(Held { event, tries, until_ms, .. }) => {
                    let due = Timestamp::from_millisecond(*until_ms).unwrap_or_default();
                    ("held", format!("{event} failed {tries} time(s) and holds the later ones; due {due:.0}"))
                }
                None => ("active", String::new()),
            },
        }
    }

    pub(super) fn waiting_of(&self, endpoint: &Endpoint) -> Option<u32> {
        self.queues.waiting.get(&endpoint.name).copied()
    }
}

/// What the broker knows.
#[derive(Default)]
pub(super) struct Queues {
    waiting: HashMap<String, u32>,
    pub(super) removed: BTreeMap<String, Removed>,
}

struct Remembered {
    disabled: HashMap<String, Disabled>,
    breakers: HashMap<String, Saved>,
    held: HashMap<String, Held>,
}

async fn remembered(config: &Config) -> anyhow::Result<Remembered> {
    let memory = memory(config)?;
    let asking = async {
        let (disabled, breakers, held) = (memory.disabled().await?, memory.breakers().await?, memory.held().await?);
        Ok(Remembered { disabled, breakers, held })
    };
    asking.await.map_err(|error| cannot_ask(config, &error))
}

async fn queues(config: &Config) -> anyhow::Result<Queues> {
    let broker = Broker::start(&config.amqp, "context-injector endpoints", CancellationToken::new());
    let asking = async {
        let connection = broker.connection_within(BROKER_WAIT).await?;
        let names = Names::new(&config.amqp.prefix);
        let mut waiting = HashMap::new();
        for endpoint in config.endpoints.keys() {
            if let Some(depth) = topology::depth(&connection, &names.webhooks_of(endpoint)).await? {
                waiting.insert(endpoint.clone(), depth.ready);
            }
        }
        // Where Redis is away, nobody knows of them, and `remembered` has said so.
        let known = |name: &str| config.endpoints.contains_key(name);
        let removed = match memory(config) {
            Ok(memory) => removed::find(&memory, &broker, &names, known).await.unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        Ok(Queues { waiting, removed })
    };
    let answer = asking.await;
    broker.close().await;
    answer
}
