//! The command line: which commands there are, which settings they read, and how a command's end becomes an
//! exit code.
//!
//! Exit codes: 0 done; 1 the work failed (its error says why); 2 the call or a setting is wrong; 3 done, but a
//! check found a difference (`topology check`, `audit verify`, the demo's verdict).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config};
use crate::{audit, dead_letters, demo, inject, sandbox, telemetry};

pub mod output;

/// Exit code of a wrong call or a wrong setting.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of a check that found a difference.
pub const EXIT_DIFFERENCE: u8 = 3;

/// Writes variables into live bot conversations: jobs come from RabbitMQ, effects are exactly-once, outcomes
/// are events.
#[derive(Debug, Parser)]
#[command(name = "context-injector", version, about, long_about = None)]
struct Cli {
    /// The settings file (TOML). Every value can be overridden by environment:
    /// CONTEXT_INJECTOR__BOTS__DEFAULT__CLIENT_SECRET=…
    #[arg(long, short, global = true, env = "CONTEXT_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes jobs from the queues and writes them into conversations
    Worker,
    /// Delivers outcome events as signed webhooks
    Relay,
    /// Worker and relay in one process
    Run,
    /// Validates jobs and publishes them
    Inject(inject::Args),
    /// Declares or compares the exchanges and queues
    #[command(subcommand)]
    Topology(crate::broker::topology::Command),
    /// Lists, shows, repairs and replays what ended in failure
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Checks, follows and exports the chain of all outcomes
    #[command(subcommand)]
    Audit(audit::Command),
    /// Lists, tests, enables, disables webhook receivers; rotates their secrets
    #[command(subcommand)]
    Endpoints(crate::relay::command::Command),
    /// Checks or shows the settings
    #[command(subcommand)]
    Config(config::Command),
    /// Prints a JSON schema: job, outcome, checkpoint
    Schema(crate::pipeline::validate::SchemaArgs),
    /// A simulated bot platform, stateful and faulty on request
    Sandbox(sandbox::Args),
    /// A webhook receiver to try the relay with: verifies signatures, prints what arrives
    Receiver(demo::receiver::Args),
    /// The main job, end to end, with a check of its own
    Demo(demo::Args),
    /// Asks a running process's /livez or /readyz: the container's health check
    Health(crate::admin::HealthArgs),
}

/// Parses the command line, runs the command, prints its error in one piece.
pub fn main() -> ExitCode {
    // One TLS provider for every client; a second call would only say that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<config::Error>() {
                Some(_) => ExitCode::from(EXIT_USAGE),
                None => ExitCode::FAILURE,
            }
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // These need no settings of ours.
    match cli.command {
        Command::Sandbox(args) => return sandbox::run(args).await,
        Command::Demo(args) => return demo::run(args).await,
        Command::Receiver(args) => return demo::receiver::run(args).await,
        Command::Schema(args) => return crate::pipeline::validate::print_schema(&args),
        Command::Health(args) => return crate::admin::health(args).await,
        Command::Config(command) => return config::run(&command, cli.config.as_deref()),
        _ => {}
    }
    let config = Config::load(cli.config.as_deref())?;
    match cli.command {
        Command::Worker => {
            telemetry::init(&config.log);
            crate::worker::run(config).await
        }
        Command::Relay => {
            telemetry::init(&config.log);
            crate::relay::run(config).await
        }
        Command::Run => {
            telemetry::init(&config.log);
            crate::worker::run_with_relay(config).await
        }
        Command::Inject(args) => inject::run(args, config).await,
        Command::Topology(command) => crate::broker::topology::run(&command, &config).await,
        Command::DeadLetters(command) => dead_letters::run(command, config).await,
        Command::Audit(command) => audit::run(command, config).await,
        Command::Endpoints(command) => crate::relay::command::run(command, config).await,
        Command::Sandbox(_)
        | Command::Demo(_)
        | Command::Receiver(_)
        | Command::Schema(_)
        | Command::Health(_)
        | Command::Config(_) => {
            unreachable!("handled above")
        }
    }
}
