//! What must hold for every answer of the platform: see [`crate::fuzzing`].
#![allow(clippy::panic, clippy::unwrap_used, reason = "a check that fails must stop the fuzzer")]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use regex::Regex;
use serde_json::Value;

use super::answer::{Answer, BodyEnd, Meaning, meaning, version};
use super::{Detail, Failure, MAX_RETRY_AFTER, Observed, cognigy_v2, context_v1, token};
use crate::job::{ConversationId, is_key};

static CONVERSATION: LazyLock<ConversationId> =
    LazyLock::new(|| ConversationId::new("conv_1", &Regex::new("^conv_1$").unwrap()).unwrap());

/// An answer: two bytes of status, one of how the body ends, a line for `Retry-After`, one for `ETag`, one for
/// `x-trace-id`, and the body. It has one meaning, as an answer to a write, to a read in either dialect and to a request
/// for a token.
pub fn answer(input: &[u8]) {
    let Some((head, rest)) = input.split_first_chunk::<3>() else { return };
    let status = 100 + u16::from_be_bytes([head[0], head[1]]) % 900;
    let end = [BodyEnd::Complete, BodyEnd::TooLong, BodyEnd::Broken][usize::from(head[2]) % 3];
    let mut headers = HeaderMap::new();
    let mut rest = rest;
    for name in [RETRY_AFTER, ETAG, HeaderName::from_static("x-trace-id")] {
        let at = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        if let Ok(value) = HeaderValue::from_bytes(&rest[..at]) {
            headers.insert(name, value);
        }
        rest = rest.get(at + 1..).unwrap_or_default();
    }
    let body = Bytes::copy_from_slice(rest);
    let answer = Answer { status: StatusCode::from_u16(status).unwrap(), headers, body, end };

    match meaning(&answer, SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_428_000)) {
        Meaning::Success => assert!((200..300).contains(&status), "{status} is no success"),
        Meaning::Conflict => assert!(status == 409 || status == 412, "{status} is no conflict"),
        Meaning::Failed(failure) => {
            assert!(!(200..300).contains(&status), "{status} is no failure");
            is_certain_of_what_it_says(status, &failure);
        }
    }
    let parsed = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    if let Some(version) = version(&answer.headers, &parsed) {
        HeaderValue::from_str(version.as_str()).expect("a version can be sent back");
    }
    match context_v1::observed(&answer, &CONVERSATION) {
        Ok(observed) => is_whole(end, &observed),
        Err(failure) => is_shown(failure.detail()),
    }
    match cognigy_v2::profile(&answer, "_injection_ledger") {
        Ok(profile) => is_whole(end, &profile.observed),
        Err(failure) => is_shown(failure.detail()),
    }
    match token::read(&answer) {
        Ok((header, _)) => assert!(header.is_sensitive() && end == BodyEnd::Complete, "a token is whole and hidden"),
        Err(failure) => {
            assert!(matches!(failure, Failure::Credentials(_) | Failure::NotSent(_)), "no token, no effect: {failure}");
            is_shown(failure.detail());
        }
    }
}

/// Nothing may be called without effect that can have had one.
fn is_certain_of_what_it_says(status: u16, failure: &Failure) {
    let refusal = (400..500).contains(&status);
    match failure {
        Failure::NotFound(_) | Failure::Refused(_) | Failure::Credentials(_) => {
            assert!(refusal, "{status} is no refusal");
        }
        Failure::Throttled { retry_after, .. } => {
            assert!(status == 429 && retry_after.is_none_or(|wait| wait <= MAX_RETRY_AFTER), "{retry_after:?}");
        }
        Failure::Ambiguous(_) => assert!(!refusal || [408, 421, 425].contains(&status), "{status} is a refusal"),
        Failure::NotSent(_) | Failure::HalfDone(_) => panic!("an answer came: {failure}"),
    }
    is_shown(failure.detail());
}

/// What is shown of an answer is short and has one line.
fn is_shown(detail: &Detail) {
    let text = detail.to_string();
    assert!(text.len() < 1_000 && !text.chars().any(char::is_control), "{text:?}");
}

fn is_whole(end: BodyEnd, observed: &Observed) {
    assert_eq!(end, BodyEnd::Complete, "a part of an answer is no conversation");
    assert!(observed.variables.iter().all(|(name, value)| is_key(&name.key) && !value.is_null()));
}
