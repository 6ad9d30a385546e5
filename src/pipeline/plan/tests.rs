use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::Config;
use crate::job::Version;
use crate::pipeline::snapshot::Contents;
use crate::pipeline::validate::{Source, validate};

fn bot(more: &str) -> Bot {
    let settings = format!(
        "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n{more}\n"
    );
    Config::parse(&settings, []).unwrap().bots.remove("default").unwrap()
}

/// The settings are read once: property tests ask for them thousands of times.
static BOT: LazyLock<Bot> = LazyLock::new(|| bot(""));

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

fn job(id: &str, more: Value) -> Job {
    let mut body = json!({"job_id": id, "conversation_id": "conv_1"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let body = body.to_string();
    let source = Source {
        body: body.as_bytes(),
        message_id: None,
        content_encoding: None,
        published: None,
        first_seen: now(),
        now: now(),
    };
    validate(&BOT, Duration::from_secs(900), &source).unwrap()
}

fn write(id: &str, key: &str, variable: Value) -> Job {
    job(id, json!({"variables": {key: variable}}))
}

fn increment(id: &str, by: i64) -> Job {
    write(id, "n", json!({"op": "increment", "by": by}))
}

fn candidate(job: &Job) -> Candidate<'_> {
    Candidate {
        job,
        mark: Mark::of_job("default", &job.conversation, &job.id),
        generation: 0,
        suspect: false,
        uncertain: false,
        published: None,
        tried: None,
        tried_without_entry: false,
        before: None,
    }
}

fn suspect(job: &Job) -> Candidate<'_> {
    Candidate { suspect: true, uncertain: true, ..candidate(job) }
}

fn state(version: &str, variables: Value, ledger: &Ledger) -> Snapshot {
    let mut all: Variables = variables
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (Name::new(Scope::Conversation, key), value.clone()))
        .collect();
    if !ledger.is_empty() {
        all.insert(Name::new(Scope::Conversation, "_injection_ledger"), ledger.clone().to_value().0);
    }
    Snapshot::read(Some(Version::new(version)), all, "_injection_ledger", None, now())
}

fn plan_on(snapshot: &Snapshot, base: Option<&Snapshot>, batch: &[Candidate<'_>]) -> Plan {
    let base = base.and_then(Snapshot::variables).map(|variables| &**variables);
    let ground = Ground { bot: &BOT, snapshot, base, backfill: &[], evicted: &Evicted::default(), now: now() };
    plan(ground, batch, MAX_BATCH, None)
}

/// The conversation after the plan's PATCH.
fn after(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let mut all = (**snapshot.variables().unwrap()).clone();
    if let Contents::Full { ledger: Ok(ledger), .. } = &snapshot.contents
        && !ledger.is_empty()
    {
        all.insert(Name::new(Scope::Conversation, "_injection_ledger"), ledger.clone().to_value().0);
    }
    for change in &plan.changes {
        match &change.value {
            Some(value) => all.insert(change.name.clone(), value.clone()),
            None => all.remove(&change.name),
        };
    }
    let version = snapshot.version.as_ref().unwrap().as_str().parse::<u64>().unwrap();
    let version = version + u64::from(plan.body.is_some());
    Snapshot::read(Some(Version::new(version.to_string())), all, "_injection_ledger", None, now())
}

fn code(fate: &Fate) -> Reason {
    match fate {
        Fate::Refused(rejection) | Fate::Unknown(rejection) | Fate::RefusedBefore(rejection) => rejection.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn applied(fate: &Fate) -> &Applied {
    match fate {
        Fate::Applies(applied) => applied,
        other => panic!("not applied: {other:?}"),
    }
}

#[test]
fn a_batch_is_one_request_with_one_entry_a_job() {
    let snapshot = state("41", json!({"n": 1}), &Ledger::default());
    let jobs = [increment("a", 2), increment("b", 3), write("c", "t", json!({"template": "n is {{n}}"}))];
    let plan = plan_on(&snapshot, None, &jobs.iter().map(candidate).collect::<Vec<_>>());
    let after = after(&snapshot, &plan);
    assert_eq!(after.variables().unwrap()[&Name::new(Scope::Conversation, "n")], json!(6));
    assert_eq!(after.variables().unwrap()[&Name::new(Scope::Conversation, "t")], json!("n is 6"));
    assert_eq!(plan.ledger.unwrap().len(), 3);
    let again = plan_on(&after, None, &jobs.iter().map(suspect).collect::<Vec<_>>());
    assert!(again.fates.iter().all(|fate| *fate == Fate::Repeat) && again.body.is_none());
}

#[test]
fn a_job_that_is_twice_in_a_batch_takes_effect_once() {
    let snapshot = state("1", json!({"text": "x"}), &Ledger::default());
    let (good, bad) = (increment("a", 1), write("b", "text", json!({"op": "increment"})));
    let batch = [candidate(&good), candidate(&good), candidate(&bad), candidate(&bad)];
    let plan = plan_on(&snapshot, None, &batch);
    assert_eq!(after(&snapshot, &plan).variables().unwrap()[&Name::new(Scope::Conversation, "n")], json!(1));
    assert_eq!(plan.fates[1], Fate::Repeat);
    assert!(matches!(&plan.fates[3], Fate::RefusedBefore(rejection) if rejection.code == Reason::TypeMismatch));
}

#[test]
fn plain_sets_need_no_ledger_and_no_state() {
    let snapshot =
        Snapshot { version: Some(Version::new("7")), contents: Contents::VersionOnly, fresh: false, reset: None };
    let jobs = [write("a", "k", json!({"value": 1})), write("b", "gone", json!({"value": null}))];
    let batch = jobs.iter().map(candidate).collect::<Vec<_>>();
    assert!(!needs_state(&bot(""), &batch));
    let plan = plan_on(&snapshot, None, &batch);
    assert_eq!(plan.changes.len(), 2);
    assert!(plan.ledger.is_none());
    assert!(needs_state(&bot("ledger = \"always\""), &batch));
    assert!(needs_state(&bot(""), &[suspect(&jobs[0])]));
}

#[test]
fn a_job_that_cannot_be_folded_ends_alone_and_leaves_nothing() {
    let snapshot = state("1", json!({"n": 1, "text": "x"}), &Ledger::default());
    let bad = job("bad", json!({"variables": {"n": {"op": "increment", "by": 100}, "text": {"op": "increment"}}}));
    let jobs = [increment("a", 1), bad, increment("c", 1)];
    let plan = plan_on(&snapshot, None, &jobs.iter().map(candidate).collect::<Vec<_>>());
    assert_eq!(code(&plan.fates[1]), Reason::TypeMismatch);
    assert_eq!(after(&snapshot, &plan).variables().unwrap()[&Name::new(Scope::Conversation, "n")], json!(3));
}

#[test]
fn conflicts_are_judged_key_by_key() {
    let base = state("1", json!({"mine": 1, "theirs": 1, "n": 1}), &Ledger::default());
    let now = state("2", json!({"mine": 1, "theirs": 2, "n": 5}), &Ledger::default());
    let variables = json!({"mine": {"value": 9}, "theirs": {"value": 9}, "n": {"op": "increment"}});
    let with = |policy: &str| {
        let job = job("j", json!({"variables": variables, "on_conflict": policy}));
        let plan = plan_on(&now, Some(&base), &[candidate(&job)]);
        (plan.fates[0].clone(), plan)
    };
    let results = |fate: &Fate| {
        let keys = &applied(fate).keys;
        keys.iter().map(|key| (key.name.key.clone(), key.result)).collect::<HashMap<_, _>>()
    };
    let (fate, _) = with("overwrite");
    assert!(results(&fate).values().all(|result| *result == KeyResult::Written));
    let (fate, plan) = with("keep_theirs");
    assert_eq!(results(&fate)["theirs"], KeyResult::KeptTheirs);
    assert_eq!(results(&fate)["mine"], KeyResult::Written);
    let after = after(&now, &plan);
    let value = |key: &str| after.variables().unwrap()[&Name::new(Scope::Conversation, key)].clone();
    assert_eq!((value("theirs"), value("mine"), value("n")), (json!(2), json!(9), json!(6)));
    let (fate, plan) = with("fail");
    assert_eq!(code(&fate), Reason::Conflict);
    assert_eq!(plan.changes.len(), 1, "nothing but the tombstone");
}

#[test]
fn what_is_already_so_is_no_conflict_and_no_request() {
    let base = state("1", json!({"k": 1}), &Ledger::default());
    let now = state("2", json!({"k": 2}), &Ledger::default());
    let job = job("j", json!({"variables": {"k": {"value": 2.0}}, "on_conflict": "fail"}));
    let plan = plan_on(&now, Some(&base), &[candidate(&job)]);
    assert_eq!(applied(&plan.fates[0]).keys[0].result, KeyResult::Unchanged);
    assert!(plan.holds(&now));
    assert!(!plan.holds(&Snapshot { fresh: false, ..now }), "an older snapshot proves nothing");
}

#[test]
fn a_set_never_replaces_one_with_a_higher_sequence() {
    let snapshot = state("1", json!({}), &Ledger::default());
    let set = |id: &str, sequence: u64, value: i32| {
        job(id, json!({"variables": {"k": {"value": value}}, "sequence": sequence}))
    };
    let jobs = [set("a", 5, 50), set("b", 4, 40)];
    let plan = plan_on(&snapshot, None, &jobs.iter().map(candidate).collect::<Vec<_>>());
    assert_eq!(applied(&plan.fates[1]).keys[0].result, KeyResult::Superseded);
    let after = after(&snapshot, &plan);
    let late = set("c", 3, 30);
    let plan = plan_on(&after, None, &[candidate(&late)]);
    assert_eq!(applied(&plan.fates[0]).keys[0].result, KeyResult::Superseded);
    assert!(plan.body.is_none());
}

#[test]
fn a_base_version_is_the_producers_if_match() {
    let snapshot = state("41", json!({}), &Ledger::default());
    let with = |version: Value| {
        let job = job("j", json!({"variables": {"k": {"value": 1}}, "base_version": version}));
        plan_on(&snapshot, None, &[candidate(&job)]).fates[0].clone()
    };
    assert!(matches!(with(json!(41)), Fate::Applies(_)) && matches!(with(json!("\"41\"")), Fate::Applies(_)));
    assert_eq!(code(&with(json!(40))), Reason::PreconditionFailed);
}

#[test]
fn a_refusal_on_a_redelivery_leaves_a_tombstone_for_its_generation() {
    let snapshot = state("1", json!({"n": "text"}), &Ledger::default());
    let job = increment("a", 1);
    let plan = plan_on(&snapshot, None, &[suspect(&job)]);
    assert_eq!(code(&plan.fates[0]), Reason::TypeMismatch);
    let after = after(&snapshot, &plan);
    assert_eq!(after.version, Some(Version::new("2")), "the tombstone moves the version, so a late copy must fail");
    let repaired = state("3", json!({"n": 1}), plan.ledger.as_ref().unwrap());
    let again = plan_on(&repaired, None, &[suspect(&job)]);
    assert!(matches!(&again.fates[0], Fate::RefusedBefore(rejection) if rejection.code == Reason::TypeMismatch));
    let replayed = plan_on(&repaired, None, &[Candidate { generation: 1, ..suspect(&job) }]);
    assert!(matches!(replayed.fates[0], Fate::Applies(_)));
}

#[test]
fn a_first_refusal_by_the_state_lasts_when_the_state_is_another() {
    let refuses = state("1", json!({"n": "text"}), &Ledger::default());
    let job = increment("a", 1);
    let plan = plan_on(&refuses, None, &[candidate(&job)]);
    assert_eq!((code(&plan.fates[0]), plan.tombstones), (Reason::TypeMismatch, 1));
    assert!(!plan.holds(&refuses), "it is told once it is written");
    let takes = state("3", json!({"n": 1}), plan.ledger.as_ref().unwrap());
    let again = plan_on(&takes, None, &[suspect(&job)]);
    assert!(matches!(&again.fates[0], Fate::RefusedBefore(rejection) if rejection.code == Reason::TypeMismatch));
    let mut late = increment("late", 1);
    late.deadline = "2026-11-23T09:00:00Z".parse().unwrap();
    assert!(plan_on(&takes, None, &[candidate(&late)]).body.is_none(), "what time refuses it refuses for ever");
}

#[test]
fn a_plain_job_that_may_be_under_way_elsewhere_gets_an_entry() {
    let snapshot = state("1", json!({"k": 1}), &Ledger::default());
    for value in [1, 2] {
        let job = write("a", "k", json!({"value": value}));
        let first = plan_on(&snapshot, None, &[candidate(&job)]);
        assert!(first.ledger.is_none());
        let again = after(&snapshot, &plan_on(&snapshot, None, &[suspect(&job)]));
        let overtaken = plan_on(&again, Some(&snapshot), &[candidate(&job)]);
        assert_eq!(overtaken.fates[0], Fate::Repeat, "who held it first and was overtaken writes nothing");
    }
}

#[test]
fn a_refusal_by_the_target_stays_one_where_its_tombstone_does_not_fit() {
    let bot = bot("max_payload_bytes = 1024");
    let mut ledger = Ledger::default();
    for number in 0..100 {
        ledger.add_applied(JobIdOf(number).mark(), &Version::new("1"), now());
    }
    let snapshot = state("1", json!({}), &ledger);
    let (job, evicted) = (increment("a", 1), Evicted::default());
    let ground = Ground { bot: &bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &evicted, now: now() };
    let refusal = Rejection::new(Reason::RefusedByTarget, "");
    let plan = plan(ground, &[suspect(&job)], MAX_BATCH, Some(refusal));
    assert_eq!((code(&plan.fates[0]), plan.body), (Reason::RefusedByTarget, None));
}

#[test]
fn a_plain_job_is_not_too_long_because_it_came_again() {
    let bot = bot("max_payload_bytes = 3000");
    let mut ledger = Ledger::default();
    for number in 0..100 {
        ledger.add_applied(JobIdOf(number).mark(), &Version::new("1"), now());
    }
    let snapshot = state("1", json!({}), &ledger);
    let job = write("a", "k", json!({"value": "x".repeat(2_500)}));
    let evicted = Evicted::default();
    let ground = Ground { bot: &bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &evicted, now: now() };
    let plan = plan(ground, &[suspect(&job)], MAX_BATCH, None);
    assert!(matches!(&plan.fates[0], Fate::Applies(applied) if !applied.recorded));
}

#[test]
fn a_plain_job_that_may_have_been_applied_is_never_called_refused() {
    let snapshot = state("1", json!({}), &Ledger::default());
    let mut late = write("a", "k", json!({"value": 1}));
    late.deadline = "2026-11-23T09:00:00Z".parse().unwrap();
    assert_eq!(code(&plan_on(&snapshot, None, &[suspect(&late)]).fates[0]), Reason::AmbiguousWrite);
    assert_eq!(code(&plan_on(&snapshot, None, &[candidate(&late)]).fates[0]), Reason::Expired);
}

#[test]
fn below_the_low_water_mark_absence_proves_nothing() {
    let mut ledger = Ledger::default();
    for number in 0..140 {
        let id = JobIdOf(number).mark();
        ledger.add_applied(id, &Version::new("1"), now());
    }
    let _ = ledger.to_value();
    let low = ledger.low_water();
    let snapshot = state("9", json!({}), &ledger);
    let job = increment("late", 1);
    let second = Duration::from_secs(1);
    let bot = bot("");
    let fate = |candidate: Candidate<'_>, evicted: &Evicted| {
        let ground = Ground { bot: &bot, snapshot: &snapshot, base: None, backfill: &[], evicted, now: now() };
        plan(ground, &[candidate], MAX_BATCH, None).fates[0].clone()
    };
    let nothing = Evicted::beginning(None);
    assert!(
        matches!(fate(candidate(&job), &nothing), Fate::Applies(_)),
        "a first delivery without a time stamp is new"
    );
    assert_eq!(code(&fate(suspect(&job), &nothing)), Reason::LedgerOverrun);
    let published = |at| Candidate { published: Some(at), ..candidate(&job) };
    assert_eq!(code(&fate(published(now()), &nothing)), Reason::LedgerOverrun);
    assert!(matches!(fate(published(now() + second), &nothing), Fate::Applies(_)));
    let tried = Candidate { tried: Some(now() + second), ..candidate(&job) };
    assert!(matches!(fate(tried, &nothing), Fate::Applies(_)), "a try of ours would be in the ledger");

    let mut complete = Evicted::beginning(None);
    complete.extend(None, low, &[]);
    assert!(matches!(fate(suspect(&job), &complete), Fate::Applies(_)), "absent from all that was ever let go");
    complete.extend(low, low, &[suspect(&job).mark]);
    assert_eq!(fate(suspect(&job), &complete), Fate::Repeat);
    let late = Evicted::beginning(low);
    assert_eq!(code(&fate(suspect(&job), &late)), Reason::LedgerOverrun);
    let fresh = Candidate { published: Some(now() + second), ..suspect(&job) };
    assert!(matches!(fate(fresh, &late), Fate::Applies(_)), "nothing was let go since it was published");
}

struct JobIdOf(usize);

impl JobIdOf {
    fn mark(&self) -> Mark {
        let job = increment(&format!("job-{}", self.0), 1);
        Mark::of_job("default", &job.conversation, &job.id)
    }
}

#[test]
fn after_a_reset_only_first_deliveries_go_on() {
    let snapshot = Snapshot { reset: Some(now()), ..state("1", json!({}), &Ledger::default()) };
    let job = increment("a", 1);
    assert_eq!(code(&plan_on(&snapshot, None, &[suspect(&job)]).fates[0]), Reason::ConversationReset);
    let later = Candidate { published: Some(now() + Duration::from_secs(1)), ..suspect(&job) };
    assert!(matches!(plan_on(&snapshot, None, &[later]).fates[0], Fate::Applies(_)));
    assert!(matches!(plan_on(&snapshot, None, &[candidate(&job)]).fates[0], Fate::Applies(_)));
}

#[test]
fn an_unreadable_ledger_stops_everything() {
    let mut all = Variables::new();
    all.insert(Name::new(Scope::Conversation, "_injection_ledger"), json!({"v": 99}));
    let snapshot = Snapshot::read(Some(Version::new("1")), all, "_injection_ledger", None, now());
    let job = increment("a", 1);
    let plan = plan_on(&snapshot, None, &[candidate(&job)]);
    assert_eq!(code(&plan.fates[0]), Reason::LedgerUnreadable);
    assert!(plan.body.is_none());
}

#[test]
fn jobs_without_an_entry_get_theirs_with_the_next_one_that_has() {
    let snapshot = state("5", json!({}), &Ledger::default());
    let earlier = write("plain", "n", json!({"value": 1}));
    let backfill = [candidate(&earlier).mark];
    let job = increment("a", 1);
    let bot = bot("");
    let ground = Ground {
        bot: &bot,
        snapshot: &snapshot,
        base: None,
        backfill: &backfill,
        evicted: &Evicted::default(),
        now: now(),
    };
    let plan = plan(ground, &[candidate(&job)], MAX_BATCH, None);
    let after = after(&snapshot, &plan);
    assert_eq!(plan_on(&after, None, &[suspect(&earlier)]).fates[0], Fate::Repeat);
}

#[test]
fn a_batch_ends_where_it_must() {
    let plain = |id: &str, scope: &str| write(id, "k", json!({"value": 1, "scope": scope}));
    let alone = job("alone", json!({"variables": {"z": {"value": 1}}, "coalesce": false}));
    let len = |jobs: &[Job]| batch_len(jobs);
    assert_eq!(len(&[plain("a", "user"), plain("b", "user"), plain("c", "session")]), 2);
    assert_eq!(len(&[plain("a", "user"), alone.clone(), plain("c", "user")]), 1);
    assert_eq!(len(&[alone, plain("c", "user")]), 1);
    assert_eq!(len(&vec![plain("a", "user"); 100]), MAX_BATCH);
    assert_eq!(len(&[]), 0);
}

#[test]
fn a_body_over_the_limit_is_split_and_a_single_job_refused() {
    let bot = bot("max_payload_bytes = 3000");
    let snapshot = state("1", json!({}), &Ledger::default());
    let jobs = (0..4)
        .map(|n| write(&format!("j{n}"), &format!("k{n}"), json!({"value": "x".repeat(1_000)})))
        .collect::<Vec<_>>();
    let batch = jobs.iter().map(candidate).collect::<Vec<_>>();
    let ground =
        Ground { bot: &bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &Evicted::default(), now: now() };
    let split = plan(ground, &batch, MAX_BATCH, None);
    assert_eq!(split.fates.len(), 2);
    assert!(split.body.unwrap().len() <= 3_000);
    let large = job("l", json!({"variables": {"a": {"value": "x".repeat(2_000)}, "b": {"value": "x".repeat(900)}}}));
    let refused = plan(ground, &[candidate(&large)], MAX_BATCH, None);
    assert_eq!(code(&refused.fates[0]), Reason::PayloadTooLarge);
    assert!(refused.body.is_none());
}

fn any_job(number: usize) -> impl Strategy<Value = Value> {
    let key = prop_oneof![Just("a"), Just("b"), Just("c")];
    let variable = prop_oneof![
        (-5i64..5).prop_map(|value| json!({"value": value})),
        (-5i64..5).prop_map(|by| json!({"op": "increment", "by": by, "max": 8})),
        (0i64..3).prop_map(|item| json!({"op": "append", "value": item, "max_items": 3})),
        (0i64..3).prop_map(|item| json!({"op": "add_to_set", "value": item})),
        (0i64..3).prop_map(|item| json!({"op": "remove", "value": item})),
        Just(json!({"op": "delete"})),
        (0i64..9).prop_map(|value| json!({"op": "max", "value": value})),
        (0i64..9).prop_map(|value| json!({"op": "set_if_absent", "value": value})),
        Just(json!({"template": "{{a}}-{{b}}"})),
        Just(json!({"op": "compare_set", "expected": 3, "value": 4})),
    ];
    proptest::collection::btree_map(key, variable, 1..3)
        .prop_map(move |variables| json!({"job_id": format!("job-{number}"), "variables": variables}))
}

proptest! {
    /// Folding a batch is applying its jobs one by one; doing it all again changes nothing.
    #[test]
    fn a_batch_is_its_jobs_one_by_one(jobs in (0usize..8).prop_flat_map(|n| (0..n).map(any_job).collect::<Vec<_>>()), start in 0i64..4) {
        let jobs = jobs.into_iter().map(|body| {
            let id = body["job_id"].as_str().unwrap().to_owned();
            job(&id, body)
        }).collect::<Vec<_>>();
        let begin = state("1", json!({"a": start}), &Ledger::default());
        let together = plan_on(&begin, None, &jobs.iter().map(candidate).collect::<Vec<_>>());
        prop_assert_eq!(together.fates.len(), jobs.len());
        let folded = after(&begin, &together);

        let mut one_by_one = begin.clone();
        for (job, fate) in jobs.iter().zip(&together.fates) {
            let single = plan_on(&one_by_one, None, &[candidate(job)]);
            prop_assert_eq!(std::mem::discriminant(&single.fates[0]), std::mem::discriminant(fate));
            one_by_one = after(&one_by_one, &single);
        }
        prop_assert_eq!(one_by_one.variables(), folded.variables());

        let repeated = plan_on(&folded, None, &jobs.iter().map(candidate).collect::<Vec<_>>());
        for (fate, before) in repeated.fates.iter().zip(&together.fates) {
            if matches!(before, Fate::Applies(applied) if applied.recorded) {
                prop_assert_eq!(fate, &Fate::Repeat);
            }
        }
    }
}

/// A worker applied `a` and `b` without entries, was overtaken without knowing it, and left its verdicts late.
#[test]
fn a_late_verdict_is_believed_until_the_job_before_was_done_again() {
    let (a, b) = (write("a", "k", json!({"value": "a"})), write("b", "k", json!({"value": "b"})));
    let mark = |job: &Job| suspect(job).mark;
    let of_a = Place { base: Some(Version::new("6")), follows: None };
    let of_b = Place { base: Some(Version::new("6")), follows: Some(mark(&a)) };
    let again = |job, before| Candidate { before: Some(before), ..suspect(job) };

    // Nobody has done them again: neither is written, and both get their entries, on the version that they were applied on.
    let untouched = state("7", json!({"k": "b"}), &Ledger::default());
    let plan = plan_on(&untouched, None, &[again(&a, &of_a), again(&b, &of_b)]);
    assert_eq!(plan.fates, [Fate::Repeat, Fate::Repeat]);
    assert_eq!(plan.changes.iter().map(|change| change.name.key.as_str()).collect::<Vec<_>>(), ["_injection_ledger"]);
    let confirmed = plan.ledger.unwrap();
    assert!(!of_b.is_overtaken(&confirmed), "an entry of what was believed is not one of what was done again");

    // `a` was done again: so is `b`, and whoever remembers `a` by its own place finds it in the ledger.
    let mut ledger = Ledger::default();
    ledger.add_applied(mark(&a), &Version::new("7"), now());
    let redone = state("8", json!({"k": "a"}), &ledger);
    let plan = plan_on(&redone, None, &[again(&a, &of_a), again(&b, &of_b)]);
    assert!(matches!(plan.fates[..], [Fate::Repeat, Fate::Applies(_)]), "{:?}", plan.fates);

    // `a` is done again in the same request.
    let plan = plan_on(&untouched, None, &[suspect(&a), again(&b, &of_b)]);
    assert!(matches!(plan.fates[..], [Fate::Applies(_), Fate::Applies(_)]), "{:?}", plan.fates);

    // A late repeat of `a` behind a `b` that is done again was applied before, and stays so.
    let plan = plan_on(&untouched, None, &[suspect(&b), again(&a, &of_a)]);
    assert!(matches!(plan.fates[..], [Fate::Applies(_), Fate::Repeat]), "{:?}", plan.fates);
}

#[test]
fn what_was_done_again_elsewhere_ends_what_is_named_afterwards() {
    let (a, b) = (write("a", "k", json!({"value": "a"})), write("b", "k", json!({"value": "b"})));
    let marks = [suspect(&a).mark, suspect(&b).mark];
    let mut ledger = Ledger::default();
    ledger.add_applied(marks[0].clone(), &Version::new("7"), now());
    let snapshot = state("8", json!({"k": "a"}), &ledger);
    let evicted = Evicted::default();
    let ground = Ground { bot: &BOT, snapshot: &snapshot, base: None, backfill: &marks, evicted: &evicted, now: now() };
    let counts = increment("n", 1);
    let written = plan(ground, &[candidate(&counts)], MAX_BATCH, None).ledger.unwrap();
    assert_eq!(written.find(&marks[1], 0), None, "its successor does it again, after the one before it");
}
