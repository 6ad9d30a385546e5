//! What outlives the process, in Redis: which endpoints are disabled, how their breakers stand, which event holds an
//! ordered one's queue.
//!
//! Redis is a memory, not a judge: without it the relay goes on with what it knows itself. A `410` is then learnt
//! again after a restart, a broken receiver after five failures. An operator's `endpoints disable` and `enable`
//! are entries here too, which running relays follow within [`FOLLOW_EVERY`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, RedisResult};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::breaker::Saved;
use super::gate::{Disabled, Followed, Gate};
use super::held::Held;
use crate::admin::{Condition, Health};
use crate::config;

/// How often running relays look.
pub const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// One command, connecting included.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The gates of all endpoints by name.
pub type Gates = HashMap<String, Arc<Gate>>;

/// Redis, as far as the relay uses it. Clones share the connection.
#[derive(Clone)]
pub struct Memory {
    redis: ConnectionManager,
    prefix: String,
}

impl Memory {
    /// Prepares a connection, which is made when it is first used.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(config: &config::Redis) -> RedisResult<Self> {
        let client = redis::Client::open(config.url.expose())?;
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        let redis = ConnectionManager::new_lazy_with_config(client, settings)?;
        Ok(Self { redis, prefix: config.prefix.clone() })
    }

    /// The connection, for what else the relay keeps.
    #[must_use]
    pub fn redis(&self) -> ConnectionManager {
        self.redis.clone()
    }

    /// Name of a key.
    #[must_use]
    pub fn key(&self, rest: &str) -> String {
        format!("{}:relay:{rest}", self.prefix)
    }

    /// The disabled endpoints.
    ///
    /// # Errors
    /// Redis cannot be asked.
    pub async fn disabled(&self) -> RedisResult<HashMap<String, Disabled>> {
        self.table("disabled").await
    }

    /// The breakers that are not simply closed.
    ///
    /// # Errors
    /// Redis cannot be asked.
    pub async fn breakers(&self) -> RedisResult<HashMap<String, Saved>> {
        self.table("breakers").await
    }

    /// The events that hold the queues of ordered endpoints.
    ///
    /// # Errors
    /// Redis cannot be asked.
    pub async fn held(&self) -> RedisResult<HashMap<String, Held>> {
        self.table("held").await
    }

    /// Remembers that an endpoint is disabled.
    ///
    /// # Errors
    /// Redis cannot be told.
    pub async fn disable(&self, endpoint: &str, disabled: &Disabled) -> RedisResult<()> {
        self.put("disabled", endpoint, disabled).await
    }

    /// Forgets that an endpoint is disabled, and wishes for a probe where its breaker is open. Whether it was
    /// disabled.
    ///
    /// # Errors
    /// Redis cannot be told.
    pub async fn enable(&self, endpoint: &str) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let removed: u32 = redis.hdel(self.key("disabled"), endpoint).await?;
        self.put("wishes", endpoint, &Timestamp::now().as_millisecond()).await?;
        Ok(removed > 0)
    }

    /// Every endpoint that a relay has served and whose queue was not found deleted.
    ///
    /// # Errors
    /// Redis cannot be asked.
    pub async fn served(&self) -> RedisResult<Vec<String>> {
        self.redis.clone().hkeys(self.key("served")).await
    }

    /// Remembers that these endpoints are served.
    ///
    /// # Errors
    /// Redis cannot be told.
    pub async fn serve(&self, endpoints: impl IntoIterator<Item = &String>) -> RedisResult<()> {
        let now = Timestamp::now().as_millisecond();
        let entries = endpoints.into_iter().map(|name| (name.as_str(), now)).collect::<Vec<_>>();
        match entries.is_empty() {
            true => Ok(()),
            false => self.redis.clone().hset_multiple(self.key("served"), &entries).await,
        }
    }

    /// Forgets everything of an endpoint that is gone for good.
    ///
    /// # Errors
    /// Redis cannot be told.
    pub async fn forget(&self, endpoint: &str) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for table in ["served", "disabled", "breakers", "held", "wishes"] {
            pipe.hdel(self.key(table), endpoint).ignore();
        }
        pipe.query_async(&mut self.redis()).await
    }

    async fn save_held(&self, endpoint: &str, held: Option<&Held>) -> RedisResult<()> {
        match held {
            Some(held) => self.put("held", endpoint, held).await,
            None => self.redis.clone().hdel(self.key("held"), endpoint).await,
        }
    }

    async fn save_breaker(&self, endpoint: &str, saved: &Saved) -> RedisResult<()> {
        if saved.openings > 0 {
            return self.put("breakers", endpoint, saved).await;
        }
        self.redis.clone().hdel(self.key("breakers"), endpoint).await
    }

    async fn put(&self, table: &str, endpoint: &str, value: &impl Serialize) -> RedisResult<()> {
        let text = serde_json::to_string(value).map_err(|error| std::io::Error::other(error.to_string()))?;
        self.redis.clone().hset(self.key(table), endpoint, text).await
    }

    /// Entries that cannot be read count as absent: another version may have written them.
    async fn table<T: DeserializeOwned>(&self, table: &str) -> RedisResult<HashMap<String, T>> {
        let found: HashMap<String, String> = self.redis.clone().hgetall(self.key(table)).await?;
        Ok(found.into_iter().filter_map(|(name, text)| Some((name, serde_json::from_str(&text).ok()?))).collect())
    }

    async fn breakers_and_held(&self) -> RedisResult<(HashMap<String, Saved>, HashMap<String, Held>)> {
        Ok((self.breakers().await?, self.held().await?))
    }

    /// Takes over what earlier processes knew, before the first event is taken.
    pub async fn restore(&self, gates: &Gates) {
        let (now, now_ms) = (Instant::now(), Timestamp::now().as_millisecond());
        match self.breakers_and_held().await {
            Ok((breakers, held)) => {
                for (gate, saved) in breakers.iter().filter_map(|(name, saved)| Some((gates.get(name)?, saved))) {
                    gate.restore(*saved, now, now_ms);
                }
                for (gate, held) in held.into_iter().filter_map(|(name, held)| Some((gates.get(&name)?, held))) {
                    gate.restore_held(held, now, now_ms);
                }
            }
            Err(error) => tracing::warn!(%error, "Redis cannot be asked: breakers begin closed"),
        }
        // What fails here is tried and told again by `follow`.
        let _ = self.follow_once(gates).await;
    }

    /// Follows orders and saves breakers until `stop`; says in `health`, as part `relay-memory`, whether that works.
    pub async fn follow(self, gates: Gates, health: Health, stop: CancellationToken) {
        let mut away = false;
        let mut ticks = tokio::time::interval(FOLLOW_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let outcome = self.follow_once(&gates).await;
            match (&outcome, away) {
                (Err(error), false) => {
                    tracing::warn!(%error, "Redis is away: endpoints are remembered by this process alone");
                }
                (Ok(()), true) => tracing::info!("Redis is back"),
                _ => {}
            }
            away = outcome.is_err();
            let condition = match outcome {
                Ok(()) => Condition::Ready,
                Err(error) => Condition::Degraded(format!("Redis is away: {error}")),
            };
            health.set("relay-memory", condition);
        }
        // The last state, for the next process.
        let _ = self.follow_once(&gates).await;
    }

    async fn follow_once(&self, gates: &Gates) -> RedisResult<()> {
        let (now, now_ms) = (Instant::now(), Timestamp::now().as_millisecond());
        for (name, gate) in gates {
            if let Some(disabled) = gate.untold() {
                self.disable(name, &disabled).await?;
                gate.told();
            }
            if let Some(saved) = gate.unsaved(now, now_ms) {
                self.save_breaker(name, &saved).await?;
                gate.saved(saved);
            }
            if let Some(held) = gate.untold_held() {
                self.save_held(name, held.as_ref()).await?;
                gate.told_held(held);
            }
        }
        for (endpoint, wished_at_ms) in self.table::<i64>("wishes").await? {
            if let Some(gate) = gates.get(&endpoint) {
                gate.probe_now(wished_at_ms, now);
            }
        }
        let mut disabled = self.disabled().await?;
        for (endpoint, gate) in gates {
            match gate.follow(disabled.remove(endpoint)) {
                Some(Followed::Disabled(Disabled { reason, .. })) => {
                    tracing::warn!(endpoint, reason, "the endpoint is disabled; its events wait in its queue");
                }
                Some(Followed::Enabled) => tracing::info!(endpoint, "the endpoint is enabled again"),
                None => {}
            }
        }
        Ok(())
    }
}
