//! Redis is contention control and a cache: without it work goes on, says so, and is as right as before.

use serde_json::json;

use crate::world::{LIMIT, World, eventually};

#[tokio::test]
async fn jobs_are_applied_while_redis_is_away_and_after_it_was_wiped() {
    let mut world = World::with_private_servers(|_| {}).await;
    let worker = world.start_worker().await;
    let conversation = world.conversation();
    let job =
        |id: &str| json!({"job_id": id, "conversation_id": conversation, "variables": {"n": {"op": "increment"}}});
    world.publish_job(&job("with")).await;
    world.expect_applied("with").await;

    world.servers().redis().kill9().await.unwrap();
    world.publish_job(&job("without")).await;
    world.expect_applied("without").await;
    // The call that failed is reported to the task that keeps the connection; that may take a moment.
    eventually(LIMIT, "readiness says that Redis is away", async || {
        let (status, said) = worker.page("/readyz").await.unwrap();
        assert_eq!(status, 200, "it is ready without Redis: {said}");
        said.to_lowercase().contains("redis").then_some(())
    })
    .await;

    world.servers().redis().start_again().await.unwrap();
    world.servers().redis().wipe().await.unwrap();
    for id in ["with", "without", "again"] {
        world.publish_job(&job(id)).await;
    }
    world.expect_applied("again").await;
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(3), "the two repeats were recognised");
}

#[tokio::test]
async fn a_redis_that_hangs_holds_nothing_up_for_long() {
    let mut world = World::with_private_servers(|_| {}).await;
    let _worker = world.start_worker().await;
    world.servers().redis().suspend().unwrap();
    for n in 0..5 {
        let job = json!({"job_id": format!("n-{n}"), "conversation_id": world.conversation(),
                         "variables": {"n": {"op": "increment"}}});
        world.publish_job(&job).await;
    }
    for n in 0..5 {
        world.expect_applied(&format!("n-{n}")).await;
    }
    world.servers().redis().resume().unwrap();
}
