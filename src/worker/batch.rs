//! One batch of one conversation from lease to settlement: lease → ladder → execute → release → publish → settle.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::envelope::{AMBIGUOUS, Envelope};
use super::outbox::{Outbox, Unconfirmed};
use super::recent::Recent;
use crate::bot::Bot;
use crate::broker::{Message, header};
use crate::config;
use crate::dead_letters::{self, Death, Owner};
use crate::job::ConversationId;
use crate::ladder::Ladder;
use crate::lease::{self, Contention, ConversationLease, Hold, PastVerdict, Record};
use crate::metrics as names;
use crate::outcome::{Outcome, Subject, Timings};
use crate::pipeline::endings::{self, Ended, Ending, Task};
use crate::pipeline::execute::{Cost, Executor};
use crate::pipeline::memory::Memory;
use crate::pipeline::plan::batch_len;
use crate::pipeline::validate::Invalid;
use crate::pipeline::verdict::{Rejection, Verdict};
use crate::redis_link::RedisLink;
use crate::retry;
use crate::target::has_precondition;

/// A job and what holds it.
#[derive(Debug)]
pub struct Held {
    /// What to do.
    pub task: Task,
    /// Its message.
    pub envelope: Envelope,
}

/// What all batches of a bot share.
#[derive(Debug)]
pub struct Context {
    /// The bot.
    pub bot: Arc<Bot>,
    /// Attempts of a job.
    pub retry: config::Retry,
    /// Redis.
    pub redis: Arc<RedisLink>,
    /// Who waits on the retry ladder.
    pub ladder: Arc<Ladder>,
    /// What leaves the worker.
    pub outbox: Arc<Outbox>,
    /// What was ended lately.
    pub recent: Mutex<Recent>,
    /// No new work is begun.
    pub stop: CancellationToken,
    /// No new request is sent.
    pub halt: CancellationToken,
}

/// Messages that stay unsettled: we are stopping, and they go back to their queue with the channel.
pub type Unsettled = Vec<Envelope>;

impl Context {
    /// Works on the first jobs of a lane. Returns what is to be remembered of the conversation.
    pub async fn work(
        &self,
        conversation: &ConversationId,
        batch: Vec<Held>,
        mut memory: Memory,
    ) -> (Memory, Unsettled) {
        let started = Instant::now();
        let config = self.bot.config();
        let contention = if has_precondition(config.dialect) { Contention::GoOn } else { Contention::WaitOut };
        for held in &batch {
            self.stage("lane", started.saturating_duration_since(held.envelope.received));
        }
        let marks = batch.iter().map(|held| &held.task.mark).collect::<Vec<_>>();
        let lease = lease::acquire(&self.redis, &config.name, conversation, contention, &marks).await;
        self.count_lease(&lease);
        let mut unsettled = Unsettled::new();
        let batch = self.let_follow(conversation, &lease, batch, &mut unsettled).await;
        let (mut tasks, envelopes): (Vec<_>, Vec<_>) = batch.into_iter().map(|held| (held.task, held.envelope)).unzip();
        let begun = Instant::now();
        let (endings, cost) = self.execute(conversation, &lease, &mut tasks, &mut memory).await;
        self.stage("execute", begun.elapsed());
        let on_ladder = self.ladder.concerns(&config.name, conversation, &lease);
        let version = memory.version().cloned();
        let record = match &version {
            Some(version) if cost.requests > 0 => Record::Set(version),
            None if cost.requests > 0 => Record::Drop,
            _ => Record::Keep,
        };
        let work = Work { started, cost, on_ladder };
        let begun = Instant::now();
        let marks = tasks.iter().map(|task| (task.mark.clone(), task.generation)).collect::<Vec<_>>();
        let verdicts = marks
            .iter()
            .zip(&endings)
            .filter_map(|((mark, generation), ending)| Some((mark, to_be_remembered(ending, *generation)?)));
        let verdicts = verdicts.collect::<Vec<_>>();
        let release = lease.release(record, &verdicts);
        let refused = verdicts.iter().any(|(_, verdict)| *verdict != PastVerdict::Applied);
        let left = if refused {
            // Remembered before it is told: after a crash in between, the job must not get another verdict.
            release.await;
            self.settle(conversation, tasks, envelopes, endings, work).await
        } else {
            tokio::join!(release, self.settle(conversation, tasks, envelopes, endings, work)).1
        };
        self.stage("publish", begun.elapsed());
        unsettled.extend(left);
        (memory, unsettled)
    }

    /// Jobs that have others before them on the ladder follow these onto their rung; the rest is worked on.
    async fn let_follow(
        &self,
        conversation: &ConversationId,
        lease: &ConversationLease,
        batch: Vec<Held>,
        unsettled: &mut Unsettled,
    ) -> Vec<Held> {
        let bot = &self.bot.config().name;
        if !self.ladder.concerns(bot, conversation, lease) {
            return batch;
        }
        let jobs = batch.iter().map(|held| &held.task.job.id).collect::<Vec<_>>();
        let standings = self.ladder.standings(bot, conversation, &jobs).await;
        let mut rest = Vec::new();
        for (held, follows) in batch.into_iter().zip(standings) {
            match follows {
                Some(rung) => {
                    let attempts = held.task.attempts;
                    unsettled.extend(self.climb(conversation, held.task, held.envelope, rung, attempts).await);
                }
                None => rest.push(held),
            }
        }
        rest
    }

    /// Endings of the tasks. A panic is caught; where several jobs were together, each is tried alone, so that
    /// only the culprit ends.
    async fn execute(
        &self,
        conversation: &ConversationId,
        lease: &ConversationLease,
        tasks: &mut [Task],
        memory: &mut Memory,
    ) -> (Vec<Ending>, Cost) {
        let mut endings = Vec::with_capacity(tasks.len());
        let mut cost = Cost::default();
        while endings.len() < tasks.len() {
            let rest = &mut tasks[endings.len()..];
            if let Some(ending) = self.remembered(lease, &rest[0]) {
                endings.push(ending);
                continue;
            }
            let known = rest
                .iter()
                .skip(1)
                .position(|task| self.remembered(lease, task).is_some())
                .map_or(rest.len(), |at| at + 1);
            let count = batch_len(rest[..known].iter().map(|task| &task.job)).max(1);
            let together = &mut rest[..count];
            match self.guarded(conversation, lease, together, memory, &mut cost).await {
                Some(ended) => endings.extend(ended),
                None => {
                    for task in together {
                        let alone = std::slice::from_mut(task);
                        match self.guarded(conversation, lease, alone, memory, &mut cost).await {
                            Some(ended) => endings.extend(ended),
                            None => endings.push(panicked(&alone[0])),
                        }
                    }
                }
            }
        }
        (endings, cost)
    }

    async fn guarded(
        &self,
        conversation: &ConversationId,
        lease: &ConversationLease,
        tasks: &mut [Task],
        memory: &mut Memory,
        cost: &mut Cost,
    ) -> Option<Vec<Ending>> {
        let executor = Executor {
            bot: &self.bot,
            redis: &self.redis,
            retry: &self.retry,
            conversation,
            recorded: lease.recorded().filter(|_| cost.requests == 0),
            stop: &self.stop,
            halt: &self.halt,
        };
        let run = AssertUnwindSafe(executor.run(tasks, memory)).catch_unwind().await;
        match run {
            Ok((endings, spent)) => {
                cost.add(spent);
                Some(endings)
            }
            Err(_) => {
                // Whatever it knew may be half of it.
                *memory = Memory::default();
                tracing::error!(bot = self.bot.config().name, %conversation, "a job made our code panic; it is caught");
                None
            }
        }
    }

    /// The ending of a job that was ended before: its acknowledgement was lost, or it was sent twice.
    fn remembered(&self, lease: &ConversationLease, task: &Task) -> Option<Ending> {
        let here = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.find(&task.mark, task.generation).cloned()
        };
        let verdict = here.or_else(|| past(lease.past_verdict(&task.mark)?, task.generation))?;
        let bot = self.bot.config().name.clone();
        metrics::counter!(names::DUPLICATES, "bot" => bot, "witness" => "memory").increment(1);
        Some(Ending::Verdict(Box::new(Ended { repeat: true, ..Ended::plain(verdict) })))
    }

    async fn settle(
        &self,
        conversation: &ConversationId,
        tasks: Vec<Task>,
        envelopes: Vec<Envelope>,
        endings: Vec<Ending>,
        work: Work,
    ) -> Unsettled {
        let mut unsettled = Unsettled::new();
        let mut verdicts = Vec::new();
        let mut rung = None;
        for ((task, envelope), ending) in tasks.into_iter().zip(envelopes).zip(endings) {
            match ending {
                Ending::Verdict(ended) => {
                    if work.on_ladder || task.attempts > 0 {
                        self.ladder.step_off(&self.bot.config().name, conversation, &task.job.id).await;
                    }
                    verdicts.push(self.verdict(conversation, task, envelope, *ended, work));
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
                    unsettled.extend(self.climb(conversation, task, envelope, rung, attempts).await);
                }
            }
        }
        // Published side by side, acknowledged in order: what comes again after a crash is an unbroken end of the
        // conversation's jobs, so that doing it again ends as it ended.
        let mut published = verdicts.into_iter().map(|verdict| self.publish(verdict)).collect::<FuturesOrdered<_>>();
        while let Some((envelope, confirmed)) = published.next().await {
            match confirmed {
                Ok(()) if unsettled.is_empty() => {
                    let bot = self.bot.config().name.clone();
                    metrics::histogram!(names::JOB_SECONDS, "bot" => bot).record(envelope.received.elapsed());
                    // Where the channel is gone the job comes again, and gets this verdict again.
                    let _ = envelope.receipt.ack().await;
                }
                Ok(()) | Err(Unconfirmed) => unsettled.push(envelope),
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
    async fn climb(
        &self,
        conversation: &ConversationId,
        task: Task,
        envelope: Envelope,
        rung: usize,
        attempts: u32,
    ) -> Option<Envelope> {
        let bot = &self.bot.config().name;
        let delay = self.retry.schedule.get(rung).or(self.retry.schedule.last()).copied().unwrap_or_default();
        self.ladder.climb(bot, conversation, &task.job.id, rung, delay).await;
        let mut message = envelope
            .message
            .republish()
            .with_integer(header::ATTEMPT, u64::from(attempts))
            .with_first_seen(envelope.first_seen)
            .with_text(header::TRACEPARENT, &envelope.traceparent);
        if task.may_have_been_applied() {
            message = message.with_integer(AMBIGUOUS, 1);
        }
        metrics::counter!(names::JOB_RETRIES, "bot" => bot.clone(), "rung" => config::show_duration(delay))
            .increment(1);
        match self.outbox.rung(delay, bot, &message).await {
            Ok(()) => {
                // Where the channel is gone the job comes twice, and the ledger knows.
                let _ = envelope.receipt.ack().await;
                None
            }
            Err(Unconfirmed) => Some(envelope),
        }
    }

    /// Everything about a verdict but its publication.
    fn verdict(
        &self,
        conversation: &ConversationId,
        task: Task,
        envelope: Envelope,
        ended: Ended,
        work: Work,
    ) -> Sealed {
        let attempts = task.attempts + u32::from(work.cost.requests > 0 && !ended.repeat);
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).insert(
            task.mark.clone(),
            task.generation,
            ended.verdict.clone(),
        );
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
                queued: work.started.saturating_duration_since(envelope.received),
                budget: work.cost.waited,
                api: work.cost.took,
                total: envelope.received.elapsed(),
            },
            traceparent: envelope.traceparent.clone(),
        };
        let status = ended.last_failure.and_then(|detail| detail.status);
        self.seal(outcome, envelope, status)
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
        let (envelope, confirmed) = self.publish(self.seal(outcome, envelope, None)).await;
        if confirmed.is_err() {
            return Some(envelope);
        }
        // Where the channel is gone the message comes again, and is refused again.
        let _ = envelope.receipt.ack().await;
        None
    }

    fn seal(&self, outcome: Outcome, envelope: Envelope, last_status: Option<u16>) -> Sealed {
        let config = self.bot.config();
        let bot = config.name.clone();
        metrics::counter!(names::JOBS, "bot" => bot.clone(), "verdict" => outcome.verdict.as_str()).increment(1);
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
        let (routing_key, event) = self.outbox.seal(config, &outcome);
        Sealed { routing_key, event, letter, envelope }
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
            Verdict::Unknown(_) => letter.with_integer(AMBIGUOUS, 1),
            Verdict::Applied | Verdict::NotApplied(_) => letter,
        }
    }

    /// Outcome, then dead letter, each confirmed; after that the message may be acknowledged.
    async fn publish(&self, sealed: Sealed) -> (Envelope, Result<(), Unconfirmed>) {
        let Sealed { routing_key, event, letter, envelope } = sealed;
        let bot = &self.bot.config().name;
        let confirmed = async {
            self.outbox.outcome(&routing_key, &event).await?;
            if let Some(letter) = &letter {
                self.outbox.dead_letter(letter).await?;
                let reason = letter.text(header::REASON).unwrap_or_default().to_owned();
                metrics::counter!(names::DEAD_LETTERS, "bot" => bot.clone(), "reason" => reason).increment(1);
            }
            Ok(())
        };
        let confirmed = confirmed.await;
        (envelope, confirmed)
    }

    fn stage(&self, stage: &'static str, time: Duration) {
        let bot = self.bot.config().name.clone();
        metrics::histogram!(names::STAGE_SECONDS, "bot" => bot, "stage" => stage).record(time);
    }

    fn count_lease(&self, lease: &ConversationLease) {
        let bot = self.bot.config().name.clone();
        self.stage("lease", lease.waited());
        metrics::histogram!(names::LEASE_WAIT_SECONDS, "bot" => bot.clone()).record(lease.waited());
        let why = match lease.hold() {
            Hold::Held => return,
            Hold::HeldByAnother => "held",
            Hold::RedisAway => "redis_away",
        };
        metrics::counter!(names::LEASES_WITHOUT, "bot" => bot, "why" => why).increment(1);
    }
}

/// A verdict ready to be published.
struct Sealed {
    routing_key: String,
    event: Message,
    letter: Option<Message>,
    envelope: Envelope,
}

/// What the outcomes of one batch share.
#[derive(Debug, Clone, Copy)]
struct Work {
    started: Instant,
    cost: Cost,
    on_ladder: bool,
}

/// What another worker must know of an ending, should the job come to it: a verdict that no ledger tells.
fn to_be_remembered(ending: &Ending, generation: u32) -> Option<PastVerdict> {
    let Ending::Verdict(ended) = ending else { return None };
    match &ended.verdict {
        _ if ended.repeat => None,
        Verdict::Applied => (!ended.applied.recorded).then_some(PastVerdict::Applied),
        Verdict::NotApplied(rejection) => Some(PastVerdict::NotApplied(generation, rejection.code)),
        Verdict::Unknown(rejection) => Some(PastVerdict::Unknown(generation, rejection.code)),
    }
}

/// The verdict that a job had before, if it binds this generation.
fn past(verdict: &PastVerdict, generation: u32) -> Option<Verdict> {
    let rejection = |code| Rejection::new(code, "the job ended so before; a replay may try it again");
    match *verdict {
        PastVerdict::Applied => Some(Verdict::Applied),
        PastVerdict::NotApplied(of, code) => (of == generation).then(|| Verdict::NotApplied(rejection(code))),
        PastVerdict::Unknown(of, code) => (of == generation).then(|| Verdict::Unknown(rejection(code))),
    }
}

/// The end of a job on which our own code fails.
fn panicked(task: &Task) -> Ending {
    Ending::Verdict(Box::new(Ended::plain(endings::panicked(task))))
}
