//! A dead letter: the message as it came, with headers that say why it ended here. One form for jobs and webhooks.

use jiff::Timestamp;

use crate::broker::{Message, header};

/// Why a message is a dead letter.
#[derive(Debug, Clone)]
pub struct Letter<'a> {
    /// Reason code.
    pub reason: &'a str,
    /// The reason in a sentence, without values.
    pub text: &'a str,
    /// `not_applied` or `unknown`.
    pub certainty: &'a str,
    /// Attempts that it had.
    pub attempts: u32,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// HTTP status of the last try.
    pub last_status: Option<u16>,
    /// Trace id, 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
    /// Replay generation.
    pub generation: u32,
    /// Whose it is: `x-bot` or `x-endpoint`, and the name.
    pub owner: (&'a str, &'a str),
}

impl Letter<'_> {
    /// The dead letter of `original`: its body and its producer's properties untouched.
    #[must_use]
    pub fn message(&self, original: &Message, now: Timestamp) -> Message {
        let mut letter = original
            .republish()
            .with_text(header::REASON, self.reason)
            .with_text(header::REASON_TEXT, self.text)
            .with_text(header::CERTAINTY, self.certainty)
            .with_integer(header::ATTEMPTS, u64::from(self.attempts))
            .with_first_seen(self.first_seen)
            .with_integer(header::REPLAY_GENERATION, u64::from(self.generation))
            .with_text(header::DIED_AT, &format!("{now:.3}"))
            .with_text(self.owner.0, self.owner.1);
        if let Some(status) = self.last_status {
            letter = letter.with_integer(header::LAST_STATUS, u64::from(status));
        }
        if let Some(trace_id) = self.trace_id {
            letter = letter.with_text(header::TRACE_ID, trace_id);
        }
        letter
    }
}
