//! The planner's idea of a conversation and the simulated platform's agree on random histories, byte for byte over the
//! PATCH. The two share no code: what the worker remembers of its own writes is not read back for up to 30 s, so a
//! difference would stay unseen that long.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::pipeline::memory::Memory;
use crate::pipeline::numbers::json_eq;
use crate::pipeline::plan::batch_len;
use crate::sandbox::state::{self as platform, Conversation};

/// What happens to a conversation.
#[derive(Debug, Clone)]
enum Event {
    /// A worker's batch.
    Batch(Vec<Job>),
    /// Somebody else writes; `null` removes.
    Foreign(Vec<(String, Value)>),
    /// Somebody else clears it.
    Reset,
    /// The worker forgets, as after a restart.
    Restart,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any_jobs(5).prop_map(Event::Batch),
        3 => proptest::collection::vec(("[a-c]", any_value()), 1..3).prop_map(Event::Foreign),
        1 => Just(Event::Reset),
        1 => Just(Event::Restart),
    ]
}

/// The body of a PATCH as the contract spells it, read by nobody's parser but this.
fn changes(body: &[u8]) -> Vec<platform::Change> {
    let body: Value = serde_json::from_slice(body).unwrap();
    let context = body["context"].as_object().unwrap();
    let change = |(key, entry): (&String, &Value)| platform::Change {
        key: key.as_str().into(),
        scope: platform::Scope::from_name(entry["scope"].as_str().unwrap()).unwrap(),
        value: Some(&entry["value"]).filter(|value| !value.is_null()).map(|value| Arc::new(value.clone())),
    };
    context.iter().map(change).collect()
}

/// What a GET shows, as the worker reads it.
fn read(conversation: &Conversation, memory: &Memory) -> Snapshot {
    let context: Map<String, Value> = platform::shown(&conversation.context, true);
    let body = json!({"contextVersion": conversation.version, "context": context}).to_string();
    let id = crate::job::ConversationId::new("conv_1", &BOT.conversation_id_pattern).unwrap();
    let observed = crate::target::parse_state(&id, body.into()).unwrap();
    Snapshot::read(observed.version, observed.variables, LEDGER, memory.known(), now())
}

/// The platform's variables in the planner's types.
fn variables(conversation: &Conversation) -> Variables {
    let context = conversation.context.iter().filter(|((key, _), _)| &**key != LEDGER);
    let name = |key: &Arc<str>, scope: platform::Scope| Name::new(Scope::parse(scope.name()).unwrap(), &**key);
    context.map(|((key, scope), value)| (name(key, *scope), Value::clone(value))).collect()
}

/// Carries out a batch as a worker does: plan on what is remembered, PATCH if the version holds, else read and plan
/// anew. Returns after how many conflicts.
fn carry_out(conversation: &mut Conversation, memory: &mut Memory, jobs: &[Job]) -> usize {
    let mut conflicts = 0;
    let mut rest = jobs;
    let mut base: Option<Snapshot> = None;
    while !rest.is_empty() {
        let snapshot = memory.recent(true, now()).cloned().unwrap_or_else(|| {
            let mut snapshot = read(conversation, memory);
            memory.remember(&mut snapshot, now());
            snapshot
        });
        let some = &rest[..batch_len(rest)];
        let candidates = some.iter().map(first_time).collect::<Vec<_>>();
        let base_variables = base.as_ref().and_then(Snapshot::variables).map(|variables| &**variables);
        let ground = Ground {
            bot: &BOT,
            snapshot: &snapshot,
            base: base_variables,
            backfill: memory.unrecorded(),
            evicted: memory.evicted(),
            now: now(),
        };
        let plan = plan(ground, &candidates, MAX_BATCH, None);
        match &plan.body {
            None if plan.holds(&snapshot) => {}
            Some(body) if snapshot.version == Some(Version::new(conversation.version.to_string())) => {
                conversation.merge(&changes(body));
                let marks = candidates.iter().map(|candidate| candidate.mark.clone()).collect::<Vec<_>>();
                let version = Version::new(conversation.version.to_string());
                memory.advance(&plan, &snapshot, Some(&version), &marks, LEDGER, now());
            }
            _ => {
                conflicts += usize::from(plan.body.is_some());
                memory.forget_snapshot();
                base = base.or(Some(snapshot));
                continue;
            }
        }
        rest = &rest[plan.fates.len()..];
    }
    conflicts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn prediction_and_platform_agree(start in any_variables(), events in proptest::collection::vec(any_event(), 1..12)) {
        let mut conversation = Conversation::new();
        let seed = start.into_iter().map(|(name, value)| platform::Change {
            key: name.key.as_str().into(),
            scope: platform::Scope::from_name(name.scope.as_str()).unwrap(),
            value: Some(Arc::new(value)),
        });
        conversation.merge(&seed.collect::<Vec<_>>());
        let mut memory = Memory::default();
        let mut overtaken = false;
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Batch(mut jobs) => {
                    for (at, job) in jobs.iter_mut().enumerate() {
                        job.id = crate::job::JobId::new(&format!("e{number}-{at}")).unwrap();
                    }
                    let conflicts = carry_out(&mut conversation, &mut memory, &jobs);
                    prop_assert!(conflicts <= usize::from(overtaken), "a conflict that nobody caused");
                    overtaken = false;
                }
                Event::Foreign(values) => {
                    let changes = values.into_iter().map(|(key, value)| platform::Change {
                        scope: platform::Scope::from_name(scope(&key).as_str()).unwrap(),
                        key: key.into(),
                        value: (!value.is_null()).then(|| Arc::new(value)),
                    });
                    conversation.merge(&changes.collect::<Vec<_>>());
                    overtaken = true;
                }
                Event::Reset => {
                    let version = conversation.version + 1;
                    conversation.replace(version, Arc::default());
                    overtaken = true;
                }
                Event::Restart => memory = Memory::default(),
            }
            if let Some(known) = memory.recent(true, now()).filter(|_| !overtaken) {
                let (known, there) = (known.variables().unwrap(), variables(&conversation));
                prop_assert_eq!(known.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
                for (name, value) in &there {
                    prop_assert!(json_eq(value, &known[name]), "{}: {} is remembered as {}", name, value, known[name]);
                }
                let read = read(&conversation, &memory);
                prop_assert_eq!(memory.recent(true, now()).and_then(Snapshot::ledger), read.ledger());
            }
        }
    }
}
