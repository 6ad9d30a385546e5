//! To come.
use std::process::ExitCode;

pub mod address_filter;
pub mod answer;
pub mod breaker;
pub mod delivery;
pub mod event;
pub mod headers;
pub mod schedule;
pub mod signature;

/// Runs it.
pub async fn run(_c: crate::config::Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
