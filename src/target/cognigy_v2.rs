//! The dialect `cognigy-v2`: the vendor's published API, without versions.
//!
//! Session variables (scopes `session` and `conversation`) go to
//! `POST {base}/new/v2.0/sessions/{session}/context/inject` and cannot be read back; those of the user to
//! `PATCH {base}/new/v2.0/profiles/{profile}`, which can. There is no conditional write, so the best that can be had
//! is one writer at a time, ourselves. Rules:
//! - A profile is looked at before it is written. Where it says `prevent_data_collection`, nothing is written, in the
//!   session neither. Where the plan was made on what a read showed, and the profile no longer is so, that is a
//!   conflict. Between this look and the write another writer can still come in: nothing here can prevent that.
//! - The record of applied jobs lives in the profile, in the same request as what must not happen twice. It is the
//!   last request of a write, so that the record never speaks of something that was not sent.
//! - A job that writes to both is two requests, and stands alone ([`together`]). If the second one is refused, half of
//!   the job has happened for good ([`Failure::HalfDone`]); if its fate is open, both are sent again, which is safe:
//!   what goes into a session is plain values.
//!
//! What each operation can do here is told by [`supports`].

use bytes::Bytes;
use hyper::{Method, Uri};
use regex::Regex;

use super::answer::{Answer, Meaning, meaning};
use super::http::{Http, Request, address, detail, now, segment};
use super::{Detail, Failure, Read, SetUpError, Write};
use crate::config::{self, below};
use crate::job::{ConversationId, Version};

mod operations;
mod wire;

pub(super) use self::operations::{supports, together};
use self::wire::{Address, Profile, parts};
pub(super) use self::wire::{encode, profile};

/// The dialect with its client.
#[derive(Debug)]
pub(super) struct CognigyV2 {
    http: Http,
    sessions: Uri,
    profiles: Uri,
    pattern: Regex,
    user_id: String,
    ledger_key: String,
}

impl CognigyV2 {
    pub fn new(bot: &config::Bot, http: Http) -> Result<Self, SetUpError> {
        let below = |path| address(bot, "base_url", &below(&bot.base_url, path));
        Ok(Self {
            http,
            sessions: below("new/v2.0/sessions")?,
            profiles: below("new/v2.0/profiles")?,
            pattern: bot.conversation_id_pattern.clone(),
            user_id: bot.user_id.clone(),
            ledger_key: bot.ledger_key.clone(),
        })
    }

    /// Reads the profile: what can be known of a conversation.
    pub async fn read<A>(
        &self,
        conversation: &ConversationId,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Read
    where
        A: Future<Output = ()> + Send,
    {
        match self.look(conversation, trace, &mut Paid { again, begun: false }).await {
            Ok(profile) => Read::Observed(profile.observed),
            Err(failure) => Read::Failed(failure),
        }
    }

    /// Sends the parts of `body`. `seen` is the version of the profile that they were made on, if they were.
    pub async fn write<A>(
        &self,
        conversation: &ConversationId,
        body: &Bytes,
        seen: Option<&Version>,
        trace: Option<&str>,
        again: impl FnMut() -> A + Send,
    ) -> Write
    where
        A: Future<Output = ()> + Send,
    {
        let (Some(parts), Some((session, profile))) = (parts(body), self.urls(conversation)) else {
            return Write::Failed(Failure::Refused(detail("the conversation id cannot be part of an address")));
        };
        let mut paid = Paid { again, begun: false };
        if parts.profile.is_some() {
            match self.look(conversation, trace, &mut paid).await {
                Ok(profile) if profile.prevents_collection => {
                    let text = "the profile has prevent_data_collection set, so nothing is written to it";
                    return Write::Failed(Failure::Refused(detail(text)));
                }
                Ok(profile) if seen.is_some_and(|seen| profile.observed.version.as_ref() != Some(seen)) => {
                    return Write::Conflict;
                }
                Ok(_) => {}
                Err(failure) => return Write::Failed(without_effect(failure)),
            }
        }
        let mut half_done = false;
        if let Some(context) = parts.context {
            let request = Request::with_body(Method::POST, session, context, trace);
            if let Err(failure) = paid.send(&self.http, &request).await.and_then(|answer| success(&answer)) {
                return Write::Failed(failure);
            }
            half_done = true;
        }
        if let Some(fields) = parts.profile {
            let request = Request::with_body(Method::PATCH, profile, fields, trace);
            if let Err(failure) = paid.send(&self.http, &request).await.and_then(|answer| success(&answer)) {
                return Write::Failed(if half_done { after_the_first(failure) } else { failure });
            }
        }
        Write::Applied { version: None }
    }

    async fn look<A, F>(
        &self,
        conversation: &ConversationId,
        trace: Option<&str>,
        paid: &mut Paid<F>,
    ) -> Result<Profile, Failure>
    where
        A: Future<Output = ()> + Send,
        F: FnMut() -> A + Send,
    {
        let Some((_, url)) = self.urls(conversation) else {
            return Err(Failure::Refused(detail("the conversation id cannot be part of an address")));
        };
        let answer = paid.send(&self.http, &Request::get(url, trace)).await?;
        success(&answer)?;
        profile(&answer, &self.ledger_key)
    }

    /// Where the session and the profile of a conversation are.
    fn urls(&self, conversation: &ConversationId) -> Option<(Uri, Uri)> {
        let address = Address::of(&self.pattern, &self.user_id, conversation);
        let session = segment(&self.sessions, address.session, "/context/inject")?;
        Some((session, segment(&self.profiles, address.profile, "")?))
    }
}

/// Requests of which the caller has paid the first.
struct Paid<F> {
    again: F,
    begun: bool,
}

impl<A, F> Paid<F>
where
    A: Future<Output = ()> + Send,
    F: FnMut() -> A + Send,
{
    async fn send(&mut self, http: &Http, request: &Request) -> Result<Answer, Failure> {
        if std::mem::replace(&mut self.begun, true) {
            (self.again)().await;
        }
        http.send(request, &mut self.again).await
    }
}

fn success(answer: &Answer) -> Result<(), Failure> {
    match meaning(answer, now()) {
        Meaning::Success => Ok(()),
        // Without a precondition a conflict (409, code 1004) is a refusal at this moment: nothing happened.
        Meaning::Conflict => Err(Failure::NotSent(Detail {
            status: Some(answer.status.as_u16()),
            ..detail("the target answered with a conflict")
        })),
        Meaning::Failed(failure) => Err(failure),
    }
}

/// A look that failed, seen from the write that it was for.
fn without_effect(failure: Failure) -> Failure {
    match failure {
        Failure::Ambiguous(detail) => Failure::NotSent(detail),
        other => other,
    }
}

/// After the first of two requests nothing is certainly without effect.
fn after_the_first(failure: Failure) -> Failure {
    let both = |detail: Detail| {
        let text = format!("the context was written, the profile was not: {}", detail.text);
        Detail { text, ..detail }
    };
    match failure {
        Failure::NotFound(detail) | Failure::Refused(detail) | Failure::HalfDone(detail) => {
            Failure::HalfDone(both(detail))
        }
        // A pause begins with the next try, which meets it before anything is written.
        Failure::Throttled { detail, .. }
        | Failure::Credentials(detail)
        | Failure::NotSent(detail)
        | Failure::Ambiguous(detail) => Failure::Ambiguous(both(detail)),
    }
}
