//! The token endpoint of both dialects, and the check of what a request carries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::answer::{Reply, problem};
use super::exchange::Exchange;
use super::faults::mix;

/// Tokens that are remembered; with more, the expired ones are forgotten, then all.
const MAX_TOKENS: usize = 100_000;

/// The life of a token that is to live longer than the clock goes: thirty years.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// What a token is good for, where the client does not say.
const DEFAULT_SCOPE: &str = "context:write conversation:read";

/// The tokens that were given out.
#[derive(Debug)]
pub(super) struct Tokens {
    seed: u64,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    count: u64,
    tokens: HashMap<String, Token>,
}

#[derive(Clone, Debug)]
struct Token {
    until: Instant,
    scope: String,
}

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Absent, unknown, expired or revoked.
    Unknown,
    /// It lacks the scope.
    Scope,
}

impl Tokens {
    /// No tokens yet.
    pub fn new(seed: u64) -> Tokens {
        Tokens { seed, given: Mutex::default() }
    }

    fn issue(&self, scope: &str, life: Duration, now: Instant) -> String {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.tokens.len() >= MAX_TOKENS {
            given.tokens.retain(|_, token| token.until > now);
        }
        if given.tokens.len() >= MAX_TOKENS {
            given.tokens.clear();
        }
        given.count += 1;
        let text = format!("tok-{}-{:016x}", given.count, mix(self.seed ^ 0x70_6b6e, given.count));
        given.tokens.insert(
            text.clone(),
            Token { until: now.checked_add(life).unwrap_or(now + FOR_EVER), scope: scope.into() },
        );
        text
    }

    /// Ends all tokens.
    pub fn revoke(&self) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).tokens.clear();
    }

    /// Checks an `Authorization` header.
    pub fn check(&self, authorization: Option<&str>, scope: Option<&str>, now: Instant) -> Result<(), Refused> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let text = authorization.and_then(bearer).ok_or(Refused::Unknown)?;
        let token = given.tokens.get(text).filter(|token| token.until > now).ok_or(Refused::Unknown)?;
        match scope {
            Some(scope) if !token.scope.split(' ').any(|has| has == scope) => Err(Refused::Scope),
            _ => Ok(()),
        }
    }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Answers a token request: form-encoded client credentials, nothing else.
pub(super) fn endpoint(exchange: &Exchange, content_type: Option<&str>, body: &[u8]) -> Reply {
    let platform = &exchange.platform;
    platform.stats.add(|counts| counts.token_requests += 1);
    let form = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    if !form.is_some_and(|form| form.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return problem(exchange, 415, "unsupported_media_type", "a token request is form-encoded");
    }
    let fields: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    if field("grant_type") != "client_credentials" {
        return problem(exchange, 400, "unsupported_grant_type", "grant_type must be client_credentials");
    }
    let settings = &platform.settings;
    if field("client_id") != settings.client_id || field("client_secret") != settings.client_secret {
        platform.stats.add(|counts| counts.unauthenticated += 1);
        return problem(exchange, 401, "invalid_client", "unknown client or wrong secret");
    }
    let scope = fields.get("scope").map_or(DEFAULT_SCOPE, String::as_str);
    let token = platform.tokens.issue(scope, settings.token_ttl, Instant::now());
    let answer = json!({
        "access_token": token, "token_type": "Bearer", "expires_in": settings.token_ttl.as_secs(), "scope": scope,
    });
    Reply::json(200, answer.to_string()).header("cache-control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_when_its_time_is_over_or_all_are_revoked() {
        let tokens = Tokens::new(1);
        let now = Instant::now();
        let text = format!("Bearer {}", tokens.issue(DEFAULT_SCOPE, Duration::from_secs(2), now));
        assert_eq!(tokens.check(Some(&text), Some("context:write"), now), Ok(()));
        assert_eq!(tokens.check(Some(&text), None, now + Duration::from_secs(2)), Err(Refused::Unknown));
        tokens.revoke();
        assert_eq!(tokens.check(Some(&text), None, now), Err(Refused::Unknown));
        assert_eq!(tokens.check(None, None, now), Err(Refused::Unknown));
    }

    #[test]
    fn a_token_is_good_for_its_scopes_only() {
        let tokens = Tokens::new(1);
        let now = Instant::now();
        let text = format!("bearer {}", tokens.issue("conversation:read", Duration::from_secs(2), now));
        assert_eq!(tokens.check(Some(&text), Some("conversation:read"), now), Ok(()));
        assert_eq!(tokens.check(Some(&text), Some("context:write"), now), Err(Refused::Scope));
    }
}
