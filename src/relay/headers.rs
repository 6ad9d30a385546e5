//! Headers that an endpoint's settings add to every delivery.
//!
//! Refused are those that the relay or HTTP itself sets: two of them would contradict each other, and a
//! `transfer-encoding` from a settings file is a way to smuggle a second request.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

/// Names that are not for settings; those with a dash at the end stand for all that begin so.
const RESERVED: [&str; 14] = [
    "accept-encoding",
    "connection",
    "content-",
    "expect",
    "host",
    "keep-alive",
    "proxy-",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-",
];

/// A header that cannot be sent. The value is never shown: it is a credential more often than not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No name of a header.
    #[error("is not a name of a header: letters, digits and - only")]
    Name,
    /// A name of ours.
    #[error("is set by the relay itself or by HTTP, so it cannot be set here; leave it out")]
    Reserved,
    /// A value with a line break or another control character.
    #[error("has a value that no header can carry, such as one with a line break (it is not shown)")]
    Value,
}

/// Reads one header of the settings.
///
/// # Errors
/// Why it cannot be sent.
pub fn parse(name: &str, value: &SecretString) -> Result<(HeaderName, HeaderValue), HeaderError> {
    let name = HeaderName::try_from(name).map_err(|_| HeaderError::Name)?;
    let reserved = |rule: &str| if rule.ends_with('-') { name.as_str().starts_with(rule) } else { name == *rule };
    if RESERVED.iter().any(|rule| reserved(rule)) {
        return Err(HeaderError::Reserved);
    }
    let mut value = HeaderValue::try_from(value.expose_secret()).map_err(|_| HeaderError::Value)?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Reads all headers of an endpoint.
///
/// # Errors
/// The name of the first wrong one and what is wrong with it.
pub fn parse_all<'a>(
    headers: impl IntoIterator<Item = (&'a String, &'a SecretString)>,
) -> Result<HeaderMap, (String, HeaderError)> {
    let parsed = headers.into_iter().map(|(name, value)| parse(name, value).map_err(|error| (name.clone(), error)));
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, value: &str) -> Result<(), HeaderError> {
        parse(name, &SecretString::from(value)).map(|_| ())
    }

    #[test]
    fn headers_of_ours_and_of_http_are_refused_in_any_case() {
        for name in [
            "content-type",
            "Content-Length",
            "content-encoding",
            "content-anything",
            "Host",
            "connection",
            "TE",
            "transfer-encoding",
            "Upgrade",
            "expect",
            "webhook-id",
            "Webhook-Signature",
            "webhook-x",
            "trailer",
            "Accept-Encoding",
            "proxy-authorization",
            "traceparent",
            "keep-alive",
        ] {
            assert_eq!(outcome(name, "x"), Err(HeaderError::Reserved), "{name}");
        }
    }

    #[test]
    fn ordinary_headers_are_taken_and_hidden() {
        for name in ["authorization", "X-Api-Key", "user-agent", "accept", "tenant", "content"] {
            assert_eq!(outcome(name, "sesame"), Ok(()), "{name}");
        }
        let (_, value) = parse("authorization", &SecretString::from("sesame")).unwrap();
        assert!(!format!("{value:?}").contains("sesame"));
    }

    #[test]
    fn what_would_break_the_request_is_refused() {
        for name in ["", "a b", "a:b", "a\r\nb", "ü"] {
            assert_eq!(outcome(name, "x"), Err(HeaderError::Name), "{name:?}");
        }
        for value in ["a\r\nx: y", "a\nb", "a\0b", "\u{7f}"] {
            assert_eq!(outcome("x-key", value), Err(HeaderError::Value), "{value:?}");
        }
    }
}
