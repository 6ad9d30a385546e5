//! A job is applied: its values are in the conversation, and one event says so.

use serde_json::{Value, json};

use crate::world::{Properties, World};

#[tokio::test]
async fn the_reference_example_is_in_the_conversation_and_in_one_event() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let mut job: Value = serde_json::from_str(include_str!("../../deploy/demo/reference.json")).unwrap();
    let conversation = world.conversation();
    job["conversation_id"] = json!(conversation);
    let job_id = job["job_id"].as_str().unwrap().to_owned();

    world.publish_job(&job).await;
    let outcome = world.expect_applied(&job_id).await;

    let context = world.target(&conversation).await["context"].clone();
    assert_eq!(context["customer_tier"], json!({"value": "premium", "scope": "user"}));
    assert_eq!(context["cart_total"]["value"].as_f64(), Some(149.99));
    assert_eq!(context["cart_total"]["scope"], "session");
    assert_eq!(context["last_intent"]["value"], "checkout_flow");
    assert_eq!(context["greeting"]["value"], "Welcome premium user. Your cart contains 149.99.");

    let event = &outcome.event;
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "context-injector.outcome.v1");
    assert_eq!(event["source"], "/bots/default");
    assert_eq!(event["subject"], conversation.as_str());
    assert_eq!(event["datacontenttype"], "application/json");
    assert_eq!(outcome.routing_key, "default.applied");
    let data = &event["data"];
    assert_eq!(data["bot"], "default");
    assert_eq!(data["conversation_id"], conversation.as_str());
    assert_eq!(data["guarantee"], "exactly_once");
    assert_eq!(data["reason"], Value::Null);
    assert_eq!(data["replay_generation"], 0);
    assert_ne!(data["version_before"], data["version_after"]);
    for key in ["customer_tier", "cart_total", "last_intent", "greeting"] {
        assert_eq!(outcome.result(key), "written", "{key}");
    }
    assert!(!event.to_string().contains("149.99"), "an event holds no values: {event}");
    assert_eq!(world.outcomes().await.len(), 1);
}

#[tokio::test]
async fn the_plainest_form_with_a_message_id_is_a_job() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let body = json!({
        "conversation_id": conversation,
        "variables": { "tier": { "key": "tier", "value": "gold", "scope": "user" } }
    });

    let properties = Properties::default().with_message_id("plain-1".into());
    world.publish_raw(body.to_string().as_bytes(), properties).await;

    world.expect_applied("plain-1").await;
    assert_eq!(world.target(&conversation).await["context"]["tier"], json!({"value": "gold", "scope": "user"}));
}

#[tokio::test]
async fn every_operation_does_what_it_says() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world
        .seed(
            &conversation,
            json!({
                "kept": {"value": "old", "scope": "conversation"},
                "total": {"value": 0.1, "scope": "session"},
                "list": {"value": ["a", "b", "a"], "scope": "conversation"},
                "recent": {"value": [1, 2, 3], "scope": "conversation"},
                "gone": {"value": true, "scope": "global"},
                "theirs": {"value": "untouched", "scope": "user"}
            }),
        )
        .await;

    world
        .publish_job(&json!({
            "job_id": "operations", "conversation_id": conversation,
            "variables": {
                "kept": {"op": "set_if_absent", "value": "new"},
                "first": {"op": "set_if_absent", "value": "new"},
                "total": {"op": "increment", "by": "0.2", "scope": "session"},
                "count": {"op": "increment"},
                "list": {"op": "remove", "value": "a"},
                "recent": {"op": "append", "value": 4, "max_items": 3},
                "gone": {"op": "delete", "scope": "global"}
            }
        }))
        .await;
    let outcome = world.expect_applied("operations").await;

    let context = world.target(&conversation).await["context"].clone();
    assert_eq!(context["kept"]["value"], "old");
    assert_eq!(outcome.result("kept"), "unchanged");
    assert_eq!(context["first"]["value"], "new");
    assert_eq!(context["total"]["value"].as_f64(), Some(0.3), "added in decimals, not in binary floating point");
    assert_eq!(context["count"]["value"].as_i64(), Some(1));
    assert_eq!(context["list"]["value"], json!(["b"]));
    assert_eq!(context["recent"]["value"], json!([2, 3, 4]));
    assert_eq!(context["gone"], Value::Null);
    assert_eq!(context["theirs"], json!({"value": "untouched", "scope": "user"}));
}

#[tokio::test]
async fn a_plain_name_in_a_template_means_session_then_user_then_conversation_then_global() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let scopes = |scopes: &[&str]| -> Value {
        scopes.iter().map(|scope| json!({"value": format!("of the {scope}"), "scope": scope})).collect()
    };
    world
        .seed(
            &conversation,
            json!({
                "a": scopes(&["global", "conversation", "user", "session"]),
                "b": scopes(&["global", "conversation", "user"]),
                "c": scopes(&["global", "conversation"]),
                "d": scopes(&["global"])
            }),
        )
        .await;

    world
        .publish_job(&json!({
            "job_id": "scopes", "conversation_id": conversation,
            "variables": { "text": { "template": "{{a}}, {{b}}, {{c}}, {{ d }}, {{user.a}}, {{nobody}}" } }
        }))
        .await;
    let outcome = world.expect_applied("scopes").await;

    let text = "of the session, of the user, of the conversation, of the global, of the user, {{nobody}}";
    assert_eq!(world.value(&conversation, "text").await, text);
    assert!(outcome.event["data"]["unresolved"].to_string().contains("nobody"), "{}", outcome.event);
}

#[tokio::test]
async fn rendered_templates_are_in_the_event_where_the_bot_allows_values() {
    let world = World::with(|setup| {
        setup.set("bots.default.values_in_events", true);
    })
    .await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world
        .publish_job(&json!({
            "job_id": "rendered", "conversation_id": conversation,
            "variables": { "tier": {"value": "gold", "scope": "user"} },
            "templates": { "note": "Tier {{user.tier}}" }
        }))
        .await;
    let outcome = world.expect_applied("rendered").await;
    assert_eq!(outcome.event["data"]["templates"]["note"], "Tier gold", "{}", outcome.event);
    assert_eq!(world.value(&conversation, "note").await, Value::Null, "a template of the event is not written");
}

#[tokio::test]
async fn the_trace_of_the_producer_goes_on_in_the_event() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let mut headers = lapin::types::FieldTable::default();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    headers.insert("traceparent".into(), lapin::types::AMQPValue::LongString(parent.into()));
    let job = json!({"job_id": "traced", "conversation_id": conversation, "variables": {"a": {"value": 1}}});
    world.publish_raw(job.to_string().as_bytes(), Properties::default().with_headers(headers)).await;
    let outcome = world.expect_applied("traced").await;
    assert!(outcome.event["traceparent"].as_str().is_some_and(|text| text.contains(trace)), "{}", outcome.event);
    let sent = world.history().await.into_iter().find_map(|entry| entry["traceparent"].as_str().map(str::to_owned));
    assert!(sent.is_some_and(|text| text.contains(trace)), "the PATCH carries the trace");
}

#[tokio::test]
async fn a_job_that_is_sent_twice_takes_effect_once_and_repeats_its_event() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = json!({"job_id": "twice", "conversation_id": conversation, "variables": {"n": {"op": "increment"}}});
    world.publish_job(&job).await;
    world.expect_applied("twice").await;
    world.publish_job(&job).await;
    let last = json!({"job_id": "last", "conversation_id": conversation, "variables": {"z": {"value": 1}}});
    world.publish_job(&last).await;
    world.expect_applied("last").await;

    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(1));
    let outcomes = world.outcomes_of("twice").await;
    assert_eq!(outcomes.len(), 2, "the repeat is told too");
    assert_eq!(outcomes[0].id(), outcomes[1].id(), "as the same event");
}
