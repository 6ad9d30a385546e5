//! OAuth2 access tokens by client credentials (RFC 6749, 4.4): one for all tasks of a bot.
//!
//! Rules: one request for a token at a time, and whoever waited for it shares its result, its failure too; a
//! token is used until 30 s before it expires, a short-lived one (60 s or less) for half of its time; a token
//! that the target refused is dropped, unless another task has replaced it already. Requests for tokens do not
//! count against the bot's budget.
//!
//! The end point's answer decides whose fault a failure is: 4xx means that our credentials are wrong, anything
//! else that it is down.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode, Uri};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::form_urlencoded;

use super::answer::{Answer, BodyEnd, retry_after};
use super::client::{self, Client};
use super::http::{AGENT, ERROR_LIMIT, JSON, address, detail, now, outcome};
use super::{Detail, Failure, SetUpError};
use crate::config::{self, Dialect, show_host};
use crate::metrics::{Purpose, RequestMeters};

/// What the contract asks for.
const SCOPE: &str = "context:write conversation:read";
/// How long a token counts where the answer does not say.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(300);

/// A token as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// The value of `Authorization`; marked as sensitive, so that it is not printed.
    pub header: HeaderValue,
    serial: u64,
}

/// The tokens of one bot.
#[derive(Debug)]
pub(super) struct Tokens {
    meters: Arc<RequestMeters>,
    client: Client,
    address: Uri,
    host: String,
    client_id: String,
    client_secret: SecretString,
    scope: Option<&'static str>,
    finished: std::sync::atomic::AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<(Token, Instant)>,
    failed: Option<Failure>,
    not_before: Option<Instant>,
}

impl Tokens {
    /// Sets up the tokens of a bot; nothing is asked for yet.
    ///
    /// # Errors
    /// [`SetUpError::Address`].
    pub fn new(client: Client, bot: &config::Bot, meters: Arc<RequestMeters>) -> Result<Self, SetUpError> {
        Ok(Self {
            meters,
            client,
            address: address(bot, "token_url", &bot.token_url)?,
            host: show_host(bot.token_url.as_str()),
            client_id: bot.client_id.clone(),
            client_secret: bot.client_secret.clone().unwrap_or_default(),
            scope: (bot.dialect == Dialect::ContextV1).then_some(SCOPE),
            finished: 0.into(),
            state: Mutex::default(),
        })
    }

    /// A token that counts: the one at hand, or a new one.
    ///
    /// # Errors
    /// [`Failure::Credentials`] where the end point refuses ours, [`Failure::NotSent`] where it is down.
    pub async fn get(&self) -> Result<Token, Failure> {
        use std::sync::atomic::Ordering;
        let seen = self.finished.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some((token, until)) = &state.current
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let finished = self.finished.load(Ordering::Acquire);
        let asked_while_we_waited = finished != seen;
        let too_early = state.not_before.is_some_and(|instant| Instant::now() < instant);
        if let Some(failure) = &state.failed
            && (asked_while_we_waited || too_early)
        {
            return Err(failure.clone());
        }
        let fetched = self.fetch().await;
        self.finished.store(finished + 1, Ordering::Release);
        state.failed = None;
        state.not_before = None;
        match fetched {
            Ok((header, lifetime)) => {
                let token = Token { header, serial: finished + 1 };
                state.current = Some((token.clone(), Instant::now() + usable_for(lifetime)));
                Ok(token)
            }
            Err((failure, wait)) => {
                state.current = None;
                state.not_before = wait.map(|wait| Instant::now() + wait);
                state.failed = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// Drops this token, and no other.
    pub async fn invalidate(&self, refused: &Token) {
        let mut state = self.state.lock().await;
        if state.current.as_ref().is_some_and(|(token, _)| token.serial == refused.serial) {
            state.current = None;
        }
    }

    async fn fetch(&self) -> Result<(HeaderValue, Duration), (Failure, Option<Duration>)> {
        let sent = Instant::now();
        let answer = self.client.send(self.request(), |_| ERROR_LIMIT).await;
        self.meters.count(Purpose::Token, outcome(&answer), sent.elapsed());
        match answer {
            Ok(answer) => read(&answer).map_err(|failure| {
                let wait = (answer.status == StatusCode::TOO_MANY_REQUESTS)
                    .then(|| retry_after(&answer.headers, now()))
                    .flatten();
                (failure, wait)
            }),
            Err(unanswered) => {
                Err((Failure::NotSent(detail(format!("no token from {}: {unanswered}", self.host))), None))
            }
        }
    }

    fn request(&self) -> client::Request {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        form.append_pair("client_id", &self.client_id);
        form.append_pair("client_secret", self.client_secret.expose_secret());
        form.extend_pairs(self.scope.map(|scope| ("scope", scope)));
        let mut request = client::Request::new(Full::new(Bytes::from(form.finish())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.address.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, JSON);
        headers.insert(USER_AGENT, AGENT);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request
    }
}

/// What the end point's answer means.
pub(super) fn read(answer: &Answer) -> Result<(HeaderValue, Duration), Failure> {
    let status = answer.status;
    let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let said = |text: String| Detail {
        status: Some(status.as_u16()),
        // RFC 6749 has `error`, platforms that answer everything with RFC 9457 have `code`.
        code: body.get("error").or_else(|| body.get("code")).and_then(Value::as_str).and_then(error_code),
        text,
        ..Detail::default()
    };
    if !status.is_success() {
        let detail = said(format!("the token end point answered {}", status.as_u16()));
        let refused = status.is_client_error() && ![408, 425, 429].contains(&status.as_u16());
        return Err(if refused {
            let text = format!("{}; check client_id, client_secret and token_url", detail.text);
            Failure::Credentials(Detail { text, ..detail })
        } else {
            Failure::NotSent(detail)
        });
    }
    let token = body.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let header = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
    let Some(mut header) = header.filter(|_| answer.end == BodyEnd::Complete) else {
        let text = format!("the token end point answered {} without a usable access_token", status.as_u16());
        return Err(Failure::NotSent(said(text)));
    };
    header.set_sensitive(true);
    Ok((header, lifetime(body.get("expires_in"))))
}

/// `expires_in` in seconds: a number, by some servers as text.
fn lifetime(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    seconds.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(UNKNOWN_LIFETIME)
}

/// How long a token of that lifetime is used. At least half a second, so that a server that hands out expired
/// tokens gets a request every half second, not with every write; at most a day.
fn usable_for(lifetime: Duration) -> Duration {
    let usable = if lifetime > Duration::from_secs(60) { lifetime - Duration::from_secs(30) } else { lifetime / 2 };
    usable.clamp(Duration::from_millis(500), Duration::from_secs(86_400))
}

/// An error code of RFC 6749, 5.2: one word.
fn error_code(text: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (!text.is_empty() && text.len() <= 64 && text.chars().all(fits)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_is_used_until_30_s_before_its_end_and_a_short_one_for_half_its_time() {
        for (expires_in, usable) in
            [(json!(3600), 3_570_000), (json!(61), 31_000), (json!(60), 30_000), (json!(10), 5_000)]
        {
            assert_eq!(usable_for(lifetime(Some(&expires_in))).as_millis(), usable, "{expires_in}");
        }
        assert_eq!(usable_for(lifetime(Some(&json!("3600")))), Duration::from_secs(3_570));
        assert_eq!(usable_for(lifetime(Some(&json!(0)))), Duration::from_millis(500));
        assert_eq!(usable_for(lifetime(Some(&json!(1e18)))), Duration::from_secs(86_400));
        for nonsense in [None, Some(json!(-5)), Some(json!("soon")), Some(json!(null)), Some(json!(1e300))] {
            assert_eq!(lifetime(nonsense.as_ref()), UNKNOWN_LIFETIME, "{nonsense:?}");
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: hyper::HeaderMap::new(),
            body: bytes::Bytes::copy_from_slice(body.as_bytes()),
            end: BodyEnd::Complete,
        }
    }

    #[test]
    fn a_refusal_blames_the_credentials_and_an_outage_does_not() {
        for status in [400, 401, 403, 404] {
            let failure = read(&answer(status, r#"{"error": "invalid_client"}"#)).unwrap_err();
            assert!(matches!(&failure, Failure::Credentials(_)), "{status}: {failure}");
            assert_eq!(failure.detail().code.as_deref(), Some("invalid_client"));
        }
        for status in [302, 408, 429, 500, 503] {
            let failure = read(&answer(status, "")).unwrap_err();
            assert!(matches!(&failure, Failure::NotSent(_)), "{status}: {failure}");
        }
        for body in ["", "[]", "{}", r#"{"access_token": ""}"#, r#"{"access_token": "a\nb"}"#, r#"{"access_token": 7}"#]
        {
            assert!(matches!(read(&answer(200, body)), Err(Failure::NotSent(_))), "{body}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let (header, _) = read(&answer(200, r#"{"access_token": "sesame", "expires_in": 60}"#)).unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer sesame");
        assert!(!format!("{header:?}").contains("sesame"));
    }
}
