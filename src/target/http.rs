//! One request and its answer over HTTP/1.1: credentials, deadlines, bounded bodies, and which failures are
//! certain.
//!
//! Rules: redirects are not followed and no proxy is taken from the environment, since both would send the
//! token to somebody else. A connection that sat idle is not reused after [`IDLE`]: many servers close theirs
//! after 5 s, and a request that meets the close cannot be told from one that was applied.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH};
use reqwest::{Method, StatusCode, Url, redirect, retry};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::answer::{Answer, BodyEnd};
use super::token::Tokens;
use super::{Detail, Failure};
use crate::config::{self, show_host};
use crate::job::Version;
use crate::metrics::{Purpose, RequestMeters};

/// How long an unused connection is kept: under Node's 5 s.
const IDLE: Duration = Duration::from_secs(4);
/// Longest error body that is read.
pub(super) const ERROR_LIMIT: usize = 64 * 1_024;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The client of one bot.
#[derive(Debug)]
pub(super) struct Http {
    meters: Arc<RequestMeters>,
    client: reqwest::Client,
    timeout: Duration,
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
    url: Url,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Request {
    /// A request without a body.
    pub fn get(url: Url, trace: Option<&str>) -> Self {
        Self { purpose: Purpose::Read, method: Method::GET, url, headers: headers(trace), body: None }
    }

    /// A request that sends exactly the JSON text `body`.
    pub fn with_body(method: Method, url: Url, body: Bytes, trace: Option<&str>) -> Self {
        let mut headers = headers(trace);
        headers.insert(CONTENT_TYPE, JSON);
        Self { purpose: Purpose::Write, method, url, headers, body: Some(body) }
    }

    /// Adds the precondition. `None`: the version cannot be a header, so no such version came from the target.
    pub fn if_match(mut self, version: Option<&Version>) -> Option<Self> {
        if let Some(version) = version {
            self.headers.insert(IF_MATCH, HeaderValue::from_str(version.as_str()).ok()?);
        }
        Some(self)
    }
}

fn headers(trace: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::from_iter([(ACCEPT, JSON)]);
    if let Some(trace) = trace.and_then(|trace| HeaderValue::from_str(trace).ok()) {
        headers.insert(TRACEPARENT, trace);
    }
    headers
}

impl Http {
    /// Sets up the client of a bot.
    pub fn new(bot: &config::Bot) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("context-injector/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .connect_timeout(bot.connect_timeout)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(bot.concurrency.into())
            .build()?;
        let meters = Arc::new(RequestMeters::new(&bot.name));
        let credentials = match bot.api_key.as_ref().and_then(|key| HeaderValue::from_str(key.expose_secret()).ok()) {
            Some(mut key) if bot.dialect == config::Dialect::CognigyV2 => {
                key.set_sensitive(true);
                Credentials::ApiKey(key)
            }
            _ => Credentials::Bearer(Box::new(Tokens::new(client.clone(), bot, Arc::clone(&meters)))),
        };
        Ok(Self {
            meters,
            client,
            timeout: bot.request_timeout,
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
        let mut builder = self.client.request(request.method.clone(), request.url.clone()).timeout(self.timeout);
        builder = builder.headers(request.headers.clone()).header(name, credentials);
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        let sent = Instant::now();
        let response = match builder.send().await {
            Ok(response) => response,
            Err(error) => {
                self.meters.count(request.purpose, unanswered(&error), sent.elapsed());
                return Err(self.not_answered(&error));
            }
        };
        let limit = if response.status().is_success() { self.answer_limit } else { ERROR_LIMIT };
        let answer = read_answer(response, limit).await;
        self.meters.count(request.purpose, answer.status.as_str(), sent.elapsed());
        Ok(answer)
    }

    fn not_answered(&self, error: &reqwest::Error) -> Failure {
        let host = &self.host;
        if error.is_connect() || error.is_builder() {
            return Failure::NotSent(detail(format!("cannot connect to {host}: {}", root_cause(error))));
        }
        if error.is_timeout() {
            let limit = config::show_duration(self.timeout);
            return Failure::Ambiguous(detail(format!("no answer from {host} within {limit}")));
        }
        Failure::Ambiguous(detail(format!("the connection to {host} broke: {}", root_cause(error))))
    }
}

/// What kept an answer from coming, as metrics name it.
pub(super) fn unanswered(error: &reqwest::Error) -> &'static str {
    if error.is_connect() {
        "connect"
    } else if error.is_timeout() {
        "timeout"
    } else {
        "broken"
    }
}

/// A detail that has a sentence only.
pub(super) fn detail(text: impl Into<String>) -> Detail {
    Detail { text: text.into(), ..Detail::default() }
}

/// What the operating system or the TLS library said, without the address that the outer errors carry.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    cause.map_or_else(|| "the request could not be made".to_owned(), ToString::to_string)
}

/// Reads a body up to `limit` bytes.
pub(super) async fn read_answer(mut response: reqwest::Response, limit: usize) -> Answer {
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let mut body = BytesMut::new();
    let end = loop {
        match response.chunk().await {
            Ok(None) => break BodyEnd::Complete,
            Ok(Some(chunk)) if chunk.len() > limit - body.len() => break BodyEnd::TooLong,
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Err(_) => break BodyEnd::Broken,
        }
    };
    Answer { status, headers, body: body.freeze(), end }
}

/// The clock that `Retry-After` dates are read by.
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}
