//! Bad input ends as an event and a dead letter with a code of the closed list; the worker goes on.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::world::{LIMIT, Outcome, Properties, World, eventually};

/// A case: its name, the body, what must be told about it.
struct Case(&'static str, Vec<u8>, &'static str, &'static str);

/// Faults that are seen in the message itself, each with its code and the JSON pointer of the fault.
fn cases(conversation: &str) -> Vec<Case> {
    let job = |id: &str, variables: Value| {
        json!({"job_id": id, "conversation_id": conversation, "variables": variables}).to_string().into_bytes()
    };
    let with = |id: &str, field: &str, value: Value| {
        let mut job = json!({"job_id": id, "conversation_id": conversation, "variables": {"a": {"value": 1}}});
        job[field] = value;
        job.to_string().into_bytes()
    };
    let raw = |text: &str| text.replace("CONVERSATION", conversation).into_bytes();
    vec![
        Case("no JSON", raw("{\"job_id\": \"x\", "), "malformed_json", ""),
        Case("an empty body", raw(""), "malformed_json", ""),
        Case("no UTF-8", vec![b'{', b'"', 0xff, b'"', b'}'], "malformed_json", ""),
        Case(
            "a name twice",
            raw(r#"{"job_id":"d","job_id":"d","conversation_id":"CONVERSATION","variables":{"a":{"value":1}}}"#),
            "malformed_json",
            "",
        ),
        Case(
            "something behind the value",
            raw(r#"{"job_id":"t","conversation_id":"CONVERSATION","variables":{"a":{"value":1}}} {}"#),
            "malformed_json",
            "",
        ),
        Case("too deep", raw(&format!("{}{}", "[".repeat(100), "]".repeat(100))), "malformed_json", ""),
        Case("no object", raw("[]"), "schema_violation", ""),
        Case("an unknown field", with("unknown-field", "colour", json!("red")), "schema_violation", "/colour"),
        Case("nothing to do", raw(r#"{"job_id":"none","conversation_id":"CONVERSATION"}"#), "schema_violation", ""),
        Case("null for a field", with("null-field", "sequence", Value::Null), "schema_violation", "/sequence"),
        Case("a wrong type", with("wrong-type", "coalesce", json!("yes")), "schema_violation", "/coalesce"),
        Case("a wrong word", with("wrong-word", "on_conflict", json!("shrug")), "schema_violation", "/on_conflict"),
        Case("far ahead", with("far", "deadline", json!("2999-01-01T00:00:00Z")), "schema_violation", "/deadline"),
        Case(
            "no job id",
            raw(r#"{"conversation_id":"CONVERSATION","variables":{"a":{"value":1}}}"#),
            "missing_job_id",
            "",
        ),
        Case("a job id with a blank", with("a b", "sequence", json!(1)), "invalid_job_id", "/job_id"),
        Case(
            "a conversation of another form",
            with("form", "conversation_id", json!("session 7")),
            "invalid_conversation_id",
            "/conversation_id",
        ),
        Case("a key with a dash", job("dash", json!({"a-b": {"value": 1}})), "invalid_key", "/variables/a-b"),
        Case("a key of the runtime", job("proto", json!({"__proto__": {"value": 1}})), "invalid_key", ""),
        Case("our own key", job("own", json!({"_injection_ledger": {"value": 1}})), "invalid_key", ""),
        Case("keys that differ", job("differ", json!({"a": {"key": "b", "value": 1}})), "invalid_key", ""),
        Case("a wrong scope", job("scope", json!({"a": {"value": 1, "scope": "galaxy"}})), "invalid_scope", ""),
        Case("a wrong operation", job("op", json!({"a": {"op": "multiply", "value": 2}})), "invalid_operation", ""),
        Case("no number", job("by", json!({"a": {"op": "increment", "by": "many"}})), "invalid_number", ""),
        Case(
            "an integer that JavaScript cannot hold",
            raw(r#"{"job_id":"big","conversation_id":"CONVERSATION","variables":{"a":{"value":9007199254740993}}}"#),
            "invalid_number",
            "/variables/a/value",
        ),
        Case(
            "a value that is too long",
            job("long", json!({"bio": {"value": "x".repeat(10_240)}})),
            "value_too_large",
            "/variables/bio/value",
        ),
        Case(
            "a payload that is too long",
            job("payload", (0..60).map(|n| (format!("k{n}"), json!({"value": "x".repeat(10_000)}))).collect()),
            "payload_too_large",
            "",
        ),
        Case("past its deadline", with("late", "deadline", json!("2020-01-01T00:00:00Z")), "expired", ""),
    ]
}

#[tokio::test]
async fn every_fault_of_a_message_has_its_code_and_the_worker_goes_on() {
    let world = World::new().await;
    let worker = world.start_worker().await;
    let conversation = world.conversation();
    let mut headers = FieldTable::default();
    headers.insert("their-own".into(), AMQPValue::LongString("kept".into()));
    let properties = Properties::default().with_headers(headers).with_content_type("text/odd".into());
    let mut faults = Vec::new();
    for (at, Case(name, body, code, pointer)) in cases(&conversation).into_iter().enumerate() {
        world.publish_raw(&body, properties.clone()).await;
        let outcome =
            eventually(LIMIT, &format!("an outcome of {name}"), async || world.outcomes().await.into_iter().nth(at))
                .await;
        if (outcome.verdict(), outcome.reason()) != ("not_applied", code) {
            faults.push(format!("{name}: {code} expected, got {} {}", outcome.verdict(), outcome.reason()));
        }
        if !pointer.is_empty() && outcome.pointer() != pointer {
            faults.push(format!("{name}: pointer {pointer} expected, got {:?}", outcome.pointer()));
        }
        let letter = world.expect_dead_letter(&body).await;
        let told = (letter.header("x-reason"), letter.header("x-certainty"), letter.header("their-own"));
        if told != (code, "not_applied", "kept") {
            faults.push(format!("{name}: the dead letter says {told:?}"));
        }
        for header in ["x-reason-text", "x-first-seen"] {
            if letter.header(header).is_empty() {
                faults.push(format!("{name}: the dead letter has no {header}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let good = json!({"job_id": "good", "conversation_id": conversation, "variables": {"a": {"value": 1}}});
    world.publish_job(&good).await;
    world.expect_applied("good").await;
    assert!(worker.runs());
    assert_eq!(world.stats().await["writes"].as_u64(), Some(1), "no request for what is wrong in itself");
}

#[tokio::test]
async fn an_id_in_the_body_and_another_one_outside_are_a_mismatch() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let body = json!({"job_id": "inner", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}})
        .to_string();
    world.publish_raw(body.as_bytes(), Properties::default().with_message_id("outer".into())).await;
    let letter = world.expect_dead_letter(body.as_bytes()).await;
    assert_eq!(letter.header("x-reason"), "job_id_mismatch");
    assert_eq!(letter.message_id.as_deref(), Some("outer"), "properties are kept");
    assert_eq!(world.outcomes().await[0].reason(), "job_id_mismatch");
}

#[tokio::test]
async fn a_body_without_an_id_has_an_event_without_one_and_the_same_body_the_same_event() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    for _ in 0..2 {
        world.publish_raw(b"{broken", Properties::default()).await;
    }
    world.publish_raw(b"{broken differently", Properties::default()).await;
    let outcomes: Vec<Outcome> =
        eventually(LIMIT, "three events", async || Some(world.outcomes().await).filter(|outcomes| outcomes.len() == 3))
            .await;
    assert!(outcomes.iter().all(|outcome| outcome.event["data"]["job_id"] == Value::Null));
    // In no promised order: they are of no conversation.
    let mut told = std::collections::BTreeMap::<&str, usize>::new();
    outcomes.iter().for_each(|outcome| *told.entry(outcome.id()).or_default() += 1);
    let mut times = told.into_values().collect::<Vec<_>>();
    times.sort_unstable();
    assert_eq!(times, [1, 2], "one id of each body");
}

#[tokio::test]
async fn a_stored_value_of_another_type_is_a_type_mismatch() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world.seed(&conversation, json!({"tags": {"value": "no list", "scope": "conversation"}})).await;
    let job = json!({"job_id": "append", "conversation_id": conversation,
                     "variables": {"tags": {"op": "append", "value": 1}}});
    world.publish_job(&job).await;
    let outcome = world.expect_refused("append", "type_mismatch").await;
    assert_eq!(outcome.routing_key, "default.not_applied");
    assert_eq!(world.value(&conversation, "tags").await, "no list");
    world.expect_dead_letter(job.to_string().as_bytes()).await;
}

#[tokio::test]
async fn an_unknown_conversation_is_refused_as_the_target_says() {
    let world = World::with(|setup| setup.sandbox.auto_create = false).await;
    let _worker = world.start_worker().await;
    let job = json!({"job_id": "nobody", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    world.expect_refused("nobody", "conversation_not_found").await;
    let letter = world.expect_dead_letter(job.to_string().as_bytes()).await;
    assert_eq!(letter.header("x-last-status"), "404");
}

#[tokio::test]
async fn what_the_target_refuses_ends_alone() {
    let world = World::new().await;
    world.subscribe().await;
    let conversation = world.conversation();
    world.faults(json!({"parameters": {"refused_keys": ["poison"], "refused_status": 422}})).await;
    let job =
        |id: &str, key: &str| json!({"job_id": id, "conversation_id": conversation, "variables": {key: {"value": 1}}});
    world.publish_jobs(&[job("before", "a"), job("refused", "poison"), job("after", "b")]).await;
    let _worker = world.start_worker().await;
    world.expect_applied("before").await;
    world.expect_refused("refused", "refused_by_target").await;
    world.expect_applied("after").await;
    let letter = world.expect_dead_letter(job("refused", "poison").to_string().as_bytes()).await;
    assert_eq!(letter.header("x-last-status"), "422");
}

#[tokio::test]
async fn a_precondition_of_the_job_that_does_not_hold_is_said() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    world
        .seed(
            &conversation,
            json!({"state": {"value": "open", "scope": "conversation"}, "n": {"value": 5, "scope": "conversation"}}),
        )
        .await;
    let job =
        |id: &str, variables: Value| json!({"job_id": id, "conversation_id": conversation, "variables": variables});
    world.publish_job(&job("swap", json!({"state": {"op": "compare_set", "expected": "closed", "value": 1}}))).await;
    world.expect_refused("swap", "precondition_failed").await;
    world.publish_job(&job("bound", json!({"n": {"op": "increment", "by": 6, "max": 10}}))).await;
    world.expect_refused("bound", "precondition_failed").await;
    let mut based = job("based", json!({"n": {"value": 0}}));
    based["base_version"] = json!("another-version");
    world.publish_job(&based).await;
    world.expect_refused("based", "precondition_failed").await;
    assert_eq!(world.value(&conversation, "state").await, "open");
    assert_eq!(world.value(&conversation, "n").await.as_i64(), Some(5), "refused, not clamped");
}

#[tokio::test]
async fn a_placeholder_that_nothing_resolves_fails_the_job_that_asks_for_it() {
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = |id: &str, on_unresolved: &str| {
        json!({"job_id": id, "conversation_id": conversation, "on_unresolved": on_unresolved,
               "variables": {"text": {"template": "Hello {{nobody}}!"}}})
    };
    world.publish_job(&job("fails", "fail")).await;
    world.expect_refused("fails", "unresolved_placeholder").await;
    assert_eq!(world.value(&conversation, "text").await, Value::Null);
    world.publish_job(&job("empties", "empty")).await;
    world.expect_applied("empties").await;
    assert_eq!(world.value(&conversation, "text").await, "Hello !");
}

#[tokio::test]
async fn without_a_ledger_what_needs_one_is_refused() {
    let world = World::with(|setup| {
        setup.set("bots.default.ledger", "off");
    })
    .await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let job = |id: &str, variable: Value| json!({"job_id": id, "conversation_id": conversation, "variables": {"n": variable}});
    world.publish_job(&job("counts", json!({"op": "increment"}))).await;
    world.expect_refused("counts", "invalid_operation").await;
    world.publish_job(&job("sets", json!({"value": 1}))).await;
    world.expect_applied("sets").await;
}

#[tokio::test]
async fn a_target_that_stays_broken_exhausts_the_attempts() {
    let world = World::with(|setup| {
        setup.set("retry.schedule", vec!["50ms"]).set("retry.max_attempts", 2);
    })
    .await;
    world.faults(json!({"server_error": {"probability": 1, "only": {"methods": ["GET"]}}})).await;
    let _worker = world.start_worker().await;
    let job = json!({"job_id": "broken", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    let outcome = world.expect_outcome("broken").await;
    assert_eq!((outcome.verdict(), outcome.reason()), ("not_applied", "attempts_exhausted"), "{}", outcome.event);
    let letter = world.expect_dead_letter(job.to_string().as_bytes()).await;
    assert_eq!(letter.header("x-attempts"), "2");
}
