//! Whether an endpoint gets events now: what its tries, its operator and its settings say together. Shared by the
//! endpoint's task, its tries and the task that remembers across restarts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::breaker::{Admission, Breaker, Health, Limits, Pass, Saved, State};

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
    last_wish_ms: i64,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let breaker = Breaker::new(limits, now);
        let last_wish_ms = Timestamp::now().as_millisecond();
        let inner = Inner { breaker, disabled: None, disabled_is_known: true, saved: None, last_wish_ms };
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
            (None, State::Closed | State::Ramp(_)) => Opening::Full,
        }
    }

    /// Asks to make one try; a disabled endpoint's is always full.
    pub fn admit(&self, now: Instant) -> Admission {
        let mut inner = self.lock();
        match inner.disabled {
            Some(_) => Admission::Full,
            None => inner.breaker.admit(now),
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

    /// An operator's wish of this time (Unix, in milliseconds): probe a broken endpoint at once. Each wish counts
    /// once, and none from before this process.
    pub fn probe_now(&self, wished_at_ms: i64, now: Instant) {
        let mut inner = self.lock();
        if wished_at_ms <= inner.last_wish_ms {
            return;
        }
        inner.last_wish_ms = wished_at_ms;
        inner.breaker.probe_now(now);
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
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMITS: Limits =
        Limits { open_for: Duration::from_secs(60), open_max: Duration::from_secs(3_600), max_in_flight: 2 };

    fn gone() -> Disabled {
        Disabled { since: Timestamp::UNIX_EPOCH, reason: "410".into() }
    }

    fn open_breaker(gate: &Gate, now: Instant) {
        match gate.admit(now) {
            Admission::Go(pass) => drop(gate.record(pass, Health::Refused, now)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_of_redis_enables_only_what_redis_had_been_told() {
        let gate = Gate::new(LIMITS, Instant::now());
        assert!(gate.disable(gone()));
        assert!(!gate.disable(gone()), "no news");
        assert_eq!(gate.follow(None), None, "Redis was wiped or never told: still disabled");
        assert_eq!(gate.untold(), Some(gone()));
        gate.told();
        assert_eq!(gate.untold(), None);
        assert_eq!(gate.follow(Some(gone())), None);
        assert_eq!(gate.follow(None), Some(Followed::Enabled), "an operator enabled it");
        assert_eq!(gate.disabled(), None);
    }

    #[test]
    fn an_operators_order_is_followed() {
        let now = Instant::now();
        let gate = Gate::new(LIMITS, now);
        assert_eq!(gate.follow(Some(gone())), Some(Followed::Disabled(gone())));
        assert_eq!(gate.opening(now), Opening::Disabled);
        assert!(matches!(gate.admit(now), Admission::Full));
        assert_eq!(gate.follow(None), Some(Followed::Enabled));
        assert_eq!(gate.opening(now), Opening::Full);
    }

    #[test]
    fn the_breaker_shuts_the_gate_until_a_probe_is_due() {
        let now = Instant::now();
        let gate = Gate::new(LIMITS, now);
        open_breaker(&gate, now);
        assert_eq!(gate.opening(now), Opening::Wait(now + LIMITS.open_for));
        assert_eq!(gate.opening(now + LIMITS.open_for), Opening::Probe);
    }

    #[test]
    fn the_breaker_is_saved_once_per_change_and_when_it_closes() {
        let now = Instant::now();
        let gate = Gate::new(LIMITS, now);
        assert_eq!(gate.unsaved(now, 0), None, "a breaker that never opened is not worth a word");
        open_breaker(&gate, now);
        let saved = gate.unsaved(now, 0).unwrap();
        gate.saved(saved);
        let later = now + Duration::from_millis(500);
        assert_eq!(gate.unsaved(later, 499), None, "the same, but for the clocks");
        let next = Gate::new(LIMITS, now);
        next.restore(saved, now, 0);
        assert_eq!(next.opening(now), Opening::Wait(now + LIMITS.open_for));
        assert_eq!(next.unsaved(now, 0), None);
    }

    #[test]
    fn a_wish_for_a_probe_counts_once_and_an_old_one_not_at_all() {
        let now = Instant::now();
        let gate = Gate::new(LIMITS, now);
        let wished = Timestamp::now().as_millisecond() + 1_000;
        open_breaker(&gate, now);
        gate.probe_now(1, now);
        assert_eq!(gate.opening(now), Opening::Wait(now + LIMITS.open_for));
        gate.probe_now(wished, now);
        assert_eq!(gate.opening(now), Opening::Probe);
        open_breaker(&gate, now);
        gate.probe_now(wished, now);
        assert!(matches!(gate.opening(now), Opening::Wait(_)));
    }

    #[tokio::test]
    async fn a_change_that_nobody_waited_for_is_not_missed() {
        let gate = Gate::new(LIMITS, Instant::now());
        gate.disable(gone());
        tokio::time::timeout(Duration::from_secs(10), gate.changed()).await.expect("it is there already");
    }
}
