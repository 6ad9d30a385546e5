//! The task of one endpoint: takes events from its queue as far as the gate, the rate limit and the in-flight cap
//! allow, and makes the tries.
//!
//! Isolation: a subscription, a channel and a client per endpoint, so a receiver that hangs holds its own
//! in-flight cap and nothing else. While the gate is shut there is no subscription: the events wait in the broker.
//! Order is promised only to an endpoint whose settings say `ordered`: one event at a time from the head of the
//! queue, and one that failed goes back there and keeps the gate shut until its next try is due.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempts::{Record, Recorder};
use super::breaker::{Admission, Pass, State};
use super::decision::{Fate, Policy, Reason, Try, decide, explain_ending};
use super::delivery::{Ending, Receiver, Tried};
use super::event::Event;
use super::gate::{Disabled, Gate, Opening};
use super::hand_over::{Death, HandOver};
use super::pace::Pace;
use super::schedule::Schedule;
use crate::broker::topology::{self, Declaration, matches};
use crate::broker::{Broker, Incoming, Options, Subscription, subscribe};
use crate::config::Endpoint;
use crate::metrics as names;

/// Between two tries to subscribe.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);
/// For what the broker had sent before a subscription was cancelled.
const CANCEL_WAIT: Duration = Duration::from_secs(5);
/// With a rate limit, no more is taken than is sent within this time.
const HOLD_SECONDS: u32 = 30;

/// Delivers to one endpoint. Clones share everything.
#[derive(Debug, Clone)]
pub struct Courier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    receiver: Receiver,
    schedule: Schedule,
    gate: Arc<Gate>,
    pace: Mutex<Pace>,
    slots: Arc<Semaphore>,
    hand_over: HandOver,
    recorder: Recorder,
    plan: Arc<[Declaration]>,
}

impl Courier {
    /// A courier that has not begun. `plan` declares what it needs of the broker.
    #[must_use]
    pub fn new(
        endpoint: &Endpoint,
        receiver: Receiver,
        schedule: Schedule,
        gate: Arc<Gate>,
        hand_over: HandOver,
        recorder: Recorder,
        plan: Arc<[Declaration]>,
    ) -> Self {
        let pace = Mutex::new(Pace::new(endpoint.requests_per_second));
        let slots = Arc::new(Semaphore::new(usize::from(endpoint.max_in_flight)));
        let endpoint = endpoint.clone();
        Self(Arc::new(Shared { endpoint, receiver, schedule, gate, pace, slots, hand_over, recorder, plan }))
    }

    /// Takes events until `stop`; tries that are under way then are left to `tries`, until `abandon`.
    pub async fn run(self, broker: Broker, tries: TaskTracker, abandon: CancellationToken, stop: CancellationToken) {
        let tries = Tries { tracker: tries, abandon };
        let mut told = false;
        while !stop.is_cancelled() {
            let prefetch = match self.0.gate.opening(Instant::now()) {
                Opening::Full => self.prefetch(),
                Opening::Probe => 1,
                Opening::Disabled => {
                    stop.run_until_cancelled(self.0.gate.changed()).await;
                    continue;
                }
                Opening::Wait(until) => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.0.gate.changed() => {}
                        () = tokio::time::sleep_until(until.into()) => {}
                    }
                    continue;
                }
            };
            let queue = self.0.hand_over.names.webhooks_of(&self.0.endpoint.name);
            let options = Options { prefetch, tag: format!("relay-{}", self.0.endpoint.name), ..Options::default() };
            match stop.run_until_cancelled(subscribe(&broker, &queue, options)).await {
                None => {}
                Some(Ok(subscription)) => {
                    told = false;
                    self.consume(subscription, prefetch, &tries, &stop).await;
                }
                Some(Err(error)) => {
                    if !told {
                        tracing::warn!(endpoint = self.0.endpoint.name, %error, "cannot subscribe, trying again");
                    }
                    told = true;
                    stop.run_until_cancelled(self.declare_again(&broker)).await;
                }
            }
        }
    }

    /// The queue may have been deleted by mistake; it is declared on new connections only.
    async fn declare_again(&self, broker: &Broker) {
        tokio::time::sleep(SUBSCRIBE_AGAIN).await;
        // What is wrong shows in the next try to subscribe.
        let _ = topology::declare(&*broker.connection().await, &self.0.plan).await;
    }

    fn prefetch(&self) -> u16 {
        let per_second = self.0.endpoint.requests_per_second;
        let held = if per_second == 0 { u32::from(u16::MAX) } else { per_second.saturating_mul(HOLD_SECONDS) };
        self.0.endpoint.max_in_flight.min(u16::try_from(held).unwrap_or(u16::MAX))
    }

    /// Takes events from one subscription until the gate wants another kind of it, the channel ends or `stop`.
    async fn consume(&self, mut subscription: Subscription, prefetch: u16, tries: &Tries, stop: &CancellationToken) {
        let mut held = VecDeque::new();
        loop {
            let wait_until = self.begin_what_may(&mut held, tries);
            let fits = match self.0.gate.opening(Instant::now()) {
                Opening::Full => prefetch == self.prefetch(),
                Opening::Probe => prefetch == 1,
                Opening::Wait(_) | Opening::Disabled => false,
            };
            if !fits {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.gate.changed() => {}
                () = sleep_until(wait_until) => {}
                incoming = subscription.next() => match incoming {
                    Some(incoming) => held.push_back(incoming),
                    None => break,
                },
            }
        }
        subscription.cancel().await;
        let the_rest = async {
            while let Some(incoming) = subscription.next().await {
                held.push_back(incoming);
            }
        };
        let _ = tokio::time::timeout(CANCEL_WAIT, the_rest).await;
        // From the back: each goes to the head of the queue.
        while let Some(incoming) = held.pop_back() {
            self.0.hand_over.park(incoming).await;
        }
    }

    /// Begins tries with held events. Returns when the rate limit or the breaker allows the next, if one of them
    /// is what it waits for.
    fn begin_what_may(&self, held: &mut VecDeque<Incoming>, tries: &Tries) -> Option<Instant> {
        while !held.is_empty() {
            let now = Instant::now();
            if let Some(until) = self.pace().wait_until(now) {
                return Some(until);
            }
            let Ok(slot) = Arc::clone(&self.0.slots).try_acquire_owned() else { return None };
            let pass = match self.0.gate.admit(now) {
                Admission::Go(pass) => pass,
                Admission::Full => return None,
                Admission::Wait(until) => return Some(until),
            };
            let Some(incoming) = held.pop_front() else {
                self.0.gate.withdraw(pass, now);
                return None;
            };
            self.pace().count(now);
            tries.spawn(Box::pin(self.clone().handle(incoming, pass, slot)));
        }
        None
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.0.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(self, incoming: Incoming, pass: Pass, slot: OwnedSemaphorePermit) {
        let pass = PassGuard { gate: Arc::clone(&self.0.gate), pass: Some(pass) };
        self.attempt(incoming, pass).await;
        drop(slot);
        self.0.gate.wake();
    }

    async fn attempt(&self, incoming: Incoming, pass: PassGuard) {
        let shared = &self.0;
        if !self.is_subscribed(&incoming) {
            shared.hand_over.delivered(incoming.receipt).await;
            return;
        }
        let earlier = incoming.message.attempt();
        let event = match Event::read(incoming.message.body.clone()) {
            Ok(event) => event.or_trace(incoming.message.traceparent(), incoming.message.tracestate()),
            Err(error) => {
                let text = error.to_string();
                let death = Death { reason: Reason::NotAnEvent, text, tries: earlier, status: None, trace_id: None };
                drop(pass);
                return self.give_up(incoming, &death).await;
            }
        };
        let earlier = earlier.max(shared.gate.tries_of(&event.id));
        let (number, probe) = (earlier.saturating_add(1), pass.is_probe());
        let mut tried = shared.receiver.send(&event).await;
        let decided = Try { ending: &tried.ending, number, probe };
        let (health, fate) = decide(decided, shared.policy(), rand::random());
        // Before the pass goes back, which lets the endpoint's task look for the next event.
        match fate {
            Fate::Disable => self.disable(&tried.ending),
            Fate::Held(wait) => shared.gate.hold(&event.id, number, wait, Instant::now()),
            Fate::Delivered | Fate::Dead(_) => shared.gate.release(),
            Fate::Later(_) | Fate::Parked => {}
        }
        let (before, after) = pass.record(health);
        self.tell(&event, &tried, &fate, (before, after));
        if !shared.endpoint.record_answers {
            tried.excerpt = bytes::Bytes::new();
        }
        shared.recorder.note(Record::of(&shared.endpoint.name, &event.id, number, probe, &tried, &fate));
        match fate {
            Fate::Delivered => shared.hand_over.delivered(incoming.receipt).await,
            Fate::Later(wait) => shared.hand_over.later(incoming, number, wait).await,
            Fate::Held(_) | Fate::Parked | Fate::Disable => shared.hand_over.park(incoming).await,
            Fate::Dead(reason) => {
                let status = status_of(&tried.ending);
                let trace_id = event.trace_id().map(str::to_owned);
                let death = Death { reason, text: explain_ending(&tried.ending), tries: number, status, trace_id };
                self.give_up(incoming, &death).await;
            }
        }
        if let Some(rest) = tried.rest {
            rest.drain().await;
        }
    }

    /// AMQP cannot list bindings, so a filter that was taken out of the settings is still bound.
    fn is_subscribed(&self, incoming: &Incoming) -> bool {
        let from_outcomes = incoming.exchange == self.0.hand_over.names.outcomes();
        !from_outcomes || self.0.endpoint.events.iter().any(|pattern| matches(pattern, &incoming.routing_key))
    }

    async fn give_up(&self, incoming: Incoming, death: &Death) {
        let endpoint = self.0.endpoint.name.clone();
        metrics::counter!(names::WEBHOOKS_GIVEN_UP, "endpoint" => endpoint, "reason" => death.reason.code())
            .increment(1);
        self.0.hand_over.dead(incoming, death).await;
    }

    fn disable(&self, ending: &Ending) {
        let reason = explain_ending(ending);
        let news = self.0.gate.disable(Disabled { since: Timestamp::now(), reason: reason.clone() });
        if news {
            let endpoint = &self.0.endpoint.name;
            tracing::warn!(
                endpoint,
                "disabled: {reason}. Its events wait in its queue; `context-injector endpoints enable {endpoint}` \
                 ends this"
            );
        }
    }

    /// Metrics and log of one try.
    fn tell(&self, event: &Event, tried: &Tried, fate: &Fate, (before, after): (State, State)) {
        let endpoint = &self.0.endpoint.name;
        let result = match (&tried.ending, fate) {
            (_, Fate::Delivered) => "delivered",
            (Ending::Answered { .. }, _) => "refused",
            (Ending::Failed(failure), _) => failure.code(),
        };
        metrics::counter!(names::WEBHOOK_TRIES, "endpoint" => endpoint.clone(), "result" => result).increment(1);
        metrics::histogram!(names::WEBHOOK_TRY_SECONDS, "endpoint" => endpoint.clone()).record(tried.took);
        if *fate == Fate::Delivered {
            if let Some(lag) = event.time.and_then(|time| Duration::try_from(Timestamp::now() - time).ok()) {
                metrics::histogram!(names::WEBHOOK_LAG_SECONDS, "endpoint" => endpoint.clone()).record(lag);
            }
        } else {
            let reason = explain_ending(&tried.ending);
            tracing::debug!(endpoint, event = event.id, ?fate, "a try failed: {reason}");
        }
        if before != State::Open && after == State::Open {
            let reason = explain_ending(&tried.ending);
            tracing::warn!(endpoint, "the receiver is left alone for a while, its events wait: {reason}");
        }
        if before != State::Closed && after == State::Closed {
            tracing::info!(endpoint, "the receiver is well again");
        }
    }
}

impl Shared {
    fn policy(&self) -> Policy<'_> {
        let Endpoint { retry_client_errors, ordered, .. } = self.endpoint;
        Policy { schedule: &self.schedule, retry_client_errors, ordered }
    }
}

/// Where tries run.
struct Tries {
    tracker: TaskTracker,
    abandon: CancellationToken,
}

impl Tries {
    /// A try that is abandoned drops its receipt, and so gives its event back. Boxed: a future that is handed over by
    /// value is copied at each step.
    fn spawn(&self, attempt: Pin<Box<impl Future<Output = ()> + Send + 'static>>) {
        let abandon = self.abandon.clone();
        self.tracker.spawn(async move {
            let _ended = abandon.run_until_cancelled(attempt).await;
        });
    }
}

/// A pass that goes back when its try does not end: a stop, or a panic.
struct PassGuard {
    gate: Arc<Gate>,
    pass: Option<Pass>,
}

impl PassGuard {
    fn is_probe(&self) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe)
    }

    fn record(mut self, health: super::breaker::Health) -> (State, State) {
        match self.pass.take() {
            Some(pass) => self.gate.record(pass, health, Instant::now()),
            None => (State::Closed, State::Closed),
        }
    }
}

impl Drop for PassGuard {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.gate.withdraw(pass, Instant::now());
        }
    }
}

fn status_of(ending: &Ending) -> Option<u16> {
    match ending {
        Ending::Answered { status, .. } => Some(*status),
        Ending::Failed(_) => None,
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
