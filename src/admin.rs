//! To come.
use std::process::ExitCode;
/// Which.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {}
/// Asks.
pub async fn health(_a: HealthArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
