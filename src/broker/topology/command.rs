//! `topology apply` and `topology check`.

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::apply::Match;
use super::{Part, check, declare, plan};
use crate::broker::Broker;
use crate::cli::EXIT_DIFFERENCE;
use crate::cli::output::say;
use crate::config::Config;

/// How long the command waits for RabbitMQ.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// `topology …`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Declares every exchange, queue and binding; safe to repeat
    Apply,
    /// Compares exchanges and queues with the broker, changes nothing; exit code 3 where one differs
    Check {
        /// One JSON object per exchange or queue
        #[arg(long)]
        json: bool,
    },
}

/// Runs `topology …`.
///
/// # Errors
/// RabbitMQ cannot be reached or refuses.
pub async fn run(command: &Command, config: &Config) -> anyhow::Result<ExitCode> {
    let broker = Broker::start(&config.amqp, "context-injector topology", CancellationToken::new());
    let done = carry_out(command, config, &broker).await;
    broker.close().await;
    done
}

async fn carry_out(command: &Command, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    let connection = broker.connection_within(CONNECT_WAIT).await?;
    let plan = plan(config, Part::All);
    match command {
        Command::Apply => {
            declare(&connection, &plan).await?;
            say!("Declared {} exchanges, queues and bindings at {}.", plan.len(), config.amqp.url)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json } => {
            let findings = check(&connection, &plan).await?;
            let different = findings.iter().filter(|finding| finding.state != Match::Same).count();
            for finding in &findings {
                if *json {
                    say!("{}", finding.to_json())?;
                } else if finding.state != Match::Same {
                    say!("{finding}")?;
                }
            }
            if !json {
                say!("{} of {} exchanges and queues are as planned.", findings.len() - different, findings.len())?;
            }
            Ok(if different == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENCE) })
        }
    }
}

impl super::Finding {
    fn to_json(&self) -> serde_json::Value {
        let (state, text) = match &self.state {
            Match::Same => ("same", None),
            Match::Missing => ("missing", None),
            Match::Differs(_) => ("differs", Some(self.to_string())),
        };
        serde_json::json!({ "kind": self.kind, "name": self.name, "state": state, "text": text })
    }
}
