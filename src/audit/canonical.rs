//! JSON in canonical form (RFC 8785, JCS): the same bytes for the same value, whoever wrote it.
//!
//! Names sorted by UTF-16 code units, no blanks, strings with the shortest escapes, numbers as ECMAScript prints
//! doubles. Our own because the crates that do this cannot see numbers that keep their text.

use std::io;

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

/// Above it not every whole number is a double.
const MAX_SAFE: u64 = (1 << 53) - 1;

/// The canonical form of a value. A number that is no finite double, which RFC 8785 does not know, stands as it
/// is written.
#[must_use]
pub fn to_string(value: &Value) -> String {
    Text::of(&Sorted(value)).text
}

/// The canonical form of an object.
#[must_use]
pub fn of_object(fields: &Map<String, Value>) -> String {
    struct Object<'a>(&'a Map<String, Value>);
    impl Serialize for Object<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            sorted(self.0, serializer)
        }
    }
    Text::of(&Object(fields)).text
}

/// Text in canonical form, if the names of all objects came in order.
#[derive(Debug)]
pub(super) struct Text {
    /// The text.
    pub text: String,
    /// Whether every number stands as it stood: then the text is the value, and not only a form of it.
    pub is_exact: bool,
    /// Whether all names are ASCII, so that the order of their bytes is that of their UTF-16 code units.
    pub has_plain_names: bool,
}

impl Text {
    /// Writes what gives the names of its objects in the order of their bytes.
    pub fn of(value: &impl Serialize) -> Self {
        let (mut text, mut seen) = (Vec::with_capacity(1_536), Seen::default());
        // Maps with text keys, written to memory: nothing in that can fail.
        let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Canonical(&mut seen)));
        debug_assert!(written.is_ok(), "{written:?}");
        Self {
            text: String::from_utf8(text).unwrap_or_default(),
            is_exact: !seen.changed_number,
            has_plain_names: !seen.foreign_name,
        }
    }
}

/// A value whose names come in the order of RFC 8785 §3.2.3.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => sorted(fields, serializer),
            Value::Array(items) => serializer.collect_seq(items.iter().map(Sorted)),
            plain => plain.serialize(serializer),
        }
    }
}

fn sorted<S: Serializer>(fields: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut members = fields.iter().collect::<Vec<_>>();
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    serializer.collect_map(members.into_iter().map(|(name, value)| (name, Sorted(value))))
}

#[derive(Debug, Default)]
struct Seen {
    in_name: bool,
    foreign_name: bool,
    changed_number: bool,
}

/// How RFC 8785 writes what `serde_json` writes otherwise: numbers. Its strings have the escapes of §3.2.2.2 already.
struct Canonical<'a>(&'a mut Seen);

impl Formatter for Canonical<'_> {
    fn write_number_str<W: ?Sized + io::Write>(&mut self, writer: &mut W, written: &str) -> io::Result<()> {
        // A short whole number is its own canonical form.
        let digits = written.strip_prefix('-').unwrap_or(written);
        let is_plain = digits.len() <= 15 && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain && (!digits.starts_with('0') || written == "0") {
            return writer.write_all(written.as_bytes());
        }
        match written.parse::<f64>() {
            Ok(double) if double.is_finite() => {
                let mut buffer = ryu_js::Buffer::new();
                let canonical = buffer.format_finite(double);
                self.0.changed_number |= canonical != written;
                writer.write_all(canonical.as_bytes())
            }
            _ => writer.write_all(written.as_bytes()),
        }
    }

    fn write_u64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        if value <= MAX_SAFE { write!(writer, "{value}") } else { self.write_number_str(writer, &value.to_string()) }
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(ryu_js::Buffer::new().format_finite(value).as_bytes())
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.in_name = true;
        if first { Ok(()) } else { writer.write_all(b",") }
    }

    fn end_object_key<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.0.in_name = false;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        self.0.foreign_name |= self.0.in_name && !fragment.is_ascii();
        writer.write_all(fragment.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        to_string(&serde_json::from_str(text).unwrap())
    }

    /// RFC 8785 §3.2.2 and §3.2.3.
    #[test]
    fn the_examples_of_the_specification_hold() {
        let source = r#"{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"#;
        let expected = r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
        assert_eq!(canonical(source), expected);
        let names = r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh",
            "1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#;
        let order = canonical(names);
        let at = |text: &str| order.find(text).unwrap();
        let sorted = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"].map(at);
        assert!(sorted.is_sorted(), "{order}");
    }

    #[test]
    fn a_text_is_the_value_where_no_number_changed_its_form() {
        let is_exact = |text: &str| Text::of(&serde_json::from_str::<Value>(text).unwrap()).is_exact;
        assert!(is_exact(r#"{"a": [0, -1, 8.4, 123456789012345], "b": "0.0", "c": null}"#));
        for changed in ["0.0", "-0", "1e2", "150.00", "12345678901234567890"] {
            assert!(!is_exact(&format!(r#"{{"a": {changed}}}"#)), "{changed}");
        }
    }

    #[test]
    fn names_that_need_another_order_than_that_of_their_bytes_are_noticed() {
        let has_plain_names = |text: &str| Text::of(&serde_json::from_str::<Value>(text).unwrap()).has_plain_names;
        assert!(has_plain_names(r#"{"a": "\u20ac", "b": {"c": ["\ud83d\ude00"]}}"#));
        assert!(!has_plain_names(r#"{"a": [{"\u20ac": 1}]}"#));
    }

    #[test]
    fn one_number_has_one_form() {
        for text in ["0", "-0", "0.0", "0e5"] {
            assert_eq!(canonical(text), "0", "{text}");
        }
        assert_eq!(canonical("[150.00, 1.5e2, 1e21, 9007199254740991]"), "[150,150,1e+21,9007199254740991]");
    }
}
