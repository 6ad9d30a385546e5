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
//! - No order is promised.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::topology::{self, Names, Part};
use crate::broker::{Broker, Publisher};
use crate::config::{Config, Endpoint};
use crate::metrics as names;

pub mod address_filter;
pub mod answer;
pub mod attempts;
pub mod breaker;
pub mod decision;
pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod gate;
pub mod hand_over;
pub mod headers;
pub mod memory;
pub mod pace;
pub mod schedule;
pub mod signature;

use attempts::Recorder;
use breaker::{Limits, State};
use delivery::Receiver;
use endpoint::Courier;
use gate::Gate;
use hand_over::HandOver;
use memory::{Gates, Memory};
use schedule::Schedule;

/// How long tries that are under way may take after the order to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// How long after that a hand-over may take.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often the queues' lengths are read.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The relay as a process of its own.
///
/// # Errors
/// None at the moment: what is away is waited for, what is wrong is disabled.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let plan = topology::plan(&config, Part::Relay);
    let broker = Broker::start_declaring(&config.amqp, "context-injector relay", plan, CancellationToken::new());
    stop_on_signals(stop.clone());
    serve(&config, &broker, stop).await;
    broker.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Delivers until `stop`, then finishes what is under way: at most 20 s. `broker` must have declared the relay's
/// part of the topology, and stays open.
pub async fn serve(config: &Config, broker: &Broker, stop: CancellationToken) {
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
    let mut unusable = Vec::new();
    for endpoint in config.endpoints.values() {
        let Some(gate) = gates.get(&endpoint.name) else { continue };
        match Receiver::new(endpoint) {
            Ok(receiver) => {
                let hand_over = HandOver {
                    publisher: publisher.clone(),
                    names: Names::new(&config.amqp.prefix),
                    endpoint: endpoint.name.clone(),
                };
                let schedule = Schedule::new(&config.relay.retry_schedule);
                let gate = Arc::clone(gate);
                let courier = Courier::new(endpoint, receiver, schedule, gate, hand_over, recorder.clone());
                tasks.spawn(courier.run(broker.clone(), tries.clone(), abandon.clone(), stop.clone()));
            }
            Err(error) => {
                let endpoint = &endpoint.name;
                tracing::error!(endpoint, "disabled by its settings, its events wait in its queue: {error}");
                unusable.push(endpoint.clone());
            }
        }
    }
    tracing::info!(endpoints = config.endpoints.len() - unusable.len(), "the relay delivers");
    if let Some(memory) = memory {
        tasks.spawn(memory.follow(gates.clone(), stop.clone()));
    }
    let watched = config.endpoints.values().cloned().collect();
    tasks.spawn(measure(broker.clone(), Names::new(&config.amqp.prefix), watched, gates, unusable, stop.clone()));

    stop.cancelled().await;
    tasks.close();
    tries.close();
    let finished = async {
        tasks.wait().await;
        tries.wait().await;
    };
    if tokio::time::timeout(DRAIN, finished).await.is_err() {
        let left = tries.len();
        tracing::warn!(
            left,
            "tries are still under way after {} s; their events go back to their queues",
            DRAIN.as_secs()
        );
        abandon.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, tries.wait()).await;
    }
}

/// Keeps the gauges.
async fn measure(
    broker: Broker,
    names: Names,
    endpoints: Vec<Endpoint>,
    gates: Gates,
    unusable: Vec<String>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        for endpoint in &endpoints {
            let Some(gate) = gates.get(&endpoint.name) else { continue };
            let label = || endpoint.name.clone();
            let disabled = unusable.contains(&endpoint.name) || gate.disabled().is_some();
            let (state, in_flight) = gate.breaker();
            let breaker = match state {
                State::Closed => 0.0,
                State::Open => 1.0,
                State::Probing | State::Ramp(_) => 2.0,
            };
            metrics::gauge!(names::WEBHOOK_DISABLED, "endpoint" => label()).set(f64::from(u8::from(disabled)));
            metrics::gauge!(names::WEBHOOK_BREAKER, "endpoint" => label()).set(breaker);
            metrics::gauge!(names::WEBHOOKS_IN_FLIGHT, "endpoint" => label()).set(f64::from(in_flight));
            let queue = names.webhooks_of(&endpoint.name);
            let looking = async { topology::depth(&*broker.connection().await, &queue).await };
            if let Some(Ok(Some(depth))) = stop.run_until_cancelled(looking).await {
                let parked = if disabled || state != State::Closed { depth.ready } else { 0 };
                metrics::gauge!(names::WEBHOOKS_WAITING, "endpoint" => label()).set(f64::from(depth.ready));
                metrics::gauge!(names::WEBHOOKS_PARKED, "endpoint" => label()).set(f64::from(parked));
            }
        }
    }
}

fn stop_on_signals(stop: CancellationToken) {
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
        tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.cancel();
    });
}
