//! The checker can fail: a good run is doctored in each way that it must notice, and it must name that one.

use serde_json::json;

use super::*;

const CONVERSATION: &str = "conv_1";

fn job(number: usize, kind: Kind) -> Job {
    Job { id: format!("j-{number}"), bot: "default", conversation: CONVERSATION.to_owned(), kind }
}

fn told(number: usize, verdict: &str, reason: &str) -> Told {
    Told {
        event: format!("{number} {verdict}"),
        job: format!("j-{number}"),
        verdict: verdict.into(),
        reason: reason.into(),
    }
}

fn write(seq: u64, foreign: bool, changes: &[(&str, Value, Value)]) -> Write {
    let changes = changes.iter().map(|(key, old, new)| ((*key).to_owned(), old.clone(), new.clone())).collect();
    Write { seq, at: 100 + seq, conversation: CONVERSATION.to_owned(), foreign, conditional: true, changes }
}

/// One job of each kind, and somebody else between them.
fn good() -> Evidence {
    let kinds = [
        Kind::Increment(5),
        Kind::Append,
        Kind::Mixed(7),
        Kind::Plain,
        Kind::Bounded,
        Kind::Hopeless,
        Kind::Malformed,
        Kind::Append,
        Kind::Mixed(11),
        Kind::Plain,
    ];
    let null = || Value::Null;
    Evidence {
        jobs: kinds.into_iter().enumerate().map(|(number, kind)| job(number, kind)).collect(),
        told: vec![
            told(0, "applied", ""),
            told(1, "applied", ""),
            told(2, "applied", ""),
            told(3, "applied", ""),
            told(4, "applied", ""),
            told(5, "not_applied", "type_mismatch"),
            told(6, "not_applied", "schema_violation"),
            told(7, "applied", ""),
            told(8, "applied", ""),
            told(9, "applied", ""),
        ],
        sent_twice: BTreeSet::new(),
        sent_at: vec![50; 10],
        wiped: Vec::new(),
        cut_off: Vec::new(),
        letters: vec![("j-5".into(), "type_mismatch".into()), ("j-6".into(), "schema_violation".into())],
        history: vec![
            write(1, false, &[("n", null(), json!(5)), ("all", null(), json!([1]))]),
            write(2, true, &[("n", json!(5), json!(105)), ("foreign", null(), json!(1))]),
            write(3, true, &[("all", json!([1]), json!([1, FOREIGN]))]),
            write(4, false, &[("n", json!(105), json!(112)), ("all", json!([1, FOREIGN]), json!([1, FOREIGN, 2]))]),
            write(5, false, &[("s", null(), json!(2)), ("p", null(), json!(3))]),
            write(6, false, &[("all", json!([1, FOREIGN, 2]), json!([1, FOREIGN, 2, 4, 7])), ("g", null(), json!(1))]),
            write(7, false, &[("n", json!(112), json!(123)), ("s", json!(2), json!(8)), ("p", json!(3), json!(9))]),
            write(8, false, &[("all", json!([1, FOREIGN, 2, 4, 7]), json!([1, FOREIGN, 2, 4, 7, 8]))]),
        ],
    }
}

fn found(change: impl FnOnce(&mut Evidence)) -> Vec<Violation> {
    let mut evidence = good();
    change(&mut evidence);
    judge(&evidence).violations.into_keys().collect()
}

#[test]
fn a_good_run_is_good() {
    let judgement = judge(&good());
    assert_eq!(judgement.violations, BTreeMap::new());
    assert_eq!((judgement.verdicts["applied"], judgement.verdicts["not_applied"]), (8, 2));
    assert_eq!((judgement.repeated_events, judgement.unknown, judgement.set_again), (0, 0, 0));
}

#[test]
fn what_is_lost_is_named() {
    // The write of a job that is told as applied is not there: a list, a sum, a set.
    assert_eq!(found(|run| drop(run.history.pop())), [Violation::Lost]);
    assert_eq!(found(|run| drop(run.history[6].changes.remove(0))), [Violation::Lost]);
    assert_eq!(found(|run| run.history[6].changes.truncate(1)), [Violation::Lost]);
    // A worker takes another job's element out again.
    let gone = |run: &mut Evidence| run.history[7].changes[0].2 = json!([FOREIGN, 2, 4, 7, 8]);
    assert!(found(gone).contains(&Violation::Lost));
}

#[test]
fn what_is_doubled_is_named() {
    let twice = |run: &mut Evidence| run.history[7].changes[0].2 = json!([1, FOREIGN, 2, 4, 7, 8, 1]);
    assert_eq!(found(twice), [Violation::Doubled]);
    assert_eq!(found(|run| run.history[0].changes[0].2 = json!(10)), [Violation::Doubled]);
}

#[test]
fn contradictions_are_named() {
    assert_eq!(
        found(|run| {
            run.told.push(told(0, "not_applied", "attempts_exhausted"));
            run.letters.push(("j-0".into(), "attempts_exhausted".into()));
        }),
        [Violation::Contradictory]
    );
    // The effect of a job that is told as refused is there.
    assert_eq!(
        found(|run| {
            run.history[7].changes[0].2 = json!([1, FOREIGN, 2, 4, 7, 8]);
            run.history[5].changes[0].2 = json!([1, FOREIGN, 2, 4, 5, 7]);
        }),
        [Violation::Contradictory]
    );
    let refused = |run: &mut Evidence| {
        run.told[0] = told(0, "not_applied", "attempts_exhausted");
        run.letters.push(("j-0".into(), "attempts_exhausted".into()));
    };
    assert_eq!(found(refused), [Violation::Contradictory]);
    assert_eq!(found(|run| run.letters.push(("j-0".into(), "expired".into()))), [Violation::Contradictory]);
}

#[test]
fn another_order_is_named() {
    let swapped = |run: &mut Evidence| run.history[5].changes[0].2 = json!([1, FOREIGN, 2, 7, 4]);
    assert_eq!(found(swapped), [Violation::Reordered]);
    let back = |run: &mut Evidence| run.history.push(write(9, false, &[("s", json!(8), json!(2))]));
    assert_eq!(found(back), [Violation::Reordered]);
    // A plain set may be done again, but must not end so.
    let back = |run: &mut Evidence| run.history.push(write(9, false, &[("p", json!(9), json!(3))]));
    assert_eq!(found(back), [Violation::Reordered]);
    let mut again = good();
    again.history.push(write(9, false, &[("p", json!(9), json!(3))]));
    again.history.push(write(10, false, &[("p", json!(3), json!(9))]));
    let judgement = judge(&again);
    assert_eq!((judgement.violations.len(), judgement.set_again), (0, 1));
}

#[test]
fn a_missing_outcome_and_a_missing_dead_letter_are_named() {
    assert_eq!(found(|run| drop(run.told.remove(3))), [Violation::MissingOutcome]);
    assert_eq!(found(|run| drop(run.letters.pop())), [Violation::MissingOutcome]);
}

#[test]
fn foreign_writes_that_are_lost_are_named() {
    let over = |run: &mut Evidence| run.history[3].changes[0].2 = json!(12);
    assert!(found(over).contains(&Violation::ForeignLost));
    let over = |run: &mut Evidence| run.history[3].changes[1].2 = json!([1, 2]);
    assert!(found(over).contains(&Violation::ForeignLost));
    let theirs = |run: &mut Evidence| run.history.push(write(9, false, &[("foreign", json!(1), json!(0))]));
    assert_eq!(found(theirs), [Violation::ForeignLost]);
    assert_eq!(found(|run| run.history[6].conditional = false), [Violation::ForeignLost]);
}

#[test]
fn what_nothing_explains_is_named() {
    assert_eq!(found(|run| run.told[5].reason = "expired".into()), [Violation::Unexplained]);
    assert_eq!(found(|run| run.told.push(told(99, "applied", ""))), [Violation::Unexplained]);
    let early = |run: &mut Evidence| {
        run.told[0] = told(0, "unknown", "ledger_overrun");
        run.letters.push(("j-0".into(), "ledger_overrun".into()));
    };
    assert_eq!(found(early), [Violation::Unexplained], "the record of so short a conversation was never overrun");
}

#[test]
fn repeats_and_unknown_verdicts_are_counted_and_no_violation() {
    let mut evidence = good();
    evidence.told.push(told(0, "applied", ""));
    for (number, there) in [(2, true), (8, false)] {
        evidence.told[number] = told(number, "unknown", "ambiguous_write");
        evidence.letters.push((format!("j-{number}"), "ambiguous_write".into()));
        if !there {
            evidence.history.pop();
            evidence.history[6].changes.drain(..2);
        }
    }
    let judgement = judge(&evidence);
    assert_eq!(judgement.violations, BTreeMap::new());
    assert_eq!((judgement.repeated_events, judgement.unknown), (1, 2));
}

#[test]
fn a_late_repeat_and_a_line_that_everybody_forgot_are_counted_and_nothing_else_is_excused() {
    let overrun = |run: &mut Evidence, twice: bool| {
        // A conversation so long that its record was overrun.
        run.jobs.extend((10..200).map(|number| job(number, Kind::Malformed)));
        run.told.extend((10..200).map(|number| told(number, "not_applied", "schema_violation")));
        run.letters.extend((10..200).map(|number| (format!("j-{number}"), "schema_violation".to_owned())));
        run.told.push(told(0, "unknown", "ledger_overrun"));
        run.letters.push(("j-0".into(), "ledger_overrun".into()));
        run.sent_twice.extend(twice.then(|| "j-0".to_owned()));
    };
    assert_eq!(found(|run| overrun(run, true)), []);
    assert_eq!(found(|run| overrun(run, false)), [Violation::Contradictory]);

    let swapped = |run: &mut Evidence, wiped: At, cut_off: At| {
        run.history[5].changes[0].2 = json!([1, FOREIGN, 2, 7, 4]);
        (run.wiped, run.cut_off) = (vec![wiped], vec![cut_off]);
    };
    assert_eq!(found(|run| swapped(run, 60, 70)), []);
    assert_eq!(found(|run| swapped(run, 40, 70)), [Violation::Reordered], "it was wiped before");
    assert_eq!(found(|run| swapped(run, 60, 200)), [Violation::Reordered], "the worker knew");
}
