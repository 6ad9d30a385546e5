//! Answers: their plain form, RFC 9457 problems, and bodies that break off or never end.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Response, StatusCode, header};
use serde_json::json;

use super::exchange::Exchange;

/// An answer before faults.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// A write was applied for it.
    pub applied: bool,
}

impl Reply {
    /// JSON, ready made.
    pub fn json(status: u16, body: String) -> Reply {
        Reply {
            status,
            content_type: Some("application/json"),
            headers: Vec::new(),
            body: Bytes::from(body),
            applied: false,
        }
    }

    /// No body at all.
    pub fn empty(status: u16) -> Reply {
        Reply { status, content_type: None, headers: Vec::new(), body: Bytes::new(), applied: false }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// Says that a write was applied for it.
    pub fn applied(mut self) -> Reply {
        self.applied = true;
        self
    }

    /// The answer as it is sent.
    pub fn into_response(self) -> Response<AnswerBody> {
        let body = AnswerBody::Whole(Some(self.body.clone()));
        self.with_body(body)
    }

    /// The same head with another body.
    pub fn with_body(self, body: AnswerBody) -> Response<AnswerBody> {
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let content_type = self.content_type.map(|value| ("content-type", value.to_owned()));
        for (name, value) in self.headers.into_iter().chain(content_type) {
            if let Ok(value) = header::HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// An error as RFC 9457 has it, with the platform's `code` and `traceId`. In `cognigy-v2` the code is a number.
pub(super) fn problem(exchange: &Exchange, status: u16, code: &str, detail: &str) -> Reply {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
    let mut body = json!({
        "type": format!("https://sandbox.invalid/problems/{code}"),
        "title": title,
        "status": status,
        "detail": detail,
        "instance": exchange.path,
        "code": code,
        "traceId": exchange.trace_id(),
    });
    if exchange.v2 {
        body["code"] = json!(number(status));
        body["details"] = json!({});
    }
    Reply { content_type: Some("application/problem+json"), ..Reply::json(status, body.to_string()) }
}

/// The vendor's number of an error: 1002 and 1004 are published, the others are made up.
fn number(status: u16) -> u16 {
    match status {
        404 => 1002,
        409 => 1004,
        other => 2_000 + other,
    }
}

/// A body on its way to the client.
pub(super) enum AnswerBody {
    /// All of it.
    Whole(Option<Bytes>),
    /// The first part, then the connection breaks.
    BreaksOff {
        /// What is sent.
        part: Option<Bytes>,
        /// Whether what was sent had a chance to leave.
        flushed: bool,
    },
    /// The same bytes again and again.
    Repeats {
        /// What is repeated.
        chunk: Bytes,
        /// Bytes still to send; `None` never ends.
        left: Option<u64>,
    },
}

/// The end of a body that breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the answer breaks off here, as the fault says")]
pub(super) struct BrokenOff;

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            AnswerBody::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
            }
            AnswerBody::BreaksOff { part, flushed } => match part.take() {
                Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
                None if *flushed => Poll::Ready(Some(Err(BrokenOff))),
                // Being pending once lets the connection send what it has.
                None => {
                    *flushed = true;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            },
            AnswerBody::Repeats { chunk, left: None } => Poll::Ready(Some(Ok(Frame::data(chunk.clone())))),
            AnswerBody::Repeats { left: Some(0), .. } => Poll::Ready(None),
            AnswerBody::Repeats { chunk, left: Some(left) } => {
                let length = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
                *left -= length as u64;
                Poll::Ready(Some(Ok(Frame::data(chunk.slice(..length)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            AnswerBody::BreaksOff { .. } | AnswerBody::Repeats { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            AnswerBody::BreaksOff { .. } | AnswerBody::Repeats { .. } => SizeHint::default(),
        }
    }
}
