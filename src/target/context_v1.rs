//! The dialect `context-v1`: versioned context, conditional PATCH.
//!
//! `PATCH {base}/api/v1/context` merges by (scope, key) under `If-Match`; `GET {base}/api/v1/context/{id}` shows
//! a conversation. A read is believed only if it is whole: a context that is missing, or an entry that is not
//! understood, would make counters start again at zero, so it is a failure.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::{Method, Uri};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::answer::{Answer, BodyEnd, Meaning, meaning, version};
use super::http::{Http, Request, address, detail, now, segment};
use super::{Change, Detail, Failure, Observed, Read, SetUpError, Write};
use crate::config::{self, below};
use crate::job::{ConversationId, Name, Scope, Version, is_key};

/// The dialect with its client.
#[derive(Debug)]
pub(super) struct ContextV1 {
    http: Http,
    context: Uri,
}

impl ContextV1 {
    pub fn new(bot: &config::Bot, http: Http) -> Result<Self, SetUpError> {
        let context = address(bot, "base_url", &below(&bot.base_url, "api/v1/context"))?;
        Ok(Self { http, context })
    }

    pub async fn read<A>(
        &self,
        conversation: &ConversationId,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Read
    where
        A: Future<Output = ()> + Send,
    {
        let Some(url) = segment(&self.context, conversation.as_str(), "") else {
            return Read::Failed(Failure::Refused(detail("the conversation id cannot be part of an address")));
        };
        match self.http.send(&Request::get(url, trace), again).await {
            Err(failure) => Read::Failed(failure),
            Ok(answer) => match meaning(&answer, now()) {
                Meaning::Success => match observed(&answer, conversation) {
                    Ok(observed) => Read::Observed(observed),
                    Err(failure) => Read::Failed(failure),
                },
                Meaning::Conflict => Read::Failed(Failure::Ambiguous(Detail {
                    status: Some(answer.status.as_u16()),
                    ..detail("the target answered a read with a conflict")
                })),
                Meaning::Failed(failure) => Read::Failed(failure),
            },
        }
    }

    pub async fn write<A>(
        &self,
        body: Bytes,
        if_match: Option<&Version>,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Write
    where
        A: Future<Output = ()> + Send,
    {
        let request = Request::with_body(Method::PATCH, self.context.clone(), body, trace);
        // A version that cannot be sent is not one that the target gave: reading again is the remedy.
        let Some(request) = request.if_match(if_match) else { return Write::Conflict };
        match self.http.send(&request, again).await {
            Err(failure) => Write::Failed(failure),
            Ok(answer) => match meaning(&answer, now()) {
                Meaning::Success => {
                    let body = serde_json::from_slice(&answer.body).unwrap_or_default();
                    Write::Applied { version: version(&answer.headers, &body) }
                }
                Meaning::Conflict => Write::Conflict,
                Meaning::Failed(failure) => Write::Failed(failure),
            },
        }
    }
}

/// The body of a write.
pub(super) fn encode(conversation: &ConversationId, changes: &[Change]) -> Bytes {
    struct Body<'a>(&'a ConversationId, Context<'a>);
    struct Context<'a>(&'a [Change]);
    struct Entry<'a>(&'a Change);

    impl Serialize for Body<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(2))?;
            map.serialize_entry("conversationId", self.0)?;
            map.serialize_entry("context", &self.1)?;
            map.end()
        }
    }
    impl Serialize for Context<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|change| (&change.name.key, Entry(change))))
        }
    }
    impl Serialize for Entry<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(2))?;
            map.serialize_entry("value", &self.0.value)?;
            map.serialize_entry("scope", &self.0.name.scope)?;
            map.end()
        }
    }
    // Maps with text keys of values that came from JSON: nothing in them can fail to be written.
    serde_json::to_vec(&Body(conversation, Context(changes))).unwrap_or_default().into()
}

/// The conversation that a complete body shows.
pub(super) fn parse_state(conversation: &ConversationId, body: Bytes) -> Result<Observed, Failure> {
    let headers = hyper::header::HeaderMap::new();
    observed(&Answer { status: hyper::StatusCode::OK, headers, body, end: BodyEnd::Complete }, conversation)
}

/// The conversation that a 2xx answer shows.
pub(super) fn observed(answer: &Answer, conversation: &ConversationId) -> Result<Observed, Failure> {
    let said = |text: String| Detail { status: Some(answer.status.as_u16()), text, ..Detail::default() };
    match answer.end {
        BodyEnd::Complete => {}
        // It would be so again and is no outage: this conversation alone must not stop the bot.
        BodyEnd::TooLong => {
            let limit = answer.body.len();
            let text =
                format!("the conversation is longer than the {limit} bytes read so far; raise max_payload_bytes");
            return Err(Failure::Refused(said(text)));
        }
        BodyEnd::Broken => return Err(Failure::Ambiguous(said("the answer was cut off".to_owned()))),
    }
    let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body) else {
        return Err(Failure::Ambiguous(said("the answer is not JSON".to_owned())));
    };
    if body.get("conversationId").is_some_and(|id| id.as_str().is_some_and(|id| id != conversation.as_str())) {
        return Err(Failure::Ambiguous(said("the answer is about another conversation".to_owned())));
    }
    let version = version(&answer.headers, &body);
    let variables = match body.get_mut("context").map(Value::take) {
        Some(Value::Object(context)) => variables(context)
            .map_err(|key| Failure::Refused(said(format!("the answer's variable {key:?} is not understood"))))?,
        Some(Value::Null) => BTreeMap::new(),
        _ => return Err(Failure::Ambiguous(said("the answer has no context".to_owned()))),
    };
    Ok(Observed { version, variables })
}

/// # Errors
/// The key that is not understood.
fn variables(context: serde_json::Map<String, Value>) -> Result<BTreeMap<Name, Value>, String> {
    let mut variables = BTreeMap::new();
    // A key of another form is none that we or a template could name.
    for (key, entries) in context.into_iter().filter(|(key, _)| is_key(key)) {
        let entries = match entries {
            Value::Array(entries) => entries,
            entry => vec![entry],
        };
        for entry in entries {
            let mut entry = match entry {
                Value::Null => continue,
                Value::Object(entry) => entry,
                _ => return Err(key),
            };
            let scope = match entry.get("scope") {
                None | Some(Value::Null) => Some(Scope::Conversation),
                Some(Value::String(scope)) => Scope::parse(scope),
                Some(_) => return Err(key),
            };
            // A scope that we do not know is none that we write.
            let Some(scope) = scope else { continue };
            match entry.remove("value") {
                None => return Err(key),
                Some(Value::Null) => {}
                Some(value) => {
                    variables.insert(Name::new(scope, key.as_str()), value);
                }
            }
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;
    use hyper::header::HeaderMap;
    use serde_json::json;

    fn conversation(id: &str) -> ConversationId {
        ConversationId::new(id, &regex::Regex::new("(?s)^.*$").unwrap()).unwrap()
    }

    fn read(body: &Value) -> Result<Observed, Failure> {
        let body = serde_json::to_vec(body).unwrap().into();
        let answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, end: BodyEnd::Complete };
        observed(&answer, &conversation("conv_1"))
    }

    #[test]
    fn a_write_is_spelled_as_the_contract_shows() {
        let change = |scope, key: &str, value| Change { name: Name::new(scope, key), value };
        let number: Value = serde_json::from_str("149.990").unwrap();
        let changes = [
            change(Scope::User, "customer_tier", Some(json!("premium"))),
            change(Scope::Session, "cart_total", Some(number)),
            change(Scope::Conversation, "gone", None),
        ];
        assert_eq!(
            encode(&conversation("conv_8a7b"), &changes),
            r#"{"conversationId":"conv_8a7b","context":{"customer_tier":{"value":"premium","scope":"user"},"cart_total":{"value":149.990,"scope":"session"},"gone":{"value":null,"scope":"conversation"}}}"#
        );
    }

    #[test]
    fn a_read_shows_every_scope_of_a_name_and_no_nulls() {
        let observed = read(&json!({"conversationId": "conv_1", "contextVersion": 7, "more": {}, "context": {
            "tier": [{"value": "a", "scope": "user"}, {"value": "b", "scope": "session"}],
            "plain": {"value": {"deep": [1]}},
            "gone": {"value": null, "scope": "user"},
            "nothing": null,
            "elsewhere": {"value": 1, "scope": "channel"},
            "not-a-key": 5,
        }}))
        .unwrap();
        let expected = BTreeMap::from([
            (Name::new(Scope::User, "tier"), json!("a")),
            (Name::new(Scope::Session, "tier"), json!("b")),
            (Name::new(Scope::Conversation, "plain"), json!({"deep": [1]})),
        ]);
        assert_eq!(observed, Observed { version: Some(Version::new("7")), variables: expected });
    }

    #[test]
    fn a_read_without_a_version_says_so() {
        let observed = read(&json!({"context": {}})).unwrap();
        assert_eq!(observed, Observed::default());
    }

    #[test]
    fn a_read_that_is_not_whole_is_a_failure_not_an_empty_conversation() {
        for outage in [json!({}), json!([]), json!({"contextVersion": 1}), json!({"context": []}), json!("x")] {
            assert!(matches!(read(&outage), Err(Failure::Ambiguous(_))), "{outage}");
        }
        let other = json!({"conversationId": "conv_2", "context": {}});
        assert!(matches!(read(&other), Err(Failure::Ambiguous(_))));
        for odd in [json!(5), json!({"scope": "user"}), json!({"value": 1, "scope": 7}), json!([[]])] {
            let body = json!({"context": {"k": odd}});
            assert!(matches!(read(&body), Err(Failure::Refused(_))), "{body}");
        }
    }
}
