//! What others wrote survives, and a job says what is to happen where both wrote the same key.

use serde_json::{Value, json};

use crate::world::{Outcome, World};

/// Our job sets `mine` and `both`; somebody else then sets `both` and `theirs`; our second job sets `both` again.
async fn both_write(world: &World, on_conflict: &str) -> (Outcome, Value) {
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = |id: &str, value: &str| {
        json!({"job_id": id, "conversation_id": conversation, "on_conflict": on_conflict,
               "variables": {"mine": {"value": value}, "both": {"value": value}}})
    };
    world.publish_job(&job("first", "ours")).await;
    world.expect_applied("first").await;
    let other = json!({"value": "of the other", "scope": "conversation"});
    world.write_as_another(&conversation, json!({"both": other, "theirs": other})).await;
    world.publish_job(&job("second", "ours again")).await;
    let outcome = world.expect_outcome("second").await;
    let context = world.target(&conversation).await["context"].clone();
    assert_eq!(context["theirs"]["value"], "of the other", "a key that only they wrote is never touched");
    (outcome, context)
}

#[tokio::test]
async fn overwrite_writes_ours_after_having_seen_theirs() {
    let world = World::new().await;
    let (outcome, context) = both_write(&world, "overwrite").await;
    assert_eq!(outcome.verdict(), "applied");
    assert_eq!(outcome.result("both"), "written");
    assert_eq!(context["both"]["value"], "ours again");
    assert_eq!(world.stats().await["unconditional_writes"].as_u64(), Some(1), "only the other writer's");
}

#[tokio::test]
async fn keep_theirs_leaves_their_value_and_writes_the_rest() {
    let world = World::new().await;
    let (outcome, context) = both_write(&world, "keep_theirs").await;
    assert_eq!(outcome.verdict(), "applied");
    assert_eq!((outcome.result("both"), outcome.result("mine")), ("kept_theirs", "written"));
    assert_eq!(context["both"]["value"], "of the other");
    assert_eq!(context["mine"]["value"], "ours again");
}

#[tokio::test]
async fn fail_refuses_the_whole_job() {
    let world = World::new().await;
    let (outcome, context) = both_write(&world, "fail").await;
    assert_eq!((outcome.verdict(), outcome.reason()), ("not_applied", "conflict"));
    assert_eq!(context["both"]["value"], "of the other");
    assert_eq!(context["mine"]["value"], "ours");
}

#[tokio::test]
async fn an_increment_counts_on_from_what_the_other_writer_left() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = |id: &str| json!({"job_id": id, "conversation_id": conversation, "variables": {"n": {"op": "increment", "by": 5}}});
    world.publish_job(&job("first")).await;
    world.expect_applied("first").await;
    world.write_as_another(&conversation, json!({"n": {"value": 100, "scope": "conversation"}})).await;
    world.publish_job(&job("second")).await;
    world.expect_applied("second").await;
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(105));
}

#[tokio::test]
async fn a_target_that_says_412_instead_of_409_is_understood() {
    let world = World::new().await;
    world.faults(json!({"swapped_conflict": 1})).await;
    let (outcome, context) = both_write(&world, "overwrite").await;
    assert_eq!(outcome.verdict(), "applied");
    assert_eq!(context["both"]["value"], "ours again");
}

#[tokio::test]
async fn a_target_that_applies_and_answers_500_gets_nothing_twice() {
    let world = World::new().await;
    world.faults(json!({"applied_then_500": {"count": 20}})).await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    for n in 0..20 {
        let job = json!({"job_id": format!("n-{n}"), "conversation_id": conversation,
                         "variables": {"n": {"op": "increment"}, "all": {"op": "append", "value": n}}});
        world.publish_job(&job).await;
        world.expect_applied(&format!("n-{n}")).await;
    }
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(20));
    assert_eq!(world.value(&conversation, "all").await, (0..20).collect::<Value>());
}
