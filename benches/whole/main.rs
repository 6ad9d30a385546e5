//! The worker beside its peers: `make bench` (see CONTRIBUTING).
//!
//! The peers are the *floor* (the same requests by a throw-away program that promises nothing), the floor with an event
//! as long as the worker's, and a Python worker in the usual libraries. Each runs as a process of its own on one private RabbitMQ, one private Redis and one
//! fast stub of the platform's API; runs of different peers alternate, so that a neighbour of this machine who
//! takes its time takes it from all of them. Figures are medians over rounds, ratios medians of the rounds' ratios.
//!
//! The worker is the release binary with all its guarantees: lease, ledger, confirmed events, hash chain, metrics.
//!
//! `BENCH=cold,hot` picks scenarios, `BENCH_ROUNDS=9` repeats more often, `BENCH_MEMORY_JOBS=100000` and
//! `BENCH_LETTERS=10000` shorten the longest ones, `BENCH_RATE=4000` sets the load of `latency`, in jobs a
//! second. The result is printed, and written to `target/bench/` as JSON and as a picture.
#![allow(clippy::print_stdout, reason = "a benchmark whose audience is gone may end loudly")]

use anyhow::Context as _;

mod floor;
mod load;
mod outcomes;
mod peer;
mod picture;
mod report;
mod scenarios;
mod stage;
mod statistics;
mod stub;

fn main() -> anyhow::Result<()> {
    // One TLS provider for every client; a second call would only say that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    match arguments.first().map(String::as_str) {
        Some(floor::COMMAND) => runtime.block_on(floor::run(&arguments[1..])),
        _ => runtime.block_on(bench()),
    }
}

async fn bench() -> anyhow::Result<()> {
    let wanted = std::env::var("BENCH").unwrap_or_default();
    let wanted = wanted.split(',').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>();
    if let Some(unknown) = wanted.iter().find(|name| !scenarios::NAMES.contains(name)) {
        anyhow::bail!("BENCH: no scenario {unknown:?}; there are {}", scenarios::NAMES.join(", "));
    }
    let mut stage = stage::Stage::set_up().await?;
    let mut report = report::Report::default();
    for name in scenarios::NAMES.iter().filter(|name| wanted.is_empty() || wanted.contains(name)) {
        eprintln!("{name} …");
        scenarios::run(name, &mut stage, &mut report).await.with_context(|| format!("scenario {name}"))?;
    }
    report.write(&stage::output_directory()?)?;
    stage.tear_down().await;
    Ok(())
}
