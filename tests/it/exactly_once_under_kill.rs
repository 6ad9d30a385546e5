//! The worker is killed with SIGKILL again and again in the middle of its work: nothing is lost, nothing doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{World, eventually};

const JOBS: usize = 5_000;
const CONVERSATIONS: usize = 100;
/// Debug builds on two cores that other tests use too.
const ALL_WITHIN: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_increments_take_effect_once_each() {
    let world = World::with(|setup| {
        setup.set("retry.schedule", vec!["200ms", "500ms", "1s"]);
    })
    .await;
    world
        .faults(json!({
            "server_error": 0.015, "applied_then_500": 0.015, "reset_after": 0.005, "reset_before": 0.005,
            "parameters": {"latency_ms": [1, 5]}
        }))
        .await;
    let conversations: Vec<String> = (0..CONVERSATIONS).map(|_| world.conversation()).collect();
    let jobs: Vec<Value> = (0..JOBS)
        .map(|n| {
            json!({"job_id": format!("n-{n}"), "conversation_id": conversations[n % CONVERSATIONS],
                   "variables": {"n": {"op": "increment", "by": 1}, "all": {"op": "append", "value": n}}})
        })
        .collect();
    world.subscribe().await;
    world.publish_jobs(&jobs[..JOBS / 2]).await;

    let mut worker = world.start_worker().await;
    for kill in 1..=5 {
        let enough = kill * JOBS / 8;
        eventually(ALL_WITHIN, &format!("{enough} outcomes"), async || {
            (distinct(&world).await.len() >= enough).then_some(())
        })
        .await;
        if kill == 2 {
            world.publish_jobs(&jobs[JOBS / 2..]).await;
        }
        worker.kill9().await;
        worker = world.start_worker().await;
    }
    eventually(ALL_WITHIN, "an outcome of every job", async || (distinct(&world).await.len() == JOBS).then_some(()))
        .await;

    for (job, (events, verdicts)) in told(&world).await {
        assert_eq!(events.len(), 1, "{job} has one event, however often it is told");
        assert_eq!(verdicts, BTreeSet::from(["applied".to_owned()]), "{job}");
    }
    for (at, conversation) in conversations.iter().enumerate() {
        let context = world.target(conversation).await["context"].clone();
        let expected = JOBS / CONVERSATIONS;
        assert_eq!(context["n"]["value"].as_u64(), Some(expected as u64), "{conversation}");
        let all: Value = (0..expected).map(|n| at + n * CONVERSATIONS).collect();
        assert_eq!(context["all"]["value"], all, "{conversation}: each once and in order");
    }
    assert!(world.dead_letters().await.is_empty());
    assert!(world.messages("jobs.quarantine").await.is_empty());
}

async fn distinct(world: &World) -> BTreeSet<String> {
    world.outcomes().await.iter().filter_map(|outcome| outcome.job_id().map(str::to_owned)).collect()
}

async fn told(world: &World) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let mut told: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for outcome in world.outcomes().await {
        let (events, verdicts) = told.entry(outcome.job_id().unwrap().to_owned()).or_default();
        events.insert(outcome.id().to_owned());
        verdicts.insert(outcome.verdict().to_owned());
    }
    told
}
