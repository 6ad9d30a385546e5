//! To come.
use std::process::ExitCode;
/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Lists
    List,
}
/// Runs it.
pub async fn run(_c: Command, _config: crate::config::Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
