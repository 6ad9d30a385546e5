//! The active worker is killed with SIGKILL under load: how long until its standby tells the first outcome.

use std::time::{Duration, Instant};

use super::rounds;
use crate::load::{Kind, Loader, conversation, schedule};
use crate::outcomes::Outcomes;
use crate::peer::{First, Peer};
use crate::report::{Report, Wanted};
use crate::stage::Stage;
use crate::statistics::median;

const ROUNDS: usize = 5;
const JOBS: usize = 800;
const BETWEEN_JOBS: Duration = Duration::from_millis(5);
/// Outcomes after which the active worker is killed.
const KILLED_AFTER: usize = 200;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut seconds = Vec::new();
    for _ in 0..rounds(ROUNDS) {
        seconds.push(measure(stage).await?.as_secs_f64());
    }
    let most = seconds.iter().copied().fold(0.0, f64::max);
    report.row("kill -9 of the active worker", "standby", vec![("s median", median(&seconds)), ("s at most", most)]);
    report.goal("standby takes over after kill -9, s", Wanted::AtMost(1.0), median(&seconds));
    Ok(())
}

async fn measure(stage: &Stage) -> anyhow::Result<Duration> {
    stage.clear().await?;
    let mut outcomes = Outcomes::subscribe(&stage.taking).await?;
    let active = Peer::Worker.start(stage, 32, First::Read)?;
    active.ready().await?;
    let standby = Peer::Worker.start(stage, 32, First::Read)?;
    standby.ready().await?;
    let jobs = (0u32..).take(JOBS).zip(0..).map(|(at, number)| (at * BETWEEN_JOBS, conversation(number), Kind::Sets));
    let load = Loader::of_jobs(&stage.publishing).await?.at_times(schedule(jobs.collect()));
    let mut first = outcomes.next().await?;
    for _ in 1..KILLED_AFTER {
        first = outcomes.next().await?;
    }
    let writer = first.writer().to_owned();
    let killed = Instant::now();
    active.kill9().await;
    let mut next = outcomes.next().await?;
    while next.writer() == writer {
        next = outcomes.next().await?;
    }
    load.task.await??;
    Ok(next.at.duration_since(killed))
}
