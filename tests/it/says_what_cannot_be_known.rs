//! `unknown` is said where nobody can know, never a guess; and the refusals that need a broken or foreign target.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::world::{Properties, World};

fn increment(id: &str, conversation: &str) -> Value {
    json!({"job_id": id, "conversation_id": conversation, "variables": {"n": {"op": "increment"}}})
}

async fn expect_unknown(world: &World, job: &Value, reason: &str) {
    let outcome = world.expect_outcome(job["job_id"].as_str().unwrap()).await;
    assert_eq!((outcome.verdict(), outcome.reason()), ("unknown", reason), "{}", outcome.event);
    let letter = world.expect_dead_letter(job.to_string().as_bytes()).await;
    assert_eq!((letter.header("x-certainty"), letter.header("x-reason")), ("unknown", reason));
}

/// As a message that was on the ladder: an earlier attempt of it may have got anywhere.
async fn publish_retried(world: &World, job: &Value) {
    let mut headers = FieldTable::default();
    headers.insert("x-attempt".into(), AMQPValue::LongInt(1));
    world.publish_raw(job.to_string().as_bytes(), Properties::default().with_headers(headers)).await;
}

#[tokio::test]
async fn a_ledger_of_another_form_stops_the_job() {
    let world = World::new().await;
    let conversation = world.conversation();
    world.seed(&conversation, json!({"_injection_ledger": {"value": {"v": 99}, "scope": "conversation"}})).await;
    let _worker = world.start_worker().await;
    let job = increment("unreadable", &conversation);
    world.publish_job(&job).await;
    expect_unknown(&world, &job, "ledger_unreadable").await;
}

#[tokio::test]
async fn a_job_that_the_ledger_may_have_let_go_is_not_guessed_about() {
    let world = World::new().await;
    let conversation = world.conversation();
    let ledger = json!({"v": 1, "low": [1_795_000_000, 5], "a": [[1_795_000_000, 4, "abcdefghijkl"]]});
    world.seed(&conversation, json!({"_injection_ledger": {"value": ledger, "scope": "conversation"}})).await;
    let _worker = world.start_worker().await;
    let job = increment("overrun", &conversation);
    publish_retried(&world, &job).await;
    expect_unknown(&world, &job, "ledger_overrun").await;
    world.publish_job(&increment("new", &conversation)).await;
    world.expect_applied("new").await;
}

#[tokio::test]
async fn after_a_reset_a_job_that_came_before_is_not_guessed_about() {
    let world = World::new().await;
    let conversation = world.conversation();
    let _worker = world.start_worker().await;
    world.publish_job(&increment("before", &conversation)).await;
    world.expect_applied("before").await;
    world.sandbox.reset_conversation(&conversation);
    let job = increment("again", &conversation);
    publish_retried(&world, &job).await;
    expect_unknown(&world, &job, "conversation_reset").await;
    world.publish_job(&increment("first", &conversation)).await;
    world.expect_applied("first").await;
}

#[tokio::test]
async fn a_target_that_fails_after_a_write_leaves_it_unknown() {
    let world = World::with(|setup| {
        setup.set("retry.max_attempts", 1);
    })
    .await;
    world.faults(json!({"hang_after": {"probability": 0}, "server_error": 1.0})).await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let reads = json!({"server_error": {"probability": 1.0, "only": {"methods": ["PATCH"]}}});
    world.faults(reads).await;
    let job = increment("ambiguous", &conversation);
    world.publish_job(&job).await;
    expect_unknown(&world, &job, "ambiguous_write").await;
}

#[tokio::test]
async fn a_conversation_that_changes_under_every_try_is_given_up() {
    let world = World::new().await;
    world.faults(json!({"spurious_conflict": 1.0})).await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world.publish_job(&increment("busy", &conversation)).await;
    world.expect_refused("busy", "conflict_limit").await;
}

#[tokio::test]
async fn what_the_dialect_cannot_do_is_refused() {
    let world = World::with(|setup| {
        setup.set("bots.default.dialect", "cognigy-v2");
    })
    .await;
    let _worker = world.start_worker().await;
    world.publish_job(&increment("unsupported", &world.conversation())).await;
    world.expect_refused("unsupported", "unsupported_by_dialect").await;
}
