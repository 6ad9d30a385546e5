//! A worker that starts before everything else says what it waits for, and works as soon as it comes.

use serde_json::json;

use crate::world::{LIMIT, Servers, World, eventually};

#[tokio::test]
async fn a_worker_waits_for_the_broker_and_says_so() {
    let mut servers = Servers::private().await;
    servers.broker().kill9().await.unwrap();
    servers.redis().kill9().await.unwrap();
    let mut world = World::bare(Some(servers), |_| {}).await;
    let worker = world.spawn("worker");
    worker.not_ready_because_of("amqp").await;
    let address = world.amqp_url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    worker.logs(&address).await;
    assert!(!worker.log().contains("guest:guest"), "a log never holds credentials");
    assert_eq!(worker.page("/livez").await.map(|(status, _)| status), Some(200));

    world.servers().redis().start_again().await.unwrap();
    world.servers().broker().start_again().await.unwrap();
    worker.ready().await;
    let job = json!({"job_id": "at-last", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    world.expect_applied("at-last").await;
}

#[tokio::test]
async fn a_worker_survives_a_broker_that_is_killed_and_comes_back() {
    let mut world = World::with_private_servers(|_| {}).await;
    let worker = world.start_worker().await;
    world.servers().broker().kill9().await.unwrap();
    worker.not_ready_because_of("amqp").await;
    world.servers().broker().start_again().await.unwrap();
    worker.ready().await;
    let job = json!({"job_id": "after", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    world.expect_applied("after").await;
}

#[tokio::test]
async fn jobs_wait_for_a_target_that_is_not_there_yet() {
    let world = World::with(|setup| {
        // Nobody listens on the discard port.
        setup.set("bots.default.base_url", "http://127.0.0.1:9").set("retry.schedule", vec!["200ms"]);
    })
    .await;
    let worker = world.spawn("worker");
    worker.not_ready_because_of("127.0.0.1:9").await;
    let job = json!({"job_id": "waits", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    worker.logs("127.0.0.1:9").await;
    worker.logs("the job waits").await;
    assert!(world.outcomes_of("waits").await.is_empty());
    worker.kill9().await;

    let mut world = world;
    let url = world.sandbox.url().to_owned();
    world.change_settings(|setup| {
        setup.set("bots.default.base_url", url.as_str());
    });
    let _worker = world.start_worker().await;
    world.expect_applied("waits").await;
    eventually(LIMIT, "an empty queue", async || (world.ready_messages("jobs.default").await == 0).then_some(())).await;
}

#[tokio::test]
async fn wrong_credentials_pause_the_bot_and_are_said_without_the_secret() {
    let mut world = World::with(|setup| {
        setup.set("bots.default.client_secret", "quite-the-wrong-secret");
    })
    .await;
    let worker = world.start_worker().await;
    let job = json!({"job_id": "kept", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    worker.logs("credentials").await;
    assert!(!worker.log().contains("quite-the-wrong-secret"));
    assert!(world.outcomes_of("kept").await.is_empty(), "the job stays queued");
    assert!(world.dead_letters().await.is_empty());

    worker.kill9().await;
    world.change_settings(|setup| {
        setup.set("bots.default.client_secret", "sandbox-secret");
    });
    let _worker = world.start_worker().await;
    world.expect_applied("kept").await;
}
