//! What the simulated platform is like, before any fault: credentials, limits and the forms in which it answers.
//!
//! Where the contract leaves a form open (the version as a number, a string or an `ETag`; 409 or 412; seconds or a
//! date), each form is a setting, so that a client can be tried against all of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::second_writer::SecondWriter;

/// Everything that can be chosen when a sandbox starts.
#[derive(Clone)]
pub struct Settings {
    /// Address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// OAuth2 client id, of both dialects.
    pub client_id: String,
    /// OAuth2 client secret, of both dialects.
    pub client_secret: String,
    /// Key accepted in `X-API-Key` (`cognigy-v2`).
    pub api_key: String,
    /// Life of an access token; reported as `expires_in`, rounded down to seconds.
    pub token_ttl: Duration,
    /// Requests per second that `context-v1` admits; 0 is unlimited.
    pub rate: f64,
    /// Requests admitted at once before the rate counts; 0 means one second's worth.
    pub burst: u32,
    /// The form of `Retry-After` in an answer 429.
    pub retry_after: RetryAfter,
    /// Where and how answers carry the version.
    pub version_form: VersionForm,
    /// The status of a failed `If-Match`.
    pub conflict: ConflictStatus,
    /// Refuse a PATCH without `If-Match` with 428; otherwise it is applied and counted as unconditional.
    pub require_if_match: bool,
    /// A conversation whose id fits the pattern comes into being when it is first touched; otherwise 404.
    pub auto_create: bool,
    /// Ids of conversations that come into being on their own.
    pub conversation_id_pattern: String,
    /// Bytes of one serialised value; more is refused with 400.
    pub max_value_bytes: usize,
    /// Bytes of one request body of `context-v1`; more is refused with 413.
    pub max_payload_bytes: usize,
    /// Numbers are kept as the JavaScript runtime of the platform keeps them: as doubles (`1.50` reads as `1.5`).
    pub javascript_numbers: bool,
    /// A read leaves the scope out where it is `conversation`.
    pub omit_default_scope: bool,
    /// Entries kept in the history; the oldest are dropped and counted.
    pub history_entries: usize,
    /// Bytes, estimated, kept in the history; the oldest entries are dropped and counted.
    pub history_bytes: usize,
    /// What every draw of the faults and of the second writer depends on.
    pub seed: u64,
    /// The faults at the start.
    pub faults: Faults,
    /// The second writer at the start.
    pub second_writer: SecondWriter,
    /// What only `cognigy-v2` has.
    pub v2: V2Settings,
}

/// The settings of the dialect `cognigy-v2`.
#[derive(Clone, Debug, PartialEq)]
pub struct V2Settings {
    /// Requests admitted per window; 0 is unlimited.
    pub requests: u32,
    /// Length of the window.
    pub window: Duration,
    /// Bytes of one request body; more is refused with 413.
    pub max_body_bytes: usize,
    /// Bytes of the whole context after a write; more is refused with 413.
    pub max_context_bytes: usize,
    /// How an injected context meets the stored one (the vendor does not say).
    pub merge: V2Merge,
    /// A `null` is stored; otherwise it removes the key (the vendor does not say).
    pub keep_null: bool,
}

/// How an injected context of `cognigy-v2` meets the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum V2Merge {
    /// Top-level keys are replaced one by one, the others stay.
    Shallow,
    /// Objects are merged at every depth.
    Deep,
    /// The injected context is all that remains.
    Replace,
}

/// Where and how an answer of `context-v1` carries the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionForm {
    /// `"contextVersion": 41`
    ContextVersion,
    /// `"version": 41`
    Version,
    /// `"contextVersion": "k3…"`, a string without order
    Opaque,
    /// only the header `ETag: "k3…"`
    Etag,
    /// `"contextVersion": 41` and `ETag: "41"`
    Both,
}

/// The status of a failed `If-Match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ConflictStatus {
    /// 409, as the contract says.
    #[value(name = "409")]
    Conflict,
    /// 412, as RFC 9110 says.
    #[value(name = "412")]
    PreconditionFailed,
    /// Either, drawn by the seed.
    Mixed,
}

/// The form of `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RetryAfter {
    /// Whole seconds.
    Seconds,
    /// An HTTP date.
    Date,
    /// One after the other.
    Alternate,
    /// No header.
    Absent,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            client_id: "sandbox".into(),
            client_secret: "sandbox-secret".into(),
            api_key: "sandbox-key".into(),
            token_ttl: Duration::from_secs(3600),
            rate: 100.0,
            burst: 0,
            retry_after: RetryAfter::Seconds,
            version_form: VersionForm::ContextVersion,
            conflict: ConflictStatus::Conflict,
            require_if_match: false,
            auto_create: true,
            conversation_id_pattern: "^conv_[0-9a-f]+$".into(),
            max_value_bytes: 10_240,
            max_payload_bytes: 524_288,
            javascript_numbers: true,
            omit_default_scope: false,
            history_entries: 1_000_000,
            history_bytes: 256 << 20,
            seed: 1,
            faults: Faults::default(),
            second_writer: SecondWriter::default(),
            v2: V2Settings::default(),
        }
    }
}

impl Default for V2Settings {
    fn default() -> Self {
        V2Settings {
            requests: 1_000,
            window: Duration::from_secs(300),
            max_body_bytes: 60_000,
            max_context_bytes: 65_000,
            merge: V2Merge::Shallow,
            keep_null: false,
        }
    }
}
