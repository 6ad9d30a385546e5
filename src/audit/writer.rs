//! Sealing and handing to the publisher as one step.
//!
//! Were they two, events of one writer could reach the stream in another order than that of their `seq`. So the
//! chain is locked over both, for some microseconds and over no wait; confirms are waited for outside, as many as
//! there are. Only a publish that has to be repeated comes late, and it is the same event again.

use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use super::Chain;
use crate::broker::{Confirm, Mandatory, Message, Publisher};

/// Writes one chain.
#[derive(Debug)]
pub struct Writer {
    publisher: Publisher,
    chain: Mutex<Chain>,
}

impl Writer {
    /// Begins a chain of its own.
    #[must_use]
    pub fn new(publisher: Publisher) -> Self {
        Self { publisher, chain: Mutex::new(Chain::new(uuid::Uuid::new_v4().to_string())) }
    }

    /// Makes `event` the next link and hands it to the publisher; `message` puts the body into its message.
    pub fn hand_over(
        &self,
        exchange: &str,
        routing_key: &str,
        mut event: Map<String, Value>,
        message: impl FnOnce(String) -> Message,
        mandatory: Mandatory,
    ) -> (Message, Confirm) {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.seal(&mut event);
        let message = message(Value::Object(event).to_string());
        let confirm = self.publisher.hand_over(exchange, routing_key, &message, mandatory);
        (message, confirm)
    }
}
