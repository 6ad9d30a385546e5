//! To come.
use std::process::ExitCode;
/// Runs it.
pub async fn run(_c: crate::config::Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
/// Runs both.
pub async fn run_with_relay(_c: crate::config::Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
