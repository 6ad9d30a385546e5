//! To come.

pub mod check;
pub mod input;
pub mod receiver;

use std::process::ExitCode;
/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs it.
pub async fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
