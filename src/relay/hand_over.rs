//! What happens to an event after its try, on the broker's side: acked, put on a rung, given up or back in its
//! queue. Always publish, confirm, then ack, so that the relay may be killed between any two instructions: the
//! event is then there twice, never nowhere.

use std::time::Duration;

use jiff::Timestamp;

use super::decision::Reason;
use crate::broker::topology::Names;
use crate::broker::{Incoming, Mandatory, Message, Publisher, Receipt, header};

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
        let message = self.touched(&incoming.message).with_integer(header::ATTEMPT, u64::from(tries));
        self.publish_then_ack(&self.names.webhooks_retry(wait), &self.endpoint, &message, incoming.receipt).await;
    }

    /// Given up.
    pub async fn dead(&self, incoming: Incoming, death: &Death) {
        let letter = self.letter(&incoming.message, death);
        self.publish_then_ack("", &self.names.webhooks_dead(), &letter, incoming.receipt).await;
    }

    /// Back to its queue, untouched.
    pub async fn park(&self, incoming: Incoming) {
        if incoming.delivery_count().unwrap_or(0) < RETURNS {
            let _ = incoming.give_back().await;
            return;
        }
        let message = incoming.message.republish();
        self.publish_then_ack(&self.names.webhooks(), &self.endpoint, &message, incoming.receipt).await;
    }

    fn touched(&self, message: &Message) -> Message {
        let first_seen = message.first_seen().unwrap_or_else(Timestamp::now);
        message.republish().with_first_seen(first_seen)
    }

    fn letter(&self, message: &Message, death: &Death) -> Message {
        let mut letter = self
            .touched(message)
            .with_text(header::REASON, death.reason.code())
            .with_text(header::REASON_TEXT, &death.text)
            .with_text(header::ENDPOINT, &self.endpoint)
            .with_integer(header::ATTEMPTS, u64::from(death.tries))
            .with_text(header::DIED_AT, &format!("{:.3}", Timestamp::now()));
        if let Some(status) = death.status {
            letter = letter.with_integer(header::LAST_STATUS, u64::from(status));
        }
        if let Some(trace_id) = &death.trace_id {
            letter = letter.with_text(header::TRACE_ID, trace_id);
        }
        letter
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
