//! The model check: the production functions that decide (`plan`, `ledger`, `endings`, `snapshot`, `memory`,
//! `evicted`, `recent`) in a world that fails at every step, all of its states.
//!
//! - `scenario`: which jobs, which faults, how often; `platform`: the world; `worker`: the worker, effect by effect;
//!   `actions`: what can happen; `properties`: what must hold; `mutants`: the parts without which it must not.
//! - The lease is not in it: it proves nothing. Every state is as if it had been lost.
//! - Not in it, since nothing conditional is written: verdicts of an outage (`attempts_exhausted`, `conflict_limit`)
//!   and of the clock (`expired`) hold against a second one by the worker's and Redis' memory alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; the lints cannot tell the harness from production code"
)]

use std::fmt::Write as _;
use std::time::Instant;

use stateright::{Checker as _, HasDiscoveries, Model, Path, Property};

mod actions;
mod mutants;
mod platform;
mod properties;
mod scenario;
mod shared;
mod state;
mod worker;

use actions::Action;
use mutants::Mutant;
use scenario::Does::{Adds, Appends, Sets, Takes};
use scenario::Fault::{AnswerLost, Crash, Flood, Foreign, Late, Outage, Overtaken, Replay, Reset, Stale, Wiped};
use scenario::Scenario;
use state::State;

/// The model of one scenario.
pub struct Checked(pub Scenario);

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.0)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // After a promise is broken nothing that follows is of interest.
        if properties::all().iter().all(|property| (property.condition)(self, state)) {
            actions::progress(&self.0, state, actions);
            actions::faults(state, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        actions::after(&self.0, state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// Where each mutant is to be found.
fn mutated(mutant: Mutant) -> Scenario {
    let scenario = |jobs: &[_], faults: &[_]| Scenario::new("mutant", jobs, None, faults).without(mutant);
    match mutant {
        Mutant::DeduplicationOnlyInRedis => scenario(&[Adds], &[(Crash, 1), (Wiped, 1)]),
        Mutant::NoPrecondition => scenario(&[Adds], &[(Foreign, 1)]),
        Mutant::NoLowWaterMark => scenario(&[Adds], &[(Crash, 1), (Flood, 1), (Wiped, 1)]),
        Mutant::NoTombstone => scenario(&[Takes], &[(Crash, 1), (Wiped, 1), (Foreign, 2)]),
        Mutant::AckBeforePublish => scenario(&[Adds], &[(Crash, 1)]),
        Mutant::VersionRestarts => scenario(&[Adds], &[(Late, 1), (Reset, 1), (Foreign, 2)]),
        Mutant::FreshVersionUnderOldPlan => scenario(&[Appends], &[(Foreign, 1)]),
        Mutant::FailedJobIgnored => scenario(&[Takes], &[(Foreign, 1)]),
        Mutant::NoEntryForSuspects => scenario(&[Sets, Sets], &[(Overtaken, 1), (AnswerLost, 1)]),
        Mutant::VerdictsWithoutPlace => scenario(&[Sets, Sets], &[(Overtaken, 1)]),
    }
}

fn in_words(path: Path<State, Action>) -> String {
    path.into_actions().iter().zip(1..).fold(String::new(), |mut text, (action, number)| {
        let _ = write!(text, "\n  {number:2}. {action}");
        text
    })
}

/// A broken promise and a short way to it.
fn counterexample(scenario: Scenario) -> Option<String> {
    let checker = Checked(scenario).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (promise, path) = checker.discoveries().into_iter().next()?;
    let told = path.last_state().told.iter().fold(String::new(), |mut text, (job, generation, said)| {
        let _ = write!(text, "\n  told of job-{job} in generation {generation}: {said}");
        text
    });
    Some(format!("it does not hold that {promise}:{}{told}", in_words(path)))
}

/// Searches all states of a scenario; their number.
fn search(scenario: Scenario) -> usize {
    let began = Instant::now();
    let model = Checked(scenario.clone());
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    if !checker.discoveries().is_empty() {
        panic!("{}: {}", scenario.name, counterexample(scenario.clone()).unwrap_or_default());
    }
    let (states, deep) = (checker.unique_state_count(), checker.max_depth());
    println!("{}: {states} states, {deep} deep, in {:?}", scenario.name, began.elapsed());
    states
}

/// Narrow configurations: each has one or two kinds of fault, and is searched to its end.
#[test]
fn promises_hold_over_crashes_while_redis_is_wiped() {
    search(Scenario::new("crashes", &[Adds, Appends, Sets], Some(0), &[(Crash, 2), (Wiped, 1)]));
}

#[test]
fn promises_hold_with_a_worker_that_was_overtaken() {
    search(Scenario::new("overtaken", &[Sets, Sets], None, &[(Overtaken, 1), (AnswerLost, 1), (Wiped, 1)]));
    search(Scenario::new("overtaken by who is killed", &[Sets, Sets], None, &[(Overtaken, 1), (Crash, 1)]));
    search(Scenario::new("overtaken, not noticed", &[Sets, Sets, Adds], None, &[(Overtaken, 1)]));
    search(Scenario::new("overtaken, crashed", &[Sets, Adds], None, &[(Overtaken, 1), (Crash, 1)]));
}

#[test]
fn promises_hold_over_late_and_lost_answers() {
    search(Scenario::new("late", &[Adds, Appends], Some(1), &[(Late, 1), (AnswerLost, 1), (Crash, 1), (Foreign, 1)]));
}

#[test]
fn promises_hold_where_the_state_refuses() {
    search(Scenario::new("refused", &[Takes, Adds], Some(0), &[(Crash, 1), (Wiped, 1), (Foreign, 2)]));
}

#[test]
fn promises_hold_over_a_replay() {
    search(Scenario::new("replayed", &[Takes, Appends], None, &[(Overtaken, 1), (Foreign, 2), (Replay, 1)]));
}

#[test]
fn promises_hold_on_reads_that_are_out_of_date() {
    search(Scenario::new("stale", &[Adds, Takes], None, &[(Stale, 1), (Foreign, 2), (Crash, 1)]));
}

#[test]
fn promises_hold_where_a_conversation_is_cleared() {
    search(Scenario::new("cleared", &[Adds, Appends], None, &[(Reset, 1), (Crash, 1), (Late, 1), (Foreign, 1)]));
}

#[test]
fn promises_hold_where_the_ledger_overflows() {
    search(Scenario::new("overflown", &[Adds, Sets], None, &[(Flood, 1), (Crash, 1), (Wiped, 1)]));
}

#[test]
fn promises_hold_over_the_ladder() {
    search(Scenario::new("ladder", &[Adds, Takes], None, &[(Outage, 1), (Late, 1), (Crash, 1), (Foreign, 1)]));
}

/// Wide configurations: several kinds of fault at once; minutes, and gigabytes of memory.
mod wide {
    use super::*;

    #[test]
    #[ignore = "make model"]
    fn promises_hold_over_crashes_and_lost_answers() {
        let faults = [(Crash, 2), (Wiped, 1), (Foreign, 1), (AnswerLost, 1)];
        search(Scenario::new("crashes, wide", &[Adds, Sets, Appends, Takes], Some(0), &faults));
    }

    #[test]
    #[ignore = "make model"]
    fn promises_hold_with_an_overtaken_worker_and_a_replay() {
        let faults = [(Overtaken, 1), (Late, 1), (Foreign, 1), (Replay, 1)];
        search(Scenario::new("overtaken, wide", &[Takes, Adds], None, &faults));
    }

    #[test]
    #[ignore = "make model"]
    fn promises_hold_for_plain_jobs_of_an_overtaken_worker() {
        let faults = [(Overtaken, 1), (AnswerLost, 1), (Wiped, 1), (Foreign, 1)];
        search(Scenario::new("plain, wide", &[Sets, Sets, Adds], None, &faults));
    }

    #[test]
    #[ignore = "make model"]
    fn promises_hold_with_workers_that_overtake_each_other() {
        search(Scenario::new("overtaken twice", &[Sets, Sets], None, &[(Overtaken, 2)]));
    }
}

#[test]
fn no_protective_part_can_be_left_out() {
    for mutant in Mutant::ALL {
        let Some(text) = counterexample(mutated(mutant)) else { panic!("{mutant}: not found") };
        println!("With {mutant}, {text}");
    }
}
