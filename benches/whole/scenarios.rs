//! The scenarios, one file each.

use crate::report::Report;
use crate::stage::Stage;

mod cold;
mod dead_letters;
mod fail_over;
mod hot;
mod latency;
mod memory;
mod relay;
mod throughput;
mod zipf;

/// All of them, in the order in which they run.
pub const NAMES: [&str; 8] = ["cold", "zipf", "hot", "latency", "failover", "relay", "memory", "deadletters"];

/// Runs the scenario of that name.
pub async fn run(name: &str, stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    match name {
        "cold" => cold::run(stage, report).await,
        "zipf" => zipf::run(stage, report).await,
        "hot" => hot::run(stage, report).await,
        "latency" => latency::run(stage, report).await,
        "failover" => fail_over::run(stage, report).await,
        "relay" => relay::run(stage, report).await,
        "memory" => memory::run(stage, report).await,
        "deadletters" => dead_letters::run(stage, report).await,
        _ => anyhow::bail!("there is no scenario {name}"),
    }
}

/// How often each peer runs, where the environment does not say otherwise (`BENCH_ROUNDS`).
fn rounds(usual: usize) -> usize {
    std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
