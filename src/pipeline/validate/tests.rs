use serde_json::json;

use super::*;
use crate::config::Config;

fn bot() -> Bot {
    let settings =
        "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n";
    Config::parse(settings, []).unwrap().bots.remove("default").unwrap()
}

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

fn source<'a>(body: &'a [u8], message_id: Option<&'a str>) -> Source<'a> {
    Source { body, message_id, content_encoding: None, published: None, first_seen: now(), now: now() }
}

fn read(body: &Value) -> Result<Job, Invalid> {
    validate(&bot(), Duration::from_secs(900), &source(body.to_string().as_bytes(), None))
}

/// Code and pointer of the refusal of a job that is fine but for `change`.
fn refusal(change: Value) -> (&'static str, Option<String>) {
    let mut body = json!({"job_id": "j", "conversation_id": "conv_1", "variables": {"k": {"value": 1}}});
    super::super::merge::merge_patch(&mut body, &change);
    let invalid = read(&body).expect_err(&body.to_string());
    (invalid.rejection.code.as_str(), invalid.rejection.pointer)
}

fn at(code: &'static str, pointer: &str) -> (&'static str, Option<String>) {
    (code, Some(pointer.to_owned()))
}

#[test]
fn the_reference_example_is_a_job() {
    let job = read(&json!({
        "job_id": "order-8123-paid", "conversation_id": "conv_8a7b9c2d1e3f",
        "variables": {
            "customer_tier": { "value": "premium", "scope": "user" },
            "cart_total": { "op": "increment", "by": "149.99", "scope": "session" },
            "last_intents": { "op": "append", "value": "checkout_flow", "max_items": 20 },
            "greeting": { "template": "Welcome {{customer_tier}} user. Your cart contains {{cart_total}}." } },
        "templates": { "crm_note": "Tier {{user.customer_tier}}" },
        "on_conflict": "overwrite", "deadline": "2026-11-23T10:15:00Z", "sequence": 42 }))
    .unwrap();
    assert_eq!(job.variables.len(), 4);
    assert_eq!(job.sequence, Some(42));
    assert!(job.needs_ledger());
}

#[test]
fn the_plainest_form_is_a_job() {
    let body = json!({"conversation_id": "conv_1", "variables": {"k": {"key": "k", "value": true, "scope": "user"}}});
    let job = validate(&bot(), Duration::from_secs(900), &source(body.to_string().as_bytes(), Some("m-1"))).unwrap();
    assert_eq!((job.id.as_str(), job.variables[0].name.scope), ("m-1", Scope::User));
    assert_eq!(job.deadline, "2026-11-23T10:15:00Z".parse().unwrap());
}

#[test]
fn identity_is_checked() {
    let body = json!({"conversation_id": "conv_1", "variables": {"k": {"value": 1}}});
    assert_eq!(read(&body).unwrap_err().rejection.code, Reason::MissingJobId);
    let with =
        |body: &Value, id| validate(&bot(), Duration::ZERO, &source(body.to_string().as_bytes(), id)).unwrap_err();
    assert_eq!(with(&body, Some("a b")).rejection.code, Reason::InvalidJobId);
    let named = json!({"job_id": "a", "conversation_id": "conv_1", "variables": {"k": {"value": 1}}});
    let mismatch = with(&named, Some("b"));
    assert_eq!((mismatch.rejection.code, mismatch.job_id), (Reason::JobIdMismatch, None));
    assert_eq!(refusal(json!({"job_id": "ä"})), at("invalid_job_id", "/job_id"));
    assert_eq!(refusal(json!({"job_id": 7})), at("schema_violation", "/job_id"));
    assert_eq!(refusal(json!({"conversation_id": "Conv_1"})), at("invalid_conversation_id", "/conversation_id"));
    // What is known of a refused job is told.
    let invalid = read(&json!({"job_id": "j", "conversation_id": "conv_1"})).unwrap_err();
    assert_eq!(invalid.job_id.unwrap().as_str(), "j");
    assert_eq!(invalid.conversation.unwrap().as_str(), "conv_1");
}

#[test]
fn every_fault_has_its_code_and_pointer() {
    let cases = [
        (json!({"extra": 1}), at("schema_violation", "/extra")),
        (json!({"variables": null}), at("schema_violation", "")),
        (json!({"variables": []}), at("schema_violation", "/variables")),
        (json!({"variables": {"k": 1}}), at("schema_violation", "/variables/k")),
        (json!({"variables": {"k": {"extra": 1}}}), at("schema_violation", "/variables/k/extra")),
        (json!({"variables": {"k": {"by": 1}}}), at("schema_violation", "/variables/k/by")),
        (json!({"variables": {"k": {"template": "x"}}}), at("schema_violation", "/variables/k/template")),
        (json!({"variables": {"k": {"key": "other"}}}), at("invalid_key", "/variables/k/key")),
        (json!({"variables": {"a/b~c": {"value": 1}}}), at("invalid_key", "/variables/a~1b~0c")),
        (json!({"variables": {"__proto__": {"value": 1}}}), at("invalid_key", "/variables/__proto__")),
        (json!({"variables": {"_injection_ledger": {"value": 1}}}), at("invalid_key", "/variables/_injection_ledger")),
        (json!({"variables": {"k": {"scope": "planet"}}}), at("invalid_scope", "/variables/k/scope")),
        (json!({"variables": {"k": {"scope": 1}}}), at("schema_violation", "/variables/k/scope")),
        (json!({"variables": {"k": {"op": "explode"}}}), at("invalid_operation", "/variables/k/op")),
        (json!({"variables": {"n": {"op": "increment", "by": "1,5"}}}), at("invalid_number", "/variables/n/by")),
        (json!({"variables": {"n": {"op": "increment", "by": true}}}), at("schema_violation", "/variables/n/by")),
        (
            json!({"variables": {"n": {"op": "increment", "min": 2, "max": 1}}}),
            at("schema_violation", "/variables/n/min"),
        ),
        (
            json!({"variables": {"l": {"op": "append", "value": 1, "max_items": 0}}}),
            at("schema_violation", "/variables/l/max_items"),
        ),
        (json!({"variables": {"m": {"op": "max", "value": "x"}}}), at("invalid_number", "/variables/m/value")),
        (
            json!({"variables": {"c": {"op": "compare_set", "value": 1}}}),
            at("schema_violation", "/variables/c/expected"),
        ),
        (
            json!({"variables": {"k": {"value": {"a": [1, 9007199254740992u64]}}}}),
            at("invalid_number", "/variables/k/value/a/1"),
        ),
        (json!({"variables": {"k": {"value": "x".repeat(10_239)}}}), at("value_too_large", "/variables/k/value")),
        (json!({"templates": {"t": 1}}), at("schema_violation", "/templates/t")),
        (json!({"on_conflict": "win"}), at("schema_violation", "/on_conflict")),
        (json!({"deadline": "tomorrow"}), at("schema_violation", "/deadline")),
        (json!({"deadline": "2026-11-24T10:00:01Z"}), at("schema_violation", "/deadline")),
        (json!({"sequence": -1}), at("schema_violation", "/sequence")),
        (json!({"sequence": 1.5}), at("schema_violation", "/sequence")),
        (json!({"base_version": true}), at("schema_violation", "/base_version")),
        (json!({"coalesce": "no"}), at("schema_violation", "/coalesce")),
    ];
    for (change, expected) in cases {
        assert_eq!(refusal(change.clone()), expected, "{change}");
    }
}

#[test]
fn null_is_no_optional_field() {
    for field in ["job_id", "templates", "on_conflict", "deadline", "sequence", "base_version", "coalesce"] {
        let body =
            json!({"job_id": "j", "conversation_id": "conv_1", "variables": {"k": {"value": null}}, field: null});
        assert_eq!(read(&body).unwrap_err().rejection.code, Reason::SchemaViolation, "{field}");
    }
}

#[test]
fn a_body_that_is_no_json_keeps_its_message_id() {
    let invalid = validate(&bot(), Duration::ZERO, &source(b"{", Some("m-1"))).unwrap_err();
    assert_eq!((invalid.rejection.code, invalid.job_id.unwrap().as_str()), (Reason::MalformedJson, "m-1"));
    let mut gzipped = source(b"{}", Some("m-1"));
    gzipped.content_encoding = Some("gzip");
    assert_eq!(validate(&bot(), Duration::ZERO, &gzipped).unwrap_err().rejection.code, Reason::MalformedJson);
}

#[test]
fn without_a_ledger_what_must_not_happen_twice_is_refused() {
    let mut bot = bot();
    bot.ledger = LedgerMode::Off;
    let body = br#"{"job_id":"j","conversation_id":"conv_1","variables":{"n":{"op":"increment"}}}"#;
    let invalid = validate(&bot, Duration::ZERO, &source(body, None)).unwrap_err();
    assert_eq!(invalid.rejection.code, Reason::InvalidOperation);
}

#[test]
fn the_default_deadline_counts_from_publication_where_that_is_believable() {
    let body = br#"{"job_id":"j","conversation_id":"conv_1","variables":{"k":{"value":1}}}"#;
    let with = |published: &str| {
        let source = Source { published: Some(published.parse().unwrap()), ..source(body, None) };
        validate(&bot(), Duration::from_secs(900), &source).unwrap().deadline.to_string()
    };
    assert_eq!(with("2026-11-23T09:00:00Z"), "2026-11-23T09:15:00Z");
    assert_eq!(with("2026-11-20T09:00:00Z"), "2026-11-23T10:15:00Z");
    assert_eq!(with("2027-11-20T09:00:00Z"), "2026-11-23T10:15:00Z");
}
