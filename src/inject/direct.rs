//! `inject --direct`: a job without broker and Redis, by the worker's own pipeline.
//!
//! Nothing here promises more than the target's conditional write and the ledger do: no lane, no lease, no audit
//! chain, one attempt.

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bot::Bot;
use crate::config::{self, Config};
use crate::job::Job;
use crate::outcome::{Outcome, Subject, Timings};
use crate::pipeline::endings::{Ending, Task};
use crate::pipeline::execute::Executor;
use crate::pipeline::memory::Memory;
use crate::redis_link::RedisLink;
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
    let (mut endings, cost) = executor.run(std::slice::from_mut(&mut task), &mut Memory::default(), &mut None).await;
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
