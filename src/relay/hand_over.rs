//! What happens to an event after its try, on the broker's side: acked, put on a rung, given up or back in its
//! queue. Always publish, confirm, then ack, so that the relay may be killed between any two instructions: the
//! event is then there twice, never nowhere.

use std::time::Duration;

use jiff::Timestamp;

use super::decision::Reason;
use crate::broker::topology::Names;
use crate::broker::{Incoming, Mandatory, Message, Publisher, Receipt, header};
use crate::dead_letters;

/// Returns that a message may have behind it before it is published anew instead. The broker counts returns and
/// puts what has too many into quarantine (100), where nothing belongs that merely waits for its receiver.
const RETURNS: u64 = 50;
/// Between two tries to publish.
const PUBLISH_AGAIN: Duration = Duration::from_millis(500);

/// Hands the events of one endpoint over.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// Publishes with confirms.
    pub publisher: Publisher,
    /// The names of exchanges and queues.
    pub names: Names,
    /// The endpoint.
    pub endpoint: String,
    /// Whether its events must keep their places.
    pub ordered: bool,
}

/// What a dead letter says of its end.
#[derive(Debug, Clone)]
pub struct Death {
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence.
    pub text: String,
    /// Tries made.
    pub tries: u32,
    /// Status of the last one.
    pub status: Option<u16>,
    /// Trace id.
    pub trace_id: Option<String>,
}

impl HandOver {
    /// The receiver has it.
    pub async fn delivered(&self, receipt: Receipt) {
        // Where the channel is gone it comes again, and the receiver knows it by its id.
        let _ = receipt.ack().await;
    }

    /// Onto a rung, with one more try counted.
    pub async fn later(&self, incoming: Incoming, tries: u32, wait: Duration) {
        let first_seen = incoming.message.first_seen().unwrap_or_else(Timestamp::now);
        let message = incoming.message.republish().with_first_seen(first_seen);
        let message = message.with_integer(header::ATTEMPT, u64::from(tries));
        self.publish_then_ack(&self.names.webhooks_retry(wait), &self.endpoint, &message, incoming.receipt).await;
    }

    /// Given up.
    pub async fn dead(&self, incoming: Incoming, death: &Death) {
        let letter = self.letter(&incoming.message, death);
        self.publish_then_ack("", &self.names.webhooks_dead(), &letter, incoming.receipt).await;
    }

    /// Back to its queue, untouched: to its head, where it was, unless it came back too often for that.
    pub async fn park(&self, incoming: Incoming) {
        // The queue of an ordered endpoint lets events come back a million times.
        if self.ordered || incoming.delivery_count().unwrap_or(0) < RETURNS {
            let _ = incoming.give_back().await;
            return;
        }
        let message = incoming.message.republish();
        self.publish_then_ack(&self.names.webhooks(), &self.endpoint, &message, incoming.receipt).await;
    }

    fn letter(&self, message: &Message, death: &Death) -> Message {
        dead_letters::letter(
            message,
            &dead_letters::Death {
                owner: dead_letters::Owner::Endpoint(&self.endpoint),
                reason: death.reason.code(),
                text: &death.text,
                certainty: None,
                attempts: death.tries,
                first_seen: message.first_seen().unwrap_or_else(Timestamp::now),
                last_status: death.status,
                trace_id: death.trace_id.as_deref(),
                generation: message.replay_generation(),
                now: Timestamp::now(),
            },
        )
    }

    /// Publishes until it is confirmed, then acks. Where the message's own channel is gone meanwhile, it comes
    /// again by itself, so the effort ends there.
    async fn publish_then_ack(&self, exchange: &str, key: &str, message: &Message, receipt: Receipt) {
        let mut told = false;
        loop {
            match self.publisher.publish(exchange, key, message, Mandatory::Yes).await {
                Ok(()) => {
                    let _ = receipt.ack().await;
                    return;
                }
                Err(error) if !told => {
                    told = true;
                    let endpoint = &self.endpoint;
                    tracing::warn!(endpoint, exchange, "an event cannot be handed over, it is held: {error}");
                }
                Err(_) => {}
            }
            if !receipt.is_open() {
                return;
            }
            tokio::time::sleep(PUBLISH_AGAIN).await;
        }
    }
}
