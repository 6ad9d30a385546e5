//! What holds a job while it is worked on: its message, the duty to settle it, when it came.

use jiff::Timestamp;
use tokio::time::Instant;

use crate::broker::{Incoming, Message, Receipt};

/// Header of ours: an earlier attempt may have had its effect.
pub const AMBIGUOUS: &str = "x-ambiguous";

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

    /// Whether an earlier delivery may have got anywhere.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.redelivered || self.attempts() > 0 || self.generation() > 0
    }
}

/// Whether `text` is a `traceparent` of version 00 (W3C Trace Context §3.2).
fn is_traceparent(text: &str) -> bool {
    let hex =
        |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let set = |part: &str| part.bytes().any(|b| b != b'0');
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [version, trace, parent, flags] => {
            *version == "00" && hex(trace, 32) && set(trace) && hex(parent, 16) && set(parent) && hex(flags, 2)
        }
        _ => false,
    }
}

/// A new trace (W3C Trace Context, version 00, sampled).
#[must_use]
pub fn new_traceparent() -> String {
    let (trace, span): (u128, u64) = (rand::random(), rand::random());
    // All zeros are invalid.
    format!("00-{:032x}-{:016x}-01", trace.max(1), span.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_is_passed_on() {
        assert!(is_traceparent(&new_traceparent()));
        let refused = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx: y",
        ];
        for text in refused {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
