//! An operator checks the audit stream, or a copy of it: what is whole is told as whole, and up to where it is
//! signed; what was changed or cut off is named.

use std::process::Stdio;

use context_injector::pipeline::validate::SCHEMAS;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::world::{LIMIT, World, eventually};

/// RFC 8032, 7.1, test 1, as openssl writes it.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

async fn signing(every: i64) -> World {
    World::with(|setup| {
        setup.set("audit.signing_key", PRIVATE).set("audit.checkpoint_every", every);
    })
    .await
}

async fn apply(world: &World, names: std::ops::Range<usize>) {
    for number in names.clone() {
        let job = json!({"job_id": format!("n-{number}"), "conversation_id": world.conversation(),
                         "variables": {"a": {"value": number}}});
        world.publish_job(&job).await;
    }
    for number in names {
        world.expect_applied(&format!("n-{number}")).await;
    }
}

/// The stream once it has so many messages: the broker confirms an event before everybody sees it.
async fn exported(world: &World, expected: usize) -> Vec<String> {
    eventually(LIMIT, "all events in the stream", async || {
        let (status, output) = world.command(&["audit", "export"]).await;
        assert_eq!(status, 0, "{output}");
        let lines = output.lines().map(str::to_owned).collect::<Vec<_>>();
        (lines.len() >= expected).then_some(lines)
    })
    .await
}

fn command(world: &World, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"));
    command.arg("--config").arg(world.settings()).args(arguments);
    command.env_remove("AMQP_URL").env_remove("REDIS_URL").stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn the_stream_is_whole_and_signed_up_to_the_last_checkpoint_and_then_to_the_end() {
    let world = signing(5).await;
    let worker = world.start_worker().await;
    apply(&world, 0..12).await;
    exported(&world, 14).await;
    let (status, output) = world.command(&["audit", "verify"]).await;
    assert_eq!(status, 0, "{output}");
    for part in ["14 read, from offset 0 on; 1 writer", "signed up to 10, open: 2 after it", "No fault."] {
        assert!(output.contains(part), "{part}: {output}");
    }
    worker.terminate();
    assert_eq!(worker.wait_exit().await, 0);
    let lines = exported(&world, 15).await;
    let (_, schema) = SCHEMAS.into_iter().find(|(name, _)| *name == "checkpoint").unwrap();
    let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    for line in lines.iter().filter(|line| line.contains("\"context-injector.checkpoint.v1\"")) {
        let checkpoint = serde_json::from_str::<Value>(line).unwrap();
        assert!(schema.is_valid(&checkpoint), "{line}: {:?}", schema.validate(&checkpoint).err());
    }
    let (status, output) = world.command(&["audit", "verify"]).await;
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("events 1 to 12; ended, signed to the end"), "{output}");
    // Checkpoints are for the stream alone: subscribers see a chain without gaps, and nothing else.
    let outcomes = world.outcomes().await;
    assert_eq!(outcomes.len(), 12);
    assert!(outcomes.iter().all(|outcome| outcome.event["type"] == "context-injector.outcome.v1"));
}

#[tokio::test]
async fn a_copy_is_the_stream_byte_for_byte_and_every_change_of_it_is_named() {
    let world = signing(100).await;
    let worker = world.start_worker().await;
    apply(&world, 0..6).await;
    worker.terminate();
    worker.wait_exit().await;
    let lines = exported(&world, 7).await;
    let sent = world.outcomes().await.iter().map(|outcome| outcome.body.clone()).collect::<Vec<_>>();
    assert_eq!(lines[..6], sent);

    let directory = world.directory("audit");
    let (file, key) = (directory.join("events.jsonl"), directory.join("public.pem"));
    std::fs::write(&key, PUBLIC).unwrap();
    let verify = async |lines: &[String]| {
        std::fs::write(&file, lines.join("\n")).unwrap();
        let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
        world.command(&["audit", "verify", file, "--public-key", key, "--json"]).await
    };
    let (status, output) = verify(&lines).await;
    let report: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((status, &report["intact"], &report["writers"][0]["closed"]), (0, &json!(true), &json!(true)));

    let mut changed = lines.clone();
    changed[2] = changed[2].replace("\"applied\"", "\"unknown\"");
    let mut missing = lines.clone();
    missing.remove(3);
    let mut cut = lines.clone();
    cut.remove(5);
    let mut forged = lines.clone();
    forged[6] = forged[6].replace("\"final\":true", "\"final\":false");
    for (lines, kind, place) in [
        (changed, "tampered", json!(3)),
        (missing, "gap", json!(null)),
        (cut, "cut_off", json!(6)),
        (forged, "checkpoint", json!(7)),
    ] {
        let (status, output) = verify(&lines).await;
        let report: Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
        assert_eq!((status, report["fault_count"].as_u64()), (3, Some(1)), "{output}");
        assert_eq!((&report["faults"][0]["kind"], &report["faults"][0]["place"]), (&json!(kind), &place), "{output}");
    }
    let (status, output) = world.command(&["audit", "verify", "/nowhere/events.jsonl"]).await;
    assert_eq!(status, 1, "{output}");
}

#[tokio::test]
async fn events_are_followed_and_filtered_and_a_reader_that_has_enough_is_no_error() {
    let world = signing(100).await;
    let _worker = world.start_worker().await;
    apply(&world, 0..3).await;
    let refused = json!({"job_id": "bad", "conversation_id": world.conversation(), "variables": {"a-b": {"value": 1}}});
    world.publish_job(&refused).await;
    world.expect_refused("bad", "invalid_key").await;
    let mut tail = command(&world, &["audit", "tail", "--since", "1h", "--verdict", "not_applied"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = async || tokio::time::timeout(LIMIT, lines.next_line()).await.expect("a line").unwrap().unwrap();
    let line = next().await;
    assert!(line.contains("not_applied") && line.contains("bad") && line.contains("invalid_key"), "{line}");
    let late = json!({"job_id": "late", "conversation_id": world.conversation(), "variables": {"a-b": {"value": 1}}});
    world.publish_job(&late).await;
    assert!(next().await.contains("late"), "what comes later is followed");
    // Its reader goes; the next event ends it, quietly.
    drop(lines);
    let last = json!({"job_id": "last", "conversation_id": world.conversation(), "variables": {"a-b": {"value": 1}}});
    world.publish_job(&last).await;
    let ended = tokio::time::timeout(LIMIT, tail.wait()).await.expect("an end").unwrap();
    assert_eq!(ended.code(), Some(0));

    let (status, output) = world.command(&["audit", "export", "--since", "1h", "--job", "n-1"]).await;
    assert_eq!((status, output.lines().count()), (0, 1), "{output}");
    let (status, output) = world.command(&["audit", "export", "--until", "2026-01-01T00:00:00Z"]).await;
    assert_eq!((status, output.as_str()), (0, ""));
}

#[tokio::test]
async fn a_signing_key_that_is_none_is_said_and_not_shown() {
    let mut world = World::bare(None, |_| {}).await;
    world.change_settings(|setup| {
        setup.set("audit.signing_key", "hunter2");
    });
    let (status, output) = world.command(&["config", "check"]).await;
    assert_eq!(status, 2, "{output}");
    assert!(output.contains("audit.signing_key") && output.contains("openssl genpkey"), "{output}");
    assert!(!output.contains("hunter2"), "{output}");
}
