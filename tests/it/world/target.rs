//! The target as its other writers and its operator see it: through the sandbox's control interface.

use serde_json::{Value, json};

use super::World;

impl World {
    async fn control(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Value {
        let mut request = self.http.request(method, format!("{}/_sandbox/{path}", self.sandbox.url()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Sets the target's faults.
    pub async fn faults(&self, faults: Value) {
        self.control(reqwest::Method::PUT, "faults", Some(&faults)).await;
    }

    /// A conversation as the target has it.
    pub async fn target(&self, conversation: &str) -> Value {
        self.control(reqwest::Method::GET, &format!("conversations/{conversation}"), None).await
    }

    /// The value of a variable in the target; `null` where there is none.
    pub async fn value(&self, conversation: &str, key: &str) -> Value {
        self.target(conversation).await["context"][key]["value"].clone()
    }

    /// Puts variables into a conversation, as somebody else would: `{key: {value, scope}}`.
    pub async fn seed(&self, conversation: &str, context: Value) {
        let body = json!({ "context": context });
        self.control(reqwest::Method::PUT, &format!("conversations/{conversation}"), Some(&body)).await;
    }

    /// The target's counters.
    pub async fn stats(&self) -> Value {
        self.control(reqwest::Method::GET, "stats", None).await
    }

    /// Everything that happened in the target.
    pub async fn history(&self) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry: &Value| entry["seq"].as_u64().unwrap());
            let page = self.control(reqwest::Method::GET, &format!("history?after={after}"), None).await;
            let entries = page["entries"].as_array().or(page.as_array()).unwrap().clone();
            if entries.is_empty() {
                return all;
            }
            all.extend(entries);
        }
    }
}

impl World {
    /// Writes variables as another client of the target's API does, without a precondition.
    pub async fn write_as_another(&self, conversation: &str, context: Value) {
        let url = format!("{}/api/v1/auth/token", self.sandbox.url());
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "sandbox"),
            ("client_secret", "sandbox-secret"),
            ("scope", "context:write conversation:read"),
        ];
        let answer = self.http.post(url).form(&form).send().await.unwrap();
        let token: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let url = format!("{}/api/v1/context", self.sandbox.url());
        let body = json!({ "conversationId": conversation, "context": context });
        let request = self.http.patch(url).bearer_auth(token["access_token"].as_str().unwrap()).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}
