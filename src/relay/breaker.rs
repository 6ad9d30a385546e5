//! The circuit breaker of one endpoint: stops trying a receiver that does not answer, and finds out when it does
//! again, without burning the attempts of the events that wait.
//!
//! A pure state machine; `now` is a parameter. *Closed*: all flows, until 5 tries in a row fail or half of at least
//! 20 within a minute. *Open*: nothing is tried until a time that doubles from round to round. *Probing*: exactly
//! one try is under way. *Ramp*: after a probe that succeeded 1, 2, 4 … tries at the same time, doubling when as
//! many have succeeded, halving at a failure; a failure at 1 opens again, and the endpoint's full in-flight cap
//! closes it.
//!
//! A try belongs to the round in which it was admitted ([`Pass`]). What comes back from an earlier round says
//! nothing about now and changes nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures in a row that open.
const CONSECUTIVE: u32 = 5;
/// Tries within [`WINDOW_SECONDS`] from which on the rate is judged.
const RATE_TRIES: u32 = 20;
/// Seconds over which the rate is judged.
const WINDOW_SECONDS: u64 = 60;

/// The limits of one breaker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// First time for which it is open.
    pub open_for: Duration,
    /// Longest such time.
    pub open_max: Duration,
    /// Tries at the same time when all is well.
    pub max_in_flight: u16,
}

/// Leave to make one try; goes back with [`Breaker::record`] or [`Breaker::withdraw`].
#[derive(Debug)]
#[must_use = "a probe that is never recorded keeps the breaker closed to all others"]
pub struct Pass {
    round: u64,
    probe: bool,
}

impl Pass {
    /// Whether the try is a probe, whose failure is no attempt of the event.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.probe
    }
}

/// Whether a try may begin.
#[derive(Debug)]
pub enum Admission {
    /// It may.
    Go(Pass),
    /// Not before a try that is under way has ended.
    Full,
    /// Not before this time.
    Wait(Instant),
}

/// How a try ended, as far as the receiver's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered and took the event, or refused this very event.
    Well,
    /// It failed. Where it says how long it wants to be left alone, that counts if it is longer (up to the longest
    /// open time).
    Ill {
        /// The receiver's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// It cannot even be dialled by our own rules: open at once.
    Refused,
}

/// The state, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All flows.
    Closed,
    /// Nothing is tried.
    Open,
    /// One try is under way.
    Probing,
    /// So many tries at the same time.
    Ramp(u16),
}

/// What outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// Until when it is open, Unix time in milliseconds; 0: it is not open.
    pub open_until_ms: i64,
    /// Rounds of being open without closing in between.
    pub openings: u32,
}

#[derive(Debug)]
enum Phase {
    Closed { consecutive: u32, window: Window },
    Open { until: Instant },
    Probing,
    Ramp { at_once: u16, succeeded: u16 },
}

enum Step {
    Stay,
    Open,
    Ramp(u16),
    Close,
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    limits: Limits,
    phase: Phase,
    round: u64,
    openings: u32,
    in_flight: u16,
    born: Instant,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        let phase = Phase::Closed { consecutive: 0, window: Window::default() };
        Self { limits, phase, round: 0, openings: 0, in_flight: 0, born: now }
    }

    /// Takes over what an earlier process knew. `now_ms` is Unix time, to compare with the saved one.
    pub fn restore(&mut self, saved: Saved, now: Instant, now_ms: i64) {
        self.openings = saved.openings;
        if saved.openings > 0 {
            let left = u64::try_from(saved.open_until_ms.saturating_sub(now_ms)).unwrap_or(0);
            // A clock that was wrong must not keep it open for longer than ever allowed.
            let left = Duration::from_millis(left).min(self.limits.open_max);
            self.round += 1;
            self.phase = Phase::Open { until: now + left };
        }
    }

    /// Ends the wait of an open breaker: the next try is a probe.
    pub fn probe_now(&mut self, now: Instant) {
        if let Phase::Open { until } = &mut self.phase {
            *until = now;
        }
    }

    /// What must outlive the process. `now_ms` is Unix time.
    #[must_use]
    pub fn saved(&self, now: Instant, now_ms: i64) -> Saved {
        let open_until_ms = match self.phase {
            Phase::Open { until } => {
                let left = until.saturating_duration_since(now).as_millis();
                now_ms.saturating_add(i64::try_from(left).unwrap_or(i64::MAX)).max(1)
            }
            Phase::Closed { .. } | Phase::Probing | Phase::Ramp { .. } => 0,
        };
        Saved { open_until_ms, openings: self.openings }
    }

    /// What it does now.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::Probing => State::Probing,
            Phase::Ramp { at_once, .. } => State::Ramp(at_once),
        }
    }

    /// Until when it is open, if it is.
    #[must_use]
    pub const fn open_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            Phase::Closed { .. } | Phase::Probing | Phase::Ramp { .. } => None,
        }
    }

    /// Tries under way.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Asks to make one try.
    pub fn admit(&mut self, now: Instant) -> Admission {
        let limit = match self.phase {
            Phase::Open { until } if now < until => return Admission::Wait(until),
            Phase::Open { .. } => {
                self.phase = Phase::Probing;
                self.round += 1;
                self.in_flight += 1;
                return Admission::Go(Pass { round: self.round, probe: true });
            }
            Phase::Probing => return Admission::Full,
            Phase::Closed { .. } => self.limits.max_in_flight,
            Phase::Ramp { at_once, .. } => at_once,
        };
        if self.in_flight >= limit {
            return Admission::Full;
        }
        self.in_flight += 1;
        Admission::Go(Pass { round: self.round, probe: false })
    }

    /// Takes in how a try ended.
    pub fn record(&mut self, pass: Pass, health: Health, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if pass.round != self.round {
            return;
        }
        let second = now.saturating_duration_since(self.born).as_secs();
        let well = health == Health::Well;
        let step = match &mut self.phase {
            _ if health == Health::Refused => Step::Open,
            Phase::Closed { consecutive, window } => {
                *consecutive = if well { 0 } else { *consecutive + 1 };
                window.add(second, well);
                if !well && (*consecutive >= CONSECUTIVE || window.half_failed()) { Step::Open } else { Step::Stay }
            }
            Phase::Probing if well => Step::Ramp(1),
            Phase::Probing => Step::Open,
            Phase::Ramp { at_once, succeeded } if well => {
                *succeeded += 1;
                let wider = at_once.saturating_mul(2);
                match *succeeded >= *at_once {
                    false => Step::Stay,
                    true if wider >= self.limits.max_in_flight => Step::Close,
                    true => Step::Ramp(wider),
                }
            }
            Phase::Ramp { at_once, .. } if *at_once <= 1 => Step::Open,
            Phase::Ramp { at_once, .. } => Step::Ramp(*at_once / 2),
            // A pass of this round cannot come back to an open breaker: opening begins a new round.
            Phase::Open { .. } => Step::Stay,
        };
        match step {
            Step::Stay => {}
            Step::Open => self.open(health, now),
            Step::Ramp(at_once) => self.phase = Phase::Ramp { at_once, succeeded: 0 },
            Step::Close => {
                self.phase = Phase::Closed { consecutive: 0, window: Window::default() };
                self.openings = 0;
            }
        }
    }

    /// Takes back a pass whose try was not made, or did not end (a stop, a broker that went away).
    pub fn withdraw(&mut self, pass: Pass, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if pass.probe && pass.round == self.round {
            self.phase = Phase::Open { until: now };
        }
    }

    fn open(&mut self, health: Health, now: Instant) {
        let doubled = self.limits.open_for.saturating_mul(1u32.checked_shl(self.openings).unwrap_or(u32::MAX));
        let asked = match health {
            Health::Ill { retry_after } => retry_after.unwrap_or_default(),
            Health::Well | Health::Refused => Duration::ZERO,
        };
        let open_for = doubled.max(asked).min(self.limits.open_max);
        self.openings = self.openings.saturating_add(1);
        self.round += 1;
        self.phase = Phase::Open { until: now + open_for };
    }
}

/// Counts per second, the last minute of them.
#[derive(Debug, Default)]
struct Window {
    seconds: VecDeque<(u64, u32, u32)>,
}

impl Window {
    fn add(&mut self, second: u64, well: bool) {
        while self.seconds.front().is_some_and(|(at, _, _)| at + WINDOW_SECONDS <= second) {
            self.seconds.pop_front();
        }
        if self.seconds.back().is_none_or(|(at, _, _)| *at < second) {
            self.seconds.push_back((second, 0, 0));
        }
        if let Some((_, tries, failures)) = self.seconds.back_mut() {
            *tries += 1;
            *failures += u32::from(!well);
        }
    }

    fn half_failed(&self) -> bool {
        let (tries, failures) =
            self.seconds.iter().fold((0, 0), |(tries, failures), (_, more, failed)| (tries + more, failures + failed));
        tries >= RATE_TRIES && failures * 2 >= tries
    }
}

#[cfg(test)]
mod tests;
