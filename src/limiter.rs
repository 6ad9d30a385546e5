//! The bot's budget of requests and its pause, shared by all workers; and the budget of a *source*, which several
//! bots share because the platform counts requests by the address they come from.
//!
//! The pause that a target asks for is kept in the same place as the budget ([`meter`]), so that one round trip per
//! request tells both.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::gcra::Budget;
use self::joint::Joint;
use self::meter::{Meter, Place};
use crate::config::{self, Config};
use crate::redis_link::{RedisLink, Script};

pub mod gcra;
mod joint;
pub mod meter;

/// The part of a burst that is kept for places that are bought ahead …
const PART_OF_BURST: u32 = 8;
/// … where it is at least so many.
const WORTH_IT: u32 = 4;
/// What is bought ahead is at most this part of what may go at once.
const PART_OF_ROOM: u32 = 4;

/// Lengthens the pause, never shortens it. Key: end of the pause. Argument: milliseconds from now.
static PAUSE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
return 0
",
    )
});

/// The budgets that bots of this process share, by the name of their source.
#[derive(Debug, Default)]
pub struct Sources(BTreeMap<String, Arc<Meter>>);

impl Sources {
    /// The sources of the settings.
    #[must_use]
    pub fn new(config: &Config, redis: &Arc<RedisLink>) -> Self {
        let meter = |name: &str, source: &config::Source| {
            let budget = Budget::per_window(source.requests, source.per);
            let (arrival_key, pause_key) = (redis.key("source", name), redis.key("source-pause", name));
            Arc::new(Meter::new(budget, arrival_key, pause_key, Arc::clone(redis)))
        };
        Self(config.sources.iter().map(|(name, source)| (name.clone(), meter(name, source))).collect())
    }

    /// The budget that a bot shares.
    #[must_use]
    pub fn of(&self, bot: &config::Bot) -> Option<Arc<Meter>> {
        self.0.get(&bot.source).cloned()
    }
}

/// Places that may be bought ahead, out of a burst of so many.
fn bought_ahead(burst: u32) -> u32 {
    let part = burst / PART_OF_BURST;
    if part < WORTH_IT { 0 } else { part }
}

/// The limiter of one bot.
#[derive(Debug)]
pub struct Limiter {
    own: Meter,
    /// Places that may be bought ahead of their use.
    ahead: u32,
    joint: Joint,
    source: Option<Arc<Meter>>,
    redis: Arc<RedisLink>,
    pause_key: String,
    paused_until: Mutex<Option<Instant>>,
}

impl Limiter {
    /// The limiter of a bot, with the budget that it shares with others.
    #[must_use]
    pub fn new(bot: &config::Bot, redis: Arc<RedisLink>, source: Option<Arc<Meter>>) -> Self {
        // A place of a source's budget that is bought for nothing is another bot's.
        let ahead = if source.is_some() { 0 } else { bought_ahead(bot.burst) };
        let budget = Budget::new(bot.requests_per_second, bot.burst - ahead);
        let (arrival_key, pause_key) = (redis.key("limit", &bot.name), redis.key("pause", &bot.name));
        let own = Meter::new(budget, arrival_key, pause_key.clone(), Arc::clone(&redis));
        Self { own, ahead, joint: Joint::default(), source, redis, pause_key, paused_until: Mutex::default() }
    }

    /// Waits until a request may be sent, and tells for how many of `wanted` (at least 1) that is so at that time.
    /// Waits out pauses.
    pub async fn acquire(&self, wanted: u32) -> u32 {
        loop {
            if let Some(until) = self.paused_until() {
                sleep_until(until).await;
                continue;
            }
            if let Some((instant, places)) = self.reserve(wanted).await {
                if Instant::now() < instant {
                    sleep_until(instant).await;
                }
                // Somebody may have been told to pause while we slept.
                if self.paused_until().is_none() {
                    return places;
                }
            }
        }
    }

    /// How many places may be in stock now, bought before there is a request for them. They come out of the burst: used
    /// together with all that may go at once then, they are no more requests than the settings allow. 0 while the budget
    /// is what is waited for.
    #[must_use]
    pub fn ahead(&self) -> u32 {
        if self.paused_until().is_some() { 0 } else { self.ahead.min(self.own.room() / PART_OF_ROOM) }
    }

    /// Lets no request of the bot go for that long, on any worker that can reach Redis.
    pub async fn pause(&self, time: Duration) {
        self.pause_here(time);
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 86_400_000);
        // Without Redis the others find out by a 429 of their own.
        let _ = self.redis.call::<i64>(PAUSE.on(&[&self.pause_key]).arg(milliseconds)).await;
    }

    /// Lets no request of the bot go for that long, on this worker.
    pub fn pause_here(&self, time: Duration) {
        self.pause_until(Instant::now() + time);
    }

    /// The end of the pause as far as this worker knows; `None`: there is none.
    #[must_use]
    pub fn paused_until(&self) -> Option<Instant> {
        let mut paused = self.paused();
        *paused = paused.filter(|until| Instant::now() < *until);
        *paused
    }

    /// The later of the places in both budgets, and how many; `None`: the bot is paused.
    async fn reserve(&self, wanted: u32) -> Option<(Instant, u32)> {
        let Some(source) = &self.source else {
            let place = if wanted == 1 { self.joint.reserve(&self.own).await } else { self.own.reserve(wanted).await };
            return self.place(place);
        };
        // One by one: a place of the one budget that has none in the other would be lost.
        let (own, _) = self.place(self.own.reserve(1).await)?;
        let (shared, _) = self.place(source.reserve(1).await)?;
        Some((own.max(shared), 1))
    }

    fn place(&self, place: Place) -> Option<(Instant, u32)> {
        match place {
            Place::At(instant, places) => Some((instant, places)),
            Place::PausedUntil(until) => {
                self.pause_until(until);
                None
            }
        }
    }

    fn pause_until(&self, until: Instant) {
        let mut paused = self.paused();
        *paused = Some(paused.map_or(until, |known| known.max(until)));
    }

    fn paused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
