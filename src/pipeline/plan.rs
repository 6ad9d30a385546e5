//! The plan: what one PATCH does for a batch of jobs, or why it need not be sent.
//!
//! Pure. It leaves no choice to whoever executes it: the fate of each job *if the PATCH succeeds*, and the
//! exact bytes of the PATCH. Where nothing is to be sent, the fates hold as they are, provided that the
//! snapshot was read after the batch was taken ([`Plan::holds`]).
//!
//! The jobs are folded in their order, each seeing what the ones before it left. A job that cannot be folded
//! ends alone; the others go on. All or nothing holds per job.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use self::fold::Fold;
use super::evicted::Evicted;
use super::ledger::{Ledger, Mark};
use super::place::Place;
use super::snapshot::{Snapshot, Variables};
use super::verdict::{KeyResult, Reason, Rejection};
use crate::config::{Bot, LedgerMode};
use crate::job::{Job, Name, Scope};
use crate::target::Change;

mod fold;

/// Most jobs in one PATCH.
pub const MAX_BATCH: usize = 64;

/// A job that waits to be planned, with what is known of it beside its text.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// The job.
    pub job: &'a Job,
    /// Its mark in the ledger.
    pub mark: Mark,
    /// Its replay generation.
    pub generation: u32,
    /// Whether an earlier delivery of it may have got anywhere: redelivered, retried or replayed.
    pub suspect: bool,
    /// Whether a request of an earlier delivery may have had its effect without our knowing.
    pub uncertain: bool,
    /// When it was published, as far as its producer tells.
    pub published: Option<Timestamp>,
    /// When this delivery was first tried with an ambiguous answer.
    pub tried: Option<Timestamp>,
    /// Whether a request without its ledger entry may have applied it.
    pub tried_without_entry: bool,
    /// What is remembered of it, if it is suspect and took effect without an entry.
    pub before: Option<&'a Place>,
}

/// What one PATCH does for a batch.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The fates of the first jobs of the batch, in order; jobs beyond them belong to a later batch.
    pub fates: Vec<Fate>,
    /// What changes, the ledger included.
    pub changes: Vec<Change>,
    /// The PATCH; `None`: nothing to send.
    pub body: Option<Bytes>,
    /// The ledger as written.
    pub ledger: Option<Ledger>,
    /// Applied jobs that the ledger had to let go.
    pub evicted: Vec<Mark>,
    /// Tombstones that it writes.
    pub tombstones: u64,
    /// Whether the fates depend on the state being as the snapshot says.
    depends_on_state: bool,
}

/// What becomes of a job if the plan succeeds.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It was applied before: `applied` once more.
    Repeat,
    /// It was given up before, in the same replay generation: `not_applied` once more.
    RefusedBefore(Rejection),
    /// It is applied.
    Applies(Applied),
    /// It is refused.
    Refused(Rejection),
    /// Nobody can know.
    Unknown(Rejection),
}

/// What an applied job does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Applied {
    /// Per variable, in the job's order.
    pub keys: Vec<KeyOutcome>,
    /// Placeholders that nothing resolved.
    pub unresolved: Vec<String>,
    /// The job's rendered `templates`.
    pub templates: Vec<(String, String)>,
    /// Whether its entry is in the ledger that the plan writes.
    pub recorded: bool,
    /// The job before it that we applied without an entry, if it gets none itself.
    pub follows: Option<Mark>,
}

/// What happens to one variable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyOutcome {
    /// Which.
    pub name: Name,
    /// What.
    pub result: KeyResult,
    /// Its value after the job; `None`: absent, or not known because theirs was kept.
    pub value: Option<Value>,
}

impl Plan {
    /// Whether the fates are certain without a request: nothing is to be sent, and either nothing depends on
    /// the state or the state is fresh.
    #[must_use]
    pub fn holds(&self, snapshot: &Snapshot) -> bool {
        self.body.is_none() && (snapshot.fresh || !self.depends_on_state)
    }
}

/// How many of the first jobs may share one PATCH: at most [`MAX_BATCH`]; one that stands alone does; and since
/// a PATCH names a key once, not a key in two scopes.
#[must_use]
pub fn batch_len<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> usize {
    let alone = |job: &Job| job.base_version.is_some() || !job.coalesce;
    let mut scopes: BTreeMap<&str, Scope> = BTreeMap::new();
    let mut taken = 0;
    for job in jobs.into_iter().take(MAX_BATCH) {
        if taken > 0 && alone(job) {
            return taken;
        }
        let names = || job.variables.iter().map(|variable| &variable.name);
        if names().any(|name| scopes.get(name.key.as_str()).is_some_and(|scope| *scope != name.scope)) {
            return taken;
        }
        scopes.extend(names().map(|name| (name.key.as_str(), name.scope)));
        taken += 1;
        if alone(job) {
            return taken;
        }
    }
    taken
}

/// Whether the batch can only be planned with the whole state, not with a version alone.
#[must_use]
pub fn needs_state(bot: &Bot, batch: &[Candidate<'_>]) -> bool {
    bot.ledger == LedgerMode::Always || batch.iter().any(|candidate| candidate.suspect || candidate.job.needs_values())
}

/// What a batch is planned on.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The bot's limits and modes.
    pub bot: &'a Bot,
    /// The conversation as it is.
    pub snapshot: &'a Snapshot,
    /// The conversation as we knew it when the batch was taken, before somebody else's changes.
    pub base: Option<&'a Variables>,
    /// Jobs that we applied without an entry, and that a later job's entry must not overtake.
    pub backfill: &'a [Mark],
    /// What the ledger had to let go, as far as it is remembered.
    pub evicted: &'a Evicted,
    /// The present.
    pub now: Timestamp,
}

/// Plans at most the first `limit` jobs of a batch. `refusal` is the target's own verdict on the first job,
/// which then is planned alone.
#[must_use]
pub fn plan(ground: Ground<'_>, batch: &[Candidate<'_>], limit: usize, refusal: Option<Rejection>) -> Plan {
    let mut refusal = refusal;
    let mut suspects_get_entries = true;
    let fitting = batch_len(batch.iter().map(|candidate| candidate.job));
    let mut taken = if refusal.is_some() { 1 } else { fitting.min(limit.max(1)) };
    loop {
        let mut fold = Fold::new(ground, suspects_get_entries);
        for (at, candidate) in batch.iter().enumerate().take(taken) {
            let fate = match fold.twin(&batch[..at], candidate) {
                Some(fate) => fate,
                None => fold.judge(candidate, refusal.clone().filter(|_| at == 0)),
            };
            fold.push(fate);
        }
        let plan = fold.finish(batch);
        let size = plan.body.as_ref().map_or(0, Bytes::len);
        if size <= ground.bot.max_payload_bytes {
            return plan;
        }
        if taken > 1 {
            taken /= 2;
            continue;
        }
        if std::mem::take(&mut suspects_get_entries) {
            // A plain job is as long as it was at its first delivery, and judged as it was then.
            continue;
        }
        if refusal_is_final(&plan) {
            // Not even the tombstone fits.
            return Plan { body: None, ..plan };
        }
        let text = format!("the request has {size} bytes; max_payload_bytes is {}", ground.bot.max_payload_bytes);
        refusal = Some(Rejection::at(Reason::PayloadTooLarge, "/variables", text));
    }
}

fn refusal_is_final(plan: &Plan) -> bool {
    !plan.fates.iter().any(|fate| matches!(fate, Fate::Applies(_)))
}

#[cfg(test)]
mod tests;
