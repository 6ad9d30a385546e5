//! How much later than the floor the worker tells its outcome, at half of what it can do.

use std::time::Duration;

use anyhow::Context as _;

use super::rounds;
use super::throughput::Run;
use crate::load::{Kind, Loader, at_random, conversation, distinct, schedule};
use crate::outcomes::Outcomes;
use crate::peer::{First, Peer};
use crate::report::{Report, Wanted};
use crate::stage::Stage;
use crate::statistics::{median, millis, percentile};

const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 3;
const LASTS: Duration = Duration::from_secs(5);
/// The first part is not measured: connections are being made.
const WARM_UP: usize = 1_000;
/// Jobs by which is found out what the worker can do.
const PROBE: usize = 12_000;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let rate = match std::env::var("BENCH_RATE") {
        Ok(rate) => rate.parse().context("BENCH_RATE is no number of jobs a second")?,
        Err(_) => {
            let jobs = distinct(PROBE, Kind::Sets);
            let probe = Run { jobs: &jobs, in_flight: IN_FLIGHT, first: First::Write };
            probe.of(Peer::Worker, stage).await?.jobs_per_second / 2.0
        }
    };
    let (mut floor, mut worker, mut before) = (Percentiles::default(), Percentiles::default(), Percentiles::default());
    for round in 0..rounds(ROUNDS) {
        floor.add(&measure(Peer::Floor, stage, rate, round).await?);
        worker.add(&measure(Peer::Worker, stage, rate, round).await?);
        if Peer::Before.takes_part(stage) {
            before.add(&measure(Peer::Before, stage, rate, round).await?);
        }
    }
    for (name, percentiles) in [("floor", &floor), ("worker", &worker), ("before", &before)] {
        if percentiles.p50.is_empty() {
            continue;
        }
        let figures =
            vec![("jobs/s offered", rate), ("ms p50", median(&percentiles.p50)), ("ms p99", median(&percentiles.p99))];
        report.row("latency at half load", name, figures);
    }
    let added = |worker: &[f64], floor: &[f64]| {
        median(&worker.iter().zip(floor).map(|(worker, floor)| worker - floor).collect::<Vec<_>>())
    };
    report.goal("added latency at half load, p50, ms", Wanted::AtMost(1.0), added(&worker.p50, &floor.p50));
    report.goal("added latency at half load, p99, ms", Wanted::AtMost(5.0), added(&worker.p99, &floor.p99));
    Ok(())
}

#[derive(Debug, Default)]
struct Percentiles {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Percentiles {
    fn add(&mut self, times: &[f64]) {
        self.p50.push(percentile(times, 0.5));
        self.p99.push(percentile(times, 0.99));
    }
}

/// From publication to outcome, in milliseconds.
async fn measure(peer: Peer, stage: &Stage, rate: f64, round: usize) -> anyhow::Result<Vec<f64>> {
    let times = at_random(rate, LASTS, round as u64);
    stage.clear().await?;
    stage.make_versions_known(times.len()).await?;
    let mut outcomes = Outcomes::subscribe(&stage.taking).await?;
    let running = peer.start(stage, IN_FLIGHT, First::Write)?;
    running.ready().await?;
    let jobs = times.into_iter().enumerate().map(|(number, at)| (at, conversation(number), Kind::Sets));
    let load = Loader::of_jobs(&stage.publishing).await?.at_times(schedule(jobs.collect()));
    let mut latencies = Vec::new();
    for count in 0..load.sent.len() {
        let outcome = outcomes.next().await?;
        if let Some(sent) = load.sent.get(outcome.number()?).and_then(|sent| sent.get())
            && count >= WARM_UP
        {
            latencies.push(outcome.at.duration_since(*sent));
        }
    }
    load.task.await??;
    Ok(millis(&latencies))
}
