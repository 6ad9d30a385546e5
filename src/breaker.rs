//! The circuit breaker of one bot: stops work that would only fail, and lets it in again little by little.
//!
//! A pure state machine; time and dice are parameters. It opens when 20 calls in a row failed, or more than 10 %
//! of at least 100 within a minute. It stays open for a while (doubling, ±10 %), then lets 5 probes through:
//! real jobs. When all 5 succeeded it closes, and over 30 s the number of calls under way may grow from the 5 of
//! the probes to all.
//!
//! Odd cases: a call that began before the breaker opened says nothing about the probes, so it is not counted
//! any more; a call that ended without telling anything (a 429, a cancelled one) frees its place and is not
//! counted either, since nothing failed.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens and how it closes.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Failures in a row that open it.
    pub consecutive: u32,
    /// The window of the share.
    pub window: Duration,
    /// Calls within the window from which on the share counts.
    pub min_calls: u32,
    /// Share of failures, in percent, beyond which it opens.
    pub percent: u32,
    /// How long it is open the first time.
    pub open_for: Duration,
    /// The longest time, after doubling.
    pub open_max: Duration,
    /// Probes that must succeed.
    pub probes: u32,
    /// How long it takes from the probes to full width.
    pub ramp: Duration,
    /// Calls under way at full width.
    pub width: u32,
}

impl Settings {
    /// The settings of a bot's breaker (design §8).
    #[must_use]
    pub fn of_bot(bot: &crate::config::Bot) -> Self {
        Self {
            consecutive: 20,
            window: Duration::from_secs(60),
            min_calls: 100,
            percent: 10,
            open_for: bot.breaker_open_for,
            open_max: bot.breaker_open_max,
            probes: 5,
            ramp: Duration::from_secs(30),
            width: bot.concurrency.into(),
        }
    }
}

/// How a call ended, as far as the breaker cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The target does its work, whatever its answer was.
    Healthy,
    /// 5xx, time-out, no connection.
    Broken,
    /// Nothing can be said.
    None,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go, and report the end of the call with this pass.
    Go(Pass),
    /// It is open: ask again at this instant.
    Until(Instant),
    /// As many calls are under way as may be: ask again when one has ended, or at this instant if there is one.
    Full(Option<Instant>),
}

/// One admitted call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "its end must be reported"]
pub struct Pass {
    period: u64,
}

/// How wide the breaker lets calls through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// All go.
    Closed,
    /// None goes.
    Open,
    /// Probes go.
    HalfOpen,
    /// Some go: it was open not long ago.
    Ramping,
}

#[derive(Debug)]
enum State {
    Closed { ramp_since: Option<Instant> },
    Open { until: Instant },
    HalfOpen { succeeded: u32 },
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    state: State,
    /// Counts the changes of state: passes of an earlier one are not counted any more.
    period: u64,
    under_way: u32,
    consecutive: u32,
    openings: u32,
    slots: VecDeque<Slot>,
}

/// The calls of one second.
#[derive(Debug)]
struct Slot {
    since: Instant,
    calls: u32,
    failures: u32,
}

const SLOT: Duration = Duration::from_secs(1);

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Closed { ramp_since: None },
            period: 0,
            under_way: 0,
            consecutive: 0,
            openings: 0,
            slots: VecDeque::new(),
        }
    }

    /// Whether a call may go now.
    pub fn admit(&mut self, now: Instant) -> Admission {
        if let State::Open { until } = self.state {
            if now < until {
                return Admission::Until(until);
            }
            self.enter(State::HalfOpen { succeeded: 0 });
        }
        let (width, wider_at) = match self.state {
            State::HalfOpen { succeeded } => (self.settings.probes.saturating_sub(succeeded), None),
            State::Closed { ramp_since: Some(since) } => self.ramp(since, now),
            State::Closed { ramp_since: None } | State::Open { .. } => (u32::MAX, None),
        };
        if self.under_way >= width {
            return Admission::Full(wider_at);
        }
        self.under_way += 1;
        Admission::Go(Pass { period: self.period })
    }

    /// Reports the end of an admitted call. `dice` (0 to 1) spreads the time for which the breaker opens.
    pub fn report(&mut self, pass: Pass, sign: Sign, now: Instant, dice: f64) {
        if pass.period != self.period {
            return;
        }
        self.under_way = self.under_way.saturating_sub(1);
        match (sign, &mut self.state) {
            (Sign::None, _) | (_, State::Open { .. }) => {}
            (Sign::Healthy, State::HalfOpen { succeeded }) => {
                *succeeded += 1;
                if *succeeded >= self.settings.probes {
                    self.enter(State::Closed { ramp_since: Some(now) });
                }
            }
            (Sign::Broken, State::HalfOpen { .. }) => self.open(now, dice),
            (Sign::Healthy, State::Closed { .. }) => {
                self.consecutive = 0;
                self.count(now, 0);
            }
            (Sign::Broken, State::Closed { .. }) => {
                self.consecutive += 1;
                self.count(now, 1);
                if self.consecutive >= self.settings.consecutive || self.share_is_reached() {
                    self.open(now, dice);
                }
            }
        }
    }

    /// The phase, for metrics and readiness.
    #[must_use]
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Open { until } if now < until => Phase::Open,
            State::Open { .. } | State::HalfOpen { .. } => Phase::HalfOpen,
            State::Closed { ramp_since: Some(since) } if now < since + self.settings.ramp => Phase::Ramping,
            State::Closed { .. } => Phase::Closed,
        }
    }

    /// The instant at which it lets probes through, while it is open.
    #[must_use]
    pub fn open_until(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Open { until } if now < until => Some(until),
            _ => None,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.period += 1;
        self.under_way = 0;
        self.consecutive = 0;
        self.slots.clear();
    }

    fn open(&mut self, now: Instant, dice: f64) {
        let doubled = 2_u32.saturating_pow(self.openings.min(30));
        let time = self.settings.open_for.saturating_mul(doubled).min(self.settings.open_max);
        self.openings = self.openings.saturating_add(1);
        self.enter(State::Open { until: now + time.mul_f64(0.9 + 0.2 * dice.clamp(0.0, 1.0)) });
    }

    /// Calls that may be under way that long after closing, and the instant at which it is one more.
    fn ramp(&mut self, since: Instant, now: Instant) -> (u32, Option<Instant>) {
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= self.settings.ramp {
            // It has held: the next time it opens it is the first time again.
            self.openings = 0;
            self.state = State::Closed { ramp_since: None };
            return (u32::MAX, None);
        }
        let more = self.settings.width.saturating_sub(self.settings.probes);
        let step = self.settings.ramp / more.max(1);
        let steps = elapsed.as_nanos().checked_div(step.as_nanos()).unwrap_or_default();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX).min(more);
        (self.settings.probes.saturating_add(steps), Some(since + step.saturating_mul(steps.saturating_add(1))))
    }

    fn count(&mut self, now: Instant, failures: u32) {
        while self.slots.front().is_some_and(|slot| slot.since + self.settings.window <= now) {
            self.slots.pop_front();
        }
        match self.slots.back_mut() {
            Some(slot) if now < slot.since + SLOT => {
                slot.calls += 1;
                slot.failures += failures;
            }
            _ => self.slots.push_back(Slot { since: now, calls: 1, failures }),
        }
    }

    fn share_is_reached(&self) -> bool {
        let (calls, failures) = self.slots.iter().fold((0_u64, 0_u64), |(calls, failures), slot| {
            (calls + u64::from(slot.calls), failures + u64::from(slot.failures))
        });
        calls >= self.settings.min_calls.into() && failures * 100 > calls * u64::from(self.settings.percent)
    }
}

#[cfg(test)]
mod tests;
