//! One try: sign, send, read the status, under one deadline over name look-up, connect, TLS, headers and body.
//!
//! Rules: one pooled client per endpoint; redirects, proxies and automatic retries off; no `accept-encoding`, so
//! nothing is ever decompressed; at most 64 KiB of an answer are read. A 2xx is a success when its headers are
//! here: the body is read afterwards, to keep the connection, and cannot change anything. Of other answers the
//! first bytes are kept for people.
//!
//! Errors name the host and never the rest of the URL.

use std::error::Error as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, redirect, retry};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::address_filter::{AddressFilter, RefusedUrl, ResolveError, VettedResolver};
use super::event::Event;
use super::headers::{self, HeaderError};
use super::schedule::parse_retry_after;
use super::signature::{self, ID_HEADER, SIGNATURE_HEADER, Signer, TIMESTAMP_HEADER};
use crate::config::{Endpoint, show_duration};

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Bytes of an answer that are kept for people.
const EXCERPT_BYTES: usize = 512;
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/cloudevents+json");
const USER_AGENT: &str = concat!("context-injector/", env!("CARGO_PKG_VERSION"));

/// Settings with which an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The address.
    #[error("endpoints.{0}.{1}")]
    Url(String, RefusedUrl),
    /// A secret.
    #[error("endpoints.{0}.{1} {2}")]
    Secret(String, &'static str, signature::SecretError),
    /// A header.
    #[error("endpoints.{0}.headers.{1} {2}")]
    Header(String, String, HeaderError),
    /// The client.
    #[error("endpoints.{0}: the HTTP client cannot be made: {1}")]
    Client(String, String),
}

/// A receiver that events can be sent to.
#[derive(Debug)]
pub struct Receiver {
    client: Client,
    url: Url,
    signer: Signer,
    headers: HeaderMap,
    timeout: Duration,
    connect_timeout: Duration,
}

/// How a try ended.
#[derive(Debug)]
pub struct Tried {
    /// The answer, or why there is none.
    pub ending: Ending,
    /// From the beginning to the headers of the answer, or to the failure.
    pub took: Duration,
    /// First bytes of an answer that was no success.
    pub excerpt: Bytes,
    /// The body of a success, still to be read.
    pub rest: Option<Rest>,
}

/// The answer, or why there is none.
#[derive(Debug)]
pub enum Ending {
    /// The receiver answered.
    Answered {
        /// The status.
        status: u16,
        /// Its `Retry-After`, if it can be read.
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    Failed(Failure),
}

/// Why there was no answer. Each variant is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// An address that our own rules refuse.
    #[error("{0}")]
    Refused(String),
    /// The name could not be resolved.
    #[error("{0}")]
    Dns(String),
    /// No connection.
    #[error("no connection to {host}: {why}")]
    Connect {
        /// Scheme, host and port.
        host: String,
        /// What the system says.
        why: String,
    },
    /// No TLS session.
    #[error("no TLS session with {host}: {why}")]
    Tls {
        /// Scheme, host and port.
        host: String,
        /// What TLS says.
        why: String,
    },
    /// The deadline.
    #[error("{host} did not answer within {} (timeout)", show_duration(*.limit))]
    TimedOut {
        /// Scheme, host and port.
        host: String,
        /// The deadline of a try.
        limit: Duration,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{host} broke the connection off or answered with something else than HTTP: {why}")]
    Broken {
        /// Scheme, host and port.
        host: String,
        /// What HTTP says.
        why: String,
    },
}

impl Failure {
    /// A word for metrics and records.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused_address",
            Self::Dns(_) => "dns",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::TimedOut { .. } => "timeout",
            Self::Broken { .. } => "broken",
        }
    }
}

/// The unread body of a success.
#[derive(Debug)]
pub struct Rest {
    response: Response,
    deadline: Instant,
}

impl Rest {
    /// Reads it as far as allowed, so that the connection can be used again; a longer or slower body costs the
    /// connection and nothing else.
    pub async fn drain(mut self) {
        let _ = timeout_at(self.deadline, read_bounded(&mut self.response)).await;
    }
}

impl Receiver {
    /// Checks the settings of an endpoint and makes its client.
    ///
    /// # Errors
    /// The setting with which it cannot be used.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Unusable> {
        let filter = AddressFilter::new(&endpoint.name, &endpoint.allow_networks);
        Self::with_resolver(endpoint, VettedResolver::new(filter))
    }

    fn with_resolver(endpoint: &Endpoint, resolver: std::sync::Arc<VettedResolver>) -> Result<Self, Unusable> {
        let name = || endpoint.name.clone();
        let filter = AddressFilter::new(&endpoint.name, &endpoint.allow_networks);
        let url = filter
            .vet_url(endpoint.url.expose(), endpoint.allow_http)
            .map_err(|refused| Unusable::Url(name(), refused))?;
        let signer = Signer::new(&endpoint.secret, endpoint.previous_secret.as_ref())
            .map_err(|(setting, error)| Unusable::Secret(name(), setting, error))?;
        let headers =
            headers::parse_all(&endpoint.headers).map_err(|(header, error)| Unusable::Header(name(), header, error))?;
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .dns_resolver(resolver)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .connect_timeout(endpoint.connect_timeout)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(usize::from(endpoint.max_in_flight))
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Unusable::Client(name(), innermost(&error)))?;
        let (timeout, connect_timeout) = (endpoint.timeout, endpoint.connect_timeout);
        Ok(Self { client, url, signer, headers, timeout, connect_timeout })
    }

    /// The public keys that the receiver verifies with, `whpk_…`, where it has such.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.signer.public_keys()
    }

    /// Makes one try.
    pub async fn send(&self, event: &Event) -> Tried {
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        let mut tried = Tried {
            ending: Ending::Failed(Failure::TimedOut { host: self.host(), limit: self.timeout }),
            took: Duration::ZERO,
            excerpt: Bytes::new(),
            rest: None,
        };
        match timeout_at(deadline, self.request(event).send()).await {
            Err(_elapsed) => {}
            Ok(Err(error)) => tried.ending = Ending::Failed(self.classify(&error)),
            Ok(Ok(mut response)) => {
                tried.took = begun.elapsed();
                let status = response.status();
                let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = retry_after.and_then(|value| parse_retry_after(value, SystemTime::now()));
                tried.ending = Ending::Answered { status: status.as_u16(), retry_after };
                if status.is_success() {
                    tried.rest = Some(Rest { response, deadline });
                } else if let Ok(body) = timeout_at(deadline, read_bounded(&mut response)).await {
                    tried.excerpt = body;
                }
                return tried;
            }
        }
        tried.took = begun.elapsed();
        tried
    }

    fn request(&self, event: &Event) -> reqwest::RequestBuilder {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, MEDIA_TYPE)
            .header(ID_HEADER, &event.id)
            .header(TIMESTAMP_HEADER, now.to_string())
            .header(SIGNATURE_HEADER, self.signer.sign(&event.id, now, &event.body));
        if let Some(traceparent) = &event.traceparent {
            request = request.header("traceparent", traceparent);
        }
        // Text from outside, which need not fit into a header.
        if let Some(tracestate) = event.tracestate.as_deref().and_then(|state| HeaderValue::try_from(state).ok()) {
            request = request.header("tracestate", tracestate);
        }
        request.body(event.body.clone())
    }

    fn host(&self) -> String {
        crate::config::show_host(self.url.as_str())
    }

    fn classify(&self, error: &reqwest::Error) -> Failure {
        let host = self.host();
        if let Some(refused) = find::<ResolveError>(error) {
            return match refused {
                ResolveError::Refused { .. } => Failure::Refused(refused.to_string()),
                ResolveError::LookUp { source, .. } => Failure::Dns(format!("{refused}: {source}")),
                ResolveError::Empty(_) => Failure::Dns(refused.to_string()),
            };
        }
        if let Some(tls) = find::<rustls::Error>(error) {
            return Failure::Tls { host, why: tls.to_string() };
        }
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => {
                let why = format!("nothing answers within {} (connect_timeout)", show_duration(self.connect_timeout));
                Failure::Connect { host, why }
            }
            (true, false) if self.url.scheme() == "https" && is_cut_off(error) => {
                let why = "the connection was closed during the handshake; does the port speak TLS?".to_owned();
                Failure::Tls { host, why }
            }
            (true, false) => Failure::Connect { host, why: innermost(error) },
            (false, true) => Failure::TimedOut { host, limit: self.timeout },
            (false, false) => Failure::Broken { host, why: innermost(error) },
        }
    }
}

/// Reads at most [`MAX_ANSWER_BYTES`] and keeps the first [`EXCERPT_BYTES`]; a body that breaks ends there.
async fn read_bounded(response: &mut Response) -> Bytes {
    let mut excerpt = Vec::new();
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = EXCERPT_BYTES - excerpt.len();
        excerpt.extend(chunk.iter().take(room));
        read += chunk.len();
        if read >= MAX_ANSWER_BYTES {
            break;
        }
    }
    excerpt.into()
}

/// Looks for an error of a type in the chain of causes, in those too that hide inside I/O errors.
fn find<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        // `source` of an I/O error skips the error that it was made of.
        let hidden = cause.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = hidden.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| cause.source());
    }
    None
}

fn is_cut_off(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let io = find::<std::io::Error>(error).map(std::io::Error::kind);
    matches!(io, Some(BrokenPipe | ConnectionReset | UnexpectedEof))
}

/// The innermost cause, which never holds the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = match error.source() {
        Some(source) => source,
        None => return "no further reason is known".to_owned(),
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
