//! The bot platform's API, in the two dialects that we speak.
//!
//! Callers see conversations, variables, versions and a closed set of answers; paths, header names and body
//! forms stay below this module. Rules:
//! - A request is sent once. Repeating it, pausing and giving up are decisions of the caller, who has the
//!   budget; the one exception is a token that the target no longer takes (`token`).
//! - An answer is classified by what is *certain* about its effect: nothing happened, it may have happened, it
//!   happened. Whatever is not certain is [`Failure::Ambiguous`].
//! - Answers are read up to a limit, and nothing of them that could be a value reaches logs, errors or metrics.
//!
//! Odd cases: a 2xx whose body is cut, too long or no JSON is still a write that happened, without a version to
//! build on; an `ETag` beats a version in the body unless it is a weak one that says something else (web
//! frameworks add those on their own, as a hash of the answer).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::config::{self, Dialect};
use crate::job::{ConversationId, Job, Name, Scope, Version};

mod answer;
mod client;
mod cognigy_v2;
mod context_v1;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod token;

/// What a write does to one variable.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which variable.
    pub name: Name,
    /// Its new value; `None` removes it.
    pub value: Option<Value>,
}

/// The body of one write: exactly these bytes are sent, each time. Limits are counted on them.
///
/// `changes` name a key once: the wire form of a write has one place for a key.
#[must_use]
pub fn encode(bot: &config::Bot, conversation: &ConversationId, changes: &[Change]) -> Bytes {
    match bot.dialect {
        Dialect::ContextV1 => context_v1::encode(conversation, changes),
        Dialect::CognigyV2 => cognigy_v2::encode(bot, conversation, changes),
    }
}

/// Whether a write can be tied to the version that was read, so that no other writer's change is lost and a
/// repeated request cannot apply twice.
#[must_use]
pub fn has_precondition(dialect: Dialect) -> bool {
    match dialect {
        Dialect::ContextV1 => true,
        Dialect::CognigyV2 => false,
    }
}

/// Whether a read shows the variables of a scope.
#[must_use]
pub fn shows(dialect: Dialect, scope: Scope) -> bool {
    match dialect {
        Dialect::ContextV1 => true,
        Dialect::CognigyV2 => scope == Scope::User,
    }
}

/// Whether the bot's API can do what the job asks for.
///
/// # Errors
/// The sentence that says what it cannot do (`unsupported_by_dialect`), and which setting would declare that it can.
pub fn supports(bot: &config::Bot, job: &Job) -> Result<(), String> {
    match bot.dialect {
        Dialect::ContextV1 => Ok(()),
        Dialect::CognigyV2 => cognigy_v2::supports(bot, job),
    }
}

/// How many of the first jobs may share one write, as far as the API is concerned.
#[must_use]
pub fn together<'a>(dialect: Dialect, jobs: impl ExactSizeIterator<Item = &'a Job>) -> usize {
    match dialect {
        Dialect::ContextV1 => jobs.len(),
        Dialect::CognigyV2 => cognigy_v2::together(jobs),
    }
}

/// A conversation as the target showed it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Its version; without one no conditional write can be built on this.
    pub version: Option<Version>,
    /// Its variables; what reads as `null` is absent.
    pub variables: BTreeMap<Name, Value>,
}

/// A conversation as a file shows it: the body of an answer to a read of `context-v1`.
///
/// # Errors
/// What of it is not understood.
pub fn parse_state(conversation: &ConversationId, body: Bytes) -> Result<Observed, Failure> {
    context_v1::parse_state(conversation, body)
}

/// How a read ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// The conversation was seen.
    Observed(Observed),
    /// It was not. A read has no effect, so here [`Failure::Ambiguous`] means an outage like
    /// [`Failure::NotSent`].
    Failed(Failure),
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// It took effect.
    Applied {
        /// The conversation's version since; `None`: the target did not say.
        version: Option<Version>,
    },
    /// It had no effect, because the conversation is no longer at the version of the precondition.
    Conflict,
    /// It failed.
    Failed(Failure),
}

/// Why a request did not do what it should: the closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 404, 410: there is no such conversation.
    #[error("there is no such conversation: {0}")]
    NotFound(Detail),
    /// 400, 413, 422 and other 4xx: this request will never be taken. No effect.
    #[error("the target refused the request: {0}")]
    Refused(Detail),
    /// 429: too many requests. No effect.
    #[error("the target asked for a pause: {detail}")]
    Throttled {
        /// How long the target wants to be left alone, at most [`MAX_RETRY_AFTER`]; `None`: it did not say.
        retry_after: Option<Duration>,
        /// What it said.
        detail: Detail,
    },
    /// 401 with a fresh token, 403, or a refusal of the token end point: settings are wrong, every request of
    /// the bot will fail. No effect.
    #[error("the target does not take the bot's credentials: {0}")]
    Credentials(Detail),
    /// No connection, or no token because its end point is down. Certainly no effect.
    #[error("the request could not be sent: {0}")]
    NotSent(Detail),
    /// The write was two requests, the first took effect, and the second will never be taken.
    #[error("half of the job took effect: {0}")]
    HalfDone(Detail),
    /// 5xx, time-out, a connection that broke: may have taken effect.
    #[error("it is not known whether the request took effect: {0}")]
    Ambiguous(Detail),
}

/// Longest pause that is taken from a target's `Retry-After`: the window of the longest limit that is known
/// (1,000 requests in 5 minutes). A longer wish is more often a bug than a limit, and one request after five
/// minutes does no harm.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

impl Failure {
    /// What an operator needs to know about it.
    #[must_use]
    pub fn detail(&self) -> &Detail {
        match self {
            Self::NotFound(detail)
            | Self::Refused(detail)
            | Self::Throttled { detail, .. }
            | Self::Credentials(detail)
            | Self::NotSent(detail)
            | Self::HalfDone(detail)
            | Self::Ambiguous(detail) => detail,
        }
    }
}

/// What an operator needs to know about a failure: never a value, a token or a whole address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// The target's own error code (RFC 9457 body, `code`).
    pub code: Option<String>,
    /// The target's name of the request, to be given to its operators.
    pub trace_id: Option<String>,
    /// One sentence, lower case, without a full stop.
    pub text: String,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(code) = &self.code {
            write!(f, ", code {code}")?;
        }
        if let Some(trace_id) = &self.trace_id {
            write!(f, ", trace id {trace_id}")?;
        }
        Ok(())
    }
}

/// One bot's API: a connection pool, a token, a dialect. Cheap to share by reference, to be made once per bot.
#[derive(Debug)]
pub struct Target {
    dialect: Wire,
}

#[derive(Debug)]
enum Wire {
    ContextV1(context_v1::ContextV1),
    CognigyV2(cognigy_v2::CognigyV2),
}

impl Wire {
    fn new(bot: &config::Bot) -> Result<Self, SetUpError> {
        let http = http::Http::new(bot)?;
        Ok(match bot.dialect {
            Dialect::ContextV1 => Self::ContextV1(context_v1::ContextV1::new(bot, http)?),
            Dialect::CognigyV2 => Self::CognigyV2(cognigy_v2::CognigyV2::new(bot, http)?),
        })
    }
}

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The machine's certificate store or TLS set-up is broken.
    #[error("cannot set up TLS to the platform of bot {bot}")]
    Tls {
        /// The bot.
        bot: String,
        /// What is broken.
        source: rustls::Error,
    },
    /// An address that is none for HTTP (RFC 9110, 4.1).
    #[error("bots.{bot}.{setting} is no address that requests can be sent to")]
    Address {
        /// The bot.
        bot: String,
        /// Which setting of it.
        setting: &'static str,
        /// What is wrong with it.
        source: hyper::http::uri::InvalidUri,
    },
}

impl Target {
    /// Sets up the client; nothing is sent yet.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(bot: &config::Bot) -> Result<Self, SetUpError> {
        Ok(Self { dialect: Wire::new(bot)? })
    }

    /// Reads a conversation. `trace` is the `traceparent` to pass on (W3C Trace Context).
    pub async fn read(&self, conversation: &ConversationId, trace: Option<&str>) -> Read {
        self.read_charged(conversation, trace, || std::future::ready(())).await
    }

    /// Writes `body` (of [`encode`]), if the conversation is still at version `if_match`.
    pub async fn write(
        &self,
        conversation: &ConversationId,
        body: Bytes,
        if_match: Option<&Version>,
        trace: Option<&str>,
    ) -> Write {
        self.write_charged(conversation, body, if_match, trace, || std::future::ready(())).await
    }

    /// [`Self::read`] under a budget: `again` is awaited before each request but the first (a token had become
    /// invalid).
    pub async fn read_charged<A>(
        &self,
        conversation: &ConversationId,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Read
    where
        A: Future<Output = ()> + Send,
    {
        match &self.dialect {
            Wire::ContextV1(dialect) => dialect.read(conversation, trace, again).await,
            Wire::CognigyV2(dialect) => dialect.read(conversation, trace, again).await,
        }
    }

    /// [`Self::write`] under a budget: `again` is awaited before each request but the first (a token had become
    /// invalid, or the dialect needs several).
    pub async fn write_charged<A>(
        &self,
        conversation: &ConversationId,
        body: Bytes,
        if_match: Option<&Version>,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Write
    where
        A: Future<Output = ()> + Send,
    {
        match &self.dialect {
            Wire::ContextV1(dialect) => dialect.write(body, if_match, trace, again).await,
            Wire::CognigyV2(dialect) => dialect.write(conversation, &body, if_match, trace, again).await,
        }
    }
}

#[cfg(test)]
mod tests;
