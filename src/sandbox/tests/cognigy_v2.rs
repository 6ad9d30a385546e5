//! The contract of `cognigy-v2`, and what is known of how its platform misbehaves.

use super::*;
use crate::sandbox::{Event, Kind, RetryAfter, Rule, Scope, V2Settings};

const SESSION: &str = "session/s 1/u1";

impl Client {
    fn v2(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/new/v2.0/{path}", self.url)).header("x-api-key", "sandbox-key")
    }

    async fn inject(&self, context: Value) -> Response {
        let request = self.v2(Method::POST, "sessions/s%201/context/inject");
        request.json(&json!({"userId": "u1", "context": context})).send().await.unwrap()
    }
}

#[tokio::test]
async fn a_context_is_injected_into_the_session_of_a_user() {
    let (sandbox, client) = sandbox(settings()).await;
    let answer = client.inject(json!({"tier": "premium", "cart": {"total": 1.5}})).await;
    assert_eq!(answer.status(), 200);
    assert!(body(answer).await.is_object());
    assert_eq!(client.inject(json!({"tier": "basic"})).await.status(), 200);
    let view = sandbox.conversation(SESSION).unwrap();
    assert_eq!(view.get(Scope::Session, "tier"), Some(&json!("basic")));
    assert_eq!(view.get(Scope::Session, "cart"), Some(&json!({"total": 1.5})));
    assert!(sandbox.conversation("session/s 1/u2").is_none());
    sandbox.check_history().unwrap();
}

#[tokio::test]
async fn a_profile_is_written_without_a_body_in_the_answer_and_read() {
    let (sandbox, client) = sandbox(settings()).await;
    let unknown = client.v2(Method::GET, "profiles/p1").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(body(unknown).await["code"], 1002);
    let request = client.v2(Method::PATCH, "profiles/p1").json(&json!({"profile": {"tier": "gold"}}));
    let answer = request.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.bytes().await.unwrap().len()), (204, 0));
    let profile = body(client.v2(Method::GET, "profiles/p1").send().await.unwrap()).await;
    assert_eq!((&profile["_id"], &profile["profile"]), (&json!("p1"), &json!({"tier": "gold"})));
    sandbox.change("profile/p1", [(Scope::User, "prevent_data_collection", json!(true))]);
    let profile = body(client.v2(Method::GET, "profiles/p1").send().await.unwrap()).await;
    assert_eq!(profile["profile"]["prevent_data_collection"], true);
    assert_eq!(client.v2(Method::GET, "profiles/p1").body("{}").send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_key_or_a_token_is_needed_and_not_in_the_query() {
    let (_sandbox, client) = sandbox(settings()).await;
    let url = format!("{}/new/v2.0/sessions/s/context/inject", client.url);
    let body_ = json!({"userId": "u", "context": {"a": 1}});
    let form = [("grant_type", "client_credentials"), ("client_id", "sandbox"), ("client_secret", "sandbox-secret")];
    let token = client.http.post(format!("{}/auth/oauth2/token", client.url)).form(&form).send().await.unwrap();
    let token = body(token).await["access_token"].as_str().unwrap().to_owned();
    let http = &client.http;
    for (request, status) in [
        (http.post(&url), 401),
        (http.post(format!("{url}?api_key=sandbox-key")), 401),
        (http.post(&url).header("x-api-key", "wrong"), 401),
        (http.post(&url).header("x-api-key", "sandbox-key"), 200),
        (http.post(&url).bearer_auth(token), 200),
    ] {
        let answer = request.json(&body_).send().await.unwrap();
        assert_eq!(answer.status(), status);
        if status == 401 {
            let body = body(answer).await;
            assert!(body["code"].is_number() && body["details"].is_object(), "{body}");
        }
    }
}

#[tokio::test]
async fn bodies_and_contexts_are_limited() {
    let (sandbox, client) = sandbox(settings()).await;
    let big = |key: &str, bytes: usize| json!({key: "x".repeat(bytes)});
    assert_eq!(client.inject(big("a", 59_000)).await.status(), 200);
    assert_eq!(client.inject(big("b", 60_000)).await.status(), 413);
    let too_much = client.inject(big("b", 10_000)).await;
    assert_eq!(too_much.status(), 413);
    assert_eq!(sandbox.conversation(SESSION).map(|view| view.context.len()), Some(1));
    for context in [json!({"a.b": 1}), json!({"a-b": 1}), json!({"$a": 1}), json!([1])] {
        assert_eq!(client.inject(context.clone()).await.status(), 400, "{context}");
    }
}

#[tokio::test]
async fn the_window_is_for_all_and_may_not_say_when_it_ends() {
    let v2 = V2Settings { requests: 3, ..V2Settings::default() };
    let (sandbox, client) = sandbox(Settings { v2, retry_after: RetryAfter::Absent, ..settings() }).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = client.inject(json!({"a": 1})).await;
        assert!(answer.headers().get("retry-after").is_none());
        statuses.push(answer.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 200);
    assert_eq!(sandbox.stats().rate_limited, 1);
}

#[tokio::test]
async fn an_acknowledged_write_can_be_late_lost_or_undone() {
    let (sandbox, client) = sandbox(settings()).await;
    let buffered = Faults::none().with(Kind::BufferedWrite, Rule::times(1)).parameters(|p| p.buffered_ms = 50);
    sandbox.set_faults(buffered);
    assert_eq!(client.inject(json!({"a": 1})).await.status(), 200);
    until("the buffered write is there", || sandbox.conversation(SESSION).is_some_and(|view| view.version == 2)).await;
    sandbox.set_faults(Faults::none().with(Kind::LostWrite, Rule::times(1)));
    assert_eq!(client.inject(json!({"a": 2})).await.status(), 200);
    assert_eq!(sandbox.conversation(SESSION).map(|view| view.version), Some(2));
    assert_eq!(sandbox.history().last().map(|entry| entry.event), Some(Event::Faulty));
    assert_eq!(client.inject(json!({"a": 3})).await.status(), 200);
    assert!(sandbox.rollback_conversation(SESSION, 1));
    assert_eq!(sandbox.conversation(SESSION).and_then(|view| view.get(Scope::Session, "a").cloned()), Some(json!(1)));
    sandbox.check_history().unwrap();
}

#[tokio::test]
async fn refusals_have_the_numbers_of_the_vendor() {
    for (kind, status, code) in [(Kind::SpuriousConflict, 409, 1004), (Kind::NotFound, 404, 1002)] {
        let (_sandbox, client) = sandbox(with_faults(Faults::none().with(kind, Rule::times(1)))).await;
        let answer = client.inject(json!({"a": 1})).await;
        assert_eq!(answer.status(), status);
        assert_eq!(body(answer).await["code"], code);
    }
}

#[tokio::test]
async fn a_session_that_nobody_knows_is_not_found_where_none_comes_into_being() {
    let (strict, client) = sandbox(Settings { auto_create: false, ..settings() }).await;
    let answer = client.inject(json!({"a": 1})).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(body(answer).await["code"], 1002);
    strict.seed(SESSION, []);
    assert_eq!(client.inject(json!({"a": 1})).await.status(), 200);
}
