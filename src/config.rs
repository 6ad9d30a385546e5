//! To come.
use std::path::Path;
use std::process::ExitCode;
/// Settings
#[derive(Debug, Clone)]
pub struct Config {
    /// Logs
    pub log: Log,
}
/// Logs
#[derive(Debug, Clone)]
pub struct Log {}
/// Wrong.
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Checks
    Check,
    /// Shows
    Show,
}
/// Runs it.
pub fn run(_c: &Command, _p: Option<&Path>) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
impl Config {
    /// Loads
    pub fn load(_p: Option<&Path>) -> Result<Config, Error> {
        Err(Error)
    }
}
