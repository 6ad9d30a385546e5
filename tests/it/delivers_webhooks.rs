//! Outcomes reach webhook receivers: signed, retried, dead-lettered, replayed, isolated from each other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use context_injector::demo::receiver::{Delivery, Receiver};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::world::{LIMIT, SECRET, World, eventually};

async fn receiver() -> Receiver {
    Receiver::start(SECRET).await.unwrap()
}

fn job(world: &World, id: &str) -> Value {
    json!({"job_id": id, "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}})
}

async fn delivered(receiver: &Receiver, job_id: &str, status: u16) -> Delivery {
    eventually(LIMIT, &format!("a delivery of {job_id} answered {status}"), async || {
        let fits = |d: &Delivery| d.event["data"]["job_id"] == job_id && d.answered == status;
        receiver.deliveries().into_iter().find(fits)
    })
    .await
}

#[tokio::test]
async fn every_outcome_is_delivered_signed_and_is_the_event_itself() {
    let receiver = receiver().await;
    let url = receiver.url();
    let world = World::with(|setup| {
        setup.endpoint("analytics", &url);
    })
    .await;
    let _run = world.start_run().await;
    world.publish_job(&job(&world, "good")).await;
    world.publish_raw(b"{broken", Default::default()).await;

    let delivery = delivered(&receiver, "good", 204).await;
    let outcome = world.expect_applied("good").await;
    assert_eq!(delivery.event, outcome.event);
    assert_eq!(delivery.id, outcome.id(), "webhook-id is the event's id");
    assert!(delivery.content_type.starts_with("application/cloudevents+json"), "{}", delivery.content_type);
    eventually(LIMIT, "the event of the broken job", async || {
        let refused = |d: &Delivery| d.event["data"]["reason"]["code"] == "malformed_json";
        receiver.deliveries().into_iter().find(refused)
    })
    .await;
    assert!(receiver.deliveries().iter().all(|delivery| delivery.fault.is_none()));
}

#[tokio::test]
async fn a_failed_delivery_is_tried_again_with_the_same_id() {
    let receiver = receiver().await;
    let url = receiver.url();
    let world = World::with(|setup| {
        setup.endpoint("analytics", &url);
    })
    .await;
    receiver.answer_next(&[500, 503]);
    let _run = world.start_run().await;
    world.publish_job(&job(&world, "again")).await;
    delivered(&receiver, "again", 204).await;
    let tries = receiver.deliveries();
    assert_eq!(tries.iter().map(|delivery| delivery.answered).collect::<Vec<_>>(), [500, 503, 204]);
    assert_eq!(tries.iter().map(|delivery| &delivery.id).collect::<BTreeSet<_>>().len(), 1);
    assert!(tries.iter().all(|delivery| delivery.fault.is_none()), "each try is signed for its own time");
}

#[tokio::test]
async fn what_cannot_be_delivered_is_a_dead_letter_and_is_replayed_with_the_same_id() {
    let receiver = receiver().await;
    let url = receiver.url();
    let world = World::with(|setup| {
        setup.endpoint("analytics", &url);
    })
    .await;
    // The first try and both rungs.
    receiver.answer_next(&[500, 500, 500]);
    let _run = world.start_run().await;
    world.publish_job(&job(&world, "late")).await;
    let letter = eventually(LIMIT, "a dead letter", async || world.messages("webhooks.dead").await.pop()).await;
    assert_eq!(letter.header("x-attempts"), "3");
    assert_eq!(letter.header("x-last-status"), "500");
    let listed = world.json(&["dead-letters", "list", "--kind", "webhooks", "--endpoint", "analytics", "--json"]).await;
    assert_eq!(listed.len(), 1, "{listed:?}");

    let (status, output) = world.command(&["dead-letters", "replay", "--kind", "webhooks"]).await;
    assert_eq!(status, 0, "{output}");
    let delivery = delivered(&receiver, "late", 204).await;
    assert_eq!(delivery.id, receiver.deliveries()[0].id);
    assert_eq!(world.ready_messages("webhooks.dead").await, 0);
}

#[tokio::test]
async fn an_endpoint_gets_only_what_it_asked_for() {
    let (all, failures) = (receiver().await, receiver().await);
    let (all_url, failures_url) = (all.url(), failures.url());
    let world = World::with(|setup| {
        setup.endpoint("all", &all_url);
        setup.endpoint("failures", &failures_url).set("endpoints.failures.events", vec!["*.not_applied"]);
    })
    .await;
    let _run = world.start_run().await;
    world.publish_job(&job(&world, "good")).await;
    world.publish_job(&json!({"job_id": "bad", "conversation_id": "nobody", "variables": {"a": {"value": 1}}})).await;
    delivered(&all, "good", 204).await;
    delivered(&all, "bad", 204).await;
    delivered(&failures, "bad", 204).await;
    assert_eq!(failures.deliveries().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_the_others_nothing() {
    let good = receiver().await;
    // A listener that takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/hooks", silent.local_addr().unwrap());
    let good_url = good.url();
    let world = World::with(|setup| {
        setup.endpoint("silent", &silent_url);
        setup.endpoint("good", &good_url);
    })
    .await;
    let _run = world.start_run().await;
    for n in 0..30 {
        world.publish_job(&job(&world, &format!("n-{n}"))).await;
    }
    for n in 0..30 {
        delivered(&good, &format!("n-{n}"), 204).await;
    }
}

#[tokio::test]
async fn an_address_inside_the_network_is_refused_unless_it_is_allowed() {
    let receiver = receiver().await;
    let url = receiver.url();
    let world = World::with(|setup| {
        setup.endpoint("inside", &url).set("endpoints.inside.allow_networks", Vec::<String>::new());
    })
    .await;
    let run = world.start_run().await;
    world.publish_job(&job(&world, "kept")).await;
    world.expect_applied("kept").await;
    let line = run.logs("allow_networks").await;
    assert!(line.contains("127.0.0.1"), "the refusal names the address: {line}");
    assert!(receiver.deliveries().is_empty());
    eventually(LIMIT, "an event that waits", async || {
        let waiting = world.ready_messages("webhooks.inside").await;
        (waiting == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_relay_that_is_killed_loses_no_delivery() {
    let receiver = receiver().await;
    let url = receiver.url();
    let world = World::with(|setup| {
        setup.endpoint("analytics", &url);
    })
    .await;
    let _worker = world.start_worker().await;
    let relay = world.start_relay().await;
    for n in 0..200 {
        world.publish_job(&job(&world, &format!("n-{n}"))).await;
    }
    eventually(LIMIT, "the first deliveries", async || (receiver.deliveries().len() >= 20).then_some(())).await;
    relay.kill9().await;
    let _relay = world.start_relay().await;
    eventually(LIMIT, "a delivery of every outcome", async || {
        let ids: BTreeSet<String> = receiver.deliveries().into_iter().map(|delivery| delivery.id).collect();
        (ids.len() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_was_taken_out_by_mistake_keeps_its_events_and_is_named() {
    let receiver = receiver().await;
    let url = receiver.url();
    let mut world = World::with(|setup| {
        setup.endpoint("kept", &url).endpoint("lost", &url);
    })
    .await;
    let _worker = world.start_worker().await;
    let relay = world.start_relay().await;
    world.publish_job(&job(&world, "before")).await;
    let deliveries_of = |id: &str| {
        let deliveries = receiver.deliveries();
        deliveries.iter().filter(|delivery| delivery.event["data"]["job_id"] == id).count()
    };
    eventually(LIMIT, "a delivery to both", async || (deliveries_of("before") == 2).then_some(())).await;
    relay.terminate();
    relay.wait_exit().await;

    world.change_settings(|setup| {
        setup.remove("endpoints");
        setup.endpoint("kept", &url);
    });
    let relay = world.start_relay().await;
    world.publish_job(&job(&world, "meanwhile")).await;
    let advice = "lost is not in the settings, but its queue still takes events: put [endpoints.lost] back";
    eventually(LIMIT, "a degraded relay that says so", async || {
        relay.page("/readyz").await.filter(|(status, why)| *status == 200 && why.contains(advice))
    })
    .await;
    eventually(LIMIT, "a list that names it and counts what waits", async || {
        let listed = world.json(&["endpoints", "list", "--json"]).await;
        listed.into_iter().find(|row| row["endpoint"] == "lost" && row["state"] == "removed" && row["waiting"] == 1)
    })
    .await;
    relay.terminate();
    relay.wait_exit().await;

    world.change_settings(|setup| {
        setup.endpoint("lost", &url);
    });
    let relay = world.start_relay().await;
    eventually(LIMIT, "what came meanwhile", async || (deliveries_of("meanwhile") == 2).then_some(())).await;
    eventually(LIMIT, "a relay that is well", async || {
        relay.page("/readyz").await.filter(|(status, why)| *status == 200 && !why.contains("[endpoints.lost]"))
    })
    .await;
}

/// A Python with the packages of `scripts/foreign-receiver.py`: `FOREIGN_PYTHON`, or one that is made once below
/// `target` from PyPI.
async fn foreign_python() -> Result<PathBuf, String> {
    const PACKAGES: [&str; 3] = ["standardwebhooks", "cryptography", "cloudevents"];
    if let Ok(python) = std::env::var("FOREIGN_PYTHON") {
        return Ok(python.into());
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign-receiver");
    let python = directory.join("bin/python");
    let run = async |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        match tokio::time::timeout(2 * LIMIT, output).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it takes too long".to_owned()),
        }
    };
    if run(&python, &["-c", "import standardwebhooks, cryptography, cloudevents"]).await.is_err() {
        run(Path::new("python3"), &["-m", "venv", directory.to_str().unwrap()]).await?;
        run(&python, &[&["-m", "pip", "install", "--quiet"], &PACKAGES[..]].concat()).await?;
    }
    Ok(python)
}

#[tokio::test]
async fn libraries_that_are_not_ours_verify_the_signature_and_read_the_outcome() {
    let python = match foreign_python().await {
        Ok(python) => python,
        Err(why) => {
            eprintln!(
                "SKIPPED: no Python with standardwebhooks, cryptography and cloudevents ({why}); FOREIGN_PYTHON names one"
            );
            return;
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/foreign-receiver.py");
    let mut command = Command::new(&python);
    command.arg(&script).args(["--serve", SECRET]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut receiver = command.spawn().unwrap();
    let mut lines = BufReader::new(receiver.stdout.take().unwrap()).lines();
    let mut next = async || tokio::time::timeout(LIMIT, lines.next_line()).await.expect("a line").unwrap().unwrap();
    let url = next().await;
    let world = World::with(|setup| {
        setup.endpoint("foreign", &url);
    })
    .await;
    let _run = world.start_run().await;
    world.publish_job(&job(&world, "foreign")).await;
    let outcome = world.expect_applied("foreign").await;
    let read: Value = serde_json::from_str(&next().await).unwrap();
    assert_eq!(read["problem"], Value::Null);
    for attribute in ["id", "type", "source", "subject", "data"] {
        assert_eq!(read[attribute], outcome.event[attribute], "{attribute}: {read}");
    }

    // The same for every kind of secret, and while keys rotate.
    let binary = env!("CARGO_BIN_EXE_context-injector");
    let output = Command::new(&python).arg(&script).arg(binary).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, output).await.expect("a script that ends").unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.matches("verified").count() == 6, "{shown}");
}
