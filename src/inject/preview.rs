//! `inject --dry-run`: what jobs would do, by the worker's own planner. Reads, and sends no write.
//!
//! Jobs of one conversation are planned on what the ones before them would leave, each in a request of its own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::bot::Bot;
use crate::config;
use crate::job::{ConversationId, Job, Name};
use crate::pipeline::evicted::Evicted;
use crate::pipeline::ledger::Mark;
use crate::pipeline::plan::{self, Candidate, Fate, Ground, Plan};
use crate::pipeline::snapshot::{Contents, Snapshot};
use crate::pipeline::verdict::{Reason, Rejection, Verdict};
use crate::redis_link::RedisLink;
use crate::target::{self, Observed, Read};
use crate::trace::new_traceparent;

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

/// Previews of jobs, one after the other.
#[derive(Debug)]
pub struct Previews<'a> {
    bot: &'a config::Bot,
    /// The state to plan on instead of asking the platform.
    state: Option<&'a Path>,
    /// The conversations as the jobs so far would leave them: at most one entry a job.
    conversations: BTreeMap<ConversationId, Observed>,
}

impl<'a> Previews<'a> {
    /// Previews on the state in `state`, or on what the platform shows.
    #[must_use]
    pub fn new(bot: &'a config::Bot, state: Option<&'a Path>) -> Self {
        Self { bot, state, conversations: BTreeMap::new() }
    }

    /// The plan of the next job.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn next(&mut self, job: &Job) -> anyhow::Result<Preview> {
        let bot = self.bot;
        if let Err(text) = target::supports(bot, job) {
            return Ok(refusal(job, &Rejection::new(Reason::UnsupportedByDialect, text)));
        }
        let now = Timestamp::now();
        let needs_state = target::has_precondition(bot.dialect) || job.needs_values() || self.state.is_some();
        let snapshot = if needs_state {
            let Observed { version, variables } = self.observe(&job.conversation).await?;
            Snapshot::read(version, variables, &bot.ledger_key, None, now)
        } else {
            Snapshot { version: None, contents: Contents::VersionOnly, fresh: true, reset: None }
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
            before: None,
        };
        let evicted = Evicted::default();
        let ground = Ground { bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &evicted, now };
        let plan = plan::plan(ground, &[candidate], 1, None);
        if let Some(conversation) = self.conversations.get_mut(&job.conversation) {
            for change in &plan.changes {
                match &change.value {
                    Some(value) => conversation.variables.insert(change.name.clone(), value.clone()),
                    None => conversation.variables.remove(&change.name),
                };
            }
        }
        Ok(describe(bot, job, &snapshot, &plan))
    }

    /// The conversation as the jobs so far would leave it.
    async fn observe(&mut self, conversation: &ConversationId) -> anyhow::Result<Observed> {
        if let Some(observed) = self.conversations.get(conversation) {
            return Ok(observed.clone());
        }
        let observed = match self.state {
            Some(path) => {
                let path_shown = path.display();
                let body = std::fs::read(path).with_context(|| format!("cannot read the state in {path_shown}"))?;
                target::parse_state(conversation, body.into()).map_err(|failure| {
                    let why = &failure.detail().text;
                    anyhow!(
                        "the state in {path_shown} is not understood ({why}); it is the body of the platform's answer to a \
                         read, such as {{\"contextVersion\": 1, \"context\": {{\"key\": {{\"value\": 1, \"scope\": \"user\"}}}}}}"
                    )
                })?
            }
            None => {
                let runtime = Bot::new(self.bot.clone(), RedisLink::absent(), None)?;
                match runtime.read(conversation, Some(&new_traceparent())).await.answer {
                    Read::Observed(observed) => observed,
                    Read::Failed(failure) => {
                        return Err(failure)
                            .context("cannot read the conversation (with --state FILE the platform is not asked)");
                    }
                }
            }
        };
        Ok(self.conversations.entry(conversation.clone()).or_insert(observed).clone())
    }
}

/// How a value that is not there is shown.
const ABSENT: &str = "(absent)";

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
    let before = |name: &Name| snapshot.variables().and_then(|variables| variables.get(name));
    // What cannot be read is not known, which is not the same as absent.
    let is_known = |name: &Name| snapshot.variables().is_some() && target::shows(bot.dialect, name.scope);
    let mut lines = vec![match &plan.body {
        Some(body) => format!("{id} would write to {conversation}{at}, in one request of {} bytes:", body.len()),
        None => format!("{id} would change nothing in {conversation}{at}; no request would be sent:"),
    }];
    let mut keys = Map::new();
    for key in &applied.keys {
        let before_it = match before(&key.name) {
            Some(value) => value.to_string(),
            None if is_known(&key.name) => ABSENT.to_owned(),
            None => "(not known)".to_owned(),
        };
        let after = key.value.as_ref().map_or_else(|| ABSENT.to_owned(), ToString::to_string);
        let word = serde_json::to_value(key.result).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        lines.push(format!("  {}: {before_it} → {after} ({word})", key.name));
        let row =
            json!({ "scope": key.name.scope, "result": key.result, "before": before(&key.name), "after": key.value });
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
