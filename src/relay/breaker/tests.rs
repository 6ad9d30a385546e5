use super::*;
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { open_for: MINUTE, open_max: Duration::from_secs(3_600), max_in_flight: 10 };
const ILL: Health = Health::Ill { retry_after: None };

fn go(breaker: &mut Breaker, now: Instant) -> Pass {
    match breaker.admit(now) {
        Admission::Go(pass) => pass,
        other => panic!("not admitted: {other:?}"),
    }
}

fn try_once(breaker: &mut Breaker, health: Health, now: Instant) {
    let pass = go(breaker, now);
    breaker.record(pass, health, now);
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(LIMITS, now);
    (0..5).for_each(|_| try_once(&mut breaker, ILL, now));
    breaker
}

fn wait(breaker: &mut Breaker, now: Instant) -> Duration {
    match breaker.admit(now) {
        Admission::Wait(until) => until - now,
        other => panic!("expected to wait: {other:?}"),
    }
}

#[test]
fn five_failures_in_a_row_open_and_four_do_not() {
    let now = Instant::now();
    let mut breaker = Breaker::new(LIMITS, now);
    for health in [ILL, ILL, ILL, ILL, Health::Well, ILL, ILL, ILL, ILL] {
        try_once(&mut breaker, health, now);
        assert_eq!(breaker.state(), State::Closed);
    }
    try_once(&mut breaker, ILL, now);
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(wait(&mut breaker, now), MINUTE);
}

#[test]
fn half_of_twenty_tries_within_a_minute_open() {
    let now = Instant::now();
    let mut breaker = Breaker::new(LIMITS, now);
    for _ in 0..9 {
        try_once(&mut breaker, ILL, now);
        try_once(&mut breaker, Health::Well, now);
    }
    try_once(&mut breaker, Health::Well, now);
    assert_eq!(breaker.state(), State::Closed, "9 of 19");
    try_once(&mut breaker, ILL, now);
    assert_eq!(breaker.state(), State::Open, "10 of 20");
}

#[test]
fn what_is_older_than_a_minute_is_not_judged() {
    let start = Instant::now();
    let mut breaker = Breaker::new(LIMITS, start);
    for _ in 0..9 {
        try_once(&mut breaker, ILL, start);
        try_once(&mut breaker, Health::Well, start);
    }
    let later = start + MINUTE;
    for _ in 0..10 {
        try_once(&mut breaker, Health::Well, later);
    }
    try_once(&mut breaker, ILL, later);
    assert_eq!(breaker.state(), State::Closed, "10 of 29 over two minutes, 1 of 11 in the last");
}

#[test]
fn a_single_probe_goes_out_when_the_time_has_come() {
    let start = Instant::now();
    let mut breaker = opened(start);
    assert_eq!(wait(&mut breaker, start + MINUTE - Duration::from_millis(1)), Duration::from_millis(1));
    let probe = go(&mut breaker, start + MINUTE);
    assert!(probe.is_probe());
    assert!(matches!(breaker.admit(start + 2 * MINUTE), Admission::Full), "one probe, however long it takes");
    breaker.record(probe, Health::Well, start + 2 * MINUTE);
    assert_eq!(breaker.state(), State::Ramp(1));
}

#[test]
fn failed_probes_double_the_time_up_to_an_hour() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    let mut waits = Vec::new();
    for _ in 0..9 {
        let left = wait(&mut breaker, now);
        waits.push(left.as_secs() / 60);
        now += left;
        let probe = go(&mut breaker, now);
        breaker.record(probe, ILL, now);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn the_ramp_doubles_what_is_under_way_and_ends_at_the_cap() {
    let start = Instant::now();
    let mut breaker = opened(start);
    let now = start + MINUTE;
    try_once(&mut breaker, Health::Well, now);
    let mut widths = Vec::new();
    while let State::Ramp(at_once) = breaker.state() {
        widths.push(at_once);
        let passes = (0..at_once).map(|_| go(&mut breaker, now)).collect::<Vec<_>>();
        assert!(matches!(breaker.admit(now), Admission::Full));
        passes.into_iter().for_each(|pass| breaker.record(pass, Health::Well, now));
    }
    assert_eq!(widths, [1, 2, 4, 8]);
    assert_eq!(breaker.state(), State::Closed);
    // It starts over at one minute.
    (0..5).for_each(|_| try_once(&mut breaker, ILL, now));
    assert_eq!(wait(&mut breaker, now), MINUTE);
}

#[test]
fn a_failure_in_the_ramp_narrows_it_and_the_narrowest_opens_again() {
    let start = Instant::now();
    let mut breaker = opened(start);
    let now = start + MINUTE;
    for _ in 0..4 {
        try_once(&mut breaker, Health::Well, now);
    }
    assert_eq!(breaker.state(), State::Ramp(4));
    try_once(&mut breaker, ILL, now);
    assert_eq!(breaker.state(), State::Ramp(2));
    try_once(&mut breaker, ILL, now);
    assert_eq!(breaker.state(), State::Ramp(1));
    try_once(&mut breaker, ILL, now);
    assert_eq!(wait(&mut breaker, now), 2 * MINUTE);
}

#[test]
fn an_endpoint_with_one_try_at_a_time_ramps_too() {
    let start = Instant::now();
    let mut breaker = Breaker::new(Limits { max_in_flight: 1, ..LIMITS }, start);
    (0..5).for_each(|_| try_once(&mut breaker, ILL, start));
    let now = start + MINUTE;
    try_once(&mut breaker, Health::Well, now);
    assert_eq!(breaker.state(), State::Ramp(1));
    try_once(&mut breaker, Health::Well, now);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn what_comes_back_from_an_earlier_round_changes_nothing() {
    let start = Instant::now();
    let mut breaker = Breaker::new(LIMITS, start);
    let (slow_well, slow_ill) = (go(&mut breaker, start), go(&mut breaker, start));
    (0..5).for_each(|_| try_once(&mut breaker, ILL, start));
    breaker.record(slow_well, Health::Well, start);
    assert_eq!(wait(&mut breaker, start), MINUTE, "a late success does not close it");
    let now = start + MINUTE;
    try_once(&mut breaker, Health::Well, now);
    breaker.record(slow_ill, ILL, now);
    assert_eq!(breaker.state(), State::Ramp(1), "a late failure does not open it");
    assert_eq!(breaker.in_flight(), 0);
}

#[test]
fn the_receivers_retry_after_lengthens_the_time_up_to_the_longest() {
    for (asked, minutes) in [(1, 1), (600, 10), (1_000_000, 60)] {
        let now = Instant::now();
        let mut breaker = Breaker::new(LIMITS, now);
        let health = Health::Ill { retry_after: Some(Duration::from_secs(asked)) };
        (0..5).for_each(|_| try_once(&mut breaker, health, now));
        assert_eq!(wait(&mut breaker, now), minutes * MINUTE, "Retry-After: {asked}");
    }
}

#[test]
fn an_address_that_may_not_be_dialled_opens_at_once() {
    let now = Instant::now();
    let mut breaker = Breaker::new(LIMITS, now);
    try_once(&mut breaker, Health::Refused, now);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_probe_that_did_not_end_is_made_again() {
    let start = Instant::now();
    let mut breaker = opened(start);
    let now = start + MINUTE;
    let probe = go(&mut breaker, now);
    breaker.withdraw(probe, now);
    assert!(go(&mut breaker, now).is_probe());
}

#[test]
fn an_operator_may_ask_for_the_probe_at_once() {
    let now = Instant::now();
    let mut breaker = opened(now);
    breaker.probe_now(now);
    assert!(go(&mut breaker, now).is_probe());
    breaker.probe_now(now);
    assert!(matches!(breaker.admit(now), Admission::Full), "still a single one");
}

#[test]
fn being_open_survives_the_process_but_not_a_wrong_clock() {
    let start = Instant::now();
    let breaker = opened(start);
    let saved = breaker.saved(start + MINUTE / 2, 1_000_000);
    assert_eq!(saved, Saved { open_until_ms: 1_030_000, openings: 1 });
    for (now_ms, left) in [(1_010_000, 20), (1_029_000, 1), (0, 1_030), (i64::MIN, 3_600)] {
        let mut again = Breaker::new(LIMITS, start);
        again.restore(saved, start, now_ms);
        assert_eq!(wait(&mut again, start), Duration::from_secs(left), "restored at {now_ms}");
    }
    let mut again = Breaker::new(LIMITS, start);
    again.restore(saved, start, 2_000_000);
    let probe = go(&mut again, start);
    assert!(probe.is_probe(), "its time has passed: probe");
    again.record(probe, ILL, start);
    assert_eq!(wait(&mut again, start), 2 * MINUTE, "the doubling goes on where it was");
    let mut fresh = Breaker::new(LIMITS, start);
    fresh.restore(Breaker::new(LIMITS, start).saved(start, 0), start, 0);
    assert_eq!(fresh.state(), State::Closed);
}

#[derive(Debug, Clone)]
enum Event {
    Admit,
    End { which: usize, health: Health },
    Withdraw { which: usize },
    Later(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let health = prop_oneof![
        2 => Just(Health::Well),
        3 => (0u64..200_000).prop_map(|s| Health::Ill { retry_after: Some(Duration::from_secs(s)) }),
        3 => Just(ILL),
        1 => Just(Health::Refused),
    ];
    prop_oneof![
        4 => Just(Event::Admit),
        4 => (any::<usize>(), health).prop_map(|(which, health)| Event::End { which, health }),
        1 => any::<usize>().prop_map(|which| Event::Withdraw { which }),
        2 => (0u64..4_000_000).prop_map(|ms| Event::Later(Duration::from_millis(ms))),
    ]
}

proptest! {
    #[test]
    fn it_never_lets_too_many_through_and_never_stays_shut(
        events in prop::collection::vec(event(), 1..200), max_in_flight in 1u16..20,
    ) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(Limits { max_in_flight, ..LIMITS }, now);
        let mut passes: Vec<Pass> = Vec::new();
        for event in events {
            match event {
                Event::Admit => match breaker.admit(now) {
                    Admission::Go(pass) => {
                        prop_assert!(!pass.probe || passes.iter().all(|other| other.round != pass.round));
                        passes.push(pass);
                    }
                    Admission::Full => prop_assert!(!passes.is_empty(), "full with nothing under way"),
                    Admission::Wait(until) => {
                        prop_assert!(until > now && until - now <= LIMITS.open_max);
                    }
                },
                Event::End { which, health } if !passes.is_empty() => {
                    let pass = passes.swap_remove(which % passes.len());
                    breaker.record(pass, health, now);
                }
                Event::Withdraw { which } if !passes.is_empty() => {
                    let pass = passes.swap_remove(which % passes.len());
                    breaker.withdraw(pass, now);
                }
                Event::Later(step) => now += step,
                Event::End { .. } | Event::Withdraw { .. } => {}
            }
            prop_assert_eq!(usize::from(breaker.in_flight()), passes.len());
            // At most one more than the cap: a probe beside tries of an earlier round.
            let this_round = passes.iter().filter(|pass| pass.round == breaker.round).count();
            prop_assert!(this_round <= usize::from(max_in_flight));
        }
        // Whatever happened: when all is over and the receiver is well, it closes again.
        for pass in passes {
            breaker.record(pass, ILL, now);
        }
        now += LIMITS.open_max;
        for _ in 0..100 {
            if let Admission::Go(pass) = breaker.admit(now) {
                breaker.record(pass, Health::Well, now);
            }
        }
        prop_assert_eq!(breaker.state(), State::Closed);
    }
}
