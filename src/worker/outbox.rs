//! What leaves the worker: outcome events, dead letters, jobs for the ladder. Each is persistent and confirmed
//! before its job is acknowledged.
//!
//! A publish that fails for a passing reason is repeated with the same bytes until it is confirmed or the process
//! gives up at its deadline; then the job stays unacknowledged and comes again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::checkpoint::Notary;
use crate::audit::{Sealed, Writer};
use crate::broker::topology::Names;
use crate::broker::{Confirm, Mandatory, Message, PublishError, Publisher, header};
use crate::config::Bot;
use crate::outcome::{self, Outcome};
use crate::retry;

/// What leaves the worker.
#[derive(Debug)]
pub struct Outbox {
    publisher: Publisher,
    names: Names,
    writer: Writer,
    digest_key: Vec<u8>,
    give_up: CancellationToken,
}

/// An outcome that was handed to the publisher.
#[derive(Debug)]
#[must_use = "its confirm must be waited for before its job is acknowledged"]
pub struct Event {
    key: String,
    sealed: Sealed,
}

/// A dead letter that was handed to the publisher.
#[derive(Debug)]
#[must_use = "its confirm must be waited for before its job is acknowledged"]
pub struct Letter {
    message: Message,
    confirm: Confirm,
}

impl Letter {
    /// What was handed over.
    pub fn message(&self) -> &Message {
        &self.message
    }
}

/// It was not confirmed before we had to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker did not confirm a message before the deadline")]
pub struct Unconfirmed;

impl Outbox {
    /// An outbox with an audit chain of its own, signed by `notary` where there is one. `give_up` ends all waiting.
    #[must_use]
    pub fn new(
        publisher: Publisher,
        names: Names,
        digest_key: Vec<u8>,
        notary: Option<Notary>,
        give_up: CancellationToken,
    ) -> Self {
        let writer = Writer::new(publisher.clone(), names.audit(), notary);
        Self { publisher, names, writer, digest_key, give_up }
    }

    /// Hands an outcome to the publisher, as the next event of the audit chain: its place in the chain, and in the
    /// stream, is taken here.
    pub fn hand_over(&self, bot: &Bot, outcome: &Outcome) -> Event {
        let (exchange, key) = (self.names.outcomes(), format!("{}.{}", bot.name, outcome.verdict.as_str()));
        let event = outcome.event(bot, &self.digest_key);
        let id = event.id().to_owned();
        let in_message = |body: String| {
            Message::new(body)
                .with_content_type(outcome::CONTENT_TYPE)
                .with_message_id(&id)
                .with_type(outcome::TYPE)
                .with_timestamp(outcome.time)
                .with_text(header::TRACEPARENT, &outcome.traceparent)
        };
        let sealed = self.writer.hand_over(&exchange, &key, |link| event.linked(link), in_message, Mandatory::No);
        Event { key, sealed }
    }

    /// Waits for the confirm of an outcome that was handed over.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn confirmed(&self, event: Event) -> Result<(), Unconfirmed> {
        let Event { key, sealed: Sealed { message, confirm, checkpoint } } = event;
        match self.first_answer(confirm).await? {
            Ok(()) => {}
            Err(error) => {
                let exchange = self.names.outcomes();
                Box::pin(self.again(&exchange, &key, &message, Mandatory::No, error)).await?;
            }
        }
        if let Some(checkpoint) = checkpoint {
            tokio::select! {
                confirmed = checkpoint.wait() => if let Err(error) = confirmed {
                    tracing::warn!(error = chain(&error), "an audit checkpoint was not confirmed; the next one covers it");
                },
                () = self.give_up.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Signs the end of the audit chain. For the end of the process: nothing may be published after it.
    pub async fn close(&self) {
        tokio::select! {
            closed = self.writer.close() => if let Err(error) = closed {
                tracing::warn!(error = chain(&error), "the last audit checkpoint was not confirmed");
            },
            () = self.give_up.cancelled() => {}
        }
    }

    /// Hands a dead letter to the publisher.
    pub fn hand_over_letter(&self, message: Message) -> Letter {
        let confirm = self.publisher.hand_over("", &self.names.jobs_dead(), &message, Mandatory::Yes);
        Letter { message, confirm }
    }

    /// Waits for the confirm of a dead letter that was handed over.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn letter_confirmed(&self, letter: Letter) -> Result<(), Unconfirmed> {
        match self.first_answer(letter.confirm).await? {
            Ok(()) => Ok(()),
            Err(error) => self.again("", &self.names.jobs_dead(), &letter.message, Mandatory::Yes, error).await,
        }
    }

    /// Publishes a job to a rung, from which it comes back to its bot's queue.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub async fn rung(&self, delay: Duration, bot: &str, job: &Message) -> Result<(), Unconfirmed> {
        let exchange = self.names.jobs_retry(delay);
        let confirm = self.publisher.hand_over(&exchange, bot, job, Mandatory::Yes);
        match self.first_answer(confirm).await? {
            Ok(()) => Ok(()),
            Err(error) => self.again(&exchange, bot, job, Mandatory::Yes, error).await,
        }
    }

    /// The broker's answer to what was handed over, unless we give up before.
    async fn first_answer(&self, confirm: Confirm) -> Result<Result<(), PublishError>, Unconfirmed> {
        tokio::select! {
            answer = confirm.wait() => Ok(answer),
            () = self.give_up.cancelled() => Err(Unconfirmed),
        }
    }

    /// Publishes again what was not confirmed, until it is.
    async fn again(
        &self,
        exchange: &str,
        key: &str,
        message: &Message,
        mandatory: Mandatory,
        mut error: PublishError,
    ) -> Result<(), Unconfirmed> {
        let mut said = false;
        for delay in retry::reconnect_delays() {
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
            match self.first_answer(self.publisher.hand_over(exchange, key, message, mandatory)).await? {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
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
