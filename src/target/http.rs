//! One request and its answer, with the bot's credentials: which failures are certain.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, StatusCode, Uri};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use url::Url;

use super::answer::Answer;
use super::client::{self, Client, Unanswered};
use super::token::Tokens;
use super::{Detail, Failure, SetUpError};
use crate::config::{self, show_host};
use crate::job::Version;
use crate::metrics::{Purpose, RequestMeters};

/// Longest error body that is read, in bytes.
pub(super) const ERROR_LIMIT: usize = 64 * 1_024;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const AGENT: HeaderValue = HeaderValue::from_static(concat!("context-injector/", env!("CARGO_PKG_VERSION")));
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The requests of one bot.
#[derive(Debug)]
pub(super) struct Http {
    meters: Arc<RequestMeters>,
    client: Client,
    answer_limit: usize,
    host: String,
    credentials: Credentials,
}

#[derive(Debug)]
enum Credentials {
    Bearer(Box<Tokens>),
    ApiKey(HeaderValue),
}

/// A request without its credentials: it can be sent again.
#[derive(Debug)]
pub(super) struct Request {
    purpose: Purpose,
    method: Method,
    address: Uri,
    trace: Option<HeaderValue>,
    if_match: Option<HeaderValue>,
    body: Option<Bytes>,
}

impl Request {
    /// A request without a body.
    pub fn get(address: Uri, trace: Option<&str>) -> Self {
        let trace = trace.and_then(|trace| HeaderValue::from_str(trace).ok());
        Self { purpose: Purpose::Read, method: Method::GET, address, trace, if_match: None, body: None }
    }

    /// A request that sends exactly the JSON text `body`.
    pub fn with_body(method: Method, address: Uri, body: Bytes, trace: Option<&str>) -> Self {
        Self { purpose: Purpose::Write, method, body: Some(body), ..Self::get(address, trace) }
    }

    /// Adds the precondition. `None`: the version cannot be a header, so no such version came from the target.
    pub fn if_match(mut self, version: Option<&Version>) -> Option<Self> {
        if let Some(version) = version {
            self.if_match = Some(HeaderValue::from_str(version.as_str()).ok()?);
        }
        Some(self)
    }

    fn message(&self, name: HeaderName, credentials: HeaderValue) -> client::Request {
        let mut message = client::Request::new(Full::new(self.body.clone().unwrap_or_default()));
        *message.method_mut() = self.method.clone();
        *message.uri_mut() = self.address.clone();
        let headers = message.headers_mut();
        headers.reserve(8);
        headers.insert(ACCEPT, JSON);
        headers.insert(USER_AGENT, AGENT);
        headers.insert(name, credentials);
        if self.body.is_some() {
            headers.insert(CONTENT_TYPE, JSON);
        }
        for (name, value) in [(TRACEPARENT, &self.trace), (IF_MATCH, &self.if_match)] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        message
    }
}

/// An address, of that setting, as requests are sent to it.
///
/// # Errors
/// [`SetUpError::Address`].
pub(super) fn address(bot: &config::Bot, setting: &'static str, url: &Url) -> Result<Uri, SetUpError> {
    url.as_str().parse().map_err(|source| SetUpError::Address { bot: bot.name.clone(), setting, source })
}

/// `base` with `text` behind it as one percent-encoded segment, and then `rest`. `None`: `.` and `..` are not segments, whatever
/// their spelling (WHATWG URL).
pub(super) fn segment(base: &Uri, text: &str, rest: &str) -> Option<Uri> {
    if matches!(text, "" | "." | "..") {
        return None;
    }
    const KEPT: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let text = percent_encoding::utf8_percent_encode(text, KEPT);
    let path = Bytes::from(format!("{}/{text}{rest}", base.path()));
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).ok()?);
    Uri::from_parts(parts).ok()
}

impl Http {
    /// Sets up the client of a bot.
    ///
    /// # Errors
    /// [`SetUpError`].
    pub fn new(bot: &config::Bot) -> Result<Self, SetUpError> {
        let client = Client::new(bot).map_err(|source| SetUpError::Tls { bot: bot.name.clone(), source })?;
        let meters = Arc::new(RequestMeters::new(&bot.name));
        let credentials = match bot.api_key.as_ref().and_then(|key| HeaderValue::from_str(key.expose_secret()).ok()) {
            Some(mut key) if bot.dialect == config::Dialect::CognigyV2 => {
                key.set_sensitive(true);
                Credentials::ApiKey(key)
            }
            _ => Credentials::Bearer(Box::new(Tokens::new(client.clone(), bot, Arc::clone(&meters))?)),
        };
        Ok(Self {
            meters,
            client,
            // The context may hold more than one payload wrote.
            answer_limit: bot.max_payload_bytes.saturating_add(1_024 * 1_024),
            host: show_host(bot.base_url.as_str()),
            credentials,
        })
    }

    /// Sends the request and reads its answer. Where the target no longer takes the token, it is sent once more
    /// with a new one, after `again`.
    ///
    /// # Errors
    /// What kept an answer from coming: [`Failure::Credentials`], [`Failure::NotSent`], [`Failure::Ambiguous`].
    pub async fn send<A>(&self, request: &Request, mut again: impl FnMut() -> A + Send) -> Result<Answer, Failure>
    where
        A: Future<Output = ()> + Send,
    {
        let tokens = match &self.credentials {
            Credentials::ApiKey(key) => return self.exchange(request, API_KEY, key.clone()).await,
            Credentials::Bearer(tokens) => tokens,
        };
        let token = tokens.get().await?;
        let answer = self.exchange(request, AUTHORIZATION, token.header.clone()).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        tokens.invalidate(&token).await;
        let token = tokens.get().await?;
        again().await;
        self.exchange(request, AUTHORIZATION, token.header).await
    }

    async fn exchange(&self, request: &Request, name: HeaderName, credentials: HeaderValue) -> Result<Answer, Failure> {
        let limit = |status: StatusCode| if status.is_success() { self.answer_limit } else { ERROR_LIMIT };
        let sent = Instant::now();
        let answer = self.client.send(request.message(name, credentials), limit).await;
        self.meters.count(request.purpose, outcome(&answer), sent.elapsed());
        answer.map_err(|unanswered| self.not_answered(&unanswered))
    }

    fn not_answered(&self, unanswered: &Unanswered) -> Failure {
        let host = &self.host;
        match unanswered {
            Unanswered::Connect(cause) => Failure::NotSent(detail(format!("cannot connect to {host}: {cause}"))),
            Unanswered::Timeout(limit) => {
                let limit = config::show_duration(*limit);
                Failure::Ambiguous(detail(format!("no answer from {host} within {limit}")))
            }
            Unanswered::Broken(cause) => Failure::Ambiguous(detail(format!("the connection to {host} broke: {cause}"))),
        }
    }
}

/// What came of a request, as metrics name it.
pub(super) fn outcome(answer: &Result<Answer, Unanswered>) -> &str {
    match answer {
        Ok(answer) => answer.status.as_str(),
        Err(unanswered) => unanswered.as_str(),
    }
}

/// A detail that has a sentence only.
pub(super) fn detail(text: impl Into<String>) -> Detail {
    Detail { text: text.into(), ..Detail::default() }
}

/// The clock that `Retry-After` dates are read by.
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_segment_whatever_it_holds() {
        let base = "https://bot.example.com/x/api/v1/context".parse().unwrap();
        let path = |id: &str| segment(&base, id, "/rest").map(|address| address.to_string());
        let below = |text: &str| Some(format!("https://bot.example.com/x/api/v1/context/{text}/rest"));
        assert_eq!(path("conv_8a7b"), below("conv_8a7b"));
        assert_eq!(path("a/../b?c#d e%2f"), below("a%2F..%2Fb%3Fc%23d%20e%252f"));
        assert_eq!(path("ä\\;:"), below("%C3%A4%5C%3B%3A"));
        assert_eq!((path("."), path("..")), (None, None));
    }
}
