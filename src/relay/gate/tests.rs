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

#[test]
fn a_held_event_shuts_the_gate_until_it_is_due_and_the_next_process_knows_it() {
    let now = Instant::now();
    let due = now + Duration::from_secs(5);
    let gate = Gate::new(LIMITS, now);
    assert_eq!(gate.untold_held(), None, "there is nothing to tell");
    gate.hold("4f2a", 2, due - now, now);
    assert_eq!((gate.opening(now), gate.opening(due)), (Opening::Wait(due), Opening::Full));
    assert!(matches!(gate.admit(now), Admission::Wait(until) if until == due));
    assert_eq!((gate.tries_of("4f2a"), gate.tries_of("another")), (2, 0));

    let told = gate.untold_held().expect("news");
    gate.told_held(told.clone());
    assert_eq!(gate.untold_held(), None);
    let (next, held) = (Gate::new(LIMITS, now), told.expect("it is held"));
    next.restore_held(held.clone(), now, held.until_ms - 1_000);
    assert_eq!(next.opening(now), Opening::Wait(now + Duration::from_secs(1)));
    assert_eq!((next.tries_of("4f2a"), next.untold_held()), (2, None));
    next.release();
    assert_eq!((next.opening(now), next.untold_held()), (Opening::Full, Some(None)));
}

#[test]
fn a_broken_endpoint_is_paced_by_its_breaker_and_an_operator_ends_both_waits() {
    let now = Instant::now();
    let gate = Gate::new(LIMITS, now);
    gate.hold("4f2a", 5, 10 * LIMITS.open_for, now);
    gate.probe_now(Timestamp::now().as_millisecond() + 1_000, now);
    assert_eq!(gate.opening(now), Opening::Full, "held, and wished for");
    open_breaker(&gate, now);
    gate.hold("4f2a", 6, 10 * LIMITS.open_for, now);
    assert_eq!(gate.opening(now), Opening::Wait(now + LIMITS.open_for));
    assert!(matches!(gate.admit(now + LIMITS.open_for), Admission::Go(pass) if pass.is_probe()));
}

#[tokio::test]
async fn a_change_that_nobody_waited_for_is_not_missed() {
    let gate = Gate::new(LIMITS, Instant::now());
    gate.disable(gone());
    tokio::time::timeout(Duration::from_secs(10), gate.changed()).await.expect("it is there already");
}
