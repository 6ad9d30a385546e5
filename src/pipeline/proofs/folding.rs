//! What must be true of every batch, on random ones.

use proptest::prelude::*;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::*;
use crate::pipeline::merge;
use crate::pipeline::numbers::{self, json_eq};
use crate::pipeline::plan::Fate;
use crate::pipeline::verdict::KeyResult;

/// What a fate says of the effect, without what only says how it is recorded.
fn effect(fate: &Fate) -> (String, Vec<(Name, KeyResult, Option<Value>)>) {
    match fate {
        Fate::Applies(applied) => {
            let keys = applied.keys.iter().map(|key| (key.name.clone(), key.result, key.value.clone())).collect();
            (format!("applies {:?}", applied.unresolved), keys)
        }
        Fate::Refused(rejection) => (rejection.to_string(), Vec::new()),
        other => (format!("{other:?}"), Vec::new()),
    }
}

fn variables(snapshot: &Snapshot) -> &Variables {
    snapshot.variables().unwrap()
}

fn same(one: &Variables, other: &Variables) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((name, a), (other_name, b))| name == other_name && json_eq(a, b))
}

/// The conversation after the jobs, one PATCH each.
fn one_by_one(start: &Snapshot, jobs: &[Job]) -> (Snapshot, Vec<Fate>) {
    let mut now = start.clone();
    let mut fates = Vec::new();
    for job in jobs {
        let plan = plan_on(&now, None, &[first_time(job)]);
        now = after(&now, &plan);
        fates.extend(plan.fates);
    }
    (now, fates)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_does_what_its_jobs_do_one_by_one(start in any_variables(), jobs in any_jobs(8)) {
        let start = state(start);
        let (expected, fates) = one_by_one(&start, &jobs);
        let plan = plan_on(&start, None, &jobs.iter().map(first_time).collect::<Vec<_>>());
        let together = after(&start, &plan);
        prop_assert!(same(variables(&together), variables(&expected)), "{:?}\n{:?}", together, expected);
        prop_assert_eq!(
            plan.fates.iter().map(effect).collect::<Vec<_>>(), fates.iter().map(effect).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_order_of_independent_keys_changes_nothing(
        start in any_variables(),
        jobs in proptest::collection::btree_map("[a-c]", any_operation(), 3),
        order in Just([0, 1, 2]).prop_shuffle(),
    ) {
        // A template looks at other keys, so it depends on them.
        prop_assume!(jobs.values().all(|operation| operation.get("template").is_none()));
        let jobs = jobs.into_iter().map(|(key, operation)| {
            let mut operation = operation;
            operation["scope"] = json!(scope(&key).as_str());
            job(&key, &json!({"variables": {&key: operation}})).unwrap()
        });
        let jobs = jobs.collect::<Vec<_>>();
        let start = state(start);
        let ordered = order.map(|at| first_time(&jobs[at]));
        let (one, other) = (plan_on(&start, None, &jobs.iter().map(first_time).collect::<Vec<_>>()), plan_on(&start, None, &ordered));
        prop_assert!(same(variables(&after(&start, &one)), variables(&after(&start, &other))));
        for (at, fate) in order.into_iter().zip(&other.fates) {
            prop_assert_eq!(effect(&one.fates[at]), effect(fate));
        }
    }

    #[test]
    fn a_job_with_an_entry_changes_nothing_the_second_time(start in any_variables(), jobs in any_jobs(8)) {
        let start = state(start);
        let first = plan_on(&start, None, &jobs.iter().map(first_time).collect::<Vec<_>>());
        let then = after(&start, &first);
        for (job, fate) in jobs.iter().zip(&first.fates) {
            if matches!(fate, Fate::Applies(applied) if applied.recorded) {
                let again = plan_on(&then, None, &[once_more(job)]);
                prop_assert_eq!(&again.fates[0], &Fate::Repeat);
                prop_assert!(again.body.is_none());
            }
        }
    }

    #[test]
    fn a_job_without_an_entry_changes_nothing_if_it_comes_again_at_once(start in any_variables(), operation in any_operation()) {
        let job = job("j", &json!({"variables": {"c": operation}})).unwrap();
        let start = state(start);
        let first = plan_on(&start, None, &[first_time(&job)]);
        let then = after(&start, &first);
        let again = plan_on(&then, None, &[first_time(&job)]);
        match (&first.fates[0], &again.fates[0]) {
            (Fate::Applies(applied), _) if !applied.recorded => {
                prop_assert!(same(variables(&after(&then, &again)), variables(&then)), "{:?}", again);
            }
            (Fate::Applies(_), again) => prop_assert_eq!(again, &Fate::Repeat),
            (_, again) => prop_assert!(!matches!(again, Fate::Applies(_)), "{:?}", again),
        }
    }

    #[test]
    fn plain_jobs_that_all_come_again_end_where_they_ended(
        start in any_variables(),
        values in proptest::collection::vec(("[a-c]", any_value()), 1..8),
        from in 0usize..8,
    ) {
        let jobs = values.iter().enumerate().map(|(number, (key, value))| {
            let variable = json!({"value": value, "scope": scope(key).as_str()});
            job(&format!("j{number}"), &json!({"variables": {key: variable}})).unwrap()
        });
        let jobs = jobs.collect::<Vec<_>>();
        let (end, _) = one_by_one(&state(start), &jobs);
        let suffix = &jobs[from.min(jobs.len())..];
        let (again, _) = one_by_one(&end, suffix);
        prop_assert!(same(variables(&again), variables(&end)));
    }

    #[test]
    fn a_merge_patch_leaves_no_null_of_its_own_and_is_idempotent(start in any_value(), patch in any_value()) {
        let mut once = start;
        merge::merge_patch(&mut once, &patch);
        let mut twice = once.clone();
        merge::merge_patch(&mut twice, &patch);
        prop_assert_eq!(&once, &twice);
        if let (Some(fields), Some(result)) = (patch.as_object(), once.as_object()) {
            for (name, value) in fields {
                prop_assert_eq!(value.is_null(), !result.contains_key(name), "{}", name);
            }
        } else if !patch.is_object() {
            prop_assert_eq!(&once, &patch);
        }
    }

    /// Against exact rational arithmetic: both numbers as integers over one power of ten.
    #[test]
    fn sums_are_exact_or_refused(a in -10i128.pow(14)..10i128.pow(14), b in -10i128.pow(14)..10i128.pow(14), p in 0u32..14, q in 0u32..14) {
        let places = p.max(q);
        let exact = a * 10i128.pow(places - p) + b * 10i128.pow(places - q);
        let (x, y) = (Decimal::from_i128_with_scale(a, p), Decimal::from_i128_with_scale(b, q));
        let is_integer = exact % 10i128.pow(places) == 0;
        let beyond = is_integer && (exact / 10i128.pow(places)).abs() > i128::from(numbers::MAX_SAFE_INTEGER);
        match numbers::add(x, y) {
            Ok(sum) => {
                prop_assert!(!beyond);
                let over = 10i128.pow(places - sum.scale());
                prop_assert_eq!(sum.mantissa() * over, exact, "{} + {}", x, y);
            }
            Err(error) => {
                let digits = |number: Decimal| number.normalize().trunc().abs().to_string().trim_start_matches('0').len();
                let long = digits(x).max(digits(y)) + x.normalize().scale().max(y.normalize().scale()) as usize > 28;
                prop_assert!(beyond || long, "{} + {}: {}", x, y, error);
            }
        }
    }

    #[test]
    fn increments_in_any_batches_end_at_the_exact_sum(tenths in proptest::collection::vec(-10i64.pow(9)..10i64.pow(9), 1..20), cut in 1usize..6) {
        let jobs = tenths.iter().enumerate().map(|(number, by)| {
            let by = Decimal::new(*by, 3).to_string();
            job(&format!("j{number}"), &json!({"variables": {"c": {"op": "increment", "by": by}}})).unwrap()
        });
        let jobs = jobs.collect::<Vec<_>>();
        let mut now = state(Variables::new());
        for batch in jobs.chunks(cut) {
            let plan = plan_on(&now, None, &batch.iter().map(first_time).collect::<Vec<_>>());
            now = after(&now, &plan);
        }
        let name = Name::new(Scope::Conversation, "c");
        let end = variables(&now).get(&name).map_or(Ok(Decimal::ZERO), |value| numbers::parse(&value.to_string())).unwrap();
        prop_assert_eq!(end * Decimal::from(1_000), Decimal::from(tenths.iter().sum::<i64>()));
    }
}
