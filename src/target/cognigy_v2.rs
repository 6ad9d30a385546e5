//! The dialect `cognigy-v2`: the vendor's published API, without versions.
//!
//! Session variables go to `POST {base}/new/v2.0/sessions/{session}/context/inject`, those of the user to
//! `PATCH {base}/new/v2.0/profiles/{user}`. Nothing can be read back and merging is undocumented, so only plain
//! `set` is offered. A batch that has both is two requests; the body that callers see holds the parts of both,
//! and its length bounds each.

use bytes::Bytes;
use reqwest::{Method, Url};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::answer::{Meaning, meaning};
use super::context_v1::segment;
use super::http::{Http, Request, detail, now};
use super::{Change, Detail, Failure, Read, Write};
use crate::config::{self, below};
use crate::job::{ConversationId, Job, OnConflict, Operand, Operation, Scope};

/// The dialect with its client.
#[derive(Debug)]
pub(super) struct CognigyV2 {
    http: Http,
    sessions: Url,
    profiles: Url,
}

/// What a write sends: the first two parts to the session, the last to the profile.
#[derive(Serialize, serde::Deserialize)]
struct Body<'a> {
    #[serde(rename = "userId")]
    user_id: String,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    context: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    profile: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct SessionBody<'a> {
    #[serde(rename = "userId")]
    user_id: &'a str,
    context: &'a RawValue,
}

#[derive(Serialize)]
struct ProfileBody<'a> {
    profile: &'a RawValue,
}

impl CognigyV2 {
    pub fn new(bot: &config::Bot, http: Http) -> Self {
        Self {
            http,
            sessions: below(&bot.base_url, "new/v2.0/sessions"),
            profiles: below(&bot.base_url, "new/v2.0/profiles"),
        }
    }

    /// There is nothing to read; [`supports`] lets no job through that would need it.
    #[expect(clippy::unused_self, reason = "the same call as the other dialect's")]
    pub fn read(&self) -> Read {
        Read::Failed(Failure::Refused(detail("this dialect cannot read a conversation")))
    }

    pub async fn write<A>(
        &self,
        conversation: &ConversationId,
        body: &Bytes,
        trace: Option<&str>,
        mut again: impl FnMut() -> A + Send,
    ) -> Write
    where
        A: Future<Output = ()> + Send,
    {
        let Ok(parts) = serde_json::from_slice::<Body<'_>>(body) else {
            return Write::Failed(Failure::Refused(detail("the body is not one of this dialect")));
        };
        let mut requests = Vec::new();
        if let Some(context) = parts.context {
            let url = segment(&self.sessions, conversation.as_str());
            let url = url.map(|url| below(&url, "context/inject"));
            requests.push((Method::POST, url, text(&SessionBody { user_id: &parts.user_id, context })));
        }
        if let Some(profile) = parts.profile {
            let url = segment(&self.profiles, &parts.user_id);
            requests.push((Method::PATCH, url, text(&ProfileBody { profile })));
        }
        let mut written = false;
        for (method, url, body) in requests {
            let Some(url) = url else {
                return Write::Failed(Failure::Refused(detail("the id cannot be part of an address")));
            };
            // The first request was paid for by the caller.
            if written {
                again().await;
            }
            let request = Request::with_body(method, url, body, trace);
            let failure = match self.http.send(&request, &mut again).await {
                Err(failure) => failure,
                Ok(answer) => match meaning(&answer, now()) {
                    Meaning::Success => {
                        written = true;
                        continue;
                    }
                    // Without a precondition a conflict is a refusal at this moment: nothing happened.
                    Meaning::Conflict => Failure::NotSent(Detail {
                        status: Some(answer.status.as_u16()),
                        ..detail("the target answered with a conflict")
                    }),
                    Meaning::Failed(failure) => failure,
                },
            };
            return Write::Failed(if written { half_done(failure) } else { failure });
        }
        Write::Applied { version: None }
    }
}

/// After the first of two requests nothing is certainly without effect.
fn half_done(failure: Failure) -> Failure {
    match failure {
        Failure::Throttled { .. } | Failure::Credentials(_) => failure,
        Failure::NotFound(detail)
        | Failure::Refused(detail)
        | Failure::NotSent(detail)
        | Failure::Ambiguous(detail) => {
            let text = format!("the context was written, the profile was not: {}", detail.text);
            Failure::Ambiguous(Detail { text, ..detail })
        }
    }
}

fn text(body: &impl Serialize) -> Bytes {
    // Text and JSON that was JSON before: nothing in it can fail to be written.
    serde_json::to_vec(body).unwrap_or_default().into()
}

/// The body of a write.
pub(super) fn encode(bot: &config::Bot, conversation: &ConversationId, changes: &[Change]) -> Bytes {
    let part = |of_user: bool| {
        let changes = changes.iter().filter(|change| (change.name.scope == Scope::User) == of_user);
        let map = changes.map(|change| (change.name.key.as_str(), change.value.as_ref())).collect::<BTreeMap<_, _>>();
        (!map.is_empty()).then(|| serde_json::value::to_raw_value(&map).ok()).flatten()
    };
    let (context, profile) = (part(false), part(true));
    let user_id = if bot.user_id.is_empty() { conversation.as_str() } else { &bot.user_id };
    text(&Body { user_id: user_id.to_owned(), context: context.as_deref(), profile: profile.as_deref() })
}

/// Whether a job asks for no more than plain values.
pub(super) fn supports(job: &Job) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("the dialect cognigy-v2 has no versions and cannot be read, so {what}"));
    if job.base_version.is_some() {
        return refuse("base_version cannot be kept");
    }
    if job.sequence.is_some() {
        return refuse("sequence cannot be kept");
    }
    if job.on_conflict != OnConflict::Overwrite {
        return refuse("on_conflict other than overwrite cannot be kept");
    }
    if !job.templates.is_empty() {
        return refuse("templates cannot be rendered");
    }
    for variable in &job.variables {
        let name = &variable.name;
        match &variable.operation {
            Operation::Set(Operand::Value(Value::Null)) | Operation::Delete => {
                return refuse(&format!("variable {name} cannot be deleted"));
            }
            Operation::Set(Operand::Value(_)) => {}
            Operation::Set(Operand::Template(_)) => {
                return refuse(&format!("the template of {name} cannot be rendered"));
            }
            other => return refuse(&format!("{} of variable {name} is not possible", other.name())),
        }
        if name.scope == Scope::Global {
            return Err(format!("the dialect cognigy-v2 has no scope global (variable {name})"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Name;
    use serde_json::json;

    fn bot(more: &str) -> config::Bot {
        let text = format!(
            "[bots.b]\ndialect = \"cognigy-v2\"\nbase_url = \"https://bot.example.com\"\napi_key = \"k\"\n{more}"
        );
        config::Config::parse(&text, []).unwrap().bots.remove("b").unwrap()
    }

    #[test]
    fn a_body_has_one_part_for_the_session_and_one_for_the_profile() {
        let change = |scope, key: &str, value| Change { name: Name::new(scope, key), value: Some(value) };
        let session = change(Scope::Session, "cart_total", serde_json::from_str("149.990").unwrap());
        let user = change(Scope::User, "tier", json!("premium"));
        let bot_of_one = bot("user_id = \"u-1\"");
        let id = ConversationId::new("conv_1", &bot_of_one.conversation_id_pattern).unwrap();
        assert_eq!(
            encode(&bot_of_one, &id, &[session.clone(), user]),
            r#"{"userId":"u-1","context":{"cart_total":149.990},"profile":{"tier":"premium"}}"#
        );
        let body = encode(&bot(""), &id, &[session]);
        let parts: Body<'_> = serde_json::from_slice(&body).unwrap();
        assert_eq!((parts.user_id.as_str(), parts.profile.is_none()), ("conv_1", true));
        let context = parts.context.unwrap();
        assert_eq!(
            text(&SessionBody { user_id: "conv_1", context }),
            r#"{"userId":"conv_1","context":{"cart_total":149.990}}"#
        );
    }
}
