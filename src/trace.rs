//! W3C Trace Context: the one header that is passed on from the producer through the PATCH to the webhook.

/// Whether `text` is a `traceparent`: `version-traceid-parentid-flags` (W3C Trace Context §3.2).
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let hex =
        |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let set = |part: &str| part.bytes().any(|b| b != b'0');
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [version, trace, parent, flags] => {
            hex(version, 2)
                && *version != "ff"
                && hex(trace, 32)
                && set(trace)
                && hex(parent, 16)
                && set(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}

/// A new trace (W3C Trace Context, version 00, sampled).
#[must_use]
pub fn new_traceparent() -> String {
    let (trace, span): (u128, u64) = (rand::random(), rand::random());
    // All zeros are invalid.
    format!("00-{:032x}-{:016x}-01", trace.max(1), span.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_is_passed_on() {
        assert!(is_traceparent(&new_traceparent()));
        let refused = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx: y",
        ];
        for text in refused {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
