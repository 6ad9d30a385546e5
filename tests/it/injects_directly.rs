//! `inject --direct` applies a job without broker and Redis, and `--dry-run` shows what would be done.

use serde_json::{Value, json};

use crate::world::World;

const NOWHERE: &str = "127.0.0.1:9";

async fn world_without_servers() -> World {
    let mut world = World::new().await;
    world.change_settings(|setup| {
        setup.set("amqp.url", format!("amqp://{NOWHERE}/%2f").as_str());
        setup.set("redis.url", format!("redis://{NOWHERE}/").as_str());
    });
    world
}

fn file(world: &World, name: &str, content: &Value) -> String {
    let path = world.directory(&format!("of-{name}")).join(name);
    std::fs::write(&path, content.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_is_applied_without_broker_and_redis_and_only_once() {
    let world = world_without_servers().await;
    let conversation = world.conversation();
    let job = json!({"job_id": "direct", "conversation_id": conversation, "variables": {
        "n": {"op": "increment", "by": "149.99"}, "text": {"template": "{{n}}"}}});
    let file = file(&world, "job.json", &job);
    let (status, text) = world.command(&["inject", &file, "--direct", "--json"]).await;
    assert_eq!(status, 0, "{text}");
    let event: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&event["data"]["verdict"], &event["data"]["repeat"]), (&json!("applied"), &json!(false)));
    assert_eq!(world.value(&conversation, "text").await, "149.99");
    let (status, text) = world.command(&["inject", &file, "--direct", "--json"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains(r#""repeat":true"#), "{text}");
    assert_eq!(world.value(&conversation, "n").await.to_string(), "149.99");
}

#[tokio::test]
async fn a_job_that_cannot_be_applied_says_why_with_an_exit_code() {
    let world = world_without_servers().await;
    let conversation = world.conversation();
    world.seed(&conversation, json!({"n": {"value": "text", "scope": "conversation"}})).await;
    let job = json!({"job_id": "d", "conversation_id": conversation, "variables": {"n": {"op": "increment"}}});
    let (status, text) = world.command(&["inject", &file(&world, "job.json", &job), "--direct"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("type_mismatch"), "{text}");
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let world = world_without_servers().await;
    let conversation = world.conversation();
    world.seed(&conversation, json!({"n": {"value": 2, "scope": "conversation"}})).await;
    let job =
        json!({"job_id": "dry", "conversation_id": conversation, "variables": {"n": {"op": "increment", "by": 3}}});
    let job = file(&world, "job.json", &job);
    let (status, text) = world.command(&["inject", &job, "--dry-run"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("conversation.n: 2 → 5 (written)"), "{text}");
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(2));
    // Several jobs of a conversation are planned one after the other.
    let jobs = format!(
        "{}\n{}\n",
        json!({"job_id": "one", "conversation_id": conversation, "variables": {"n": {"op": "increment"}}}),
        json!({"job_id": "two", "conversation_id": conversation,
               "variables": {"n": {"op": "increment"}, "t": {"template": "{{n}}"}}})
    );
    let several = world.directory("of-several").join("jobs.jsonl");
    std::fs::write(&several, jobs).unwrap();
    let (status, text) = world.command(&["inject", several.to_str().unwrap(), "--dry-run"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("conversation.n: 3 → 4 (written)"), "{text}");
    assert!(text.contains("conversation.t: (absent) → \"4\" (written)"), "{text}");
    // On a state that a person gives.
    let state = json!({"conversationId": conversation, "contextVersion": 7, "context": {"n": {"value": "x"}}});
    let state = file(&world, "state.json", &state);
    let (status, text) = world.command(&["inject", &job, "--dry-run", "--state", &state, "--json"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("type_mismatch"), "{text}");
    let (status, text) = world.command(&["inject", &job, "--dry-run", "--state", &job]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("the state in") && text.contains("\"context\""), "{text}");
}
