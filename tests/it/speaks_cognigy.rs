//! A bot of the dialect `cognigy-v2`: what its API can do is done, one writer at a time; what it cannot is refused with
//! the setting that would declare it; and where half of a job happened, the outcome says so.

use context_injector::sandbox::{Scope, Settings};
use serde_json::{Value, json};

use crate::world::{BOT, Outcome, World};

/// Ids that hold the user and the session.
const IDS: &str = "(?<user>[^/]+)/(?<session>[^/]+)";
const USER: &str = "profile/me@example.com";
const SESSION: &str = "session/s 1/me@example.com";
const CONVERSATION: &str = "me@example.com/s 1";

async fn world(semantics: &str, sandbox: impl FnOnce(&mut Settings)) -> World {
    let world = World::with(|setup| {
        setup
            .set("bots.default.dialect", "cognigy-v2")
            .set("bots.default.conversation_id_pattern", IDS)
            .set("bots.default.merge_semantics", semantics);
        setup.sandbox.v2.requests = 0;
        sandbox(&mut setup.sandbox);
    })
    .await;
    world.sandbox.seed(USER, []);
    world
}

fn job(id: &str, variables: Value) -> Value {
    json!({"job_id": id, "conversation_id": CONVERSATION, "variables": variables})
}

fn of_session(world: &World, key: &str) -> Option<Value> {
    world.sandbox.conversation(SESSION)?.get(Scope::Session, key).cloned()
}

fn of_user(world: &World, key: &str) -> Option<Value> {
    world.sandbox.conversation(USER)?.get(Scope::User, key).cloned()
}

fn reason_text(outcome: &Outcome) -> String {
    outcome.event["data"]["reason"]["text"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn plain_values_go_to_the_session_and_to_the_profile_of_its_user() {
    let world = world("undeclared", |_| {}).await;
    let _worker = world.start_worker().await;
    let variables = json!({
        "cart": {"value": {"total": 149.99}, "scope": "session"},
        "intent": {"value": "checkout"},
        "tier": {"value": "premium", "scope": "user"}
    });
    world.publish_job(&job("plain", variables)).await;
    let outcome = world.expect_applied("plain").await;
    assert_eq!(outcome.event["data"]["guarantee"], "serialised");
    assert_eq!((outcome.result("cart"), outcome.result("tier")), ("written", "written"));
    assert_eq!(of_session(&world, "cart"), Some(json!({"total": 149.99})));
    assert_eq!(of_session(&world, "intent"), Some(json!("checkout")));
    assert_eq!(of_user(&world, "tier"), Some(json!("premium")));
}

#[tokio::test]
async fn an_api_key_does_without_tokens() {
    let world = World::with(|setup| {
        setup.set("bots.default.dialect", "cognigy-v2").set("bots.default.api_key", "sandbox-key");
    })
    .await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world
        .publish_job(&json!({"job_id": "key", "conversation_id": conversation, "variables": {"a": {"value": 1}}}))
        .await;
    world.expect_applied("key").await;
    assert_eq!(world.sandbox.stats().token_requests, 0);
}

#[tokio::test]
async fn what_nobody_declared_is_refused_with_the_setting_that_would_declare_it() {
    let world = world("undeclared", |_| {}).await;
    let _worker = world.start_worker().await;
    let operations = [
        ("delete", json!({"op": "delete"})),
        ("increment", json!({"op": "increment", "scope": "user"})),
        ("append", json!({"op": "append", "value": 1, "scope": "user"})),
        ("template", json!({"template": "{{user.name}}"})),
        ("unreadable", json!({"op": "increment", "scope": "session"})),
    ];
    for (id, operation) in &operations {
        world.publish_job(&job(id, json!({"k": operation}))).await;
    }
    for (id, _) in &operations {
        let outcome = world.expect_refused(id, "unsupported_by_dialect").await;
        assert!(reason_text(&outcome).contains("merge_semantics"), "{}", outcome.event);
    }
    assert_eq!(world.sandbox.stats().writes, 0);
}

#[tokio::test]
async fn with_declared_semantics_the_profile_takes_every_operation_once() {
    let world = world("shallow", |_| {}).await;
    world.sandbox.seed(USER, [(Scope::User, "name", json!("Max")), (Scope::User, "n", json!(1))]);
    let _worker = world.start_worker().await;
    let variables = json!({
        "n": {"op": "increment", "by": "0.5", "scope": "user"},
        "visits": {"op": "append", "value": "web", "scope": "user"},
        "greeting": {"template": "Hello {{user.name}}, {{user.n}}"}
    });
    let first = job("first", variables);
    for _ in 0..2 {
        world.publish_job(&first).await;
    }
    world.publish_job(&job("second", json!({"n": {"op": "increment", "scope": "user"}}))).await;
    world
        .publish_job(&job("third", json!({"greeting": {"op": "delete"}, "name": {"op": "delete", "scope": "user"}})))
        .await;
    world.expect_applied("first").await;
    world.expect_applied("third").await;
    assert_eq!(of_user(&world, "n"), Some(json!(2.5)), "the repeated job counts once");
    assert_eq!(of_user(&world, "visits"), Some(json!(["web"])));
    assert_eq!((of_session(&world, "greeting"), of_user(&world, "name")), (None, None));
    let greeting =
        world.sandbox.history().into_iter().flat_map(|entry| entry.changes).find(|change| &*change.key == "greeting");
    assert_eq!(greeting.unwrap().new.as_deref(), Some(&json!("Hello Max, 1.5")));
    assert!(of_user(&world, "_injection_ledger").is_some(), "the record is in the profile");
    assert!(of_session(&world, "_injection_ledger").is_none());
    assert_eq!(world.outcomes_of("first").await.len(), 2);
}

#[tokio::test]
async fn the_record_in_the_profile_outlives_worker_and_redis() {
    let mut world = World::with_private_servers(|setup| {
        setup
            .set("bots.default.dialect", "cognigy-v2")
            .set("bots.default.conversation_id_pattern", IDS)
            .set("bots.default.merge_semantics", "shallow");
        // Applied, and the answer never comes: then the worker is killed.
        let faults = json!({"hang_after": {"count": 1, "only": {"methods": ["PATCH"]}}});
        setup.sandbox.faults = serde_json::from_value(faults).unwrap();
    })
    .await;
    world.sandbox.seed(USER, []);
    let worker = world.start_worker().await;
    world.publish_job(&job("once", json!({"n": {"op": "increment", "scope": "user"}}))).await;
    crate::world::eventually(crate::world::LIMIT, "the increment", async || of_user(&world, "n")).await;
    worker.kill9().await;
    world.servers().redis().wipe().await.unwrap();
    let _worker = world.start_worker().await;
    world.expect_applied("once").await;
    assert_eq!(of_user(&world, "n"), Some(json!(1)));
}

#[tokio::test]
async fn a_person_who_prevents_data_collection_gets_no_data() {
    let world = world("undeclared", |_| {}).await;
    world.sandbox.seed(USER, [(Scope::User, "prevent_data_collection", json!(true))]);
    let _worker = world.start_worker().await;
    world.publish_job(&job("both", json!({"a": {"value": 1}, "tier": {"value": "x", "scope": "user"}}))).await;
    let outcome = world.expect_refused("both", "refused_by_target").await;
    assert!(reason_text(&outcome).contains("prevent_data_collection"), "{}", outcome.event);
    world.publish_job(&job("session", json!({"b": {"value": 1}}))).await;
    world.expect_applied("session").await;
    assert_eq!((of_session(&world, "a"), of_user(&world, "tier")), (None, None));
}

#[tokio::test]
async fn a_job_of_which_half_happened_is_unknown_and_the_jobs_around_it_are_not() {
    let world = world("undeclared", |sandbox| {
        sandbox.faults = serde_json::from_value(json!({"parameters": {"refused_keys": ["poison"]}})).unwrap();
    })
    .await;
    let user = |id: &str, key: &str| job(id, json!({key: {"value": id, "scope": "user"}}));
    world
        .publish_jobs(&[
            user("u1", "one"),
            user("u2", "poison"),
            user("u3", "three"),
            job("half", json!({"a": {"value": 1}, "poison": {"value": 1, "scope": "user"}})),
            job("after", json!({"b": {"value": 2}})),
        ])
        .await;
    let _worker = world.start_worker().await;
    for id in ["u1", "u3", "after"] {
        world.expect_applied(id).await;
    }
    world.expect_refused("u2", "refused_by_target").await;
    let half = world.expect_outcome("half").await;
    assert_eq!((half.verdict(), half.reason()), ("unknown", "ambiguous_write"), "{}", half.event);
    assert!(reason_text(&half).contains("the context was written, the profile was not"), "{}", half.event);
    assert_eq!((of_session(&world, "a"), of_user(&world, "poison")), (Some(json!(1)), None));
}

#[tokio::test]
async fn conflicts_outages_and_pauses_pass() {
    let world = world("undeclared", |sandbox| {
        let faults = json!({
            "spurious_conflict": {"count": 1}, "applied_then_500": {"count": 1}, "throttle": {"count": 1},
            "parameters": {"retry_after": ["absent"]}
        });
        sandbox.faults = serde_json::from_value(faults).unwrap();
    })
    .await;
    let _worker = world.start_worker().await;
    world.publish_job(&job("stormy", json!({"a": {"value": 1}}))).await;
    world.expect_applied("stormy").await;
    assert_eq!(of_session(&world, "a"), Some(json!(1)));
}

#[tokio::test]
async fn what_the_platform_does_not_have_or_take_is_told_with_its_numbers() {
    let world = world("undeclared", |sandbox| sandbox.v2.max_context_bytes = 100).await;
    let _worker = world.start_worker().await;
    world.publish_job(&job("large", json!({"a": {"value": "x".repeat(200)}}))).await;
    let outcome = world.expect_refused("large", "refused_by_target").await;
    assert!(reason_text(&outcome).contains("413"), "{}", outcome.event);
    world.sandbox.delete_conversation(USER);
    world.publish_job(&job("gone", json!({"a": {"value": 1, "scope": "user"}}))).await;
    let outcome = world.expect_refused("gone", "conversation_not_found").await;
    assert!(reason_text(&outcome).contains("1002"), "{}", outcome.event);
    let body = job("payload", json!({"a": {"value": "x".repeat(9_000)}, "b": {"value": "x".repeat(9_000)}}));
    let mut wide = body;
    for number in 0..7 {
        wide["variables"][format!("v{number}")] = json!({"value": "x".repeat(9_000)});
    }
    world.publish_job(&wide).await;
    let outcome = world.expect_refused("payload", "payload_too_large").await;
    assert!(reason_text(&outcome).contains("60000"), "the default of the dialect: {}", outcome.event);
    assert_eq!(outcome.routing_key, format!("{BOT}.not_applied"));
}
