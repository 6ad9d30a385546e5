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

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::evicted::Evicted;
use super::ledger::Mark;
use super::plan::{self, Applied, Candidate, Fate, Ground, MAX_BATCH, Plan};
use super::snapshot::{Contents, Known, Snapshot, Variables};
use super::verdict::{Reason, Rejection, Verdict};
use crate::bot::{Bot, Permit};
use crate::config;
use crate::job::{ConversationId, Job, Version};
use crate::metrics as names;
use crate::redis_link::RedisLink;
use crate::retry;
use crate::target::{Detail, Failure, Observed, Read, Write, has_precondition};
use crate::witness;

/// How long a snapshot is good for a first plan.
const SNAPSHOT_AGE: Duration = Duration::from_secs(30);
/// Most jobs without a ledger entry that are remembered for the next one.
const UNRECORDED: usize = 64;

/// A job under way, with what is known of it beside its text.
#[derive(Debug)]
pub struct Task {
    /// The job.
    pub job: Job,
    /// Its mark in the ledger.
    pub mark: Mark,
    /// Its replay generation.
    pub generation: u32,
    /// Whether an earlier delivery of it may have got anywhere.
    pub suspect: bool,
    /// When it was published, as far as its producer tells.
    pub published: Option<Timestamp>,
    /// Attempts before this one.
    pub attempts: u32,
    /// Whether an earlier delivery may have had its effect: its end is not known.
    pub uncertain: bool,
    /// W3C trace context.
    pub traceparent: String,
    /// The write that may have had its effect.
    pub(crate) tried: Option<Tried>,
}

/// A write that may have had its effect.
#[derive(Debug)]
pub(crate) struct Tried {
    at: Timestamp,
    applied: Applied,
    version_before: Option<Version>,
}

impl Task {
    /// A task that has not been tried.
    #[must_use]
    pub fn new(job: Job, bot: &str, traceparent: String) -> Self {
        Self {
            mark: Mark::of_job(bot, &job.conversation, &job.id),
            job,
            generation: 0,
            suspect: false,
            published: None,
            attempts: 0,
            uncertain: false,
            traceparent,
            tried: None,
        }
    }

    /// Whether a request of this or an earlier attempt may have had its effect.
    #[must_use]
    pub fn may_have_been_applied(&self) -> bool {
        self.uncertain || self.tried.is_some()
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            job: &self.job,
            mark: self.mark.clone(),
            generation: self.generation,
            suspect: self.suspect,
            uncertain: self.uncertain,
            published: self.published,
            tried: self.tried.as_ref().map(|tried| tried.at),
            tried_without_entry: self.tried.as_ref().is_some_and(|tried| !tried.applied.recorded),
        }
    }
}

/// What is remembered of a conversation between batches. Good until it is contradicted: every write is
/// conditional.
#[derive(Debug, Default)]
pub struct Memory {
    snapshot: Option<(Snapshot, Instant)>,
    known: Option<Known>,
    unrecorded: Vec<Mark>,
    evicted: Option<Evicted>,
    reset: Option<Timestamp>,
}

impl Memory {
    /// The version that the conversation has, as far as is known.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.snapshot.as_ref().and_then(|(snapshot, _)| snapshot.version.as_ref())
    }

    /// Bytes that it roughly takes, for the bound of the cache that holds it.
    #[must_use]
    pub fn weight(&self) -> usize {
        let variables = self.snapshot.as_ref().and_then(|(snapshot, _)| snapshot.variables());
        let variables =
            variables.map_or(0, |all| all.iter().map(|(name, value)| name.key.len() + 64 + weight(value)).sum());
        256 + variables + 100 * self.evicted.as_ref().map_or(0, Evicted::len)
    }
}

fn weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) => 32,
        Value::Number(_) => 56,
        Value::String(text) => 32 + text.len(),
        Value::Array(items) => 32 + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => 32 + fields.iter().map(|(name, value)| 64 + name.len() + weight(value)).sum::<usize>(),
    }
}

/// How a job left a batch.
#[derive(Debug)]
pub enum Ending {
    /// It has its verdict.
    Verdict(Box<Ended>),
    /// The target failed; the job waits for its next attempt.
    Retry(Detail),
    /// We are stopping and it was not finished.
    Interrupted,
}

/// A verdict and what led to it.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it was reached before.
    pub repeat: bool,
    /// What was done, where it was applied.
    pub applied: Applied,
    /// The conversation's version before.
    pub version_before: Option<Version>,
    /// The conversation's version after.
    pub version_after: Option<Version>,
    /// Jobs in the same request.
    pub batch_size: usize,
    /// Bytes of that request.
    pub request_bytes: usize,
    /// The last thing that the target said against it.
    pub last_failure: Option<Detail>,
}

impl Ended {
    /// A verdict that no request led to.
    #[must_use]
    pub fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            repeat: false,
            applied: Applied::default(),
            version_before: None,
            version_after: None,
            batch_size: 1,
            request_bytes: 0,
            last_failure: None,
        }
    }
}

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
    pub bot: &'a Bot,
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
}

impl Executor<'_> {
    /// Carries out a batch; the endings are those of `tasks`, in order.
    pub async fn run(&self, tasks: &mut [Task], memory: &mut Memory) -> (Vec<Ending>, Cost) {
        let mut run = Run {
            with: self,
            memory,
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
        let mut limit = MAX_BATCH;
        let mut refusal: Option<Rejection> = None;
        loop {
            let expired = self.expired(tasks);
            if !expired.is_empty() {
                return Ok(expired);
            }
            let snapshot = self.snapshot(tasks).await?;
            let plan = {
                let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
                let ground = Ground {
                    bot: self.with.bot.config(),
                    snapshot: &snapshot,
                    base: self.base.as_deref(),
                    backfill: &self.memory.unrecorded,
                    evicted: self.memory.evicted.get_or_insert_default(),
                    now: Timestamp::now(),
                };
                plan::plan(ground, &candidates, limit, refusal.clone())
            };
            let taken = plan.fates.len();
            let Some(body) = plan.body.clone() else {
                if plan.holds(&snapshot) {
                    let version = snapshot.version.clone();
                    return Ok(self.conclude(plan, &snapshot, version, tasks, 0));
                }
                self.forget(&snapshot);
                continue;
            };
            self.remember_evictions(&snapshot, &plan).await;
            match self.write(&snapshot, &plan, body, tasks).await? {
                Step::Done { version_after } => {
                    return Ok(self.conclude(plan, &snapshot, version_after, tasks, taken));
                }
                Step::Moved => {
                    metrics::counter!(names::REPLANS, "bot" => self.name()).increment(1);
                    self.forget(&snapshot);
                    let Some(delay) = self.conflict.next() else { return Ok(self.overrun(&tasks[..taken])) };
                    self.pause(delay).await?;
                }
                // Some job of several is at fault: halve, until it stands alone.
                Step::Refused(_) if taken > 1 => limit = taken / 2,
                Step::Refused(detail) if refusal.is_none() => refusal = Some(refused(&detail)),
                // Not even its tombstone is taken.
                Step::Refused(detail) => return Ok(vec![self.refused_for_good(&tasks[0], &detail)]),
            }
        }
    }

    /// Waits at the bot's gate, but not beyond the next deadline of a job, nor with new work beyond an order to stop.
    async fn permit(&self, tasks: &[Task]) -> Result<Permit<'_>, Halt> {
        let now = Timestamp::now();
        let deadlines = tasks.iter().map(|task| task.job.deadline).filter(|deadline| *deadline >= now);
        let left = deadlines.min().map(|deadline| Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
        let begun = self.cost.requests > 0;
        tokio::select! {
            biased;
            () = self.with.halt.cancelled() => Err(Halt::Interrupted),
            () = self.with.stop.cancelled(), if !begun => Err(Halt::Interrupted),
            permit = self.with.bot.permit() => Ok(permit),
            () = sleep(left.unwrap_or_default()), if left.is_some() => Err(Halt::Late),
        }
    }

    /// The first jobs, if they are past their deadline and nothing was ever sent for them: no request needed.
    fn expired(&self, tasks: &[Task]) -> Vec<Ending> {
        let now = Timestamp::now();
        let untouched = |task: &&Task| !task.suspect && task.tried.is_none() && task.job.deadline < now;
        let text = "the deadline passed before the job was applied";
        let rejection = || Rejection::new(Reason::Expired, text);
        tasks.iter().take_while(untouched).map(|_| self.ended(Verdict::NotApplied(rejection()), None)).collect()
    }

    /// The state to plan on: remembered where that is recent, the version alone where that is enough, else read.
    async fn snapshot(&mut self, tasks: &[Task]) -> Result<Snapshot, Halt> {
        let needs_state = {
            let candidates = tasks.iter().map(Task::candidate).collect::<Vec<_>>();
            plan::needs_state(self.with.bot.config(), &candidates)
        };
        if let Some((snapshot, at)) = &self.memory.snapshot
            && at.elapsed() < SNAPSHOT_AGE
            && (!needs_state || snapshot.variables().is_some())
        {
            let snapshot = snapshot.clone();
            self.count_source("memory");
            return Ok(snapshot);
        }
        let bot = self.with.bot.config();
        let first = self.cost.requests == 0;
        let version_only = |version| Snapshot { version, contents: Contents::VersionOnly, fresh: false, reset: None };
        if !has_precondition(bot.dialect) {
            return Ok(version_only(None));
        }
        if let Some(version) = self.with.recorded.filter(|_| first && !needs_state) {
            self.count_source("redis");
            return Ok(version_only(Some(version.clone())));
        }
        self.count_source("read");
        let mut observed = self.read(tasks).await?;
        let known = self.memory.known.clone();
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
        self.memory.reset = snapshot.reset.or(self.memory.reset);
        snapshot.reset = self.memory.reset;
        self.recall_evictions(&snapshot).await;
        self.remember(snapshot.clone());
        Ok(snapshot)
    }

    /// What the ledger is about to let go is applied already, whether or not this write gets through.
    async fn remember_evictions(&self, snapshot: &Snapshot, plan: &Plan) {
        let (Some(after), Contents::Full { ledger: Ok(before), .. }) = (&plan.ledger, &snapshot.contents) else {
            return;
        };
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
        let Contents::Full { ledger: Ok(ledger), .. } = &snapshot.contents else { return };
        let Some(low) = ledger.low_water() else { return };
        if self.memory.evicted.as_ref().is_some_and(|evicted| evicted.is_complete(Some(low))) {
            return;
        }
        let (redis, bot) = (self.with.redis, &self.with.bot.config().name);
        if let Some(found) = witness::recall(redis, bot, self.with.conversation, low.evicted).await {
            self.memory.evicted = Some(found);
        }
    }

    async fn read(&mut self, tasks: &[Task]) -> Result<Observed, Halt> {
        loop {
            let trace = tasks.first().map(|task| task.traceparent.as_str());
            let permit = self.permit(tasks).await?;
            let asked = self.with.bot.read_now(permit, self.with.conversation, trace);
            let spent = self.unless_halted(asked).await?;
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
                Failure::Refused(detail) | Failure::NotSent(detail) | Failure::Ambiguous(detail) => {
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
            let sent = self.with.bot.write_now(permit, self.with.conversation, body.clone(), version, trace);
            let spent = self.unless_halted(sent).await?;
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
                    note_tried(plan, snapshot, tasks);
                    self.memory.snapshot = None;
                    self.again_in_place(detail).await?;
                }
                Failure::NotSent(detail) => self.again_in_place(detail).await?,
                // The gate waits for the end of the pause.
                Failure::Throttled { .. } | Failure::Credentials(_) => {}
                Failure::Refused(detail) => {
                    self.last_failure = Some(detail.clone());
                    return Ok(Step::Refused(detail));
                }
                Failure::NotFound(detail) => return Err(Halt::NotFound(detail)),
            }
        }
    }

    fn name(&self) -> String {
        self.with.bot.config().name.clone()
    }

    /// What the fates of a plan mean now that they hold.
    fn conclude(
        &mut self,
        plan: Plan,
        snapshot: &Snapshot,
        version_after: Option<Version>,
        tasks: &[Task],
        batch_size: usize,
    ) -> Vec<Ending> {
        let request_bytes = plan.body.as_ref().map_or(0, Bytes::len);
        self.count(&plan, tasks);
        if plan.body.is_some() {
            self.advance(&plan, snapshot, version_after.clone(), tasks);
        }
        let ended = plan.fates.into_iter().zip(tasks).map(|(fate, task)| {
            let plain = |verdict, repeat| Ended {
                verdict,
                repeat,
                applied: Applied::default(),
                version_before: snapshot.version.clone(),
                version_after: version_after.clone(),
                batch_size: batch_size.max(1),
                request_bytes,
                last_failure: self.last_failure.clone(),
            };
            match fate {
                Fate::Applies(applied) => Ended { applied, ..plain(Verdict::Applied, false) },
                // The ambiguous write was this batch's own: its first outcome, not a repeated one.
                Fate::Repeat => match &task.tried {
                    Some(tried) => Ended {
                        applied: tried.applied.clone(),
                        version_before: tried.version_before.clone(),
                        version_after: None,
                        ..plain(Verdict::Applied, false)
                    },
                    None => plain(Verdict::Applied, true),
                },
                Fate::RefusedBefore(rejection) => plain(Verdict::NotApplied(rejection), true),
                Fate::Refused(rejection) => plain(Verdict::NotApplied(rejection), false),
                Fate::Unknown(rejection) => plain(Verdict::Unknown(rejection), false),
            }
        });
        ended.map(|ended| Ending::Verdict(Box::new(ended))).collect()
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
            metrics::histogram!(names::LEDGER_ENTRIES, "bot" => self.name()).record(to_f64(ledger.len()));
            let written = plan.changes.last().and_then(|change| change.value.as_ref());
            let bytes = written.map_or(0, |value| value.to_string().len());
            metrics::histogram!(names::LEDGER_BYTES, "bot" => self.name()).record(to_f64(bytes));
        }
    }

    fn count_source(&self, source: &'static str) {
        metrics::counter!(names::VERSION_CACHE, "bot" => self.name(), "source" => source).increment(1);
    }

    /// The conversation after our own write: what we knew, with the changes.
    fn advance(&mut self, plan: &Plan, snapshot: &Snapshot, version: Option<Version>, tasks: &[Task]) {
        let known_before = self.memory.known.take();
        self.memory.snapshot = None;
        if let (Some(after), Contents::Full { ledger: Ok(before), .. }) = (&plan.ledger, &snapshot.contents) {
            let evicted = self.memory.evicted.get_or_insert_with(|| Evicted::beginning(before.low_water()));
            evicted.extend(before.low_water(), after.low_water(), &plan.evicted);
        }
        let had_ledger = plan.ledger.is_some() || known_before.is_some_and(|known| known.had_ledger);
        if plan.ledger.is_some() {
            self.memory.unrecorded.clear();
        } else {
            let applied = plan.fates.iter().zip(tasks).filter(|(fate, _)| matches!(fate, Fate::Applies(_)));
            self.memory.unrecorded.extend(applied.map(|(_, task)| task.mark.clone()));
            let surplus = self.memory.unrecorded.len().saturating_sub(UNRECORDED);
            self.memory.unrecorded.drain(..surplus);
        }
        let Some(version) = version else { return };
        self.memory.known = Some(Known { version: Some(version.clone()), had_ledger });
        let contents = match &snapshot.contents {
            Contents::VersionOnly => Contents::VersionOnly,
            Contents::Full { variables, ledger } => {
                let mut variables = Arc::clone(variables);
                let all = Arc::make_mut(&mut variables);
                for change in plan.changes.iter().filter(|change| change.name.key != self.with.bot.config().ledger_key)
                {
                    match &change.value {
                        Some(value) => all.insert(change.name.clone(), value.clone()),
                        None => all.remove(&change.name),
                    };
                }
                let ledger = plan.ledger.clone().map_or_else(|| ledger.clone(), Ok);
                Contents::Full { variables, ledger }
            }
        };
        let next = Snapshot { version: Some(version), contents, fresh: false, reset: self.memory.reset };
        self.memory.snapshot = Some((next, Instant::now()));
    }

    fn remember(&mut self, snapshot: Snapshot) {
        self.memory.known = Some(snapshot.known());
        if let Contents::Full { ledger: Ok(ledger), .. } = &snapshot.contents {
            let low = ledger.low_water();
            self.memory.evicted.get_or_insert_with(|| Evicted::beginning(low)).catch_up(low);
        }
        // The next plan on it may be of another batch: then it is no longer fresh.
        let kept = Snapshot { fresh: false, ..snapshot };
        self.memory.snapshot = Some((kept, Instant::now()));
    }

    /// The snapshot was overtaken. What it showed is what we knew before the others' changes.
    fn forget(&mut self, snapshot: &Snapshot) {
        self.memory.snapshot = None;
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

    /// Waits for an answer, but not beyond the deadline of a stop.
    async fn unless_halted<T>(&self, answer: impl Future<Output = T>) -> Result<T, Halt> {
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
            Halt::NotFound(detail) => {
                let text = format!("the target does not know the conversation: {detail}");
                let verdict = if task.tried.is_some() {
                    let text = format!("a try may have been applied, and then {text}");
                    Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text))
                } else {
                    Verdict::NotApplied(Rejection::at(Reason::ConversationNotFound, "/conversation_id", text))
                };
                self.ended(verdict, Some(detail.clone()))
            }
            Halt::Failed(detail) => {
                let attempt = task.attempts + 1;
                match retry::next(self.with.retry, attempt, Timestamp::now(), task.job.deadline) {
                    retry::Next::Rung { .. } => Ending::Retry(detail.clone()),
                    retry::Next::GiveUp => self.ended(exhausted(task, attempt, detail), Some(detail.clone())),
                }
            }
        }
    }

    /// The conversation changed under every try of ours.
    fn overrun(&self, tasks: &[Task]) -> Vec<Ending> {
        let text = format!("the conversation changed under each of {} tries", retry::CONFLICT_TRIES);
        tasks
            .iter()
            .map(|task| {
                let verdict = if task.may_have_been_applied() {
                    let text = format!("an earlier try may have been applied; then {text}");
                    Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text))
                } else {
                    Verdict::NotApplied(Rejection::new(Reason::ConflictLimit, text.clone()))
                };
                self.ended(verdict, None)
            })
            .collect()
    }

    fn refused_for_good(&self, task: &Task, detail: &Detail) -> Ending {
        let rejection = refused(detail);
        let verdict = if task.may_have_been_applied() {
            let text = format!("an earlier try may have been applied, and then the target refused it ({rejection})");
            Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text))
        } else {
            Verdict::NotApplied(rejection)
        };
        self.ended(verdict, Some(detail.clone()))
    }

    fn ended(&self, verdict: Verdict, last_failure: Option<Detail>) -> Ending {
        Ending::Verdict(Box::new(Ended {
            verdict,
            repeat: false,
            applied: Applied::default(),
            version_before: None,
            version_after: None,
            batch_size: 1,
            request_bytes: 0,
            last_failure: last_failure.or_else(|| self.last_failure.clone()),
        }))
    }
}

/// Remembers that the plan's write may have had its effect.
fn note_tried(plan: &Plan, snapshot: &Snapshot, tasks: &mut [Task]) {
    for (fate, task) in plan.fates.iter().zip(tasks) {
        if let Fate::Applies(applied) = fate
            && task.tried.as_ref().is_none_or(|tried| tried.applied.recorded)
        {
            let at = task.tried.as_ref().map_or_else(Timestamp::now, |tried| tried.at);
            task.tried = Some(Tried { at, applied: applied.clone(), version_before: snapshot.version.clone() });
        }
    }
}

fn refused(detail: &Detail) -> Rejection {
    Rejection::new(Reason::RefusedByTarget, detail.to_string())
}

fn exhausted(task: &Task, attempt: u32, detail: &Detail) -> Verdict {
    if task.may_have_been_applied() {
        let text =
            format!("a try may have been applied, and the target failed ever since, {attempt} attempts ({detail})");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    let text = format!(
        "the target failed at each of {attempt} attempts, or no further one ends before the deadline ({detail})"
    );
    Verdict::NotApplied(Rejection::new(Reason::AttemptsExhausted, text))
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
