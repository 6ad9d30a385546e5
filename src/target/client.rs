//! An HTTP/1.1 client with a pool of connections: a request out, its answer back, within a time and a size.
//!
//! It is hyper's own and not `reqwest`, which costs a request 8 µs of CPU more: it parses addresses at each request and
//! copies it for redirects and repetitions, which must not happen here. Neither redirects are followed nor is a proxy
//! taken from the environment, since both would send the token to somebody else. A connection that sat idle is not
//! reused after [`IDLE`]: many servers close theirs after 5 s, and a request that meets the close cannot be told from one
//! that was applied. What hyper repeats by itself was never sent: its connection had ended before it took the request.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as Pool};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tower_service::Service;

use super::answer::{Answer, BodyEnd};
use crate::config;

/// How long an unused connection is kept: under Node's 5 s.
const IDLE: Duration = Duration::from_secs(4);
/// How long a connection is silent before it is asked whether the other end is there, and until it is asked again …
const KEEPALIVE: Duration = Duration::from_secs(15);
/// … so often.
const KEEPALIVE_TRIES: u32 = 3;
/// How long sent data may stay without an acknowledgement of TCP.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A request that can be sent.
pub(super) type Request = hyper::Request<Full<Bytes>>;

/// The client of one bot. Clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pool: Pool<Connector, Full<Bytes>>,
    timeout: Duration,
}

/// Why there is no answer, with the words of the operating system or the TLS library.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No connection, so certainly no effect.
    Connect(String),
    /// Not within the bot's `request_timeout`.
    Timeout(Duration),
    /// The connection broke, or what came was not HTTP.
    Broken(String),
}

impl Unanswered {
    /// As metrics name it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Broken(_) => "broken",
        }
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(cause) | Self::Broken(cause) => f.write_str(cause),
            Self::Timeout(limit) => write!(f, "no answer within {}", config::show_duration(*limit)),
        }
    }
}

impl Client {
    /// Sets up the client; nothing is connected yet.
    ///
    /// # Errors
    /// The machine's certificate store or TLS set-up is broken.
    pub fn new(bot: &config::Bot) -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_TRIES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.try_with_platform_verifier()?.with_no_client_auth();
        let tls = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let connector = Connector { tls, within: bot.connect_timeout };
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(bot.concurrency.into())
            .build(connector);
        Ok(Self { pool, timeout: bot.request_timeout })
    }

    /// Sends a request, once, and reads its answer: of the body as much as `limit` says for the status, in bytes.
    ///
    /// # Errors
    /// [`Unanswered`]. A body that breaks off is none: the status has come.
    pub async fn send(&self, request: Request, limit: impl FnOnce(StatusCode) -> usize) -> Result<Answer, Unanswered> {
        let deadline = Instant::now() + self.timeout;
        let (head, body) = match timeout_at(deadline, self.pool.request(request)).await {
            Ok(Ok(response)) => response.into_parts(),
            Ok(Err(error)) if error.is_connect() => return Err(Unanswered::Connect(root_cause(&error))),
            Ok(Err(error)) => return Err(Unanswered::Broken(root_cause(&error))),
            Err(_) => return Err(Unanswered::Timeout(self.timeout)),
        };
        let reading = Limited::new(body, limit(head.status)).collect();
        let (body, end) = match timeout_at(deadline, reading).await {
            Ok(Ok(body)) => (body.to_bytes(), BodyEnd::Complete),
            Ok(Err(error)) if error.is::<LengthLimitError>() => (Bytes::new(), BodyEnd::TooLong),
            Ok(Err(_)) | Err(_) => (Bytes::new(), BodyEnd::Broken),
        };
        Ok(Answer { status: head.status, headers: head.headers, body, end })
    }
}

/// What the operating system or the TLS library said, without the address that the outer errors carry.
fn root_cause(error: &legacy::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(Error::source) {
        cause = Some(inner);
    }
    cause.map_or_else(|| "the request could not be made".to_owned(), ToString::to_string)
}

/// Connects within a time, TLS included.
#[derive(Debug, Clone)]
struct Connector {
    tls: HttpsConnector<HttpConnector>,
    within: Duration,
}

type Connected = Result<MaybeHttpsStream<TokioIo<TcpStream>>, Box<dyn Error + Send + Sync>>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Connected>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tls.poll_ready(context)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let (connecting, within) = (self.tls.call(address), self.within);
        let late = move |_| Err(format!("no connection within {}", config::show_duration(within)).into());
        async move { timeout(within, connecting).await.unwrap_or_else(late) }.boxed()
    }
}
