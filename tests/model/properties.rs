//! What must hold in every state.

use stateright::Property;

use crate::Checked;
use crate::actions;
use crate::platform::{FOREIGN, list, number, variable};
use crate::scenario::{Does, Scenario, value};
use crate::state::{Said, State};
use serde_json::{Value, json};

pub fn all() -> Vec<Property<Checked>> {
    vec![
        Property::always("an effect takes place at most once", |model, state| once(&model.0, state)),
        Property::always("what is told as applied has had its effect", |model, state| applied_is_true(&model.0, state)),
        Property::always("what is told as not applied never has an effect", |_, state| not_applied_is_true(state)),
        Property::always("a job and generation has one verdict", |_, state| one_verdict(state)),
        Property::always("what others write survives", |_, state| foreign_survives(state)),
        Property::always("jobs take effect in the order of the queue", |model, state| in_order(&model.0, state)),
        Property::always("every execution ends with all told", |model, state| ends(&model.0, state)),
    ]
}

/// A plain set may be done again: doing it again is the same, and order judges when.
fn once(scenario: &Scenario, state: &State) -> bool {
    let is_set = |job: u8| scenario.does[usize::from(job)] == Does::Sets;
    (0_u8..).take(scenario.does.len()).filter(|job| !is_set(*job)).all(|job| {
        let effects = state.platform.effects.iter().filter(|((of, _), _)| *of == job);
        effects.map(|(_, times)| u32::from(*times)).sum::<u32>() <= 1
    })
}

/// A set that a later one of the same batch replaces is never seen; order judges sets.
fn applied_is_true(scenario: &Scenario, state: &State) -> bool {
    let applied = state.told.iter().filter(|(.., said)| *said == Said::Applied);
    let mut seen = applied.filter(|(job, ..)| scenario.does[usize::from(*job)] != Does::Sets);
    seen.all(|(job, ..)| state.platform.ever.contains(job))
}

fn not_applied_is_true(state: &State) -> bool {
    let mut refused = state.told.iter().filter(|(.., said)| matches!(said, Said::NotApplied(_)));
    refused.all(|(job, generation, _)| !state.platform.effects.contains_key(&(*job, *generation)))
}

/// `unknown` beside another verdict is allowed where the evidence was destroyed in between.
fn one_verdict(state: &State) -> bool {
    let same = |a: &(u8, u8, Said), b: &(u8, u8, Said)| (a.0, a.1) == (b.0, b.1);
    let unknown = |said: Said| matches!(said, Said::Unknown(_));
    let pairs = state
        .told
        .iter()
        .flat_map(|a| state.told.iter().filter(move |b| same(a, b) && a.2 != b.2).map(move |b| (a.2, b.2)));
    pairs.into_iter().all(|(a, b)| state.happened.loss && (unknown(a) || unknown(b)))
}

fn foreign_survives(state: &State) -> bool {
    let (variables, expected) = (&state.platform.variables, state.platform.foreign);
    let count = list(variables).iter().filter(|item| **item == json!("theirs")).count();
    number(variables, "n") / FOREIGN == expected
        && u64::try_from(count) == Ok(expected)
        && number(variables, "theirs") == expected
}

/// Of what is appended, at any time; of what is set, when all is told: until then a plain set may be done again, and
/// those after it too. A replay is a new place in the order, and the ladder keeps its order by itself.
fn in_order(scenario: &Scenario, state: &State) -> bool {
    if state.happened.ladder || state.told.iter().any(|(_, generation, _)| *generation > 0) {
        return true;
    }
    let items = list(&state.platform.variables);
    let jobs = items.iter().filter_map(|item| position(scenario, item)).collect::<Vec<_>>();
    if !jobs.is_sorted() {
        return false;
    }
    if state.happened.reset || !is_quiet(scenario, state) {
        return true;
    }
    let sets = state.told.iter().filter(|(job, ..)| scenario.does[usize::from(*job)] == Does::Sets);
    let sets = sets.map(|(job, _, said)| (*job, *said)).collect::<Vec<_>>();
    if sets.iter().any(|(_, said)| *said != Said::Applied) {
        return true;
    }
    let last = sets.iter().map(|(job, _)| *job).max();
    last.is_none_or(|last| state.platform.variables.get(&variable("k")) == Some(&value(last)))
}

fn position(scenario: &Scenario, item: &Value) -> Option<u8> {
    (0..).take(scenario.does.len()).find(|job| value(*job) == *item)
}

/// Whatever happened, where nothing goes on by itself any more, every message is settled and every job told.
fn ends(scenario: &Scenario, state: &State) -> bool {
    if !is_quiet(scenario, state) {
        return true;
    }
    let settled = state.broker.ready.is_empty() && state.broker.unacked.is_empty();
    let told = |job: &u8| state.told.iter().any(|(of, ..)| of == job);
    settled && scenario.queue.iter().all(told)
}

fn is_quiet(scenario: &Scenario, state: &State) -> bool {
    let mut next = Vec::new();
    actions::progress(scenario, state, &mut next);
    next.is_empty()
}
