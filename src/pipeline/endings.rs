//! How jobs leave a batch: what is known of a job under way, and what that makes of its fate, of a refusal, of an
//! outage. Pure, so that whoever carries a batch out has no verdict of its own to find.
//!
//! One rule above all: `not_applied` is said only where no request of this or an earlier delivery can have had,
//! or still can have, its effect. Where that is not certain, the verdict is `unknown`.

use jiff::Timestamp;

use super::ledger::Mark;
use super::place::Place;
use super::plan::{Applied, Candidate, Fate, Plan};
use super::snapshot::Snapshot;
use super::verdict::{KeyResult, Reason, Rejection, Verdict};
use crate::job::{Job, Version};
use crate::retry;
use crate::target::Detail;

/// A job under way, with what is known of it beside its text.
#[derive(Debug, Clone)]
pub struct Task {
    /// The job.
    pub job: Job,
    /// Its mark in the ledger.
    pub mark: Mark,
    /// Its replay generation.
    pub generation: u32,
    /// Whether an earlier delivery of it may have got anywhere.
    pub suspect: bool,
    /// When it was published, as far as its producer tells.
    pub published: Option<Timestamp>,
    /// Attempts before this one.
    pub attempts: u32,
    /// Whether an earlier delivery may have had its effect: its end is not known.
    pub uncertain: bool,
    /// W3C trace context.
    pub traceparent: String,
    /// The write that may have had its effect.
    pub tried: Option<Tried>,
    /// What is remembered of it, if it is suspect and took effect without a ledger entry.
    pub before: Option<Place>,
}

/// A write that may have had its effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tried {
    /// When it was sent first.
    pub at: Timestamp,
    /// What it does.
    pub applied: Applied,
    /// The version that it was built on.
    pub version_before: Option<Version>,
}

impl Task {
    /// A task that has not been tried.
    #[must_use]
    pub fn new(job: Job, bot: &str, traceparent: String) -> Self {
        Self {
            mark: Mark::of_job(bot, &job.conversation, &job.id),
            job,
            generation: 0,
            suspect: false,
            published: None,
            attempts: 0,
            uncertain: false,
            traceparent,
            tried: None,
            before: None,
        }
    }

    /// Whether a request of this or an earlier attempt may have had its effect.
    #[must_use]
    pub fn may_have_been_applied(&self) -> bool {
        self.uncertain || self.tried.is_some()
    }

    /// What the planner needs to know of it.
    #[must_use]
    pub fn candidate(&self) -> Candidate<'_> {
        Candidate {
            job: &self.job,
            mark: self.mark.clone(),
            generation: self.generation,
            suspect: self.suspect,
            uncertain: self.uncertain,
            published: self.published,
            tried: self.tried.as_ref().map(|tried| tried.at),
            tried_without_entry: self.tried.as_ref().is_some_and(|tried| !tried.applied.recorded),
            before: self.before.as_ref(),
        }
    }
}

/// How a job left a batch.
#[derive(Debug)]
pub enum Ending {
    /// It has its verdict.
    Verdict(Box<Ended>),
    /// The target failed; the job waits for its next attempt.
    Retry(Detail),
    /// We are stopping and it was not finished.
    Interrupted,
}

impl Ending {
    /// What the target failed with, where the job waits for its next attempt.
    #[must_use]
    pub fn must_wait(&self) -> Option<&Detail> {
        match self {
            Self::Retry(detail) => Some(detail),
            Self::Verdict(_) | Self::Interrupted => None,
        }
    }
}

/// A verdict and what led to it.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it was reached before.
    pub repeat: bool,
    /// What was done, where it was applied.
    pub applied: Applied,
    /// The conversation's version before.
    pub version_before: Option<Version>,
    /// The conversation's version after.
    pub version_after: Option<Version>,
    /// Jobs in the same request.
    pub batch_size: usize,
    /// Bytes of that request.
    pub request_bytes: usize,
    /// The last thing that the target said against it.
    pub last_failure: Option<Detail>,
    /// Where it took effect, if no ledger names it.
    pub place: Option<Place>,
}

impl Ended {
    /// A verdict that no request led to.
    #[must_use]
    pub fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            repeat: false,
            applied: Applied::default(),
            version_before: None,
            version_after: None,
            batch_size: 1,
            request_bytes: 0,
            last_failure: None,
            place: None,
        }
    }

    /// A job that is known to have been applied ends as that, whatever came of looking at it again.
    pub fn keep_to_the_first(&mut self, task: &Task) {
        if let Some(before) = task.before.as_ref().filter(|_| self.verdict != Verdict::Applied) {
            let place = Some(before.clone());
            *self = Self { repeat: true, place, ..Self::plain(Verdict::Applied) };
        }
    }
}

/// The verdicts of a plan's jobs now that their fates hold. `version_after` is what the target told of the new
/// version, or the snapshot's where nothing was sent.
pub fn conclude<'a>(
    plan: &'a Plan,
    snapshot: &'a Snapshot,
    version_after: Option<&'a Version>,
    tasks: &'a [Task],
) -> impl Iterator<Item = Ended> + use<'a> {
    let request_bytes = plan.body.as_ref().map_or(0, bytes::Bytes::len);
    let batch_size = if plan.body.is_some() { plan.fates.len() } else { 1 };
    plan.fates.iter().zip(tasks).map(move |(fate, task)| {
        let plain = |verdict, repeat| Ended {
            repeat,
            version_before: snapshot.version.clone(),
            version_after: version_after.cloned(),
            batch_size,
            request_bytes,
            ..Ended::plain(verdict)
        };
        let mut ended = match fate {
            Fate::Applies(applied) => match &task.tried {
                // A job without an entry that finds everything as it wants it: its ambiguous write got through.
                Some(tried) if is_unchanged(applied) => tried_before(tried, plain(Verdict::Applied, false)),
                _ => Ended { applied: applied.clone(), ..plain(Verdict::Applied, false) },
            },
            // The ambiguous write was this batch's own: its first outcome, not a repeated one.
            Fate::Repeat => match &task.tried {
                Some(tried) => tried_before(tried, plain(Verdict::Applied, false)),
                None => plain(Verdict::Applied, true),
            },
            Fate::RefusedBefore(rejection) => plain(Verdict::NotApplied(rejection.clone()), true),
            Fate::Refused(rejection) => plain(Verdict::NotApplied(rejection.clone()), false),
            Fate::Unknown(rejection) => plain(Verdict::Unknown(rejection.clone()), false),
        };
        if matches!(fate, Fate::Applies(_)) && !ended.applied.recorded {
            let follows = ended.applied.follows.take();
            let base = plan.body.as_ref().and(ended.version_before.clone());
            ended.place = snapshot.version.is_some().then_some(Place { base, follows });
        }
        ended
    })
}

fn tried_before(tried: &Tried, ended: Ended) -> Ended {
    Ended { applied: tried.applied.clone(), version_before: tried.version_before.clone(), version_after: None, ..ended }
}

fn is_unchanged(applied: &Applied) -> bool {
    applied.keys.iter().all(|key| key.result == KeyResult::Unchanged)
}

/// Remembers that the plan's write may have had its effect.
pub fn note_tried(plan: &Plan, snapshot: &Snapshot, tasks: &mut [Task], now: Timestamp) {
    for (fate, task) in plan.fates.iter().zip(tasks) {
        if let Fate::Applies(applied) = fate
            && task.tried.as_ref().is_none_or(|tried| tried.applied.recorded)
        {
            let at = task.tried.as_ref().map_or(now, |tried| tried.at);
            task.tried = Some(Tried { at, applied: applied.clone(), version_before: snapshot.version.clone() });
        }
    }
}

/// How many of the first jobs are past their deadline without anything ever having been sent for them: they need
/// no request.
#[must_use]
pub fn expired(tasks: &[Task], now: Timestamp) -> usize {
    let untouched = |task: &&Task| !task.suspect && task.tried.is_none() && task.job.deadline < now;
    tasks.iter().take_while(untouched).count()
}

/// The verdict of an [`expired`] job.
#[must_use]
pub fn expiry() -> Verdict {
    Verdict::NotApplied(Rejection::new(Reason::Expired, "the deadline passed before the job was applied"))
}

/// The verdict of a job whose conversation changed under every try of ours.
#[must_use]
pub fn overrun(task: &Task) -> Verdict {
    let text = format!("the conversation changed under each of {} tries", retry::CONFLICT_TRIES);
    if task.may_have_been_applied() {
        let text = format!("an earlier try may have been applied; then {text}");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    Verdict::NotApplied(Rejection::new(Reason::ConflictLimit, text))
}

/// What the target says against a job, as the planner takes it.
#[must_use]
pub fn refusal(detail: &Detail) -> Rejection {
    Rejection::new(Reason::RefusedByTarget, detail.to_string())
}

/// The verdict of a job that the target refuses, and its tombstone too.
#[must_use]
pub fn refused_for_good(task: &Task, detail: &Detail) -> Verdict {
    let rejection = refusal(detail);
    if task.may_have_been_applied() {
        let text = format!("an earlier try may have been applied, and then the target refused it ({rejection})");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    Verdict::NotApplied(rejection)
}

/// The verdict of a job whose conversation the target does not know.
#[must_use]
pub fn not_found(task: &Task, detail: &Detail) -> Verdict {
    let text = format!("the target does not know the conversation: {detail}");
    if task.tried.is_some() {
        let text = format!("a try may have been applied, and then {text}");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    Verdict::NotApplied(Rejection::at(Reason::ConversationNotFound, "/conversation_id", text))
}

/// The verdict of a job that failed at each of `attempts` attempts, the last one included.
#[must_use]
pub fn exhausted(task: &Task, attempts: u32, detail: &Detail) -> Verdict {
    if task.may_have_been_applied() {
        let text =
            format!("a try may have been applied, and the target failed ever since, {attempts} attempts ({detail})");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    let text = format!(
        "the target failed at each of {attempts} attempts, or no further one ends before the deadline ({detail})"
    );
    Verdict::NotApplied(Rejection::new(Reason::AttemptsExhausted, text))
}

/// The verdict of a job on which our own code fails.
#[must_use]
pub fn panicked(task: &Task) -> Verdict {
    let text = "our own code failed on this job; the log has the place";
    if task.may_have_been_applied() {
        let text = format!("an earlier try may have been applied; then {text}");
        return Verdict::Unknown(Rejection::new(Reason::AmbiguousWrite, text));
    }
    Verdict::NotApplied(Rejection::new(Reason::Panicked, text))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::pipeline::validate::{Source, validate};

    fn task() -> Task {
        let settings = "[bots.b]\nbase_url = \"https://b.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"";
        let bot = Config::parse(settings, []).unwrap().bots.remove("b").unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let body = br#"{"job_id":"j","conversation_id":"conv_1","variables":{"n":{"op":"increment"}}}"#;
        let (message_id, content_encoding, published) = (None, None, None);
        let source = Source { body, message_id, content_encoding, published, first_seen: now, now };
        Task::new(validate(&bot, Duration::from_secs(60), &source).unwrap(), "b", String::new())
    }

    /// Each way out that may come after a request whose end nobody knows.
    #[test]
    fn not_applied_is_said_only_where_no_request_can_have_had_its_effect() {
        let detail = Detail::default();
        let ends =
            |task: &Task| [exhausted(task, 8, &detail), overrun(task), panicked(task), refused_for_good(task, &detail)];
        let codes = |ends: [Verdict; 4]| ends.map(|verdict| (verdict.as_str(), verdict.rejection().unwrap().code));
        let clean = [Reason::AttemptsExhausted, Reason::ConflictLimit, Reason::Panicked, Reason::RefusedByTarget];
        assert_eq!(codes(ends(&task())), clean.map(|code| ("not_applied", code)));
        let uncertain = Task { uncertain: true, ..task() };
        assert_eq!(codes(ends(&uncertain)), [("unknown", Reason::AmbiguousWrite); 4]);
    }
}
