use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sandbox::history::fold;
use crate::sandbox::state::Scope;

#[test]
fn if_match_is_compared_bare_quoted_or_in_a_list() {
    let versions = Versions { form: VersionForm::ContextVersion, seed: 1 };
    for (if_match, matches) in [
        ("41", true),
        ("\"41\"", true),
        ("*", true),
        ("\"40\", \"41\"", true),
        ("W/\"41\"", false),
        ("42", false),
        ("", false),
        ("\"41", false),
    ] {
        assert_eq!(versions.matches(if_match, "conv_1", 41), matches, "{if_match}");
    }
}

#[test]
fn opaque_versions_have_no_order_and_differ_per_conversation() {
    let versions = Versions { form: VersionForm::Opaque, seed: 1 };
    assert_ne!(versions.shown("conv_1", 1), versions.shown("conv_2", 1));
    assert_ne!(versions.shown("conv_1", 1), versions.shown("conv_1", 2));
}

/// What can happen to a conversation.
#[derive(Clone, Debug)]
enum Act {
    /// A write, on the version of now or another one.
    Write {
        key: u8,
        value: Option<u8>,
        fresh: bool,
    },
    Put(u8),
    Reset,
    Rollback(usize),
    Delete,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..4u8, proptest::option::of(any::<u8>()), proptest::bool::weighted(0.8))
            .prop_map(|(key, value, fresh)| Act::Write { key, value, fresh }),
        1 => any::<u8>().prop_map(Act::Put),
        1 => Just(Act::Reset),
        1 => (1..4usize).prop_map(Act::Rollback),
        1 => Just(Act::Delete),
    ]
}

/// The simplest thing that could be right: whole states by number of acts, nothing shared.
#[derive(Clone, Debug, Default, PartialEq)]
struct Naive {
    states: Vec<(u64, BTreeMap<String, u8>)>,
    deleted: bool,
}

impl Naive {
    fn now(&self) -> (u64, BTreeMap<String, u8>) {
        self.states.last().cloned().unwrap_or((1, BTreeMap::new()))
    }

    fn act(&mut self, act: &Act) {
        let (version, mut values) = self.now();
        match act {
            Act::Put(value) => {
                self.deleted = false;
                self.states.push((version + 1, BTreeMap::from([("k0".into(), *value)])));
            }
            _ if self.deleted => {}
            Act::Write { fresh: false, .. } => {}
            Act::Write { key, value, .. } => {
                match value {
                    Some(value) => drop(values.insert(format!("k{key}"), *value)),
                    None => drop(values.remove(&format!("k{key}"))),
                }
                self.states.push((version + 1, values));
            }
            Act::Reset => self.states.push((1, BTreeMap::new())),
            // The platform remembers eight states.
            Act::Rollback(back) => {
                let oldest = self.states.len().saturating_sub(9);
                let at = (self.states.len() - 1).saturating_sub(*back).max(oldest);
                if self.states.len() > 1 {
                    self.states.push(self.states[at].clone());
                }
            }
            Act::Delete => {
                self.states.push((version + 1, BTreeMap::new()));
                self.deleted = true;
            }
        }
    }
}

proptest! {
    #[test]
    fn the_state_is_that_of_the_naive_model_and_of_the_folded_history(acts in proptest::collection::vec(act(), 1..60)) {
        let platform = Platform::new(Settings::default()).unwrap();
        let mut world = platform.world();
        let mut naive = Naive { states: vec![(1, BTreeMap::new())], deleted: false };
        world.touch("conv_1", true);
        for act in &acts {
            let origin = Origin::default();
            match act {
                Act::Write { key, value, fresh } => {
                    let version = naive.now().0 + u64::from(!fresh);
                    let origin = Origin { if_match: Some(version.to_string().into()), ..origin };
                    let value = value.map(|value| Arc::new(json!(value)));
                    let change = Change { key: format!("k{key}").into(), scope: Scope::User, value };
                    let applied = world.write("conv_1", true, &[change], &origin, None).is_ok();
                    prop_assert_eq!(applied, *fresh && !naive.deleted);
                }
                Act::Put(value) => {
                    let context = Context::from([((Arc::from("k0"), Scope::User), Arc::new(json!(value)))]);
                    world.put("conv_1", context, &origin);
                }
                Act::Reset => prop_assert_eq!(world.reset("conv_1", &origin), !naive.deleted),
                Act::Rollback(back) => drop(world.rollback("conv_1", *back, &origin)),
                Act::Delete => prop_assert_eq!(world.delete("conv_1", &origin), !naive.deleted),
            }
            naive.act(act);
            let shown = |context: &Context| -> BTreeMap<String, Value> {
                context.iter().map(|((key, _), value)| (key.to_string(), Value::clone(value))).collect()
            };
            let (version, values) = naive.now();
            let values: BTreeMap<String, Value> = values.into_iter().map(|(key, value)| (key, json!(value))).collect();
            let (entries, _) = world.history.after(0, usize::MAX);
            let folded = fold(&entries).map_err(TestCaseError::fail)?;
            if let Some(folded) = folded.get("conv_1") {
                prop_assert_eq!((folded.version, shown(&folded.context)), (version, values.clone()));
                prop_assert_eq!(folded.exists, !naive.deleted);
            }
            match world.get("conv_1") {
                Some(now) => prop_assert_eq!((now.version, shown(&now.context)), (version, values)),
                None => prop_assert!(naive.deleted),
            }
        }
    }
}
