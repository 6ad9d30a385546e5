//! The permission to send one request: a pass of the breaker and a place in the budget.
//!
//! A place that is not used is the next one's: a batch of repeats needs no request, and would otherwise use up by many
//! such batches what real work needs. It is good for a short while only, since requests that go later than their place
//! meet those of later places.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Bot;
use crate::breaker::{Pass, Phase, Sign};

/// How long a place is good for.
const FRESH: Duration = Duration::from_millis(20);

/// The permission to send one request. Dropped without a report it says nothing about the target.
#[derive(Debug)]
#[must_use = "a permit that is dropped is a request that was not sent"]
pub struct Permit {
    bot: Arc<Bot>,
    pass: Option<Pass>,
    /// Since when the request may be sent; `None`: there is no place yet, or it is used.
    place: Option<Instant>,
    waited: Duration,
}

impl Permit {
    /// One that still lacks its place.
    pub(super) fn new(bot: &Arc<Bot>, pass: Pass) -> Self {
        Self { bot: Arc::clone(bot), pass: Some(pass), place: None, waited: Duration::ZERO }
    }

    pub(super) fn grant(&mut self, place: Instant, waited: Duration) {
        (self.place, self.waited) = (Some(place), waited);
    }

    /// Whether it still is one: nothing has happened since that would have kept it from being given.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.place.is_some_and(is_fresh)
            && self.bot.limiter.paused_until().is_none()
            && self.bot.breaker().phase(Instant::now()) != Phase::Open
    }

    /// How long it took to get, asked once: who counts it has it.
    #[must_use]
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Its request is sent now. Returns how long the permit took to get.
    pub(super) fn use_up(&mut self) -> Duration {
        self.place = None;
        self.take_waited()
    }

    /// Tells the breaker how the request ended.
    pub fn report(mut self, sign: Sign) {
        self.end(sign);
    }

    fn end(&mut self, sign: Sign) {
        let Some(pass) = self.pass.take() else { return };
        let now = Instant::now();
        let (before, after) = {
            let mut breaker = self.bot.breaker();
            let before = breaker.phase(now);
            breaker.report(pass, sign, now, rand::random());
            (before, breaker.phase(now))
        };
        self.bot.changed.notify_waiters();
        let bot = &self.bot.config.name;
        let gauge = match after {
            Phase::Closed => 0.0,
            Phase::Open => 1.0,
            Phase::HalfOpen | Phase::Ramping => 2.0,
        };
        self.bot.meters.breaker.set(gauge);
        match (before, after) {
            (Phase::Open, _) | (Phase::Ramping, Phase::Closed) => {}
            (_, Phase::Open) => tracing::warn!(bot, "too many requests failed; the bot's circuit breaker opens"),
            (Phase::HalfOpen, Phase::Ramping) => {
                tracing::info!(bot, "the probes succeeded; the circuit breaker closes")
            }
            _ => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.bot.unused.put(place);
        }
        self.end(Sign::None);
    }
}

/// Places in the budget that were given and not used, at most one for each permit that was under way.
#[derive(Debug, Default)]
pub(super) struct Unused(Mutex<Vec<Instant>>);

impl Unused {
    /// Takes up to `wanted` of those that are still good.
    pub fn take(&self, wanted: usize) -> Vec<Instant> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| is_fresh(*place));
        let rest = places.len().saturating_sub(wanted);
        places.split_off(rest)
    }

    fn put(&self, place: Instant) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| is_fresh(*place));
        places.push(place);
    }
}

fn is_fresh(place: Instant) -> bool {
    place.elapsed() < FRESH
}
