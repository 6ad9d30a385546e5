//! From bytes to a [`Job`], or to the one reason why not. Pure: no request is made, no clock is read.
//!
//! The wire form is `schemas/job.v1.json`; a test holds schema and parser against each other. The parser is our
//! own because it must tell the reason code and the JSON pointer of the fault, which a schema checker cannot.

use std::borrow::Cow;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::json;
use super::numbers::{self, MAX_SAFE_INTEGER};
use super::templates::Template;
use super::verdict::{Reason, Rejection};
use crate::cli::output::say;
use crate::config::{Bot, LedgerMode};
use crate::job::{
    ConversationId, Job, JobId, Name, OnConflict, OnUnresolved, Operand, Operation, Scope, Variable, Version, is_key,
};

/// Farthest deadline, counted from now.
pub const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3_600);

/// A message as it came, with what the parser needs to know beside it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The body.
    pub body: &'a [u8],
    /// The AMQP `message-id`.
    pub message_id: Option<&'a str>,
    /// The AMQP `content-encoding`.
    pub content_encoding: Option<&'a str>,
    /// The AMQP `timestamp`.
    pub published: Option<Timestamp>,
    /// When we saw it first (`x-first-seen`, else now).
    pub first_seen: Timestamp,
    /// The present.
    pub now: Timestamp,
}

/// A message that is no job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Why.
    pub rejection: Rejection,
    /// The job id that counts, where there is one.
    pub job_id: Option<JobId>,
    /// The conversation, where it has the right form.
    pub conversation: Option<ConversationId>,
}

/// Reads a job for `bot`; one that names no deadline gets `default_deadline` after its publication.
///
/// # Errors
/// [`Invalid`]: a code of the closed list, a sentence, and the pointer of the fault.
pub fn validate(bot: &Bot, default_deadline: Duration, source: &Source<'_>) -> Result<Job, Invalid> {
    let mut known = Known { job_id: source.message_id.and_then(JobId::new), conversation: None };
    parse(bot, default_deadline, source, &mut known).map_err(|rejection| Invalid {
        rejection,
        job_id: known.job_id,
        conversation: known.conversation,
    })
}

/// What is certain even of a job that turns out invalid.
struct Known {
    job_id: Option<JobId>,
    conversation: Option<ConversationId>,
}

fn parse(bot: &Bot, default_deadline: Duration, source: &Source<'_>, known: &mut Known) -> Result<Job, Rejection> {
    if source.content_encoding.is_some_and(|encoding| !encoding.is_empty()) {
        return Err(Rejection::new(Reason::MalformedJson, "the message has a content-encoding; send plain JSON"));
    }
    let value = json::parse(source.body).map_err(|text| Rejection::new(Reason::MalformedJson, text))?;
    let Value::Object(map) = value else {
        return Err(violation("", format!("must be an object, not {}", kind(&value))));
    };
    let mut fields = Fields::new(map, String::new());

    // Identity first, so that every later refusal can name the job.
    let body_id = fields.text("job_id");
    let raw_conversation = fields.text("conversation_id");
    known.conversation = raw_conversation
        .as_ref()
        .ok()
        .and_then(Option::as_deref)
        .and_then(|text| ConversationId::new(text, &bot.conversation_id_pattern));
    let id = job_id(body_id, source.message_id, known)?;
    let Some(raw_conversation) = raw_conversation? else {
        return Err(violation("/conversation_id", "is missing"));
    };
    let Some(conversation) = known.conversation.clone() else {
        let allowed = if raw_conversation.len() > crate::job::MAX_CONVERSATION_ID_BYTES {
            "is longer than 256 bytes".to_owned()
        } else {
            format!("does not fit this bot's conversation_id_pattern, {}", bot.conversation_id_pattern)
        };
        return Err(Rejection::at(Reason::InvalidConversationId, "/conversation_id", allowed));
    };

    let variables = fields.take("variables").map(|value| read_variables(bot, value)).transpose()?;
    let templates = fields.take("templates").map(|value| read_templates(bot, value)).transpose()?;
    let on_conflict = fields.choice(
        "on_conflict",
        &[("overwrite", OnConflict::Overwrite), ("keep_theirs", OnConflict::KeepTheirs), ("fail", OnConflict::Fail)],
    )?;
    let on_unresolved = fields.choice(
        "on_unresolved",
        &[("keep", OnUnresolved::Keep), ("empty", OnUnresolved::Empty), ("fail", OnUnresolved::Fail)],
    )?;
    let deadline = read_deadline(&mut fields, default_deadline, source)?;
    let sequence = fields.integer("sequence", 0)?;
    let base_version = read_base_version(&mut fields)?;
    let coalesce = fields.boolean("coalesce")?.unwrap_or(true);
    fields.finish()?;

    let variables = variables.unwrap_or_default();
    let templates = templates.unwrap_or_default();
    if variables.is_empty() && templates.is_empty() {
        return Err(violation("", "has neither variables nor templates, so there is nothing to do"));
    }
    let plain_bytes = variables.iter().map(|variable| operand_bytes(&variable.operation)).sum::<usize>();
    if plain_bytes > bot.max_payload_bytes {
        let text = format!("the values have {plain_bytes} bytes; max_payload_bytes is {}", bot.max_payload_bytes);
        return Err(Rejection::at(Reason::PayloadTooLarge, "/variables", text));
    }
    Ok(Job {
        id,
        conversation,
        variables,
        templates,
        on_conflict: on_conflict.unwrap_or_default(),
        on_unresolved: on_unresolved.unwrap_or_default(),
        deadline,
        sequence,
        base_version,
        coalesce,
    })
}

fn job_id(
    body: Result<Option<String>, Rejection>,
    message_id: Option<&str>,
    known: &mut Known,
) -> Result<JobId, Rejection> {
    const FORM: &str = "a job id has 1 to 128 characters of A-Z a-z 0-9 . _ : -";
    // A message id that is there and wrong must not be passed over: it is what the producer de-duplicates by.
    let message_id = message_id.filter(|text| !text.is_empty());
    let body = body?;
    match (body, message_id) {
        (None, None) => Err(Rejection::new(Reason::MissingJobId, "neither job_id nor the message id is there")),
        (Some(body), Some(message_id)) if body != message_id => {
            known.job_id = None;
            Err(Rejection::at(Reason::JobIdMismatch, "/job_id", "differs from the message id"))
        }
        (Some(text), _) => {
            known.job_id = JobId::new(&text);
            known.job_id.clone().ok_or_else(|| Rejection::at(Reason::InvalidJobId, "/job_id", FORM))
        }
        (None, Some(text)) => {
            JobId::new(text).ok_or_else(|| Rejection::new(Reason::InvalidJobId, format!("the message id: {FORM}")))
        }
    }
}

fn read_deadline(fields: &mut Fields, default: Duration, source: &Source<'_>) -> Result<Timestamp, Rejection> {
    match fields.text("deadline")? {
        Some(text) => {
            let deadline = text.parse::<Timestamp>().ok().filter(|_| is_rfc3339(&text));
            let Some(deadline) = deadline else {
                return Err(violation(
                    "/deadline",
                    "is not an instant as RFC 3339 writes it, such as 2026-11-23T10:15:00Z",
                ));
            };
            if deadline > source.now.checked_add(MAX_DEADLINE).unwrap_or(Timestamp::MAX) {
                return Err(violation("/deadline", "is more than 24 hours ahead"));
            }
            Ok(deadline)
        }
        None => {
            let oldest = source.now.checked_sub(MAX_DEADLINE).unwrap_or(Timestamp::MIN);
            let start = source.published.filter(|at| (oldest..=source.now).contains(at)).unwrap_or(source.first_seen);
            Ok(start.checked_add(default).unwrap_or(Timestamp::MAX))
        }
    }
}

/// Whether a text that can be read as an instant has the form of RFC 3339 (§5.6). What else is read, such as an
/// instant without seconds, the schema refuses, and so do other readers.
fn is_rfc3339(text: &str) -> bool {
    let (form, fraction) = text.split_at_checked(19).unwrap_or((text, ""));
    let digits = form.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte.to_ascii_uppercase() });
    let zone = fraction.strip_prefix('.').unwrap_or(fraction).trim_start_matches(|c: char| c.is_ascii_digit());
    let offset = || zone.len() == 6 && zone.contains(':') && zone.get(1..3).is_some_and(|hours| hours < "24");
    digits.eq(*b"0000-00-00T00:00:00") && (matches!(zone, "Z" | "z") || offset())
}

fn read_base_version(fields: &mut Fields) -> Result<Option<Version>, Rejection> {
    match fields.take("base_version") {
        None => Ok(None),
        Some(Value::String(text)) if (1..=256).contains(&text.len()) => Ok(Some(Version::new(text))),
        Some(Value::Number(number)) if number.is_u64() => Ok(Some(Version::new(number.to_string()))),
        Some(_) => {
            Err(violation("/base_version", "must be the version as the platform tells it: a text or a whole number"))
        }
    }
}

fn read_variables(bot: &Bot, value: Value) -> Result<Vec<Variable>, Rejection> {
    let Value::Object(map) = value else {
        return Err(violation("/variables", format!("must be an object, not {}", kind(&value))));
    };
    map.into_iter().map(|(key, value)| read_variable(bot, &key, value)).collect()
}

fn read_variable(bot: &Bot, key: &str, value: Value) -> Result<Variable, Rejection> {
    let pointer = ["/variables/", &escape(key)].concat();
    check_key(bot, key, &pointer)?;
    let Value::Object(map) = value else {
        return Err(violation(&pointer, format!("must be an object, not {}", kind(&value))));
    };
    let mut fields = Fields::new(map, pointer.clone());
    if fields.text("key")?.is_some_and(|inner| inner != key) {
        return Err(Rejection::at(
            Reason::InvalidKey,
            format!("{pointer}/key"),
            "differs from the name it stands under",
        ));
    }
    let scope = match fields.text("scope")? {
        None => Scope::Conversation,
        Some(text) => Scope::parse(&text).ok_or_else(|| {
            let text = "is not a scope; there are session, user, conversation and global";
            Rejection::at(Reason::InvalidScope, format!("{pointer}/scope"), text)
        })?,
    };
    let operation = read_operation(bot, &mut fields)?;
    fields.finish()?;
    if bot.ledger == LedgerMode::Off && operation.needs_ledger() {
        let text = format!("{} must not happen twice, and this bot's setting ledger is off", operation.name());
        return Err(Rejection::at(Reason::InvalidOperation, format!("{pointer}/op"), text));
    }
    Ok(Variable { name: Name::new(scope, key), operation })
}

fn check_key(bot: &Bot, key: &str, pointer: &str) -> Result<(), Rejection> {
    let text = if key == bot.ledger_key {
        "is reserved for the record of applied jobs"
    } else if !is_key(key) {
        "a name has 1 to 128 letters, digits and underscores, does not begin with a digit, and is none of __proto__, constructor, prototype"
    } else {
        return Ok(());
    };
    Err(Rejection::at(Reason::InvalidKey, pointer, text))
}

fn read_operation(bot: &Bot, fields: &mut Fields) -> Result<Operation, Rejection> {
    let op = fields.text("op")?;
    Ok(match op.as_deref().unwrap_or("set") {
        "set" => Operation::Set(fields.operand(bot)?),
        "set_if_absent" => Operation::SetIfAbsent(fields.operand(bot)?),
        "compare_set" => {
            Operation::CompareSet { expected: fields.value(bot, "expected")?, value: fields.operand(bot)? }
        }
        "increment" => {
            let by = fields.decimal("by")?.unwrap_or(Decimal::ONE);
            let (min, max) = (fields.decimal("min")?, fields.decimal("max")?);
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                return Err(violation(&fields.at("min"), "is more than max"));
            }
            Operation::Increment { by, min, max }
        }
        "append" => Operation::Append { value: fields.operand(bot)?, max_items: fields.max_items()? },
        "add_to_set" => Operation::AddToSet { value: fields.operand(bot)?, max_items: fields.max_items()? },
        "remove" => Operation::Remove(fields.value(bot, "value")?),
        "delete" => Operation::Delete,
        "merge_patch" => Operation::MergePatch(fields.value(bot, "value")?),
        "max" => Operation::Max(fields.number("value")?),
        "min" => Operation::Min(fields.number("value")?),
        _ => {
            let text = "is not an operation; there are set, set_if_absent, compare_set, increment, append, add_to_set, \
                        remove, delete, merge_patch, max and min";
            return Err(Rejection::at(Reason::InvalidOperation, fields.at("op"), text));
        }
    })
}

fn read_templates(bot: &Bot, value: Value) -> Result<Vec<(String, Template)>, Rejection> {
    let Value::Object(map) = value else {
        return Err(violation("/templates", format!("must be an object, not {}", kind(&value))));
    };
    let mut templates = Vec::new();
    for (name, value) in map {
        let pointer = format!("/templates/{}", escape(&name));
        check_key(bot, &name, &pointer)?;
        let Value::String(text) = value else {
            return Err(violation(&pointer, format!("must be a text, not {}", kind(&value))));
        };
        templates.push((name, Template::parse(&text)));
    }
    Ok(templates)
}

/// Bytes that an operation surely adds to the request.
fn operand_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Set(Operand::Value(value)) => json::length(value),
        _ => 0,
    }
}

/// The members of one object, taken out one by one; what is left over is unknown.
struct Fields {
    map: Map<String, Value>,
    pointer: String,
}

impl Fields {
    fn new(map: Map<String, Value>, pointer: String) -> Self {
        Self { map, pointer }
    }

    fn at(&self, name: &str) -> String {
        [&self.pointer, "/", name].concat()
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    fn finish(self) -> Result<(), Rejection> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(violation(&self.at(&escape(name)), "is not a field that belongs here")),
        }
    }

    fn wrong(&self, name: &str, wanted: &str, value: &Value) -> Rejection {
        violation(&self.at(name), format!("must be {wanted}, not {}", kind(value)))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a text", &other)),
        }
    }

    fn boolean(&mut self, name: &str) -> Result<Option<bool>, Rejection> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    fn integer(&mut self, name: &str, least: u64) -> Result<Option<u64>, Rejection> {
        let wanted = format!("a whole number from {least} to {MAX_SAFE_INTEGER}");
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => {
                let found = numbers::parse(&number.to_string())
                    .ok()
                    .and_then(|number| if number.is_integer() { u64::try_from(number).ok() } else { None });
                let fits = |number: &u64| (least..=MAX_SAFE_INTEGER.unsigned_abs()).contains(number);
                found.filter(fits).map(Some).ok_or_else(|| violation(&self.at(name), format!("must be {wanted}")))
            }
            Some(other) => Err(self.wrong(name, &wanted, &other)),
        }
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Rejection> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let found = choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| Some(*value));
        found.ok_or_else(|| {
            let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            violation(&self.at(name), format!("must be one of {}", names.join(", ")))
        })
    }

    /// `value` or `template`: one of them.
    fn operand(&mut self, bot: &Bot) -> Result<Operand, Rejection> {
        match (self.map.contains_key("value"), self.text("template")?) {
            (true, Some(_)) => Err(violation(&self.at("template"), "stands beside value; keep one of the two")),
            (false, Some(template)) => Ok(Operand::Template(Template::parse(&template))),
            (_, None) => self.value(bot, "value").map(Operand::Value),
        }
    }

    /// A value that must be there, within the limit of size and with numbers that every reader keeps.
    fn value(&mut self, bot: &Bot, name: &str) -> Result<Value, Rejection> {
        let pointer = self.at(name);
        let value = self.take(name).ok_or_else(|| violation(&pointer, "is missing"))?;
        check_numbers(&value, &pointer)?;
        let bytes = json::length(&value);
        if bytes > bot.max_value_bytes {
            let text = format!("has {bytes} bytes; max_value_bytes is {}", bot.max_value_bytes);
            return Err(Rejection::at(Reason::ValueTooLarge, pointer, text));
        }
        Ok(value)
    }

    /// A number, or a text that is one.
    fn decimal(&mut self, name: &str) -> Result<Option<Decimal>, Rejection> {
        let pointer = self.at(name);
        let text = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            Some(other) => return Err(self.wrong(name, "a number, or a text that is one", &other)),
        };
        let number = numbers::parse(&text).and_then(|number| numbers::check_safe(number).map(|()| number));
        number.map(Some).map_err(|error| Rejection::at(Reason::InvalidNumber, pointer, error.to_string()))
    }

    /// A decimal that must be there.
    fn number(&mut self, name: &str) -> Result<Decimal, Rejection> {
        let pointer = self.at(name);
        self.decimal(name)?.ok_or_else(|| violation(&pointer, "is missing"))
    }

    fn max_items(&mut self) -> Result<Option<usize>, Rejection> {
        Ok(self.integer("max_items", 1)?.map(|items| usize::try_from(items).unwrap_or(usize::MAX)))
    }
}

/// Every number in `value` must survive other readers.
fn check_numbers(value: &Value, pointer: &str) -> Result<(), Rejection> {
    match value {
        Value::Number(number) => numbers::check_number(number)
            .map_err(|error| Rejection::at(Reason::InvalidNumber, pointer, error.to_string())),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(at, item)| check_numbers(item, &format!("{pointer}/{at}")))
        }
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| check_numbers(value, &format!("{pointer}/{}", escape(name))))
        }
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

fn violation(pointer: &str, text: impl Into<String>) -> Rejection {
    Rejection::at(Reason::SchemaViolation, pointer, text)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A name as one step of a JSON pointer (RFC 6901 §3); a long one is cut, since producers choose it.
fn escape(name: &str) -> Cow<'_, str> {
    let end = name.char_indices().nth(200).map_or(name.len(), |(at, _)| at);
    let cut = &name[..end];
    if cut.contains(['~', '/']) { cut.replace('~', "~0").replace('/', "~1").into() } else { cut.into() }
}

/// The schemas, as shipped.
pub const SCHEMAS: [(&str, &str); 4] = [
    ("job", include_str!("../../schemas/job.v1.json")),
    ("outcome", include_str!("../../schemas/outcome.v1.json")),
    ("checkpoint", include_str!("../../schemas/checkpoint.v1.json")),
    ("operation", include_str!("../../schemas/operation.v1.json")),
];

/// `schema …`.
#[derive(Debug, clap::Args)]
pub struct SchemaArgs {
    /// Which one
    #[arg(value_parser = SCHEMAS.map(|(name, _)| name))]
    which: String,
}

/// Prints a schema.
///
/// # Errors
/// Standard output is gone.
pub fn print_schema(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    for (_, text) in SCHEMAS.iter().filter(|(name, _)| *name == args.which) {
        say!("{}", text.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
