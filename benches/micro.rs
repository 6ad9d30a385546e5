//! What the pure parts cost, one by one: `cargo bench --bench micro`. Where time is too noisy, `make bench-instructions`
//! counts instructions instead.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Duration;

use context_injector::audit::Chain;
use context_injector::config::{Bot, Config};
use context_injector::job::{Job, Name, Scope, Version};
use context_injector::pipeline::endings::Task;
use context_injector::pipeline::evicted::Evicted;
use context_injector::pipeline::ledger::Ledger;
use context_injector::pipeline::merge;
use context_injector::pipeline::plan::{self, Ground, Plan};
use context_injector::pipeline::snapshot::{Snapshot, Variables};
use context_injector::pipeline::validate::{Source, validate};
use context_injector::relay::signature::{Signer, shared_secret};
use divan::Bencher;
use jiff::Timestamp;
use serde_json::json;

fn main() {
    divan::main();
}

const SETS: &str = r#"{"job_id":"b-1","conversation_id":"conv_8a7b9c2d1e3f","variables":{"customer_tier":{"value":"premium","scope":"user"},"last_page":{"value":"/checkout/1"}}}"#;
const INCREMENT: &str = r#"{"job_id":"b-1","conversation_id":"conv_8a7b9c2d1e3f","variables":{"cart_total":{"op":"increment","by":"149.99","scope":"session"},"last_page":{"value":"/checkout/1"}}}"#;

static BOT: LazyLock<Bot> = LazyLock::new(|| {
    let settings =
        "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n";
    Config::parse(settings, []).unwrap().bots.remove("default").unwrap()
});

fn parse(body: &str) -> Job {
    let now = Timestamp::now();
    let source = Source {
        body: body.as_bytes(),
        message_id: None,
        content_encoding: None,
        published: None,
        first_seen: now,
        now,
    };
    validate(&BOT, Duration::from_secs(900), &source).unwrap()
}

fn tasks(body: &str, count: usize) -> Vec<Task> {
    let body = |number| body.replace("b-1", &format!("b-{number}"));
    (0..count).map(|number| Task::new(parse(&body(number)), "default", String::new())).collect()
}

/// A conversation at version 1 with a ledger of that many entries.
fn snapshot(entries: usize) -> Snapshot {
    let (version, now) = (Version::new("1".to_owned()), Timestamp::now());
    let mut ledger = Ledger::default();
    for task in tasks(INCREMENT, entries) {
        ledger.add_applied(task.mark, &version, now);
    }
    let mut variables = Variables::new();
    if entries > 0 {
        let name = Name::new(Scope::Conversation, &*BOT.ledger_key);
        variables.insert(name, ledger.to_value().0);
    }
    Snapshot::read(Some(version), variables, &BOT.ledger_key, None, now)
}

fn plan(tasks: &[Task], snapshot: &Snapshot) -> Plan {
    let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
    let evicted = Evicted::beginning(None);
    let ground = Ground { bot: &BOT, snapshot, base: None, backfill: &[], evicted: &evicted, now: Timestamp::now() };
    plan::plan(ground, &candidates, plan::MAX_BATCH, None)
}

#[divan::bench(args = [SETS, INCREMENT])]
fn parse_job(body: &str) -> Job {
    parse(black_box(body))
}

#[divan::bench(args = [1, 64])]
fn plan_sets(bencher: Bencher<'_, '_>, jobs: usize) {
    let (tasks, snapshot) = (tasks(SETS, jobs), Snapshot::of_version(Some(Version::new("1".to_owned()))));
    bencher.bench_local(|| plan(black_box(&tasks), &snapshot));
}

#[divan::bench(args = [0, 100])]
fn plan_an_increment_by_ledger_entries(bencher: Bencher<'_, '_>, entries: usize) {
    let (tasks, snapshot) = (tasks(&INCREMENT.replace("b-1", "new"), 1), snapshot(entries));
    bencher.bench_local(|| plan(black_box(&tasks), &snapshot));
}

#[divan::bench]
fn merge_patch(bencher: Bencher<'_, '_>) {
    let patch = json!({"address": {"city": "Bonn", "zip": null}, "tags": ["a", "b"]});
    bencher.with_inputs(|| json!({"address": {"street": "Am Hof", "zip": "53113"}, "name": "Ada"})).bench_local_values(
        |mut value| {
            merge::merge_patch(&mut value, black_box(&patch));
            value
        },
    );
}

#[divan::bench]
fn seal_an_event(bencher: Bencher<'_, '_>) {
    let mut chain = Chain::new("writer".to_owned());
    let event = json!({"id": "a", "data": {"job_id": "b-1", "keys": {"tier": {"result": "written", "bytes": 9}}}});
    bencher
        .with_inputs(|| event.as_object().unwrap().clone())
        .bench_local_values(|event| chain.seal(|link| link.of(event)));
}

#[divan::bench]
fn sign_a_webhook(bencher: Bencher<'_, '_>) {
    let signer = Signer::new(&shared_secret(&[7; 32]), None).unwrap();
    let body = [b'x'; 1_000];
    bencher.bench_local(|| signer.sign("id", 1_700_000_000, black_box(&body)));
}
