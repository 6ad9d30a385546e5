//! A million jobs of a million conversations through one worker: its memory must stay where it is.

use crate::load::{Job, Kind, Loader, conversation};
use crate::outcomes::Outcomes;
use crate::peer::{First, Peer};
use crate::report::{Report, Wanted};
use crate::stage::Stage;

const JOBS: usize = 1_000_000;
const IN_FLIGHT: usize = 256;
/// Jobs that are published before the outcomes of those before them are awaited.
const WINDOW: usize = 10_000;

#[expect(clippy::cast_precision_loss, reason = "a count")]
pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let count = std::env::var("BENCH_MEMORY_JOBS").ok().and_then(|text| text.parse().ok()).unwrap_or(JOBS);
    stage.clear().await?;
    let mut outcomes = Outcomes::subscribe(&stage.taking).await?;
    let loader = Loader::of_jobs(&stage.publishing).await?;
    let worker = Peer::Worker.start(stage, IN_FLIGHT, First::Read)?;
    worker.ready().await?;
    let mut memory = Vec::new();
    let numbers = (0..count).collect::<Vec<_>>();
    let mut ahead = 0;
    for window in numbers.chunks(WINDOW) {
        let job = |number: &usize| Job { number: *number, conversation: conversation(*number), kind: Kind::Increment };
        loader.publish(&window.iter().map(job).collect::<Vec<_>>()).await?;
        outcomes.skip(ahead).await?;
        ahead = window.len();
        memory.push(worker.usage()?.memory);
    }
    outcomes.skip(ahead).await?;
    let usage = worker.usage()?;
    let after_a_fifth = memory.get(memory.len() / 5).copied().unwrap_or(usage.memory);
    let figures = vec![
        ("jobs", count as f64),
        ("MB after a fifth", after_a_fifth),
        ("MB at the end", usage.memory),
        ("MB at most", usage.peak),
    ];
    report.row("memory", "worker", figures);
    report.goal(format!("memory over {count} jobs, MB at most"), Wanted::AtMost(50.0), usage.peak);
    report.goal("memory at the end ÷ after a fifth of the jobs", Wanted::AtMost(1.1), usage.memory / after_a_fifth);
    Ok(())
}
