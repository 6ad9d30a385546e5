use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::audit::Chain;
use crate::audit::checkpoint::Notary;

fn notary() -> Notary {
    Notary { key: SigningKey::from_bytes(&[7; 32]), every: 1 }
}

fn key() -> VerifyingKey {
    notary().key.verifying_key()
}

/// A chain of `count` events, with a checkpoint after each of the numbers in `signed`; the last one is final.
fn bodies(writer: &str, count: u64, signed: &[u64]) -> Vec<Vec<u8>> {
    let mut chain = Chain::new(writer.to_owned());
    let mut bodies = Vec::new();
    for number in 1..=count {
        let event = json!({"id": format!("{writer}-{number}"), "n": number}).as_object().unwrap().clone();
        bodies.push(chain.seal(|link| link.of(event)).into_bytes());
        if signed.contains(&number) {
            let now = "2026-11-23T10:00:00Z".parse().unwrap();
            let checkpoint = notary().certify(&chain, 1, signed.last() == Some(&number), now);
            bodies.push(Value::Object(checkpoint).to_string().into_bytes());
        }
    }
    bodies
}

fn verified(bodies: &[Vec<u8>], beginning: bool) -> Report {
    let mut verifier = Verifier::new(vec![key()]);
    for (place, body) in bodies.iter().enumerate() {
        verifier.take(place.try_into().unwrap(), body);
    }
    verifier.finish(beginning)
}

fn faults(report: &Report) -> Vec<(Kind, Option<u64>, Option<u64>)> {
    assert_eq!(report.fault_count, report.faults.len() as u64);
    report.faults.iter().map(|fault| (fault.kind, fault.place, fault.seq)).collect()
}

fn changed(body: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let mut event = serde_json::from_slice::<Map<_, _>>(body).unwrap();
    change(&mut event);
    Value::Object(event).to_string().into_bytes()
}

#[test]
fn an_unbroken_chain_has_no_fault_and_tells_how_far_it_is_signed() {
    let mut all = bodies("a", 5, &[2, 5]);
    all.extend(bodies("b", 4, &[3]));
    all.extend(bodies("c", 1, &[]));
    let report = verified(&all, true);
    assert_eq!(faults(&report), []);
    let ends = report.writers.iter().map(|w| (w.writer.as_str(), w.events, w.covered, w.closed)).collect::<Vec<_>>();
    assert_eq!(ends, [("a", 5, 5, true), ("b", 4, 3, false), ("c", 1, 0, false)]);
}

#[test]
fn a_changed_event_is_named_once() {
    let mut all = bodies("a", 4, &[]);
    all[1] = changed(&all[1], |event| drop(event.insert("n".into(), json!(9))));
    assert_eq!(faults(&verified(&all, true)), [(Kind::Tampered, Some(1), Some(2))]);
}

#[test]
fn a_changed_event_with_a_new_hash_breaks_the_link_and_the_checkpoint() {
    let mut all = bodies("a", 3, &[2, 3]);
    all[1] = changed(&all[1], |event| {
        event.insert("n".into(), json!(9));
        let hash = hash(event);
        event.insert("hash".into(), json!(hash));
    });
    let found = faults(&verified(&all, true));
    assert_eq!(found, [(Kind::Checkpoint, Some(2), Some(2)), (Kind::BrokenLink, Some(3), Some(3))]);
}

#[test]
fn missing_events_are_a_gap_and_a_missing_head_only_where_nothing_was_let_go() {
    let mut all = bodies("a", 6, &[]);
    all.drain(2..4);
    assert_eq!(faults(&verified(&all, true)), [(Kind::Gap, None, Some(3))]);
    let headless = &bodies("a", 6, &[])[3..];
    let report = verified(headless, false);
    assert_eq!((faults(&report), report.writers[0].first), (vec![], 4));
    assert_eq!(faults(&verified(headless, true)), [(Kind::Gap, None, Some(1))]);
}

#[test]
fn a_chain_that_was_written_anew_needs_the_key() {
    // A whole chain of somebody else's, and checkpoints of a key of his own.
    let forged = bodies("a", 3, &[3]);
    let mut verifier = Verifier::new(vec![SigningKey::from_bytes(&[8; 32]).verifying_key()]);
    for body in &forged {
        verifier.take(0, body);
    }
    let report = verifier.finish(true);
    assert_eq!(faults(&report), [(Kind::Checkpoint, Some(0), Some(3))]);
    assert_eq!(report.writers[0].covered, 0);
    let mut changed_one = forged.clone();
    changed_one[3] = changed(&forged[3], |event| event["data"]["hash"] = json!(GENESIS));
    assert_eq!(faults(&verified(&changed_one, true)), [(Kind::Checkpoint, Some(3), Some(3))]);
}

#[test]
fn what_is_cut_off_before_a_checkpoint_is_told() {
    let mut all = bodies("a", 5, &[5]);
    all.drain(3..5);
    assert_eq!(faults(&verified(&all, true)), [(Kind::CutOff, Some(3), Some(5))]);
}

#[test]
fn a_second_event_of_one_number_is_a_fork_and_a_final_end_that_goes_on_is_open() {
    let mut all = bodies("a", 3, &[]);
    all.push(changed(&all[1], |event| {
        event.insert("n".into(), json!(9));
        let hash = hash(event);
        event.insert("hash".into(), json!(hash));
    }));
    assert_eq!(faults(&verified(&all, true)), [(Kind::Fork, Some(3), Some(2))]);
    let mut on = bodies("a", 4, &[3]);
    assert!(!verified(&on, true).writers[0].closed);
    on.truncate(4);
    assert!(verified(&on, true).writers[0].closed);
}

#[test]
fn what_is_no_event_is_told_with_its_place() {
    let mut all = bodies("a", 1, &[]);
    all.push(b"no json".to_vec());
    all.push(b"{\"id\":\"x\"}".to_vec());
    let twice = String::from_utf8(all[0].clone()).unwrap().replacen('{', "{\"id\":\"shown to others\",", 1);
    all.push(twice.into_bytes());
    let places = faults(&verified(&all, true)).into_iter().map(|fault| (fault.0, fault.1)).collect::<Vec<_>>();
    assert_eq!(places, [1, 2, 3].map(|place| (Kind::NotAnEvent, Some(place))));
}

proptest! {
    // Signatures are slow without optimisation.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Repeated and late publishes are no fault, in whatever order they come.
    #[test]
    fn order_and_repeats_do_not_matter(
        places in prop::collection::vec((0..14_usize, 0..20_usize), 0..30),
    ) {
        let mut all = bodies("a", 12, &[5, 12]);
        let whole = verified(&all, true);
        for (from, to) in places {
            let body = all[from.min(all.len() - 1)].clone();
            all.insert(to.min(all.len()), body);
        }
        let report = verified(&all, true);
        prop_assert_eq!(faults(&report), vec![]);
        let (found, expected) = (&report.writers[0], &whole.writers[0]);
        prop_assert_eq!((found.events, found.covered, found.closed), (expected.events, expected.covered, expected.closed));
    }

    /// Whatever is taken out before the last checkpoint shows.
    #[test]
    fn nothing_that_is_signed_can_be_taken_out(from in 0..12_usize, count in 1..12_usize) {
        let mut all = bodies("a", 12, &[12]);
        all.drain(from..(from + count).min(12));
        prop_assert!(verified(&all, true).fault_count > 0);
    }
}
