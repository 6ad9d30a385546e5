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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        consecutive: 20,
        window: Duration::from_secs(60),
        min_calls: 100,
        percent: 10,
        open_for: Duration::from_secs(15),
        open_max: Duration::from_secs(120),
        probes: 5,
        ramp: Duration::from_secs(30),
        width: 32,
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    struct Bench {
        breaker: Breaker,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { breaker: Breaker::new(SETTINGS), now: Instant::now() }
        }

        fn pass(&mut self) -> Pass {
            match self.breaker.admit(self.now) {
                Admission::Go(pass) => pass,
                other => panic!("not admitted: {other:?}"),
            }
        }

        fn call(&mut self, sign: Sign) {
            let pass = self.pass();
            self.breaker.report(pass, sign, self.now, 0.5);
        }

        fn calls(&mut self, number: u32, sign: Sign) {
            for _ in 0..number {
                self.call(sign);
            }
        }

        fn wait(&mut self, time: f64) {
            self.now += seconds(time);
        }

        fn phase(&self) -> Phase {
            self.breaker.phase(self.now)
        }

        fn open(&mut self) {
            while self.phase() != Phase::Open {
                self.call(Sign::Broken);
            }
        }

        fn open_for(&self) -> Duration {
            self.breaker.open_until(self.now).unwrap() - self.now
        }
    }

    #[test]
    fn twenty_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let mut bench = Bench::new();
        bench.calls(19, Sign::Broken);
        bench.call(Sign::Healthy);
        bench.calls(19, Sign::Broken);
        assert_eq!(bench.phase(), Phase::Closed);
        bench.call(Sign::Broken);
        assert_eq!(bench.phase(), Phase::Open);
        assert_eq!(bench.open_for(), seconds(15.0));
    }

    #[test]
    fn more_than_a_tenth_of_a_hundred_calls_within_a_minute_opens_it() {
        let mut bench = Bench::new();
        bench.calls(89, Sign::Healthy);
        bench.calls(10, Sign::Broken);
        bench.calls(1, Sign::Healthy);
        assert_eq!(bench.phase(), Phase::Closed, "10 of 100 are not more than a tenth");
        bench.call(Sign::Broken);
        assert_eq!(bench.phase(), Phase::Open);

        let mut bench = Bench::new();
        bench.calls(11, Sign::Broken);
        bench.wait(61.0);
        bench.calls(100, Sign::Healthy);
        bench.call(Sign::Broken);
        assert_eq!(bench.phase(), Phase::Closed, "what is older than a minute does not count");
    }

    #[test]
    fn it_stays_open_longer_each_time_up_to_two_minutes() {
        let mut bench = Bench::new();
        bench.open();
        for expected in [15.0, 30.0, 60.0, 120.0, 120.0, 120.0] {
            assert_eq!(bench.open_for(), seconds(expected));
            bench.wait(expected);
            bench.call(Sign::Broken);
        }
    }

    #[test]
    fn the_dice_spread_the_time_by_a_tenth() {
        for (dice, expected) in [(0.0, 13.5), (0.5, 15.0), (1.0, 16.5), (7.0, 16.5)] {
            let mut bench = Bench::new();
            for _ in 0..20 {
                let pass = bench.pass();
                bench.breaker.report(pass, Sign::Broken, bench.now, dice);
            }
            assert_eq!(bench.open_for(), seconds(expected));
        }
    }

    #[test]
    fn five_probes_go_at_once_and_all_must_succeed() {
        let mut bench = Bench::new();
        bench.open();
        assert!(matches!(bench.breaker.admit(bench.now), Admission::Until(_)));
        bench.wait(15.0);
        let passes = [(); 5].map(|()| bench.pass());
        assert_eq!(bench.breaker.admit(bench.now), Admission::Full(None));
        for pass in &passes[..4] {
            bench.breaker.report(*pass, Sign::Healthy, bench.now, 0.5);
        }
        assert_eq!(bench.breaker.admit(bench.now), Admission::Full(None), "the fifth is under way");
        bench.breaker.report(passes[4], Sign::None, bench.now, 0.5);
        assert_eq!(bench.phase(), Phase::HalfOpen, "a probe that tells nothing makes room for another");
        bench.call(Sign::Healthy);
        assert_eq!(bench.phase(), Phase::Ramping);
    }

    #[test]
    fn the_ramp_widens_from_the_probes_to_all_in_thirty_seconds() {
        let mut bench = Bench::new();
        bench.open();
        bench.wait(15.0);
        bench.calls(5, Sign::Healthy);
        let width = |bench: &mut Bench| {
            let mut passes = Vec::new();
            let full = loop {
                match bench.breaker.admit(bench.now) {
                    Admission::Go(pass) if passes.len() < 100 => passes.push(pass),
                    Admission::Go(_) => break None,
                    Admission::Full(wider_at) => break wider_at,
                    Admission::Until(_) => panic!("it is closed"),
                }
            };
            let number = passes.len();
            passes.into_iter().for_each(|pass| bench.breaker.report(pass, Sign::None, bench.now, 0.5));
            (number, full)
        };
        let (first, wider_at) = width(&mut bench);
        assert_eq!(first, 5);
        bench.now = wider_at.unwrap();
        assert_eq!(width(&mut bench).0, 6);
        bench.wait(14.0);
        assert!((17..=20).contains(&width(&mut bench).0));
        bench.wait(15.0);
        assert_eq!(width(&mut bench), (100, None));
        assert_eq!(bench.phase(), Phase::Closed);
        bench.open();
        assert_eq!(bench.open_for(), seconds(15.0), "it has held, so the doubling starts anew");
    }

    #[test]
    fn what_began_before_it_opened_says_nothing_about_the_probes() {
        let mut bench = Bench::new();
        let early = bench.pass();
        bench.open();
        bench.wait(15.0);
        bench.calls(4, Sign::Healthy);
        bench.breaker.report(early, Sign::Broken, bench.now, 0.5);
        assert_eq!(bench.phase(), Phase::HalfOpen);
        bench.call(Sign::Healthy);
        assert_eq!(bench.phase(), Phase::Ramping);
    }

    proptest! {
        #[test]
        fn it_never_locks_up(steps in proptest::collection::vec((0_u8..4, 0_u64..20_000), 1..400)) {
            let mut bench = Bench::new();
            let mut under_way = VecDeque::new();
            for (step, time) in steps {
                bench.now += Duration::from_millis(time);
                match step {
                    0 => if let Admission::Go(pass) = bench.breaker.admit(bench.now) { under_way.push_back(pass) },
                    step => if let Some(pass) = under_way.pop_front() {
                        let sign = [Sign::Healthy, Sign::Broken, Sign::None][usize::from(step) - 1];
                        bench.breaker.report(pass, sign, bench.now, 0.5);
                    },
                }
            }
            for pass in under_way {
                bench.breaker.report(pass, Sign::Healthy, bench.now, 0.5);
            }
            bench.wait(132.1);
            prop_assert!(matches!(bench.breaker.admit(bench.now), Admission::Go(_)));
        }
    }
}
