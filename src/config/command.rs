//! `config check` and `config show`.

use std::path::Path;
use std::process::ExitCode;

use super::{Config, DEFAULTS};
use crate::cli::output::say;

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
    match command {
        Command::Check => {
            let config = Config::load(path)?;
            let (bots, endpoints) = (config.bots.len(), config.endpoints.len());
            say!("The settings are fine: {bots} bot(s), {endpoints} webhook endpoint(s).")
        }
        Command::Show { defaults: true } => say!("{}", DEFAULTS.trim_end()),
        Command::Show { defaults: false } => say!("{}", Config::load(path)?.show().trim_end()),
    }?;
    Ok(ExitCode::SUCCESS)
}
