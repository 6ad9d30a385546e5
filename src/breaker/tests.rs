//! The breaker, step by step and at random.

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
