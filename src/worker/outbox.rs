//! What leaves the worker: outcome events, dead letters, jobs for the ladder. Each is persistent and confirmed
//! before its job is acknowledged.
//!
//! A publish that fails for a passing reason is repeated with the same bytes until it is confirmed or the process
//! gives up at its deadline; then the job stays unacknowledged and comes again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::Chain;
use crate::broker::topology::Names;
use crate::broker::{Mandatory, Message, PublishError, Publisher, header};
use crate::config::Bot;
use crate::outcome::{self, Outcome};
use crate::retry;

/// What leaves the worker.
#[derive(Debug)]
pub struct Outbox {
    publisher: Publisher,
    names: Names,
    chain: Mutex<Chain>,
    digest_key: Vec<u8>,
    give_up: CancellationToken,
}

/// It was not confirmed before we had to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker did not confirm a message before the deadline")]
pub struct Unconfirmed;

impl Outbox {
    /// An outbox with an audit chain of its own. `give_up` ends all waiting.
    #[must_use]
    pub fn new(publisher: Publisher, names: Names, digest_key: Vec<u8>, give_up: CancellationToken) -> Self {
        let chain = Mutex::new(Chain::new(uuid::Uuid::new_v4().to_string()));
        Self { publisher, names, chain, digest_key, give_up }
    }

    /// The next event of the audit chain, with its routing key. Publish in the order of sealing.
    #[must_use]
    pub fn seal(&self, bot: &Bot, outcome: &Outcome) -> (String, Message) {
        let mut event = outcome.event(bot, &self.digest_key);
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).seal(&mut event);
        let body = serde_json::Value::Object(event).to_string();
        let message = Message::new(body)
            .with_content_type(outcome::CONTENT_TYPE)
            .with_message_id(&outcome.id(bot).to_string())
            .with_type(outcome::TYPE)
            .with_timestamp(outcome.time)
            .with_text(header::TRACEPARENT, &outcome.traceparent);
        (format!("{}.{}", bot.name, outcome.verdict.as_str()), message)
    }

    /// Publishes an outcome.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn outcome(&self, routing_key: &str, event: &Message) -> Result<(), Unconfirmed> {
        self.publish(&self.names.outcomes(), routing_key, event, Mandatory::No).await
    }

    /// Publishes a dead letter.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn dead_letter(&self, letter: &Message) -> Result<(), Unconfirmed> {
        self.publish("", &self.names.jobs_dead(), letter, Mandatory::Yes).await
    }

    /// Publishes a job to a rung, from which it comes back to its bot's queue.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn rung(&self, delay: Duration, bot: &str, job: &Message) -> Result<(), Unconfirmed> {
        self.publish(&self.names.jobs_retry(delay), bot, job, Mandatory::Yes).await
    }

    async fn publish(
        &self,
        exchange: &str,
        key: &str,
        message: &Message,
        mandatory: Mandatory,
    ) -> Result<(), Unconfirmed> {
        let mut said = false;
        for delay in retry::reconnect_delays() {
            let error = tokio::select! {
                result = self.publisher.publish(exchange, key, message, mandatory) => match result {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                () = self.give_up.cancelled() => return Err(Unconfirmed),
            };
            // A queue that is gone is declared anew with the next connection; until then nothing may be lost.
            let lasting = !error.is_transient();
            if lasting || !said {
                said = true;
                tracing::warn!(%exchange, error = chain(&error), "a message was not confirmed; publishing it again");
            }
            tokio::select! {
                () = tokio::time::sleep(if lasting { Duration::from_secs(1) } else { delay }) => {}
                () = self.give_up.cancelled() => return Err(Unconfirmed),
            }
        }
        Err(Unconfirmed)
    }
}

fn chain(error: &PublishError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
