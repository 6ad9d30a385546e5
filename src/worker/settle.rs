//! What comes of a batch: verdicts become outcome events and dead letters, failed attempts go onto the ladder, and
//! each message is settled once that is confirmed.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::batch::{Context, Unsettled};
use super::envelope::Envelope;
use super::outbox::{Event, Letter, Unconfirmed};
use crate::broker::{Message, header};
use crate::config;
use crate::dead_letters::{self, Death, Owner};
use crate::job::ConversationId;
use crate::metrics as names;
use crate::outcome::{Outcome, Subject, Timings};
use crate::pipeline::endings::{Ended, Ending, Task};
use crate::pipeline::execute::Cost;
use crate::pipeline::validate::Invalid;
use crate::pipeline::verdict::{Rejection, Verdict};
use crate::retry;

/// Outcomes of one batch that are published and not confirmed yet: those of the other conversations do not wait behind
/// all that a busy one has to tell.
const SIDE_BY_SIDE: usize = 16;

impl Context {
    /// Publishes what came of a batch, and settles its messages. Returns those that stay unsettled.
    pub(super) async fn settle(
        &self,
        conversation: &ConversationId,
        tasks: Vec<Task>,
        envelopes: Vec<Envelope>,
        endings: Vec<Ending>,
        work: Work,
    ) -> Unsettled {
        let mut unsettled = Unsettled::new();
        let mut told = Vec::with_capacity(tasks.len());
        let mut under_way = VecDeque::with_capacity(tasks.len().min(SIDE_BY_SIDE));
        let mut rung = None;
        for ((task, envelope), ending) in tasks.into_iter().zip(envelopes).zip(endings) {
            match ending {
                Ending::Verdict(ended) => {
                    if work.on_ladder || task.attempts > 0 {
                        self.ladder.step_off(&self.bot.config().name, conversation, &task.job.id).await;
                    }
                    if under_way.len() == SIDE_BY_SIDE
                        && let Some(first) = under_way.pop_front()
                    {
                        told.push(self.event_told(first).await);
                    }
                    under_way.push_back(self.hand_over(self.verdict(conversation, task, envelope, *ended, work)));
                }
                Ending::Interrupted => unsettled.push(envelope),
                Ending::Retry(detail) => {
                    tracing::warn!(
                        bot = self.bot.config().name, %conversation, job = %task.job.id,
                        trace_id = detail.trace_id, "the target failed; the job waits: {detail}"
                    );
                    // All of a batch go onto the rung of the first, so that they keep their order.
                    let rung = *rung.get_or_insert_with(|| self.rung(&task));
                    let attempts = task.attempts + 1;
                    // Rare and large: boxed, so that the usual path needs no room for it.
                    unsettled.extend(Box::pin(self.climb(conversation, task, envelope, rung, attempts)).await);
                }
            }
        }
        // Published side by side, acknowledged in order: what comes again after a crash is an unbroken end of the
        // conversation's jobs, so that doing it again ends as it ended.
        for published in under_way {
            told.push(self.event_told(published).await);
        }
        let mut unbroken = true;
        for (letter, envelope) in told {
            unbroken &= self.letter_confirmed(letter).await.is_ok();
            if unbroken {
                self.bot.meters().job.record(envelope.received.elapsed());
                // Where the channel is gone the job comes again, and gets this verdict again.
                envelope.receipt.ack_soon();
            } else {
                unsettled.push(envelope);
            }
        }
        unsettled
    }

    fn rung(&self, task: &Task) -> usize {
        match retry::next(&self.retry, task.attempts + 1, Timestamp::now(), task.job.deadline) {
            retry::Next::Rung { index, .. } => index,
            retry::Next::GiveUp => 0,
        }
    }

    /// Puts a job onto a rung: place first, then publish, then ack.
    pub(super) async fn climb(
        &self,
        conversation: &ConversationId,
        task: Task,
        envelope: Envelope,
        rung: usize,
        attempts: u32,
    ) -> Option<Envelope> {
        let bot = &self.bot.config().name;
        let delay = self.retry.schedule.get(rung).or(self.retry.schedule.last()).copied().unwrap_or_default();
        let climb = self.ladder.climb(bot, conversation, &task.job.id, rung, delay).await;
        let mut message = envelope
            .message
            .republish()
            .with_integer(header::ATTEMPT, u64::from(attempts))
            .with_text(header::CLIMBED, &climb.to_string())
            .with_first_seen(envelope.first_seen)
            .with_text(header::TRACEPARENT, &envelope.traceparent);
        if task.may_have_been_applied() {
            message = message.with_integer(header::AMBIGUOUS, 1);
        }
        metrics::counter!(names::JOB_RETRIES, "bot" => bot.clone(), "rung" => config::show_duration(delay))
            .increment(1);
        match self.outbox.rung(delay, bot, &message).await {
            Ok(()) => {
                // Where the channel is gone the job comes twice, and the ledger knows.
                envelope.receipt.ack_soon();
                None
            }
            Err(Unconfirmed) => Some(envelope),
        }
    }

    /// Everything about a verdict but its publication.
    fn verdict(&self, conversation: &ConversationId, task: Task, envelope: Envelope, ended: Ended, work: Work) -> Told {
        let attempts = task.attempts + u32::from(work.cost.requests > 0 && !ended.repeat);
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).insert(
            task.mark.clone(),
            task.generation,
            ended.verdict.clone(),
            ended.place,
        );
        // The job may have come while its conversation's permit was waited for already.
        let queued = work.started.saturating_duration_since(envelope.received);
        let gate = work.gate.min(queued);
        let outcome = Outcome {
            subject: Subject::Job(task.job.id.clone()),
            conversation: Some(conversation.clone()),
            verdict: ended.verdict,
            time: Timestamp::now(),
            repeat: ended.repeat,
            keys: ended.applied.keys,
            unresolved: ended.applied.unresolved,
            templates: ended.applied.templates,
            version_before: ended.version_before,
            version_after: ended.version_after,
            conflicts: work.cost.conflicts,
            attempts,
            batch_size: ended.batch_size,
            request_bytes: ended.request_bytes,
            generation: task.generation,
            timings: Timings {
                queued: queued - gate,
                budget: gate + work.cost.waited,
                api: work.cost.took,
                total: envelope.received.elapsed(),
            },
            traceparent: envelope.traceparent.clone(),
        };
        let status = ended.last_failure.and_then(|detail| detail.status);
        self.tell(outcome, envelope, status)
    }

    /// The end of a message that is no job.
    pub async fn reject(&self, envelope: Envelope, invalid: Invalid) -> Option<Envelope> {
        let elapsed = envelope.received.elapsed();
        let outcome = Outcome {
            subject: Subject::new(invalid.job_id, &envelope.message.body),
            conversation: invalid.conversation,
            verdict: Verdict::NotApplied(invalid.rejection),
            time: Timestamp::now(),
            repeat: false,
            keys: Vec::new(),
            unresolved: Vec::new(),
            templates: Vec::new(),
            version_before: None,
            version_after: None,
            conflicts: 0,
            attempts: envelope.attempts(),
            batch_size: 1,
            request_bytes: 0,
            generation: envelope.generation(),
            timings: Timings { total: elapsed, ..Timings::default() },
            traceparent: envelope.traceparent.clone(),
        };
        let (letter, envelope) = self.event_told(self.hand_over(self.tell(outcome, envelope, None))).await;
        if self.letter_confirmed(letter).await.is_err() {
            return Some(envelope);
        }
        // Where the channel is gone the message comes again, and is refused again.
        envelope.receipt.ack_soon();
        None
    }

    fn tell(&self, outcome: Outcome, envelope: Envelope, last_status: Option<u16>) -> Told {
        let bot = &self.bot.config().name;
        self.bot.meters().count_verdict(&outcome.verdict);
        let letter = outcome.verdict.rejection().map(|rejection| {
            metrics::counter!(names::JOB_REASONS, "bot" => bot.clone(), "reason" => rejection.code.as_str())
                .increment(1);
            tracing::info!(
                bot,
                conversation = outcome.conversation.as_ref().map(ConversationId::as_str).unwrap_or_default(),
                job = outcome.subject.job_id().map(crate::job::JobId::as_str).unwrap_or_default(),
                reason = rejection.code.as_str(),
                pointer = rejection.pointer,
                "{}: {}",
                outcome.verdict.as_str(),
                rejection.text
            );
            self.letter(&outcome, rejection, &envelope, last_status)
        });
        Told { outcome, letter, envelope }
    }

    fn letter(
        &self,
        outcome: &Outcome,
        rejection: &Rejection,
        envelope: &Envelope,
        last_status: Option<u16>,
    ) -> Message {
        let bot = &self.bot.config().name;
        let death = Death {
            reason: rejection.code.as_str(),
            text: &rejection.text,
            certainty: Some(outcome.verdict.as_str()),
            attempts: outcome.attempts,
            first_seen: envelope.first_seen,
            last_status,
            trace_id: outcome.traceparent.split('-').nth(1),
            generation: outcome.generation,
            owner: Owner::Bot(bot),
            now: outcome.time,
        };
        let letter = dead_letters::letter(&envelope.message, &death);
        // A replay must know that the job may have been applied.
        match outcome.verdict {
            Verdict::Unknown(_) => letter.with_integer(header::AMBIGUOUS, 1),
            Verdict::Applied | Verdict::NotApplied(_) => letter,
        }
    }

    /// Hands an outcome to the publisher at once; its confirm is waited for apart. The dead letter may follow then, and
    /// after that one's confirm the message may be acknowledged.
    fn hand_over(&self, told: Told) -> Published {
        let Told { outcome, letter, envelope } = told;
        Published { event: self.outbox.hand_over(self.bot.config(), &outcome), letter, envelope }
    }

    /// [`Self::event_confirmed`] of a message.
    async fn event_told(&self, published: Published) -> (Result<Option<Letter>, Unconfirmed>, Envelope) {
        let Published { event, letter, envelope } = published;
        (self.event_confirmed(event, letter).await, envelope)
    }

    /// Waits for the confirm of an outcome, and hands over the dead letter, where there is one.
    async fn event_confirmed(&self, event: Event, letter: Option<Message>) -> Result<Option<Letter>, Unconfirmed> {
        self.outbox.confirmed(event).await?;
        Ok(letter.map(|letter| self.outbox.hand_over_letter(letter)))
    }

    async fn letter_confirmed(&self, letter: Result<Option<Letter>, Unconfirmed>) -> Result<(), Unconfirmed> {
        let Some(letter) = letter? else { return Ok(()) };
        let reason = letter.message().text(header::REASON).unwrap_or_default().to_owned();
        // Rare and large: boxed, so that the usual path needs no room for it.
        Box::pin(self.outbox.letter_confirmed(letter)).await?;
        let bot = self.bot.config().name.clone();
        metrics::counter!(names::DEAD_LETTERS, "bot" => bot, "reason" => reason).increment(1);
        Ok(())
    }
}

/// A verdict whose outcome is handed to the publisher.
struct Published {
    event: Event,
    letter: Option<Message>,
    envelope: Envelope,
}

/// A verdict ready to be published.
struct Told {
    outcome: Outcome,
    letter: Option<Message>,
    envelope: Envelope,
}

/// What the outcomes of one batch share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// When its batch began.
    pub started: Instant,
    /// How long its first permit was waited for.
    pub gate: Duration,
    /// What it cost.
    pub cost: Cost,
    /// Whether somebody of the conversation is on the ladder.
    pub on_ladder: bool,
}
