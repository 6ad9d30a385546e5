//! A worker that hangs loses its queue to a standby; when it wakes up it does nothing a second time.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::world::{LIMIT, World, eventually};

const JOBS: usize = 600;
const CONVERSATIONS: usize = 20;

#[tokio::test]
async fn a_standby_takes_over_from_a_worker_that_hangs_and_wakes_up_later() {
    let mut world = World::new().await;
    // The default of 10 s would be as right and take longer.
    let url = format!("{}?heartbeat=2", world.amqp_url);
    world.change_settings(|setup| {
        setup.set("amqp.url", url.as_str()).set("bots.default.concurrency", 4);
    });
    world.faults(json!({"parameters": {"latency_ms": [5, 20]}})).await;
    world.subscribe().await;
    let active = world.start_worker().await;
    let _standby = world.start_worker().await;
    let conversations: Vec<String> = (0..CONVERSATIONS).map(|_| world.conversation()).collect();
    let jobs: Vec<Value> = (0..JOBS)
        .map(|n| {
            json!({"job_id": format!("n-{n}"), "conversation_id": conversations[n % CONVERSATIONS], "coalesce": false,
                   "variables": {"n": {"op": "increment"}, "all": {"op": "append", "value": n}}})
        })
        .collect();
    world.publish_jobs(&jobs).await;
    eventually(LIMIT, "the first outcomes", async || (world.outcomes().await.len() >= 50).then_some(())).await;

    active.suspend();
    eventually(LIMIT, "an outcome of every job", async || (different(&world).await == JOBS).then_some(())).await;
    active.resume();
    // It has noticed that its connection is gone, and stands by.
    active.ready().await;
    let outcomes = world.outcomes().await;
    let writers: BTreeSet<&str> = outcomes.iter().filter_map(|outcome| outcome.event["writer"].as_str()).collect();
    assert_eq!(writers.len(), 2, "both workers worked");

    let last: Vec<Value> = conversations
        .iter()
        .map(|id| json!({"job_id": format!("last-{id}"), "conversation_id": id, "variables": {"z": {"value": 1}}}))
        .collect();
    world.publish_jobs(&last).await;
    for id in &conversations {
        world.expect_applied(&format!("last-{id}")).await;
    }
    for (at, id) in conversations.iter().enumerate() {
        let context = world.target(id).await["context"].clone();
        let expected = JOBS / CONVERSATIONS;
        assert_eq!(context["n"]["value"].as_u64(), Some(expected as u64), "{id}");
        let all: Value = (0..expected).map(|n| at + n * CONVERSATIONS).collect();
        assert_eq!(context["all"]["value"], all, "{id}: each once and in order");
    }
    let ids: BTreeSet<String> = world.outcomes().await.iter().map(|outcome| outcome.id().to_owned()).collect();
    assert_eq!(ids.len(), JOBS + CONVERSATIONS, "one event of each job");
}

async fn different(world: &World) -> usize {
    let outcomes = world.outcomes().await;
    outcomes.iter().filter_map(|outcome| outcome.job_id()).collect::<BTreeSet<_>>().len()
}
