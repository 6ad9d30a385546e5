//! The permission to send one request: a pass of the breaker and a place in the budget.
//!
//! A place that is not used is the next one's ([`super::stock`]): a batch of repeats needs no request, and would
//! otherwise use up by many such batches what real work needs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Bot;
use super::stock::is_fresh;
use crate::breaker::{Pass, Phase, Sign};

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
        let now = Instant::now();
        self.place.is_some_and(|place| is_fresh(place, now))
            && self.bot.limiter.paused_until().is_none()
            && self.bot.breaker().phase(now) != Phase::Open
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
            self.bot.stock.put_back(place);
        }
        self.end(Sign::None);
    }
}
