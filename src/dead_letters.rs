//! Dead letters: looked at, repaired and replayed by an operator, on the real queues.
//!
//! Rules:
//! - Looking never changes a queue: everything is taken with manual acks and given back in its order
//!   (`browse`).
//! - A replay is publish, confirm, then ack: killed in between, a message is there twice, never nowhere. The
//!   worker knows a job by its id, so that a repeat has no effect. The same command run again goes on.
//! - `edit` and `discard` are on record in the audit stream before they happen (`operation`).
//! - What is listed or replayed is what was there when the command started: what dies again meanwhile is not
//!   replayed in a circle.

mod browse;
mod changes;
mod discard;
mod edit;
mod editor;
mod filter;
mod import;
mod letter;
mod list;
mod operation;
mod repair;
mod replay;
mod results;
mod taken;
mod whole;

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::broker::topology::Names;
use crate::config::Config;

pub use letter::{Death, Letter, Owner, letter};

/// How long a command waits for RabbitMQ.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// `dead-letters …`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Counts by reason, then the letters, oldest first
    List(list::ListArgs),
    /// Prints one letter: headers, reason, body (with the values of its variables)
    Show(list::ShowArgs),
    /// Prints letters with headers and bodies as JSON lines; bodies that are not text are in base64
    Export(list::ExportArgs),
    /// Publishes letters once more, with the same id and the next replay generation
    ///
    /// Without ids and filters: all of them. A job that was applied after all is recognised by the worker and
    /// not applied twice. A replay that is cut off goes on where it was when it is run again.
    Replay(replay::ReplayArgs),
    /// Gives one job another body, checked as the worker would; it stays a dead letter
    ///
    /// In $VISUAL or $EDITOR, or with --patch. It is on record in the audit stream; the original body stays in the
    /// header x-original-body until the letter is replayed. The edited letter is the last of its queue.
    Edit(edit::EditArgs),
    /// Takes letters away for ever, each on record in the audit stream
    ///
    /// Asks first. A copy of what is discarded: `dead-letters export` with the same filters.
    Discard(discard::DiscardArgs),
    /// Puts letters that export wrote into their queues, byte for byte: to move them between brokers
    Import(import::ImportArgs),
}

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Jobs that ended in failure
    Jobs,
    /// Webhooks that were given up
    Webhooks,
    /// Jobs that crashed a worker, or were near when one crashed
    Quarantine,
    /// Jobs for a bot that nobody had configured
    Unroutable,
    /// Events that crashed a relay, or were near when one crashed
    WebhooksQuarantine,
    /// Events whose endpoint's queue was gone
    WebhooksUnroutable,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Jobs,
        Self::Webhooks,
        Self::Quarantine,
        Self::Unroutable,
        Self::WebhooksQuarantine,
        Self::WebhooksUnroutable,
    ];

    /// As it is typed.
    fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Webhooks => "webhooks",
            Self::Quarantine => "quarantine",
            Self::Unroutable => "unroutable",
            Self::WebhooksQuarantine => "webhooks-quarantine",
            Self::WebhooksUnroutable => "webhooks-unroutable",
        }
    }

    /// Whether it holds jobs; else events.
    fn is_jobs(self) -> bool {
        match self {
            Self::Jobs | Self::Quarantine | Self::Unroutable => true,
            Self::Webhooks | Self::WebhooksQuarantine | Self::WebhooksUnroutable => false,
        }
    }

    fn queue(self, names: &Names) -> String {
        match self {
            Self::Jobs => names.jobs_dead(),
            Self::Webhooks => names.webhooks_dead(),
            Self::Quarantine => names.jobs_quarantine(),
            Self::Unroutable => names.jobs_unroutable(),
            Self::WebhooksQuarantine => names.webhooks_quarantine(),
            Self::WebhooksUnroutable => names.webhooks_unroutable(),
        }
    }
}

/// Runs `dead-letters …`.
///
/// # Errors
/// RabbitMQ cannot be reached, the queue is not there, or an argument does not fit.
pub async fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    let broker = Broker::start(&config.amqp, "context-injector dead-letters", CancellationToken::new());
    broker.connection_within(CONNECT_WAIT).await?;
    broker.say_when_blocked();
    let done = match command {
        Command::List(args) => list::list(&args, &config, &broker).await,
        Command::Show(args) => list::show(&args, &config, &broker).await,
        Command::Export(args) => list::export(&args, &config, &broker).await,
        Command::Replay(args) => replay::replay(args, &config, &broker).await,
        Command::Edit(args) => edit::edit(args, &config, &broker).await,
        Command::Discard(args) => discard::discard(args, &config, &broker).await,
        Command::Import(args) => import::import(args, &config, &broker).await,
    };
    broker.close().await;
    done
}
