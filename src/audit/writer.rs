//! Sealing and handing to the publisher as one step.
//!
//! Were they two, events of one writer could reach the stream in another order than that of their `seq`. So the
//! chain is locked over both, for some microseconds and over no wait; confirms are waited for outside, as many as
//! there are. Only a publish that has to be repeated comes late, and it is the same event again.
//!
//! Checkpoints go out behind the event that makes them due, in the same step. Nobody waits long for one, and none
//! is repeated: the next one covers it.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::checkpoint::{self, Notary};
use super::{Chain, Link};
use crate::broker::{Confirm, Mandatory, Message, PublishError, Publisher};
use crate::outcome;

/// Writes one chain.
#[derive(Debug)]
pub struct Writer {
    publisher: Publisher,
    /// The audit stream's name: checkpoints go there past the exchange.
    stream: String,
    notary: Option<Notary>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    chain: Chain,
    /// The last event that a checkpoint covers.
    covered: u64,
}

/// An event that was handed over.
#[derive(Debug)]
pub struct Sealed {
    /// The event, to be published again where it is not confirmed.
    pub message: Message,
    /// Its confirm.
    pub confirm: Confirm,
    /// That of the checkpoint behind it, where one was due.
    pub checkpoint: Option<Confirm>,
}

impl Writer {
    /// Begins a chain of its own, which ends in the audit stream of that name.
    #[must_use]
    pub fn new(publisher: Publisher, stream: String, notary: Option<Notary>) -> Self {
        let chain = Chain::new(uuid::Uuid::new_v4().to_string());
        Self { publisher, stream, notary, state: Mutex::new(State { chain, covered: 0 }) }
    }

    /// Makes an event the next link ([`Chain::seal`]) and hands it to the publisher; `message` puts the body into its
    /// message.
    pub fn hand_over<E: Serialize>(
        &self,
        exchange: &str,
        routing_key: &str,
        event: impl FnOnce(Link) -> E,
        message: impl FnOnce(String) -> Message,
        mandatory: Mandatory,
    ) -> Sealed {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let message = message(state.chain.seal(event));
        let confirm = self.publisher.hand_over(exchange, routing_key, &message, mandatory);
        let due = self.notary.as_ref().filter(|notary| state.chain.seq() - state.covered >= notary.every);
        let checkpoint = due.map(|notary| self.checkpoint(&mut state, notary, false));
        Sealed { message, confirm, checkpoint }
    }

    /// Signs the end of the chain, where there is a key and an event. Nothing may be handed over after it.
    ///
    /// # Errors
    /// The checkpoint was not confirmed; the events behind the one before it stay without a signature.
    pub async fn close(&self) -> Result<(), PublishError> {
        let confirm = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let notary = self.notary.as_ref().filter(|_| state.chain.seq() > 0);
            notary.map(|notary| self.checkpoint(&mut state, notary, true))
        };
        match confirm {
            Some(confirm) => confirm.wait().await,
            None => Ok(()),
        }
    }

    fn checkpoint(&self, state: &mut State, notary: &Notary, last: bool) -> Confirm {
        let (now, count) = (Timestamp::now(), state.chain.seq() - state.covered);
        let event = notary.certify(&state.chain, count, last, now);
        state.covered = state.chain.seq();
        let id = event.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let message = Message::new(Value::Object(event).to_string())
            .with_content_type(outcome::CONTENT_TYPE)
            .with_message_id(&id)
            .with_type(checkpoint::TYPE)
            .with_timestamp(now);
        self.publisher.hand_over("", &self.stream, &message, Mandatory::Yes)
    }
}
