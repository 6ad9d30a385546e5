//! A dead letter: how one is made, and what one says. Pure.
//!
//! Its body is the original's, byte for byte; the producer's properties and headers stay. What we add is in
//! headers: why it died, how certain that is, and whose it was (the routing key is lost by then).

use jiff::Timestamp;
use lapin::types::AMQPValue;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Kind;
use crate::broker::topology::Names;
use crate::broker::{Incoming, Message, header};
use crate::pipeline::verdict::Reason;

/// Longest sentence in a header, in bytes: all headers together must fit into one frame.
const MAX_TEXT_BYTES: usize = 2_048;

/// Whose it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A job of this bot.
    Bot(&'a str),
    /// An event for this endpoint.
    Endpoint(&'a str),
}

/// How a message died.
#[derive(Debug, Clone, Copy)]
pub struct Death<'a> {
    /// Whose it was.
    pub owner: Owner<'a>,
    /// Reason code.
    pub reason: &'a str,
    /// The reason in a sentence, without values of variables.
    pub text: &'a str,
    /// `not_applied` or `unknown`, for a job.
    pub certainty: Option<&'a str>,
    /// Attempts made.
    pub attempts: u32,
    /// When we saw it first.
    pub first_seen: Timestamp,
    /// HTTP status of the last attempt, where there was one.
    pub last_status: Option<u16>,
    /// Trace id, 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
    /// How often an operator had replayed it.
    pub generation: u32,
    /// The present.
    pub now: Timestamp,
}

/// The dead letter of a message.
#[must_use]
pub fn letter(original: &Message, death: &Death<'_>) -> Message {
    let mut letter = original
        .republish()
        .without_header(header::ATTEMPT)
        .without_header(header::CLIMBED)
        .with_text(header::REASON, death.reason)
        .with_text(header::REASON_TEXT, cut(death.text))
        .with_integer(header::ATTEMPTS, u64::from(death.attempts))
        .with_first_seen(death.first_seen)
        .with_integer(header::REPLAY_GENERATION, u64::from(death.generation))
        .with_text(header::DIED_AT, &format!("{:.3}", death.now));
    letter = match death.owner {
        Owner::Bot(bot) => letter.with_text(header::BOT, bot),
        Owner::Endpoint(endpoint) => letter.with_text(header::ENDPOINT, endpoint),
    };
    if let Some(certainty) = death.certainty {
        letter = letter.with_text(header::CERTAINTY, certainty);
    }
    if let Some(status) = death.last_status {
        letter = letter.with_integer(header::LAST_STATUS, u64::from(status));
    }
    if let Some(trace_id) = death.trace_id {
        letter = letter.with_text(header::TRACE_ID, trace_id);
    }
    letter
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// What a dead letter says, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Stable name of this letter: message id and a hash of the body.
    pub id: String,
    /// The producer's message id.
    pub message_id: Option<String>,
    /// Why it died: a reason code, or what the broker says (`delivery_limit`, `expired`).
    pub reason: String,
    /// The reason in a sentence.
    pub text: String,
    /// `not_applied`, `unknown`.
    pub certainty: Option<String>,
    /// The bot of a job.
    pub bot: Option<String>,
    /// The endpoint of an event.
    pub endpoint: Option<String>,
    /// The conversation that the body names.
    pub conversation: Option<String>,
    /// The job id that the body names.
    pub job_id: Option<String>,
    /// Attempts made.
    pub attempts: Option<u64>,
    /// HTTP status of the last attempt.
    pub status: Option<u64>,
    /// Trace id.
    pub trace_id: Option<String>,
    /// How often it was replayed.
    pub generation: u32,
    /// When it died, or came here.
    pub died_at: Option<Timestamp>,
    /// When we saw it first.
    pub first_seen: Option<Timestamp>,
    /// Size of the body.
    pub bytes: usize,
}

/// The members of a body that help a person to find it: of a job, or of an event.
#[derive(Default, Deserialize)]
struct Clues {
    #[serde(default)]
    conversation_id: Option<Value>,
    #[serde(default)]
    subject: Option<Value>,
    #[serde(default)]
    job_id: Option<Value>,
    #[serde(default)]
    data: Option<Value>,
}

impl Letter {
    /// Reads what lies in a queue of that kind.
    #[must_use]
    pub fn read(kind: Kind, names: &Names, incoming: &Incoming) -> Self {
        let message = &incoming.message;
        let text = |name: &str| message.text(name).map(str::to_owned);
        let clues = serde_json::from_slice::<Clues>(&message.body).unwrap_or_default();
        let as_text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let of_data = |name: &str| as_text(clues.data.as_ref().and_then(|data| data.get(name)));
        let first_queue = message.text(header::FIRST_DEATH_QUEUE).unwrap_or_default();
        let (bot, endpoint) = match kind {
            Kind::Jobs => (text(header::BOT), None),
            Kind::Quarantine => (names.bot_of(first_queue).map(str::to_owned).or_else(|| text(header::BOT)), None),
            Kind::Unroutable => (Some(incoming.routing_key.clone()), None),
            Kind::Webhooks => (of_data("bot"), text(header::ENDPOINT)),
            Kind::WebhooksQuarantine => {
                (of_data("bot"), names.endpoint_of(first_queue).map(str::to_owned).or_else(|| text(header::ENDPOINT)))
            }
            Kind::WebhooksUnroutable => (of_data("bot"), Some(incoming.routing_key.clone())),
        };
        let (reason, said) = match kind {
            Kind::Jobs | Kind::Webhooks => {
                (text(header::REASON).unwrap_or_else(|| "unknown".to_owned()), text(header::REASON_TEXT))
            }
            // One that was edited or imported: what the broker told of it is in our headers.
            Kind::Quarantine | Kind::WebhooksQuarantine
                if message.text(header::FIRST_DEATH_REASON).is_none() && message.text(header::REASON).is_some() =>
            {
                (text(header::REASON).unwrap_or_default(), text(header::REASON_TEXT))
            }
            Kind::Quarantine | Kind::WebhooksQuarantine => describe_broker_reason(message),
            Kind::Unroutable => {
                let said = "no bot of this name was configured when it was published";
                (Reason::UnknownBot.as_str().to_owned(), Some(said.to_owned()))
            }
            Kind::WebhooksUnroutable => {
                ("unknown_endpoint".to_owned(), Some("the queue of the endpoint was gone".to_owned()))
            }
        };
        let died_at = message.text(header::DIED_AT).and_then(|text| text.parse().ok());
        Self {
            id: id_of(message),
            message_id: message.message_id().map(str::to_owned),
            reason,
            text: said.unwrap_or_default(),
            certainty: text(header::CERTAINTY),
            bot,
            endpoint,
            conversation: as_text(clues.conversation_id.as_ref()).or_else(|| as_text(clues.subject.as_ref())),
            job_id: as_text(clues.job_id.as_ref())
                .or_else(|| of_data("job_id"))
                .or_else(|| message.message_id().map(str::to_owned)),
            attempts: message.integer(header::ATTEMPTS),
            status: message.integer(header::LAST_STATUS),
            trace_id: text(header::TRACE_ID),
            generation: message.replay_generation(),
            died_at: died_at.or_else(|| death_time(message)).or_else(|| message.timestamp()),
            first_seen: message.first_seen(),
            bytes: message.body.len(),
        }
    }

    /// Whether an operator who typed `wanted` means this letter: its id, its message id, or the hash in its id.
    #[must_use]
    pub fn is_called(&self, wanted: &str) -> bool {
        self.id == wanted
            || self.message_id.as_deref() == Some(wanted)
            || self.id.rsplit_once('~').is_some_and(|(_, hash)| hash == wanted)
    }

    /// As a row for scripts.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "message_id": self.message_id, "reason": self.reason, "text": self.text,
            "certainty": self.certainty, "bot": self.bot, "endpoint": self.endpoint,
            "conversation": self.conversation, "job_id": self.job_id, "attempts": self.attempts,
            "status": self.status, "trace_id": self.trace_id, "generation": self.generation,
            "died_at": self.died_at.map(|time| format!("{time:.3}")),
            "first_seen": self.first_seen.map(|time| format!("{time:.3}")), "bytes": self.bytes,
        })
    }
}

/// What the broker says of a message that it moved by itself.
fn describe_broker_reason(message: &Message) -> (String, Option<String>) {
    let reason = message.text(header::FIRST_DEATH_REASON).unwrap_or("unknown");
    let said = match reason {
        "delivery_limit" => "it was given back or cut off too often: it, or its neighbour, crashed its consumer",
        "expired" => "its publisher gave it a time to live (expiration), and that ran out in the queue",
        "rejected" => "a consumer that is not ours rejected it",
        _ => "the broker moved it here",
    };
    (reason.to_owned(), Some(said.to_owned()))
}

/// When the broker moved it, by its newest `x-death` entry.
fn death_time(message: &Message) -> Option<Timestamp> {
    let AMQPValue::FieldArray(deaths) = message.header("x-death")? else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    let seconds = newest.inner().get("time")?.as_timestamp()?;
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

/// `message-id~hash`: the same for the same letter at every look, and fit to be typed.
pub(super) fn id_of(message: &Message) -> String {
    let hash = Sha256::digest(&message.body);
    let fits = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    let name = message.message_id().unwrap_or("none");
    let name = name.chars().take(128).map(|c| if fits(c) { c } else { '_' }).collect::<String>();
    let short = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{name}~{short}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death() -> Death<'static> {
        Death {
            owner: Owner::Bot("default"),
            reason: "value_too_large",
            text: "the value has 20,002 bytes; the limit is 10,240",
            certainty: Some("not_applied"),
            attempts: 2,
            first_seen: "2026-11-23T10:00:00.123Z".parse().unwrap(),
            last_status: Some(413),
            trace_id: Some("0af7651916cd43dd8448eb211c80319c"),
            generation: 1,
            now: "2026-11-23T10:00:01Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_letter_has_the_promised_headers_and_the_untouched_body() {
        let original = Message::new(r#"{"conversation_id": "conv_1"}"#)
            .with_message_id("order-1")
            .with_correlation_id("c-1")
            .with_text("producer", "kept")
            .with_text("x-death", "gone")
            .with_integer(header::ATTEMPT, 2);
        let letter = letter(&original, &death());
        assert_eq!(letter.body, original.body);
        assert_eq!((letter.message_id(), letter.correlation_id()), (Some("order-1"), Some("c-1")));
        let headers = letter.headers().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(
            headers,
            [
                "producer",
                "x-attempts",
                "x-bot",
                "x-certainty",
                "x-died-at",
                "x-first-seen",
                "x-last-status",
                "x-reason",
                "x-reason-text",
                "x-replay-generation",
                "x-trace-id"
            ]
        );
        assert_eq!(letter.integer("x-last-status"), Some(413));
        assert_eq!(letter.text("x-first-seen"), Some("2026-11-23T10:00:00.123Z"));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let long = "ü".repeat(3_000);
        let letter = letter(&Message::new(""), &Death { text: &long, ..death() });
        assert_eq!(letter.text(header::REASON_TEXT).unwrap().len(), MAX_TEXT_BYTES);
        assert!(long.starts_with(letter.text(header::REASON_TEXT).unwrap()));
    }

    #[test]
    fn an_id_is_stable_and_can_be_typed() {
        let message = Message::new("body").with_message_id("a b/ü");
        assert_eq!(id_of(&message), id_of(&message.clone().with_text("x", "y")));
        assert_eq!(id_of(&message), "a_b__~230d8358");
        assert_ne!(id_of(&message), id_of(&Message::new("other").with_message_id("a b/ü")));
        assert!(id_of(&Message::new("")).starts_with("none~"));
    }
}
