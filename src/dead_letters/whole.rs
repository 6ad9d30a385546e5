//! A letter with everything, as one JSON object: what `export` writes and `import` reads. Pure.
//!
//! Bodies come back byte for byte. Headers keep their values; what JSON has no type for is an object with one
//! name that begins with `$`. What the broker wrote itself (`x-death`, …) is shown and not published again: what
//! it told is in `reason`, `bot`, `endpoint`, `died_at`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum as _;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Value, json};

use super::repair::Told;
use super::{Kind, Letter};
use crate::broker::Message;

/// The object of a letter. A body that is not text is in base64.
pub(super) fn to_row(kind: Kind, letter: &Letter, message: &Message) -> Value {
    let mut row = letter.to_json();
    row["kind"] = json!(kind.as_str());
    row["properties"] = properties_of(message.properties());
    row["headers"] =
        message.headers().map(|(name, value)| (name.to_owned(), value_of(value))).collect::<Map<_, _>>().into();
    match std::str::from_utf8(&message.body) {
        Ok(text) => row["body"] = json!(text),
        Err(_) => row["body_base64"] = json!(STANDARD.encode(&message.body)),
    }
    row
}

/// What a row says.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) told: Told,
    pub(super) message: Message,
}

/// Reads the object of a letter.
///
/// # Errors
/// A sentence that names the member.
pub(super) fn from_row(line: &[u8]) -> Result<Row, String> {
    let row = serde_json::from_slice::<Value>(line).map_err(|_| "it is no JSON object".to_owned())?;
    let text = |name: &str| row[name].as_str().map(str::to_owned);
    let needed = |name: &str| text(name).ok_or_else(|| format!("it has no {name:?}; `dead-letters export` writes one"));
    let kind = needed("kind")?;
    let kind = Kind::from_str(&kind, false).map_err(|_| format!("{kind:?} is no kind of dead letter"))?;
    let body = match (text("body"), text("body_base64")) {
        (Some(body), None) => body.into_bytes(),
        (None, Some(body)) => STANDARD.decode(body).map_err(|_| "body_base64 is not base64".to_owned())?,
        _ => return Err("it has neither body nor body_base64, or both".to_owned()),
    };
    let mut properties = properties_from(&row["properties"])?;
    let headers = row["headers"].as_object().ok_or("it has no \"headers\"")?;
    if !headers.is_empty() {
        properties = properties.with_headers(table_from(headers)?);
    }
    Ok(Row {
        kind,
        id: needed("id")?,
        told: Told {
            reason: needed("reason")?,
            text: needed("text")?,
            bot: text("bot"),
            endpoint: text("endpoint"),
            died_at: text("died_at"),
        },
        message: Message::from_parts(body, properties),
    })
}

fn properties_of(properties: &BasicProperties) -> Value {
    let mut row = Map::new();
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("app_id", properties.app_id()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            row.insert(name.to_owned(), json!(text.as_str()));
        }
    }
    if let Some(seconds) = properties.timestamp() {
        row.insert("timestamp".to_owned(), json!(seconds));
    }
    if let Some(priority) = properties.priority() {
        row.insert("priority".to_owned(), json!(priority));
    }
    Value::Object(row)
}

fn properties_from(row: &Value) -> Result<BasicProperties, String> {
    let row = row.as_object().ok_or("it has no \"properties\"")?;
    let mut to = BasicProperties::default();
    for (name, value) in row {
        let wrong = || format!("the property {name:?} is not what it was exported as");
        let short = || ShortString::try_new(value.as_str().ok_or_else(wrong)?).map_err(|_| wrong());
        to = match name.as_str() {
            "content_type" => to.with_content_type(short()?),
            "content_encoding" => to.with_content_encoding(short()?),
            "correlation_id" => to.with_correlation_id(short()?),
            "reply_to" => to.with_reply_to(short()?),
            "message_id" => to.with_message_id(short()?),
            "type" => to.with_type(short()?),
            "app_id" => to.with_app_id(short()?),
            "timestamp" => to.with_timestamp(value.as_u64().ok_or_else(wrong)?),
            "priority" => {
                to.with_priority(value.as_u64().and_then(|number| u8::try_from(number).ok()).ok_or_else(wrong)?)
            }
            _ => return Err(format!("{name:?} is no property")),
        };
    }
    Ok(to)
}

/// A header as JSON.
pub(super) fn value_of(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::Timestamp(value) => json!({ "$timestamp": value }),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => json!(text),
            Err(_) => json!({ "$base64": STANDARD.encode(text.as_bytes()) }),
        },
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_of).collect(),
        AMQPValue::FieldTable(table) => {
            let members = table.inner().iter().map(|(name, value)| (name.to_string(), value_of(value)));
            Value::Object(members.collect())
        }
        AMQPValue::DecimalValue(number) => json!({ "$decimal": [number.scale, number.value] }),
        AMQPValue::ByteArray(bytes) => json!({ "$bytes": STANDARD.encode(bytes.as_slice()) }),
        AMQPValue::Void => Value::Null,
    }
}

fn table_from(members: &Map<String, Value>) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in members {
        let short =
            ShortString::try_new(name.as_str()).map_err(|_| format!("the name of header {name:?} is too long"))?;
        table
            .insert(short, value_from(value).ok_or_else(|| format!("header {name:?} is not what it was exported as"))?);
    }
    Ok(table)
}

fn value_from(value: &Value) -> Option<AMQPValue> {
    Some(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => AMQPValue::Double(number.as_f64()?),
        },
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        Value::Array(items) => {
            let items = items.iter().map(value_from).collect::<Option<Vec<_>>>()?;
            AMQPValue::FieldArray(FieldArray::from(items))
        }
        Value::Object(members) => match members.iter().next().filter(|_| members.len() == 1) {
            Some((tag, value)) if tag.starts_with('$') => tagged(tag, value)?,
            _ => AMQPValue::FieldTable(table_from(members).ok()?),
        },
    })
}

fn tagged(tag: &str, value: &Value) -> Option<AMQPValue> {
    let bytes = || STANDARD.decode(value.as_str()?).ok();
    Some(match tag {
        "$timestamp" => AMQPValue::Timestamp(value.as_u64()?),
        "$base64" => AMQPValue::LongString(LongString::from(bytes()?)),
        "$bytes" => AMQPValue::ByteArray(ByteArray::from(bytes()?)),
        "$decimal" => AMQPValue::DecimalValue(DecimalValue {
            scale: u8::try_from(value[0].as_u64()?).ok()?,
            value: u32::try_from(value[1].as_u64()?).ok()?,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(message: &Message) -> Letter {
        Letter {
            id: "x~1".into(),
            message_id: message.message_id().map(str::to_owned),
            reason: "expired".into(),
            text: "the deadline passed".into(),
            certainty: None,
            bot: Some("default".into()),
            endpoint: None,
            conversation: None,
            job_id: None,
            attempts: None,
            status: None,
            trace_id: None,
            generation: 0,
            died_at: Some("2026-11-23T10:00:00.123Z".parse().unwrap()),
            first_seen: None,
            bytes: 0,
        }
    }

    #[test]
    fn what_is_written_is_read_back_whole() {
        let table = FieldTable::from(std::collections::BTreeMap::from([
            (ShortString::from("a"), AMQPValue::Boolean(true)),
            (ShortString::from("$b"), AMQPValue::LongLongInt(1)),
        ]));
        let headers = [
            ("text", AMQPValue::LongString(LongString::from("ü"))),
            ("bytes", AMQPValue::LongString(LongString::from(vec![0xff, 0]))),
            ("number", AMQPValue::LongLongInt(-7)),
            ("double", AMQPValue::Double(1.5)),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
            ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 150 })),
            ("array", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void, AMQPValue::LongLongInt(1)]))),
            ("raw", AMQPValue::ByteArray(ByteArray::from(vec![1, 2]))),
            ("table", AMQPValue::FieldTable(table)),
        ];
        let message = Message::new(vec![0xff, b'x'])
            .with_message_id("m")
            .with_correlation_id("c")
            .with_content_type("application/json")
            .with_type("t")
            .with_timestamp("2026-11-23T10:00:00Z".parse().unwrap());
        let message = headers.into_iter().fold(message, |message, (name, value)| message.with_header(name, value));
        let line = to_row(Kind::Quarantine, &letter(&message), &message).to_string();
        let row = from_row(line.as_bytes()).unwrap();
        assert_eq!((row.kind, row.id.as_str(), row.message), (Kind::Quarantine, "x~1", message));
        assert_eq!(row.told.died_at.as_deref(), Some("2026-11-23T10:00:00.123Z"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |line: &str| from_row(line.as_bytes()).unwrap_err();
        assert!(refused("no json").contains("JSON"));
        assert!(refused("{}").contains("\"kind\""));
        assert!(refused(r#"{"kind": "town"}"#).contains("\"town\" is no kind"));
        assert!(refused(r#"{"kind": "jobs"}"#).contains("body"));
        assert!(refused(r#"{"kind": "jobs", "body": "", "headers": {}}"#).contains("properties"));
        let odd = r#"{"kind": "jobs", "body": "", "properties": {"priority": 300}, "headers": {}}"#;
        assert!(refused(odd).contains("priority"));
    }
}
