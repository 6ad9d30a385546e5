//! Settings of one bot.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::address::{below, read_http_url};
use super::read_open_times;
use super::reader::Section;

/// One bot: its address, credentials and limits.
#[derive(Debug, Clone)]
pub struct Bot {
    /// Its name, the routing key of its jobs.
    pub name: String,
    /// The API that it speaks.
    pub dialect: Dialect,
    /// Address without a path of the API.
    pub base_url: Url,
    /// Where tokens are had.
    pub token_url: Url,
    /// OAuth2 client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Option<SecretString>,
    /// API key (`cognigy-v2`).
    pub api_key: Option<SecretString>,
    /// The user whose session is written (`cognigy-v2`); empty: the conversation's id.
    pub user_id: String,
    /// The source whose budget it shares; empty: none.
    pub source: String,
    /// Requests per second over all workers.
    pub requests_per_second: u32,
    /// Requests at once after a pause.
    pub burst: u32,
    /// Conversations worked on at the same time.
    pub concurrency: u16,
    /// Jobs held in memory.
    pub prefetch: u16,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time of a whole request.
    pub request_timeout: Duration,
    /// Bytes of one serialised value.
    pub max_value_bytes: usize,
    /// Bytes of one request body.
    pub max_payload_bytes: usize,
    /// What a conversation id looks like.
    pub conversation_id_pattern: regex::Regex,
    /// When the ledger is written.
    pub ledger: LedgerMode,
    /// The reserved variable that holds it.
    pub ledger_key: String,
    /// How what is sent meets what is there (`cognigy-v2`).
    pub merge_semantics: MergeSemantics,
    /// Whether events carry values.
    pub values_in_events: bool,
    /// First time for which a broken bot is left alone.
    pub breaker_open_for: Duration,
    /// Longest such time.
    pub breaker_open_max: Duration,
}

/// The APIs that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Versioned context with conditional PATCH.
    ContextV1,
    /// The vendor's published API, without versions.
    CognigyV2,
}

/// How what is sent meets what is there, which the vendor of `cognigy-v2` leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeSemantics {
    /// Nobody has tried: only plain values are sent.
    Undeclared,
    /// Keys that are not named stay, those that are are replaced whole, `null` removes.
    Shallow,
    /// The same, but objects are merged at every depth.
    Deep,
}

/// When the ledger is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerMode {
    /// Where a batch holds an operation that is not idempotent.
    Auto,
    /// With every batch.
    Always,
    /// Never; such operations are refused.
    Off,
}

pub(super) fn read(name: &str, section: &Section<'_>) -> Bot {
    let (breaker_open_for, breaker_open_max) = read_open_times(section);
    let dialect = section.choice("dialect", &[("context-v1", Dialect::ContextV1), ("cognigy-v2", Dialect::CognigyV2)]);
    let allow_http = section.boolean("allow_http");
    if dialect == Dialect::CognigyV2 {
        // 1,000 requests in five minutes, and bodies of 60 kB, is what the vendor's shared cloud takes.
        section.prefer("requests_per_second", 3);
        section.prefer("max_payload_bytes", 60_000);
    }
    let base_url = read_http_url(section, "base_url", "https://bot.example.com", allow_http);
    if let Some(part) = ["/api/v1", "/new/v2.0"].iter().find(|part| base_url.path().contains(*part)) {
        let text = format!("holds {part}; leave it out, the dialect adds it itself");
        section.problem("base_url", text);
    }
    let token_url = read_token_url(section, dialect, &base_url, allow_http);
    let (client_id, client_secret) = (section.text("client_id"), section.secret("client_secret"));
    let api_key = section.secret("api_key");
    match dialect {
        Dialect::ContextV1 if client_id.is_empty() || client_secret.is_none() => {
            section.problem("client_id", "and client_secret (or client_secret_file) are needed to get tokens");
        }
        Dialect::CognigyV2 if api_key.is_none() && (client_id.is_empty() || client_secret.is_none()) => {
            section.problem("api_key", "or client_id and client_secret are needed");
        }
        _ => {}
    }
    let pattern = section.required("conversation_id_pattern", "^conv_[0-9a-f]+$");
    // A pattern without anchors would let anything through that has a fitting part.
    let conversation_id_pattern = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap_or_else(|error| {
        section.problem("conversation_id_pattern", format!("{pattern:?} is not a regular expression: {error}"));
        #[expect(clippy::unwrap_used, reason = "a constant pattern")]
        regex::Regex::new("$^").unwrap()
    });
    let user_id = section.text("user_id");
    let merge_semantics = section.choice(
        "merge_semantics",
        &[
            ("undeclared", MergeSemantics::Undeclared),
            ("shallow", MergeSemantics::Shallow),
            ("deep", MergeSemantics::Deep),
        ],
    );
    let ledger = section
        .choice("ledger", &[("auto", LedgerMode::Auto), ("always", LedgerMode::Always), ("off", LedgerMode::Off)]);
    match dialect {
        Dialect::ContextV1 if merge_semantics != MergeSemantics::Undeclared => {
            section
                .problem("merge_semantics", "belongs to the dialect cognigy-v2; context-v1 has semantics of its own");
        }
        Dialect::CognigyV2 if ledger == LedgerMode::Always => {
            section.problem("ledger", "\"always\" is not possible with cognigy-v2, whose contexts cannot be read");
        }
        Dialect::ContextV1 | Dialect::CognigyV2 => {}
    }
    if dialect == Dialect::CognigyV2 {
        check_groups(section, &conversation_id_pattern, &user_id);
    }
    let ledger_key = section.required("ledger_key", "_injection_ledger");
    if !crate::job::is_key(&ledger_key) {
        section
            .problem("ledger_key", format!("{ledger_key:?} is not a name of a variable: letters, digits, underscore"));
    }
    let concurrency = section.integer("concurrency", 1..=1_024);
    Bot {
        name: name.to_owned(),
        dialect,
        base_url,
        token_url,
        client_id,
        client_secret,
        api_key,
        user_id,
        source: section.text("source"),
        requests_per_second: section.integer("requests_per_second", 1..=100_000),
        burst: section.integer("burst", 1..=10_000),
        concurrency: u16::try_from(concurrency).unwrap_or(u16::MAX),
        prefetch: u16::try_from(section.integer("prefetch", 1..=10_000)).unwrap_or(u16::MAX),
        connect_timeout: section.duration("connect_timeout", Duration::from_millis(10)..=Duration::from_secs(60)),
        request_timeout: section.duration("request_timeout", Duration::from_millis(10)..=Duration::from_secs(300)),
        max_value_bytes: section.integer("max_value_bytes", 1..=64_000_000) as usize,
        max_payload_bytes: section.integer("max_payload_bytes", 1..=64_000_000) as usize,
        conversation_id_pattern,
        ledger,
        ledger_key,
        merge_semantics,
        values_in_events: section.boolean("values_in_events"),
        breaker_open_for,
        breaker_open_max,
    }
}

/// Groups of the pattern say which part of an id is the session, the user, the profile.
fn check_groups(section: &Section<'_>, pattern: &regex::Regex, user_id: &str) {
    let names = pattern.capture_names().flatten().collect::<Vec<_>>();
    if let Some(name) = names.iter().find(|name| !["session", "user", "profile"].contains(name)) {
        let text = format!("has a group {name:?}; there are \"session\", \"user\" and \"profile\"");
        section.problem("conversation_id_pattern", text);
    }
    if names.contains(&"user") && !user_id.is_empty() {
        section.problem(
            "user_id",
            "is set together with a group \"user\" in conversation_id_pattern; keep one of the two",
        );
    }
}

fn read_token_url(section: &Section<'_>, dialect: Dialect, base_url: &Url, allow_http: bool) -> Url {
    if !section.text("token_url").is_empty() {
        return read_http_url(section, "token_url", "https://bot.example.com/api/v1/auth/token", allow_http);
    }
    let path = match dialect {
        Dialect::ContextV1 => "api/v1/auth/token",
        Dialect::CognigyV2 => "auth/oauth2/token",
    };
    below(base_url, path)
}
