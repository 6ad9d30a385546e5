//! What all work of one bot shares: its settings, its target, its budget, its breaker, its pause.
//!
//! [`Bot::read`] and [`Bot::write`] are the only way to the target for the pipeline. Each waits at one gate (the
//! breaker, a pause, the budget), sends one request, and tells breaker and limiter what the answer means for the
//! requests after it. Repeating is the caller's decision. Who must be able to give up waiting, or to decide as late
//! as possible what to send, takes a [`Bot::permit`] first.
//!
//! While the bot is held ([`Bot::holding`]) no new work is started ([`Bot::ready`]); work under way waits at the
//! gate, under its own deadline.

mod permit;
mod stock;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::stock::Stock;
use crate::breaker::{Breaker, Phase, Settings, Sign};
use crate::config;
use crate::job::{ConversationId, Version};
use crate::limiter::Limiter;
use crate::limiter::meter::Meter;
use crate::metrics::{self as names, JobMeters};
use crate::redis_link::RedisLink;
use crate::target::{Failure, Read, SetUpError, Target, Write};

/// Pause after wrong credentials: nothing but a change of settings, here or there, ends that.
const CREDENTIALS_PAUSE: Duration = Duration::from_secs(30);
/// First pause after a 429 that does not say how long; doubles.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
const THROTTLED_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Shortest pause, for a target that says 0.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// One bot at work.
#[derive(Debug)]
pub struct Bot {
    config: config::Bot,
    meters: JobMeters,
    target: Target,
    limiter: Limiter,
    breaker: Mutex<Breaker>,
    /// Something at the gate changed.
    changed: Notify,
    pauses: Mutex<Pauses>,
    stock: Stock,
}

#[derive(Debug, Default)]
struct Pauses {
    why: Option<Why>,
    /// 429s without a `Retry-After`, one counted per pause.
    in_a_row: u32,
    /// What the metric says.
    shown: Option<Why>,
}

/// Why a bot is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Too much failed.
    BreakerOpen,
    /// The target asked for a pause.
    Throttled,
    /// The target does not take our credentials.
    Credentials,
}

impl Why {
    /// The reason as one word, for metrics and readiness.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BreakerOpen => "breaker_open",
            Self::Throttled => "throttled",
            Self::Credentials => "credentials",
        }
    }
}

/// No work is started until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Why.
    pub why: Why,
    /// The earliest end.
    pub until: Instant,
}

pub use permit::Permit;

/// An answer and what it cost.
#[derive(Debug)]
pub struct Spent<T> {
    /// The answer.
    pub answer: T,
    /// Time at the gate: breaker, pause, budget.
    pub waited: Duration,
    /// Time of the target, token included.
    pub took: Duration,
    /// Requests that it took of the budget.
    pub requests: u32,
}

impl Bot {
    /// A bot ready for work; nothing is sent yet. `source` is the budget that it shares with other bots.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(
        config: config::Bot,
        redis: Arc<RedisLink>,
        source: Option<Arc<Meter>>,
    ) -> Result<Arc<Self>, SetUpError> {
        let target = Target::new(&config)?;
        let limiter = Limiter::new(&config, redis, source);
        let breaker = Mutex::new(Breaker::new(Settings::of_bot(&config)));
        let meters = JobMeters::new(&config.name);
        Ok(Arc::new(Self {
            config,
            meters,
            target,
            limiter,
            breaker,
            changed: Notify::new(),
            pauses: Mutex::default(),
            stock: Stock::new(Instant::now()),
        }))
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &config::Bot {
        &self.config
    }

    /// Its instruments.
    #[must_use]
    pub fn meters(&self) -> &JobMeters {
        &self.meters
    }

    /// Reads a conversation, when the gate lets it.
    pub async fn read(self: &Arc<Self>, conversation: &ConversationId, trace: Option<&str>) -> Spent<Read> {
        let permit = self.permit().await;
        self.read_now(permit, conversation, trace).await
    }

    /// Reads a conversation.
    pub async fn read_now(
        self: &Arc<Self>,
        mut permit: Permit,
        conversation: &ConversationId,
        trace: Option<&str>,
    ) -> Spent<Read> {
        let (waited, sent, mut requests) = (permit.use_up(), Instant::now(), 1);
        let again = || {
            requests += 1;
            async {
                self.spend(1).await;
            }
        };
        let answer = self.target.read_charged(conversation, trace, again).await;
        let took = sent.elapsed();
        let failure = match &answer {
            Read::Observed(_) => None,
            Read::Failed(failure) => Some(failure),
        };
        self.learn(permit, failure).await;
        Spent { answer, waited, took, requests }
    }

    /// Writes `body` (of [`crate::target::encode`]), when the gate lets it and if the conversation is still at
    /// version `if_match`.
    pub async fn write(
        self: &Arc<Self>,
        conversation: &ConversationId,
        body: Bytes,
        if_match: Option<&Version>,
        trace: Option<&str>,
    ) -> Spent<Write> {
        let permit = self.permit().await;
        self.write_now(permit, conversation, body, if_match, trace).await
    }

    /// Writes `body` (of [`crate::target::encode`]), if the conversation is still at version `if_match`. Cancelling
    /// this leaves it unknown whether it took effect.
    pub async fn write_now(
        self: &Arc<Self>,
        mut permit: Permit,
        conversation: &ConversationId,
        body: Bytes,
        if_match: Option<&Version>,
        trace: Option<&str>,
    ) -> Spent<Write> {
        let (waited, sent, mut requests) = (permit.use_up(), Instant::now(), 1);
        let again = || {
            requests += 1;
            async {
                self.spend(1).await;
            }
        };
        let answer = self.target.write_charged(conversation, body, if_match, trace, again).await;
        let took = sent.elapsed();
        let failure = match &answer {
            Write::Applied { .. } => None,
            Write::Conflict => {
                metrics::counter!(names::CONFLICTS, "bot" => self.config.name.clone()).increment(1);
                None
            }
            Write::Failed(failure) => Some(failure),
        };
        if let Some(Failure::Ambiguous(_)) = failure {
            metrics::counter!(names::AMBIGUOUS, "bot" => self.config.name.clone()).increment(1);
        }
        self.learn(permit, failure).await;
        Spent { answer, waited, took, requests }
    }

    /// Waits until work may be started.
    pub async fn ready(&self) {
        while let Some(holding) = self.holding() {
            sleep_until(holding.until).await;
        }
    }

    /// Why and until when no work is started; `None`: it may be.
    #[must_use]
    pub fn holding(&self) -> Option<Holding> {
        let open_until = self.breaker().open_until(Instant::now());
        let paused_until = self.limiter.paused_until();
        let mut pauses = self.pauses();
        let holding = match (open_until, paused_until) {
            (Some(until), _) => Some(Holding { why: Why::BreakerOpen, until }),
            (None, Some(until)) => Some(Holding { why: pauses.why.unwrap_or(Why::Throttled), until }),
            (None, None) => None,
        };
        let why = holding.map(|holding| holding.why);
        if pauses.shown != why {
            let gauge = |why: Why, value: f64| {
                let bot = self.config.name.clone();
                metrics::gauge!(names::BOT_HOLDING, "bot" => bot, "why" => why.as_str()).set(value);
            };
            pauses.shown.into_iter().for_each(|why| gauge(why, 0.0));
            why.into_iter().for_each(|why| gauge(why, 1.0));
            pauses.shown = why;
        }
        holding
    }

    /// The breaker's phase, for metrics.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.breaker().phase(Instant::now())
    }

    /// What an answer means for the requests after it.
    async fn learn(&self, permit: Permit, failure: Option<&Failure>) {
        match failure {
            None | Some(Failure::NotFound(_) | Failure::Refused(_) | Failure::HalfDone(_)) => {
                self.pauses().in_a_row = 0;
                permit.report(Sign::Healthy);
            }
            Some(Failure::NotSent(_) | Failure::Ambiguous(_)) => permit.report(Sign::Broken),
            Some(Failure::Throttled { retry_after, .. }) => {
                permit.report(Sign::None);
                let time = self.throttled_for(*retry_after);
                self.limiter.pause(time).await;
            }
            Some(failure @ Failure::Credentials(_)) => {
                permit.report(Sign::None);
                if self.begins(Why::Credentials) {
                    tracing::error!(bot = self.config.name, %failure, "the bot is paused: its credentials are not taken");
                }
                // Other workers may have been given other credentials.
                self.limiter.pause_here(CREDENTIALS_PAUSE);
            }
        }
    }

    /// How long a 429 pauses the bot.
    fn throttled_for(&self, retry_after: Option<Duration>) -> Duration {
        let begins = self.begins(Why::Throttled);
        let mut pauses = self.pauses();
        let time = match retry_after {
            Some(time) => time.max(SHORTEST_PAUSE),
            None => {
                // Those that were under way when the pause began ask for no more than it.
                let doublings = if begins { pauses.in_a_row } else { pauses.in_a_row.saturating_sub(1) };
                let time = THROTTLED_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(THROTTLED_PAUSE_MAX);
                pauses.in_a_row = pauses.in_a_row.saturating_add(u32::from(begins)).min(16);
                time
            }
        };
        if begins {
            tracing::warn!(
                bot = self.config.name,
                seconds = time.as_secs_f64(),
                "the target asked for a pause of the bot"
            );
        }
        time
    }

    /// Notes why the bot is paused, and tells whether it was not before.
    fn begins(&self, why: Why) -> bool {
        let begins = self.limiter.paused_until().is_none();
        let mut pauses = self.pauses();
        let changes = begins || pauses.why != Some(why);
        pauses.why = Some(why);
        changes
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
