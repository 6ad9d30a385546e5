//! Judges a run: history in, judgement out. It knows what was published, what the API's history says, what the
//! outcomes and dead letters claim, and nothing of how the worker works.
//!
//! It believes the history, which the API itself keeps: every effect is there with its old and its new value. A job
//! that appends leaves its number in a list, so its effect is seen by itself; what only adds to a sum is judged by
//! the sum. `checker/tests.rs` doctors a good history in every way that is listed here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::load::{Job, Kind};

#[cfg(test)]
mod tests;

/// What went wrong, in Jepsen's words as far as these go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// An effect is claimed and not there.
    Lost,
    /// An effect is there twice.
    Doubled,
    /// Two verdicts of one job, or an effect that the verdict denies.
    Contradictory,
    /// Effects are in another order than the jobs.
    Reordered,
    /// A job without outcome, or a failed one without dead letter.
    MissingOutcome,
    /// Somebody else's write was undone, or could have been.
    ForeignLost,
    /// A verdict or a reason that nothing in the run explains.
    Unexplained,
}

impl Violation {
    /// All, in the order of the report.
    pub const ALL: [Violation; 7] = [
        Violation::Lost,
        Violation::Doubled,
        Violation::Contradictory,
        Violation::Reordered,
        Violation::MissingOutcome,
        Violation::ForeignLost,
        Violation::Unexplained,
    ];
}

/// What the judgement rests on.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Every job of which a message was confirmed by the broker; its index is its number.
    pub jobs: Vec<Job>,
    /// Every outcome event as a subscriber got it, in order.
    pub told: Vec<Told>,
    /// Every dead letter: job and reason.
    pub letters: Vec<(String, String)>,
    /// Every write that the API applied, in order.
    pub history: Vec<Write>,
    /// Jobs that the producer sent twice, as far as it knows.
    pub sent_twice: BTreeSet<String>,
    /// When each job was sent first.
    pub sent_at: Vec<At>,
    /// When Redis had lost everything.
    pub wiped: Vec<At>,
    /// When a worker lost its queue: it was killed, stopped or cut off.
    pub cut_off: Vec<At>,
}

/// Milliseconds since 1970.
pub type At = u64;

/// An outcome event.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub event: String,
    pub job: String,
    pub verdict: String,
    /// The reason's code; empty for `applied`.
    pub reason: String,
}

/// An applied write.
#[derive(Debug, Clone)]
pub struct Write {
    pub seq: u64,
    pub at: At,
    pub conversation: String,
    /// By somebody else than a worker.
    pub foreign: bool,
    /// Whether it named the version that it replaces.
    pub conditional: bool,
    /// Key, old value, new value; `null` is absence.
    pub changes: Vec<(String, Value, Value)>,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    /// Sentences by violation.
    pub violations: BTreeMap<Violation, Vec<String>>,
    /// Jobs by verdict.
    pub verdicts: BTreeMap<String, usize>,
    /// Failed jobs by reason code.
    pub reasons: BTreeMap<String, usize>,
    /// Events that were told again, with the same id: allowed, and counted.
    pub repeated_events: usize,
    /// Jobs whose verdict is `unknown`: allowed where the record had to let go, and counted.
    pub unknown: usize,
    /// Repeats of the producer's that came later than the record and the memories reach: told as `unknown` once more.
    pub late_repeats: usize,
    /// Jobs that were overtaken while neither Redis nor a worker knew any more that they waited on the ladder (README).
    pub overtaken: usize,
    /// Plain sets that were done again by a worker that could not know; they ended as they should.
    pub set_again: usize,
}

impl Judgement {
    fn blame(&mut self, violation: Violation, sentence: String) {
        self.violations.entry(violation).or_default().push(sentence);
    }
}

/// The record of a conversation holds so many jobs (README); only with more can it be overrun.
const RECORDED: usize = 128;
/// Elements of the list from here on are the foreign writer's.
pub const FOREIGN: u64 = 1_000_000;
/// A key that the foreign writer alone writes.
pub const FOREIGN_KEY: &str = "foreign";

/// Judges.
pub fn judge(evidence: &Evidence) -> Judgement {
    let mut judgement = Judgement::default();
    let verdicts = verdicts(evidence, &mut judgement);
    letters(evidence, &verdicts, &mut judgement);
    let conversations = walk(evidence, &mut judgement);
    compare(evidence, &verdicts, &conversations, &mut judgement);
    judgement
}

/// The verdict of each job that has one.
type Verdicts<'a> = HashMap<&'a str, BTreeSet<&'a str>>;

fn verdicts<'a>(evidence: &'a Evidence, judgement: &mut Judgement) -> Verdicts<'a> {
    let mut verdicts = Verdicts::new();
    let mut reasons: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    let mut events = BTreeSet::new();
    for told in &evidence.told {
        if !events.insert(&told.event) {
            judgement.repeated_events += 1;
        }
        verdicts.entry(&told.job).or_default().insert(&told.verdict);
        if !told.reason.is_empty() {
            reasons.entry(&told.job).or_default().insert(&told.reason);
        }
    }
    let of_conversation = count(evidence.jobs.iter().map(|job| job.conversation.as_str()));
    for job in &evidence.jobs {
        let Some(told) = verdicts.get(job.id.as_str()) else {
            judgement.blame(Violation::MissingOutcome, format!("{}: no outcome", job.id));
            continue;
        };
        for verdict in told {
            *judgement.verdicts.entry((*verdict).to_owned()).or_default() += 1;
        }
        let overrun = reasons.get(job.id.as_str()).is_some_and(|of| of.contains("ledger_overrun"));
        if told.len() == 2 && overrun && evidence.sent_twice.contains(&job.id) {
            judgement.late_repeats += 1;
        } else if told.len() > 1 {
            judgement.blame(Violation::Contradictory, format!("{}: told as {told:?}", job.id));
        }
        if told.contains("unknown") {
            judgement.unknown += 1;
        }
        for reason in reasons.get(job.id.as_str()).into_iter().flatten() {
            *judgement.reasons.entry((*reason).to_owned()).or_default() += 1;
            let overrun = *reason == "ledger_overrun" && of_conversation[job.conversation.as_str()] > RECORDED;
            if !overrun && !may_end_so(job.kind, reason) {
                judgement.blame(Violation::Unexplained, format!("{}, {:?}: told as {reason}", job.id, job.kind));
            }
        }
        if told.contains("applied") && matches!(job.kind, Kind::Hopeless | Kind::Malformed) {
            judgement.blame(Violation::Unexplained, format!("{}, {:?}: told as applied", job.id, job.kind));
        }
    }
    let known: BTreeSet<&str> = evidence.jobs.iter().map(|job| job.id.as_str()).collect();
    for job in verdicts.keys().filter(|job| !known.contains(*job)) {
        judgement.blame(Violation::Unexplained, format!("{job}: an outcome of a job that nobody published"));
    }
    verdicts
}

/// What the faults and the job itself explain.
fn may_end_so(kind: Kind, reason: &str) -> bool {
    match reason {
        "attempts_exhausted" | "conflict_limit" | "ambiguous_write" => kind != Kind::Malformed,
        "precondition_failed" => kind == Kind::Bounded,
        "type_mismatch" => kind == Kind::Hopeless,
        "schema_violation" | "invalid_operation" => kind == Kind::Malformed,
        _ => false,
    }
}

fn letters(evidence: &Evidence, verdicts: &Verdicts<'_>, judgement: &mut Judgement) {
    let letters: BTreeSet<&str> = evidence.letters.iter().map(|(job, _)| job.as_str()).collect();
    for (job, told) in verdicts {
        let failed = told.contains("not_applied") || told.contains("unknown");
        if failed && !letters.contains(job) {
            judgement.blame(Violation::MissingOutcome, format!("{job}: failed, and there is no dead letter"));
        }
        if !failed && letters.contains(job) {
            judgement.blame(Violation::Contradictory, format!("{job}: applied, and a dead letter"));
        }
    }
}

/// A conversation as its history tells it.
#[derive(Debug, Default)]
struct Conversation {
    /// Numbers of jobs in `all`, in the order in which they came.
    elements: Vec<u64>,
    /// What workers added to `n`.
    added: i128,
    /// The last values of `s` and `p`.
    set: BTreeMap<String, u64>,
    /// Every number that was ever set.
    ever_set: BTreeSet<u64>,
}

fn walk<'a>(evidence: &'a Evidence, judgement: &mut Judgement) -> HashMap<&'a str, Conversation> {
    let mut conversations: HashMap<&str, Conversation> = HashMap::new();
    for write in evidence.history.iter().filter(|write| !write.foreign) {
        let at = format!("{}, entry {}", write.conversation, write.seq);
        if !write.conditional {
            judgement.blame(Violation::ForeignLost, format!("{at}: a write that names no version"));
        }
        let conversation = conversations.entry(&write.conversation).or_default();
        for (key, old, new) in &write.changes {
            match key.as_str() {
                "all" => appended(evidence, &at, write.at, (old, new), conversation, judgement),
                "n" => {
                    let delta = number(new) - number(old);
                    if delta <= 0 {
                        let sentence = format!("{at}: n went from {old} to {new}, which undoes somebody's addition");
                        judgement.blame(Violation::ForeignLost, sentence);
                    }
                    conversation.added += delta;
                }
                "s" | "p" => set(evidence, &at, write.at, (key, new), conversation, judgement),
                "g" if number(new) > number(old) => {}
                _ => judgement.blame(Violation::ForeignLost, format!("{at}: a worker wrote {key}: {old} → {new}")),
            }
        }
    }
    conversations
}

/// A list may only grow at its end, by jobs that are not in it, in their order.
fn appended(
    evidence: &Evidence,
    at: &str,
    when: At,
    (old, new): (&Value, &Value),
    conversation: &mut Conversation,
    judgement: &mut Judgement,
) {
    let (old, new) = (elements(old), elements(new));
    let kept = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    for gone in &old[kept..] {
        let violation = if *gone >= FOREIGN { Violation::ForeignLost } else { Violation::Lost };
        judgement.blame(violation, format!("{at}: {gone} was in the list, and is gone or elsewhere"));
    }
    for element in new[kept..].iter().filter(|element| !old[kept..].contains(element)) {
        if conversation.elements.contains(element) {
            judgement.blame(Violation::Doubled, format!("{at}: {element} is appended once more"));
            continue;
        }
        if let Some(last) = conversation.elements.last()
            && last > element
        {
            overtaken(evidence, *element, when, judgement, format!("{at}: {element} is appended behind {last}"));
        }
        conversation.elements.push(*element);
    }
}

/// A recorded job sets once; one that only sets may do so again, as long as it ends well.
fn set(
    evidence: &Evidence,
    at: &str,
    when: At,
    (key, new): (&str, &Value),
    conversation: &mut Conversation,
    judgement: &mut Judgement,
) {
    let Some(number) = new.as_u64() else {
        judgement.blame(Violation::Unexplained, format!("{at}: {key} became {new}"));
        return;
    };
    conversation.ever_set.insert(number);
    if let Some(before) = conversation.set.insert(key.to_owned(), number)
        && before > number
    {
        if key == "p" {
            judgement.set_again += 1;
        } else {
            let sentence = format!("{at}: {key} went from job {before} back to {number}");
            overtaken(evidence, number, when, judgement, sentence);
        }
    }
}

/// Another order is a violation, unless Redis was wiped and a worker cut off while the job was on its way.
fn overtaken(evidence: &Evidence, number: u64, when: At, judgement: &mut Judgement, sentence: String) {
    let sent = usize::try_from(number).ok().and_then(|number| evidence.sent_at.get(number));
    let since = |all: &[At]| sent.is_some_and(|sent| all.iter().any(|at| (sent..=&when).contains(&at)));
    if since(&evidence.wiped) && since(&evidence.cut_off) {
        judgement.overtaken += 1;
    } else {
        judgement.blame(Violation::Reordered, sentence);
    }
}

/// The effects against the verdicts.
fn compare(
    evidence: &Evidence,
    verdicts: &Verdicts<'_>,
    conversations: &HashMap<&str, Conversation>,
    judgement: &mut Judgement,
) {
    let empty = Conversation::default();
    let mut of_conversation: BTreeMap<&str, Vec<(u64, &Job)>> = BTreeMap::new();
    for (number, job) in (0..).zip(&evidence.jobs) {
        of_conversation.entry(&job.conversation).or_default().push((number, job));
    }
    for id in conversations.keys().filter(|id| !of_conversation.contains_key(*id)) {
        judgement.blame(Violation::Unexplained, format!("{id}: written, and no job names it"));
    }
    for (id, jobs) in of_conversation {
        let conversation = conversations.get(id).unwrap_or(&empty);
        let is = |job: &Job, verdict| verdicts.get(job.id.as_str()).is_some_and(|told| told.contains(verdict));
        let there: BTreeSet<u64> = conversation.elements.iter().copied().collect();
        for (number, job) in &jobs {
            let (applied, refused) = (is(job, "applied"), is(job, "not_applied"));
            if job.appends() && applied && !there.contains(number) {
                judgement.blame(Violation::Lost, format!("{id}: {} is told as applied and not in the list", job.id));
            }
            if (!job.appends() || refused) && there.contains(number) {
                judgement.blame(Violation::Contradictory, format!("{id}: {} is in the list all the same", job.id));
            }
        }
        let numbers: BTreeSet<u64> = jobs.iter().map(|(number, _)| *number).collect();
        for stray in there.difference(&numbers) {
            judgement.blame(Violation::Unexplained, format!("{id}: {stray} is in the list, no job of it"));
        }
        sum(id, &jobs, &is, conversation.added, judgement);
        for key in ["s", "p"] {
            last_set(id, key, &jobs, &is, conversation, judgement);
        }
    }
}

/// What was added is what the applied jobs add, and what some of the unknown ones do.
fn sum(
    id: &str,
    jobs: &[(u64, &Job)],
    is: &impl Fn(&Job, &'static str) -> bool,
    added: i128,
    judgement: &mut Judgement,
) {
    let of = |verdict| jobs.iter().map(|(_, job)| *job).filter(move |job| is(job, verdict));
    let claimed: i128 = of("applied").map(|job| i128::from(job.adds())).sum();
    let mut possible = BTreeSet::from([claimed]);
    for job in of("unknown").filter(|job| !is(job, "applied") && job.adds() > 0) {
        let more: Vec<i128> = possible.iter().map(|sum| sum + i128::from(job.adds())).collect();
        possible.extend(more);
    }
    if possible.contains(&added) {
        return;
    }
    let difference = added - claimed;
    let refused = of("not_applied").find(|job| i128::from(job.adds()) == difference);
    let (violation, like) = match refused {
        Some(job) => (Violation::Contradictory, Some(job)),
        None if difference > 0 => (Violation::Doubled, of("applied").find(|j| i128::from(j.adds()) == difference)),
        None => (Violation::Lost, of("applied").find(|job| i128::from(job.adds()) == -difference)),
    };
    let like = like.map_or(String::new(), |job| format!(", as much as {}", job.id));
    judgement.blame(violation, format!("{id}: n has {difference} more than the outcomes say{like}"));
}

/// A key that jobs set holds what the last applied one wrote, or one behind it of which nobody knows.
fn last_set(
    id: &str,
    key: &str,
    jobs: &[(u64, &Job)],
    is: &impl Fn(&Job, &'static str) -> bool,
    conversation: &Conversation,
    judgement: &mut Judgement,
) {
    let held = conversation.set.get(key).copied();
    let setting = || jobs.iter().filter(|(_, job)| job.sets() == Some(key));
    let last = setting().filter(|(_, job)| is(job, "applied")).map(|(number, _)| *number).max();
    if last == held {
        return;
    }
    let by = setting().find(|(number, _)| Some(*number) == held).map(|(_, job)| *job);
    let held = held.map_or("nothing".to_owned(), |number| format!("what job {number} wrote"));
    let sentence = format!("{id}: {key} holds {held}, the last applied job is {last:?}");
    match by {
        Some(job) if is(job, "unknown") => {}
        Some(job) if is(job, "not_applied") => judgement.blame(Violation::Contradictory, sentence),
        _ if last.is_some_and(|last| conversation.ever_set.contains(&last)) => {
            judgement.blame(Violation::Reordered, sentence);
        }
        _ => judgement.blame(Violation::Lost, sentence),
    }
}

fn elements(value: &Value) -> Vec<u64> {
    value.as_array().into_iter().flatten().map(|element| element.as_u64().unwrap_or(u64::MAX)).collect()
}

fn number(value: &Value) -> i128 {
    value.as_u64().map_or(0, i128::from)
}

fn count<'a>(names: impl Iterator<Item = &'a str>) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}
