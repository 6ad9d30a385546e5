//! An operator's work on a long queue of dead letters: look, replay (killed in the middle, and run again), discard.
//! What replays leave in the jobs' queue is counted, letter by letter.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use context_injector::broker::{Broker, Mandatory, Message, Publisher};
use context_injector::config::Config;
use context_injector::dead_letters::{Death, Owner, letter};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use tokio_util::sync::CancellationToken;

use crate::load::{JOB_ID, conversation};
use crate::peer::{Running, Usage};
use crate::report::{Report, Wanted};
use crate::stage::Stage;

const LETTERS: usize = 100_000;
/// Letters that are published before their confirms are awaited.
const WINDOW: usize = 2_000;
const DEAD: &str = "context.jobs.dead";
const JOBS: &str = "context.jobs.default";
/// How often a command's use is looked at, and the queue that is to be so long.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let count = std::env::var("BENCH_LETTERS").ok().and_then(|text| text.parse().ok()).unwrap_or(LETTERS);
    stage.clear().await?;
    let yard = Yard::open(stage).await?;
    yard.bury(count).await?;
    yard.measure(report, count, "listed in groups", &["list"]).await?;
    yard.measure(report, count, "one of ten picked by reason, as JSON", &["list", "--reason", "expired", "--json"])
        .await?;
    yard.measure(report, count, "replay, dry run", &["replay", "--dry-run"]).await?;

    let killed = yard.command(&["replay"])?;
    yard.until_length(JOBS, |length| length >= count / 3).await?;
    killed.kill9().await;
    yard.until_nobody_consumes(DEAD).await?;
    let (left, moved) = (yard.length(DEAD).await?, yard.length(JOBS).await?);
    yard.measure(report, left, "replayed, after one that was killed", &["replay"]).await?;
    let (distinct, all) = yard.take_jobs().await?;
    let figures = vec![
        ("letters", to_f64(count)),
        ("moved when it was killed", to_f64(moved)),
        ("still dead then", to_f64(left)),
        ("jobs at the end", to_f64(all)),
        ("lost", to_f64(count - distinct)),
        ("twice, with the same id", to_f64(all - distinct)),
    ];
    report.row("replay killed with SIGKILL", "dead-letters", figures);
    report.goal("dead letters lost by a killed replay", Wanted::AtMost(0.0), to_f64(count - distinct));

    yard.bury(count).await?;
    yard.measure(report, count, "replayed", &["replay"]).await?;
    yard.take_jobs().await?;
    yard.bury(count).await?;
    let discard = ["discard", "--all", "--yes", "--by", "bench", "--why", "for the benchmark"];
    yard.measure(report, count, "discarded, each on record", &discard).await?;
    anyhow::ensure!(yard.length(DEAD).await? == 0, "letters are left that were discarded");
    Ok(())
}

/// Where dead letters are, and the commands that work on them.
struct Yard<'a> {
    stage: &'a Stage,
    settings: PathBuf,
    broker: Broker,
    channel: Channel,
}

impl<'a> Yard<'a> {
    async fn open(stage: &'a Stage) -> anyhow::Result<Self> {
        let settings = stage.settings(1, 100, 5)?;
        let config = Config::parse(&std::fs::read_to_string(&settings)?, [])?;
        let broker = Broker::start(&config.amqp, "bench", CancellationToken::new());
        let channel = stage.taking.create_channel().await?;
        channel.queue_purge(DEAD.into(), QueuePurgeOptions::default()).await?;
        Ok(Self { stage, settings, broker, channel })
    }

    /// So many dead letters of the usual size; every tenth has another reason.
    async fn bury(&self, count: usize) -> anyhow::Result<()> {
        let publisher = Publisher::new(&self.broker);
        for window in (0..count).collect::<Vec<_>>().chunks(WINDOW) {
            let letters = window.iter().map(|number| dead_letter(*number));
            let published = letters.map(async |letter| publisher.publish("", DEAD, &letter, Mandatory::Yes).await);
            try_join_all(published).await?;
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        let arguments = [&["dead-letters"], arguments].concat();
        Running::of_ours(self.stage, &arguments, &self.settings)
    }

    /// Runs a command on `count` letters to its end.
    async fn measure(&self, report: &mut Report, count: usize, what: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let (began, running) = (Instant::now(), self.command(arguments)?);
        let (mut used, mut look) = (Usage::default(), tokio::time::interval(LOOK_EVERY));
        let status = loop {
            tokio::select! {
                status = running.ended() => break status,
                // Who is ending has nothing to show any more.
                _ = look.tick() => if let Ok(now) = running.usage() {
                    used = Usage { peak: now.peak.max(used.peak), ..now };
                },
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        anyhow::ensure!(status == 0, "{arguments:?} ended with status {status}:\n{}", running.log_tail());
        let figures = vec![
            ("letters", to_f64(count)),
            ("s", seconds),
            ("letters/s", to_f64(count) / seconds),
            ("µs CPU/letter", used.cpu.as_secs_f64() * 1e6 / to_f64(count)),
            ("MB at most", used.peak),
        ];
        report.row(what, "dead-letters", figures);
        Ok(())
    }

    async fn queue(&self, name: &str) -> anyhow::Result<lapin::Queue> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        Ok(self.channel.queue_declare(name.into(), options, FieldTable::default()).await?)
    }

    async fn length(&self, name: &str) -> anyhow::Result<usize> {
        Ok(self.queue(name).await?.message_count().try_into()?)
    }

    async fn until_length(&self, name: &str, enough: impl Fn(usize) -> bool) -> anyhow::Result<()> {
        while !enough(self.length(name).await?) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// What a killed command held is back then.
    async fn until_nobody_consumes(&self, name: &str) -> anyhow::Result<()> {
        while self.queue(name).await?.consumer_count() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Takes all jobs that replays have published: how many different ones, and how many in all.
    async fn take_jobs(&self) -> anyhow::Result<(usize, usize)> {
        let all = self.length(JOBS).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let (tag, none) = ("bench-replayed", FieldTable::default());
        let mut jobs = self.channel.basic_consume(JOBS.into(), tag.into(), options, none).await?;
        let mut ids = HashSet::new();
        for _ in 0..all {
            let job = tokio::time::timeout(Duration::from_secs(30), jobs.next()).await?.context("no more jobs")??;
            ids.insert(job.properties.message_id().clone().context("a job without an id")?);
        }
        self.channel.basic_cancel(tag.into(), Default::default()).await?;
        Ok((ids.len(), all))
    }
}

fn dead_letter(number: usize) -> Message {
    let (id, conversation, now) = (format!("{JOB_ID}{number}"), conversation(number % 1_000), Timestamp::now());
    let variables = format!(r#"{{"last_page":{{"value":"/checkout/{number}"}}}}"#);
    let body = format!(r#"{{"job_id":"{id}","conversation_id":"{conversation}","variables":{variables}}}"#);
    let death = Death {
        owner: Owner::Bot("default"),
        reason: if number.is_multiple_of(10) { "expired" } else { "attempts_exhausted" },
        text: "the target failed at every attempt: 503 Service Unavailable",
        certainty: Some("not_applied"),
        attempts: 8,
        first_seen: now,
        last_status: Some(503),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        generation: 0,
        now,
    };
    letter(&Message::new(body).with_message_id(&id), &death)
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
