//! The intake of one bot: takes messages from its queue, validates them, puts jobs into lanes, and starts batches
//! while the bot may work.
//!
//! One task owns lanes and memories, so nothing here is locked. Rules:
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

use super::batch::{Context, Held, Unsettled};
use super::envelope::Envelope;
use super::memories::Memories;
use super::seat::Seat;
use super::watchdog::{Alarm, Waiting, Watchdog};
use crate::admin::{Condition, Health};
use crate::broker::{self, Broker, Incoming, Options, Subscription};
use crate::job::{ConversationId, Job};
use crate::lanes::Lanes;
use crate::metrics as names;
use crate::pipeline::endings::Task;
use crate::pipeline::memory::Memory;
use crate::pipeline::plan;
use crate::pipeline::validate::{Invalid, Source, validate};
use crate::pipeline::verdict::{Reason, Rejection};
use crate::retry;
use crate::target;

/// How long messages are held for a bot that may not work.
const HOLD_AT_MOST: Duration = Duration::from_secs(600);
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
    /// Batches under way, and the jobs in them.
    batches: usize,
    jobs: usize,
    /// Since when the bot may not work although there is work.
    held_since: Option<Instant>,
}

/// What a task of ours leaves behind.
#[derive(Debug)]
enum Done {
    Batch(ConversationId, Box<Memory>, usize, Unsettled),
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
        Self {
            context,
            broker,
            seat,
            watchdog,
            health,
            part,
            lanes: Lanes::default(),
            memories: Memories::default(),
            running: JoinSet::new(),
            batches: 0,
            jobs: 0,
            held_since: None,
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
            match holding {
                None => {
                    self.held_since = None;
                    // What is held of a channel that is gone comes again, perhaps to another worker.
                    if subscription.is_open() {
                        self.start_batches();
                    }
                }
                Some(_) => {
                    let since = *self.held_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > HOLD_AT_MOST {
                        return End::HeldTooLong;
                    }
                }
            }
            metrics::gauge!(names::JOBS_HELD, "bot" => self.seat.bot.clone()).set(to_f64(self.held()));
            let until = holding.map_or_else(Instant::now, |holding| holding.until);
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stop,
                () = &mut leave => return End::GivenUp,
                Some(done) = self.running.join_next() => unsettled.extend(self.done(done)),
                incoming = subscription.next() => match incoming {
                    Some(incoming) => self.accept(incoming),
                    None => return End::Gone,
                },
                () = sleep_until(until), if holding.is_some() => {}
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

    fn tell_health(&self, held: Option<&str>) {
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
            metrics::histogram!(names::QUEUE_AGE_SECONDS, "bot" => config.name.clone()).record(age);
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
                self.lanes.push(task.job.conversation.clone(), Held { task, envelope });
            }
            Err(invalid) => {
                let context = Arc::clone(&self.context);
                self.running
                    .spawn(async move { Done::Rejection(context.reject(envelope, invalid).await.map(Box::new)) });
            }
        }
    }

    fn start_batches(&mut self) {
        let concurrency = usize::from(self.context.bot.config().concurrency);
        let first_jobs = |waiting: &VecDeque<Held>| plan::batch_len(waiting.iter().map(|held| &held.task.job));
        while self.batches < concurrency
            && let Some((conversation, batch)) = self.lanes.next(first_jobs)
        {
            self.batches += 1;
            let context = Arc::clone(&self.context);
            let (memory, jobs) = (self.memories.take(&conversation), batch.len());
            self.jobs += jobs;
            metrics::histogram!(names::BATCH_JOBS, "bot" => context.bot.config().name.clone())
                .record(to_f64(batch.len()));
            self.running.spawn(async move {
                let (memory, unsettled) = context.work(&conversation, batch, memory).await;
                Done::Batch(conversation, Box::new(memory), jobs, unsettled)
            });
        }
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) -> Unsettled {
        self.watchdog.progress(Instant::now());
        match done {
            Ok(Done::Batch(conversation, memory, jobs, unsettled)) => {
                self.batches = self.batches.saturating_sub(1);
                self.jobs = self.jobs.saturating_sub(jobs);
                self.lanes.done(&conversation);
                self.memories.put(conversation, *memory);
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
        self.seat.leave();
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
