//! Conversations that nobody has seen lately, each with one job: all cost, nothing to fold.
//!
//! Plain sets whose version Redis knows from an earlier write need a PATCH alone; without it, or with an
//! operation that needs the state, a GET comes first, for the floor too.

use super::rounds;
use super::throughput::{Run, Samples};
use crate::load::{Job, Kind, distinct};
use crate::peer::{First, Peer};
use crate::report::{Report, Wanted};
use crate::stage::Stage;

const JOBS: usize = 16_000;
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 5;
/// Python needs as long for these as the others for theirs.
const PYTHON_JOBS: usize = 1_200;
const PYTHON_IN_FLIGHT: usize = 64;
const PYTHON_ROUNDS: usize = 2;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let variants = [
        ("cold, sets, version known", Kind::Sets, First::Write),
        ("cold, sets, first contact", Kind::Sets, First::Read),
        ("cold, increments, first contact", Kind::Increment, First::Read),
    ];
    for (at, (name, kind, first)) in variants.into_iter().enumerate() {
        let samples = measure(stage, &distinct(JOBS, kind), first).await?;
        samples.tell(name, report);
        if at > 0 || samples.worker.is_empty() {
            continue;
        }
        if !samples.floor.is_empty() {
            let speed = samples.against(&samples.floor, |sample| sample.jobs_per_second);
            report.goal("jobs/s ÷ floor, cold, 256 in flight", Wanted::AtLeast(0.9), speed);
            let cpu = samples.against(&samples.floor, |sample| sample.cpu_per_job);
            report.goal("worker CPU per job ÷ floor", Wanted::AtMost(1.25), cpu);
        }
        if !samples.python.is_empty() {
            let worker = Samples::median(&samples.worker, |sample| sample.jobs_per_second);
            let python = Samples::median(&samples.python, |sample| sample.jobs_per_second);
            report.goal("jobs/s ÷ Python worker", Wanted::AtLeast(15.0), worker / python);
        }
    }
    Ok(())
}

async fn measure(stage: &Stage, jobs: &[Job], first: First) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..rounds(ROUNDS) {
        let run = Run { jobs, in_flight: IN_FLIGHT, first };
        samples.take(&run, &[Peer::Floor, Peer::Worker, Peer::Before, Peer::Telling], stage).await?;
        if round < PYTHON_ROUNDS {
            let run = Run { jobs: &jobs[..PYTHON_JOBS], in_flight: PYTHON_IN_FLIGHT, first };
            samples.take(&run, &[Peer::Python], stage).await?;
        }
    }
    Ok(samples)
}
