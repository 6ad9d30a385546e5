//! The contract of `context-v1`, without faults.

use std::time::Duration;

use super::*;
use crate::sandbox::{ConflictStatus, RetryAfter, Scope, VersionForm};

#[tokio::test]
async fn a_conversation_is_read_changed_and_read_again() {
    let (sandbox, client) = sandbox(settings()).await;
    let before = client.read("conv_1a").await;
    assert_eq!(before, json!({"conversationId": "conv_1a", "contextVersion": 1, "context": {}}));
    let change = json!({"tier": {"value": "premium", "scope": "user"}, "last": {"value": ["a", null]}});
    let answer = client.patch("conv_1a", Some("1"), change).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(body(answer).await, json!({"conversationId": "conv_1a", "contextVersion": 2}));
    assert_eq!(
        client.read("conv_1a").await,
        json!({"conversationId": "conv_1a", "contextVersion": 2, "context": {
            "tier": {"value": "premium", "scope": "user"}, "last": {"value": ["a", null], "scope": "conversation"}}})
    );
    let remove = json!({"tier": {"value": null, "scope": "user"}, "last": {"value": 1, "scope": "session"}});
    assert_eq!(client.patch("conv_1a", Some("\"2\""), remove).send().await.unwrap().status(), 200);
    let view = sandbox.conversation("conv_1a").unwrap();
    assert_eq!(view.version, 3);
    assert_eq!(view.get(Scope::User, "tier"), None);
    assert_eq!(view.as_json()["last"].as_array().map(Vec::len), Some(2));
    assert_eq!(sandbox.stats().unconditional_writes, 0);
}

#[tokio::test]
async fn another_version_is_a_conflict_and_changes_nothing() {
    for (conflict, statuses) in [
        (ConflictStatus::Conflict, &[409][..]),
        (ConflictStatus::PreconditionFailed, &[412][..]),
        (ConflictStatus::Mixed, &[409, 412][..]),
    ] {
        let (sandbox, client) = sandbox(Settings { conflict, ..settings() }).await;
        assert_eq!(client.set("conv_1", Some("1"), "a", json!(1)).await, 200);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let answer = client.patch("conv_1", Some("1"), json!({"a": {"value": 2}})).send().await.unwrap();
            seen.insert(answer.status().as_u16());
            let body = body(answer).await;
            assert_eq!(body["code"], "version_conflict");
            assert!(body["traceId"].is_string() && body["title"].is_string() && body["status"].is_number());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), statuses);
        let view = sandbox.conversation("conv_1").unwrap();
        assert_eq!((view.version, view.get(Scope::Conversation, "a")), (2, Some(&json!(1))));
        assert_eq!(sandbox.stats().conflicts, 20);
    }
}

#[tokio::test]
async fn of_many_writes_on_one_version_one_is_applied() {
    let (sandbox, client) = sandbox(settings()).await;
    let tries = (0..20).map(|n| {
        let client = client.clone();
        async move { client.set("conv_1", Some("1"), "a", json!(n)).await }
    });
    let statuses = futures_util::future::join_all(tries).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    assert_eq!(sandbox.conversation("conv_1").map(|view| view.version), Some(2));
}

#[tokio::test]
async fn the_version_comes_in_every_form_and_is_taken_back_in_it() {
    for form in
        [VersionForm::ContextVersion, VersionForm::Version, VersionForm::Opaque, VersionForm::Etag, VersionForm::Both]
    {
        let (sandbox, client) = sandbox(Settings { version_form: form, ..settings() }).await;
        let answer = client.get("conv_1").send().await.unwrap();
        let etag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        let body = body(answer).await;
        let field = match form {
            VersionForm::Version => &body["version"],
            _ => &body["contextVersion"],
        };
        assert_eq!(etag.is_some(), matches!(form, VersionForm::Etag | VersionForm::Both), "{form:?}");
        assert_eq!(field.is_null(), form == VersionForm::Etag, "{form:?}");
        let bare = field.as_str().map_or_else(|| field.to_string(), str::to_owned);
        let version = etag.unwrap_or(bare);
        assert_eq!(client.set("conv_1", Some(&version), "a", json!(1)).await, 200, "{form:?}");
        assert_eq!(client.set("conv_1", Some(&version), "a", json!(1)).await, 409, "{form:?}");
        let shown = sandbox.conversation("conv_1").unwrap().shown_version;
        assert_eq!(client.set("conv_1", Some(&shown), "a", json!(2)).await, 200, "{form:?}");
    }
}

#[tokio::test]
async fn a_write_without_if_match_is_counted_or_refused() {
    let (open, client) = sandbox(settings()).await;
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 200);
    assert_eq!(open.stats().unconditional_writes, 1);
    let (strict, client) = sandbox(Settings { require_if_match: true, ..settings() }).await;
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 428);
    assert_eq!(strict.stats().writes_applied, 0);
}

#[tokio::test]
async fn sizes_are_limited_to_the_byte() {
    let (sandbox, client) = sandbox(settings()).await;
    assert_eq!(client.set("conv_1", None, "a", json!("x".repeat(10_238))).await, 200);
    assert_eq!(client.set("conv_1", None, "a", json!("x".repeat(10_239))).await, 400);
    let sized = |bytes: usize| {
        let mut text = String::from(r#"{"conversationId":"conv_2","context":{"#);
        let mut n = 0;
        while text.len() < bytes - 20_000 {
            text += &format!(r#""k{n}":{{"value":"{}"}},"#, "y".repeat(10_000));
            n += 1;
        }
        let rest = (bytes - text.len() - 40) / 2;
        text += &format!(r#""y":{{"value":"{}"}},"#, "y".repeat(rest));
        let end = r#""z":{"value":""}}}"#;
        let rest = bytes - text.len() - end.len();
        text + &format!(r#""z":{{"value":"{}"}}}}}}"#, "z".repeat(rest))
    };
    for (bytes, status) in [(524_288, 200), (524_289, 413), (5_000_000, 413)] {
        let text = sized(bytes);
        assert_eq!(text.len(), bytes);
        let request = client.request(Method::PATCH, "/api/v1/context").header("content-type", "application/json");
        assert_eq!(request.body(text).send().await.unwrap().status(), status, "{bytes} bytes");
    }
    assert!(sandbox.check_history().is_ok());
}

#[tokio::test]
async fn what_is_not_in_the_contract_is_refused_by_name() {
    let (sandbox, client) = sandbox(settings()).await;
    for (context, code) in [
        (json!({"1a": {"value": 1}}), "invalid_key"),
        (json!({"__proto__": {"value": 1}}), "invalid_key"),
        (json!({"a.b": {"value": 1}}), "invalid_key"),
        (json!({"a": {"value": 1, "scope": "planet"}}), "invalid_scope"),
        (json!({"a": {"scope": "user"}}), "malformed_body"),
        (json!({"a": {"value": 1, "op": "set"}}), "malformed_body"),
        (json!({"a": 1}), "malformed_body"),
        (json!({}), "empty_context"),
    ] {
        let answer = client.patch("conv_1", None, context.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{context}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(body(answer).await["code"], code, "{context}");
    }
    assert!(sandbox.conversation("conv_1").is_none());
}

#[tokio::test]
async fn a_conversation_that_nobody_knows_is_not_found() {
    let (strict, client) = sandbox(Settings { auto_create: false, ..settings() }).await;
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 404);
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 404);
    strict.seed("conv_1", [(Scope::User, "a", json!(1))]);
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 200);
    let (open, client) = sandbox(settings()).await;
    assert_eq!(client.get("elsewhere").send().await.unwrap().status(), 404);
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 200);
    assert!(open.delete_conversation("conv_1"));
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 404);
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 404);
    assert!(open.check_history().is_ok());
}

#[tokio::test]
async fn tokens_are_asked_for_in_one_way_and_end() {
    let (sandbox, mut client) = sandbox(Settings { token_ttl: Duration::from_millis(50), ..settings() }).await;
    assert_eq!(client.ask_token("wrong").await, Err(401));
    let json = client.http.post(format!("{}/api/v1/auth/token", client.url)).json(&json!({"grant_type": "x"}));
    assert_eq!(json.send().await.unwrap().status(), 415);
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while client.get("conv_1").send().await.unwrap().status() != 401 {
        assert!(tokio::time::Instant::now() < limit, "the token never ended");
    }
    client.token = client.ask_token("sandbox-secret").await.unwrap();
    sandbox.revoke_tokens();
    let answer = client.get("conv_1").send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(body(answer).await["code"], "unauthorized");
    assert_eq!(sandbox.stats().token_requests, 4);
}

#[tokio::test]
async fn over_the_rate_the_answer_says_when_to_come_back() {
    for form in [RetryAfter::Seconds, RetryAfter::Date] {
        let (sandbox, client) =
            sandbox(Settings { rate: 1.0, burst: 3, retry_after: form, ..Settings::default() }).await;
        let mut limited = None;
        for _ in 0..5 {
            let answer = client.get("conv_1").send().await.unwrap();
            if answer.status() == 429 {
                limited = Some(answer.headers()["retry-after"].to_str().unwrap().to_owned());
            }
        }
        let limited = limited.unwrap();
        match form {
            RetryAfter::Date => assert!(httpdate::parse_http_date(&limited).is_ok(), "{limited}"),
            _ => assert_eq!(limited, "1"),
        }
        assert!(sandbox.stats().rate_limited >= 1);
    }
}

#[tokio::test]
async fn a_get_with_a_body_is_refused() {
    let (_sandbox, client) = sandbox(settings()).await;
    assert_eq!(client.get("conv_1").body("{}").send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn the_connection_is_kept() {
    let (sandbox, client) = sandbox(settings()).await;
    for n in 0..20 {
        client.set("conv_1", None, "a", json!(n)).await;
    }
    assert_eq!(sandbox.stats().connections, 1);
}
