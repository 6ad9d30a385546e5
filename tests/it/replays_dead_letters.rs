//! An operator lists, looks at, repairs and replays dead letters.

use serde_json::{Value, json};

use crate::world::{LIMIT, World, eventually};

async fn dead(world: &World, id: &str, variables: Value) -> Value {
    let job = json!({"job_id": id, "conversation_id": world.conversation(), "variables": variables});
    world.publish_job(&job).await;
    world.expect_dead_letter(job.to_string().as_bytes()).await;
    job
}

#[tokio::test]
async fn a_repaired_job_is_applied_as_the_next_generation() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let job = dead(&world, "long", json!({"bio": {"value": "x".repeat(20_000)}})).await;
    dead(&world, "other", json!({"a": {"value": 1, "scope": "galaxy"}})).await;

    let listed = world.json(&["dead-letters", "list", "--reason", "value_too_large", "--json"]).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    let id = listed[0]["id"].as_str().unwrap();
    let (status, shown) = world.command(&["dead-letters", "show", id]).await;
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("value_too_large"), "{shown}");

    let (status, dry) = world.command(&["dead-letters", "replay", id, "--dry-run"]).await;
    assert_eq!(status, 0, "{dry}");
    assert_eq!(world.dead_letters().await.len(), 2, "a dry run moves nothing");

    let patch = r#"{"variables": {"bio": {"value": "short"}}}"#;
    let (status, output) = world.command(&["dead-letters", "replay", id, "--patch", patch]).await;
    assert_eq!(status, 0, "{output}");
    let applied = eventually(LIMIT, "an applied outcome", async || {
        world.outcomes_of("long").await.into_iter().find(|outcome| outcome.verdict() == "applied")
    })
    .await;
    assert_eq!(applied.event["data"]["replay_generation"], 1);
    assert_ne!(applied.id(), world.outcomes_of("long").await[0].id());
    assert_eq!(world.value(job["conversation_id"].as_str().unwrap(), "bio").await, "short");
    eventually(LIMIT, "one dead letter left", async || (world.dead_letters().await.len() == 1).then_some(())).await;
}

#[tokio::test]
async fn what_is_replayed_unrepaired_fails_again_and_what_was_applied_is_never_applied_twice() {
    let world = World::with(|setup| setup.sandbox.auto_create = false).await;
    let _worker = world.start_worker().await;
    let job = dead(&world, "early", json!({"n": {"op": "increment"}})).await;
    let conversation = job["conversation_id"].as_str().unwrap();

    let (status, output) = world.command(&["dead-letters", "replay", "--reason", "conversation_not_found"]).await;
    assert_eq!(status, 0, "{output}");
    eventually(LIMIT, "the second refusal", async || (world.outcomes_of("early").await.len() == 2).then_some(())).await;
    eventually(LIMIT, "a dead letter again", async || {
        world.dead_letters().await.into_iter().find(|letter| letter.header("x-replay-generation") == "1")
    })
    .await;

    world.seed(conversation, json!({})).await;
    let (status, output) = world.command(&["dead-letters", "replay", "--conversation", conversation]).await;
    assert_eq!(status, 0, "{output}");
    eventually(LIMIT, "an applied outcome", async || {
        world.outcomes_of("early").await.into_iter().find(|outcome| outcome.verdict() == "applied")
    })
    .await;
    world.publish_job(&job).await;
    let last = json!({"job_id": "last", "conversation_id": conversation, "variables": {"z": {"value": 1}}});
    world.publish_job(&last).await;
    world.expect_applied("last").await;
    assert_eq!(world.value(conversation, "n").await.as_i64(), Some(1));
}
