//! What the relay must know of an event to deliver it: its id, when it happened, its trace. The body goes out byte
//! for byte as it came.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use crate::trace::is_traceparent;

/// Bytes of an id that is sent as a header.
const MAX_ID_BYTES: usize = 256;

/// One event on its way to a receiver.
#[derive(Debug, Clone)]
pub struct Event {
    /// The CloudEvent's id: the same for every try and every replay.
    pub id: String,
    /// When the verdict was reached, if the event says so.
    pub time: Option<Timestamp>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// W3C trace context, the vendors' part.
    pub tracestate: Option<String>,
    /// The CloudEvent in JSON.
    pub body: Bytes,
}

/// A message that is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// The body is no JSON object with an `id`.
    #[error("the body is not a CloudEvent in JSON with an id")]
    Form,
    /// The id cannot be a header.
    #[error("the id of the event is not 1 to 256 visible ASCII characters, so it cannot be sent as webhook-id")]
    Id,
}

/// The few members that are read.
#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tracestate: Option<Cow<'a, str>>,
}

impl Event {
    /// Reads the body of a message.
    ///
    /// # Errors
    /// Why no receiver could be sent it.
    pub fn read(body: Bytes) -> Result<Self, NotAnEvent> {
        let envelope = serde_json::from_slice::<Envelope<'_>>(&body).map_err(|_| NotAnEvent::Form)?;
        if envelope.id.is_empty()
            || envelope.id.len() > MAX_ID_BYTES
            || !envelope.id.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(NotAnEvent::Id);
        }
        let (id, time) = (envelope.id.into_owned(), envelope.time.and_then(|time| time.parse().ok()));
        let traceparent = envelope.traceparent.filter(|text| is_traceparent(text)).map(Cow::into_owned);
        let tracestate = envelope.tracestate.filter(|_| traceparent.is_some()).map(Cow::into_owned);
        Ok(Self { id, time, traceparent, tracestate, body })
    }

    /// The same event with the trace context of its message, where the event itself has none.
    #[must_use]
    pub fn or_trace(mut self, traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        if self.traceparent.is_none() {
            self.traceparent = traceparent.filter(|text| is_traceparent(text)).map(str::to_owned);
            self.tracestate = tracestate.filter(|_| self.traceparent.is_some()).map(str::to_owned);
        }
        self
    }

    /// The trace id: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_deref()?.split('-').nth(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_id_and_the_time_are_read_and_the_body_is_kept() {
        let body = Bytes::from(format!(
            r#"{{"id":"4f2a","time":"2026-11-23T10:00:00.123Z","traceparent":"{TRACE}","data":{{"n":1e999}}}}"#
        ));
        let event = Event::read(body.clone()).unwrap();
        assert_eq!((event.id.as_str(), event.body), ("4f2a", body));
        assert_eq!(event.time, Some("2026-11-23T10:00:00.123Z".parse().unwrap()));
        assert_eq!(event.traceparent.as_deref(), Some(TRACE));
    }

    #[test]
    fn a_body_that_is_no_event_is_told_apart() {
        for body in ["", "null", "[]", "{}", r#"{"id":7}"#, r#"{"id":"a""#, "\u{feff}{}"] {
            assert_eq!(Event::read(Bytes::from(body)).unwrap_err(), NotAnEvent::Form, "{body}");
        }
        for id in ["", "a b", "a\\r\\nx: y", "ü", &"x".repeat(257)] {
            let body = format!(r#"{{"id":"{id}"}}"#);
            assert_eq!(Event::read(Bytes::from(body)).unwrap_err(), NotAnEvent::Id, "{id:?}");
        }
    }

    #[test]
    fn the_messages_trace_stands_in_and_a_malformed_one_is_dropped() {
        let event = Event::read(Bytes::from(r#"{"id":"a","traceparent":"rubbish"}"#)).unwrap();
        assert_eq!(event.traceparent, None);
        assert_eq!(event.clone().or_trace(Some("rubbish"), Some("a=b")).tracestate, None);
        let event = event.or_trace(Some(TRACE), Some("a=b"));
        assert_eq!(event.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(event.tracestate.as_deref(), Some("a=b"));
        for wrong in [&TRACE[1..], &TRACE.to_uppercase(), &TRACE.replace('a', "g"), "00-0-0-00"] {
            assert!(!is_traceparent(wrong), "{wrong}");
        }
    }
}
