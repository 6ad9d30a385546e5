//! Everything fails at once, and a checker that knows nothing of the worker's insides judges what came of it.
//!
//! A private RabbitMQ and Redis, the sandbox, two workers as processes, one bot with `ledger = "auto"` and one with
//! `"always"`. [`load`] and [`plan`] are drawn from a seed; [`strikes`] kills, stops and wipes; [`foreign`] writes
//! into the same conversations meanwhile. Then everything is let come to rest, and [`checker`] gets the API's
//! history, the outcomes and the dead letters.
//!
//! `make chaos` is the full run, minutes long; a short one is among the tests. The seed is printed, and
//! `make chaos CHAOS_SEED=…` draws the same jobs and the same faults again. (What a kill meets in the middle is the
//! scheduler's choice; so a violation is told with its evidence, which stays under `target/tmp/chaos`.) [`net`] has
//! the same load and the same checker where networks are cut instead: `make chaos-net`.

mod checker;
mod foreign;
mod load;
mod net;
mod plan;
mod recovery;
mod report;
mod strikes;
mod traffic;

use std::time::Duration;

use context_injector::sandbox;
use context_injector::servers::{Broker, Redis};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::world::{Process, Servers, Setup, World};
use checker::{Evidence, Write};
use load::Load;
use plan::Plan;
use report::Report;
use strikes::Log;
use traffic::{Address, Subscriber};

/// Without a new outcome for so long, nothing more is waited for: the checker tells what is missing.
const STALLED: Duration = Duration::from_secs(90);
/// A stream has told everything when nothing came for so long.
const STREAM_ENDS: Duration = Duration::from_secs(3);
/// Percent of a full run that is among the tests.
const SHORT: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_fails_at_once_and_nothing_is_lost_or_doubled() {
    run("short", Plan::of_processes(seed().unwrap_or(1), SHORT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes long: make chaos"]
async fn everything_fails_for_minutes() {
    run("full", Plan::of_processes(seed().unwrap_or_else(rand::random), scale())).await;
}

fn seed() -> Option<u64> {
    let seed = std::env::var("CHAOS_SEED").ok().filter(|seed| !seed.is_empty())?;
    Some(seed.parse().expect("CHAOS_SEED: a number"))
}

fn scale() -> usize {
    std::env::var("CHAOS_SCALE").map_or(100, |scale| scale.parse().expect("CHAOS_SCALE: percent"))
}

async fn run(name: &str, plan: Plan) {
    let mut world = World::bare(Some(Servers::private().await), |setup| settings(setup, &plan)).await;
    let amqp_urls = vec![world.amqp_url.clone()];
    let mut servers = world.take_servers();
    let run = Run::prepare(plan, world, amqp_urls).await;
    let workers = strike(&run, &mut servers).await;
    run.finish(name, workers).await;
}

/// Everything at once, until the whole load is published and the last fault has struck. The workers are left.
async fn strike(run: &Run, (broker, redis): &mut (Broker, Redis)) -> Vec<Process> {
    let (world, plan, log) = (&run.world, &run.plan, &run.log);
    let faults = async {
        tokio::join!(
            strikes::workers(world, plan, run.told(), log),
            strikes::broker(broker, plan, run.told(), log),
            strikes::redis(redis, plan, run.told(), log),
            strikes::api(world, plan, run.told(), log),
        )
        .0
    };
    if let Some(workers) = run.under_load(faults).await {
        return workers;
    }
    // Whatever was under way was cut off in the middle.
    broker.start_again().await.unwrap();
    redis.start_again().await.unwrap();
    vec![world.spawn("worker")]
}

/// A run that has everything that it needs; what strikes, and whom, is others' business.
struct Run {
    plan: Plan,
    load: Load,
    world: World,
    address: Address,
    subscriber: Subscriber,
    log: Log,
    started: Instant,
}

impl Run {
    /// Declares the topology, fills the conversations and subscribes.
    async fn prepare(plan: Plan, mut world: World, amqp_urls: Vec<String>) -> Run {
        println!("CHAOS_SEED={} CHAOS_SCALE={}", plan.seed, plan.scale);
        let load = Load::draw(plan.seed, plan.jobs);
        let url = world.sandbox.url();
        world.change_settings(|setup| {
            setup.set("bots.always.base_url", url.as_str());
        });
        world.apply_topology().await;
        for conversation in load.conversations() {
            world.sandbox.seed(&conversation, [(sandbox::Scope::Conversation, "word", Value::from("text"))]);
        }
        let address = Address { amqp_urls, prefix: world.prefix.clone() };
        let subscriber = Subscriber::open(address.clone()).await;
        Run { plan, load, world, address, subscriber, log: Log::default(), started: Instant::now() }
    }

    /// How many jobs have an outcome.
    fn told(&self) -> watch::Receiver<usize> {
        self.subscriber.outcomes.clone()
    }

    /// Publishes the whole load while faults strike and somebody else writes; `None` where nothing moved any more.
    async fn under_load<T>(&self, faults: impl Future<Output = T>) -> Option<T> {
        let (api, conversations) = (self.world.sandbox.url(), self.load.conversations());
        let all =
            async { tokio::join!(faults, traffic::produce(&self.address, &self.load, self.told(), &self.log.sent)) };
        tokio::select! {
            (faults, ()) = all => return Some(faults),
            () = foreign::write(&api, &conversations, self.plan.seed) => {}
            () = stalled(&self.subscriber) => {
                self.log.complain(format!("no outcome for {STALLED:?} while faults struck"));
            }
        }
        None
    }

    /// Lets everything come to rest, judges it, keeps the evidence under the name, and fails where anything is wrong.
    async fn finish(self, name: &str, workers: Vec<Process>) {
        let Run { plan, load, world, address, subscriber, log, started } = self;
        come_to_rest(&world, &load, &subscriber, workers, &log).await;
        let took = started.elapsed();

        let evidence = gather(&world, &load, &subscriber, &log).await;
        let complaints = complaints(&world, &address, &evidence, &log).await;
        let judgement = checker::judge(&evidence);
        let struck = log.struck.borrow();
        let new = subscriber.seen.lock().unwrap().new.clone();
        let report = Report {
            plan: &plan,
            messages: load.stream.len(),
            evidence: &evidence,
            judgement: &judgement,
            struck: &struck,
            recovery: &recovery::times(&struck, &new),
            silences: &recovery::silences(&struck, &new),
            complaints: &complaints,
            took,
        };
        let directory = report::directory(name);
        report.keep(&directory);
        world.keep_logs(&directory);
        println!("{}", report.text());
        let good = report.is_good();
        // Before the test fails: a world that goes in a panic prints the end of each of its logs.
        drop((subscriber, world));
        assert!(good, "the run was not as promised; everything is in {}", directory.display());
    }
}

/// No more faults: what is left is worked off, then the workers are asked to end.
async fn come_to_rest(world: &World, load: &Load, subscriber: &Subscriber, workers: Vec<Process>, log: &Log) {
    world.faults(serde_json::json!({})).await;
    let mut outcomes = subscriber.outcomes.clone();
    tokio::select! {
        _ = outcomes.wait_for(|told| *told >= load.jobs.len()) => {}
        () = stalled(subscriber) => log.complain(format!("no outcome for {STALLED:?} after the faults")),
    }
    for worker in &workers {
        worker.terminate();
        strikes::end(worker, log).await;
    }
}

/// What is wrong beside what the checker judges.
async fn complaints(world: &World, address: &Address, evidence: &Evidence, log: &Log) -> Vec<String> {
    let mut complaints = log.complaints.take();
    let audited = traffic::audited(address, STREAM_ENDS).await;
    let unaudited = evidence.told.iter().filter(|told| !audited.contains(&told.event)).count();
    if unaudited > 0 {
        complaints.push(format!("{unaudited} events are not in the audit stream"));
    }
    for queue in ["jobs.quarantine", "jobs.unroutable"] {
        let count = world.ready_messages(queue).await;
        if count > 0 {
            complaints.push(format!("{count} messages in {queue}"));
        }
    }
    if let Err(gap) = world.sandbox.check_history() {
        complaints.push(format!("the API's history does not hold together: {gap}"));
    }
    complaints
}

fn settings(setup: &mut Setup, plan: &Plan) {
    setup.sandbox.seed = plan.seed;
    // Each entry holds the whole list of its conversation.
    setup.sandbox.history_bytes = 4 << 30;
    setup.sandbox.history_entries = 10_000_000;
    let url = setup.get("amqp.url");
    setup
        .set("amqp.url", format!("{url}?heartbeat=3"))
        .set("log.level", std::env::var("CHAOS_LOG").unwrap_or_else(|_| "info".to_owned()))
        .set("retry.schedule", vec!["300ms", "1s", "3s"])
        .set("retry.deadline", "6h");
    for bot in load::BOTS {
        let mut set = |name: &str, value: toml::Value| {
            setup.set(&format!("bots.{bot}.{name}"), value);
        };
        set("allow_http", true.into());
        set("client_id", "sandbox".into());
        set("client_secret", "sandbox-secret".into());
        set("requests_per_second", 100_000.into());
        set("burst", 10_000.into());
        set("request_timeout", "2s".into());
        // A sixth of all requests fails: the breakers are open more often than not, and must let go quickly.
        set("breaker_open_for", "200ms".into());
        set("breaker_open_max", "1s".into());
    }
    setup.set("bots.always.ledger", "always");
}

/// Returns when there was no new outcome for long.
async fn stalled(subscriber: &Subscriber) {
    let mut outcomes = subscriber.outcomes.clone();
    while tokio::time::timeout(STALLED, outcomes.changed()).await.is_ok() {}
}

async fn gather(world: &World, load: &Load, subscriber: &Subscriber, log: &Log) -> Evidence {
    let letters = world.dead_letters().await;
    let letter = |body: &[u8]| {
        let body: Value = serde_json::from_slice(body).unwrap();
        body["job_id"].as_str().unwrap_or_default().to_owned()
    };
    Evidence {
        jobs: load.jobs.clone(),
        told: subscriber.seen.lock().unwrap().told.clone(),
        letters: letters.iter().map(|found| (letter(&found.body), found.header("x-reason").to_owned())).collect(),
        history: world.sandbox.history().iter().filter_map(write).collect(),
        sent_twice: load.sent_twice(),
        sent_at: log.sent.borrow().iter().map(|at| at.unwrap_or_default()).collect(),
        wiped: log.struck.borrow().iter().filter(|struck| struck.wipes()).map(|struck| struck.ended).collect(),
        cut_off: log.struck.borrow().iter().filter(|struck| struck.cuts_off()).map(|struck| struck.ended).collect(),
    }
}

/// An entry of the sandbox's history as the checker takes it; what is reserved for the record is nobody's business.
fn write(entry: &sandbox::Entry) -> Option<Write> {
    if entry.event != sandbox::Event::Write || entry.writer != sandbox::Writer::Client {
        return None;
    }
    let value = |value: &Option<std::sync::Arc<Value>>| value.as_deref().cloned().unwrap_or(Value::Null);
    let changes = entry.changes.iter().filter(|change| !change.key.starts_with('_'));
    Some(Write {
        seq: entry.seq,
        at: entry.at_ms,
        conversation: entry.conversation.as_deref()?.to_owned(),
        foreign: entry.traceparent.as_deref().is_some_and(|trace| trace.starts_with(foreign::TRACE)),
        conditional: entry.if_match.is_some(),
        changes: changes.map(|change| (change.key.to_string(), value(&change.old), value(&change.new))).collect(),
    })
}
