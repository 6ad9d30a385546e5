//! Reading JSON strictly: one value in UTF-8, no byte-order mark, no name twice, at most 64 levels deep.
//!
//! `serde_json` keeps the last of two equal names and has no limit of depth for what it skips; two readers of
//! one job must not see two jobs (RFC 8259 §4), so both are refused here. Numbers keep their text.

use std::{fmt, io};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Deepest nesting of lists and objects.
pub const MAX_DEPTH: usize = 64;

/// Reads one JSON value.
///
/// # Errors
/// A sentence that says what is wrong and where, without the text itself.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("the body begins with a byte-order mark; JSON has none".to_owned());
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| format!("the body is not UTF-8 at byte {}", error.valid_up_to()))?;
    if text.trim_ascii().is_empty() {
        return Err("the body is empty".to_owned());
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| explain(&error))?;
    build(raw.get(), 0)
}

/// Bytes of a value as it is written, without spaces.
#[must_use]
pub fn length(value: &Value) -> usize {
    let mut count = Count(0);
    // Neither the counter nor a value, whose names are all texts, can fail.
    serde_json::to_writer(&mut count, value).map_or(usize::MAX, |()| count.0)
}

/// Counts what is written to it.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error's place and kind. Its own text may repeat a piece of the input.
fn explain(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Eof => "the JSON ends too early",
        _ => "this is not JSON",
    };
    format!("{kind} (line {}, column {})", error.line(), error.column())
}

fn build(text: &str, depth: usize) -> Result<Value, String> {
    let nested = |text: &str| matches!(text.as_bytes().first(), Some(b'{' | b'['));
    if nested(text) && depth == MAX_DEPTH {
        return Err(format!("the JSON is more than {MAX_DEPTH} levels deep"));
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: Members<'_> = serde_json::from_str(text).map_err(|error| explain(&error))?;
            let mut map = Map::new();
            for (name, raw) in members.0 {
                let value = build(raw.get(), depth + 1)?;
                if map.insert(name, value).is_some() {
                    return Err("an object has the same name twice".to_owned());
                }
            }
            Ok(Value::Object(map))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| explain(&error))?;
            items.into_iter().map(|raw| build(raw.get(), depth + 1)).collect::<Result<_, _>>().map(Value::Array)
        }
        Some(b'"') => serde_json::from_str(text).map(Value::String).map_err(|error| explain(&error)),
        Some(b't') => Ok(Value::Bool(true)),
        Some(b'f') => Ok(Value::Bool(false)),
        Some(b'n') => Ok(Value::Null),
        _ => text.parse::<Number>().map(Value::Number).map_err(|error| explain(&error)),
    }
}

/// The members of an object in their order, names decoded, values as they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = access.next_entry::<String, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_one_json_value_is_refused() {
        let cases: [&[u8]; 13] = [
            b"",
            b"  ",
            b"{",
            b"{} {}",
            b"{\"a\":1,}",
            b"\xef\xbb\xbf{}",
            b"\"\xff\"",
            b"{\"a\":1,\"a\":2}",
            b"{\"a\":{\"b\":1,\"\\u0062\":2}}",
            b"[01]",
            b"NaN",
            b"'a'",
            b"\"\\ud800\"",
        ];
        for case in cases {
            assert!(parse(case).is_err(), "{}", String::from_utf8_lossy(case));
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(parse(&nested(64)).is_ok());
        assert!(parse(&nested(65)).is_err());
        assert!(parse(&nested(250_000)).is_err());
    }

    #[test]
    fn numbers_keep_their_text() {
        assert_eq!(
            parse(b"[0.10, 1e400, 123456789012345678901234567890]").unwrap().to_string().replace("E+", "e"),
            "[0.10,1e400,123456789012345678901234567890]"
                .replace("1e400", &"1e400".parse::<Number>().unwrap().to_string())
        );
    }

    #[test]
    fn serde_s_own_marker_is_a_name_like_any_other() {
        let value = parse(b"{\"$serde_json::private::Number\":\"1\"}").unwrap();
        assert!(value.is_object());
    }

    #[test]
    fn an_error_never_repeats_the_input() {
        let text = parse(b"{\"secret\": sesame}").unwrap_err();
        assert!(!text.contains("sesame") && text.contains("column"), "{text}");
    }

    proptest! {
        #[test]
        fn it_agrees_with_serde_where_that_is_strict_enough(text in "[\\[\\]{}\",:0-9a-ftrue.e+-]{0,30}") {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
