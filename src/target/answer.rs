//! What an answer of the target means: from status, headers and body to the closed set. Pure.
//!
//! Odd cases, by their sources: a 409 is a conflict unless its body names something else; a 412 always is one
//! (RFC 9110, 13.1.1); `Retry-After` is a number of seconds or a date, and in practice also garbage; a redirect
//! is an outage, since following it would send the token elsewhere.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{DATE, ETAG, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;

use super::{Detail, Failure, MAX_RETRY_AFTER};
use crate::job::Version;

/// One answer, its body read up to a limit.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub end: BodyEnd,
}

/// How the body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// As it should.
    Complete,
    /// It goes on beyond the limit.
    TooLong,
    /// The connection broke, or time ran out.
    Broken,
}

/// What an answer means, before its body is read as a conversation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// 2xx.
    Success,
    /// The precondition failed.
    Conflict,
    /// Anything else.
    Failed(Failure),
}

/// Classifies an answer; `now` is what a date in `Retry-After` counts from where the answer has no `Date`.
pub(super) fn meaning(answer: &Answer, now: SystemTime) -> Meaning {
    if answer.status.is_success() {
        return Meaning::Success;
    }
    let problem = Problem::read(answer);
    let detail = problem.detail(answer.status);
    Meaning::Failed(match answer.status.as_u16() {
        412 => return Meaning::Conflict,
        409 if problem.is_conflict() => return Meaning::Conflict,
        429 => Failure::Throttled { retry_after: retry_after(&answer.headers, now), detail },
        401 | 403 | 407 => Failure::Credentials(detail),
        404 | 410 => Failure::NotFound(detail),
        // The target did not get or not want the request at this moment; nothing is wrong with it.
        408 | 421 | 425 => Failure::Ambiguous(detail),
        400..=499 => Failure::Refused(detail),
        300..=399 => Failure::Ambiguous(Detail {
            text: format!("{}, a redirect, which is not followed; check base_url", detail.text),
            ..detail
        }),
        _ => Failure::Ambiguous(detail),
    })
}

/// The parts of an error body (RFC 9457) that are used, read leniently.
#[derive(Debug, Default)]
struct Problem {
    code: Option<String>,
    kind: Option<String>,
    trace_id: Option<String>,
}

impl Problem {
    fn read(answer: &Answer) -> Self {
        let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        let text = |key: &str| match body.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let header = |name: &str| answer.headers.get(name)?.to_str().ok().map(str::to_owned);
        Self {
            code: text("code").and_then(short_word),
            kind: text("type"),
            trace_id: text("traceId")
                .or_else(|| text("trace_id"))
                .or_else(|| header("x-trace-id"))
                .or_else(|| header("x-request-id"))
                .and_then(short_word),
        }
    }

    fn detail(&self, status: StatusCode) -> Detail {
        let name = status.canonical_reason().map(|name| format!(" {name}")).unwrap_or_default();
        Detail {
            status: Some(status.as_u16()),
            code: self.code.clone(),
            trace_id: self.trace_id.clone(),
            text: format!("the target answered {}{name}", status.as_u16()),
        }
    }

    /// Whether a 409 is about the version: it is, unless a code or type is there that names something else. A
    /// code without letters and the empty type of RFC 9457 name nothing.
    fn is_conflict(&self) -> bool {
        let mut names = [self.code.as_deref(), self.kind.as_deref()]
            .into_iter()
            .flatten()
            .filter(|name| name.chars().any(char::is_alphabetic) && *name != "about:blank")
            .peekable();
        names.peek().is_none() || names.any(names_a_version)
    }
}

fn names_a_version(name: &str) -> bool {
    const WORDS: [&str; 7] = ["version", "conflict", "precondition", "etag", "revision", "if-match", "if_match"];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// A code or an id as it may be shown: one short word. Anything else could hold a value.
fn short_word(text: String) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    (!text.is_empty() && text.len() <= 128 && text.chars().all(fits)).then_some(text)
}

/// The wait that `Retry-After` asks for (RFC 9110, 10.2.3), at most [`MAX_RETRY_AFTER`]. A date counts from the
/// answer's own `Date`, so that clocks need not agree. `None`: it is not there, or it is nonsense.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 has are a long time too.
        let wait = text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs);
        return Some(wait.min(MAX_RETRY_AFTER));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// The version that an answer carries: its `ETag` as it came, or the first of `contextVersion` and `version` in
/// its body.
pub(super) fn version(headers: &HeaderMap, body: &Value) -> Option<Version> {
    let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::trim).and_then(usable);
    let named = ["contextVersion", "version"].iter().find_map(|key| match body.get(key)? {
        Value::Number(number) => usable(&number.to_string()),
        Value::String(text) => usable(text),
        _ => None,
    });
    match (tag, named) {
        (Some(tag), Some(named)) if is_foreign(tag.as_str(), named.as_str()) => Some(named),
        (Some(tag), _) => Some(tag),
        (None, named) => named,
    }
}

/// A weak tag beside a version that it does not name: a hash of the answer that a web framework put there. It
/// never matches in `If-Match` (RFC 9110, 13.1.1).
fn is_foreign(tag: &str, version: &str) -> bool {
    tag.strip_prefix("W/").is_some_and(|tag| tag.trim_matches('"') != version.trim_matches('"'))
}

/// A version that can be sent back in a header.
fn usable(text: &str) -> Option<Version> {
    let fits = !text.is_empty() && text.len() <= 1_024 && text.trim() == text && HeaderValue::from_str(text).is_ok();
    fits.then(|| Version::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (hyper::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            end: BodyEnd::Complete,
        }
    }

    fn of(status: u16, body: &str) -> Meaning {
        meaning(&answer(status, &[], body), SystemTime::UNIX_EPOCH)
    }

    fn failure(status: u16) -> Failure {
        match of(status, "") {
            Meaning::Failed(failure) => failure,
            other => panic!("{status} is {other:?}"),
        }
    }

    #[test]
    fn every_status_has_the_meaning_of_the_design() {
        for status in [200, 201, 202, 204] {
            assert_eq!(of(status, ""), Meaning::Success);
        }
        for status in [400, 402, 405, 413, 415, 422, 428, 431, 451] {
            assert!(matches!(failure(status), Failure::Refused(_)), "{status}");
        }
        for status in [401, 403, 407] {
            assert!(matches!(failure(status), Failure::Credentials(_)), "{status}");
        }
        for status in [404, 410] {
            assert!(matches!(failure(status), Failure::NotFound(_)), "{status}");
        }
        for status in [300, 301, 302, 307, 308, 408, 425, 500, 501, 502, 503, 504, 529, 599] {
            assert!(matches!(failure(status), Failure::Ambiguous(_)), "{status}");
        }
        assert!(matches!(failure(429), Failure::Throttled { retry_after: None, .. }));
    }

    #[test]
    fn a_409_is_a_conflict_unless_its_body_names_something_else() {
        for body in [
            "",
            "Conflict",
            "{}",
            "[]",
            r#"{"detail": "somebody was faster"}"#,
            r#"{"code": "VERSION_MISMATCH"}"#,
            r#"{"code": "contextVersionConflict"}"#,
            r#"{"type": "https://errors.example.com/version-conflict", "code": "E17"}"#,
            r#"{"type": "about:blank", "status": 409}"#,
            r#"{"code": 1004}"#,
            r#"{"code": null, "type": 7}"#,
        ] {
            assert_eq!(of(409, body), Meaning::Conflict, "{body}");
        }
        for body in [r#"{"code": "CONVERSATION_CLOSED"}"#, r#"{"type": "https://errors.example.com/locked"}"#] {
            assert!(matches!(of(409, body), Meaning::Failed(Failure::Refused(_))), "{body}");
        }
        assert_eq!(of(412, r#"{"code": "CONVERSATION_CLOSED"}"#), Meaning::Conflict);
    }

    #[test]
    fn an_error_keeps_code_and_trace_id_and_no_values() {
        let body = json!({"type": "t", "title": "Bad value premium", "detail": "premium is too long",
            "code": "VALUE_TOO_LARGE", "traceId": "abc-123"});
        let Meaning::Failed(failure) = of(400, &body.to_string()) else { panic!("a 400 is a failure") };
        let text = failure.to_string();
        assert_eq!(
            text,
            "the target refused the request: the target answered 400 Bad Request, code VALUE_TOO_LARGE, \
             trace id abc-123"
        );
        let body = json!({"code": "the value premium", "traceId": "a\nb"});
        let Meaning::Failed(failure) = of(400, &body.to_string()) else { panic!("a 400 is a failure") };
        assert_eq!((&failure.detail().code, &failure.detail().trace_id), (&None, &None));
    }

    fn wait(text: &str, headers: &[(&'static str, &str)]) -> Option<Duration> {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 10:00:00 GMT").unwrap();
        let headers = [headers, &[("retry-after", text)]].concat();
        retry_after(&answer(429, &headers, "").headers, now)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_survives_anything_else() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(wait("7", &[]), seconds(7));
        assert_eq!(wait(" 0 ", &[]), seconds(0));
        assert_eq!(wait("Mon, 23 Nov 2026 10:00:09 GMT", &[]), seconds(9));
        assert_eq!(wait("Mon, 23 Nov 2026 09:00:00 GMT", &[]), seconds(0));
        let date = ("date", "Mon, 23 Nov 2026 10:00:05 GMT");
        assert_eq!(wait("Mon, 23 Nov 2026 10:00:09 GMT", &[date]), seconds(4));
        for year in ["31536000", "99999999999999999999999999", "Tue, 23 Nov 2027 10:00:00 GMT"] {
            assert_eq!(wait(year, &[]), Some(MAX_RETRY_AFTER), "{year}");
        }
        for nonsense in ["", "-5", "soon", "1.5", "+3", "0x10", "NaN", "2026-11-23T10:00:00Z"] {
            assert_eq!(wait(nonsense, &[]), None, "{nonsense}");
        }
    }

    #[test]
    fn a_version_is_echoed_as_it_came() {
        let found = |headers: &[(&'static str, &str)], body: Value| {
            version(&answer(200, headers, "").headers, &body).map(|version| version.as_str().to_owned())
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found(&[], json!({"contextVersion": 42})), text("42"));
        assert_eq!(found(&[], json!({"contextVersion": "v-42"})), text("v-42"));
        assert_eq!(found(&[], json!({"version": 0})), text("0"));
        assert_eq!(found(&[], json!({"contextVersion": null, "version": 7})), text("7"));
        assert_eq!(found(&[("etag", "\"42\"")], json!({})), text("\"42\""));
        assert_eq!(found(&[("etag", "\"42\"")], json!({"contextVersion": 42})), text("\"42\""));
        assert_eq!(found(&[("etag", "W/\"42\"")], json!({"contextVersion": 42})), text("W/\"42\""));
        assert_eq!(found(&[("etag", "W/\"1f-x9\"")], json!({"contextVersion": 42})), text("42"));
        assert_eq!(found(&[("etag", "W/\"1f-x9\"")], json!({})), text("W/\"1f-x9\""));
        for useless in
            [json!(""), json!(null), json!(true), json!([1]), json!("a\nb"), json!(" 1"), json!("x".repeat(2_000))]
        {
            assert_eq!(found(&[], json!({"contextVersion": useless})), None);
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_classifier_stop(
            status in 100_u16..1_000, body in any::<Vec<u8>>(), wait in "[ -~]{0,40}", now in any::<u32>(),
        ) {
            let mut answer = answer(200, &[("retry-after", &wait)], "");
            answer.status = StatusCode::from_u16(status).unwrap();
            answer.body = body.into();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.into());
            if let Meaning::Failed(Failure::Throttled { retry_after: Some(wait), .. }) = meaning(&answer, now) {
                prop_assert!(wait <= MAX_RETRY_AFTER);
            }
        }
    }
}
