//! The names of exchanges and queues: other people's programs are written against them.

use std::time::Duration;

use crate::config::show_duration;

/// Names below one prefix (`context` unless the settings say otherwise).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names that begin with `prefix`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Exchange of jobs; producers publish with the bot as routing key.
    #[must_use]
    pub fn jobs(&self) -> String {
        self.name("jobs")
    }

    /// Queue of one bot's jobs.
    #[must_use]
    pub fn jobs_of(&self, bot: &str) -> String {
        format!("{}.{bot}", self.jobs())
    }

    /// The bot whose queue has this name.
    #[must_use]
    pub fn bot_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.jobs())?.strip_prefix('.')
    }

    /// Exchange and queue of a rung of the jobs' ladder.
    #[must_use]
    pub fn jobs_retry(&self, delay: Duration) -> String {
        format!("{}.retry.{}", self.jobs(), show_duration(delay))
    }

    /// Queue of jobs that ended in failure.
    #[must_use]
    pub fn jobs_dead(&self) -> String {
        self.jobs_of("dead")
    }

    /// Queue of jobs that crashed a worker, or were near when one crashed.
    #[must_use]
    pub fn jobs_quarantine(&self) -> String {
        self.jobs_of("quarantine")
    }

    /// Exchange and queue of jobs for bots that nobody configured.
    #[must_use]
    pub fn jobs_unroutable(&self) -> String {
        self.jobs_of("unroutable")
    }

    /// Exchange of outcome events; routing key `<bot>.<verdict>`.
    #[must_use]
    pub fn outcomes(&self) -> String {
        self.name("outcomes")
    }

    /// Stream of all outcome events.
    #[must_use]
    pub fn audit(&self) -> String {
        self.name("audit")
    }

    /// Exchange back to an endpoint's queue, with its name as routing key.
    #[must_use]
    pub fn webhooks(&self) -> String {
        self.name("webhooks")
    }

    /// Queue of one endpoint's events.
    #[must_use]
    pub fn webhooks_of(&self, endpoint: &str) -> String {
        format!("{}.{endpoint}", self.webhooks())
    }

    /// The endpoint whose queue has this name.
    #[must_use]
    pub fn endpoint_of<'a>(&self, queue: &'a str) -> Option<&'a str> {
        queue.strip_prefix(&self.webhooks())?.strip_prefix('.')
    }

    /// Exchange and queue of a rung of the webhooks' ladder.
    #[must_use]
    pub fn webhooks_retry(&self, delay: Duration) -> String {
        format!("{}.retry.{}", self.webhooks(), show_duration(delay))
    }

    /// Queue of deliveries that were given up.
    #[must_use]
    pub fn webhooks_dead(&self) -> String {
        self.webhooks_of("dead")
    }

    /// Queue of events that crashed a relay, or were near when one crashed.
    #[must_use]
    pub fn webhooks_quarantine(&self) -> String {
        self.webhooks_of("quarantine")
    }

    /// Exchange and queue of events whose endpoint's queue is gone.
    #[must_use]
    pub fn webhooks_unroutable(&self) -> String {
        self.webhooks_of("unroutable")
    }

    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_other_programs_use() {
        let names = Names::new("context");
        assert_eq!(names.jobs_of("default"), "context.jobs.default");
        assert_eq!(names.jobs_retry(Duration::from_secs(5)), "context.jobs.retry.5s");
        assert_eq!(names.webhooks_retry(Duration::from_secs(86_400)), "context.webhooks.retry.24h");
        assert_eq!(names.jobs_unroutable(), "context.jobs.unroutable");
        assert_eq!(names.bot_of("context.jobs.default"), Some("default"));
        assert_eq!(names.bot_of("context.webhooks.x"), None);
        assert_eq!(names.endpoint_of("context.webhooks.x"), Some("x"));
    }
}
