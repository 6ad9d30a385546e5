//! `config check` and `config show`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{Config, DEFAULTS};

/// `config check` and `config show`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Reads the settings and says what is wrong with them
    Check,
    /// Prints the settings in force, secrets redacted
    Show {
        /// Print the annotated defaults instead: a file to start from
        #[arg(long)]
        defaults: bool,
    },
}

/// Runs `config …`.
///
/// # Errors
/// Wrong settings.
pub fn run(command: &Command, path: Option<&Path>) -> anyhow::Result<ExitCode> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match command {
        Command::Check => {
            let config = Config::load(path)?;
            let (bots, endpoints) = (config.bots.len(), config.endpoints.len());
            writeln!(out, "The settings are fine: {bots} bot(s), {endpoints} webhook endpoint(s).")
        }
        Command::Show { defaults: true } => write!(out, "{DEFAULTS}"),
        Command::Show { defaults: false } => write!(out, "{}", Config::load(path)?.show()),
    }
    .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
