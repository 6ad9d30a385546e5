//! The outcomes of a writer are a chain: each names the hash of the one before, and its own hash can be checked by
//! anybody who can sort keys and compute SHA-256 (RFC 8785). The audit stream holds every outcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_injector::audit;
use context_injector::broker::topology::{self, Names, Part};
use context_injector::broker::{Broker, Mandatory, Message, Offset, Options, Publisher, subscribe};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::support::{amqp_url, config, unique_prefix, within};
use crate::world::{LIMIT, Outcome, World};

#[tokio::test]
async fn each_event_names_the_hash_of_the_one_before_over_a_restart_too() {
    let world = World::new().await;
    let mut worker = world.start_worker().await;
    for round in 0..2 {
        for n in 0..10 {
            let job = json!({"job_id": format!("r{round}-{n}"), "conversation_id": world.conversation(),
                             "variables": {"a": {"op": "increment", "by": "0.5"}, "ü": {"value": 1}}});
            world.publish_job(&job).await;
            let job = json!({"job_id": format!("g{round}-{n}"), "conversation_id": world.conversation(),
                             "variables": {"a": {"op": "increment", "by": "0.5"}}});
            world.publish_job(&job).await;
        }
        for n in 0..10 {
            world.expect_refused(&format!("r{round}-{n}"), "invalid_key").await;
            world.expect_applied(&format!("g{round}-{n}")).await;
        }
        if round == 0 {
            worker.kill9().await;
            worker = world.start_worker().await;
        }
    }
    let outcomes = world.outcomes().await;
    assert_eq!(chain_faults(&outcomes), Vec::<String>::new());
    // A check that cannot fail proves nothing.
    let mut changed = outcomes.clone();
    changed[5].event["data"]["verdict"] = json!("unknown");
    assert!(!chain_faults(&changed).is_empty());
    let mut missing = outcomes;
    missing.remove(5);
    assert!(!chain_faults(&missing).is_empty());
}

#[tokio::test]
async fn the_audit_stream_holds_every_outcome_in_order() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    for n in 0..20 {
        let job = json!({"job_id": format!("n-{n}"), "conversation_id": world.conversation(),
                         "variables": {"a": {"value": n}}});
        world.publish_job(&job).await;
    }
    for n in 0..20 {
        world.expect_applied(&format!("n-{n}")).await;
    }
    let channel = world.channel().await;
    channel.basic_qos(50, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let stream = format!("{}.audit", world.prefix);
    let mut consumer =
        channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 20 {
        let delivery = tokio::time::timeout(LIMIT, consumer.next()).await.unwrap().unwrap().unwrap();
        events.push(serde_json::from_slice::<Value>(&delivery.data).unwrap());
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    let seen: Vec<Value> = world.outcomes().await.into_iter().map(|outcome| outcome.event).collect();
    assert_eq!(events, seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_sealed_side_by_side_is_in_the_stream_in_the_order_of_the_chain() {
    const EVENTS: u64 = 4_000;
    let config = config(amqp_url().await, &unique_prefix("order"), "");
    let names = Names::new(&config.amqp.prefix);
    let plan = topology::plan(&config, Part::Worker);
    let broker = Broker::start_declaring(&config.amqp, "order", plan, CancellationToken::new());
    within("a connection", broker.connection()).await;
    let writer = Arc::new(audit::Writer::new(Publisher::new(&broker), names.audit(), None));
    let tasks = (0..8_u64).map(|task| {
        let (writer, exchange) = (Arc::clone(&writer), names.outcomes());
        tokio::spawn(async move {
            for number in 0..EVENTS / 8 {
                let event = json!({"id": format!("{task}-{number}")}).as_object().unwrap().clone();
                let sealed =
                    writer.hand_over(&exchange, "default.applied", |link| link.of(event), Message::new, Mandatory::No);
                // Some wait for their confirm, most go on: other tasks get in between either way.
                if number % 16 == 0 {
                    sealed.confirm.wait().await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        within("a task", task).await.unwrap();
    }
    let options = Options { prefetch: 500, tag: "test".into(), from: Some(Offset::First) };
    let mut stream = within("the stream", subscribe(&broker, &names.audit(), options)).await.unwrap();
    for expected in 1..=EVENTS {
        let incoming = within("an event", stream.next()).await.unwrap();
        let event = serde_json::from_slice::<Value>(&incoming.message.body).unwrap();
        assert_eq!(event["seq"], expected);
        incoming.ack().await.unwrap();
    }
}

fn chain_faults(outcomes: &[Outcome]) -> Vec<String> {
    let mut writers: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for outcome in outcomes {
        let writer = outcome.event["writer"].as_str().unwrap_or("none").to_owned();
        writers.entry(writer).or_default().push(&outcome.event);
    }
    let mut faults = Vec::new();
    for (writer, mut events) in writers {
        events.sort_by_key(|event| event["seq"].as_u64());
        for event in &events {
            let mut unhashed = (*event).clone();
            unhashed.as_object_mut().unwrap().remove("hash");
            let hash: String = Sha256::digest(canonical(&unhashed)).iter().map(|byte| format!("{byte:02x}")).collect();
            if event["hash"] != hash.as_str() {
                faults.push(format!("{writer} {}: the hash is not that of the event", event["seq"]));
            }
        }
        for pair in events.windows(2) {
            let next = pair[0]["seq"].as_u64().map(|seq| seq + 1);
            if pair[1]["seq"].as_u64() != next || pair[1]["prevhash"] != pair[0]["hash"] {
                faults.push(format!("{writer} {}: does not follow {}", pair[1]["seq"], pair[0]["seq"]));
            }
        }
    }
    faults
}

/// RFC 8785 for what an event holds: sorted names, no blanks, numbers as JavaScript writes them.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            // All names of an event are ASCII, so byte order is the order of the RFC.
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            let members: Vec<String> =
                names.iter().map(|name| format!("{}:{}", json!(name), canonical(&fields[*name]))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Number(number) => ryu_js::Buffer::new().format(number.as_f64().unwrap()).to_owned(),
        other => other.to_string(),
    }
}
