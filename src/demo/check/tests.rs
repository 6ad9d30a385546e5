use std::path::Path;

use serde_json::json;

use super::*;
use crate::demo::input::Input;

const CONVERSATION: &str = "conv_1";

/// Two jobs that were applied, one that was refused, a second writer, and all of it delivered.
fn fine() -> Evidence {
    let job = |id: &str, element: &str| Message {
        body: Vec::new(),
        message_id: None,
        job: Some(Job {
            id: id.to_owned(),
            generation: 0,
            conversation: CONVERSATION.to_owned(),
            variables: vec![
                variable("n", Effect::Add("1.5".parse().unwrap())),
                variable("all", Effect::Append(json!(element))),
                variable("last", Effect::Set(json!(element))),
            ],
        }),
        refused_with: None,
    };
    let malformed =
        Message { body: b"{".to_vec(), message_id: None, job: None, refused_with: Some("malformed_json".to_owned()) };
    let outcomes = vec![outcome("e1", "a"), outcome("e2", "b"), refusal("e3", Value::Null, "malformed_json")];
    Evidence {
        published: vec![job("a", "ea"), job("b", "eb"), malformed],
        deliveries: outcomes.iter().map(delivery).collect(),
        outcomes,
        history: vec![
            write(
                1,
                "client",
                1,
                json!([
                    changed("n", Value::Null, json!(1.5)),
                    changed("all", Value::Null, json!(["ea"])),
                    changed("last", Value::Null, json!("ea"))
                ]),
            ),
            write(2, "second", 2, json!([changed("theirs", Value::Null, json!(7))])),
            write(
                3,
                "client",
                3,
                json!([
                    changed("n", json!(1.5), json!(3)),
                    changed("all", json!(["ea"]), json!(["ea", "eb"])),
                    changed("last", json!("ea"), json!("eb"))
                ]),
            ),
        ],
        state: BTreeMap::from([(
            CONVERSATION.to_owned(),
            json!({
                "n": {"value": 3, "scope": "conversation"},
                "all": {"value": ["ea", "eb"], "scope": "conversation"},
                "last": [{"value": "eb", "scope": "conversation"}, {"value": "other", "scope": "user"}],
                "theirs": {"value": 7, "scope": "conversation"},
            }),
        )]),
        second_writer_keys: vec!["theirs".to_owned()],
    }
}

fn variable(key: &str, effect: Effect) -> super::super::input::Variable {
    super::super::input::Variable { key: key.to_owned(), scope: "conversation".to_owned(), effect }
}

fn outcome(id: &str, job: &str) -> Value {
    let written = json!({"result": "written"});
    json!({"id": id, "data": {"job_id": job, "verdict": "applied", "reason": null, "replay_generation": 0,
           "keys": {"n": written, "all": written, "last": written}}})
}

fn refusal(id: &str, job: Value, code: &str) -> Value {
    json!({"id": id, "data": {"job_id": job, "verdict": "not_applied", "reason": {"code": code},
           "replay_generation": 0, "keys": {}}})
}

fn delivery(event: &Value) -> Delivery {
    Delivery {
        id: event["id"].as_str().unwrap().to_owned(),
        timestamp: String::new(),
        content_type: String::new(),
        fault: None,
        event: event.clone(),
        answered: 204,
    }
}

fn changed(key: &str, old: Value, new: Value) -> Value {
    let mut change = json!({"scope": "conversation", "key": key});
    for (name, value) in [("old", old), ("new", new)] {
        if !value.is_null() {
            change[name] = value;
        }
    }
    change
}

fn write(seq: u64, writer: &str, before: u64, changes: Value) -> Entry {
    serde_json::from_value(json!({
        "seq": seq, "at_ms": 0, "event": "write", "writer": writer, "request": seq, "conversation": CONVERSATION,
        "if_match": "1", "version_before": before, "version_after": before + 1, "changes": changes,
        "answer": {"status": 200}
    }))
    .unwrap()
}

fn set(evidence: &mut Evidence, key: &str, value: Value) {
    evidence.state.get_mut(CONVERSATION).unwrap()[key]["value"] = value;
}

/// Changes the evidence and insists that the judgement says so.
fn says(change: impl FnOnce(&mut Evidence), fault: &str) -> Judgement {
    let mut evidence = fine();
    change(&mut evidence);
    let judgement = judge(&evidence);
    assert!(judgement.faults.iter().any(|said| said.contains(fault)), "{fault:?} expected: {:?}", judgement.faults);
    judgement
}

#[test]
fn what_is_fine_is_called_fine() {
    let judgement = judge(&fine());
    assert_eq!(judgement.faults, Vec::<String>::new());
    assert_eq!((judgement.applied, judgement.lost, judgement.doubled, judgement.repeats), (2, 0, 0, 0));
    assert_eq!(judgement.refused, BTreeMap::from([("malformed_json".to_owned(), 1)]));
}

#[test]
fn the_same_event_twice_is_fine_and_counted() {
    let mut evidence = fine();
    evidence.outcomes.push(outcome("e1", "a"));
    evidence.published.push(evidence.published[0].clone());
    let judgement = judge(&evidence);
    assert_eq!(judgement.faults, Vec::<String>::new());
    assert_eq!(judgement.repeats, 1);
}

#[test]
fn a_repetition_without_details_claims_all_that_was_asked_for() {
    let repeated = || json!({"id": "e1", "data": {"job_id": "a", "verdict": "applied", "repeat": true, "keys": {}}});
    let mut evidence = fine();
    evidence.outcomes.push(repeated());
    assert_eq!(judge(&evidence).faults, Vec::<String>::new());
    evidence.outcomes[0] = repeated();
    assert_eq!(judge(&evidence).faults, Vec::<String>::new());
    let lost = |e: &mut Evidence| {
        e.outcomes[0] = repeated();
        set(e, "n", json!(1.5));
    };
    assert_eq!(says(lost, "n: lost").lost, 1);
}

#[test]
fn a_lost_increment_is_seen() {
    assert_eq!(says(|e| set(e, "n", json!(1.5)), "conversation.n: lost").lost, 1);
    assert_eq!(says(|e| set(e, "n", Value::Null), "conversation.n: lost").lost, 1);
}

#[test]
fn a_doubled_increment_is_seen() {
    assert_eq!(says(|e| set(e, "n", json!(4.5)), "conversation.n: doubled").doubled, 1);
}

#[test]
fn a_lost_doubled_or_misplaced_element_is_seen() {
    assert_eq!(says(|e| set(e, "all", json!(["eb"])), "lost, \"ea\"").lost, 1);
    assert_eq!(says(|e| set(e, "all", json!(["ea", "eb", "eb"])), "doubled, \"eb\"").doubled, 1);
    says(|e| set(e, "all", json!(["eb", "ea"])), "not in the order");
}

#[test]
fn an_overwritten_value_is_seen() {
    says(|e| e.state.get_mut(CONVERSATION).unwrap()["last"][0]["value"] = json!("ea"), "not what the last applied job");
}

#[test]
fn a_set_that_changed_nothing_claims_that_the_value_is_there() {
    let unchanged = |e: &mut Evidence| e.outcomes[1]["data"]["keys"]["last"]["result"] = json!("unchanged");
    let mut evidence = fine();
    unchanged(&mut evidence);
    assert_eq!(judge(&evidence).faults, Vec::<String>::new());
    let kept = |e: &mut Evidence| e.outcomes[1]["data"]["keys"]["last"]["result"] = json!("kept_theirs");
    says(kept, "not what the last applied job");
}

#[test]
fn the_effect_of_a_job_that_was_called_refused_is_seen() {
    let change = |e: &mut Evidence| e.outcomes[1] = refusal("e2", json!("b"), "conflict");
    let judgement = says(change, "doubled, \"eb\"");
    assert!(judgement.faults.iter().any(|fault| fault.contains("b: ended as not_applied conflict")));
}

#[test]
fn a_missing_outcome_is_seen() {
    says(|e| drop(e.outcomes.remove(0)), "a: no outcome");
    says(|e| drop(e.outcomes.remove(2)), "malformed_json: 1 refusals expected, 0 told");
}

#[test]
fn two_outcomes_of_one_job_are_seen() {
    says(|e| e.outcomes.push(outcome("e9", "a")), "a: 2 different outcomes");
}

#[test]
fn one_event_with_two_verdicts_is_seen() {
    says(|e| e.outcomes.push(refusal("e1", json!("a"), "conflict")), "as applied and as not_applied");
}

#[test]
fn an_outcome_that_nobody_asked_for_is_seen() {
    says(|e| e.outcomes.push(outcome("e9", "nobody")), "nobody published it");
}

#[test]
fn a_refusal_with_another_code_is_seen() {
    says(|e| e.outcomes[2] = refusal("e3", Value::Null, "invalid_key"), "invalid_key: 0 refusals expected");
}

#[test]
fn a_second_writer_whose_key_was_changed_is_seen() {
    says(|e| set(e, "theirs", json!(6)), "not what the second writer wrote last");
    says(|e| e.history[1].writer = Writer::Client, "belongs to the second writer");
}

#[test]
fn a_history_with_a_gap_an_unconditional_write_or_an_element_added_twice_is_seen() {
    says(|e| drop(e.history.remove(1)), "does not hold together");
    says(|e| e.history[0].if_match = None, "without If-Match");
    let again = |e: &mut Evidence| {
        e.history.push(write(4, "client", 4, json!([changed("all", json!(["ea", "eb"]), json!(["ea"]))])));
        e.history.push(write(5, "client", 5, json!([changed("all", json!(["ea"]), json!(["ea", "eb"]))])));
    };
    assert_eq!(says(again, "was added 2 times").doubled, 1);
}

#[test]
fn a_webhook_that_is_missing_forged_or_of_another_event_is_seen() {
    says(|e| drop(e.deliveries.remove(0)), "1 events were never delivered");
    says(|e| e.deliveries[0].answered = 500, "1 events were never delivered");
    says(|e| e.deliveries[0].fault = Some("no signature fits"), "no signature fits");
    says(|e| e.deliveries[0].id = "e2".to_owned(), "not an outcome that was told");
}

#[test]
fn the_committed_input_can_be_read_and_its_repair_makes_a_short_value() {
    let input = Input::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo"))).unwrap();
    assert!(input.jobs.len() > 3_000);
    assert!(input.malformed.len() > 10);
    let repaired = input.repaired().unwrap();
    assert!(repaired.body.len() < 500);
    assert_eq!(repaired.job.unwrap().generation, 1);
}
