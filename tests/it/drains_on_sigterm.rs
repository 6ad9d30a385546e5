//! A stop loses nothing and does nothing twice: what is in flight is finished, what has not begun goes back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::world::{LIMIT, World, eventually};

const JOBS: usize = 400;

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_it_holds_and_returns_the_rest() {
    let world = World::with(|setup| {
        setup.set("bots.default.concurrency", 4);
    })
    .await;
    world.faults(json!({"parameters": {"latency_ms": [20, 40]}})).await;
    world.subscribe().await;
    let conversations: Vec<String> = (0..40).map(|_| world.conversation()).collect();
    let jobs: Vec<Value> = (0..JOBS)
        .map(|n| {
            json!({"job_id": format!("n-{n}"), "conversation_id": conversations[n % 40], "coalesce": false,
                   "variables": {"n": {"op": "increment"}}})
        })
        .collect();
    world.publish_jobs(&jobs).await;
    let worker = world.start_worker().await;
    eventually(LIMIT, "the first outcomes", async || (world.outcomes().await.len() >= 20).then_some(())).await;

    worker.terminate();
    assert_eq!(worker.wait_exit().await, 0, "a drain that is in time is a success");
    let told: BTreeSet<String> =
        world.outcomes().await.iter().filter_map(|outcome| outcome.job_id().map(str::to_owned)).collect();
    let waiting = world.ready_messages("jobs.default").await as usize;
    assert!(waiting > 0, "it was stopped in the middle");
    assert_eq!(told.len() + waiting, JOBS, "what was told is settled, what was not is back in the queue");

    let _worker = world.start_worker().await;
    for n in 0..JOBS {
        world.expect_applied(&format!("n-{n}")).await;
    }
    assert_eq!(world.outcomes().await.len(), JOBS, "nothing was told twice");
    for conversation in conversations {
        assert_eq!(world.value(&conversation, "n").await.as_u64(), Some(JOBS as u64 / 40));
    }
}

#[tokio::test]
async fn a_relay_that_is_told_to_stop_ends_well() {
    let world = World::with(|setup| {
        setup.endpoint("analytics", "http://127.0.0.1:9/hooks");
    })
    .await;
    let relay = world.start_relay().await;
    relay.terminate();
    assert_eq!(relay.wait_exit().await, 0);
}
