//! What `job::Operation` writes about each operation, cell by cell: the tables are read from its documentation, so that
//! they cannot say anything else than the code does.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::pipeline::plan::Fate;
use crate::pipeline::verdict::KeyResult;

const SOURCE: &str = include_str!("../../job.rs");
const HEAD: [&str; 6] =
    ["absent", "`null` given", "another type", "bound reached", "changed by others", "the job again"];

/// How an operation meets what its table speaks of.
struct Fixture {
    name: &'static str,
    /// The operation, as a job spells it.
    operation: Value,
    /// The same with `null` as its operand.
    null: Value,
    /// A stored value that it changes.
    stored: Value,
    /// A stored value of a type that it does not work on, if there is one for it.
    other_type: Value,
    /// The operation and the stored value at its bound, if it has one.
    bound: Option<(Value, Value)>,
    /// What the others made of `stored`; `null`: they removed it.
    theirs: Value,
}

fn fixtures() -> Vec<Fixture> {
    let plain = |name, operation: Value, null: Value| Fixture {
        name,
        operation,
        null,
        stored: json!("old"),
        other_type: json!([1]),
        bound: None,
        theirs: json!("theirs"),
    };
    let list = |name, operation: Value, null: Value, bound| Fixture {
        stored: json!(["a", "b"]),
        other_type: json!("text"),
        bound,
        theirs: json!(["a", "c", "b"]),
        ..plain(name, operation, null)
    };
    let number = |name, operation: Value, null: Value, bound| Fixture {
        stored: json!(4),
        other_type: json!("4"),
        bound,
        theirs: json!(6),
        ..plain(name, operation, null)
    };
    let bounded = |op: &str| Some((json!({"op": op, "value": "c", "max_items": 2}), json!(["a", "b"])));
    vec![
        plain("Set", json!({"value": "new"}), json!({"value": null})),
        Fixture {
            // There it leaves what is there; only what they removed is theirs to argue about.
            theirs: Value::Null,
            ..plain(
                "SetIfAbsent",
                json!({"op": "set_if_absent", "value": "new"}),
                json!({"op": "set_if_absent", "value": null}),
            )
        },
        plain(
            "CompareSet",
            json!({"op": "compare_set", "expected": "theirs", "value": "new"}),
            json!({"op": "compare_set", "expected": "old", "value": null}),
        ),
        number(
            "Increment",
            json!({"op": "increment", "by": 1}),
            json!({"op": "increment", "by": null}),
            Some((json!({"op": "increment", "by": 1, "max": 4}), json!(4))),
        ),
        list(
            "Append",
            json!({"op": "append", "value": "a"}),
            json!({"op": "append", "value": null}),
            bounded("append"),
        ),
        list(
            "AddToSet",
            json!({"op": "add_to_set", "value": "d"}),
            json!({"op": "add_to_set", "value": null}),
            bounded("add_to_set"),
        ),
        list("Remove", json!({"op": "remove", "value": "a"}), json!({"op": "remove", "value": null}), None),
        plain("Delete", json!({"op": "delete"}), Value::Null),
        Fixture {
            stored: json!({"x": 1}),
            theirs: json!({"x": 2}),
            ..plain(
                "MergePatch",
                json!({"op": "merge_patch", "value": {"y": 1}}),
                json!({"op": "merge_patch", "value": null}),
            )
        },
        number("Max", json!({"op": "max", "value": 9}), json!({"op": "max", "value": null}), None),
        number("Min", json!({"op": "min", "value": 1}), json!({"op": "min", "value": null}), None),
    ]
}

/// The last row of each operation's table, by the operation's name in the code.
fn documented() -> BTreeMap<String, Vec<String>> {
    let (_, operations) = SOURCE.split_once("pub enum Operation {\n").unwrap();
    let operations = operations.split_once("\n}\n").unwrap().0;
    let mut found = BTreeMap::new();
    let mut row = Vec::new();
    for line in operations.lines() {
        let cells =
            |text: &str| text.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        match line.strip_prefix("    /// |").map(cells) {
            Some(cells) if cells == HEAD => row.clear(),
            Some(cells) => row = cells,
            None if line.starts_with("    ") && line.trim_start().starts_with(|c: char| c.is_ascii_uppercase()) => {
                let name = line.trim().split(|c: char| !c.is_alphanumeric()).next().unwrap();
                found.insert(name.to_owned(), std::mem::take(&mut row));
            }
            None => {}
        }
    }
    found
}

fn holding(value: &Value) -> Snapshot {
    let variables = Variables::from([(Name::new(Scope::Conversation, "k"), value.clone())]);
    state(variables)
}

fn with(operation: &Value, policy: &str) -> Result<Job, Rejection> {
    job("j", &json!({"variables": {"k": operation}, "on_conflict": policy}))
}

/// What an operation does, in the words of the tables.
fn word(fate: &Fate) -> &'static str {
    match fate {
        Fate::Applies(applied) => match (applied.keys[0].result, &applied.keys[0].value) {
            (KeyResult::Written, Some(_)) => "written",
            (KeyResult::Written, None) => "deleted",
            (KeyResult::Unchanged, _) => "unchanged",
            (KeyResult::KeptTheirs, _) => "theirs kept",
            (KeyResult::Superseded, _) => "superseded",
        },
        Fate::Repeat => "repeat",
        Fate::Refused(rejection) => rejection.code.as_str(),
        Fate::RefusedBefore(_) | Fate::Unknown(_) => "not known",
    }
}

fn on(operation: &Value, stored: &Value) -> &'static str {
    match with(operation, "overwrite") {
        Ok(job) => word(&plan_on(&holding(stored), None, &[first_time(&job)]).fates[0]),
        Err(rejection) => rejection.code.as_str(),
    }
}

/// The job where the others changed the key, by its `on_conflict`.
fn changed_by_others(fixture: &Fixture) -> &'static str {
    let theirs = holding(&fixture.theirs);
    let with_policy = |policy| {
        let job = with(&fixture.operation, policy).unwrap();
        plan_on(&theirs, Some(&holding(&fixture.stored)), &[first_time(&job)]).fates[0].clone()
    };
    let fates = ["overwrite", "keep_theirs", "fail"].map(with_policy);
    let undisturbed = with(&fixture.operation, "overwrite").unwrap();
    let undisturbed = plan_on(&theirs, None, &[first_time(&undisturbed)]).fates[0].clone();
    match fates.each_ref().map(word) {
        ["written" | "deleted", "theirs kept", "conflict"] => "policy",
        ["written", "written", "written"] if fates.iter().all(|fate| *fate == undisturbed) => "folds",
        _ => "neither",
    }
}

fn the_job_again(fixture: &Fixture) -> &'static str {
    // `compare_set` expects what the others left.
    let stored = if fixture.name == "CompareSet" { &fixture.theirs } else { &fixture.stored };
    let before = holding(stored);
    let job = with(&fixture.operation, "overwrite").unwrap();
    let plan = plan_on(&before, None, &[first_time(&job)]);
    word(&plan_on(&after(&before, &plan), None, &[once_more(&job)]).fates[0])
}

#[test]
fn every_cell_of_every_operation_s_table_is_true() {
    let mut documented = documented();
    for fixture in fixtures() {
        let row = documented.remove(fixture.name).unwrap_or_default();
        let none = "–";
        let actual = [
            on(&fixture.operation, &Value::Null),
            if fixture.null.is_null() { none } else { on(&fixture.null, &fixture.stored) },
            on(&fixture.operation, &fixture.other_type),
            fixture.bound.as_ref().map_or(none, |(operation, stored)| on(operation, stored)),
            changed_by_others(&fixture),
            the_job_again(&fixture),
        ];
        let row = row.iter().map(|cell| cell.trim_matches('`')).collect::<Vec<_>>();
        assert_eq!(row, actual, "{}", fixture.name);
    }
    assert!(documented.is_empty(), "operations without a fixture: {documented:?}");
}

#[test]
fn the_oldest_go_where_a_list_is_full() {
    for op in ["append", "add_to_set"] {
        let job = with(&json!({"op": op, "value": "c", "max_items": 2}), "overwrite").unwrap();
        let plan = plan_on(&holding(&json!(["a", "b"])), None, &[first_time(&job)]);
        let Fate::Applies(applied) = &plan.fates[0] else { panic!("{op} is applied") };
        assert_eq!(applied.keys[0].value, Some(json!(["b", "c"])));
    }
}
