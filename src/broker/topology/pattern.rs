//! Routing-key patterns as a topic exchange reads them.

/// Whether a topic exchange would route `key` by `pattern`: `*` is one word, `#` any number of words.
#[must_use]
pub fn matches(pattern: &str, key: &str) -> bool {
    let pattern = pattern.split('.').collect::<Vec<_>>();
    let key = key.split('.').collect::<Vec<_>>();
    matches_words(&pattern, &key)
}

fn matches_words(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], rest) => rest.is_empty(),
        (["#", more @ ..], _) => (0..=key.len()).any(|taken| matches_words(more, &key[taken..])),
        ([word, more @ ..], [first, rest @ ..]) => (*word == "*" || word == first) && matches_words(more, rest),
        ([_, ..], []) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_route_as_a_topic_exchange_does() {
        for (pattern, key, expected) in [
            ("#", "default.applied", true),
            ("*.applied", "default.applied", true),
            ("*.applied", "default.not_applied", false),
            ("default.#", "default.applied", true),
            ("default.*", "other.applied", false),
            ("default.applied", "default.applied", true),
            ("#.applied", "default.applied", true),
            ("*", "default.applied", false),
            ("*.*.#", "default.applied", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }
}
