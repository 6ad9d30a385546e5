//! Somebody else who writes into the same conversations through the same API: reads, changes, writes with `If-Match`,
//! and takes it calmly when that fails. Its requests meet the same faults as those of the workers.
//!
//! It has a key of its own, and it also writes keys of the jobs: it adds to the sum, appends to the list, sets the
//! bounded counter back. So a worker that writes over what it has not seen is found out.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::checker::{FOREIGN, FOREIGN_KEY};
use super::load;

/// The start of its trace ids, by which its writes are known in the history.
pub const TRACE: &str = "00-f0e1f0e1";
const WRITE_EVERY: Duration = Duration::from_millis(40);
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// Writes until it is dropped.
pub async fn write(api: &str, conversations: &[String], seed: u64) {
    let http = reqwest::Client::builder().timeout(REQUEST_WITHIN).build().unwrap();
    let mut dice = StdRng::seed_from_u64(seed ^ 0xf0e1);
    let mut token = None;
    let mut tick = tokio::time::interval(WRITE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0;
    loop {
        tick.tick().await;
        count += 1;
        let conversation = load::pick(&mut dice, conversations);
        let what = dice.random_range(0..4);
        // A conflict, a fault, a token that ended: the next write finds out more.
        if one(&http, api, conversation, &mut token, what, count).await.is_none() {
            token = None;
        }
    }
}

async fn one(
    http: &reqwest::Client,
    api: &str,
    conversation: &str,
    token: &mut Option<String>,
    what: u32,
    count: u64,
) -> Option<()> {
    if token.is_none() {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "sandbox"),
            ("client_secret", "sandbox-secret"),
            ("scope", "context:write conversation:read"),
        ];
        let answer = http.post(format!("{api}/api/v1/auth/token")).form(&form).send().await.ok()?;
        *token = parse(answer).await?["access_token"].as_str().map(str::to_owned);
    }
    let trace = format!("{TRACE}{count:024x}-00f067aa0ba902b7-01");
    let token = token.as_ref()?;
    let read = http.get(format!("{api}/api/v1/context/{conversation}")).bearer_auth(token);
    let state = parse(read.header("traceparent", &trace).send().await.ok()?).await?;
    let held = |key: &str| state["context"][key]["value"].clone();
    let context = match what {
        0 => json!({FOREIGN_KEY: {"value": count}}),
        1 => json!({"n": {"value": held("n").as_u64().unwrap_or(0) + 1}}),
        2 => {
            let mut list = held("all").as_array().cloned().unwrap_or_default();
            list.push(Value::from(FOREIGN + count));
            json!({"all": {"value": list}})
        }
        _ => json!({"g": {"value": 0}}),
    };
    let write = http.patch(format!("{api}/api/v1/context")).bearer_auth(token).header("traceparent", &trace);
    let write = write.header("If-Match", state["contextVersion"].to_string());
    let answer = write.json(&json!({"conversationId": conversation, "context": context})).send().await.ok()?;
    (answer.status() != 401).then_some(())
}

async fn parse(answer: reqwest::Response) -> Option<Value> {
    if !answer.status().is_success() {
        return None;
    }
    serde_json::from_str(&answer.text().await.ok()?).ok()
}
