//! Settings: one TOML file, environment overrides, secrets from files, annotated defaults compiled in
//! (`config/default.toml`). Everything is read once, at start, into types that cannot be wrong; a wrong setting
//! is a sentence that names it, its value and what is allowed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use toml::Table;
use url::Url;

use crate::audit::checkpoint::{self, Notary};

mod address;
mod bot;
mod command;
mod endpoint;
mod layers;
mod reader;

pub use address::{SecretUrl, below, show_host};
pub use bot::{Bot, Dialect, LedgerMode, MergeSemantics};
pub use command::{Command, run};
pub use endpoint::{Endpoint, EndpointKind};
use layers::Layers;
pub(crate) use reader::parse_duration;
use reader::{Environment, Section};
pub use reader::{Problem, show_duration};

/// The annotated defaults, as shipped.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// RabbitMQ.
    pub amqp: Amqp,
    /// Redis.
    pub redis: Redis,
    /// The admin HTTP server.
    pub admin: Admin,
    /// Logs.
    pub log: Log,
    /// The audit stream and the value digests.
    pub audit: Audit,
    /// The ladder of jobs.
    pub retry: Retry,
    /// The relay.
    pub relay: Relay,
    /// When a worker that stands still helps itself.
    pub watchdog: crate::worker::watchdog::Limits,
    /// Budgets that several bots share, by name.
    pub sources: BTreeMap<String, Source>,
    /// The bots by name.
    pub bots: BTreeMap<String, Bot>,
    /// The webhook receivers by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// What is in force, secrets redacted: what `config show` prints.
    effective: Table,
}

/// Where RabbitMQ is and how our exchanges and queues are named.
#[derive(Debug, Clone)]
pub struct Amqp {
    /// The address, credentials included.
    pub url: SecretUrl,
    /// Start of every name.
    pub prefix: String,
}

/// Where Redis is.
#[derive(Debug, Clone)]
pub struct Redis {
    /// The address, credentials included.
    pub url: SecretUrl,
    /// Start of every key.
    pub prefix: String,
}

/// The admin HTTP server.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Its address; port 0 is any free one.
    pub listen: SocketAddr,
}

/// Logs on standard error.
#[derive(Debug, Clone)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The filter, in `tracing`'s directive syntax.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The audit stream and the value digests.
#[derive(Debug, Clone)]
pub struct Audit {
    /// How long the broker keeps the stream.
    pub max_age: Duration,
    /// How much of it, in bytes.
    pub max_bytes: u64,
    /// Key of the digests of values.
    pub digest_key: Option<SecretString>,
    /// Signs checkpoints of the chain; without it there are none.
    pub notary: Option<Notary>,
}

impl Audit {
    /// The key of the digests: the setting's, else one that nobody else has.
    #[must_use]
    pub fn digest_key_or_random(&self) -> Vec<u8> {
        match &self.digest_key {
            Some(key) => key.expose_secret().as_bytes().to_vec(),
            None => rand::random::<[u8; 32]>().to_vec(),
        }
    }
}

/// The ladder of jobs.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The rungs; the last repeats.
    pub schedule: Vec<Duration>,
    /// Attempts after which a job is given up.
    pub max_attempts: u32,
    /// Deadline of a job that names none.
    pub deadline: Duration,
}

/// What all endpoints share.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Waits before the second and later tries.
    pub retry_schedule: Vec<Duration>,
    /// First time for which a broken endpoint is left alone.
    pub breaker_open_for: Duration,
    /// Longest such time.
    pub breaker_open_max: Duration,
}

/// A budget that several bots share: the platform counts requests by the address that they come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Requests in every window.
    pub requests: u32,
    /// The length of the window.
    pub per: Duration,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the settings file {path:?}")]
    Unreadable {
        /// Its path as given.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the settings file is not TOML: {0}")]
    Syntax(String),
    /// One or more settings are wrong.
    #[error("{}", show_problems(.0))]
    Wrong(Vec<Problem>),
}

fn show_problems(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{}: {}", problem.setting, problem.text));
    lines.collect::<Vec<_>>().join("\n       ")
}

impl Config {
    /// Reads the file (none: the defaults), the environment and the secret files.
    ///
    /// # Errors
    /// [`Error`]: all problems at once, each naming its setting.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| Error::Unreadable { path: path.display().to_string(), source })?,
        };
        let variables = std::env::vars_os();
        let variables =
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::parse(&text, variables)
    }

    /// Reads settings from a text and given environment variables.
    ///
    /// # Errors
    /// [`Error`]: all problems at once, each naming its setting.
    pub fn parse(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let user: Table = text.parse().map_err(|error: toml::de::Error| Error::Syntax(syntax_error(text, &error)))?;
        let defaults: Table = DEFAULTS.parse().map_err(|error: toml::de::Error| Error::Syntax(error.to_string()))?;
        let layers = Layers {
            user: &user,
            defaults: &defaults,
            environment: &Environment::new(variables),
            problems: &RefCell::default(),
        };
        let mut effective = Table::new();
        let config = Self {
            amqp: layers.section(&mut effective, "amqp", read_amqp),
            redis: layers.section(&mut effective, "redis", read_redis),
            admin: layers.section(&mut effective, "admin", read_admin),
            log: layers.section(&mut effective, "log", read_log),
            audit: layers.section(&mut effective, "audit", read_audit),
            retry: layers.section(&mut effective, "retry", read_retry),
            relay: layers.section(&mut effective, "relay", read_relay),
            watchdog: layers.section(&mut effective, "watchdog", read_watchdog),
            sources: layers.named(&mut effective, "sources", "example", read_source),
            bots: layers.named(&mut effective, "bots", "default", bot::read),
            endpoints: layers.named(&mut effective, "endpoints", "example", endpoint::read),
            effective: Table::new(),
        };
        config.check_sources(&layers);
        layers.report_unknown();
        let problems = layers.problems.take();
        if problems.is_empty() { Ok(Self { effective, ..config }) } else { Err(Error::Wrong(problems)) }
    }

    fn check_sources(&self, layers: &Layers<'_>) {
        for bot in self.bots.values().filter(|bot| !bot.source.is_empty() && !self.sources.contains_key(&bot.source)) {
            let (setting, source) = (format!("bots.{}.source", bot.name), &bot.source);
            let text = format!("{source:?} is no source; add a section [sources.{source}] with requests and per");
            layers.problems.borrow_mut().push(Problem { setting, text });
        }
    }

    /// What is in force, as TOML, secrets redacted.
    #[must_use]
    pub fn show(&self) -> String {
        toml::to_string_pretty(&self.effective).unwrap_or_default()
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    // The line itself is not shown: it may hold a secret.
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// A name that starts every exchange, queue or key.
fn read_prefix(section: &Section<'_>) -> String {
    let prefix = section.required("prefix", "context");
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if prefix.len() > 64 || !prefix.chars().all(fits) {
        section.problem("prefix", format!("{prefix:?} has other than 1 to 64 letters, digits, \"-\", \"_\" or \".\""));
    }
    prefix
}

fn read_secret_url(section: &Section<'_>, schemes: &[&str]) -> SecretUrl {
    let url = section.secret("url").map(|url| url.expose_secret().to_owned()).unwrap_or_default();
    let known = Url::parse(&url).is_ok_and(|url| schemes.contains(&url.scheme()) && url.has_host());
    if !known {
        // The value may hold a password.
        section.problem(
            "url",
            format!("is not an address that begins with {}:// (it is not shown)", schemes.join(":// or ")),
        );
    }
    let url = SecretUrl::new(url);
    section.note("url", url.to_string());
    url
}

fn read_amqp(section: &Section<'_>) -> Amqp {
    Amqp { url: read_secret_url(section, &["amqp", "amqps"]), prefix: read_prefix(section) }
}

fn read_redis(section: &Section<'_>) -> Redis {
    Redis { url: read_secret_url(section, &["redis", "rediss"]), prefix: read_prefix(section) }
}

fn read_admin(section: &Section<'_>) -> Admin {
    let text = section.text("listen");
    let listen = text.parse().unwrap_or_else(|_| {
        section.problem("listen", format!("{text:?} is not an address with a port, such as \"127.0.0.1:9464\""));
        SocketAddr::from(([127, 0, 0, 1], 0))
    });
    Admin { listen }
}

fn read_log(section: &Section<'_>) -> Log {
    let format = section.choice("format", &[("human", LogFormat::Human), ("json", LogFormat::Json)]);
    let level = section.text("level");
    if let Err(error) = level.parse::<tracing_subscriber::filter::EnvFilter>() {
        section.problem("level", format!("{level:?} is not a level or filter such as \"info\": {error}"));
    }
    Log { format, level }
}

fn read_audit(section: &Section<'_>) -> Audit {
    let digest_key = section.secret("digest_key");
    if digest_key.as_ref().is_some_and(|key| key.expose_secret().len() < 32) {
        section.problem("digest_key", "is shorter than 32 bytes (it is not shown)");
    }
    let every = u64::from(section.integer("checkpoint_every", 1..=1_000_000_000));
    let notary = section.secret("signing_key").and_then(|pem| match checkpoint::private_key(pem.expose_secret()) {
        Ok(key) => Some(Notary { key, every }),
        Err(error) => {
            section.problem("signing_key", error.to_string());
            None
        }
    });
    Audit {
        max_age: section.duration("max_age", Duration::from_secs(60)..=days(3_650)),
        max_bytes: section.bytes("max_bytes"),
        digest_key,
        notary,
    }
}

fn read_retry(section: &Section<'_>) -> Retry {
    Retry {
        schedule: section.durations("schedule", Duration::from_millis(10)..=days(1)),
        max_attempts: section.integer("max_attempts", 1..=1_000),
        deadline: section.duration("deadline", Duration::from_secs(1)..=days(1)),
    }
}

fn read_watchdog(section: &Section<'_>) -> crate::worker::watchdog::Limits {
    let range = || Duration::from_millis(10)..=days(1);
    let (rebuild_after, exit_after) =
        (section.duration("rebuild_after", range()), section.duration("exit_after", range()));
    if exit_after < rebuild_after {
        section.problem("exit_after", "is shorter than rebuild_after");
    }
    crate::worker::watchdog::Limits { rebuild_after, exit_after }
}

fn read_source(_: &str, section: &Section<'_>) -> Source {
    let per = section.duration("per", Duration::from_secs(1)..=days(1));
    Source { requests: section.integer("requests", 1..=100_000_000), per }
}

fn read_relay(section: &Section<'_>) -> Relay {
    let (breaker_open_for, breaker_open_max) = read_open_times(section);
    let retry_schedule = section.durations("retry_schedule", Duration::from_millis(10)..=days(7));
    Relay { retry_schedule, breaker_open_for, breaker_open_max }
}

fn read_open_times(section: &Section<'_>) -> (Duration, Duration) {
    let range = || Duration::from_millis(10)..=days(1);
    let (first, longest) =
        (section.duration("breaker_open_for", range()), section.duration("breaker_open_max", range()));
    if first > longest {
        section.problem("breaker_open_for", "is longer than breaker_open_max");
    }
    (first, longest)
}

const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 86_400)
}

#[cfg(test)]
mod tests;
