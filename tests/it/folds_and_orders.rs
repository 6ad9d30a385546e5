//! What waits for one conversation is folded into one PATCH, in order; other conversations are not held up.

use serde_json::{Value, json};

use crate::world::{LIMIT, World, eventually};

#[tokio::test]
async fn what_waits_for_a_conversation_is_folded_in_order() {
    let world = World::new().await;
    world.subscribe().await;
    let conversation = world.conversation();
    let jobs: Vec<Value> = (0..100)
        .map(|n| {
            json!({"job_id": format!("fold-{n}"), "conversation_id": conversation, "variables": {
                "last": {"value": n}, "all": {"op": "append", "value": n}, "count": {"op": "increment"}
            }})
        })
        .collect();
    world.publish_jobs(&jobs).await;

    let _worker = world.start_worker().await;
    for n in 0..100 {
        world.expect_applied(&format!("fold-{n}")).await;
    }

    assert_eq!(world.value(&conversation, "last").await.as_i64(), Some(99));
    assert_eq!(world.value(&conversation, "count").await.as_i64(), Some(100));
    assert_eq!(world.value(&conversation, "all").await, (0..100).collect::<Value>());
    let writes = world.stats().await["writes"].as_u64().unwrap();
    assert!(writes < 50, "100 jobs took {writes} writes");
    let outcomes = world.outcomes().await;
    let largest = outcomes.iter().filter_map(|outcome| outcome.event["data"]["batch_size"].as_u64()).max();
    assert!(largest > Some(1), "{largest:?}");
    let order: Vec<_> = outcomes.iter().map(|outcome| outcome.job_id().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..100).map(|n| format!("fold-{n}")).collect();
    assert_eq!(order, expected, "outcomes of one conversation come in order");
}

#[tokio::test]
async fn a_job_that_waits_twice_in_one_batch_takes_effect_once() {
    let world = World::new().await;
    world.subscribe().await;
    let conversation = world.conversation();
    let job = |id: &str| {
        json!({"job_id": id, "conversation_id": conversation,
               "variables": {"n": {"op": "increment"}, "all": {"op": "append", "value": id}}})
    };
    // While the first one is under way, the others gather.
    world.faults(json!({"parameters": {"latency_ms": [200, 200]}})).await;
    world.publish_jobs(&[job("first"), job("a"), job("b"), job("a"), job("a"), job("c")]).await;
    let _worker = world.start_worker().await;
    world.expect_applied("c").await;
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(4));
    assert_eq!(world.value(&conversation, "all").await, json!(["first", "a", "b", "c"]));
    let told = world.outcomes_of("a").await;
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|outcome| outcome.id() == told[0].id() && outcome.verdict() == "applied"));
}

#[tokio::test]
async fn a_conversation_that_hangs_does_not_hold_up_another() {
    let world = World::new().await;
    let (hanging, other) = (world.conversation(), world.conversation());
    world.faults(json!({"hang_before": {"probability": 1, "only": {"conversation": format!("^{hanging}$")}}})).await;
    let _worker = world.start_worker().await;
    world.publish_job(&json!({"job_id": "hangs", "conversation_id": hanging, "variables": {"a": {"value": 1}}})).await;
    world.publish_job(&json!({"job_id": "goes", "conversation_id": other, "variables": {"a": {"value": 1}}})).await;
    world.expect_applied("goes").await;
    assert!(world.outcomes_of("hangs").await.is_empty());
}

#[tokio::test]
async fn a_name_in_two_scopes_is_two_variables_and_both_are_written() {
    let world = World::new().await;
    world.subscribe().await;
    let conversation = world.conversation();
    let job = |id: &str, scope: &str| {
        json!({"job_id": id, "conversation_id": conversation,
               "variables": {"tier": {"value": format!("of the {scope}"), "scope": scope}}})
    };
    world.publish_jobs(&[job("one", "user"), job("two", "session"), job("three", "user")]).await;
    let _worker = world.start_worker().await;
    for id in ["one", "two", "three"] {
        world.expect_applied(id).await;
    }
    let entries = world.target(&conversation).await["context"]["tier"].clone();
    let mut values: Vec<_> = entries.as_array().unwrap().iter().map(|entry| entry["value"].to_string()).collect();
    values.sort();
    assert_eq!(values, ["\"of the session\"", "\"of the user\""]);
}

#[tokio::test]
async fn a_job_that_fails_ends_alone_and_those_around_it_go_on() {
    let world = World::new().await;
    world.subscribe().await;
    let conversation = world.conversation();
    world.seed(&conversation, json!({"text": {"value": "no number", "scope": "conversation"}})).await;
    let job = |id: &str, key: &str| json!({"job_id": id, "conversation_id": conversation, "variables": {key: {"op": "increment"}}});
    world.publish_jobs(&[job("before", "n"), job("wrong", "text"), job("after", "n")]).await;
    let _worker = world.start_worker().await;
    world.expect_applied("before").await;
    world.expect_refused("wrong", "type_mismatch").await;
    world.expect_applied("after").await;
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(2));
    assert_eq!(world.value(&conversation, "text").await, "no number");
}

#[tokio::test]
async fn a_job_that_failed_at_the_target_is_not_overtaken_by_later_ones_of_its_conversation() {
    let world = World::with(|setup| {
        setup.set("retry.schedule", vec!["200ms", "500ms", "1s"]);
    })
    .await;
    let conversation = world.conversation();
    // More failures in a row than the tries in place, so that the first job goes to the ladder.
    world.faults(json!({"server_error": {"count": 6, "only": {"methods": ["PATCH"]}}})).await;
    let _worker = world.start_worker().await;
    let jobs: Vec<Value> = (0..10)
        .map(|n| {
            json!({"job_id": format!("rung-{n}"), "conversation_id": conversation,
                   "coalesce": false, "variables": {"all": {"op": "append", "value": n}}})
        })
        .collect();
    world.publish_jobs(&jobs).await;
    for n in 0..10 {
        world.expect_applied(&format!("rung-{n}")).await;
    }
    assert_eq!(world.value(&conversation, "all").await, (0..10).collect::<Value>());
}

#[tokio::test]
async fn a_target_that_is_throttled_is_waited_for_and_every_job_is_applied() {
    let world = World::new().await;
    world.faults(json!({"throttle": {"count": 4}, "parameters": {"retry_after": ["1", "date:1"]}})).await;
    let worker = world.start_worker().await;
    for n in 0..20 {
        let conversation = world.conversation();
        let job = json!({"job_id": format!("slow-{n}"), "conversation_id": conversation,
                         "variables": {"n": {"op": "increment"}}});
        world.publish_job(&job).await;
    }
    for n in 0..20 {
        let outcome = world.expect_applied(&format!("slow-{n}")).await;
        assert_eq!(outcome.event["data"]["replay_generation"], 0);
    }
    assert!(worker.runs());
    eventually(LIMIT, "an empty queue", async || (world.ready_messages("jobs.default").await == 0).then_some(())).await;
}
