//! One conversation gets five times as many jobs as the bot may make requests, beside others that leave a good part
//! of the budget, and beside others that nearly use it up. The hot one must be folded, and the others must not notice.
//!
//! The goals are for the first. In the second nobody could meet them: with 85 of 100 places a second taken at random
//! times, each request more makes the line longer for all (M/D/1: at 95 % twice as long at the 99th percentile).

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
const COLD_JOBS_PER_SECOND: [f64; 2] = [40.0, 85.0];
const HOT_JOBS_PER_SECOND: f64 = 500.0;
const LASTS: Duration = Duration::from_secs(12);
/// What is sent before that is not measured.
const WARM_UP: Duration = Duration::from_secs(2);
const IN_FLIGHT: usize = 256;
const ROUNDS: usize = 2;
/// The hot conversation is none of the cold ones.
const HOT: usize = 1 << 40;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    for (at, cold) in COLD_JOBS_PER_SECOND.into_iter().enumerate() {
        let sums = beside(stage, cold).await?;
        sums.tell(cold, report);
        if at == 0 {
            sums.judge(report);
        }
    }
    Ok(())
}

async fn beside(stage: &Stage, cold: f64) -> anyhow::Result<Sums> {
    let mut sums = Sums::default();
    for round in 0..rounds(ROUNDS) {
        let undisturbed = measure(stage, round, cold, false).await?;
        let beside_hot = measure(stage, round, cold, true).await?;
        sums.alone.push(percentile(&undisturbed.cold, 0.99));
        sums.beside.push(percentile(&beside_hot.cold, 0.99));
        sums.hot.push(percentile(&beside_hot.hot, 0.99));
        sums.hot_median.push(percentile(&beside_hot.hot, 0.5));
        sums.requests.push(beside_hot.requests_per_hot_job);
    }
    Ok(sums)
}

#[derive(Debug, Default)]
struct Sums {
    alone: Vec<f64>,
    beside: Vec<f64>,
    hot: Vec<f64>,
    hot_median: Vec<f64>,
    requests: Vec<f64>,
}

impl Sums {
    fn tell(&self, cold: f64, report: &mut Report) {
        let figures = vec![
            ("requests/job", median(&self.requests)),
            ("ms p50", median(&self.hot_median)),
            ("ms p99", median(&self.hot)),
        ];
        let hot = format!("hot conversation, 500 jobs/s at 100 requests/s, beside {cold} cold jobs/s");
        report.row(&hot, "worker", figures);
        report.row(&format!("cold ones, {cold} jobs/s, alone"), "worker", vec![("ms p99", median(&self.alone))]);
        let beside = vec![("ms p99", median(&self.beside))];
        report.row(&format!("cold ones, {cold} jobs/s, beside the hot one"), "worker", beside);
    }

    fn judge(&self, report: &mut Report) {
        report.goal("hot conversation: requests per job", Wanted::AtMost(0.03), median(&self.requests));
        report.goal("hot conversation: p99, s", Wanted::AtMost(0.25), median(&self.hot) / 1_000.0);
        let ratios = self.beside.iter().zip(&self.alone).map(|(beside, alone)| beside / alone).collect::<Vec<_>>();
        report.goal("cold conversations' p99 beside a hot one ÷ undisturbed", Wanted::AtMost(1.1), median(&ratios));
    }
}

/// Latencies in milliseconds.
#[derive(Debug)]
struct Measured {
    cold: Vec<f64>,
    hot: Vec<f64>,
    requests_per_hot_job: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
async fn measure(stage: &Stage, round: usize, cold: f64, with_hot: bool) -> anyhow::Result<Measured> {
    let cold_times = at_random(cold, LASTS, round as u64);
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
    let running = Running::of_ours(stage, &["worker"], &stage.settings(IN_FLIGHT, REQUESTS_PER_SECOND, BURST)?)?;
    running.ready().await?;
    let load = Loader::of_jobs(&stage.publishing).await?.at_times(schedule(jobs));
    let (mut of_cold, mut of_hot) = (Vec::new(), Vec::new());
    for _ in 0..is_hot.len() {
        let outcome = outcomes.next().await?;
        let number = outcome.number()?;
        if let Some(sent) = load.sent.get(number).and_then(|sent| sent.get())
            && is_measured[number]
        {
            let latencies = if is_hot[number] { &mut of_hot } else { &mut of_cold };
            latencies.push(outcome.at.duration_since(*sent));
        }
    }
    load.task.await??;
    let hot_jobs = is_hot.iter().filter(|hot| **hot).count();
    let requests_per_hot_job = stage.api.writes_of(&conversation(HOT)) as f64 / hot_jobs.max(1) as f64;
    Ok(Measured { cold: millis(&of_cold), hot: millis(&of_hot), requests_per_hot_job })
}
