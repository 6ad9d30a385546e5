//! Every fault does what its description says: what the client sees, and what was applied.

use super::*;
use crate::sandbox::faults::LateAnswer;
use crate::sandbox::{Answer, Event, Kind, Only, Operation, Rule, Scope};

const A: Scope = Scope::Conversation;

async fn one(kind: Kind) -> (Sandbox, Client) {
    sandbox(with_faults(Faults::none().with(kind, Rule::times(1)))).await
}

/// The last value of `a` and the version.
fn state(sandbox: &Sandbox) -> (Option<Value>, u64) {
    sandbox.conversation("conv_1").map_or((None, 0), |view| (view.get(A, "a").cloned(), view.version))
}

/// The history's only write.
fn written(sandbox: &Sandbox) -> crate::sandbox::Entry {
    sandbox.history().into_iter().find(|entry| entry.event == Event::Write).unwrap()
}

/// Sends a PATCH and goes away as soon as something is so.
async fn give_up(client: &Client, so: impl FnMut() -> bool) {
    let request = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}}));
    let sent = tokio::spawn(async move { request.send().await.is_ok() });
    until("the request is there", so).await;
    sent.abort();
    assert!(sent.await.is_err(), "the request was answered");
}

#[tokio::test]
async fn an_outage_applies_nothing() {
    let (sandbox, client) = one(Kind::ServerError).await;
    let status = client.set("conv_1", Some("1"), "a", json!(1)).await;
    assert!([500, 502, 503, 504].contains(&status), "{status}");
    assert_eq!(state(&sandbox), (None, 0));
    let entry = sandbox.history().pop().unwrap();
    assert_eq!((entry.event, entry.answer), (Event::Refused, Answer::Status(status)));
    assert_eq!(entry.faults, ["server_error"]);
    assert_eq!(client.set("conv_1", Some("1"), "a", json!(1)).await, 200);
}

#[tokio::test]
async fn applied_then_500_is_applied() {
    let (sandbox, client) = one(Kind::AppliedThen500).await;
    let status = client.set("conv_1", Some("1"), "a", json!(1)).await;
    assert!(status >= 500);
    assert_eq!(state(&sandbox), (Some(json!(1)), 2));
    let entry = written(&sandbox);
    assert_eq!((entry.answer, entry.faults), (Answer::Status(status), vec!["applied_then_500".to_owned()]));
    assert_eq!(sandbox.stats().faults, [("applied_then_500".to_owned(), 1)].into());
}

#[tokio::test]
async fn a_reset_tears_the_connection_before_or_after() {
    for (kind, expected) in [(Kind::ResetBefore, (None, 0)), (Kind::ResetAfter, (Some(json!(1)), 2))] {
        let (sandbox, client) = one(kind).await;
        let error = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}})).send().await.unwrap_err();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        let mut reset = false;
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            reset |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionReset);
            cause = error.source();
        }
        assert!(reset, "{error:?}");
        assert_eq!(state(&sandbox), expected);
        assert_eq!(sandbox.history().pop().map(|entry| entry.answer), Some(Answer::Reset));
    }
}

#[tokio::test]
async fn a_hanging_request_ends_when_its_client_gives_up() {
    for (kind, expected) in [(Kind::HangBefore, (None, 0)), (Kind::HangAfter, (Some(json!(1)), 2))] {
        let (sandbox, client) = one(kind).await;
        give_up(&client, || sandbox.stats().faults.contains_key(kind.name())).await;
        until("the request is over", || sandbox.stats().in_flight == 0).await;
        until("its entry is there", || !sandbox.history().is_empty()).await;
        assert_eq!(state(&sandbox), expected);
        assert_eq!(sandbox.history().pop().map(|entry| entry.answer), Some(Answer::Unanswered));
    }
}

#[tokio::test]
async fn a_slow_write_is_applied_though_its_client_gave_up() {
    let faults = Faults::none().parameters(|parameters| parameters.latency_ms = [1_000, 1_000]);
    let (sandbox, client) = sandbox(with_faults(faults)).await;
    give_up(&client, || sandbox.stats().in_flight == 1).await;
    until("it is applied", || state(&sandbox) == (Some(json!(1)), 2)).await;
    until("the answer is known", || written(&sandbox).answer == Answer::Unanswered).await;
    assert_eq!(sandbox.history().len(), 1);
}

#[tokio::test]
async fn a_late_write_is_applied_if_its_version_still_holds() {
    for (answer, interfere) in
        [(LateAnswer::Status, false), (LateAnswer::Status, true), (LateAnswer::Hang, false), (LateAnswer::Reset, false)]
    {
        let faults = Faults::none().with(Kind::LateApply, Rule::times(1)).parameters(|parameters| {
            parameters.late_apply_answer = answer;
            parameters.late_apply_ms = if interfere { 1_000 } else { 50 };
        });
        let (sandbox, client) = sandbox(with_faults(faults)).await;
        let request = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}}));
        match answer {
            LateAnswer::Status => assert!(request.send().await.unwrap().status().is_server_error()),
            LateAnswer::Reset => assert!(request.send().await.is_err()),
            LateAnswer::Hang => give_up(&client, || sandbox.stats().faults.contains_key("late_apply")).await,
        }
        if interfere {
            assert_eq!(client.set("conv_1", Some("1"), "a", json!(2)).await, 200);
            let tried = |entry: &crate::sandbox::Entry| entry.event == Event::Refused && entry.late;
            until("it was tried", || sandbox.history().iter().any(tried)).await;
            assert_eq!(state(&sandbox), (Some(json!(2)), 2));
        } else {
            until("it is applied", || state(&sandbox) == (Some(json!(1)), 2)).await;
            assert!(written(&sandbox).late);
        }
        sandbox.check_history().unwrap();
    }
}

#[tokio::test]
async fn a_throttled_request_carries_any_retry_after() {
    let faults = Faults::none().with(Kind::Throttle, Rule::probability(1.0)).parameters(|parameters| {
        parameters.retry_after = ["3", "-5", "31536000", "soon", "absent", "date:5"].map(String::from).to_vec();
    });
    let (_sandbox, client) = sandbox(with_faults(faults)).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        let answer = client.get("conv_1").send().await.unwrap();
        assert_eq!(answer.status(), 429);
        seen.push(answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned()));
    }
    let date = seen.pop().flatten().unwrap();
    assert!(httpdate::parse_http_date(&date).is_ok(), "{date}");
    assert_eq!(
        seen,
        [Some("3"), Some("-5"), Some("31536000"), Some("soon"), None].map(|value| value.map(String::from))
    );
}

#[tokio::test]
async fn credentials_fail_in_three_ways() {
    let (_sandbox, client) = one(Kind::TokenRevoked).await;
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 401);
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 401);
    assert!(client.ask_token("sandbox-secret").await.is_ok());
    for (kind, status) in [(Kind::Unauthorized, 401), (Kind::Forbidden, 403), (Kind::NotFound, 404)] {
        let (_sandbox, client) = one(kind).await;
        assert_eq!(client.get("conv_1").send().await.unwrap().status(), status);
        assert_eq!(client.get("conv_1").send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn refusals_and_spurious_conflicts_apply_nothing() {
    for (kind, code) in [(Kind::Refusal409, "conversation_closed"), (Kind::SpuriousConflict, "version_conflict")] {
        let (sandbox, client) = one(kind).await;
        let answer = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}})).send().await.unwrap();
        assert_eq!(answer.status(), 409);
        let body = body(answer).await;
        assert_eq!(body["code"], code);
        let names = format!("{} {}", body["code"], body["type"]);
        assert_eq!(names.contains("conflict") || names.contains("version"), kind == Kind::SpuriousConflict, "{names}");
        assert_eq!(state(&sandbox).0, None);
    }
}

#[tokio::test]
async fn a_refused_key_refuses_the_whole_write() {
    let faults = Faults::none().parameters(|parameters| {
        parameters.refused_keys = vec!["poison".into()];
        parameters.refused_status = 422;
    });
    let (sandbox, client) = sandbox(with_faults(faults)).await;
    let both = json!({"a": {"value": 1}, "poison": {"value": 1}});
    let answer = client.patch("conv_1", Some("1"), both).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    assert!(body(answer).await["detail"].as_str().is_some_and(|text| text.contains("poison")));
    assert_eq!(state(&sandbox).0, None);
    assert_eq!(client.set("conv_1", Some("1"), "a", json!(1)).await, 200);
}

#[tokio::test]
async fn a_lenient_platform_says_yes_to_what_is_there_already() {
    let (sandbox, client) =
        sandbox(with_faults(Faults::none().with(Kind::LenientSuccess, Rule::probability(1.0)))).await;
    assert_eq!(client.set("conv_1", Some("1"), "a", json!(1)).await, 200);
    assert_eq!(client.set("conv_1", Some("1"), "a", json!(1)).await, 200);
    assert_eq!(client.set("conv_1", Some("1"), "a", json!(2)).await, 409);
    assert_eq!(state(&sandbox), (Some(json!(1)), 2));
    assert_eq!(sandbox.stats().writes_applied, 1);
}

#[tokio::test]
async fn a_conflict_can_have_the_other_status() {
    let (_sandbox, client) = one(Kind::SwappedConflict).await;
    assert_eq!(client.set("conv_1", Some("7"), "a", json!(1)).await, 412);
    assert_eq!(client.set("conv_1", Some("7"), "a", json!(1)).await, 409);
}

#[tokio::test]
async fn reads_can_be_old() {
    for (kind, value) in [(Kind::StaleRead, json!(1)), (Kind::VersionRegression, json!(2))] {
        let (sandbox, client) = one(kind).await;
        for n in 1..=2 {
            client.set("conv_1", None, "a", json!(n)).await;
        }
        let old = client.read("conv_1").await;
        assert_eq!((&old["contextVersion"], &old["context"]["a"]["value"]), (&json!(2), &value), "{kind:?}");
        assert_eq!(client.read("conv_1").await["contextVersion"], 3);
        assert_eq!(state(&sandbox), (Some(json!(2)), 3));
    }
}

#[tokio::test]
async fn a_conversation_is_reset_or_rolled_back_under_a_client() {
    for (kind, expected) in [(Kind::ResetConversation, (None, 1)), (Kind::Rollback, (Some(json!(1)), 2))] {
        let (sandbox, client) = sandbox(settings()).await;
        for n in 1..=2 {
            client.set("conv_1", None, "a", json!(n)).await;
        }
        sandbox.set_faults(Faults::none().with(kind, Rule::times(1)));
        assert_eq!(client.set("conv_1", Some("3"), "a", json!(3)).await, 409);
        assert_eq!(state(&sandbox), expected);
        sandbox.check_history().unwrap();
    }
}

#[tokio::test]
async fn a_success_can_be_empty_or_without_a_version() {
    let (sandbox, client) = one(Kind::EmptySuccess).await;
    let answer = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}})).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(state(&sandbox), (Some(json!(1)), 2));
    let (_sandbox, client) = one(Kind::NoVersion).await;
    let answer = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}})).send().await.unwrap();
    assert_eq!(body(answer).await, json!({}));
}

#[tokio::test]
async fn an_answer_can_break_off_be_garbage_or_be_huge() {
    let (sandbox, client) = one(Kind::TruncatedBody).await;
    let answer = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}})).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.is_err());
    assert_eq!(state(&sandbox), (Some(json!(1)), 2));
    assert_eq!(written(&sandbox).answer, Answer::Damaged(200));

    let (_sandbox, client) = one(Kind::MalformedJson).await;
    let answer = client.get("conv_1").send().await.unwrap();
    assert!(serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).is_err());

    let huge = Faults::none().with(Kind::HugeAnswer, Rule::times(2)).parameters(|p| p.huge_bytes = 1_000_000);
    let (sandbox, client) = sandbox_with(huge).await;
    assert_eq!(client.get("conv_1").send().await.unwrap().bytes().await.unwrap().len(), 1_000_000);
    sandbox.set_faults(Faults::none().with(Kind::HugeAnswer, Rule::times(1)).parameters(|p| p.huge_bytes = 0));
    let mut endless = client.get("conv_1").send().await.unwrap();
    let mut read = 0;
    while read < 8_000_000 {
        read += endless.chunk().await.unwrap().unwrap().len();
    }
}

async fn sandbox_with(faults: Faults) -> (Sandbox, Client) {
    sandbox(with_faults(faults)).await
}

#[tokio::test]
async fn a_request_can_ask_for_its_fault() {
    let (sandbox, client) = sandbox(settings()).await;
    let request = client.patch("conv_1", Some("1"), json!({"a": {"value": 1}}));
    let answer = request.header("x-sandbox-fault", "applied_then_500, empty_success").send().await.unwrap();
    assert!(answer.status().is_server_error());
    assert_eq!(state(&sandbox), (Some(json!(1)), 2));
    let answer = client.get("conv_1").header("x-sandbox-fault", "aplied_then_500").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(body(answer).await["detail"].as_str().is_some_and(|text| text.contains("applied_then_500")));
}

#[tokio::test]
async fn a_fault_can_be_kept_to_some_conversations() {
    let only = Only { conversation: Some("^conv_a".into()), ..Only::default() };
    let faults = Faults::none().with(Kind::ServerError, Rule::probability(1.0).only(only));
    let (sandbox, client) = sandbox(with_faults(faults)).await;
    assert!(client.set("conv_a1", None, "a", json!(1)).await >= 500);
    assert!(client.get("conv_a1").send().await.unwrap().status().is_server_error());
    assert_eq!(client.set("conv_b1", None, "a", json!(1)).await, 200);
    assert_eq!(sandbox.history().first().and_then(|entry| entry.conversation.clone()).as_deref(), Some("conv_a1"));
}

#[tokio::test]
async fn the_token_endpoint_fails_where_a_rule_names_it() {
    let tokens = Only { operations: vec![Operation::Token], ..Only::default() };
    for (kind, status) in [(Kind::Forbidden, 403), (Kind::Throttle, 429), (Kind::Unauthorized, 401)] {
        let (sandbox, client) = sandbox(settings()).await;
        sandbox.set_faults(Faults::none().with(kind, Rule::times(1).only(tokens.clone())));
        assert_eq!(client.get("conv_1").send().await.unwrap().status(), 200);
        assert_eq!(client.ask_token("sandbox-secret").await, Err(status));
        assert!(client.ask_token("sandbox-secret").await.is_ok());
    }
}

#[tokio::test]
async fn writes_at_once_on_one_conversation_are_noticed() {
    let faults = Faults::none().with(Kind::HangBefore, Rule::times(1));
    let (sandbox, client) = sandbox(with_faults(faults)).await;
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { client.patch("conv_1", None, json!({"a": {"value": 1}})).send().await.is_ok() }
    });
    until("the first write hangs", || sandbox.stats().in_flight == 1).await;
    assert_eq!(client.set("conv_2", None, "a", json!(1)).await, 200);
    assert_eq!(sandbox.stats().overlapping_writes, 0);
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 200);
    assert_eq!(sandbox.stats().overlapping_writes, 1);
    hanging.abort();
    until("the first write is given up", || sandbox.stats().in_flight == 0).await;
    assert_eq!(client.set("conv_1", None, "a", json!(1)).await, 200);
    assert_eq!(sandbox.stats().overlapping_writes, 1);
}
