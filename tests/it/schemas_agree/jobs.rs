//! Random jobs: most of them nearly right, so that both answers are common and every rule is met from both sides.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

/// The id of all of them, in body and message.
pub const ID: &str = "generated";

/// A job, or something close to one.
pub fn nearly_right() -> impl Strategy<Value = Value> {
    let parts = (
        proptest::collection::btree_map(key(), variable(), 0..4),
        proptest::option::weighted(0.3, proptest::collection::btree_map(key(), template(), 0..3)),
        fields(vec![
            ("job_id", id()),
            ("conversation_id", conversation()),
            ("on_conflict", words(&["overwrite", "keep_theirs", "fail", "shrug"])),
            ("on_unresolved", words(&["keep", "empty", "fail", "Keep"])),
            ("deadline", deadline()),
            ("sequence", number()),
            ("base_version", prop_oneof![number(), text()].boxed()),
            ("coalesce", prop_oneof![9 => proptest::bool::ANY.prop_map(Value::from), 1 => junk()].boxed()),
        ]),
        damage(vec!["variables", "templates", "conversation_id", "deadline", "colour", "sequence", "on_conflict"]),
    );
    parts.prop_map(|(variables, templates, mut job, damage)| {
        job.entry("conversation_id").or_insert_with(|| json!("conv_1"));
        job.insert("variables".to_owned(), Value::Object(variables.into_iter().collect()));
        if let Some(templates) = templates {
            job.insert("templates".to_owned(), Value::Object(templates.into_iter().collect()));
        }
        damage.on(&mut job);
        Value::Object(job)
    })
}

fn id() -> BoxedStrategy<Value> {
    prop_oneof![20 => Just(json!(ID)), 1 => junk(), 1 => text()].boxed()
}

fn conversation() -> BoxedStrategy<Value> {
    prop_oneof![20 => Just(json!("conv_1")), 1 => text(), 1 => junk()].boxed()
}

fn key() -> BoxedStrategy<String> {
    let odd =
        ["", "9a", "a-b", "a b", "ä", "a/b", "a~b", "a.b", "__proto__", "constructor", "_injection_ledger", "a\n"];
    let long = [128, 129].map(|length| "k".repeat(length));
    prop_oneof![
        40 => "[a-zA-Z_][a-zA-Z0-9_]{0,5}",
        1 => select(odd.map(str::to_owned).to_vec()),
        1 => select(long.to_vec()),
    ]
    .boxed()
}

fn text() -> BoxedStrategy<Value> {
    let known = ["", "a", "Ä\n", "conv_1", "{{a}} {{", "1.5", "-1e3", "01", "1,5", "12345678901234567890.123456789"];
    let long = ["9".repeat(29), "x".repeat(10_300), "0.".to_owned() + &"1".repeat(80), "v".repeat(257)];
    prop_oneof![
        12 => select(known.map(Value::from).to_vec()),
        1 => select(long.map(Value::from).to_vec()),
    ]
    .boxed()
}

fn number() -> BoxedStrategy<Value> {
    let texts = [
        "0",
        "-0",
        "1",
        "-1",
        "1.0",
        "1.5",
        "41e0",
        "1.5e1",
        "1e-7",
        "0.0",
        "9007199254740991",
        "-9007199254740991",
        "9007199254740992",
        "9007199254740992.0",
        "9007199254740993.5",
        "18446744073709551615",
        "18446744073709551616",
        "1e16",
        "1e400",
        "-1e400",
        "123456789012345678901234567890.5",
        "0.12345678901234567890123456789",
    ];
    let values = texts.map(|text| serde_json::from_str::<Value>(text).unwrap());
    prop_oneof![3 => (0..200_u32).prop_map(Value::from), 2 => select(values.to_vec())].boxed()
}

fn template() -> BoxedStrategy<Value> {
    prop_oneof![15 => text(), 1 => junk()].boxed()
}

fn deadline() -> BoxedStrategy<Value> {
    let texts = [
        "2026-11-23T10:15:00Z",
        "2026-11-23T10:15:00.5Z",
        "2026-11-23t10:15:00z",
        "2026-11-23T11:15:00+01:00",
        "2020-02-29T00:00:00-00:00",
        "2026-11-23T10:15Z",
        "2026-11-23 10:15:00Z",
        "2026-11-23T10:15:00",
        "20261123T101500Z",
        "2026-11-23T10:15:00+01",
        "2026-11-23T10:15:00+0100",
        "2026-11-23T10:15:00Z[UTC]",
        "2026-11-23T10:15:00,5Z",
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-24T10:00:01Z",
        "2999-01-01T00:00:00Z",
        "2026-11-23",
        "tomorrow",
        "-2026-11-23T10:15:00Z",
        "2026-11-23T10:15:00.Z",
        "2026-11-23T10:15:00+01:00:00",
        "2026-11-23T10:15:00+25:00",
    ];
    prop_oneof![10 => Just(json!(texts[0])), 10 => select(texts.map(Value::from).to_vec()), 1 => junk()].boxed()
}

fn words(words: &'static [&'static str]) -> BoxedStrategy<Value> {
    prop_oneof![20 => select(words).prop_map(Value::from), 1 => junk()].boxed()
}

/// A value that seldom fits.
fn junk() -> BoxedStrategy<Value> {
    select(vec![Value::Null, json!(true), json!(7), json!("x"), json!([]), json!({}), json!(["session"]), json!(-1.5)])
        .boxed()
}

fn value() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        2 => Just(Value::Null),
        2 => proptest::bool::ANY.prop_map(Value::from),
        3 => (0..100_u32).prop_map(Value::from),
        1 => number(),
        3 => text(),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let names = "[a-zä ]{0,3}";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(names, inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
    .boxed()
}

fn decimal() -> BoxedStrategy<Value> {
    prop_oneof![8 => (0..100_u32).prop_map(Value::from), 4 => number(), 2 => text(), 1 => junk()].boxed()
}

/// A variable with the fields of its operation, a few fewer or more.
fn variable() -> BoxedStrategy<Value> {
    let operand = || {
        prop_oneof![
            6 => value().prop_map(|value| json!({ "value": value })),
            3 => template().prop_map(|template| json!({ "template": template })),
            1 => Just(json!({})),
        ]
    };
    let op = |name: &'static str, rest: BoxedStrategy<Value>| {
        rest.prop_map(move |mut fields| {
            fields["op"] = name.into();
            fields
        })
        .boxed()
    };
    let joined = |a: BoxedStrategy<Value>, b: BoxedStrategy<Map<String, Value>>| {
        (a, b).prop_map(|(mut a, b)| {
            a.as_object_mut().unwrap().extend(b);
            a
        })
    };
    let with_limit = |name| op(name, joined(operand().boxed(), fields(vec![("max_items", number())])).boxed());
    let increment = fields(vec![("by", decimal()), ("min", decimal()), ("max", decimal())]).prop_map(Value::Object);
    let given = |name| op(name, value().prop_map(|value| json!({ "value": value })).boxed());
    let bound = |name| op(name, decimal().prop_map(|value| json!({ "value": value })).boxed());
    let operations = prop_oneof![
        4 => operand().boxed(),
        1 => op("set", operand().boxed()),
        1 => op("set_if_absent", operand().boxed()),
        1 => op("compare_set", joined(operand().boxed(), fields(vec![("expected", value())])).boxed()),
        2 => op("increment", increment.boxed()),
        1 => with_limit("append"),
        1 => with_limit("add_to_set"),
        1 => given("remove"),
        1 => given("merge_patch"),
        1 => op("delete", Just(json!({})).boxed()),
        1 => bound("max"),
        1 => bound("min"),
    ];
    let scopes = ["session", "user", "conversation", "global", "conversation", "User"];
    let scope =
        proptest::option::weighted(0.4, prop_oneof![15 => select(scopes.to_vec()).prop_map(Value::from), 1 => junk()]);
    let names = vec!["op", "value", "template", "scope", "key", "expected", "by", "max_items", "colour"];
    let whole = (operations, scope, damage(names)).prop_map(|(mut variable, scope, damage)| {
        let fields = variable.as_object_mut().unwrap();
        if let Some(scope) = scope {
            fields.insert("scope".to_owned(), scope);
        }
        damage.on(fields);
        variable
    });
    prop_oneof![40 => whole, 1 => junk()].boxed()
}

/// Some of the fields.
fn fields(all: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Map<String, Value>> {
    let each = all.into_iter().map(|(name, value)| {
        proptest::option::weighted(0.3, value).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    });
    each.collect::<Vec<_>>().prop_map(|fields| fields.into_iter().flatten().collect()).boxed()
}

/// What is wrong in one of eight objects: a field is gone, or there is one that seldom fits.
#[derive(Debug, Clone)]
struct Damage(Option<(&'static str, Option<Value>)>);

impl Damage {
    fn on(&self, fields: &mut Map<String, Value>) {
        match self.0.clone() {
            None => {}
            Some((name, None)) => drop(fields.remove(name)),
            Some((name, Some(value))) => drop(fields.insert(name.to_owned(), value)),
        }
    }
}

fn damage(names: Vec<&'static str>) -> BoxedStrategy<Damage> {
    let value = proptest::option::weighted(0.7, prop_oneof![junk(), text()]);
    proptest::option::weighted(0.12, (select(names), value)).prop_map(Damage).boxed()
}
