//! A job for a bot that nobody configured waits, is listed, and is applied once the bot is there.

use serde_json::json;

use crate::world::{LIMIT, Properties, World, eventually};

#[tokio::test]
async fn a_job_of_a_bot_that_comes_later_waits_and_is_replayed() {
    let mut world = World::new().await;
    let worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = json!({"job_id": "early", "conversation_id": conversation, "variables": {"a": {"value": 1}}});
    world.publish_to("later", job.to_string().as_bytes(), Properties::default()).await;

    eventually(LIMIT, "a waiting job", async || (world.ready_messages("jobs.unroutable").await == 1).then_some(()))
        .await;
    let listed = world.json(&["dead-letters", "list", "--kind", "unroutable", "--json"]).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0].to_string().contains("early"), "{}", listed[0]);

    worker.terminate();
    worker.wait_exit().await;
    let url = world.sandbox.url().to_owned();
    world.change_settings(|setup| {
        setup
            .set("bots.later.base_url", url.as_str())
            .set("bots.later.allow_http", true)
            .set("bots.later.client_id", "sandbox")
            .set("bots.later.client_secret", "sandbox-secret");
    });
    let _worker = world.start_worker().await;
    let (status, output) = world.command(&["dead-letters", "replay", "--kind", "unroutable"]).await;
    assert_eq!(status, 0, "{output}");
    let outcome = world.expect_applied("early").await;
    assert_eq!(outcome.routing_key, "later.applied");
    assert_eq!(world.value(&conversation, "a").await.as_i64(), Some(1));
    assert_eq!(world.ready_messages("jobs.unroutable").await, 0);
}
