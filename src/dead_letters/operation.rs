//! What an operator did with a letter, as an event of the audit stream.
//!
//! It is written and confirmed before the act: nothing is done that is not on record, and a command that is killed
//! in between leaves a record of what it was about to do. It is published to the stream alone, as a link of the
//! command's own chain; it holds ids, sizes and keyed digests, and no values.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Kind, Letter};
use crate::audit::{Sealed, Writer};
use crate::broker::topology::Names;
use crate::broker::{Mandatory, Message, Publisher};
use crate::config::Config;
use crate::outcome;

/// The `type` of the event.
const TYPE: &str = "context-injector.operation.v1";

/// Who does it, and why.
#[derive(Debug, Clone, clap::Args)]
pub struct Operator {
    /// Who does it, for the audit record
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME", value_parser = name)]
    by: String,
    /// Why, for the audit record (--reason is the filter)
    #[arg(long, value_name = "TEXT", value_parser = sentence)]
    why: String,
}

fn name(text: &str) -> Result<String, String> {
    said(text, 128)
}

fn sentence(text: &str) -> Result<String, String> {
    said(text, 1_024)
}

fn said(text: &str, longest: usize) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > longest || text.chars().any(char::is_control) {
        return Err(format!("say it in 1 to {longest} characters, on one line"));
    }
    Ok(text.to_owned())
}

impl Operator {
    /// The operator's name.
    pub(super) fn by(&self) -> &str {
        &self.by
    }
}

/// What is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act<'a> {
    /// The letter gets another body, and with it another id.
    Edit { id: &'a str, body: &'a [u8] },
    /// The letter is taken off its queue for ever.
    Discard,
}

/// Writes the records of one command.
pub(super) struct Recorder {
    writer: Writer,
    stream: String,
    digest_key: Vec<u8>,
}

impl Recorder {
    pub(super) fn new(publisher: &Publisher, names: &Names, config: &Config) -> Self {
        let writer = Writer::new(publisher.clone(), names.audit(), config.audit.notary.clone());
        Self { writer, stream: names.audit(), digest_key: config.audit.digest_key_or_random() }
    }

    /// Hands the record of an act to the publisher; the act may begin once it is confirmed.
    pub(super) fn hand_over(
        &self,
        operator: &Operator,
        kind: Kind,
        letter: &Letter,
        body: &[u8],
        act: Act<'_>,
    ) -> Sealed {
        let (id, now) = (uuid::Uuid::new_v4().to_string(), Timestamp::now());
        let in_message = |body: String| {
            Message::new(body)
                .with_content_type(outcome::CONTENT_TYPE)
                .with_message_id(&id)
                .with_type(TYPE)
                .with_timestamp(now)
        };
        let event = event(&id, operator, kind, letter, body, act, &self.digest_key, now);
        self.writer.hand_over("", &self.stream, |link| link.of(event), in_message, Mandatory::Yes)
    }

    /// Signs the end of the command's chain, where there is a key.
    pub(super) async fn close(&self) {
        if let Err(error) = self.writer.close().await {
            eprintln!("note: the records of this command are written, but their checkpoint is not: {error}");
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "each is one member of the event")]
fn event(
    id: &str,
    operator: &Operator,
    kind: Kind,
    letter: &Letter,
    body: &[u8],
    act: Act<'_>,
    digest_key: &[u8],
    now: Timestamp,
) -> Map<String, Value> {
    let told = |body: &[u8]| json!({ "bytes": body.len(), "digest": outcome::digest(digest_key, body) });
    let (action, letter_after, body_after) = match act {
        Act::Edit { id, body } => ("edit", Some(id), told(body)),
        Act::Discard => ("discard", None, Value::Null),
    };
    let data = json!({
        "action": action, "kind": kind.as_str(), "by": operator.by, "why": operator.why,
        "letter": letter.id, "letter_after": letter_after, "message_id": letter.message_id, "bot": letter.bot,
        "endpoint": letter.endpoint, "conversation_id": letter.conversation, "job_id": letter.job_id,
        "letter_reason": letter.reason, "replay_generation": letter.generation,
        "body_before": told(body), "body_after": body_after,
    });
    let fields = [
        ("specversion", json!("1.0")),
        ("type", json!(TYPE)),
        ("id", json!(id)),
        ("source", json!(format!("/dead-letters/{}", kind.as_str()))),
        ("time", json!(format!("{now:.3}"))),
        ("datacontenttype", json!("application/json")),
        ("data", data),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_why_are_one_line_each() {
        assert_eq!(name(" alice "), Ok("alice".to_owned()));
        for wrong in ["", "  ", "a\nb", &"x".repeat(129)] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
        assert!(sentence(&"x".repeat(1_024)).is_ok());
    }
}
