//! Values as the platform's JavaScript runtime keeps them: every number a double, written as JavaScript writes it.

use serde_json::{Number, Value};

/// Reads a value as it came; with `javascript` its numbers become what a JavaScript runtime would keep.
///
/// # Errors
/// A sentence, for what is no JSON or a number that no double can hold.
pub(super) fn stored(text: &str, javascript: bool) -> Result<Value, String> {
    let mut value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if javascript {
        as_doubles(&mut value)?;
    }
    Ok(value)
}

fn as_doubles(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            // Most numbers are small integers, which stay as they are.
            if number.as_str().len() <= 15 && number.as_i64().is_some() && number.as_str() != "-0" {
                return Ok(());
            }
            let double = number.as_f64().filter(|double| double.is_finite());
            let double = double.ok_or_else(|| format!("{number} is no number that JavaScript has"))?;
            *number = ryu_js::Buffer::new().format(double).parse::<Number>().map_err(|error| error.to_string())?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(as_doubles),
        Value::Object(fields) => fields.values_mut().try_for_each(as_doubles),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_as_doubles() {
        for (text, kept) in [
            ("1", "1"),
            ("1.50", "1.5"),
            ("1.0", "1"),
            ("-0", "0"),
            ("1e2", "100"),
            ("9007199254740993", "9007199254740992"),
            ("[0.1, {\"a\": 1E400}]", ""),
            ("[0.1, {\"a\": 123456789012345678901234567890}]", "[0.1,{\"a\":1.2345678901234568e+29}]"),
        ] {
            let value = stored(text, true).map(|value| value.to_string());
            assert_eq!(value.unwrap_or_default(), kept, "{text}");
        }
        assert_eq!(stored("1.50", false).map(|value| value.to_string()).as_deref(), Ok("1.50"));
    }
}
