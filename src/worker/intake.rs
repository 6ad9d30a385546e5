//! The intake of one bot: takes messages from its queue, validates them, puts jobs into lanes, and starts batches
//! while the bot may work.
//!
//! One task owns lanes and memories, so nothing here is locked. Rules:
//! - A batch is taken from its lane when its first request may go, not before: what comes while the budget is waited
//!   for still rides along, and whose turn it is is decided last. So permits are bought here, as many as there are
//!   lanes that are ready, in one go; the place in the budget of a batch that needs no request is the next one's.
//! - While the bot is held (breaker open, paused) nothing is started and nothing is returned: the prefetch window
//!   bounds what waits. Only after ten minutes everything goes back, in order, until the bot may work again.
//! - A connection that breaks takes its unsettled messages back; batches under way go on, and their lanes stay
//!   occupied, so that no conversation is worked on twice at the same time by us.
//! - Where work waits and nothing moves, the channel is made anew, and then the process ends ([`Watchdog`]).
//! - A queue that another worker shall have is let go like on an order to stop, and subscribed to again: we are the
//!   last in its line then.
//! - An order to stop begins nothing new, finishes what is under way, and then closes the channel: the broker takes
//!   the rest back in one step and in order, and only then lets a standby have them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::batch::{Context, Finished, Held, Unsettled};
use super::envelope::Envelope;
use super::memories::Memories;
use super::permits::Permits;
use super::seat::Seat;
use super::watchdog::{Alarm, Waiting, Watchdog};
use crate::admin::{Condition, Health};
use crate::bot::Permit;
use crate::broker::{self, Broker, Incoming, Options, Subscription};
use crate::job::{ConversationId, Job};
use crate::lanes::{Lanes, Pace};
use crate::limiter::gcra::Budget;
use crate::metrics as names;
use crate::pipeline::endings::Task;
use crate::pipeline::plan;
use crate::pipeline::validate::{Invalid, Source, validate};
use crate::pipeline::verdict::{Reason, Rejection};
use crate::retry;
use crate::target;

/// How long messages are held for a bot that may not work.
const HOLD_AT_MOST: Duration = Duration::from_secs(600);
/// One conversation gets this part of the bot's budget of requests while its batches are not full …
const SHARE_OF_ONE: u32 = 10;
/// … after this many requests without a pause …
const AT_ONCE: u32 = 3;
/// … and never waits longer than this for its next one, however small the budget.
const REST_AT_MOST: Duration = Duration::from_millis(100);
/// How often the watchdog looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The intake of one bot.
#[derive(Debug)]
pub struct Intake {
    context: Arc<Context>,
    broker: Broker,
    seat: Arc<Seat>,
    watchdog: Watchdog,
    health: Health,
    part: String,
    lanes: Lanes<ConversationId, Held>,
    memories: Memories,
    running: JoinSet<Done>,
    permits: Permits,
    /// Batches under way, and the jobs in them.
    batches: usize,
    jobs: usize,
    /// Since when the bot may not work although there is work.
    held_since: Option<Instant>,
    /// What [`Self::health`] was told last of why no work is started.
    told: Option<Option<&'static str>>,
}

/// What a task of ours leaves behind.
#[derive(Debug)]
enum Done {
    Batch { conversation: ConversationId, jobs: usize, finished: Box<Finished> },
    Rejection(Option<Box<Envelope>>),
}

/// Why a subscription is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its channel is gone.
    Gone,
    /// The bot may not work for too long.
    HeldTooLong,
    /// Work waits and nothing moves.
    Stalled,
    /// Another worker shall have the queue.
    GivenUp,
    /// We are stopping.
    Stop,
}

impl Intake {
    /// An intake that has not begun.
    #[must_use]
    pub fn new(context: Arc<Context>, broker: Broker, seat: Arc<Seat>, watchdog: Watchdog, health: Health) -> Self {
        let part = format!("bot {}", seat.bot);
        let bot = context.bot.config();
        let budget = Budget::new(bot.requests_per_second, bot.burst);
        let turns = budget.share(SHARE_OF_ONE, AT_ONCE).no_slower_than(REST_AT_MOST);
        let permits = Permits::new(Arc::clone(&context.bot));
        Self {
            context,
            broker,
            seat,
            watchdog,
            health,
            part,
            lanes: Lanes::new(Pace { turns, full: plan::MAX_BATCH }, Instant::now()),
            memories: Memories::default(),
            running: JoinSet::new(),
            permits,
            batches: 0,
            jobs: 0,
            held_since: None,
            told: None,
        }
    }

    /// Works until the order to stop, and returns when everything under way is settled.
    pub async fn run(mut self) {
        let stop = self.context.stop.clone();
        self.health.set(&self.part, Condition::NotReady(format!("not subscribed to {}", self.seat.queue)));
        let mut delays = retry::reconnect_delays();
        while let Some(subscription) = self.subscribe(&stop).await {
            match subscription {
                Ok(mut subscription) => {
                    delays = retry::reconnect_delays();
                    let mut unsettled = Unsettled::new();
                    let end = self.session(&mut subscription, &mut unsettled, &stop).await;
                    self.end_session(subscription, unsettled, &end).await;
                    match end {
                        End::Stop => break,
                        End::Gone => self.watchdog.begin_anew(Instant::now()),
                        End::Stalled | End::GivenUp => {}
                        End::HeldTooLong => {
                            self.drive(&stop, async |context: &Context| context.bot.ready().await).await;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(queue = self.seat.queue, %error, "cannot subscribe; trying again");
                    let delay = delays.next().unwrap_or(Duration::from_secs(1));
                    self.drive(&stop, async move |_: &Context| sleep(delay).await).await;
                }
            }
        }
        self.finish().await;
    }

    /// Waits for something beside the batches under way.
    async fn drive(&mut self, stop: &CancellationToken, until: impl AsyncFnOnce(&Context)) {
        let context = Arc::clone(&self.context);
        let until = until(&context);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut until => return,
                Some(done) = self.running.join_next() => drop(self.done(done)),
            }
        }
    }

    /// A subscription, or the reason why not; `None`: we are stopping.
    async fn subscribe(&mut self, stop: &CancellationToken) -> Option<lapin::Result<Subscription>> {
        let bot = self.context.bot.config();
        let options = Options { prefetch: bot.prefetch, tag: format!("worker.{}", bot.name), from: None };
        let (broker, queue) = (self.broker.clone(), self.seat.queue.clone());
        let subscribing = broker::subscribe(&broker, &queue, options);
        tokio::pin!(subscribing);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                subscription = &mut subscribing => return Some(subscription),
                Some(done) = self.running.join_next() => drop(self.done(done)),
            }
        }
    }

    async fn session(
        &mut self,
        subscription: &mut Subscription,
        unsettled: &mut Unsettled,
        stop: &CancellationToken,
    ) -> End {
        tracing::info!(queue = self.seat.queue, "taking jobs");
        self.seat.take();
        let mut looks = interval(LOOK_EVERY);
        let seat = Arc::clone(&self.seat);
        let leave = seat.asked_to_leave();
        tokio::pin!(leave);
        loop {
            let holding = self.context.bot.holding();
            self.seat.set_held(holding.is_some());
            self.tell_health(holding.map(|holding| holding.why.as_str()));
            self.lanes.wake(Instant::now());
            match holding {
                None => {
                    self.held_since = None;
                    // What is held of a channel that is gone comes again, perhaps to another worker.
                    if subscription.is_open() {
                        self.start_batches();
                    }
                }
                Some(_) => {
                    self.permits.give_up();
                    let since = *self.held_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > HOLD_AT_MOST {
                        return End::HeldTooLong;
                    }
                }
            }
            self.context.bot.meters().jobs_held.set(to_f64(self.held()));
            let until = holding.map(|holding| holding.until).or_else(|| self.lanes.wakes_at());
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stop,
                () = &mut leave => return End::GivenUp,
                Some(done) = self.running.join_next() => unsettled.extend(self.done(done)),
                () = self.permits.bought() => {}
                incoming = subscription.next() => match incoming {
                    Some(incoming) => self.accept(incoming),
                    None => return End::Gone,
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
                _ = looks.tick() => match self.watchdog.look(self.waiting(holding.is_some()), Instant::now()) {
                    None => {}
                    Some(Alarm::Rebuild) => return End::Stalled,
                    Some(Alarm::Exit) => self.exit(),
                },
            }
        }
    }

    fn held(&self) -> usize {
        self.lanes.waiting() + self.jobs
    }

    fn waiting(&self, on_purpose: bool) -> Waiting {
        Waiting { ready: self.seat.ready(), held: self.held(), on_purpose }
    }

    /// Nothing moved for too long, a new channel did not help: a new process may.
    fn exit(&self) -> ! {
        let (queue, under_way) = (&self.seat.queue, self.batches);
        tracing::error!(
            queue,
            under_way,
            "work waits and nothing moves; the process ends, its jobs are delivered again"
        );
        std::process::exit(1);
    }

    fn tell_health(&mut self, held: Option<&'static str>) {
        if self.told.replace(held) == Some(held) {
            return;
        }
        let condition = match held {
            None => Condition::Ready,
            Some(why) => Condition::Degraded(format!("no work is started: {why}")),
        };
        self.health.set(&self.part, condition);
    }

    fn accept(&mut self, incoming: Incoming) {
        self.watchdog.message(incoming.redelivered, Instant::now());
        self.seat.activate();
        let now = Timestamp::now();
        let config = self.context.bot.config();
        let envelope = Envelope::new(incoming, now);
        if envelope.redelivered {
            metrics::counter!(names::JOBS_REDELIVERED, "bot" => config.name.clone()).increment(1);
        }
        let message = &envelope.message;
        if let Some(age) = message.timestamp().and_then(|at| Duration::try_from(now.duration_since(at)).ok()) {
            self.context.bot.meters().queue_age.record(age);
        }
        let source = Source {
            body: &message.body,
            message_id: message.message_id(),
            content_encoding: message.content_encoding(),
            published: message.timestamp(),
            first_seen: envelope.first_seen,
            now,
        };
        let job = validate(config, self.context.retry.deadline, &source).and_then(|job| supported(config, job));
        match job {
            Ok(job) => {
                let task = Task {
                    generation: envelope.generation(),
                    suspect: envelope.is_suspect(),
                    published: envelope.published(),
                    attempts: envelope.attempts(),
                    uncertain: envelope.is_uncertain(),
                    ..Task::new(job, &config.name, envelope.traceparent.clone())
                };
                self.lanes.push(Instant::now(), task.job.conversation.clone(), Held { task, envelope });
            }
            Err(invalid) => {
                let context = Arc::clone(&self.context);
                self.running
                    .spawn(async move { Done::Rejection(context.reject(envelope, invalid).await.map(Box::new)) });
            }
        }
    }

    /// Starts a batch for each permit at hand, and buys permits where lanes are left.
    fn start_batches(&mut self) {
        let concurrency = usize::from(self.context.bot.config().concurrency);
        while self.batches < concurrency && self.lanes.ready() > 0 {
            let wanted = self.lanes.ready().min(concurrency - self.batches);
            let Some(permit) = self.permits.take(wanted) else { return };
            self.start_batch(permit);
        }
        self.permits.put_back();
    }

    fn start_batch(&mut self, permit: Permit) {
        let first_jobs = |waiting: &VecDeque<Held>| plan::batch_len(waiting.iter().map(|held| &held.task.job));
        let Some((conversation, batch)) = self.lanes.next(Instant::now(), first_jobs) else { return };
        let (context, memory, jobs) = (Arc::clone(&self.context), self.memories.take(&conversation), batch.len());
        self.batches += 1;
        self.jobs += jobs;
        context.bot.meters().batch_jobs.record(to_f64(jobs));
        // Boxed once, instead of copied at each step of the way into the runtime.
        self.running.spawn(Box::pin(async move {
            let finished = Box::new(context.work(&conversation, batch, memory, permit).await);
            Done::Batch { conversation, jobs, finished }
        }));
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) -> Unsettled {
        self.watchdog.progress(Instant::now());
        match done {
            Ok(Done::Batch { conversation, jobs, finished }) => {
                let Finished { memory, unsettled } = *finished;
                self.batches = self.batches.saturating_sub(1);
                self.jobs = self.jobs.saturating_sub(jobs);
                self.lanes.done(Instant::now(), &conversation);
                self.memories.put(conversation, memory);
                unsettled
            }
            Ok(Done::Rejection(envelope)) => envelope.into_iter().map(|envelope| *envelope).collect(),
            Err(error) => {
                // Panics of a job are caught within; this one is ours, and its lane would stand still for ever.
                tracing::error!(%error, "a task of the worker ended; the process ends, and its jobs are delivered again");
                std::process::abort();
            }
        }
    }

    /// After a session. On a stop, and where another worker shall go on, what is under way is finished before the channel is closed.
    async fn end_session(&mut self, subscription: Subscription, mut unsettled: Unsettled, end: &End) {
        let text = match end {
            End::Gone => "its channel is gone; subscribing again",
            End::HeldTooLong => "the bot may not work; its jobs wait in the queue",
            End::Stalled => "work waits and nothing moves; subscribing anew",
            End::GivenUp => "another worker may have the queue",
            End::Stop => "stopping",
        };
        tracing::info!(queue = self.seat.queue, waiting = self.lanes.waiting(), under_way = self.batches, "{text}");
        self.health.set(&self.part, Condition::NotReady(text.to_owned()));
        self.told = None;
        self.seat.leave();
        self.permits.give_up();
        let waiting = self.lanes.clear();
        if matches!(end, End::Stop | End::GivenUp) {
            while let Some(done) = self.running.join_next().await {
                unsettled.extend(self.done(done));
            }
        }
        subscription.close().await;
        drop((waiting, unsettled));
    }

    async fn finish(&mut self) {
        while let Some(done) = self.running.join_next().await {
            drop(self.done(done));
        }
    }
}

fn supported(bot: &crate::config::Bot, job: Job) -> Result<Job, Invalid> {
    match target::supports(bot, &job) {
        Ok(()) => Ok(job),
        Err(text) => Err(Invalid {
            rejection: Rejection::new(Reason::UnsupportedByDialect, text),
            job_id: Some(job.id),
            conversation: Some(job.conversation),
        }),
    }
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
