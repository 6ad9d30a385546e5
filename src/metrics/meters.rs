//! The instruments that every job of a bot touches, looked up once: a look-up by name and labels costs more than
//! what it counts.
//!
//! Made after the recorder is installed; before that they count into nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super as names;
use crate::pipeline::verdict::Verdict;

/// The instruments of one bot's jobs.
#[derive(Debug)]
pub struct JobMeters {
    /// [`names::JOB_SECONDS`].
    pub job: Histogram,
    /// [`names::STAGE_SECONDS`], `lane`.
    pub lane: Histogram,
    /// [`names::STAGE_SECONDS`], `lease`.
    pub lease: Histogram,
    /// [`names::STAGE_SECONDS`], `execute`.
    pub execute: Histogram,
    /// [`names::STAGE_SECONDS`], `publish`.
    pub publish: Histogram,
    /// [`names::LEASE_WAIT_SECONDS`].
    pub lease_wait: Histogram,
    /// [`names::QUEUE_AGE_SECONDS`].
    pub queue_age: Histogram,
    /// [`names::BATCH_JOBS`].
    pub batch_jobs: Histogram,
    /// [`names::JOBS_HELD`].
    pub jobs_held: Gauge,
    /// [`names::LIMITER_WAIT_SECONDS`].
    pub limiter_wait: Histogram,
    /// [`names::BOT_BREAKER`].
    pub breaker: Gauge,
    /// [`names::LEDGER_ENTRIES`].
    pub ledger_entries: Histogram,
    /// [`names::LEDGER_BYTES`].
    pub ledger_bytes: Histogram,
    /// [`names::VERSION_CACHE`], `memory`.
    pub version_from_memory: Counter,
    /// [`names::VERSION_CACHE`], `redis`.
    pub version_from_redis: Counter,
    /// [`names::VERSION_CACHE`], `read`.
    pub version_from_read: Counter,
    applied: Counter,
    not_applied: Counter,
    unknown: Counter,
}

/// The instruments of one bot's requests.
#[derive(Debug)]
pub struct RequestMeters {
    bot: String,
    of: [Requests; 3],
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A state is read.
    Read,
    /// A state is written.
    Write,
    /// A token is fetched.
    Token,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Token];

    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Token => "token",
        }
    }
}

/// The requests of one purpose.
#[derive(Debug)]
struct Requests {
    seconds: Histogram,
    /// By status, in the order in which they were first seen: nearly all are of the first.
    counters: Mutex<Vec<(String, Counter)>>,
}

impl JobMeters {
    /// Those of the bot of that name.
    #[must_use]
    pub fn new(bot: &str) -> Self {
        let bot = bot.to_owned();
        let stage = |stage: &'static str| histogram!(names::STAGE_SECONDS, "bot" => bot.clone(), "stage" => stage);
        let version = |source: &'static str| counter!(names::VERSION_CACHE, "bot" => bot.clone(), "source" => source);
        let jobs = |verdict: &'static str| counter!(names::JOBS, "bot" => bot.clone(), "verdict" => verdict);
        Self {
            job: histogram!(names::JOB_SECONDS, "bot" => bot.clone()),
            lane: stage("lane"),
            lease: stage("lease"),
            execute: stage("execute"),
            publish: stage("publish"),
            lease_wait: histogram!(names::LEASE_WAIT_SECONDS, "bot" => bot.clone()),
            queue_age: histogram!(names::QUEUE_AGE_SECONDS, "bot" => bot.clone()),
            batch_jobs: histogram!(names::BATCH_JOBS, "bot" => bot.clone()),
            jobs_held: gauge!(names::JOBS_HELD, "bot" => bot.clone()),
            limiter_wait: histogram!(names::LIMITER_WAIT_SECONDS, "bot" => bot.clone()),
            breaker: gauge!(names::BOT_BREAKER, "bot" => bot.clone()),
            ledger_entries: histogram!(names::LEDGER_ENTRIES, "bot" => bot.clone()),
            ledger_bytes: histogram!(names::LEDGER_BYTES, "bot" => bot.clone()),
            version_from_memory: version("memory"),
            version_from_redis: version("redis"),
            version_from_read: version("read"),
            applied: jobs("applied"),
            not_applied: jobs("not_applied"),
            unknown: jobs("unknown"),
        }
    }

    /// [`names::JOBS`]: a job reached this verdict.
    pub fn count_verdict(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Applied => &self.applied,
            Verdict::NotApplied(_) => &self.not_applied,
            Verdict::Unknown(_) => &self.unknown,
        }
        .increment(1);
    }
}

impl RequestMeters {
    /// Those of the bot of that name.
    #[must_use]
    pub fn new(bot: &str) -> Self {
        let bot = bot.to_owned();
        let of = Purpose::ALL.map(|purpose| Requests {
            seconds: histogram!(names::REQUEST_SECONDS, "bot" => bot.clone(), "operation" => purpose.as_str()),
            counters: Mutex::default(),
        });
        Self { bot, of }
    }

    /// [`names::REQUESTS`] and [`names::REQUEST_SECONDS`]: a request ended, with an HTTP status or with what kept one
    /// from coming.
    pub fn count(&self, purpose: Purpose, status: &str, took: Duration) {
        let requests = &self.of[purpose as usize];
        requests.seconds.record(took);
        let mut counters = requests.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = counters.iter().find(|(of, _)| of == status) {
            return counter.increment(1);
        }
        let operation = purpose.as_str();
        let labels = [("bot", self.bot.clone()), ("operation", operation.to_owned()), ("status", status.to_owned())];
        let counter = counter!(names::REQUESTS, &labels);
        counter.increment(1);
        counters.push((status.to_owned(), counter));
    }
}
