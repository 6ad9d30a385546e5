//! Numbers, exactly: decimals of at most 28 digits, never binary floating point.
//!
//! JSON has one kind of number. What travels through this program keeps its text (`serde_json`'s
//! `arbitrary_precision`), so that `0.1` stays `0.1`; what is computed is a decimal; what cannot be exact is
//! refused instead of rounded. Other programs read JSON numbers as doubles (RFC 8259 §6), so an integer beyond
//! ±(2⁵³−1) and a number that is not a finite double are refused as well.

use rust_decimal::Decimal;
use serde_json::{Number, Value};

/// Largest integer that every JSON reader keeps (2⁵³−1).
pub const MAX_SAFE_INTEGER: i64 = 9_007_199_254_740_991;
/// Most digits in a number that is computed with.
pub const MAX_DIGITS: u32 = 28;

/// Why a number is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// Not a decimal number.
    #[error("is not a decimal number")]
    NotANumber,
    /// More digits than can be kept.
    #[error("has more than 28 digits")]
    TooManyDigits,
    /// An integer that other JSON readers would round.
    #[error("is an integer beyond ±9007199254740991 (2^53-1)")]
    BeyondSafeInteger,
    /// Not a finite double.
    #[error("is too large for a JSON reader")]
    NotFinite,
}

/// Reads the text of a JSON number (RFC 8259 §6), or a decimal string of the same form, exactly.
///
/// # Errors
/// [`NumberError`].
pub fn parse(text: &str) -> Result<Decimal, NumberError> {
    if text.len() > 64 {
        // No 28 digits need that much; a longer text is zeros or not ours to compute with.
        return Err(if is_number(text) { NumberError::TooManyDigits } else { NumberError::NotANumber });
    }
    if !is_number(text) {
        return Err(NumberError::NotANumber);
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().map_err(|_| NumberError::TooManyDigits)?),
        None => (text, 0),
    };
    let negative = mantissa.starts_with('-');
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let mut scale = i64::try_from(fraction.len()).unwrap_or(i64::MAX).saturating_sub(exponent);
    // 1.500 is 15 and one decimal place; 0.000 is 0 and none.
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Ok(Decimal::ZERO);
    }
    scale -= i64::try_from(digits.len() - digits.trim_end_matches('0').len()).unwrap_or(0);
    let mut mantissa: i128 = significant.parse().map_err(|_| NumberError::TooManyDigits)?;
    if scale < 0 {
        let factor = u32::try_from(-scale).ok().filter(|power| *power <= MAX_DIGITS).map(|power| 10i128.pow(power));
        mantissa = factor.and_then(|factor| mantissa.checked_mul(factor)).ok_or(NumberError::TooManyDigits)?;
        scale = 0;
    }
    let scale = u32::try_from(scale).ok().filter(|scale| *scale <= MAX_DIGITS).ok_or(NumberError::TooManyDigits)?;
    if mantissa >= 10i128.pow(MAX_DIGITS) {
        return Err(NumberError::TooManyDigits);
    }
    let decimal = Decimal::try_from_i128_with_scale(mantissa, scale).map_err(|_| NumberError::TooManyDigits)?;
    Ok(if negative { -decimal } else { decimal })
}

/// The sum, exact or refused; a result that other JSON readers would round is refused too.
///
/// # Errors
/// [`NumberError::TooManyDigits`], [`NumberError::BeyondSafeInteger`].
pub fn add(a: Decimal, b: Decimal) -> Result<Decimal, NumberError> {
    let (a, b) = (a.normalize(), b.normalize());
    let places = a.scale().max(b.scale());
    // Aligned at the decimal point both fit into 28 digits, so the sum has at most 29 and is never rounded.
    if whole_digits(a).max(whole_digits(b)) + places > MAX_DIGITS {
        return Err(NumberError::TooManyDigits);
    }
    let sum = a.checked_add(b).ok_or(NumberError::TooManyDigits)?.normalize();
    if sum.mantissa().unsigned_abs() >= 10u128.pow(MAX_DIGITS) {
        return Err(NumberError::TooManyDigits);
    }
    check_safe(sum)?;
    Ok(sum)
}

/// Refuses an integer that other JSON readers would round.
///
/// # Errors
/// [`NumberError::BeyondSafeInteger`].
pub fn check_safe(number: Decimal) -> Result<(), NumberError> {
    let unsafe_integer = number.is_integer() && number.abs() > Decimal::from(MAX_SAFE_INTEGER);
    if unsafe_integer { Err(NumberError::BeyondSafeInteger) } else { Ok(()) }
}

fn whole_digits(number: Decimal) -> u32 {
    let whole = number.trunc().mantissa().unsigned_abs();
    whole.checked_ilog10().map_or(0, |digits| digits + 1)
}

/// The number as JSON, normalised: `150.00` is `150`.
#[must_use]
pub fn to_json(number: Decimal) -> Value {
    let text = number.normalize().to_string();
    // A decimal's text always is a JSON number; "-0" is not one that anybody wants.
    let text = if text == "-0" { "0".to_owned() } else { text };
    text.parse::<Number>().map_or(Value::Null, Value::Number)
}

/// Whether `number` may stand in a value: a finite double, and if an integer within ±(2⁵³−1).
///
/// # Errors
/// [`NumberError::NotFinite`], [`NumberError::BeyondSafeInteger`].
pub fn check_number(number: &Number) -> Result<(), NumberError> {
    let text = number.to_string();
    let double: f64 = text.parse().map_err(|_| NumberError::NotANumber)?;
    if !double.is_finite() {
        return Err(NumberError::NotFinite);
    }
    if double.abs() < 9_007_199_254_740_991.0 {
        return Ok(());
    }
    match parse(&text) {
        Ok(number) => check_safe(number),
        // Too long to compute with: every double of that size is an integer, a fraction would be lost anyway.
        Err(_) => Err(NumberError::BeyondSafeInteger),
    }
}

/// Whether two JSON values are equal: numbers by value, objects whatever the order of their names.
#[must_use]
pub fn json_eq(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => number_eq(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| json_eq(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| json_eq(a, b)))
        }
        (a, b) => a == b,
    }
}

fn number_eq(a: &Number, b: &Number) -> bool {
    let (a, b) = (a.to_string(), b.to_string());
    if a == b {
        return true;
    }
    match (parse(&a), parse(&b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a.parse::<f64>().ok().zip(b.parse::<f64>().ok()).is_some_and(|(a, b)| a == b),
    }
}

/// The grammar of RFC 8259 §6: `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`.
fn is_number(text: &str) -> bool {
    let rest = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(a: &str, b: &str) -> Result<String, NumberError> {
        add(parse(a)?, parse(b)?).map(|sum| to_json(sum).to_string())
    }

    #[test]
    fn sums_are_exact() {
        assert_eq!(sum("0.1", "0.2").unwrap(), "0.3");
        assert_eq!(sum("149.99", "0.01").unwrap(), "150");
        assert_eq!(sum("1e3", "-1000.0").unwrap(), "0");
        assert_eq!(sum("9007199254740990", "1").unwrap(), "9007199254740991");
        assert_eq!(sum("9007199254740991", "1"), Err(NumberError::BeyondSafeInteger));
        assert_eq!(sum("-9007199254740991", "-1"), Err(NumberError::BeyondSafeInteger));
        assert_eq!(sum("1e15", "0.0000000000001").map(|text| text.len()), Err(NumberError::TooManyDigits));
        assert_eq!(sum("0.0000000000000000000000000001", "0").unwrap(), "0.0000000000000000000000000001");
    }

    #[test]
    fn only_numbers_are_numbers() {
        for text in ["", "-", "+1", "01", "1.", ".5", "1e", "0x1", "NaN", "Infinity", "1 ", "1_000", "１"] {
            assert_eq!(parse(text), Err(NumberError::NotANumber), "{text:?}");
        }
        assert_eq!(parse("1e29"), Err(NumberError::TooManyDigits));
        assert_eq!(parse("1e99999999999999999999"), Err(NumberError::TooManyDigits));
        assert_eq!(parse("-0"), Ok(Decimal::ZERO));
        assert_eq!(parse("0e999"), Ok(Decimal::ZERO));
    }

    #[test]
    fn values_hold_only_numbers_that_survive_other_readers() {
        let check = |text: &str| check_number(&text.parse::<Number>().unwrap());
        for text in [
            "0",
            "-0.0",
            "1e15",
            "9007199254740991",
            "1.7976931348623157e-308",
            "123456789.123456789012345678901234567",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in ["9007199254740992", "1e16", "-1e300", "9007199254740993.0"] {
            assert_eq!(check(text), Err(NumberError::BeyondSafeInteger), "{text}");
        }
        assert_eq!(check("1e400"), Err(NumberError::NotFinite));
    }

    #[test]
    fn equality_is_by_value() {
        let eq = |a: &str, b: &str| json_eq(&serde_json::from_str(a).unwrap(), &serde_json::from_str(b).unwrap());
        assert!(eq("150", "1.50e2") && eq("[1,{\"a\":1.0,\"b\":2}]", "[1,{\"b\":2,\"a\":1}]"));
        assert!(!eq("1", "\"1\"") && !eq("[1]", "[1,1]") && !eq("{\"a\":1}", "{\"b\":1}"));
    }

    proptest! {
        #[test]
        fn a_sum_agrees_with_integer_arithmetic(a in -10i64.pow(13)..10i64.pow(13), b in -10i64.pow(13)..10i64.pow(13), scale in 0u32..6) {
            let (x, y) = (Decimal::new(a, scale), Decimal::new(b, scale));
            let sum = add(x, y).unwrap();
            prop_assert_eq!(sum, Decimal::new(a + b, scale).normalize());
            prop_assert_eq!(parse(&to_json(sum).to_string()), Ok(sum));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}|-?[0-9]{1,40}(\\.[0-9]{0,40})?([eE][+-]?[0-9]{1,6})?") {
            let _ = parse(&text);
        }
    }
}
