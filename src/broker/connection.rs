//! The connection to RabbitMQ, re-made for ever.
//!
//! A task owns the loop: connect, declare the topology it was given, hand the connection out, watch it, start
//! over. There is no terminal state: an operator who repairs the address, the password or a queue finds the
//! process working again by itself. Every change of state is logged once.
//!
//! Odd cases:
//! - lapin reports the end of a *channel* as an event of the connection too, so an event is only a reason to look.
//! - The heartbeat is 10 s, not the broker's 60: a process that is stopped without closing its connection would
//!   hold its single-active queues for that long.
//! - A broker short of memory or disk *blocks* connections that publish; nothing fails then, all waits.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use rand::Rng as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::topology::{self, Declaration};
use super::wire;
use crate::config;

/// Asked of the broker, in seconds.
const HEARTBEAT: u16 = 10;
/// From the first packet to an open connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From an open connection to a declared topology. A broker that has just started can leave a declaration
/// without any answer.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait between two tries, so that work goes on within 5 s of the broker's return.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// First longest wait, doubled by every failure in a row.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// How often a quiet connection is looked at, in case that an event was missed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For the goodbye of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Connecting {
        /// Why not, in one sentence without credentials.
        why: String,
    },
    /// It works.
    Ready,
    /// The broker takes no publishes (memory or disk alarm); they wait.
    Blocked {
        /// The broker's reason.
        reason: String,
    },
}

/// RabbitMQ could not be reached in time: why, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(String);

/// A connection that is always being kept up. Clones share it.
#[derive(Debug, Clone)]
pub struct Broker {
    current: watch::Receiver<Option<Arc<Connection>>>,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Broker {
    /// Starts to connect, and returns at once. `connection_name` is what RabbitMQ's own tools show.
    #[must_use]
    pub fn start(amqp: &config::Amqp, connection_name: &str, stop: CancellationToken) -> Self {
        Self::start_declaring(amqp, connection_name, Vec::new(), stop)
    }

    /// Like [`Broker::start`], and declares `plan` on every new connection before anybody gets it. While a queue
    /// is there with other arguments, the state is [`State::Connecting`] with the sentence that says so.
    #[must_use]
    pub fn start_declaring(
        amqp: &config::Amqp,
        connection_name: &str,
        plan: Vec<Declaration>,
        stop: CancellationToken,
    ) -> Self {
        let why = format!("connecting to RabbitMQ at {}", amqp.url);
        let (current_sender, current) = watch::channel(None);
        let (state_sender, state) = watch::channel(State::Connecting { why });
        // A child, so that close() ends this connection and nothing else.
        let stop = stop.child_token();
        let keeper = Keeper {
            address: amqp.url.clone(),
            name: connection_name.to_owned(),
            plan,
            current: current_sender,
            state: state_sender,
        };
        let tasks = TaskTracker::new();
        tasks.spawn(keeper.keep(stop.clone()));
        tasks.close();
        Self { current, state, stop, tasks }
    }

    /// Waits until there is a connection that can be used. After [`Broker::close`] it waits for ever: select it
    /// against whatever ends the caller.
    pub async fn connection(&self) -> Arc<Connection> {
        let mut current = self.current.clone();
        loop {
            let usable = |slot: &Option<Arc<Connection>>| slot.as_ref().is_some_and(|c| c.status().connected());
            match current.wait_for(usable).await.map(|slot| slot.clone()) {
                Ok(Some(connection)) => return connection,
                Ok(None) => {}
                Err(_closed) => std::future::pending().await,
            }
        }
    }

    /// Like [`Broker::connection`], for commands that must not wait for ever.
    ///
    /// # Errors
    /// No connection within `limit`: the last reason.
    pub async fn connection_within(&self, limit: Duration) -> Result<Arc<Connection>, Unreachable> {
        tokio::time::timeout(limit, self.connection()).await.map_err(|_elapsed| match &*self.state.borrow() {
            State::Connecting { why } => Unreachable(why.clone()),
            State::Ready | State::Blocked { .. } => Unreachable("the connection to RabbitMQ comes and goes".to_owned()),
        })
    }

    /// The state, as a value that can be watched.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Says on standard error when the broker takes no messages: for commands, which log nothing and would just
    /// seem to hang.
    pub fn say_when_blocked(&self) {
        let mut state = self.state.clone();
        let stop = self.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok(State::Blocked { reason }) =
                state.wait_for(|state| matches!(state, State::Blocked { .. })).await.map(|state| state.clone())
            {
                eprintln!("waiting: RabbitMQ takes no messages at the moment ({reason})");
                if state.wait_for(|state| !matches!(state, State::Blocked { .. })).await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Ends the loop and closes the connection (at most 2 s).
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

struct Keeper {
    address: config::SecretUrl,
    name: String,
    plan: Vec<Declaration>,
    current: watch::Sender<Option<Arc<Connection>>>,
    state: watch::Sender<State>,
}

impl Keeper {
    async fn keep(self, stop: CancellationToken) {
        tracing::info!(address = %self.address, "connecting to RabbitMQ");
        let _ended = stop.run_until_cancelled(self.keep_connecting()).await;
        let last = self.current.send_replace(None);
        let Some(connection) = last else { return };
        let goodbye = connection.close(200, "OK".into());
        // A broker that does not answer any more must not hold up the end of the process.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    async fn keep_connecting(&self) {
        let mut failures = 0;
        loop {
            match self.open().await {
                Ok(connection) => {
                    failures = 0;
                    self.change(State::Ready);
                    let mut events = Box::pin(connection.events_listener());
                    self.current.send_replace(Some(Arc::clone(&connection)));
                    let why = self.watch(&connection, &mut events).await;
                    self.current.send_replace(None);
                    metrics::counter!(crate::metrics::BROKER_RECONNECTS).increment(1);
                    self.change(State::Connecting { why });
                }
                Err(why) => {
                    failures += 1;
                    self.change(State::Connecting { why });
                }
            }
            let longest = longest_wait(failures);
            let wait = rand::rng().random_range(Duration::ZERO..=longest);
            tokio::time::sleep(wait).await;
        }
    }

    /// One try. The error is a sentence for people.
    async fn open(&self) -> Result<Arc<Connection>, String> {
        let uri = address_of(&self.address).map_err(|error| format!("amqp.url cannot be used: {error}"))?;
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let opening = wire::connect(uri, properties);
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(connection)) => Arc::new(connection),
            Ok(Err(error)) => return Err(say_why(&self.address, &error)),
            Err(_elapsed) => {
                return Err(format!("RabbitMQ at {} does not answer within {CONNECT_TIMEOUT:?}", self.address));
            }
        };
        match tokio::time::timeout(DECLARE_TIMEOUT, topology::declare(&connection, &self.plan)).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => {
                Err(format!("RabbitMQ at {} does not declare queues within {DECLARE_TIMEOUT:?}", self.address))
            }
        }
    }

    /// Returns why the connection ended.
    async fn watch(
        &self,
        connection: &Connection,
        events: &mut (impl futures_util::Stream<Item = Event> + Unpin),
    ) -> String {
        let mut last_error = None;
        loop {
            match tokio::time::timeout(LOOK_EVERY, events.next()).await {
                Ok(Some(Event::ConnectionBlocked(reason))) => self.change(State::Blocked { reason }),
                Ok(Some(Event::ConnectionUnblocked)) => self.change(State::Ready),
                Ok(Some(Event::Error(error))) => last_error = Some(error),
                Ok(Some(_)) | Err(_) => {}
                // The stream cannot end while the connection lives; do not spin if it does.
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
            }
            if !connection.status().connected() {
                return match last_error {
                    Some(error) => say_why(&self.address, &error),
                    None => format!("the connection to RabbitMQ at {} is gone", self.address),
                };
            }
        }
    }

    /// Publishes and logs a state, if it is another one.
    fn change(&self, state: State) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        if !changed {
            return;
        }
        match state {
            State::Ready => tracing::info!(address = %self.address, "connected to RabbitMQ"),
            State::Blocked { reason } => {
                tracing::warn!(address = %self.address, reason, "RabbitMQ takes no messages at the moment");
            }
            State::Connecting { why } => tracing::warn!(address = %self.address, "not connected to RabbitMQ: {why}"),
        }
    }
}

/// The longest wait after so many failures in a row; the wait itself is drawn between zero and it (full jitter).
fn longest_wait(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT)
}

fn address_of(address: &config::SecretUrl) -> Result<AMQPUri, String> {
    let mut uri = address.expose().parse::<AMQPUri>()?;
    // lapin takes an IPv6 literal for no host at all and would go to localhost.
    if let Ok(url) = url::Url::parse(address.expose())
        && let Some(url::Host::Ipv6(host)) = url.host()
    {
        uri.authority.host = host.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    let timeout = u64::try_from(CONNECT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    uri.query.connection_timeout.get_or_insert(timeout);
    Ok(uri)
}

/// What went wrong, in one sentence without credentials.
fn say_why(address: &config::SecretUrl, error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                format!("RabbitMQ at {address} refuses the user name or password; check amqp.url (AMQP_URL)")
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                format!(
                    "RabbitMQ at {address} refuses the virtual host of amqp.url: {} (\"/\" is written %2f)",
                    protocol.get_message()
                )
            }
            _ => format!("RabbitMQ at {address} ended the connection: {}", protocol.get_message()),
        },
        ErrorKind::IOError(error) => format!("cannot reach RabbitMQ at {address}: {error}"),
        ErrorKind::ParsingError(_) => format!("RabbitMQ at {address} sent what this client cannot read"),
        ErrorKind::MissingHeartbeatError => format!("RabbitMQ at {address} was silent for too long"),
        _ => format!("no connection to RabbitMQ at {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_four_seconds_and_never_beyond() {
        assert_eq!(longest_wait(0), Duration::from_millis(100));
        assert_eq!(longest_wait(3), Duration::from_millis(800));
        assert!((0..200).all(|failures| longest_wait(failures) <= LONGEST_WAIT));
        assert_eq!(longest_wait(u32::MAX), LONGEST_WAIT);
    }

    #[test]
    fn an_ipv6_address_is_kept_and_the_heartbeat_is_ours_unless_the_address_says_otherwise() {
        let uri = address_of(&config::SecretUrl::new("amqp://u:p@[::1]:5673/%2f")).unwrap();
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("::1", 5673));
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        let uri = address_of(&config::SecretUrl::new("amqp://localhost?heartbeat=3")).unwrap();
        assert_eq!(uri.query.heartbeat, Some(3));
    }

    #[test]
    fn wrong_credentials_are_said_without_them() {
        let address = config::SecretUrl::new("amqp://someone:hunter2@mq.example.com/%2f");
        let refused = lapin::protocol::AMQPError::new(AMQPSoftError::ACCESSREFUSED.into(), "ACCESS_REFUSED".into());
        let sentence = say_why(&address, &ErrorKind::ProtocolError(refused).into());
        assert!(sentence.contains("amqp://mq.example.com refuses the user name or password"), "{sentence}");
        assert!(!sentence.contains("someone") && !sentence.contains("hunter2"), "{sentence}");
    }
}
