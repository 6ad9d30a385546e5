//! The sandbox as its clients meet it: over HTTP, in the same process.

mod cognigy_v2;
mod context_v1;
mod control;
mod fault_effects;
mod histories;

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::{Faults, Sandbox, Settings, start};

/// A client with a token.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// Settings for tests that are not about the rate.
fn settings() -> Settings {
    Settings { rate: 0.0, ..Settings::default() }
}

fn with_faults(faults: Faults) -> Settings {
    Settings { faults, ..settings() }
}

async fn sandbox(settings: Settings) -> (Sandbox, Client) {
    let sandbox = start(settings).await.unwrap();
    let client = client(&sandbox).await;
    (sandbox, client)
}

async fn client(sandbox: &Sandbox) -> Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut client = Client { http, url: sandbox.url(), token: String::new() };
    client.token = client.ask_token(sandbox.client_secret()).await.unwrap();
    client
}

impl Client {
    async fn ask_token(&self, secret: &str) -> Result<String, u16> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "sandbox"),
            ("client_secret", secret),
            ("scope", "context:write conversation:read"),
        ];
        let answer = self.http.post(format!("{}/api/v1/auth/token", self.url)).form(&form).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        body.get("access_token").and_then(Value::as_str).map(str::to_owned).ok_or(status)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    fn patch(&self, id: &str, if_match: Option<&str>, context: Value) -> RequestBuilder {
        let request = self.request(Method::PATCH, "/api/v1/context");
        let request = request.json(&json!({"conversationId": id, "context": context}));
        match if_match {
            Some(version) => request.header("if-match", version),
            None => request,
        }
    }

    /// Sends a PATCH that sets one conversation variable; the status.
    async fn set(&self, id: &str, if_match: Option<&str>, key: &str, value: Value) -> u16 {
        self.patch(id, if_match, json!({key: {"value": value}})).send().await.unwrap().status().as_u16()
    }

    fn get(&self, id: &str) -> RequestBuilder {
        self.request(Method::GET, &format!("/api/v1/context/{id}"))
    }

    /// Reads a conversation.
    async fn read(&self, id: &str) -> Value {
        body(self.get(id).send().await.unwrap()).await
    }

    async fn control(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.http.request(method, format!("{}/_sandbox/{path}", self.url));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }
}

async fn body(answer: Response) -> Value {
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null)
}

/// Waits until something is so, for at most ten seconds.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !so() {
        assert!(tokio::time::Instant::now() < limit, "waited in vain until {what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}
