//! The permission to send one request: a pass of the breaker and a place in the budget.
//!
//! A place that is not used is the next one's ([`super::stock`]): a batch of repeats needs no request, and would
//! otherwise use up by many such batches what real work needs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Bot;
use super::stock::is_fresh;
use crate::breaker::{Admission, Pass, Phase, Sign};

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

impl Bot {
    /// Waits until a request may be sent. Cancelling it is safe.
    pub async fn permit(self: &Arc<Self>) -> Permit {
        loop {
            if let Some(permit) = self.permits(1).await.pop() {
                return permit;
            }
        }
    }

    /// Waits until a request may be sent, and gives permits for as many of `wanted` as may be sent then, at least one.
    /// Cancelling it is safe.
    pub async fn permits(self: &Arc<Self>, wanted: usize) -> Vec<Permit> {
        let asked = Instant::now();
        loop {
            // Owned from here on, so that a caller who goes away while waiting gives the passes back.
            let mut permits = vec![Permit::new(self, self.pass().await)];
            while permits.len() < wanted
                && let Admission::Go(pass) = self.breaker().admit(Instant::now())
            {
                permits.push(Permit::new(self, pass));
            }
            let places = self.spend(permits.len()).await;
            permits.truncate(places.len());
            let waited = asked.elapsed();
            permits.iter_mut().zip(places).for_each(|(permit, place)| permit.grant(place, waited));
            if self.breaker().phase(Instant::now()) != Phase::Open {
                return permits;
            }
        }
    }

    /// A permit that needs no waiting; `None`: there is none at hand.
    pub fn permit_at_hand(self: &Arc<Self>) -> Option<Permit> {
        if self.limiter.paused_until().is_some() {
            return None;
        }
        let now = Instant::now();
        let place = self.stock.take(1, now).pop()?;
        let admission = self.breaker().admit(now);
        let Admission::Go(pass) = admission else {
            self.stock.put_back(place);
            return None;
        };
        self.meters.limiter_wait.record_many(Duration::ZERO, 1);
        self.restock(now);
        let mut permit = Permit::new(self, pass);
        permit.grant(place, Duration::ZERO);
        Some(permit)
    }

    async fn pass(&self) -> Pass {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let admission = self.breaker().admit(Instant::now());
            match admission {
                Admission::Go(pass) => return pass,
                Admission::Until(instant) | Admission::Full(Some(instant)) => {
                    tokio::select! { () = changed => {}, () = sleep_until(instant) => {} }
                }
                Admission::Full(None) => changed.await,
            }
        }
    }

    /// Takes places of the budget: as many of `wanted` as may be used when it returns, at least one. Those at hand come
    /// first.
    pub(super) async fn spend(self: &Arc<Self>, wanted: usize) -> Vec<Instant> {
        let asked = Instant::now();
        let at_hand = if self.limiter.paused_until().is_none() { self.stock.take(wanted, asked) } else { Vec::new() };
        let places = if at_hand.is_empty() {
            let places = self.limiter.acquire(u32::try_from(wanted).unwrap_or(u32::MAX)).await;
            let (places, now) = (usize::try_from(places).unwrap_or(wanted), Instant::now());
            self.stock.count(places, now);
            vec![now; places]
        } else {
            at_hand
        };
        self.meters.limiter_wait.record_many(asked.elapsed(), places.len());
        self.restock(asked);
        places
    }

    /// Buys places ahead, where that is worth it.
    fn restock(self: &Arc<Self>, now: Instant) {
        let wanted = self.stock.lacks(now, || self.limiter.ahead());
        if wanted > 0 {
            let bot = Arc::clone(self);
            tokio::spawn(async move {
                let places = bot.limiter.acquire(wanted).await;
                bot.stock.fill(places, Instant::now());
            });
        }
    }
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
