//! What an operation makes of the value that is there. Pure, exact, and the same for every worker.
//!
//! What comes of an absent key, a wrong type, a bound, a conflict or a repetition is written at each
//! [`Operation`].

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::numbers::{self, json_eq};
use super::verdict::Reason;
use crate::job::{Operand, Operation};

/// Why an operation has no result, with the field of the variable that is at fault (`""`: the variable).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The reason code.
    pub code: Reason,
    /// Last step of the JSON pointer.
    pub field: &'static str,
    /// What is wrong, without the value.
    pub text: String,
}

impl Fault {
    fn new(code: Reason, field: &'static str, text: impl Into<String>) -> Self {
        Self { code, field, text: text.into() }
    }
}

/// The value after `operation` (`None`: absent). `rendered` is its operand where a template makes it.
///
/// # Errors
/// [`Fault`]: the job is refused.
pub fn apply(operation: &Operation, rendered: Option<Value>, current: Option<&Value>) -> Result<Option<Value>, Fault> {
    let current = current.filter(|value| !value.is_null());
    let given = |operand: &Operand| match operand {
        Operand::Value(value) => value.clone(),
        // The planner renders every template; one without a text would be its fault, and deletes nothing.
        Operand::Template(_) => rendered.clone().unwrap_or_else(|| Value::from("")),
    };
    let result = match operation {
        Operation::Set(operand) => Some(given(operand)),
        Operation::SetIfAbsent(operand) => Some(current.cloned().unwrap_or_else(|| given(operand))),
        Operation::CompareSet { expected, value } => {
            if !json_eq(expected, current.unwrap_or(&Value::Null)) {
                let text = "the variable does not have the expected value";
                return Err(Fault::new(Reason::PreconditionFailed, "expected", text));
            }
            Some(given(value))
        }
        Operation::Increment { by, min, max } => Some(increment(*by, *min, *max, current)?),
        Operation::Append { value, max_items } => {
            let mut items = list(current, "append")?;
            items.push(given(value));
            Some(Value::Array(newest(items, *max_items)))
        }
        Operation::AddToSet { value, max_items } => {
            let mut items = list(current, "add_to_set")?;
            let value = given(value);
            if items.iter().any(|item| json_eq(item, &value)) {
                return Ok(current.cloned());
            }
            items.push(value);
            Some(Value::Array(newest(items, *max_items)))
        }
        Operation::Remove(value) => {
            if current.is_none() {
                return Ok(None);
            }
            let mut items = list(current, "remove")?;
            items.retain(|item| !json_eq(item, value));
            Some(Value::Array(items))
        }
        Operation::Delete => None,
        Operation::MergePatch(patch) => {
            let mut value = current.cloned().unwrap_or(Value::Null);
            merge_patch(&mut value, patch);
            Some(value)
        }
        Operation::Max(bound) => Some(extreme(*bound, current, "max", |stored| stored >= *bound)?),
        Operation::Min(bound) => Some(extreme(*bound, current, "min", |stored| stored <= *bound)?),
    };
    Ok(result.filter(|value| !value.is_null()))
}

/// Whether doing the operation after somebody else's change means the same as before it, so that no policy is
/// needed: it folds onto theirs.
#[must_use]
pub fn is_commutative(operation: &Operation) -> bool {
    match operation {
        Operation::Increment { .. }
        | Operation::Append { .. }
        | Operation::AddToSet { .. }
        | Operation::Remove(_)
        | Operation::Max(_)
        | Operation::Min(_) => true,
        Operation::Set(_)
        | Operation::SetIfAbsent(_)
        | Operation::CompareSet { .. }
        | Operation::Delete
        | Operation::MergePatch(_) => false,
    }
}

/// RFC 7396: members of `patch` replace those of `target`, `null` removes, what is no object replaces all.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge_patch(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn increment(by: Decimal, min: Option<Decimal>, max: Option<Decimal>, current: Option<&Value>) -> Result<Value, Fault> {
    let start = current.map_or(Ok(Decimal::ZERO), |value| number(value, "increment"))?;
    let sum =
        numbers::add(start, by).map_err(|error| Fault::new(Reason::InvalidNumber, "by", format!("the sum {error}")))?;
    if min.is_some_and(|min| sum < min) {
        return Err(Fault::new(Reason::PreconditionFailed, "min", "the sum would be less than min"));
    }
    if max.is_some_and(|max| sum > max) {
        return Err(Fault::new(Reason::PreconditionFailed, "max", "the sum would be more than max"));
    }
    Ok(numbers::to_json(sum))
}

fn extreme(
    bound: Decimal,
    current: Option<&Value>,
    name: &str,
    holds: impl Fn(Decimal) -> bool,
) -> Result<Value, Fault> {
    match current {
        Some(value) if holds(number(value, name)?) => Ok(value.clone()),
        _ => Ok(numbers::to_json(bound)),
    }
}

fn number(value: &Value, operation: &str) -> Result<Decimal, Fault> {
    let Value::Number(number) = value else {
        return Err(Fault::new(
            Reason::TypeMismatch,
            "",
            format!("{operation} needs a number, and another type is stored"),
        ));
    };
    numbers::parse(&number.to_string())
        .map_err(|error| Fault::new(Reason::InvalidNumber, "", format!("the stored number {error}")))
}

fn list(current: Option<&Value>, operation: &str) -> Result<Vec<Value>, Fault> {
    match current {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items.clone()),
        Some(_) => {
            Err(Fault::new(Reason::TypeMismatch, "", format!("{operation} needs a list, and another type is stored")))
        }
    }
}

fn newest(mut items: Vec<Value>, max_items: Option<usize>) -> Vec<Value> {
    let surplus = items.len().saturating_sub(max_items.unwrap_or(usize::MAX));
    items.drain(..surplus);
    items
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(value: Value) -> Operand {
        Operand::Value(value)
    }

    fn increment_by(by: &str) -> Operation {
        Operation::Increment { by: numbers::parse(by).unwrap(), min: None, max: Some(Decimal::from(100)) }
    }

    #[test]
    fn each_operation_does_what_its_row_says() {
        let append = |item: i32| Operation::Append { value: value(json!(item)), max_items: Some(2) };
        let add = |item: i32| Operation::AddToSet { value: value(json!(item)), max_items: Some(2) };
        let compare = |expected: Value| Operation::CompareSet { expected, value: value(json!("new")) };
        let max = |bound: i64| Operation::Max(Decimal::from(bound));
        let min = |bound: i64| Operation::Min(Decimal::from(bound));
        let cases: Vec<(Operation, Value, Result<Value, Reason>)> = vec![
            (Operation::Set(value(json!(1))), json!("x"), Ok(json!(1))),
            (Operation::Set(value(Value::Null)), json!("x"), Ok(Value::Null)),
            (Operation::SetIfAbsent(value(json!(1))), Value::Null, Ok(json!(1))),
            (Operation::SetIfAbsent(value(json!(1))), json!(2), Ok(json!(2))),
            (compare(json!(1.0)), json!(1), Ok(json!("new"))),
            (compare(Value::Null), Value::Null, Ok(json!("new"))),
            (compare(json!(1)), Value::Null, Err(Reason::PreconditionFailed)),
            (increment_by("0.1"), Value::Null, Ok(json!(0.1))),
            (increment_by("0.2"), json!(0.1), Ok(json!(0.3))),
            (increment_by("100"), json!(1), Err(Reason::PreconditionFailed)),
            (increment_by("1"), json!("1"), Err(Reason::TypeMismatch)),
            (append(3), json!([1, 2]), Ok(json!([2, 3]))),
            (append(3), Value::Null, Ok(json!([3]))),
            (append(3), json!({}), Err(Reason::TypeMismatch)),
            (add(2), json!([1, 2.0]), Ok(json!([1, 2.0]))),
            (add(3), json!([1, 2]), Ok(json!([2, 3]))),
            (Operation::Remove(json!(1)), json!([1, 2, 1.0]), Ok(json!([2]))),
            (Operation::Remove(json!(1)), Value::Null, Ok(Value::Null)),
            (Operation::Remove(json!(1)), json!(1), Err(Reason::TypeMismatch)),
            (Operation::Delete, json!(1), Ok(Value::Null)),
            (Operation::MergePatch(json!({"a": null, "b": 1})), json!({"a": 1}), Ok(json!({"b": 1}))),
            (Operation::MergePatch(json!({"b": {"c": null}})), json!("text"), Ok(json!({"b": {}}))),
            (max(5), json!(4.5), Ok(json!(5))),
            (max(5), json!(6), Ok(json!(6))),
            (min(5), Value::Null, Ok(json!(5))),
            (min(5), json!([]), Err(Reason::TypeMismatch)),
        ];
        for (operation, current, expected) in cases {
            let result = apply(&operation, None, Some(&current)).map(|value| value.unwrap_or(Value::Null));
            match (&result, &expected) {
                (Ok(result), Ok(expected)) => {
                    assert!(json_eq(result, expected), "{operation:?} on {current}: {result}")
                }
                (Err(fault), Err(code)) => assert_eq!(fault.code, *code, "{operation:?} on {current}"),
                _ => panic!("{operation:?} on {current}: {result:?}, expected {expected:?}"),
            }
        }
    }

    /// RFC 7396, appendix A.
    #[test]
    fn merge_patch_follows_the_table_of_its_specification() {
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, r#"null"#, r#"null"#),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (original, patch, expected) in cases {
            let mut value: Value = serde_json::from_str(original).unwrap();
            merge_patch(&mut value, &serde_json::from_str(patch).unwrap());
            assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap(), "{original} {patch}");
        }
    }

    proptest! {
        #[test]
        fn what_commutes_does(a in -1_000i64..1_000, b in -1_000i64..1_000, start in -1_000i64..1_000) {
            let pairs = [
                (increment(a), increment(b)),
                (Operation::Max(Decimal::from(a)), Operation::Max(Decimal::from(b))),
                (Operation::Min(Decimal::from(a)), Operation::Min(Decimal::from(b))),
                (Operation::Remove(json!(a)), Operation::Remove(json!(b))),
            ];
            for (one, other) in pairs {
                let start = if matches!(one, Operation::Remove(_)) { json!([a, start, b]) } else { json!(start) };
                let then = |first: &Operation, second: &Operation| {
                    let value = apply(first, None, Some(&start)).unwrap();
                    apply(second, None, value.as_ref()).unwrap()
                };
                prop_assert_eq!(then(&one, &other), then(&other, &one));
            }
            fn increment(by: i64) -> Operation {
                Operation::Increment { by: Decimal::from(by), min: None, max: None }
            }
        }

        #[test]
        fn the_idempotent_ones_change_nothing_the_second_time(item in 0i32..5, items in proptest::collection::vec(0i32..5, 0..6)) {
            let operations = [
                Operation::AddToSet { value: value(json!(item)), max_items: Some(4) },
                Operation::Remove(json!(item)),
                Operation::Set(value(json!(item))),
                Operation::Delete,
            ];
            for operation in operations {
                let once = apply(&operation, None, Some(&json!(items))).unwrap();
                let twice = apply(&operation, None, once.as_ref()).unwrap();
                prop_assert_eq!(once, twice);
            }
        }
    }
}
