//! Whether an endpoint gets events now: what its tries, its operator and its settings say together. Shared by the
//! endpoint's task, its tries and the task that remembers across restarts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::breaker::{Admission, Breaker, Health, Limits, Pass, Saved, State};
use super::held::Held;

/// Why and since when an endpoint is disabled.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Disabled {
    /// Since when.
    pub since: Timestamp,
    /// Why, in a sentence.
    pub reason: String,
}

/// What an endpoint's task may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Take events as usual.
    Full,
    /// Take a single one.
    Probe,
    /// Take none before this time.
    Wait(Instant),
    /// Take none until somebody enables the endpoint.
    Disabled,
}

/// The gate of one endpoint.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    breaker: Breaker,
    disabled: Option<Disabled>,
    /// Whether Redis knows of `disabled`. While it does not, its silence is not an order to enable.
    disabled_is_known: bool,
    saved: Option<Saved>,
    /// What holds an ordered endpoint's queue, and until when.
    held: Option<(Held, Instant)>,
    /// What Redis was told of it last.
    held_told: Option<Held>,
    last_wish_ms: i64,
}

impl Inner {
    /// Until when an ordered endpoint's queue is held. A broken one is paced by its breaker, whose probe is the held
    /// event.
    fn held_until(&self, now: Instant) -> Option<Instant> {
        let is_paced = matches!(self.breaker.state(), State::Open | State::Probing);
        self.held.as_ref().map(|(_, until)| *until).filter(|until| now < *until && !is_paced)
    }
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let breaker = Breaker::new(limits, now);
        let last_wish_ms = Timestamp::now().as_millisecond();
        let inner = Inner {
            breaker,
            disabled: None,
            disabled_is_known: true,
            saved: None,
            held: None,
            held_told: None,
            last_wish_ms,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// Waits for a change that the endpoint's task should look at. One task waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the endpoint's task.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// What the endpoint's task may do.
    #[must_use]
    pub fn opening(&self, now: Instant) -> Opening {
        let inner = self.lock();
        match (&inner.disabled, inner.breaker.state()) {
            (Some(_), _) => Opening::Disabled,
            (None, State::Open) => match inner.breaker.open_until() {
                Some(until) if now < until => Opening::Wait(until),
                _ => Opening::Probe,
            },
            (None, State::Probing) => Opening::Probe,
            (None, State::Closed | State::Ramp(_)) => inner.held_until(now).map_or(Opening::Full, Opening::Wait),
        }
    }

    /// Asks to make one try; a disabled endpoint's is always full.
    pub fn admit(&self, now: Instant) -> Admission {
        let mut inner = self.lock();
        match (&inner.disabled, inner.held_until(now)) {
            (Some(_), _) => Admission::Full,
            (None, Some(until)) => Admission::Wait(until),
            (None, None) => inner.breaker.admit(now),
        }
    }

    /// Takes in how a try ended. Returns the breaker's state before and after.
    pub fn record(&self, pass: Pass, health: Health, now: Instant) -> (State, State) {
        let mut inner = self.lock();
        let before = inner.breaker.state();
        inner.breaker.record(pass, health, now);
        let after = inner.breaker.state();
        drop(inner);
        self.wake();
        (before, after)
    }

    /// Takes back the pass of a try that was not made.
    pub fn withdraw(&self, pass: Pass, now: Instant) {
        self.lock().breaker.withdraw(pass, now);
        self.wake();
    }

    /// An ordered endpoint's event failed for the `tries`th time: nothing is tried for so long, then it again.
    pub fn hold(&self, event: &str, tries: u32, wait: Duration, now: Instant) {
        let held = Held::new(event, tries, wait, Timestamp::now().as_millisecond());
        self.lock().held = Some((held, now + wait));
    }

    /// What held the queue is settled.
    pub fn release(&self) {
        self.lock().held = None;
    }

    /// What holds the queue, if anything does.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.lock().held.as_ref().map(|(held, _)| held.clone())
    }

    /// How often this event was tried, as far as it held the queue.
    #[must_use]
    pub fn tries_of(&self, event: &str) -> u32 {
        self.held().filter(|held| held.event == event).map_or(0, |held| held.tries)
    }

    /// What Redis should be told of the queue being held: by what, or by nothing any more.
    #[must_use]
    pub fn untold_held(&self) -> Option<Option<Held>> {
        let inner = self.lock();
        let held = inner.held.as_ref().map(|(held, _)| held.clone());
        (held != inner.held_told).then_some(held)
    }

    /// Redis was told.
    pub fn told_held(&self, held: Option<Held>) {
        self.lock().held_told = held;
    }

    /// Takes over what an earlier process held.
    pub fn restore_held(&self, held: Held, now: Instant, now_ms: i64) {
        let until = held.until(now, now_ms);
        let mut inner = self.lock();
        inner.held_told = Some(held.clone());
        inner.held = Some((held, until));
    }

    /// The breaker's state and the tries under way.
    #[must_use]
    pub fn breaker(&self) -> (State, u16) {
        let inner = self.lock();
        (inner.breaker.state(), inner.breaker.in_flight())
    }

    /// Why it is disabled, if it is.
    #[must_use]
    pub fn disabled(&self) -> Option<Disabled> {
        self.lock().disabled.clone()
    }

    /// Disables the endpoint; Redis is to be told. Whether it was not disabled before.
    pub fn disable(&self, disabled: Disabled) -> bool {
        let mut inner = self.lock();
        let news = inner.disabled.is_none();
        if news {
            inner.disabled = Some(disabled);
            inner.disabled_is_known = false;
        }
        drop(inner);
        self.wake();
        news
    }

    /// What Redis should be told: that it is disabled.
    #[must_use]
    pub fn untold(&self) -> Option<Disabled> {
        let inner = self.lock();
        inner.disabled.clone().filter(|_| !inner.disabled_is_known)
    }

    /// Redis was told.
    pub fn told(&self) {
        self.lock().disabled_is_known = true;
    }

    /// Takes over what Redis says: an operator's order, or another relay's finding. What Redis was not told yet
    /// stays. Returns what changed.
    pub fn follow(&self, remembered: Option<Disabled>) -> Option<Followed> {
        let mut inner = self.lock();
        let followed = match (&inner.disabled, remembered) {
            (None, Some(disabled)) => {
                inner.disabled = Some(disabled.clone());
                inner.disabled_is_known = true;
                Some(Followed::Disabled(disabled))
            }
            (Some(_), None) if inner.disabled_is_known => {
                inner.disabled = None;
                Some(Followed::Enabled)
            }
            (Some(_), Some(_)) => {
                inner.disabled_is_known = true;
                None
            }
            (None, None) | (Some(_), None) => None,
        };
        drop(inner);
        if followed.is_some() {
            self.wake();
        }
        followed
    }

    /// An operator's wish of this time (Unix, in milliseconds): try a broken or held endpoint at once. Each wish counts
    /// once, and none from before this process.
    pub fn probe_now(&self, wished_at_ms: i64, now: Instant) {
        let mut inner = self.lock();
        if wished_at_ms <= inner.last_wish_ms {
            return;
        }
        inner.last_wish_ms = wished_at_ms;
        inner.breaker.probe_now(now);
        if let Some((_, until)) = &mut inner.held {
            *until = now;
        }
        drop(inner);
        self.wake();
    }

    /// Takes over the breaker of an earlier process.
    pub fn restore(&self, saved: Saved, now: Instant, now_ms: i64) {
        let mut inner = self.lock();
        inner.breaker.restore(saved, now, now_ms);
        inner.saved = Some(saved);
    }

    /// The breaker, if Redis was told another state last.
    #[must_use]
    pub fn unsaved(&self, now: Instant, now_ms: i64) -> Option<Saved> {
        let inner = self.lock();
        let saved = inner.breaker.saved(now, now_ms);
        match inner.saved {
            None if saved.openings == 0 => None,
            Some(last) if is_same(last, saved) => None,
            None | Some(_) => Some(saved),
        }
    }

    /// Redis was told of this state of the breaker.
    pub fn saved(&self, saved: Saved) {
        self.lock().saved = Some(saved);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Redis' word changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The endpoint is disabled now.
    Disabled(Disabled),
    /// It is enabled now.
    Enabled,
}

/// The two clocks that a saved time is made of do not run alike to the millisecond.
fn is_same(one: Saved, other: Saved) -> bool {
    one.openings == other.openings && one.open_until_ms.abs_diff(other.open_until_ms) < 1_000
}

#[cfg(test)]
mod tests;
