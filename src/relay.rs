//! The relay: delivers outcome events as signed webhooks.
//!
//! ```text
//! context.webhooks.<endpoint> ─▶ gate ─▶ sign ─▶ POST ─▶ decide ─▶ ack | rung | dead letter | back to its queue
//!                              (disabled? │                          │
//!                               breaker)  ▼                          ▼
//!                                 address filter        context.webhooks.retry.<delay> ─▶ context.webhooks ─▶ queue
//! ```
//!
//! Rules:
//! - Nothing is lost: an event leaves its queue by a success of the receiver, or after its successor (on a rung, in
//!   the dead letters) was confirmed. A disabled, broken or wrongly set endpoint's events wait in its queue.
//! - At least once: a receiver knows a repetition by `webhook-id`, which is the event's id.
//! - An endpoint that cannot be used by its settings is disabled with the reason; the others go on.
//! - No order is promised, except to an endpoint that is `ordered`: there an event that fails holds the later ones.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Health};
use crate::broker::topology::{self, Names, Part};
use crate::broker::{Broker, Publisher};
use crate::config::Config;
use crate::shutdown::Shutdown;

pub mod address_filter;
pub mod answer;
pub mod attempts;
pub mod breaker;
pub mod command;
pub mod decision;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod gate;
pub mod hand_over;
pub mod headers;
pub mod held;
pub mod memory;
pub mod pace;
pub mod removed;
pub mod schedule;
pub mod signature;
mod watch;

use attempts::Recorder;
use breaker::Limits;
use delivery::Receiver;
use endpoint::Courier;
use gate::Gate;
use hand_over::HandOver;
use memory::{Gates, Memory};
use schedule::Schedule;
use watch::Watch;

/// How long tries that are under way may take after the order to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// How long after that a hand-over may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The relay as a process of its own.
///
/// # Errors
/// The admin address is taken. What else is away is waited for, what is wrong is disabled.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let shutdown = Shutdown::on_signals().context("cannot listen to signals")?;
    let health = Health::new();
    let _admin = Admin::start(config.admin.listen, health.clone()).await?;
    let plan = topology::plan(&config, Part::Relay);
    let broker = Broker::start_declaring(&config.amqp, "context-injector relay", plan, CancellationToken::new());
    health.follow_broker(&broker, shutdown.token());
    let serving = serve(&config, &broker, &health, shutdown.token());
    let stopping = async {
        shutdown.ordered().await;
        health.stop();
    };
    tokio::join!(serving, stopping);
    broker.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Delivers until `stop`, then finishes what is under way: at most 20 s. `broker` must have declared the relay's
/// part of the topology, and stays open. Says in `health`, as part `relay`, which endpoints get nothing and why.
pub async fn serve(config: &Config, broker: &Broker, health: &Health, stop: CancellationToken) {
    let memory = Memory::new(&config.redis).inspect_err(|error| {
        tracing::warn!(%error, "Redis cannot be used: endpoints are remembered by this process alone");
    });
    let memory = memory.ok();
    let now = Instant::now();
    let gates = config.endpoints.iter().map(|(name, endpoint)| {
        let limits = Limits {
            open_for: config.relay.breaker_open_for,
            open_max: config.relay.breaker_open_max,
            max_in_flight: endpoint.max_in_flight,
        };
        (name.clone(), Arc::new(Gate::new(limits, now)))
    });
    let gates = gates.collect::<Gates>();
    if let Some(memory) = &memory {
        memory.restore(&gates).await;
    }

    let recorder = Recorder::start(memory.clone());
    let (tasks, tries, abandon) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
    let publisher = Publisher::new(broker);
    let plan = Arc::<[_]>::from(topology::plan(config, Part::Relay));
    let mut unusable = BTreeMap::new();
    for endpoint in config.endpoints.values() {
        let Some(gate) = gates.get(&endpoint.name) else { continue };
        match Receiver::new(endpoint) {
            Ok(receiver) => {
                let hand_over = HandOver {
                    publisher: publisher.clone(),
                    names: Names::new(&config.amqp.prefix),
                    endpoint: endpoint.name.clone(),
                    ordered: endpoint.ordered,
                };
                let schedule = Schedule::new(&config.relay.retry_schedule);
                let gate = Arc::clone(gate);
                let plan = Arc::clone(&plan);
                let courier = Courier::new(endpoint, receiver, schedule, gate, hand_over, recorder.clone(), plan);
                tasks.spawn(courier.run(broker.clone(), tries.clone(), abandon.clone(), stop.clone()));
            }
            Err(error) => {
                let endpoint = endpoint.name.clone();
                tracing::error!(endpoint, "disabled by its settings, its events wait in its queue: {error}");
                unusable.insert(endpoint, error.to_string());
            }
        }
    }
    tracing::info!(endpoints = config.endpoints.len() - unusable.len(), "the relay delivers");
    if let Some(memory) = memory.clone() {
        tasks.spawn(memory.follow(gates.clone(), health.clone(), stop.clone()));
    }
    let watch = Watch {
        broker: broker.clone(),
        names: Names::new(&config.amqp.prefix),
        gates,
        unusable,
        memory,
        removed: BTreeMap::new(),
    };
    tasks.spawn(watch.keep(health.clone(), stop.clone()));

    stop.cancelled().await;
    tasks.close();
    tries.close();
    let finished = async {
        tasks.wait().await;
        tries.wait().await;
    };
    if tokio::time::timeout(DRAIN, finished).await.is_err() {
        let (left, seconds) = (tries.len(), DRAIN.as_secs());
        tracing::warn!(left, "tries are still under way after {seconds} s; their events go back to their queues");
        abandon.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, tries.wait()).await;
    }
}
