//! Proofs over the pipeline as a whole: what is written about operations is held against the code row by row, and
//! what must be true of every batch is tried on random ones.
//!
//! The vocabulary is here: a bot, jobs from JSON, a plan on a snapshot, the conversation after it.

mod folding;
mod operations;
mod platform;

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::evicted::Evicted;
use super::ledger::Mark;
use super::plan::{Candidate, Ground, MAX_BATCH, Plan, plan};
use super::snapshot::{Contents, Snapshot, Variables};
use super::validate::{Source, validate};
use super::verdict::Rejection;
use crate::config::{Bot, Config};
use crate::job::{Job, Name, Scope, Version};

const LEDGER: &str = "_injection_ledger";

/// Read once: property tests ask for it thousands of times.
static BOT: LazyLock<Bot> = LazyLock::new(|| {
    let settings = "[bots.default]\nbase_url = \"https://b.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"";
    Config::parse(settings, []).unwrap().bots.remove("default").unwrap()
});

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

/// A job with these fields beside its id and its conversation.
fn job(id: &str, more: &Value) -> Result<Job, Rejection> {
    let mut body = json!({"job_id": id, "conversation_id": "conv_1"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (body, now) = (body.to_string(), now());
    let (message_id, content_encoding, published) = (None, None, None);
    let source = Source { body: body.as_bytes(), message_id, content_encoding, published, first_seen: now, now };
    validate(&BOT, Duration::from_secs(900), &source).map_err(|invalid| invalid.rejection)
}

fn first_time(job: &Job) -> Candidate<'_> {
    Candidate {
        job,
        mark: Mark::of_job("default", &job.conversation, &job.id),
        generation: 0,
        suspect: false,
        uncertain: false,
        published: None,
        tried: None,
        tried_without_entry: false,
        before: None,
    }
}

fn once_more(job: &Job) -> Candidate<'_> {
    Candidate { suspect: true, uncertain: true, ..first_time(job) }
}

/// The plan of all jobs in one batch; `base` is what was known before the others' changes.
fn plan_on(snapshot: &Snapshot, base: Option<&Snapshot>, batch: &[Candidate<'_>]) -> Plan {
    let base = base.and_then(Snapshot::variables).map(|variables| &**variables);
    let ground = Ground { bot: &BOT, snapshot, base, backfill: &[], evicted: &Evicted::default(), now: now() };
    let plan = plan(ground, batch, MAX_BATCH, None);
    assert_eq!(plan.fates.len(), batch.len(), "the batch fits");
    plan
}

/// The conversation with these variables, as read.
fn state(variables: Variables) -> Snapshot {
    Snapshot::read(Some(Version::new("1")), variables, LEDGER, None, now())
}

/// The conversation after the plan's PATCH, as read.
fn after(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let Contents::Full { variables, ledger: Ok(ledger) } = &snapshot.contents else { panic!("all is known") };
    let mut all = (**variables).clone();
    if !ledger.is_empty() {
        all.insert(Name::new(Scope::Conversation, LEDGER), ledger.clone().to_value().0);
    }
    for change in &plan.changes {
        match &change.value {
            Some(value) => all.insert(change.name.clone(), value.clone()),
            None => all.remove(&change.name),
        };
    }
    let version = snapshot.version.as_ref().unwrap().as_str().parse::<u64>().unwrap();
    let version = version + u64::from(plan.body.is_some());
    Snapshot::read(Some(Version::new(version.to_string())), all, LEDGER, None, now())
}

/// A small value of any kind, so that operations meet each other's types.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (-3i64..4).prop_map(Value::from),
        (-30i64..40).prop_map(|tenths| format!("{}", rust_decimal::Decimal::new(tenths, 1))
            .parse()
            .map_or(Value::Null, Value::Number)),
        "[a-c]{0,2}|\\{\\{[a-c]\\}\\}".prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-c]", inner, 0..3).prop_map(|fields| json!(fields)),
        ]
    })
}

/// Any operation, as a job spells it.
fn any_operation() -> impl Strategy<Value = Value> {
    let operand = || any_value();
    let number = || (-30i64..40).prop_map(|tenths| rust_decimal::Decimal::new(tenths, 1).to_string());
    prop_oneof![
        2 => operand().prop_map(|value| json!({"value": value})),
        1 => operand().prop_map(|value| json!({"op": "set_if_absent", "value": value})),
        1 => (operand(), operand()).prop_map(|(expected, value)| json!({"op": "compare_set", "expected": expected, "value": value})),
        3 => number().prop_map(|by| json!({"op": "increment", "by": by})),
        1 => number().prop_map(|by| json!({"op": "increment", "by": by, "min": -2, "max": "2.5"})),
        2 => (operand(), 1u64..4).prop_map(|(value, most)| json!({"op": "append", "value": value, "max_items": most})),
        2 => (operand(), 1u64..4).prop_map(|(value, most)| json!({"op": "add_to_set", "value": value, "max_items": most})),
        1 => operand().prop_map(|value| json!({"op": "remove", "value": value})),
        1 => Just(json!({"op": "delete"})),
        2 => operand().prop_map(|value| json!({"op": "merge_patch", "value": value})),
        1 => number().prop_map(|value| json!({"op": "max", "value": value})),
        1 => number().prop_map(|value| json!({"op": "min", "value": value})),
        1 => "[a-c ]{0,3}\\{\\{(user\\.|session\\.)?[a-c](\\.[a-c0])?\\}\\}".prop_map(|text| json!({"template": text})),
        1 => "\\{\\{[a-c]\\}\\}".prop_map(|text| json!({"op": "append", "template": text})),
    ]
}

/// Jobs over a few keys, so that they meet; `a` is of the user, `b` of the session, `c` of the conversation.
fn any_jobs(most: usize) -> impl Strategy<Value = Vec<Job>> {
    let variables = proptest::collection::btree_map("[a-c]", any_operation(), 1..3);
    proptest::collection::vec(variables, 1..most).prop_map(|jobs| {
        let jobs = jobs.into_iter().enumerate().map(|(number, variables)| {
            let variables = variables.into_iter().map(|(key, mut operation)| {
                operation["scope"] = json!(scope(&key).as_str());
                (key, operation)
            });
            let variables = variables.collect::<serde_json::Map<_, _>>();
            job(&format!("j{number}"), &json!({ "variables": variables })).unwrap()
        });
        jobs.collect()
    })
}

fn scope(key: &str) -> Scope {
    match key {
        "a" => Scope::User,
        "b" => Scope::Session,
        _ => Scope::Conversation,
    }
}

/// A conversation with some of these keys.
fn any_variables() -> impl Strategy<Value = Variables> {
    proptest::collection::btree_map(
        "[a-c]",
        any_value().prop_filter("absent is absent", |value| !value.is_null()),
        0..4,
    )
    .prop_map(|all| all.into_iter().map(|(key, value)| (Name::new(scope(&key), key), value)).collect())
}
