//! Declaring a plan, comparing it with the broker, and putting the broker's refusals into sentences.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind};

use super::{BROWSE_LIMIT, DELIVERY_LIMIT, Declaration};

/// Why a plan could not be declared or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It exists with another argument.
    #[error("{}", differs(.kind, .name, .difference))]
    Differs {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The broker's words, or what was found in them.
        difference: Difference,
    },
    /// The user may not.
    #[error(
        "RabbitMQ does not let this user declare or bind {kind} {name:?}: {text}. Give the user the permission, or \
         let one who has it run `context-injector topology apply`"
    )]
    Refused {
        /// `queue`, `exchange` or `binding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The broker's words.
        text: String,
    },
    /// The broker said something else, or the connection broke.
    #[error("cannot declare {kind} {name:?}: {}", words(.error))]
    Failed {
        /// `queue`, `exchange` or `binding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What happened.
        error: lapin::Error,
    },
}

/// How an existing queue or exchange differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// One argument.
    Argument {
        /// Its name.
        name: String,
        /// What the settings want; `None`: nothing.
        wanted: Option<String>,
        /// What the broker has; `None`: nothing.
        existing: Option<String>,
    },
    /// The broker's words, which could not be taken apart.
    Text(String),
}

fn differs(kind: &str, name: &str, difference: &Difference) -> String {
    let what = match difference {
        Difference::Argument { name, wanted, existing } => {
            let show = |value: &Option<String>| value.as_ref().map_or("none".to_owned(), |value| format!("{value:?}"));
            format!("has {name} = {} in RabbitMQ, but the settings want {}", show(existing), show(wanted))
        }
        Difference::Text(text) => format!("is another one in RabbitMQ than the settings want ({text})"),
    };
    if changes_order(name, difference) {
        return format!(
            "{kind} {name:?} {what}: an endpoint cannot begin or cease to be ordered while its queue is there; let one of \
             another name take its place (RUNBOOK, \"Change the order of an endpoint\"), or set ordered back"
        );
    }
    let delete = if kind == "queue" { "let it run empty and delete it" } else { "delete it" };
    format!("{kind} {name:?} {what}: {delete}, or set the value back, or use another amqp.prefix")
}

/// Whether this is the queue of an endpoint whose `ordered` was changed. There the usual way out would lose events: its
/// queue takes them all the time, so it is never empty for good.
fn changes_order(name: &str, difference: &Difference) -> bool {
    let Difference::Argument { name: argument, wanted: Some(wanted), existing: Some(existing) } = difference else {
        return false;
    };
    let (ordered, other) = (BROWSE_LIMIT.to_string(), DELIVERY_LIMIT.to_string());
    argument == "x-delivery-limit"
        && name.contains(".webhooks.")
        && ((*wanted == ordered && *existing == other) || (*wanted == other && *existing == ordered))
}

/// What a comparison found.
#[derive(Debug)]
pub struct Finding {
    /// `queue` or `exchange`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: Match,
}

/// How a queue or exchange compares with the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// As planned.
    Same,
    /// Not there.
    Missing,
    /// There, with another argument.
    Differs(Difference),
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.state {
            Match::Same => write!(f, "{} {:?} is as planned", self.kind, self.name),
            Match::Missing => write!(f, "{} {:?} is missing", self.kind, self.name),
            Match::Differs(difference) => f.write_str(&differs(self.kind, &self.name, difference)),
        }
    }
}

/// Declares everything, in order. Safe to repeat.
///
/// A user without the permission to declare is fine where everything is there already.
///
/// # Errors
/// The first [`Error`].
pub async fn declare(connection: &Connection, plan: &[Declaration]) -> Result<(), Error> {
    let mut channel = None;
    for declaration in plan {
        let lane = match channel.take().filter(|channel: &Channel| channel.status().connected()) {
            Some(channel) => channel,
            None => open(connection, declaration).await?,
        };
        if let Err(error) = declare_one(&lane, declaration, false).await {
            let error = classify(declaration, error);
            if !(matches!(error, Error::Refused { .. }) && exists(connection, declaration).await?) {
                return Err(error);
            }
        }
        channel = Some(lane);
    }
    close(channel).await;
    Ok(())
}

/// Compares exchanges and queues with the broker and changes nothing. Bindings cannot be looked at over AMQP.
///
/// # Errors
/// The broker cannot be asked.
pub async fn check(connection: &Connection, plan: &[Declaration]) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    for declaration in plan {
        let (kind, name) = describe(declaration);
        if kind == "binding" {
            continue;
        }
        let state = if exists(connection, declaration).await? {
            // Declaring what is there compares it; a channel each, since a difference ends it.
            let channel = open(connection, declaration).await?;
            let declared = declare_one(&channel, declaration, false).await;
            close(Some(channel)).await;
            match declared.map_err(|error| classify(declaration, error)) {
                Ok(()) => Match::Same,
                Err(Error::Differs { difference, .. }) => Match::Differs(difference),
                Err(error) => return Err(error),
            }
        } else {
            Match::Missing
        };
        findings.push(Finding { kind, name: name.to_owned(), state });
    }
    Ok(findings)
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait.
    pub ready: u32,
    /// Consumers, the standing-by ones too.
    pub consumers: u32,
}

/// Looks at a queue without touching it; `None` where it is not there.
///
/// # Errors
/// The broker cannot be asked.
pub async fn depth(connection: &Connection, queue: &str) -> lapin::Result<Option<Depth>> {
    let channel = connection.create_channel().await?;
    let name = ShortString::try_new(queue).map_err(|error| std::io::Error::other(error.to_string()))?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(name, options, FieldTable::default()).await {
        Ok(queue) => {
            let depth = Depth { ready: queue.message_count(), consumers: queue.consumer_count() };
            close(Some(channel)).await;
            Ok(Some(depth))
        }
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn exists(connection: &Connection, declaration: &Declaration) -> Result<bool, Error> {
    if matches!(declaration, Declaration::Binding { .. }) {
        return Ok(false);
    }
    let channel = open(connection, declaration).await?;
    match declare_one(&channel, declaration, true).await {
        Ok(()) => {
            close(Some(channel)).await;
            Ok(true)
        }
        Err(error) if is(&error, AMQPSoftError::NOTFOUND) => Ok(false),
        Err(error) => Err(classify(declaration, error)),
    }
}

async fn declare_one(channel: &Channel, declaration: &Declaration, passive: bool) -> lapin::Result<()> {
    match declaration {
        Declaration::Exchange { name, kind, arguments } => {
            let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(name.as_str().into(), kind.clone(), options, arguments.clone()).await
        }
        Declaration::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, passive, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.as_str().into(), options, arguments.clone()).await.map(drop)
        }
        Declaration::Binding { queue, exchange, key } => {
            let (queue, exchange, key) = (queue.as_str().into(), exchange.as_str().into(), key.as_str().into());
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await
        }
    }
}

async fn open(connection: &Connection, declaration: &Declaration) -> Result<Channel, Error> {
    let (kind, name) = describe(declaration);
    let failed = |error| Error::Failed { kind, name: name.to_owned(), error };
    connection.create_channel().await.map_err(failed)
}

async fn close(channel: Option<Channel>) {
    if let Some(channel) = channel {
        // One that is closed already is just as well.
        let _ = channel.close(200, "OK".into()).await;
    }
}

fn describe(declaration: &Declaration) -> (&'static str, &str) {
    match declaration {
        Declaration::Exchange { name, .. } => ("exchange", name),
        Declaration::Queue { name, .. } => ("queue", name),
        Declaration::Binding { queue, .. } => ("binding", queue),
    }
}

/// The broker's own words where there are any.
fn words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => protocol.get_message().to_string(),
        _ => error.to_string(),
    }
}

fn classify(declaration: &Declaration, error: lapin::Error) -> Error {
    let (kind, name) = describe(declaration);
    let (name, text) = (name.to_owned(), words(&error));
    if is(&error, AMQPSoftError::PRECONDITIONFAILED) {
        Error::Differs { kind, name, difference: read_difference(&text) }
    } else if is(&error, AMQPSoftError::ACCESSREFUSED) {
        Error::Refused { kind, name, text }
    } else {
        Error::Failed { kind, name, error }
    }
}

fn is(error: &lapin::Error, expected: AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => {
            matches!(protocol.kind(), AMQPErrorKind::Soft(soft) if *soft == expected)
        }
        _ => false,
    }
}

/// Takes RabbitMQ's sentence apart: `PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in
/// vhost '/': received the value '100' of type 'signedint' but current is the value '5' of type 'signedint'`,
/// also `received none but current is …` and `received 'true' but current is 'false'`.
fn read_difference(text: &str) -> Difference {
    let read = || {
        let (before, values) = text.split_once(": received ")?;
        let (_, argument) = before.split_once("inequivalent arg '")?;
        let (argument, _) = argument.split_once('\'')?;
        let (wanted, existing) = values.split_once(" but current is ")?;
        let value = |text: &str| match text.split_once('\'') {
            None => None,
            Some((_, rest)) => rest.split_once('\'').map(|(value, _)| value.to_owned()),
        };
        Some(Difference::Argument { name: argument.to_owned(), wanted: value(wanted), existing: value(existing) })
    };
    read().unwrap_or_else(|| Difference::Text(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_sentence_is_taken_apart_in_all_its_forms() {
        let argument = |name: &str, wanted: Option<&str>, existing: Option<&str>| Difference::Argument {
            name: name.into(),
            wanted: wanted.map(str::to_owned),
            existing: existing.map(str::to_owned),
        };
        for (text, expected) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'context.jobs.default' in vhost \
                 '/': received the value '100' of type 'long' but current is the value '5' of type 'signedint'",
                argument("x-delivery-limit", Some("100"), Some("5")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none \
                 but current is the value '5000' of type 'long'",
                argument("x-message-ttl", None, Some("5000")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': received 'topic' but \
                 current is 'fanout'",
                argument("type", Some("topic"), Some("fanout")),
            ),
            ("PRECONDITION_FAILED - something new", Difference::Text("PRECONDITION_FAILED - something new".into())),
        ] {
            assert_eq!(read_difference(text), expected);
        }
    }

    #[test]
    fn an_endpoint_that_is_to_be_ordered_is_told_so() {
        let sentence = |name: &str, wanted: &str, existing: &str| {
            let difference = Difference::Argument {
                name: "x-delivery-limit".into(),
                wanted: Some(wanted.into()),
                existing: Some(existing.into()),
            };
            differs("queue", name, &difference)
        };
        for (wanted, existing) in [("1000000", "100"), ("100", "1000000")] {
            let text = sentence("context.webhooks.log", wanted, existing);
            assert!(text.contains("cannot begin or cease to be ordered") && !text.contains("run empty"), "{text}");
            assert!(sentence("context.jobs.default", wanted, existing).contains("run empty"));
        }
        assert!(sentence("context.webhooks.log", "100", "20").contains("run empty"));
    }

    #[test]
    fn a_difference_is_one_sentence_with_the_ways_out() {
        let error = Error::Differs {
            kind: "queue",
            name: "context.jobs.default".into(),
            difference: Difference::Argument {
                name: "x-delivery-limit".into(),
                wanted: Some("100".into()),
                existing: None,
            },
        };
        assert_eq!(
            error.to_string(),
            "queue \"context.jobs.default\" has x-delivery-limit = none in RabbitMQ, but the settings want \"100\": \
             let it run empty and delete it, or set the value back, or use another amqp.prefix"
        );
    }
}
