//! How fast a peer empties a queue that is full, and what that costs it.

use std::time::Duration;

use anyhow::Context as _;

use crate::load::{Job, Loader};
use crate::outcomes::Outcomes;
use crate::peer::{First, Peer, Usage};
use crate::report::Report;
use crate::stage::Stage;
use crate::statistics::median;

/// The first jobs are not measured: connections are being made.
const WARM_UP: f64 = 0.15;

/// One full queue.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub jobs: &'a [Job],
    pub in_flight: usize,
    pub first: First,
}

/// What one run shows.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub jobs_per_second: f64,
    /// Microseconds.
    pub cpu_per_job: f64,
    /// Microseconds of RabbitMQ and of Redis.
    pub broker_per_job: f64,
    pub redis_per_job: f64,
    /// MB.
    pub peak: f64,
    pub requests_per_job: f64,
}

impl Run<'_> {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares")]
    pub async fn of(&self, peer: Peer, stage: &Stage) -> anyhow::Result<Sample> {
        stage.clear().await?;
        if self.first == First::Write {
            stage.make_versions_known(self.jobs.len()).await?;
        }
        Loader::of_jobs(&stage.publishing).await?.publish(self.jobs).await?;
        let mut outcomes = Outcomes::subscribe(&stage.taking).await?;
        let running = peer.start(stage, self.in_flight, self.first)?;
        let warm_up = (WARM_UP * self.jobs.len() as f64) as usize;
        let measured = self.jobs.len() - warm_up;
        let run = async {
            let used = || anyhow::Ok((running.usage()?, cpu(stage.broker.pid())?, cpu(stage.redis.pid())?));
            let (began, before) = (outcomes.skip(warm_up).await?, used()?);
            let (ended, after) = (outcomes.skip(measured).await?, used()?);
            let requests = stage.api.requests();
            let per_job =
                |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / measured as f64;
            anyhow::Ok(Sample {
                jobs_per_second: measured as f64 / ended.duration_since(began).as_secs_f64(),
                cpu_per_job: per_job(before.0.cpu, after.0.cpu),
                broker_per_job: per_job(before.1, after.1),
                redis_per_job: per_job(before.2, after.2),
                peak: after.0.peak,
                requests_per_job: requests as f64 / self.jobs.len() as f64,
            })
        };
        run.await.with_context(|| format!("{} said:\n{}", peer.name(), running.log_tail()))
    }
}

/// CPU time of a server of ours so far.
fn cpu(pid: Option<u32>) -> anyhow::Result<Duration> {
    pid.map_or(Ok(Duration::ZERO), |pid| Usage::of(pid).map(|usage| usage.cpu))
}

/// The samples of each peer over the rounds.
#[derive(Debug, Default)]
pub struct Samples {
    pub worker: Vec<Sample>,
    pub before: Vec<Sample>,
    pub floor: Vec<Sample>,
    pub telling: Vec<Sample>,
    pub python: Vec<Sample>,
}

impl Samples {
    /// One run of each peer that takes part, one after the other.
    pub async fn take(&mut self, run: &Run<'_>, peers: &[Peer], stage: &Stage) -> anyhow::Result<()> {
        for peer in peers.iter().filter(|peer| peer.takes_part(stage)) {
            let sample = run.of(*peer, stage).await?;
            match peer {
                Peer::Worker => self.worker.push(sample),
                Peer::Before => self.before.push(sample),
                Peer::Floor => self.floor.push(sample),
                Peer::Telling => self.telling.push(sample),
                Peer::Python => self.python.push(sample),
            }
        }
        Ok(())
    }

    /// The median over the rounds of worker ÷ other.
    pub fn against(&self, others: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
        let pairs = self.worker.iter().zip(others);
        median(&pairs.map(|(worker, other)| figure(worker) / figure(other)).collect::<Vec<_>>())
    }

    /// The median of one figure.
    pub fn median(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
        median(&samples.iter().map(figure).collect::<Vec<_>>())
    }

    /// Adds a row for each peer.
    pub fn tell(&self, scenario: &str, report: &mut Report) {
        let (worker, before, floor, telling) = (&self.worker, &self.before, &self.floor, &self.telling);
        let python = ("python", &self.python);
        for (peer, samples) in
            [("worker", worker), ("before", before), ("floor", floor), ("floor, telling as much", telling), python]
        {
            if samples.is_empty() {
                continue;
            }
            let figures = vec![
                ("jobs/s", Self::median(samples, |sample| sample.jobs_per_second)),
                ("µs CPU/job", Self::median(samples, |sample| sample.cpu_per_job)),
                ("µs RabbitMQ/job", Self::median(samples, |sample| sample.broker_per_job)),
                ("µs Redis/job", Self::median(samples, |sample| sample.redis_per_job)),
                ("MB at most", Self::median(samples, |sample| sample.peak)),
                ("requests/job", Self::median(samples, |sample| sample.requests_per_job)),
            ];
            report.row(scenario, peer, figures);
        }
        for (name, others) in
            [("worker ÷ floor", floor), ("worker ÷ floor, telling as much", telling), ("worker ÷ before", before)]
        {
            if worker.is_empty() || others.is_empty() {
                continue;
            }
            let figures = vec![
                ("× jobs/s", self.against(others, |sample| sample.jobs_per_second)),
                ("× CPU/job", self.against(others, |sample| sample.cpu_per_job)),
                ("× memory", self.against(others, |sample| sample.peak)),
            ];
            report.row(scenario, name, figures);
        }
    }
}
