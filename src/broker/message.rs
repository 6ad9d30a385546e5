//! A message: its body, shared without a copy, and its properties, read and written by name.
//!
//! Rules:
//! - What a producer put into a header is not to be trusted: a value that is absurd (another type, negative,
//!   above the limit) counts as absent.
//! - Everything that is published again goes through [`Message::republish`]. RabbitMQ up to 3.13 feeds a copied
//!   `x-death` to its cycle detection, and messages vanish silently; a copied `user-id` that is not ours closes
//!   the channel; a copied `expiration` would let a dead letter die; a copied `CC` would route it twice.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

/// Names of headers.
pub mod header {
    /// Attempts so far (integer).
    pub const ATTEMPT: &str = "x-attempt";
    /// When it went onto the rung of the retry ladder from which it comes, onto which one, and its place in line
    /// ([`crate::ladder::Climb`]).
    pub const CLIMBED: &str = "x-climbed";
    /// How often an operator replayed it (integer).
    pub const REPLAY_GENERATION: &str = "x-replay-generation";
    /// When we saw it first (text, RFC 3339).
    pub const FIRST_SEEN: &str = "x-first-seen";
    /// When a replayed job was published first (text, RFC 3339); its `timestamp` is the replay's.
    pub const FIRST_PUBLISHED: &str = "x-first-published";
    /// An earlier attempt may have had its effect (integer).
    pub const AMBIGUOUS: &str = "x-ambiguous";
    /// Reason code of a dead letter.
    pub const REASON: &str = "x-reason";
    /// The reason in a sentence.
    pub const REASON_TEXT: &str = "x-reason-text";
    /// `not_applied` or `unknown`.
    pub const CERTAINTY: &str = "x-certainty";
    /// Attempts that a dead letter had (integer).
    pub const ATTEMPTS: &str = "x-attempts";
    /// HTTP status of the last try (integer).
    pub const LAST_STATUS: &str = "x-last-status";
    /// Trace id, 32 hexadecimal digits.
    pub const TRACE_ID: &str = "x-trace-id";
    /// The bot of a dead job: its routing key is lost by then.
    pub const BOT: &str = "x-bot";
    /// The endpoint of a dead webhook.
    pub const ENDPOINT: &str = "x-endpoint";
    /// When it became a dead letter (text, RFC 3339).
    pub const DIED_AT: &str = "x-died-at";
    /// The body of a dead letter before an operator edited it.
    pub const ORIGINAL_BODY: &str = "x-original-body";
    /// Who edited a dead letter last.
    pub const EDITED_BY: &str = "x-edited-by";
    /// When a dead letter was edited last (text, RFC 3339).
    pub const EDITED_AT: &str = "x-edited-at";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context.
    pub const TRACESTATE: &str = "tracestate";
    /// What the broker counts (integer).
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// What the broker counts up at each delivery.
    pub const COUNTED: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];
    /// Offset in a stream (integer).
    pub const STREAM_OFFSET: &str = "x-stream-offset";
    /// Where the broker moved it from first, and why.
    pub const FIRST_DEATH_QUEUE: &str = "x-first-death-queue";
    /// Why the broker moved it first: `expired`, `delivery_limit`, …
    pub const FIRST_DEATH_REASON: &str = "x-first-death-reason";
}

/// Highest attempt and generation that are believed.
const COUNT_LIMIT: u32 = 1_000_000;

/// A body and its properties.
#[derive(Clone, PartialEq)]
pub struct Message {
    /// The body as it is on the wire.
    pub body: Bytes,
    properties: BasicProperties,
}

impl Message {
    /// A message without properties.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), properties: BasicProperties::default() }
    }

    /// What came or goes over the wire.
    #[must_use]
    pub fn from_parts(body: impl Into<Bytes>, properties: BasicProperties) -> Self {
        Self { body: body.into(), properties }
    }

    /// The properties, for the client alone.
    #[must_use]
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// The producer's id of the message.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// Sets the id; one that AMQP cannot carry (over 255 bytes) is left out.
    #[must_use]
    pub fn with_message_id(self, id: &str) -> Self {
        self.with_short(id, BasicProperties::with_message_id)
    }

    /// The producer's correlation id.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }

    /// Sets the correlation id; one over 255 bytes is left out.
    #[must_use]
    pub fn with_correlation_id(self, id: &str) -> Self {
        self.with_short(id, BasicProperties::with_correlation_id)
    }

    /// The media type of the body.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type().as_ref().map(ShortString::as_str)
    }

    /// Sets the media type.
    #[must_use]
    pub fn with_content_type(self, media_type: &str) -> Self {
        self.with_short(media_type, BasicProperties::with_content_type)
    }

    /// The encoding of the body: one that is there makes a job unreadable.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&str> {
        self.properties.content_encoding().as_ref().map(ShortString::as_str)
    }

    /// Sets the name of the kind of message.
    #[must_use]
    pub fn with_type(self, kind: &str) -> Self {
        self.with_short(kind, BasicProperties::with_type)
    }

    /// When the producer published it, to the second (AMQP has no finer).
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        let seconds = i64::try_from((*self.properties.timestamp())?).ok()?;
        Timestamp::from_second(seconds).ok()
    }

    /// Sets the time of publication.
    #[must_use]
    pub fn with_timestamp(self, time: Timestamp) -> Self {
        match u64::try_from(time.as_second()) {
            Ok(seconds) => Self { properties: self.properties.with_timestamp(seconds), ..self },
            Err(_before_1970) => self,
        }
    }

    /// A header that is text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.header(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// A header that is an integer, zero or above.
    #[must_use]
    pub fn integer(&self, name: &str) -> Option<u64> {
        match *self.header(name)? {
            AMQPValue::ShortShortInt(n) => u64::try_from(n).ok(),
            AMQPValue::ShortShortUInt(n) => Some(u64::from(n)),
            AMQPValue::ShortInt(n) => u64::try_from(n).ok(),
            AMQPValue::ShortUInt(n) => Some(u64::from(n)),
            AMQPValue::LongInt(n) => u64::try_from(n).ok(),
            AMQPValue::LongUInt(n) => Some(u64::from(n)),
            AMQPValue::LongLongInt(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// A header of any type.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    /// All headers in order of their names.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &AMQPValue)> {
        let table = self.properties.headers().as_ref();
        table.into_iter().flat_map(|table| table.inner().iter()).map(|(name, value)| (name.as_str(), value))
    }

    /// Sets a header to a text.
    #[must_use]
    pub fn with_text(self, name: &str, text: &str) -> Self {
        self.with_header(name, AMQPValue::LongString(LongString::from(text)))
    }

    /// Sets a header to an integer (up to `i64::MAX`).
    #[must_use]
    pub fn with_integer(self, name: &str, number: u64) -> Self {
        self.with_header(name, AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    /// Sets a header; a name over 255 bytes, which AMQP cannot carry, is left out.
    #[must_use]
    pub fn with_header(self, name: &str, value: AMQPValue) -> Self {
        let Ok(name) = ShortString::try_new(name) else { return self };
        self.change_headers(|headers| {
            headers.insert(name, value);
        })
    }

    /// Removes a header.
    #[must_use]
    pub fn without_header(self, name: &str) -> Self {
        if self.header(name).is_none() {
            return self;
        }
        self.change_headers(|headers| {
            headers.remove(name);
        })
    }

    /// Attempts so far; absent or absurd is 0.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.count(header::ATTEMPT)
    }

    /// How often an operator replayed it; absent or absurd is 0.
    #[must_use]
    pub fn replay_generation(&self) -> u32 {
        self.count(header::REPLAY_GENERATION)
    }

    /// When we saw it first.
    #[must_use]
    pub fn first_seen(&self) -> Option<Timestamp> {
        self.text(header::FIRST_SEEN)?.parse().ok()
    }

    /// Sets when we saw it first.
    #[must_use]
    pub fn with_first_seen(self, time: Timestamp) -> Self {
        self.with_text(header::FIRST_SEEN, &format!("{time:.3}"))
    }

    /// W3C trace context, as it came; whoever uses it checks its form.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.text(header::TRACEPARENT)
    }

    /// W3C trace context, the vendors' part.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.text(header::TRACESTATE)
    }

    /// The same message, fit to be published once more: the producer's properties and headers, without what the
    /// broker wrote and without what would hurt (see the head of this module).
    #[must_use]
    pub fn republish(&self) -> Self {
        let from = &self.properties;
        let mut to = BasicProperties::default();
        // There is no way to unset a property, so those that stay are copied.
        if let Some(value) = from.content_type() {
            to = to.with_content_type(value.clone());
        }
        if let Some(value) = from.content_encoding() {
            to = to.with_content_encoding(value.clone());
        }
        if let Some(value) = from.priority() {
            to = to.with_priority(*value);
        }
        if let Some(value) = from.correlation_id() {
            to = to.with_correlation_id(value.clone());
        }
        if let Some(value) = from.reply_to() {
            to = to.with_reply_to(value.clone());
        }
        if let Some(value) = from.message_id() {
            to = to.with_message_id(value.clone());
        }
        if let Some(value) = from.timestamp() {
            to = to.with_timestamp(*value);
        }
        if let Some(value) = from.kind() {
            to = to.with_type(value.clone());
        }
        if let Some(value) = from.app_id() {
            to = to.with_app_id(value.clone());
        }
        let headers = from.headers().as_ref().map(FieldTable::inner).into_iter().flatten();
        let kept = headers.filter(|(name, _)| !is_brokers_own(name.as_str()));
        let kept = kept.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>();
        if !kept.is_empty() {
            to = to.with_headers(FieldTable::from(kept));
        }
        Self { body: self.body.clone(), properties: to }
    }

    fn count(&self, name: &str) -> u32 {
        let number = self.integer(name).and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number <= COUNT_LIMIT).unwrap_or(0)
    }

    fn with_short(self, text: &str, set: impl FnOnce(BasicProperties, ShortString) -> BasicProperties) -> Self {
        match ShortString::try_new(text) {
            Ok(text) => Self { properties: set(self.properties, text), ..self },
            Err(_too_long) => self,
        }
    }

    fn change_headers(self, change: impl FnOnce(&mut BTreeMap<ShortString, AMQPValue>)) -> Self {
        let mut headers = self.properties.headers().as_ref().map(|table| table.inner().clone()).unwrap_or_default();
        change(&mut headers);
        Self { properties: self.properties.with_headers(FieldTable::from(headers)), ..self }
    }
}

/// Bodies and header values can be personal data: only their size is shown.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("message_id", &self.message_id())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Headers that RabbitMQ writes or acts upon.
fn is_brokers_own(name: &str) -> bool {
    matches!(name, "x-death" | header::STREAM_OFFSET | "CC" | "BCC")
        || header::COUNTED.contains(&name)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_headers_count_as_absent() {
        let message = Message::new("x");
        assert_eq!((message.attempt(), message.first_seen()), (0, None));
        for absurd in [
            AMQPValue::LongInt(-1),
            AMQPValue::LongString("3".into()),
            AMQPValue::Double(3.0),
            AMQPValue::Boolean(true),
            AMQPValue::LongLongInt(i64::MAX),
            AMQPValue::Void,
        ] {
            assert_eq!(message.clone().with_header(header::ATTEMPT, absurd.clone()).attempt(), 0, "{absurd:?}");
        }
        for three in [AMQPValue::ShortShortInt(3), AMQPValue::LongUInt(3), AMQPValue::LongLongInt(3)] {
            assert_eq!(message.clone().with_header(header::ATTEMPT, three.clone()).attempt(), 3, "{three:?}");
        }
        assert_eq!(message.clone().with_text(header::FIRST_SEEN, "yesterday").first_seen(), None);
        let huge = BasicProperties::default().with_timestamp(u64::MAX);
        assert_eq!(Message::from_parts("x", huge).timestamp(), None);
    }

    #[test]
    fn a_republished_message_keeps_the_producers_part_and_loses_what_would_hurt() {
        let properties = BasicProperties::default()
            .with_message_id("job-1".into())
            .with_correlation_id("c".into())
            .with_content_type("application/json".into())
            .with_timestamp(1_700_000_000)
            .with_expiration("1000".into())
            .with_user_id("guest".into())
            .with_delivery_mode(1);
        let mut message = Message::from_parts("body", properties).with_text("their-own", "kept").with_integer("n", 7);
        for name in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC"] {
            message = message.with_text(name, "gone");
        }
        let again = message.republish();
        let names = again.headers().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names, ["n", "their-own"]);
        assert_eq!((again.message_id(), again.correlation_id()), (Some("job-1"), Some("c")));
        assert_eq!(again.timestamp(), message.timestamp());
        assert_eq!((again.properties().expiration(), again.properties().user_id()), (&None, &None));
        assert_eq!(again.body.as_ptr(), message.body.as_ptr(), "the body is shared");
    }

    #[test]
    fn first_seen_survives_the_wire_to_the_millisecond() {
        let time: Timestamp = "2026-11-23T10:00:00.123Z".parse().unwrap();
        let message = Message::new("").with_first_seen(time);
        assert_eq!(message.text(header::FIRST_SEEN), Some("2026-11-23T10:00:00.123Z"));
        assert_eq!(message.first_seen(), Some(time));
    }

    #[test]
    fn what_amqp_cannot_carry_is_left_out_instead_of_panicking() {
        let long = "é".repeat(200);
        let message = Message::new("").with_message_id(&long).with_text(&long, "x");
        assert_eq!((message.message_id(), message.headers().count()), (None, 0));
    }

    #[test]
    fn nothing_of_a_body_is_shown_by_debug() {
        let shown = format!("{:?}", Message::new("secret value").with_text("h", "secret value"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
