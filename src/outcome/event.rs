//! The event as it is written.
//!
//! The members of each object stand in the order of their names, because [`crate::audit::Chain::seal`] hashes the text
//! as it comes: an event is written once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{CONTENT_TYPE_OF_DATA, Guarantee, Outcome, TYPE, digest};
use crate::audit::Link;
use crate::config::Bot;
use crate::job::{ConversationId, JobId, Scope, Version};
use crate::pipeline::plan::KeyOutcome;
use crate::pipeline::verdict::{KeyResult, Reason};

/// An outcome event (`schemas/outcome.v1.json`).
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    data: Data<'a>,
    datacontenttype: &'static str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prevhash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    source: String,
    specversion: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a ConversationId>,
    time: String,
    traceparent: &'a str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    writer: Option<Arc<str>>,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    attempts: u32,
    batch_size: usize,
    bot: &'a str,
    conflicts: u32,
    conversation_id: Option<&'a ConversationId>,
    guarantee: &'static str,
    job_id: Option<&'a JobId>,
    keys: BTreeMap<&'a str, Key<'a>>,
    reason: Option<Why<'a>>,
    repeat: bool,
    replay_generation: u32,
    request_bytes: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    templates: BTreeMap<&'a str, &'a str>,
    timings_ms: Milliseconds,
    trace_id: Option<&'a str>,
    unresolved: &'a [String],
    verdict: &'static str,
    version_after: Option<Value>,
    version_before: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Key<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    result: KeyResult,
    scope: Scope,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a Value>,
}

#[derive(Debug, Serialize)]
struct Why<'a> {
    code: Reason,
    pointer: Option<&'a str>,
    text: &'a str,
}

/// With one decimal place.
#[derive(Debug, Serialize)]
struct Milliseconds {
    api: f64,
    budget: f64,
    queued: f64,
    total: f64,
}

impl Outcome {
    /// The event, still without its place in the audit chain. `digest_key` keys the digests of values.
    #[must_use]
    pub fn event<'a>(&'a self, bot: &'a Bot, digest_key: &[u8]) -> Event<'a> {
        Event {
            data: self.data(bot, digest_key),
            datacontenttype: CONTENT_TYPE_OF_DATA,
            id: self.id(bot).to_string(),
            prevhash: None,
            seq: None,
            source: format!("/bots/{}", bot.name),
            specversion: "1.0",
            subject: self.conversation.as_ref(),
            time: format!("{:.3}", self.time),
            traceparent: &self.traceparent,
            r#type: TYPE,
            writer: None,
        }
    }

    fn data<'a>(&'a self, bot: &'a Bot, digest_key: &[u8]) -> Data<'a> {
        let templates = self.templates.iter().filter(|_| bot.values_in_events);
        Data {
            attempts: self.attempts,
            batch_size: self.batch_size,
            bot: &bot.name,
            conflicts: self.conflicts,
            conversation_id: self.conversation.as_ref(),
            guarantee: Guarantee::of(bot).as_str(),
            job_id: self.subject.job_id(),
            keys: self.keys.iter().map(|key| (key.name.key.as_str(), Key::of(key, bot, digest_key))).collect(),
            reason: self.verdict.rejection().map(|rejection| Why {
                code: rejection.code,
                pointer: rejection.pointer.as_deref(),
                text: &rejection.text,
            }),
            repeat: self.repeat,
            replay_generation: self.generation,
            request_bytes: self.request_bytes,
            templates: templates.map(|(name, text)| (name.as_str(), text.as_str())).collect(),
            timings_ms: Milliseconds {
                api: millis(self.timings.api),
                budget: millis(self.timings.budget),
                queued: millis(self.timings.queued),
                total: millis(self.timings.total),
            },
            trace_id: self.traceparent.split('-').nth(1),
            unresolved: &self.unresolved,
            verdict: self.verdict.as_str(),
            version_after: self.version_after.as_ref().map(Version::to_json),
            version_before: self.version_before.as_ref().map(Version::to_json),
        }
    }
}

impl Event<'_> {
    /// The event with its place in the audit chain.
    #[must_use]
    pub fn linked(self, link: Link) -> Self {
        Self { prevhash: Some(link.prevhash), seq: Some(link.seq), writer: Some(link.writer), ..self }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The event as a value.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // Structures with text keys: nothing in them can fail to be written.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl<'a> Key<'a> {
    fn of(key: &'a KeyOutcome, bot: &Bot, digest_key: &[u8]) -> Self {
        let text = key.value.as_ref().map(Value::to_string);
        Self {
            bytes: text.as_ref().map(String::len),
            digest: text.map(|text| digest(digest_key, text.as_bytes())),
            result: key.result,
            scope: key.name.scope,
            value: key.value.as_ref().filter(|_| bot.values_in_events),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
