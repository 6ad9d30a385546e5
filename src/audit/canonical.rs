//! JSON in canonical form (RFC 8785, JCS): the same bytes for the same value, whoever wrote it.
//!
//! Names sorted by UTF-16 code units, no blanks, strings with the shortest escapes, numbers as ECMAScript prints
//! doubles. Our own because the crates that do this cannot see numbers that keep their text.

use serde_json::{Map, Value};

/// The canonical form of a value. A number that is no finite double, which RFC 8785 does not know, stands as it
/// is written.
#[must_use]
pub fn to_string(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

/// The canonical form of an object.
#[must_use]
pub fn of_object(fields: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(fields, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => {
            let written = number.to_string();
            match written.parse::<f64>() {
                Ok(double) if double.is_finite() => text.push_str(ryu_js::Buffer::new().format_finite(double)),
                _ => text.push_str(&written),
            }
        }
        // serde_json escapes exactly what RFC 8785 §3.2.2.2 asks for.
        Value::String(_) => text.push_str(&value.to_string()),
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => write_object(fields, text),
    }
}

fn write_object(fields: &Map<String, Value>, text: &mut String) {
    let mut members = fields.iter().collect::<Vec<_>>();
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    text.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        write(value, text);
    }
    text.push('}');
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
    fn one_number_has_one_form() {
        for text in ["0", "-0", "0.0", "0e5"] {
            assert_eq!(canonical(text), "0", "{text}");
        }
        assert_eq!(canonical("[150.00, 1.5e2, 1e21, 9007199254740991]"), "[150,150,1e+21,9007199254740991]");
    }
}
