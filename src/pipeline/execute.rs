//! Carrying out a batch: snapshot, plan, PATCH, and again where the conversation moved, until every job of the
//! batch has an end or must wait.
//!
//! The rules that keep a verdict from being a guess:
//! - A write names the version of the snapshot that its plan was made on. Copies of it can apply once at most,
//!   so after an ambiguous answer the same bytes go out again with the same precondition.
//! - A conflict means: read anew, plan anew. Who asks the ledger of the new state learns whether the ambiguous
//!   write was his.
//! - Nothing is concluded from an old snapshot without a conditional write ([`Plan::holds`]).
//!
//! Three budgets that do not multiply: conflicts (10 a batch), repetitions in place (3 a batch), and the attempts
//! of a job on the ladder. A pause of the bot is none of them; it is waited for at the gate ([`Bot::write`]).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::endings::{self, Ended, Ending, Task};
use super::json;
use super::ledger::Mark;
use super::memory::Memory;
use super::plan::{self, Fate, Ground, MAX_BATCH, Plan};
use super::snapshot::{Snapshot, Variables};
use super::verdict::{Reason, Rejection, Verdict};
use crate::bot::{Bot, Permit};
use crate::config;
use crate::job::{ConversationId, Version};
use crate::metrics as names;
use crate::redis_link::RedisLink;
use crate::retry;
use crate::target::{self, Detail, Failure, Observed, Read, Write, has_precondition};
use crate::witness;

/// What a batch cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Requests.
    pub requests: u32,
    /// Conflicts.
    pub conflicts: u32,
    /// Writes that may or may not have had their effect.
    pub ambiguous: u32,
    /// Waiting for the budget.
    pub waited: Duration,
    /// In requests.
    pub took: Duration,
}

impl Cost {
    /// Adds another batch's cost.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.conflicts += other.conflicts;
        self.ambiguous += other.ambiguous;
        self.waited += other.waited;
        self.took += other.took;
    }
}

/// What a batch is carried out with.
#[derive(Debug)]
pub struct Executor<'a> {
    /// The bot.
    pub bot: &'a Arc<Bot>,
    /// The attempts of a job.
    pub retry: &'a config::Retry,
    /// The conversation.
    pub conversation: &'a ConversationId,
    /// The version that the lease's record tells.
    pub recorded: Option<&'a Version>,
    /// Redis, for what the ledger lets go.
    pub redis: &'a RedisLink,
    /// Cancelled when nothing new is to be begun.
    pub stop: &'a CancellationToken,
    /// Cancelled when nothing more is to be sent.
    pub halt: &'a CancellationToken,
}

/// Why the work on a batch pauses or ends.
enum Halt {
    /// A deadline passed while nothing could be sent: plan anew.
    Late,
    Failed(Detail),
    NotFound(Detail),
    Interrupted,
}

struct Run<'a> {
    with: &'a Executor<'a>,
    memory: &'a mut Memory,
    permit: &'a mut Option<Permit>,
    cost: Cost,
    /// The state before somebody else's changes.
    base: Option<Arc<Variables>>,
    in_place: Box<dyn Iterator<Item = Duration> + Send + Sync>,
    conflict: Box<dyn Iterator<Item = Duration> + Send + Sync>,
    last_failure: Option<Detail>,
}

/// What came of one plan.
enum Step {
    /// The fates hold.
    Done { version_after: Option<Version> },
    /// The conversation moved.
    Moved,
    /// The target will not take the request.
    Refused(Detail),
    /// The target took a part of the job and will not take the rest.
    HalfDone(Detail),
}

impl Executor<'_> {
    /// Carries out a batch; the endings are those of `tasks`, in order. A `permit` that is there is for its first
    /// request; it stays where none was needed.
    pub async fn run(
        &self,
        tasks: &mut [Task],
        memory: &mut Memory,
        permit: &mut Option<Permit>,
    ) -> (Vec<Ending>, Cost) {
        let mut run = Run {
            with: self,
            memory,
            permit,
            cost: Cost::default(),
            base: None,
            in_place: Box::new(retry::in_place_delays()),
            conflict: Box::new(retry::conflict_delays()),
            last_failure: None,
        };
        let mut endings = Vec::with_capacity(tasks.len());
        while endings.len() < tasks.len() {
            let done = endings.len();
            match run.step(&mut tasks[done..]).await {
                Ok(ended) => endings.extend(ended),
                Err(Halt::Late) => {}
                Err(halt) => {
                    let rest = tasks[done..].iter().map(|task| run.halted(task, &halt));
                    endings.extend(rest);
                }
            }
        }
        (endings, run.cost)
    }
}

impl Run<'_> {
    /// Brings at least one job to its end.
    async fn step(&mut self, tasks: &mut [Task]) -> Result<Vec<Ending>, Halt> {
        let dialect = self.with.bot.config().dialect;
        let mut limit = target::together(dialect, tasks.iter().map(|task| &task.job)).min(MAX_BATCH);
        let mut refusal: Option<Rejection> = None;
        loop {
            let expired = endings::expired(tasks, Timestamp::now());
            if expired > 0 {
                return Ok(tasks[..expired].iter().map(|_| self.ended(endings::expiry(), None)).collect());
            }
            let snapshot = self.snapshot(&tasks[..limit]).await?;
            let plan = {
                let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
                let ground = Ground {
                    bot: self.with.bot.config(),
                    snapshot: &snapshot,
                    base: self.base.as_deref(),
                    backfill: self.memory.unrecorded(),
                    evicted: self.memory.evicted(),
                    now: Timestamp::now(),
                };
                plan::plan(ground, &candidates, limit, refusal.clone())
            };
            let Some(body) = plan.body.clone() else {
                if plan.holds(&snapshot) {
                    let marks = tasks.iter().map(|task| task.mark.clone()).collect::<Vec<_>>();
                    self.memory.applied_without_entry(&plan, &marks);
                    return Ok(self.conclude(&plan, &snapshot, snapshot.version.as_ref(), tasks));
                }
                self.forget(&snapshot);
                continue;
            };
            self.remember_evictions(&snapshot, &plan).await;
            match self.write(&snapshot, &plan, body, tasks).await? {
                Step::Done { version_after } => {
                    self.advance(&plan, &snapshot, version_after.as_ref(), tasks);
                    return Ok(self.conclude(&plan, &snapshot, version_after.as_ref(), tasks));
                }
                Step::Moved => {
                    metrics::counter!(names::REPLANS, "bot" => self.name()).increment(1);
                    self.forget(&snapshot);
                    let Some(delay) = self.conflict.next() else {
                        let verdicts = tasks[..plan.fates.len()].iter().map(endings::overrun);
                        return Ok(verdicts.map(|verdict| self.ended(verdict, None)).collect());
                    };
                    self.pause(delay).await?;
                }
                // Some job of several is at fault: halve, until it stands alone.
                Step::Refused(_) if plan.fates.len() > 1 => limit = plan.fates.len() / 2,
                Step::Refused(detail) if refusal.is_none() => refusal = Some(endings::refusal(&detail)),
                Step::HalfDone(detail) => {
                    let rejection = Rejection::new(Reason::AmbiguousWrite, detail.to_string());
                    return Ok(vec![self.ended(Verdict::Unknown(rejection), Some(detail))]);
                }
                // Not even its tombstone is taken.
                Step::Refused(detail) => {
                    return Ok(vec![self.ended(endings::refused_for_good(&tasks[0], &detail), Some(detail))]);
                }
            }
        }
    }

    /// The state to plan on: remembered where that is recent, the version alone where that is enough, else read.
    async fn snapshot(&mut self, tasks: &[Task]) -> Result<Snapshot, Halt> {
        let needs_state = {
            let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
            plan::needs_state(self.with.bot.config(), &candidates)
        };
        let bot = self.with.bot.config();
        // Without a precondition nobody would contradict an old state, and plain values need none.
        let conditional = has_precondition(bot.dialect);
        if !conditional && !tasks.iter().any(|task| task.job.needs_values()) {
            return Ok(Snapshot::of_version(None));
        }
        if let Some(snapshot) = self.memory.recent(needs_state, Timestamp::now()).filter(|_| conditional) {
            let snapshot = snapshot.clone();
            self.with.bot.meters().version_from_memory.increment(1);
            return Ok(snapshot);
        }
        let first = self.cost.requests == 0;
        if let Some(version) = self.with.recorded.filter(|_| conditional && first && !needs_state) {
            self.with.bot.meters().version_from_redis.increment(1);
            return Ok(Snapshot::of_version(Some(version.clone())));
        }
        self.with.bot.meters().version_from_read.increment(1);
        let mut observed = self.read(tasks).await?;
        let known = self.memory.known().cloned();
        let make = |observed: Observed| {
            Snapshot::read(observed.version, observed.variables, &bot.ledger_key, known.as_ref(), Timestamp::now())
        };
        let mut snapshot = make(observed);
        if snapshot.reset.is_some() {
            // A cache in front of the platform can show an older state; a cleared conversation stays cleared.
            observed = self.read(tasks).await?;
            snapshot = make(observed);
        }
        if snapshot.reset.is_some() {
            tracing::warn!(
                bot = bot.name,
                conversation = %self.with.conversation,
                "the conversation was cleared or went back to an older version"
            );
        }
        self.recall_evictions(&snapshot).await;
        self.memory.remember(&mut snapshot, Timestamp::now());
        Ok(snapshot)
    }

    /// What the ledger is about to let go is applied already, whether or not this write gets through.
    async fn remember_evictions(&self, snapshot: &Snapshot, plan: &Plan) {
        let (Some(after), Some(before)) = (&plan.ledger, snapshot.ledger()) else { return };
        let (Some(after), before) = (after.low_water(), before.low_water()) else { return };
        if before == Some(after) {
            return;
        }
        let marks = plan.evicted.iter().map(Mark::as_str).collect::<Vec<_>>();
        let (redis, bot) = (self.with.redis, &self.with.bot.config().name);
        witness::record(redis, bot, self.with.conversation, &marks, before, after).await;
    }

    /// What other workers saw the ledger let go, if we did not.
    async fn recall_evictions(&mut self, snapshot: &Snapshot) {
        let Some(low) = self.memory.missed_evictions(snapshot) else { return };
        let (redis, bot) = (self.with.redis, &self.with.bot.config().name);
        if let Some(found) = witness::recall(redis, bot, self.with.conversation, low.evicted).await {
            self.memory.recall(found);
        }
    }

    async fn read(&mut self, tasks: &[Task]) -> Result<Observed, Halt> {
        loop {
            let trace = tasks.first().map(|task| task.traceparent.as_str());
            let permit = self.permit(tasks).await?;
            let spent = {
                let asked = pin!(self.with.bot.read_now(permit, self.with.conversation, trace));
                self.unless_halted(asked).await?
            };
            self.charge(spent.requests, spent.waited, spent.took);
            let failure = match spent.answer {
                Read::Observed(observed) if observed.version.is_some() => return Ok(observed),
                Read::Observed(_) => Failure::NotSent(Detail {
                    text: "the answer has no version, so nothing can be written safely".to_owned(),
                    ..Detail::default()
                }),
                Read::Failed(failure) => failure,
            };
            match failure {
                Failure::NotFound(detail) => return Err(Halt::NotFound(detail)),
                Failure::Refused(detail)
                | Failure::NotSent(detail)
                | Failure::HalfDone(detail)
                | Failure::Ambiguous(detail) => {
                    self.again_in_place(detail).await?;
                }
                // The gate waits for the end of the pause.
                Failure::Throttled { .. } | Failure::Credentials(_) => {}
            }
        }
    }

    /// Sends the plan's bytes until their fate is certain or the budget in place is spent.
    async fn write(&mut self, snapshot: &Snapshot, plan: &Plan, body: Bytes, tasks: &mut [Task]) -> Result<Step, Halt> {
        loop {
            let trace = tasks.first().map(|task| task.traceparent.as_str());
            let version = snapshot.version.as_ref();
            let permit = self.permit(tasks).await?;
            let spent = {
                let sent = pin!(self.with.bot.write_now(permit, self.with.conversation, body.clone(), version, trace));
                self.unless_halted(sent).await?
            };
            self.charge(spent.requests, spent.waited, spent.took);
            let failure = match spent.answer {
                Write::Applied { version } => return Ok(Step::Done { version_after: version }),
                Write::Conflict => {
                    self.cost.conflicts += 1;
                    return Ok(Step::Moved);
                }
                Write::Failed(failure) => failure,
            };
            match failure {
                Failure::Ambiguous(detail) => {
                    self.cost.ambiguous += 1;
                    endings::note_tried(plan, snapshot, tasks, Timestamp::now());
                    self.memory.forget_snapshot();
                    self.again_in_place(detail).await?;
                }
                Failure::NotSent(detail) => self.again_in_place(detail).await?,
                // The gate waits for the end of the pause.
                Failure::Throttled { .. } | Failure::Credentials(_) => {}
                Failure::Refused(detail) => {
                    self.last_failure = Some(detail.clone());
                    return Ok(Step::Refused(detail));
                }
                Failure::HalfDone(detail) => return Ok(Step::HalfDone(detail)),
                Failure::NotFound(detail) => return Err(Halt::NotFound(detail)),
            }
        }
    }

    fn name(&self) -> String {
        self.with.bot.config().name.clone()
    }

    fn count(&self, plan: &Plan, tasks: &[Task]) {
        for (fate, task) in plan.fates.iter().zip(tasks) {
            if *fate == Fate::Repeat && task.tried.is_none() {
                metrics::counter!(names::DUPLICATES, "bot" => self.name(), "witness" => "ledger").increment(1);
            }
        }
        if plan.tombstones > 0 {
            metrics::counter!(names::TOMBSTONES, "bot" => self.name()).increment(plan.tombstones);
        }
        if let Some(ledger) = &plan.ledger {
            let meters = self.with.bot.meters();
            meters.ledger_entries.record(to_f64(ledger.len()));
            let written = plan.changes.last().and_then(|change| change.value.as_ref());
            let bytes = written.map_or(0, json::length);
            meters.ledger_bytes.record(to_f64(bytes));
        }
    }

    /// What the fates of a plan mean now that they hold.
    fn conclude(&self, plan: &Plan, snapshot: &Snapshot, after: Option<&Version>, tasks: &[Task]) -> Vec<Ending> {
        self.count(plan, tasks);
        let with_failure = |ended| Ended { last_failure: self.last_failure.clone(), ..ended };
        let ended = endings::conclude(plan, snapshot, after, tasks).map(with_failure);
        ended.map(|ended| Ending::Verdict(Box::new(ended))).collect()
    }

    fn advance(&mut self, plan: &Plan, snapshot: &Snapshot, version: Option<&Version>, tasks: &[Task]) {
        let marks = tasks.iter().map(|task| task.mark.clone()).collect::<Vec<_>>();
        let ledger_key = &self.with.bot.config().ledger_key;
        self.memory.advance(plan, snapshot, version, &marks, ledger_key, Timestamp::now());
    }

    /// The snapshot was overtaken. What it showed is what we knew before the others' changes.
    fn forget(&mut self, snapshot: &Snapshot) {
        self.memory.forget_snapshot();
        if self.base.is_none() {
            self.base = snapshot.variables().cloned();
        }
    }

    /// Waits before a repetition, or ends the attempt.
    async fn again_in_place(&mut self, detail: Detail) -> Result<(), Halt> {
        self.last_failure = Some(detail.clone());
        match self.in_place.next() {
            Some(delay) => self.pause(delay).await,
            None => Err(Halt::Failed(detail)),
        }
    }

    async fn pause(&self, delay: Duration) -> Result<(), Halt> {
        tokio::select! {
            () = sleep(delay) => Ok(()),
            () = self.with.halt.cancelled() => Err(Halt::Interrupted),
        }
    }

    /// Waits at the bot's gate, but not beyond the next deadline of a job, nor with new work beyond an order to stop.
    async fn permit(&mut self, tasks: &[Task]) -> Result<Permit, Halt> {
        let begun = self.cost.requests > 0;
        if self.with.halt.is_cancelled() || (!begun && self.with.stop.is_cancelled()) {
            return Err(Halt::Interrupted);
        }
        if let Some(permit) = self.permit.take().filter(Permit::is_fresh) {
            return Ok(permit);
        }
        let now = Timestamp::now();
        let deadlines = tasks.iter().map(|task| task.job.deadline).filter(|deadline| *deadline >= now);
        let left = deadlines.min().map(|deadline| Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
        tokio::select! {
            biased;
            () = self.with.halt.cancelled() => Err(Halt::Interrupted),
            () = self.with.stop.cancelled(), if !begun => Err(Halt::Interrupted),
            permit = self.with.bot.permit() => Ok(permit),
            () = sleep(left.unwrap_or_default()), if left.is_some() => Err(Halt::Late),
        }
    }

    /// Waits for an answer, but not beyond the deadline of a stop. The answer is pinned by the caller: a future that is
    /// handed over by value is copied.
    async fn unless_halted<T>(&self, answer: impl Future<Output = T> + Unpin) -> Result<T, Halt> {
        tokio::select! {
            answer = answer => Ok(answer),
            () = self.with.halt.cancelled() => Err(Halt::Interrupted),
        }
    }

    fn charge(&mut self, requests: u32, waited: Duration, took: Duration) {
        self.cost.requests += requests;
        self.cost.waited += waited;
        self.cost.took += took;
    }

    /// The end of a job whose batch could not go on.
    fn halted(&self, task: &Task, halt: &Halt) -> Ending {
        match halt {
            Halt::Interrupted | Halt::Late => Ending::Interrupted,
            Halt::NotFound(detail) => self.ended(endings::not_found(task, detail), Some(detail.clone())),
            Halt::Failed(detail) => {
                let attempt = task.attempts + 1;
                match retry::next(self.with.retry, attempt, Timestamp::now(), task.job.deadline) {
                    retry::Next::Rung { .. } => Ending::Retry(detail.clone()),
                    retry::Next::GiveUp => self.ended(endings::exhausted(task, attempt, detail), Some(detail.clone())),
                }
            }
        }
    }

    fn ended(&self, verdict: Verdict, last_failure: Option<Detail>) -> Ending {
        let last_failure = last_failure.or_else(|| self.last_failure.clone());
        Ending::Verdict(Box::new(Ended { last_failure, ..Ended::plain(verdict) }))
    }
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
