//! The one connection to Redis: everything that we keep there helps, nothing depends on it.
//!
//! Rules:
//! - A call never waits long. While Redis is known to be away, [`RedisLink::call`] fails at once, so that not
//!   every job pays for finding out; a task of its own keeps trying to connect and says when Redis is back.
//! - A call that failed may have had its effect. Every script is written so that this does no harm.
//! - At start, calls wait for the first try to connect, at most [`START_WITHIN`].
//!
//! Redis that hangs is away like one that is gone: each call has a time limit, and an idle connection is asked
//! every second.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, IntoConnectionInfo as _, RedisError};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{self, SecretUrl};
use crate::retry;

mod script;

pub use script::{Invocation, Script};

/// How long calls wait for the first connection of the process.
pub const START_WITHIN: Duration = Duration::from_secs(3);
/// How long one call may take. A Redis that saves its data can stop for some hundred milliseconds.
const CALL_WITHIN: Duration = Duration::from_secs(1);
/// How often an idle connection is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The link to Redis, shared by all who use it.
#[derive(Debug)]
pub struct RedisLink {
    prefix: String,
    presence: watch::Receiver<Presence>,
    lost: mpsc::Sender<u64>,
    started: Instant,
    task: Option<AbortHandle>,
}

/// Whether Redis can be used.
#[derive(Clone)]
enum Presence {
    /// The first try to connect is under way.
    Starting,
    Here {
        connection: MultiplexedConnection,
        serial: u64,
    },
    Away,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "Starting",
            Self::Here { .. } => "Here",
            Self::Away => "Away",
        })
    }
}

/// Redis cannot be used now: work on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redis is away")]
pub struct Away;

/// The address is none that Redis' client understands.
#[derive(Debug, thiserror::Error)]
#[error("redis.url cannot be used (it is not shown)")]
pub struct WrongAddress(#[source] RedisError);

impl RedisLink {
    /// Starts to connect; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`WrongAddress`]. A Redis that is not there is no error.
    pub fn start(settings: &config::Redis) -> Result<Arc<Self>, WrongAddress> {
        let address = settings.url.expose().into_connection_info().map_err(WrongAddress)?;
        // Small requests, many under way at once: held back, each would wait for the answer to the one before.
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let client = redis::Client::open(address.set_tcp_settings(tcp)).map_err(WrongAddress)?;
        let (sender, presence) = watch::channel(Presence::Starting);
        let (lost, reports) = mpsc::channel(64);
        let keeper = Keeper { client, address: settings.url.clone(), sender, reports };
        let task = tokio::spawn(keeper.run()).abort_handle();
        let prefix = settings.prefix.clone();
        Ok(Arc::new(Self { prefix, presence, lost, started: Instant::now(), task: Some(task) }))
    }

    /// A link without a Redis: everything works as if it were away.
    #[must_use]
    pub fn absent() -> Arc<Self> {
        let (lost, _) = mpsc::channel(1);
        let presence = watch::channel(Presence::Away).1;
        Arc::new(Self { prefix: String::new(), presence, lost, started: Instant::now(), task: None })
    }

    /// Whether Redis is connected, for readiness and metrics.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(*self.presence.borrow(), Presence::Here { .. })
    }

    /// Waits until [`Self::is_here`] is `here`.
    pub async fn wait_until(&self, here: bool) {
        let is_so = |presence: &Presence| matches!(presence, Presence::Here { .. }) == here;
        // An error means that the sender is gone, and with it any change.
        let _ = self.presence.clone().wait_for(is_so).await;
    }

    /// The key `{prefix}:{kind}:{tag}`, its last part in the braces that keep the keys of one thing on one node of
    /// a cluster.
    #[must_use]
    pub fn key(&self, kind: &str, tag: &str) -> String {
        [&self.prefix, ":", kind, ":{", tag, "}"].concat()
    }

    /// Runs a script.
    ///
    /// # Errors
    /// [`Away`]: Redis is not there, did not answer in time or did not take the script. It may have run.
    pub async fn call<T: FromRedisValue>(&self, script: &Invocation<'_>) -> Result<T, Away> {
        let (mut connection, serial) = self.connection().await?;
        match timeout(CALL_WITHIN, script.run(&mut connection)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if concerns_one_key(&error) => {
                tracing::warn!(error = %error, "redis refused a script; working on without its answer");
                Err(Away)
            }
            Ok(Err(_)) | Err(_) => {
                // A full channel holds a report of this loss already.
                let _ = self.lost.try_send(serial);
                Err(Away)
            }
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), Away> {
        if matches!(*self.presence.borrow(), Presence::Starting) {
            let mut presence = self.presence.clone();
            let known = presence.wait_for(|presence| !matches!(presence, Presence::Starting));
            let left = START_WITHIN.saturating_sub(self.started.elapsed());
            let _ = timeout(left, known).await;
        }
        match &*self.presence.borrow() {
            Presence::Here { connection, serial } => Ok((connection.clone(), *serial)),
            Presence::Starting | Presence::Away => Err(Away),
        }
    }
}

impl Drop for RedisLink {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A key of another type, or an error inside a script: the others work.
fn concerns_one_key(error: &RedisError) -> bool {
    matches!(error.code(), Some("WRONGTYPE" | "ERR"))
}

/// The task that keeps the connection.
struct Keeper {
    client: redis::Client,
    address: SecretUrl,
    sender: watch::Sender<Presence>,
    reports: mpsc::Receiver<u64>,
}

impl Keeper {
    async fn run(mut self) {
        let mut known_away = false;
        for serial in 1.. {
            let connection = self.connect(&mut known_away).await;
            if known_away {
                tracing::info!(address = %self.address, "redis is back");
            }
            self.sender.send_replace(Presence::Here { connection: connection.clone(), serial });
            let reason = self.until_lost(connection, serial).await;
            self.went_away(&reason);
            known_away = true;
        }
    }

    fn went_away(&self, reason: &str) {
        self.sender.send_replace(Presence::Away);
        let address = &self.address;
        tracing::warn!(%address, reason, "redis is away; working on without leases, with a local limiter");
    }

    /// Tries until it succeeds.
    async fn connect(&self, known_away: &mut bool) -> MultiplexedConnection {
        let mut waits = retry::reconnect_delays();
        loop {
            // Calls have a limit of ours, which counts the wait to be sent as well.
            let limits =
                AsyncConnectionConfig::new().set_connection_timeout(Some(CALL_WITHIN)).set_response_timeout(None);
            let connecting = self.client.get_multiplexed_async_connection_with_config(&limits);
            let reason = match timeout(2 * CALL_WITHIN, connecting).await {
                Ok(Ok(mut connection)) => match ask(&mut connection).await {
                    Ok(()) => return connection,
                    Err(reason) => reason,
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            if !*known_away {
                self.went_away(&reason);
                *known_away = true;
            }
            sleep(waits.next().unwrap_or(ASK_EVERY)).await;
        }
    }

    /// Waits until the connection does not work any more, and says why.
    async fn until_lost(&mut self, mut connection: MultiplexedConnection, serial: u64) -> String {
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(of) if of == serial => return "a call failed".to_owned(),
                    Some(_) => {}
                    None => return "it is no longer used".to_owned(),
                },
                () = sleep(ASK_EVERY) => if let Err(reason) = ask(&mut connection).await {
                    return reason;
                },
            }
        }
    }
}

/// Whether the server answers and can be written: a replica that took over from nobody refuses all scripts.
async fn ask(connection: &mut MultiplexedConnection) -> Result<(), String> {
    let command = redis::cmd("ROLE");
    match timeout(CALL_WITHIN, command.query_async::<redis::Value>(connection)).await {
        Err(_) => Err("it does not answer".to_owned()),
        Ok(Err(error)) if error.code() == Some("NOPERM") => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(redis::Value::Array(role))) => match role.first() {
            Some(redis::Value::BulkString(name)) if name == b"slave" => Err("it is a replica".to_owned()),
            _ => Ok(()),
        },
        Ok(Ok(_)) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
