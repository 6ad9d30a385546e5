//! What holds a job while it is worked on: its message, the duty to settle it, when it came.

use jiff::Timestamp;
use tokio::time::Instant;

use crate::broker::{Incoming, Message, Receipt, header};
use crate::trace::{is_traceparent, new_traceparent};

/// One message and the duty to settle it.
#[derive(Debug)]
pub struct Envelope {
    /// As it came.
    pub message: Message,
    /// Settles it, once.
    pub receipt: Receipt,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// When we saw it first, in this delivery or an earlier one.
    pub first_seen: Timestamp,
    /// When it came this time.
    pub received: Instant,
    /// W3C trace context: the producer's, or one made here.
    pub traceparent: String,
}

impl Envelope {
    /// Opens a message.
    #[must_use]
    pub fn new(incoming: Incoming, now: Timestamp) -> Self {
        let Incoming { message, redelivered, receipt, .. } = incoming;
        let first_seen = message.first_seen().filter(|at| *at <= now).unwrap_or(now);
        let traceparent =
            message.traceparent().filter(|text| is_traceparent(text)).map_or_else(new_traceparent, str::to_owned);
        Self { message, receipt, redelivered, first_seen, received: Instant::now(), traceparent }
    }

    /// Attempts before this one.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.message.attempt()
    }

    /// Replay generation.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.message.replay_generation()
    }

    /// When the job was published, as far as its producer tells: of a replayed one, the first time.
    #[must_use]
    pub fn published(&self) -> Option<Timestamp> {
        if self.generation() > 0 {
            return self.message.text(header::FIRST_PUBLISHED)?.parse().ok();
        }
        self.message.timestamp()
    }

    /// Whether an earlier delivery may have had its effect without our knowing.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.redelivered || self.message.integer(header::AMBIGUOUS).is_some()
    }

    /// Whether an earlier delivery may have got anywhere.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.redelivered || self.attempts() > 0 || self.generation() > 0
    }
}
