//! One batch of one conversation from lease to settlement: lease → ladder → execute → release → publish → settle.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::envelope::Envelope;
use super::outbox::Outbox;
use super::recent::Recent;
use super::settle::Work;
use crate::bot::{Bot, Permit};
use crate::broker::header;
use crate::config::{self, LedgerMode};
use crate::job::ConversationId;
use crate::ladder::{Climb, Ladder};
use crate::lease::{self, Contention, ConversationLease, Hold, PastVerdict, Record};
use crate::metrics as names;
use crate::pipeline::endings::{self, Ended, Ending, Task};
use crate::pipeline::execute::{Cost, Executor};
use crate::pipeline::memory::Memory;
use crate::pipeline::place::Place;
use crate::pipeline::plan::batch_len;
use crate::redis_link::RedisLink;
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

/// What is left of a batch.
#[derive(Debug)]
pub struct Finished {
    /// What is to be remembered of the conversation.
    pub memory: Box<Memory>,
    /// What stays unsettled.
    pub unsettled: Unsettled,
}

impl Context {
    /// Works on the first jobs of a lane; `permit` is for the first request.
    pub async fn work(
        &self,
        conversation: &ConversationId,
        batch: Vec<Held>,
        mut memory: Box<Memory>,
        mut permit: Permit,
    ) -> Finished {
        let gate = permit.take_waited();
        let meters = self.bot.meters();
        let started = Instant::now();
        let config = self.bot.config();
        let contention = if has_precondition(config.dialect) { Contention::GoOn } else { Contention::WaitOut };
        for held in &batch {
            meters.lane.record(started.saturating_duration_since(held.envelope.received));
        }
        let marks = batch.iter().map(|held| &held.task.mark).collect::<Vec<_>>();
        let lease = lease::acquire(&self.redis, &config.name, conversation, contention, &marks).await;
        self.count_lease(&lease);
        let mut unsettled = Unsettled::new();
        let batch = self.let_follow(conversation, &lease, batch, &mut unsettled).await;
        let (mut tasks, envelopes): (Vec<_>, Vec<_>) = batch.into_iter().map(|held| (held.task, held.envelope)).unzip();
        let begun = Instant::now();
        let (endings, cost) = {
            let working = pin!(self.execute(conversation, &lease, &mut tasks, &mut memory, permit));
            lease.during(working).await
        };
        meters.execute.record(begun.elapsed());
        let on_ladder = self.ladder.concerns(&config.name, conversation, &lease);
        let version = memory.version_without_ledger().cloned();
        let record = match &version {
            Some(version) if cost.requests > 0 => Record::Set(version),
            None if cost.requests > 0 => Record::Drop,
            _ => Record::Keep,
        };
        let work = Work { started, gate, cost, on_ladder };
        let begun = Instant::now();
        let marks = tasks.iter().map(|task| (task.mark.clone(), task.generation)).collect::<Vec<_>>();
        let verdicts = marks.iter().zip(&endings).zip(&envelopes).filter_map(|((of, ending), envelope)| match ending {
            Ending::Verdict(ended) => Some((&of.0, PastVerdict::to_be_left(ended, of.1)?, envelope.receipt.is_open())),
            Ending::Retry(_) | Ending::Interrupted => None,
        });
        // Who was overtaken leaves no `applied`: its successor may be doing these jobs anew, in order, and must not
        // be told in the middle that the rest is done.
        let verdicts = verdicts.filter(|(_, verdict, held)| *held || !verdict.is_applied());
        let verdicts = verdicts.map(|(mark, verdict, _)| (mark, verdict)).collect::<Vec<_>>();
        let release = lease.release(record, &verdicts);
        let refused = verdicts.iter().any(|(_, verdict)| !verdict.is_applied());
        let left = if refused {
            // Remembered before it is told: after a crash in between, the job must not get another verdict.
            release.await;
            self.settle(conversation, tasks, envelopes, endings, work).await
        } else {
            tokio::join!(release, self.settle(conversation, tasks, envelopes, endings, work)).1
        };
        meters.publish.record(begun.elapsed());
        unsettled.extend(left);
        Finished { memory, unsettled }
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
        let climb = |held: &Held| held.envelope.message.text(header::CLIMBED)?.parse::<Climb>().ok();
        let comes_from_a_rung = batch.iter().any(|held| climb(held).is_some());
        if !comes_from_a_rung && !self.ladder.concerns(bot, conversation, lease) {
            return batch;
        }
        let jobs = batch.iter().map(|held| (&held.task.job.id, climb(held))).collect::<Vec<_>>();
        let standings = self.ladder.standings(bot, conversation, &jobs).await;
        let mut rest = Vec::new();
        for (held, follows) in batch.into_iter().zip(standings) {
            match follows {
                Some(rung) => {
                    let attempts = held.task.attempts;
                    // Rare and large: boxed, so that the usual path needs no room for it.
                    let climbing = Box::pin(self.climb(conversation, held.task, held.envelope, rung, attempts));
                    unsettled.extend(climbing.await);
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
        permit: Permit,
    ) -> (Vec<Ending>, Cost) {
        // Whatever is not needed is the next one's as soon as this returns.
        let permit = &mut Some(permit);
        let mut endings = Vec::with_capacity(tasks.len());
        let mut cost = Cost::default();
        for task in tasks.iter_mut() {
            task.before = self.place(lease, task);
        }
        while endings.len() < tasks.len() {
            // Who comes after one that must wait, waits as well: nobody overtakes.
            if let Some(detail) = endings.iter().find_map(Ending::must_wait).cloned() {
                endings.resize_with(tasks.len(), || Ending::Retry(detail.clone()));
                break;
            }
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
            match self.guarded(conversation, lease, together, memory, permit, &mut cost).await {
                Some(ended) => endings.extend(ended),
                None => {
                    for task in together {
                        let alone = std::slice::from_mut(task);
                        match self.guarded(conversation, lease, alone, memory, permit, &mut cost).await {
                            Some(ended) => endings.extend(ended),
                            None => endings.push(panicked(&alone[0])),
                        }
                    }
                }
            }
        }
        for (task, ending) in tasks.iter().zip(&mut endings) {
            if let Ending::Verdict(ended) = ending {
                ended.keep_to_the_first(task);
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
        permit: &mut Option<Permit>,
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
        let run = AssertUnwindSafe(executor.run(tasks, memory, permit)).catch_unwind().await;
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
        if task.before.is_some() {
            return None;
        }
        let (here, place) = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            (recent.find(&task.mark, task.generation).cloned(), recent.place(&task.mark).cloned())
        };
        let (verdict, place) = match here {
            Some(verdict) => (verdict, place),
            None => {
                let past = lease.past_verdict(&task.mark)?;
                (past.for_generation(task.generation)?, past.place().cloned())
            }
        };
        let bot = self.bot.config().name.clone();
        metrics::counter!(names::DUPLICATES, "bot" => bot, "witness" => "memory").increment(1);
        Some(Ending::Verdict(Box::new(Ended { repeat: true, place, ..Ended::plain(verdict) })))
    }

    /// Where a job that comes again took effect, if no ledger named it: whether that still counts, the ledger tells. A
    /// producer's own repeat comes after the job itself, and nothing before that is done again.
    fn place(&self, lease: &ConversationLease, task: &Task) -> Option<Place> {
        if !task.suspect || self.bot.config().ledger == LedgerMode::Off {
            return None;
        }
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match recent.find(&task.mark, task.generation) {
            Some(_) => recent.place(&task.mark).cloned(),
            None => lease.past_verdict(&task.mark)?.place().cloned(),
        }
    }

    fn count_lease(&self, lease: &ConversationLease) {
        let meters = self.bot.meters();
        meters.lease.record(lease.waited());
        meters.lease_wait.record(lease.waited());
        let why = match lease.hold() {
            Hold::Held => return,
            Hold::HeldByAnother => "held",
            Hold::RedisAway => "redis_away",
        };
        metrics::counter!(names::LEASES_WITHOUT, "bot" => self.bot.config().name.clone(), "why" => why).increment(1);
    }
}

/// The end of a job on which our own code fails.
fn panicked(task: &Task) -> Ending {
    Ending::Verdict(Box::new(Ended::plain(endings::panicked(task))))
}
