//! `inject --direct` and `--dry-run`: jobs without broker and Redis, by the worker's own pipeline.
//!
//! Nothing here promises more than the target's conditional write and the ledger do: no lane, no lease, no audit
//! chain, one attempt. `--dry-run` reads and plans, and sends no write.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bot::Bot;
use crate::config::{self, Config};
use crate::job::{Job, Name};
use crate::outcome::{Outcome, Subject, Timings};
use crate::pipeline::endings::{Ending, Task};
use crate::pipeline::evicted::Evicted;
use crate::pipeline::execute::Executor;
use crate::pipeline::ledger::Mark;
use crate::pipeline::memory::Memory;
use crate::pipeline::plan::{self, Candidate, Fate, Ground, Plan};
use crate::pipeline::snapshot::{Contents, Snapshot};
use crate::pipeline::verdict::{Reason, Rejection, Verdict};
use crate::redis_link::RedisLink;
use crate::target::{self, Observed, Read};
use crate::trace::new_traceparent;

/// Applies one job and returns its outcome event.
///
/// # Errors
/// The HTTP client cannot be set up.
pub async fn apply(config: &Config, bot: &config::Bot, job: Job) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let redis = RedisLink::absent();
    let runtime = Bot::new(bot.clone(), std::sync::Arc::clone(&redis), None)?;
    // There is no ladder here: what fails has failed.
    let retry = config::Retry { max_attempts: 1, ..config.retry.clone() };
    let (conversation, id) = (job.conversation.clone(), job.id.clone());
    let never = CancellationToken::new();
    let executor = Executor {
        bot: &runtime,
        redis: &redis,
        retry: &retry,
        conversation: &conversation,
        recorded: None,
        stop: &never,
        halt: &never,
    };
    // A person who runs it twice sends a job twice: the ledger must be asked.
    let mut task = Task { suspect: true, ..Task::new(job, &bot.name, new_traceparent()) };
    let (mut endings, cost) = executor.run(std::slice::from_mut(&mut task), &mut Memory::default()).await;
    let ended = match endings.pop() {
        Some(Ending::Verdict(ended)) => *ended,
        Some(Ending::Retry(_) | Ending::Interrupted) | None => anyhow::bail!("the job was not finished"),
    };
    Ok(Outcome {
        subject: Subject::Job(id),
        conversation: Some(conversation),
        verdict: ended.verdict,
        time: Timestamp::now(),
        repeat: ended.repeat,
        keys: ended.applied.keys,
        unresolved: ended.applied.unresolved,
        templates: ended.applied.templates,
        version_before: ended.version_before,
        version_after: ended.version_after,
        conflicts: cost.conflicts,
        attempts: 1,
        batch_size: 1,
        request_bytes: ended.request_bytes,
        generation: 0,
        timings: Timings { budget: cost.waited, api: cost.took, total: begun.elapsed(), ..Timings::default() },
        traceparent: task.traceparent,
    })
}

/// What would be done, for a person and for a script.
#[derive(Debug)]
pub struct Preview {
    /// In words, several lines.
    pub text: String,
    /// As JSON.
    pub json: Value,
    /// Whether the job would be applied.
    pub applies: bool,
}

/// The plan of one job on the state in `state`, or as the target shows it.
///
/// # Errors
/// The state cannot be read.
pub async fn preview(bot: &config::Bot, job: &Job, state: Option<&Path>) -> anyhow::Result<Preview> {
    if let Err(text) = target::supports(bot, job) {
        return Ok(refusal(job, &Rejection::new(Reason::UnsupportedByDialect, text)));
    }
    let now = Timestamp::now();
    let snapshot = match state {
        Some(path) => {
            let body = std::fs::read(path).with_context(|| format!("cannot read the state in {}", path.display()))?;
            let observed = target::parse_state(&job.conversation, body.into());
            shown(bot, observed.with_context(|| format!("the state in {} is not understood", path.display()))?, now)
        }
        None if target::has_precondition(bot.dialect) || job.needs_values() => {
            let runtime = Bot::new(bot.clone(), RedisLink::absent(), None)?;
            match runtime.read(&job.conversation, Some(&new_traceparent())).await.answer {
                Read::Observed(observed) => shown(bot, observed, now),
                Read::Failed(failure) => return Err(failure).context("cannot read the conversation"),
            }
        }
        None => Snapshot { version: None, contents: Contents::VersionOnly, fresh: true, reset: None },
    };
    let candidate = Candidate {
        job,
        mark: Mark::of_job(&bot.name, &job.conversation, &job.id),
        generation: 0,
        suspect: true,
        uncertain: false,
        published: Some(now),
        tried: None,
        tried_without_entry: false,
    };
    let evicted = Evicted::default();
    let ground = Ground { bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &evicted, now };
    let plan = plan::plan(ground, &[candidate], 1, None);
    Ok(describe(bot, job, &snapshot, &plan))
}

fn shown(bot: &config::Bot, observed: Observed, now: Timestamp) -> Snapshot {
    Snapshot::read(observed.version, observed.variables, &bot.ledger_key, None, now)
}

fn refusal(job: &Job, rejection: &Rejection) -> Preview {
    let reason = json!({ "code": rejection.code, "text": rejection.text, "pointer": rejection.pointer });
    Preview {
        text: format!("{} would be refused: {rejection}", job.id),
        json: json!({ "job_id": job.id, "verdict": "not_applied", "reason": reason }),
        applies: false,
    }
}

fn describe(bot: &config::Bot, job: &Job, snapshot: &Snapshot, plan: &Plan) -> Preview {
    let version = snapshot.version.as_ref().map_or(Value::Null, |version| version.to_json());
    let at = snapshot.version.as_ref().map_or_else(String::new, |version| format!(" at version {version}"));
    let (id, conversation) = (&job.id, &job.conversation);
    let applied = match &plan.fates[..] {
        [Fate::Applies(applied)] => applied,
        [Fate::Repeat] => {
            return Preview {
                text: format!("{id} was applied to {conversation} before; nothing would be sent"),
                json: json!({ "job_id": id, "verdict": Verdict::Applied.as_str(), "repeat": true, "version": version }),
                applies: true,
            };
        }
        [Fate::Refused(rejection) | Fate::RefusedBefore(rejection) | Fate::Unknown(rejection), ..] => {
            return refusal(job, rejection);
        }
        _ => return refusal(job, &Rejection::new(Reason::Panicked, "there is no plan")),
    };
    let before = |name: &Name| snapshot.variables().and_then(|variables| variables.get(name)).unwrap_or(&Value::Null);
    let mut lines = vec![match &plan.body {
        Some(body) => format!("{id} would write to {conversation}{at}, in one request of {} bytes:", body.len()),
        None => format!("{id} would change nothing in {conversation}{at}; no request would be sent:"),
    }];
    let mut keys = Map::new();
    for key in &applied.keys {
        let after = key.value.clone().unwrap_or(Value::Null);
        let word = serde_json::to_value(key.result).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        lines.push(format!("  {}: {} → {} ({word})", key.name, before(&key.name), after));
        let row = json!({ "scope": key.name.scope, "result": key.result, "before": before(&key.name), "after": after });
        keys.insert(key.name.key.clone(), row);
    }
    for (name, text) in &applied.templates {
        lines.push(format!("  template {name}: {text:?} (in the outcome only)"));
    }
    if !applied.unresolved.is_empty() {
        lines.push(format!("  resolves to nothing: {}", applied.unresolved.join(", ")));
    }
    if applied.recorded {
        lines.push(format!("  its entry goes into the ledger, {}", bot.ledger_key));
    }
    let body = plan.body.as_deref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
    let templates = applied.templates.iter().cloned().map(|(name, text)| (name, Value::from(text)));
    Preview {
        text: lines.join("\n"),
        json: json!({
            "job_id": id, "conversation_id": conversation, "verdict": "applied", "version": version, "keys": keys,
            "templates": templates.collect::<Map<_, _>>(), "unresolved": applied.unresolved,
            "recorded": applied.recorded, "request": body, "request_bytes": plan.body.as_ref().map(bytes::Bytes::len),
        }),
        applies: true,
    }
}
