//! The outcome event: what subscribers learn of a job. CloudEvents 1.0, structured mode,
//! `schemas/outcome.v1.json`.
//!
//! The id is made from bot, job, replay generation and verdict, so that a repeated publish is the same event,
//! whichever worker makes it. It holds no values, unless the bot's settings say `values_in_events`.

use std::time::Duration;

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::audit::hex;
use crate::config::{Bot, Dialect, LedgerMode};
use crate::job::{ConversationId, JobId, Version};
use crate::pipeline::plan::KeyOutcome;
use crate::pipeline::verdict::Verdict;

mod event;

pub use event::Event;

/// The event's `type`.
pub const TYPE: &str = "context-injector.outcome.v1";
/// Media type of the event (CloudEvents JSON format).
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Media type of its `data`.
const CONTENT_TYPE_OF_DATA: &str = "application/json";
/// Namespace of the ids: UUIDv5 of the DNS name `outcome.context-injector.invalid`.
const NAMESPACE: Uuid = Uuid::from_u128(0xd4ea_9542_fe46_5cff_b400_9d38_6c7f_23e8);

/// What a job's outcome says about exactly-once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// Conditional writes on a version that never repeats, with a ledger.
    ExactlyOnce,
    /// One writer at a time by lane and lease; the target has no conditional write.
    Serialised,
    /// Conditional writes without a ledger.
    BestEffort,
}

impl Guarantee {
    /// The guarantee of a bot's jobs.
    #[must_use]
    pub fn of(bot: &Bot) -> Self {
        match (bot.dialect, bot.ledger) {
            (Dialect::CognigyV2, _) => Self::Serialised,
            (Dialect::ContextV1, LedgerMode::Off) => Self::BestEffort,
            (Dialect::ContextV1, LedgerMode::Auto | LedgerMode::Always) => Self::ExactlyOnce,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly_once",
            Self::Serialised => "serialised",
            Self::BestEffort => "best_effort",
        }
    }
}

/// Who the outcome is of: a job, or a message that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A job with an id.
    Job(JobId),
    /// A message without an id that counts, by the SHA-256 of its body.
    Body([u8; 32]),
}

impl Subject {
    /// The subject of a message.
    #[must_use]
    pub fn new(job_id: Option<JobId>, body: &[u8]) -> Self {
        job_id.map_or_else(|| Self::Body(Sha256::digest(body).into()), Self::Job)
    }

    /// The job id that counts, if any.
    #[must_use]
    pub fn job_id(&self) -> Option<&JobId> {
        match self {
            Self::Job(id) => Some(id),
            Self::Body(_) => None,
        }
    }
}

/// The id of an outcome: UUIDv5 of (bot, job id, replay generation, verdict).
#[must_use]
pub fn event_id(bot: &str, subject: &Subject, generation: u32, verdict: &str) -> Uuid {
    let subject = match subject {
        Subject::Job(id) => id.as_str().to_owned(),
        // No job id contains a slash.
        Subject::Body(hash) => format!("sha256/{}", hex(hash)),
    };
    Uuid::new_v5(&NAMESPACE, format!("{bot}\0{subject}\0{generation}\0{verdict}").as_bytes())
}

/// Where the time of a job went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From publication, or from our first sight of it, to the start of its batch.
    pub queued: Duration,
    /// Waiting for the bot's budget of requests.
    pub budget: Duration,
    /// In requests to the target.
    pub api: Duration,
    /// From our first sight of it to the verdict.
    pub total: Duration,
}

/// Everything an outcome event tells.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of what.
    pub subject: Subject,
    /// The conversation, where it is known.
    pub conversation: Option<ConversationId>,
    /// How it ended.
    pub verdict: Verdict,
    /// When.
    pub time: Timestamp,
    /// Whether this verdict was reached before.
    pub repeat: bool,
    /// Per variable what happened.
    pub keys: Vec<KeyOutcome>,
    /// Placeholders that nothing resolved.
    pub unresolved: Vec<String>,
    /// The job's rendered templates.
    pub templates: Vec<(String, String)>,
    /// The conversation's version before.
    pub version_before: Option<Version>,
    /// The conversation's version after.
    pub version_after: Option<Version>,
    /// Conflicts met on the way.
    pub conflicts: u32,
    /// Attempts, this one included; 0 where no request was made for it.
    pub attempts: u32,
    /// Jobs in the same request.
    pub batch_size: usize,
    /// Bytes of the request body; 0 where none was sent.
    pub request_bytes: usize,
    /// Replay generation.
    pub generation: u32,
    /// Where the time went.
    pub timings: Timings,
    /// W3C trace context.
    pub traceparent: String,
}

impl Outcome {
    /// The id of the event.
    #[must_use]
    pub fn id(&self, bot: &Bot) -> Uuid {
        event_id(&bot.name, &self.subject, self.generation, self.verdict.as_str())
    }
}

/// HMAC-SHA256: keyed, so that a value of few possibilities cannot be guessed from its digest.
pub(crate) fn digest(key: &[u8], bytes: &[u8]) -> String {
    // HMAC takes keys of every length.
    Hmac::<Sha256>::new_from_slice(key).map_or_else(
        |_| String::new(),
        |mut mac| {
            mac.update(bytes);
            hex(&mac.finalize().into_bytes())
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;
    use crate::job::{Name, Scope};
    use crate::pipeline::verdict::{KeyResult, Reason, Rejection};

    fn bot(more: &str) -> Bot {
        let settings = format!(
            "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n{more}"
        );
        Config::parse(&settings, []).unwrap().bots.remove("default").unwrap()
    }

    fn outcome() -> Outcome {
        Outcome {
            subject: Subject::Job(JobId::new("order-8123-paid").unwrap()),
            conversation: ConversationId::new("conv_8a7b", &bot("").conversation_id_pattern),
            verdict: Verdict::Applied,
            time: "2026-11-23T10:00:00.123456Z".parse().unwrap(),
            repeat: false,
            keys: vec![KeyOutcome {
                name: Name::new(Scope::User, "customer_tier"),
                result: KeyResult::Written,
                value: Some(json!("premium")),
            }],
            unresolved: vec![],
            templates: vec![("note".to_owned(), "Tier premium".to_owned())],
            version_before: Some(Version::new("41")),
            version_after: Some(Version::new("42")),
            conflicts: 0,
            attempts: 1,
            batch_size: 3,
            request_bytes: 120,
            generation: 0,
            timings: Timings { api: Duration::from_micros(8_437), ..Timings::default() },
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        }
    }

    #[test]
    fn the_event_is_a_cloudevent_without_values() {
        let event = outcome().event(&bot(""), b"key").to_json();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["source"], "/bots/default");
        assert_eq!(event["time"], "2026-11-23T10:00:00.123Z");
        assert_eq!(event["data"]["version_before"], json!(41));
        assert_eq!(event["data"]["reason"], Value::Null);
        assert_eq!(event["data"]["timings_ms"]["api"].to_string(), "8.4");
        assert_eq!(event["data"]["keys"]["customer_tier"]["bytes"], json!(9));
        assert!(!event.to_string().contains("premium"), "{event}");
        let event = outcome().event(&bot("values_in_events = true"), b"key").to_json();
        assert_eq!(event["data"]["keys"]["customer_tier"]["value"], "premium");
        assert_eq!(event["data"]["templates"]["note"], "Tier premium");
    }

    #[test]
    fn the_id_is_of_bot_job_generation_and_verdict_and_nothing_else() {
        let bot = bot("");
        let id = outcome().id(&bot);
        assert_eq!(Outcome { repeat: true, conflicts: 7, ..outcome() }.id(&bot), id);
        assert_ne!(Outcome { generation: 1, ..outcome() }.id(&bot), id);
        let refused = Verdict::NotApplied(Rejection::new(Reason::Expired, ""));
        assert_ne!(Outcome { verdict: refused, ..outcome() }.id(&bot), id);
        assert_ne!(Outcome { subject: Subject::new(None, b"x"), ..outcome() }.id(&bot), id);
    }

    #[test]
    fn digests_need_the_key() {
        assert_eq!(digest(b"a", b"v"), digest(b"a", b"v"));
        assert_ne!(digest(b"a", b"v"), digest(b"b", b"v"));
    }
}
