//! The verdict of the demo: a pure function over what was published, what the outcomes claim, what the target holds
//! and tells, and what the webhook receiver got.
//!
//! It believes nobody: it shares no code with the pipeline, computes from the published jobs and the outcomes what
//! the target must hold, and compares. Its own tests hand it doctored evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rust_decimal::Decimal;
use serde_json::Value;

use super::input::{Effect, Job, Message, decimal};
use super::receiver::Delivery;
use crate::sandbox::{Entry, Event, Writer, fold};

/// What the judgement rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Every message, in the order of publication; a replayed one behind them.
    pub published: Vec<Message>,
    /// Every outcome event, as a subscriber got it.
    pub outcomes: Vec<Value>,
    /// The target's history from its beginning.
    pub history: Vec<Entry>,
    /// The target's conversations at the end: `{key: {value, scope}}`, an array of such where a key has several scopes.
    pub state: BTreeMap<String, Value>,
    /// Every try of a webhook.
    pub deliveries: Vec<Delivery>,
    /// The keys of the second writer, of the scope `conversation`.
    pub second_writer_keys: Vec<String>,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Jobs (and generations) that the outcomes call applied.
    pub applied: usize,
    /// Refusals by reason code, each event once.
    pub refused: BTreeMap<String, usize>,
    /// Events that were told more than once.
    pub repeats: usize,
    /// Effects that are claimed and not there.
    pub lost: usize,
    /// Effects that are there more often than claimed.
    pub doubled: usize,
    /// Everything that is wrong, lost and doubled effects included.
    pub faults: Vec<String>,
}

/// Where a variable lives: conversation, scope, key.
type Place = (String, String, String);

/// What a variable must hold.
#[derive(Debug, Clone)]
enum Held {
    Number(Decimal),
    List(Vec<Value>),
    Plain(Value),
    /// A text that the check does not compute.
    Anything,
}

/// Judges.
#[must_use]
pub fn judge(evidence: &Evidence) -> Judgement {
    let mut judgement = Judgement::default();
    let events = one_event_each(evidence, &mut judgement);
    refusals(evidence, &events, &mut judgement);
    for (place, held) in claims(evidence, &events) {
        compare(&place, &held, &value(evidence, &place), &mut judgement);
    }
    history(evidence, &mut judgement);
    second_writer(evidence, &mut judgement);
    deliveries(evidence, &mut judgement);
    judgement
}

type Told<'a> = BTreeMap<(String, u64), &'a Value>;

/// Every job and generation has exactly one event, however often it was told.
fn one_event_each<'a>(evidence: &'a Evidence, judgement: &mut Judgement) -> Told<'a> {
    let mut ids: BTreeMap<(String, u64), BTreeSet<&str>> = BTreeMap::new();
    let mut verdicts: BTreeMap<&str, &str> = BTreeMap::new();
    let mut told = Told::new();
    for event in &evidence.outcomes {
        let (id, verdict) = (text(&event["id"]), text(&event["data"]["verdict"]));
        match verdicts.insert(id, verdict) {
            Some(before) if before != verdict => {
                judgement.faults.push(format!("event {id} was told as {before} and as {verdict}"));
            }
            Some(_) => judgement.repeats += 1,
            None => {}
        }
        let Some(job) = event["data"]["job_id"].as_str() else { continue };
        let generation = event["data"]["replay_generation"].as_u64().unwrap_or(0);
        ids.entry((job.to_owned(), generation)).or_default().insert(id);
        // The first telling says what happened to each key; a repetition may not know it any more.
        let first = told.entry((job.to_owned(), generation)).or_insert(event);
        if is_repeat(first) && !is_repeat(event) {
            *first = event;
        }
    }
    let mut expected = BTreeSet::new();
    for message in &evidence.published {
        let Some(job) = &message.job else { continue };
        let name = (job.id.clone(), job.generation);
        if !expected.insert(name.clone()) {
            continue;
        }
        match ids.get(&name).map(BTreeSet::len) {
            None => judgement.faults.push(format!("{}: no outcome", show(job))),
            Some(1) => {}
            Some(count) => judgement.faults.push(format!("{}: {count} different outcomes", show(job))),
        }
        let event = told.get(&name);
        let verdict = event.map(|event| text(&event["data"]["verdict"])).unwrap_or_default();
        let code = event.map(|event| text(&event["data"]["reason"]["code"])).unwrap_or_default();
        match &message.refused_with {
            _ if event.is_none() => {}
            None if verdict == "applied" => judgement.applied += 1,
            Some(reason) if verdict == "not_applied" && reason == code => {}
            _ => judgement.faults.push(format!("{}: ended as {verdict} {code}", show(job))),
        }
    }
    told
}

/// What is wrong in itself was refused, each body with its code; nothing else was.
fn refusals(evidence: &Evidence, told: &Told<'_>, judgement: &mut Judgement) {
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &evidence.published {
        if let Some(reason) = &message.refused_with {
            *expected.entry(reason).or_default() += 1;
        }
    }
    let mut seen = BTreeSet::new();
    for event in &evidence.outcomes {
        if text(&event["data"]["verdict"]) != "applied" && seen.insert(text(&event["id"])) {
            *judgement.refused.entry(text(&event["data"]["reason"]["code"]).to_owned()).or_default() += 1;
        }
    }
    let codes: BTreeSet<&str> = expected.keys().copied().chain(judgement.refused.keys().map(String::as_str)).collect();
    let mut faults = Vec::new();
    for code in codes {
        let (wanted, got) = (expected.get(code).unwrap_or(&0), judgement.refused.get(code).unwrap_or(&0));
        if wanted != got {
            faults.push(format!("{code}: {wanted} refusals expected, {got} told"));
        }
    }
    let known: BTreeSet<&str> = evidence.published.iter().filter_map(|m| Some(m.job.as_ref()?.id.as_str())).collect();
    for ((job, _), event) in told {
        if text(&event["data"]["verdict"]) == "applied" && !known.contains(job.as_str()) {
            faults.push(format!("{job}: applied, but nobody published it"));
        }
    }
    judgement.faults.extend(faults);
}

/// What the target must hold if the outcomes are true.
fn claims(evidence: &Evidence, told: &Told<'_>) -> BTreeMap<Place, Held> {
    let mut claims: BTreeMap<Place, Held> = BTreeMap::new();
    let mut counted = BTreeSet::new();
    for job in evidence.published.iter().filter_map(|message| message.job.as_ref()) {
        let name = (job.id.clone(), job.generation);
        let Some(event) = told.get(&name) else { continue };
        if text(&event["data"]["verdict"]) != "applied" || !counted.insert(name) {
            continue;
        }
        for variable in &job.variables {
            let claimed = match text(&event["data"]["keys"][&variable.key]["result"]) {
                "written" => true,
                // What was to be set was there already.
                "unchanged" => matches!(variable.effect, Effect::Set(_)),
                // Where the first telling was lost with a killed worker, everything that was asked for is claimed.
                _ => is_repeat(event),
            };
            if !claimed {
                continue;
            }
            let place = (job.conversation.clone(), variable.scope.clone(), variable.key.clone());
            let before = claims.remove(&place);
            claims.insert(place, after(before, &variable.effect));
        }
    }
    claims
}

fn after(before: Option<Held>, effect: &Effect) -> Held {
    match (effect, before) {
        (Effect::Set(value), _) => Held::Plain(value.clone()),
        (Effect::SetIfAbsent(value), before) => before.unwrap_or_else(|| Held::Plain(value.clone())),
        (Effect::Rendered, _) => Held::Anything,
        (Effect::Add(by), Some(Held::Number(sum))) => Held::Number(sum + by),
        (Effect::Add(by), Some(Held::Plain(value))) => Held::Number(decimal(&value).unwrap_or_default() + by),
        (Effect::Add(by), _) => Held::Number(*by),
        (Effect::Append(value), Some(Held::List(mut list))) => {
            list.push(value.clone());
            Held::List(list)
        }
        (Effect::Append(value), _) => Held::List(vec![value.clone()]),
    }
}

fn compare((conversation, scope, key): &Place, held: &Held, actual: &Value, judgement: &mut Judgement) {
    let place = format!("{conversation} {scope}.{key}");
    match held {
        Held::Anything if actual.is_null() => {
            judgement.lost += 1;
            judgement.faults.push(format!("{place}: lost, it was written and is not there"));
        }
        Held::Anything => {}
        Held::Plain(value) if same(value, actual) => {}
        Held::Plain(_) => judgement.faults.push(format!("{place}: not what the last applied job wrote")),
        Held::Number(sum) => match decimal(actual) {
            Some(number) if number == *sum => {}
            Some(number) if number > *sum => {
                judgement.doubled += 1;
                judgement.faults.push(format!("{place}: doubled, the outcomes add up to {sum}, it holds {number}"));
            }
            number => {
                judgement.lost += 1;
                let number = number.map_or("nothing".to_owned(), |number| number.to_string());
                judgement.faults.push(format!("{place}: lost, the outcomes add up to {sum}, it holds {number}"));
            }
        },
        Held::List(list) => {
            let actual = actual.as_array().map_or(&[][..], Vec::as_slice);
            let count = |list: &[Value]| {
                let mut counts: BTreeMap<String, i64> = BTreeMap::new();
                list.iter().for_each(|element| *counts.entry(element.to_string()).or_default() += 1);
                counts
            };
            let (wanted, got) = (count(list), count(actual));
            for element in wanted.keys().chain(got.keys()).collect::<BTreeSet<_>>() {
                let (wanted, got) = (wanted.get(element).unwrap_or(&0), got.get(element).unwrap_or(&0));
                if got < wanted {
                    judgement.lost += 1;
                    judgement.faults.push(format!("{place}: lost, {element} is there {got} times, claimed {wanted}"));
                } else if got > wanted {
                    judgement.doubled += 1;
                    judgement
                        .faults
                        .push(format!("{place}: doubled, {element} is there {got} times, claimed {wanted}"));
                }
            }
            if wanted == got && list != actual {
                judgement.faults.push(format!("{place}: the elements are not in the order of the jobs"));
            }
        }
    }
}

/// The history is whole, every write of ours was conditional, and no list element was ever added twice.
fn history(evidence: &Evidence, judgement: &mut Judgement) {
    if let Err(gap) = fold(&evidence.history) {
        judgement.faults.push(format!("the target's history does not hold together: {gap}"));
    }
    let mut added: BTreeMap<(Arc<str>, Arc<str>, String), usize> = BTreeMap::new();
    for entry in evidence.history.iter().filter(|entry| entry.writer == Writer::Client && entry.event == Event::Write) {
        if entry.if_match.is_none() {
            judgement.faults.push(format!("history entry {}: a write of ours without If-Match", entry.seq));
        }
        let Some(conversation) = &entry.conversation else { continue };
        for change in &entry.changes {
            let list = |value: &Option<Arc<Value>>| value.as_deref().and_then(Value::as_array).cloned();
            let old: BTreeSet<String> = list(&change.old).unwrap_or_default().iter().map(ToString::to_string).collect();
            for element in list(&change.new).unwrap_or_default().iter().map(ToString::to_string) {
                if !old.contains(&element) {
                    let name = (Arc::clone(conversation), Arc::clone(&change.key), element);
                    *added.entry(name).or_default() += 1;
                }
            }
        }
    }
    for ((conversation, key, element), times) in added.into_iter().filter(|(_, times)| *times > 1) {
        judgement.doubled += 1;
        judgement.faults.push(format!("{conversation} {key}: doubled, {element} was added {times} times"));
    }
}

/// Nobody but the second writer changed its keys, and they hold what it wrote last.
fn second_writer(evidence: &Evidence, judgement: &mut Judgement) {
    let mut last: BTreeMap<Place, Value> = BTreeMap::new();
    for entry in &evidence.history {
        let Some(conversation) = &entry.conversation else { continue };
        for change in &entry.changes {
            if !evidence.second_writer_keys.iter().any(|key| **key == *change.key) {
                continue;
            }
            if entry.writer == Writer::Second {
                let place = (conversation.to_string(), "conversation".to_owned(), change.key.to_string());
                last.insert(place, change.new.as_deref().cloned().unwrap_or(Value::Null));
            } else {
                let (seq, key) = (entry.seq, &change.key);
                judgement
                    .faults
                    .push(format!("history entry {seq}: {conversation} {key} belongs to the second writer"));
            }
        }
    }
    for (place, value_then) in last {
        if !same(&value_then, &value(evidence, &place)) {
            judgement.faults.push(format!("{} {}: not what the second writer wrote last", place.0, place.2));
        }
    }
}

/// Every event was delivered and verified; nothing else was delivered.
fn deliveries(evidence: &Evidence, judgement: &mut Judgement) {
    let told: BTreeMap<&str, &Value> = evidence.outcomes.iter().map(|event| (text(&event["id"]), event)).collect();
    let mut arrived = BTreeSet::new();
    for delivery in &evidence.deliveries {
        if let Some(fault) = delivery.fault {
            judgement.faults.push(format!("webhook {}: {fault}", delivery.id));
        }
        let id = text(&delivery.event["id"]);
        match told.get(id) {
            Some(event) if delivery.id == id && event["data"]["verdict"] == delivery.event["data"]["verdict"] => {}
            _ => judgement.faults.push(format!("webhook {}: not an outcome that was told", delivery.id)),
        }
        if (200..300).contains(&delivery.answered) {
            arrived.insert(id);
        }
    }
    let missing = told.keys().filter(|id| !arrived.contains(*id)).count();
    if missing > 0 {
        judgement.faults.push(format!("{missing} events were never delivered"));
    }
}

/// The value of a variable at the end.
fn value(evidence: &Evidence, (conversation, scope, key): &Place) -> Value {
    let Some(shown) = evidence.state.get(conversation).map(|context| &context[key]) else { return Value::Null };
    let entries = shown.as_array().map_or(std::slice::from_ref(shown), Vec::as_slice);
    let fits = |entry: &&Value| entry["scope"].as_str().unwrap_or("conversation") == scope;
    entries.iter().find(fits).map_or(Value::Null, |entry| entry["value"].clone())
}

/// Numbers by value, everything else as it is.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => decimal(a).is_some() && decimal(a) == decimal(b),
        _ => a == b,
    }
}

fn is_repeat(event: &Value) -> bool {
    event["data"]["repeat"].as_bool().unwrap_or(false)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn show(job: &Job) -> String {
    match job.generation {
        0 => job.id.clone(),
        generation => format!("{} (replay {generation})", job.id),
    }
}

#[cfg(test)]
mod tests;
