//! The way of one request: admission, the faults before it, its dialect, the faults after it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::Response;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::answer::{AnswerBody, Reply, problem};
use super::context_v1::PatchBody;
use super::exchange::Exchange;
use super::faults::{Kind, LateAnswer, Operation};
use super::history::Answer;
use super::settings::RetryAfter;
use super::{cognigy_v2, context_v1, limits, token};

/// How a request ends: with an answer, or with a reset of its connection.
pub(super) enum End {
    Answer(Response<AnswerBody>, Answer),
    Reset,
    /// Nothing more will come; the connection is closed.
    Silence,
}

/// What a request asks for, by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    TokenV1,
    ReadV1(String),
    WriteV1,
    TokenV2,
    InjectV2(String),
    ReadProfileV2(String),
    WriteProfileV2(String),
    /// The path is known, the method is not; with what `Allow` says.
    WrongMethod(&'static str),
    Unknown,
}

impl Route {
    /// Reads method and path; segments are percent-decoded.
    pub fn of(method: &str, path: &str) -> Route {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let decoded = |segment: &str| percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned();
        match (method, segments.as_slice()) {
            ("POST", ["api", "v1", "auth", "token"]) => Route::TokenV1,
            ("PATCH", ["api", "v1", "context"]) => Route::WriteV1,
            ("GET", ["api", "v1", "context", id]) if !id.is_empty() => Route::ReadV1(decoded(id)),
            ("POST", ["auth", "oauth2", "token"]) => Route::TokenV2,
            ("POST", ["new", "v2.0", "sessions", id, "context", "inject"]) => Route::InjectV2(decoded(id)),
            ("GET", ["new", "v2.0", "profiles", id]) => Route::ReadProfileV2(decoded(id)),
            ("PATCH", ["new", "v2.0", "profiles", id]) => Route::WriteProfileV2(decoded(id)),
            (_, ["api", "v1", "auth", "token"] | ["auth", "oauth2", "token"]) => Route::WrongMethod("POST"),
            (_, ["api", "v1", "context"]) => Route::WrongMethod("PATCH"),
            (_, ["api", "v1", "context", _]) => Route::WrongMethod("GET"),
            (_, ["new", "v2.0", "sessions", _, "context", "inject"]) => Route::WrongMethod("POST"),
            (_, ["new", "v2.0", "profiles", _]) => Route::WrongMethod("GET, PATCH"),
            _ => Route::Unknown,
        }
    }

    /// What the faults and the counts call it.
    pub fn operation(&self) -> Operation {
        match self {
            Route::TokenV1 | Route::TokenV2 => Operation::Token,
            Route::ReadV1(_) | Route::ReadProfileV2(_) => Operation::Read,
            Route::WriteV1 | Route::InjectV2(_) | Route::WriteProfileV2(_) => Operation::Write,
            Route::WrongMethod(_) | Route::Unknown => Operation::Other,
        }
    }

    /// The conversation that a read names.
    pub fn conversation(&self) -> Option<Arc<str>> {
        match self {
            Route::ReadV1(id) => Some(Arc::from(id.as_str())),
            Route::ReadProfileV2(id) => Some(cognigy_v2::profile(id).into()),
            _ => None,
        }
    }

    /// Whether it belongs to `cognigy-v2`.
    pub fn is_v2(&self) -> bool {
        matches!(self, Route::TokenV2 | Route::InjectV2(_) | Route::ReadProfileV2(_) | Route::WriteProfileV2(_))
    }
}

/// What a request carries, read whole.
pub(super) struct Received {
    pub route: Route,
    pub content_type: Option<String>,
    pub api_key: Option<String>,
    pub body: Bytes,
    /// The body was longer than anything that is kept of it.
    pub too_long: bool,
    /// The body of a PATCH of `context-v1`, once it is read.
    pub patch: Option<serde_json::Result<PatchBody>>,
}

/// The user that a body may name; everything else in it is looked at later.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "userId")]
    user: String,
}

impl Received {
    /// Reads the body of a PATCH, once: its conversation is needed before its contents are judged.
    fn parse(&mut self) {
        if self.route == Route::WriteV1 && !self.too_long {
            self.patch = Some(serde_json::from_slice(&self.body));
        }
    }

    /// The conversation that a write is about, where the request says so.
    fn writes_to(&self) -> Option<String> {
        match &self.route {
            Route::WriteV1 => Some(self.patch.as_ref()?.as_ref().ok()?.conversation_id.clone()),
            Route::InjectV2(session) => {
                let named: Named = serde_json::from_slice(&self.body).ok()?;
                Some(cognigy_v2::session(session, &named.user))
            }
            Route::WriteProfileV2(id) => Some(cognigy_v2::profile(id)),
            _ => None,
        }
    }
}

/// Serves one request.
pub(super) async fn serve(exchange: Arc<Exchange>, mut received: Received) -> End {
    received.parse();
    if let Some(id) = received.writes_to() {
        exchange.writes_to(&id);
    }
    if let Some(reply) = admit(&exchange, &received.route) {
        return whole(reply);
    }
    if !exchange.strikes(Kind::Latency) {
        return work(&exchange, received).await;
    }
    // A slow platform goes on with a request whose client has gone.
    let platform = Arc::clone(&exchange.platform);
    let worker = platform.tasks.spawn(async move {
        let latency = Duration::from_millis(exchange.faults.latency_ms());
        tokio::select! {
            () = sleep(latency) => work(&exchange, received).await,
            () = exchange.platform.stop.cancelled() => End::Silence,
        }
    });
    worker.await.unwrap_or(End::Silence)
}

/// Says that the platform is through with a request, however its work ends.
struct Working<'a>(&'a Exchange);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.worked();
    }
}

async fn work(exchange: &Arc<Exchange>, mut received: Received) -> End {
    let _working = Working(exchange);
    if let Some(end) = faults_before(exchange).await {
        return end;
    }
    let reply = match &received.route {
        Route::TokenV1 | Route::TokenV2 => {
            Ok(token::endpoint(exchange, received.content_type.as_deref(), &received.body))
        }
        Route::ReadV1(id) => Ok(context_v1::read(exchange, id, &received)),
        Route::WriteV1 => {
            let patch = received.patch.take();
            context_v1::write(exchange, &received, patch)
        }
        Route::InjectV2(session) => cognigy_v2::inject(exchange, session, &received),
        Route::ReadProfileV2(id) => Ok(cognigy_v2::read_profile(exchange, id, &received)),
        Route::WriteProfileV2(id) => cognigy_v2::write_profile(exchange, id, &received),
        Route::WrongMethod(allow) => {
            Ok(problem(exchange, 405, "method_not_allowed", "this path has other methods").header("allow", *allow))
        }
        Route::Unknown => Ok(problem(exchange, 404, "no_such_path", "the platform has no such path")),
    };
    match reply {
        Ok(reply) => faults_after(exchange, reply).await,
        Err(Later) => late(exchange).await,
    }
}

/// A write that will be applied later; see [`Kind::LateApply`].
pub(super) struct Later;

/// The rate limits; refused requests count too, token requests do not.
fn admit(exchange: &Exchange, route: &Route) -> Option<Reply> {
    if matches!(route, Route::TokenV1 | Route::TokenV2) {
        return None;
    }
    let platform = &exchange.platform;
    platform.stats.add(|counts| counts.spent(super::stats::now_ms() / 1_000));
    let now = Instant::now();
    let admitted = if route.is_v2() {
        platform.window.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    } else {
        platform.bucket.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    };
    let wait = admitted.err()?;
    platform.stats.add(|counts| counts.rate_limited += 1);
    exchange.worked();
    let reply = problem(exchange, 429, "too_many_requests", "the rate limit of this bot is reached");
    let date = match platform.settings.retry_after {
        RetryAfter::Absent => return Some(reply),
        RetryAfter::Seconds => false,
        RetryAfter::Date => true,
        RetryAfter::Alternate => exchange.number.is_multiple_of(2),
    };
    let value = if date { limits::date(SystemTime::now(), wait) } else { limits::seconds(wait) };
    Some(reply.header("retry-after", value))
}

async fn faults_before(exchange: &Exchange) -> Option<End> {
    if exchange.strikes(Kind::HangBefore) {
        hang(exchange).await;
        return Some(End::Silence);
    }
    if exchange.strikes(Kind::ResetBefore) {
        return Some(End::Reset);
    }
    let reply = if exchange.strikes(Kind::ServerError) {
        outage(exchange)
    } else if exchange.strikes(Kind::Throttle) {
        throttled(exchange)
    } else if exchange.strikes(Kind::TokenRevoked) {
        exchange.platform.tokens.revoke();
        problem(exchange, 401, "token_revoked", "the access token is no longer valid")
    } else if exchange.strikes(Kind::Unauthorized) {
        problem(exchange, 401, "unauthorized", "the access token is not valid")
    } else if exchange.strikes(Kind::Forbidden) {
        problem(exchange, 403, "forbidden", "this client may not do this")
    } else if exchange.strikes(Kind::NotFound) {
        let status = exchange.faults.faults.parameters.not_found_status;
        problem(exchange, status, "conversation_not_found", "there is no such conversation")
    } else {
        return None;
    };
    Some(whole(reply))
}

async fn faults_after(exchange: &Exchange, mut reply: Reply) -> End {
    if reply.applied {
        if exchange.strikes(Kind::AppliedThen500) {
            return whole(outage(exchange));
        }
        if exchange.strikes(Kind::ResetAfter) {
            return End::Reset;
        }
        if exchange.strikes(Kind::HangAfter) {
            hang(exchange).await;
            return End::Silence;
        }
        if exchange.strikes(Kind::EmptySuccess) {
            return whole(Reply::empty(204));
        }
        if exchange.strikes(Kind::NoVersion) {
            reply = Reply::json(200, "{}".into());
        }
    }
    if reply.status >= 300 || reply.body.is_empty() {
        return whole(reply);
    }
    damaged(exchange, reply)
}

/// A successful answer, perhaps with a body that is none.
fn damaged(exchange: &Exchange, reply: Reply) -> End {
    let answer = Answer::Damaged(reply.status);
    if exchange.strikes(Kind::TruncatedBody) {
        let length = reply.body.len();
        let part = reply.body.slice(..length / 2);
        let body = AnswerBody::BreaksOff { part: Some(part), flushed: false };
        return End::Answer(reply.header("content-length", length.to_string()).with_body(body), answer);
    }
    if exchange.strikes(Kind::MalformedJson) {
        let mut garbage = reply.body[..reply.body.len() / 2].to_vec();
        garbage.extend_from_slice(b"\xff\x00<html>");
        return End::Answer(Reply { body: garbage.into(), ..reply }.into_response(), answer);
    }
    if exchange.strikes(Kind::HugeAnswer) {
        let bytes = exchange.faults.faults.parameters.huge_bytes;
        let body = AnswerBody::Repeats { chunk: Bytes::from(vec![b'['; 16 << 10]), left: (bytes > 0).then_some(bytes) };
        return End::Answer(reply.with_body(body), answer);
    }
    whole(reply)
}

/// What the client of a late write sees now.
async fn late(exchange: &Exchange) -> End {
    match exchange.faults.faults.parameters.late_apply_answer {
        LateAnswer::Status => whole(outage(exchange)),
        LateAnswer::Reset => End::Reset,
        LateAnswer::Hang => {
            hang(exchange).await;
            End::Silence
        }
    }
}

/// Waits as `hang_ms` says; the connection drops this when its client goes away.
async fn hang(exchange: &Exchange) {
    let stop = exchange.platform.stop.cancelled();
    match exchange.faults.faults.parameters.hang_ms {
        0 => stop.await,
        ms => tokio::select! {
            () = stop => {}
            () = sleep(Duration::from_millis(ms)) => {}
        },
    }
}

fn outage(exchange: &Exchange) -> Reply {
    problem(exchange, exchange.faults.status(), "outage", "the platform could not do this")
}

fn throttled(exchange: &Exchange) -> Reply {
    let reply = problem(exchange, 429, "too_many_requests", "the platform is busy");
    match exchange.faults.retry_after().map(|text| (text, text.strip_prefix("date:").map(str::parse::<u64>))) {
        None => reply,
        Some((_, Some(Ok(seconds)))) => {
            reply.header("retry-after", limits::date(SystemTime::now(), Duration::from_secs(seconds)))
        }
        Some((text, _)) => reply.header("retry-after", text),
    }
}

fn whole(reply: Reply) -> End {
    let answer = Answer::Status(reply.status);
    End::Answer(reply.into_response(), answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_segment_by_segment_and_decoded() {
        for (method, path, route) in [
            ("POST", "/api/v1/auth/token", Route::TokenV1),
            ("PATCH", "/api/v1/context", Route::WriteV1),
            ("GET", "/api/v1/context/conv_a%2Fb", Route::ReadV1("conv_a/b".into())),
            ("GET", "/api/v1/context/", Route::WrongMethod("GET")),
            ("GET", "/api/v1/context", Route::WrongMethod("PATCH")),
            ("GET", "/api/v1/api/v1/context/conv_a", Route::Unknown),
            ("POST", "/new/v2.0/sessions/s%20%2F1/context/inject", Route::InjectV2("s /1".into())),
            ("PATCH", "/new/v2.0/profiles/p", Route::WriteProfileV2("p".into())),
            ("GET", "/new/v2.0/profiles/p", Route::ReadProfileV2("p".into())),
            ("PUT", "/auth/oauth2/token", Route::WrongMethod("POST")),
        ] {
            assert_eq!(Route::of(method, path), route, "{method} {path}");
        }
    }
}
