//! What is different between two bodies, by JSON pointer. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

/// Longest value that is shown, in characters.
const SHOWN: usize = 200;

/// One line per difference; where one of the two is not JSON, one line in all.
pub(super) fn changes(before: &[u8], after: &[u8]) -> Vec<String> {
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes);
    match (read(before), read(after)) {
        (Ok(before), Ok(after)) => {
            let mut lines = Vec::new();
            compare("", &before, &after, &mut lines);
            lines
        }
        _ if before == after => Vec::new(),
        _ => vec![format!("the body: {} bytes that are no JSON become {} bytes", before.len(), after.len())],
    }
}

fn compare(pointer: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
                let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                match (old.get(name), new.get(name)) {
                    (Some(before), Some(after)) => compare(&pointer, before, after, lines),
                    (Some(before), None) => lines.push(format!("{pointer}: {} is taken out", show(before))),
                    (None, Some(after)) => lines.push(format!("{pointer}: {} is new", show(after))),
                    (None, None) => {}
                }
            }
        }
        _ => {
            let pointer = if pointer.is_empty() { "the body" } else { pointer };
            lines.push(format!("{pointer}: {} becomes {}", show(before), show(after)));
        }
    }
}

fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named_by_its_place() {
        let lines = changes(
            br#"{"a": 1, "v": {"x/y": {"value": "long", "scope": "galaxy"}, "same": [1]}}"#,
            br#"{"v": {"x/y": {"value": "short", "scope": "user", "op": "set"}, "same": [1]}, "b": null}"#,
        );
        assert_eq!(
            lines,
            [
                "/a: 1 is taken out",
                "/b: null is new",
                "/v/x~1y/op: \"set\" is new",
                "/v/x~1y/scope: \"galaxy\" becomes \"user\"",
                "/v/x~1y/value: \"long\" becomes \"short\"",
            ]
        );
        assert_eq!(changes(b"no json", b"{}"), ["the body: 7 bytes that are no JSON become 2 bytes"]);
        let long = format!("[\"{}\"]", "ü".repeat(300));
        let lines = changes(b"1", long.as_bytes());
        assert!(lines[0].starts_with("the body: 1 becomes [\"üü") && lines[0].ends_with("… (604 bytes)"), "{lines:?}");
    }
}
