//! The load: jobs, all at once or at their times.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;

/// Messages published before their confirms are awaited.
const WINDOW: usize = 1_000;
/// Start of every job id; its number follows.
pub const JOB_ID: &str = "b-";

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two plain sets: the version alone is enough to write.
    Sets,
    /// An increment and a set: needs the state, and an entry in the ledger.
    Increment,
}

/// One job.
#[derive(Debug, Clone)]
pub struct Job {
    pub number: usize,
    pub conversation: String,
    pub kind: Kind,
}

impl Job {
    fn body(&self) -> String {
        let Self { number, conversation, kind } = self;
        let variables = match kind {
            Kind::Sets => format!(
                r#""customer_tier":{{"value":"premium","scope":"user"}},"last_page":{{"value":"/checkout/{number}"}}"#
            ),
            Kind::Increment => format!(
                r#""cart_total":{{"op":"increment","by":"149.99","scope":"session"}},"last_page":{{"value":"/checkout/{number}"}}"#
            ),
        };
        format!(r#"{{"job_id":"{JOB_ID}{number}","conversation_id":"{conversation}","variables":{{{variables}}}}}"#)
    }
}

/// The conversation of that number.
pub fn conversation(number: usize) -> String {
    format!("conv_{number:012x}")
}

/// Jobs of as many conversations.
pub fn distinct(count: usize, kind: Kind) -> Vec<Job> {
    (0..count).map(|number| Job { number, conversation: conversation(number), kind }).collect()
}

/// Jobs of conversations of which the second has half as many as the first, the third a third, and so on.
#[expect(clippy::cast_precision_loss, reason = "a share")]
pub fn zipf(count: usize, conversations: usize, kind: Kind) -> Vec<Job> {
    let mut sums = Vec::with_capacity(conversations);
    let mut sum = 0.0;
    for rank in 1..=conversations {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    let mut random = StdRng::seed_from_u64(7);
    let mut pick = || sums.partition_point(|up_to| *up_to < random.random::<f64>() * sum);
    (0..count).map(|number| Job { number, conversation: conversation(pick()), kind }).collect()
}

/// Times of events that come independently of each other, `rate` of them a second.
pub fn at_random(rate: f64, within: Duration, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at += -(1.0 - random.random::<f64>()).ln() / rate;
        (at < within.as_secs_f64()).then(|| Duration::from_secs_f64(at))
    })
    .collect()
}

/// Publishes to one exchange.
#[derive(Debug)]
pub struct Loader {
    channel: Channel,
    exchange: &'static str,
    routing_key: &'static str,
}

impl Loader {
    /// To the bot's queue.
    pub async fn of_jobs(connection: &Connection) -> anyhow::Result<Self> {
        Self::new(connection, "context.jobs", "default").await
    }

    /// As if outcomes.
    pub async fn of_events(connection: &Connection) -> anyhow::Result<Self> {
        Self::new(connection, "context.outcomes", "default.applied").await
    }

    async fn new(connection: &Connection, exchange: &'static str, routing_key: &'static str) -> anyhow::Result<Self> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { channel, exchange, routing_key })
    }

    /// Publishes jobs as fast as the broker takes them, and returns when it has all of them.
    pub async fn publish(&self, jobs: &[Job]) -> anyhow::Result<()> {
        for window in jobs.chunks(WINDOW) {
            let mut confirms = Vec::with_capacity(window.len());
            for job in window {
                confirms.push(self.send(&job.body()).await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
        }
        Ok(())
    }

    /// Publishes bodies at their times, counted from now, whether or not anybody keeps up.
    pub fn at_times(self, schedule: Vec<(Duration, String)>) -> Paced {
        let sent: Arc<Vec<OnceLock<Instant>>> = Arc::new(schedule.iter().map(|_| OnceLock::new()).collect());
        let began = Instant::now();
        let stamps = Arc::clone(&sent);
        let task = tokio::spawn(async move {
            for ((at, body), stamp) in schedule.iter().zip(stamps.iter()) {
                tokio::time::sleep_until((began + *at).into()).await;
                let _ = stamp.set(Instant::now());
                drop(self.send(body).await?);
            }
            anyhow::Ok(())
        });
        Paced { sent, task }
    }

    /// Publishes; what it gives is the wait for the confirm.
    async fn send(&self, body: &str) -> lapin::Result<impl Future<Output = lapin::Result<Confirmation>> + use<>> {
        let now = jiff::Timestamp::now().as_second().unsigned_abs();
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_timestamp(now)
            .with_content_type("application/json".into());
        let (exchange, key) = (self.exchange.into(), self.routing_key.into());
        self.channel.basic_publish(exchange, key, BasicPublishOptions::default(), body.as_bytes(), properties).await
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Paced {
    /// When each was sent.
    pub sent: Arc<Vec<OnceLock<Instant>>>,
    /// Ends with the last.
    pub task: JoinHandle<anyhow::Result<()>>,
}

/// Jobs at their times, numbered in the order of the times.
pub fn schedule(mut jobs: Vec<(Duration, String, Kind)>) -> Vec<(Duration, String)> {
    jobs.sort();
    jobs.into_iter()
        .enumerate()
        .map(|(number, (at, conversation, kind))| (at, Job { number, conversation, kind }.body()))
        .collect()
}
