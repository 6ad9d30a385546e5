//! One conversation gets five times as many jobs as the bot may make requests, beside others that nearly use the
//! budget up. The hot one must be folded, and the others must not notice.

use std::time::Duration;

use super::rounds;
use crate::load::{Kind, Loader, at_random, conversation, schedule};
use crate::outcomes::Outcomes;
use crate::peer::Running;
use crate::report::{Report, Wanted};
use crate::stage::Stage;
use crate::statistics::{median, millis, percentile};

/// The platform's limit.
const REQUESTS_PER_SECOND: u32 = 100;
const BURST: u32 = 5;
/// Each is one request: Redis knows the versions.
const COLD_JOBS_PER_SECOND: f64 = 85.0;
const HOT_JOBS_PER_SECOND: f64 = 500.0;
const LASTS: Duration = Duration::from_secs(12);
/// What is sent before that is not measured.
const WARM_UP: Duration = Duration::from_secs(2);
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 2;
/// The hot conversation is none of the cold ones.
const HOT: usize = 1 << 40;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut sums = Sums::default();
    for round in 0..rounds(ROUNDS) {
        let undisturbed = measure(stage, round, false).await?;
        let beside_hot = measure(stage, round, true).await?;
        sums.alone.push(percentile(&undisturbed.cold, 0.99));
        sums.beside.push(percentile(&beside_hot.cold, 0.99));
        sums.hot.push(percentile(&beside_hot.hot, 0.99));
        sums.hot_median.push(percentile(&beside_hot.hot, 0.5));
        sums.requests.push(beside_hot.requests_per_hot_job);
    }
    let figures = vec![
        ("requests/job", median(&sums.requests)),
        ("ms p50", median(&sums.hot_median)),
        ("ms p99", median(&sums.hot)),
    ];
    report.row("hot conversation, 500 jobs/s at 100 requests/s", "worker", figures);
    report.row("cold ones, 85 jobs/s, alone", "worker", vec![("ms p99", median(&sums.alone))]);
    report.row("cold ones, 85 jobs/s, beside the hot one", "worker", vec![("ms p99", median(&sums.beside))]);
    report.goal("hot conversation: requests per job", Wanted::AtMost(0.03), median(&sums.requests));
    report.goal("hot conversation: p99, s", Wanted::AtMost(0.25), median(&sums.hot) / 1_000.0);
    let ratios = sums.beside.iter().zip(&sums.alone).map(|(beside, alone)| beside / alone).collect::<Vec<_>>();
    report.goal("cold conversations' p99 beside a hot one ÷ undisturbed", Wanted::AtMost(1.1), median(&ratios));
    Ok(())
}

#[derive(Debug, Default)]
struct Sums {
    alone: Vec<f64>,
    beside: Vec<f64>,
    hot: Vec<f64>,
    hot_median: Vec<f64>,
    requests: Vec<f64>,
}

/// Latencies in milliseconds.
#[derive(Debug)]
struct Measured {
    cold: Vec<f64>,
    hot: Vec<f64>,
    requests_per_hot_job: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
async fn measure(stage: &Stage, round: usize, with_hot: bool) -> anyhow::Result<Measured> {
    let cold_times = at_random(COLD_JOBS_PER_SECOND, LASTS, round as u64);
    stage.clear().await?;
    stage.make_versions_known(cold_times.len()).await?;
    let mut jobs: Vec<_> =
        cold_times.into_iter().enumerate().map(|(number, at)| (at, conversation(number), Kind::Sets)).collect();
    if with_hot {
        let hot_times = at_random(HOT_JOBS_PER_SECOND, LASTS, 1_000 + round as u64);
        jobs.extend(hot_times.into_iter().map(|at| (at, conversation(HOT), Kind::Increment)));
    }
    // The same order as `schedule` numbers them in.
    jobs.sort();
    let is_hot = jobs.iter().map(|(_, id, _)| *id == conversation(HOT)).collect::<Vec<_>>();
    let is_measured = jobs.iter().map(|(at, ..)| *at >= WARM_UP).collect::<Vec<_>>();

    let mut outcomes = Outcomes::subscribe(&stage.taking).await?;
    let running = Running::of_ours(stage, "worker", &stage.settings(IN_FLIGHT, REQUESTS_PER_SECOND, BURST)?)?;
    running.ready().await?;
    let load = Loader::of_jobs(&stage.publishing).await?.at_times(schedule(jobs));
    let (mut cold, mut hot) = (Vec::new(), Vec::new());
    for _ in 0..is_hot.len() {
        let outcome = outcomes.next().await?;
        let number = outcome.number()?;
        if let Some(sent) = load.sent.get(number).and_then(|sent| sent.get())
            && is_measured[number]
        {
            let latencies = if is_hot[number] { &mut hot } else { &mut cold };
            latencies.push(outcome.at.duration_since(*sent));
        }
    }
    load.task.await??;
    let hot_jobs = is_hot.iter().filter(|hot| **hot).count();
    let requests_per_hot_job = stage.api.writes_of(&conversation(HOT)) as f64 / hot_jobs.max(1) as f64;
    Ok(Measured { cold: millis(&cold), hot: millis(&hot), requests_per_hot_job })
}
