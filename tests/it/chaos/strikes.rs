//! The faults themselves: four lines that run side by side, each striking when its next fault is due.

use std::cell::RefCell;
use std::time::Duration;

use context_injector::servers::{Broker, Redis};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::{Due, Fault, PAST_LEASE, Plan, Whom};
use super::recovery::Struck;
use super::traffic::now_ms;
use crate::world::{Process, World};

/// What a worker that was asked to end may take: the promise of the drain, and room for a busy machine.
const DRAIN_WITHIN: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_secs(1);
const BROKER_AWAY: Duration = Duration::from_secs(5);
const REDIS_AWAY: Duration = Duration::from_secs(3);
const STORM: Duration = Duration::from_secs(2);

/// What struck, and what was seen of it.
#[derive(Debug, Default)]
pub struct Log {
    /// When each job was sent first.
    pub sent: RefCell<Vec<Option<u64>>>,
    pub struck: RefCell<Vec<Struck>>,
    /// What was wrong meanwhile.
    pub complaints: RefCell<Vec<String>>,
}

impl Log {
    /// Notes a fault that ends now.
    pub(super) fn note(&self, fault: Fault, from: Instant) {
        self.struck.borrow_mut().push(Struck { fault, from, until: Instant::now(), ended: now_ms() });
    }

    /// Notes that something is wrong.
    pub fn complain(&self, what: String) {
        self.complaints.borrow_mut().push(what);
    }
}

/// The faults of the API that are there all the time.
pub fn usual_faults() -> Value {
    json!({
        "applied_then_500": 0.05, "reset_before": 0.05, "reset_after": 0.05, "server_error": 0.01,
        "late_apply": 0.01, "hang_after": 0.002, "spurious_conflict": 0.01, "throttle": 0.001,
        "empty_success": 0.01, "no_version": 0.01, "truncated_body": 0.005,
        "parameters": {"latency_ms": [1, 10], "late_apply_ms": 300, "hang_ms": 0, "retry_after": ["0", "1"]}
    })
}

/// Waits until a fault is due; `None` where the run has ended before.
pub(super) async fn due(due: &Due, outcomes: &mut watch::Receiver<usize>) -> Option<()> {
    outcomes.wait_for(|told| *told >= due.after).await.ok()?;
    hold(due.wait).await;
    Some(())
}

/// The length of a fault, which is not a wait for anything.
pub(super) async fn hold(length: Duration) {
    tokio::time::sleep(length).await;
}

/// Workers: two of them at any time, as long as none is just being replaced.
pub async fn workers(world: &World, plan: &Plan, mut outcomes: watch::Receiver<usize>, log: &Log) -> Vec<Process> {
    // The older one comes first: it is more often the one that is at work.
    let mut workers = vec![world.spawn("worker"), world.spawn("worker")];
    for strike in plan.faults(Whom::Workers) {
        if due(&strike, &mut outcomes).await.is_none() {
            break;
        }
        let at = usize::from(strike.draw % 3 == 0);
        let from = Instant::now();
        match strike.fault {
            Fault::WorkerKilled => {
                let worker = workers.remove(at);
                worker.kill9().await;
                log.note(strike.fault, from);
                workers.push(world.spawn("worker"));
            }
            Fault::WorkerTerminated => {
                let worker = workers.remove(at);
                worker.terminate();
                workers.push(world.spawn("worker"));
                end(&worker, log).await;
                log.note(strike.fault, from);
            }
            _ => {
                workers[at].suspend();
                hold(if strike.fault == Fault::WorkerPaused { PAUSE } else { PAST_LEASE }).await;
                workers[at].resume();
                log.note(strike.fault, from);
            }
        }
    }
    workers
}

/// Waits until a worker that was asked to end has ended, and complains where that was not well.
pub async fn end(worker: &Process, log: &Log) {
    let how = match tokio::time::timeout(DRAIN_WITHIN, worker.wait_exit()).await {
        Ok(0) => return,
        Ok(status) => format!("status {status}"),
        Err(_) => {
            worker.kill9().await;
            format!("not within {DRAIN_WITHIN:?}")
        }
    };
    log.complain(format!("a worker that was asked to end: {how}; its last words: {}", last_words(worker)));
}

fn last_words(worker: &Process) -> String {
    worker.log().lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}

/// The broker.
pub async fn broker(broker: &mut Broker, plan: &Plan, mut outcomes: watch::Receiver<usize>, log: &Log) {
    for strike in plan.faults(Whom::Broker) {
        if due(&strike, &mut outcomes).await.is_none() {
            return;
        }
        let from = Instant::now();
        broker.kill9().await.unwrap();
        if strike.fault == Fault::BrokerAway {
            hold(BROKER_AWAY).await;
        }
        broker.start_again().await.unwrap();
        log.note(strike.fault, from);
    }
}

/// Redis.
pub async fn redis(redis: &mut Redis, plan: &Plan, mut outcomes: watch::Receiver<usize>, log: &Log) {
    for strike in plan.faults(Whom::Redis) {
        if due(&strike, &mut outcomes).await.is_none() {
            return;
        }
        let from = Instant::now();
        if strike.fault != Fault::RedisWiped {
            redis.kill9().await.unwrap();
            if strike.fault == Fault::RedisAway {
                hold(REDIS_AWAY).await;
            }
            redis.start_again().await.unwrap();
        }
        if strike.fault != Fault::RedisKilled {
            redis.wipe().await.unwrap();
        }
        log.note(strike.fault, from);
    }
}

/// The API, beside what it does all the time.
pub async fn api(world: &World, plan: &Plan, mut outcomes: watch::Receiver<usize>, log: &Log) {
    world.faults(usual_faults()).await;
    for strike in plan.faults(Whom::Api) {
        if due(&strike, &mut outcomes).await.is_none() {
            return;
        }
        let from = Instant::now();
        let mut faults = usual_faults();
        match strike.fault {
            Fault::TokenRevoked => world.sandbox.revoke_tokens(),
            Fault::Throttled => {
                faults["throttle"] = json!(1.0);
                world.faults(faults).await;
                hold(STORM).await;
                world.faults(usual_faults()).await;
            }
            _ => {
                faults["parameters"]["latency_ms"] = json!([400, 600]);
                world.faults(faults).await;
                hold(STORM).await;
                world.faults(usual_faults()).await;
            }
        }
        log.note(strike.fault, from);
    }
}
