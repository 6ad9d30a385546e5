//! The dialect `cognigy-v2`: context injection into sessions, and profiles. It exposes no version.
//!
//! What the vendor publishes is kept to; what he leaves open (merge or replace, what `null` does) is a setting. Known
//! behaviour of the platform is modelled: an acknowledged write may be seen late (`buffered_write`), never
//! (`lost_write`), or be undone (`rollback`); keys with dots, hyphens or `$` are refused here where the vendor's break.
//!
//! A session is named by session id *and* user id. In the history and in the control interface a session is
//! `session/<session>/<user>`, a profile `profile/<profile>`; in both parts `/` and `%` are percent-encoded.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::answer::{Reply, problem};
use super::dispatch::{Later, Received};
use super::exchange::Exchange;
use super::faults::Kind;
use super::numbers::stored;
use super::platform::{Applied, NotApplied};
use super::settings::V2Merge;
use super::state::{Change, Context, Scope};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InjectBody {
    #[serde(rename = "userId")]
    user_id: String,
    context: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileBody {
    profile: Box<RawValue>,
}

/// What a write wants.
struct Wish {
    id: String,
    scope: Scope,
    fields: Map<String, Value>,
}

/// The name of a session among the conversations.
pub(super) fn session(session: &str, user: &str) -> String {
    format!("session/{}/{}", part(session), part(user))
}

/// The name of a profile among the conversations.
pub(super) fn profile(id: &str) -> String {
    format!("profile/{}", part(id))
}

/// Whether a name is one of these two.
pub(super) fn is_name(id: &str) -> bool {
    id.starts_with("session/") || id.starts_with("profile/")
}

fn part(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

/// `POST /new/v2.0/sessions/{sessionId}/context/inject`
pub(super) fn inject(exchange: &Arc<Exchange>, session_id: &str, received: &Received) -> Result<Reply, Later> {
    let parsed = parse(exchange, received).and_then(|body: InjectBody| {
        if session_id.is_empty() || body.user_id.is_empty() {
            return Err(problem(exchange, 400, "bad_request", "a session has a session id and a user id"));
        }
        Ok((fields(exchange, "context", &body.context)?, body.user_id))
    });
    match parsed {
        Ok((fields, user)) => {
            let success = Reply::json(200, json!({"sessionId": session_id, "userId": user}).to_string());
            let wish = Wish { id: session(session_id, &user), scope: Scope::Session, fields };
            write(exchange, wish, success)
        }
        Err(reply) => Ok(reply),
    }
}

/// `PATCH /new/v2.0/profiles/{profileId}`
pub(super) fn write_profile(exchange: &Arc<Exchange>, id: &str, received: &Received) -> Result<Reply, Later> {
    let wish = parse(exchange, received)
        .and_then(|body: ProfileBody| fields(exchange, "profile", &body.profile))
        .map(|fields| Wish { id: profile(id), scope: Scope::User, fields });
    match wish {
        Ok(wish) => write(exchange, wish, Reply::empty(204)),
        Err(reply) => Ok(reply),
    }
}

/// `GET /new/v2.0/profiles/{profileId}`
pub(super) fn read_profile(exchange: &Exchange, id: &str, received: &Received) -> Reply {
    if let Some(reply) = refused_credentials(exchange, received) {
        return reply;
    }
    if !received.body.is_empty() {
        return problem(exchange, 403, "forbidden", "a GET has no body");
    }
    let name = profile(id);
    exchange.before_touching(&name);
    let back = exchange.faults.faults.parameters.back;
    let found = {
        let world = exchange.platform.world();
        world.get(&name).map(|profile| (Arc::clone(&profile.context), profile.earlier(back)))
    };
    let Some((now, earlier)) = found else { return not_found(exchange) };
    let context = match earlier {
        Some((_, earlier)) if exchange.strikes(Kind::StaleRead) => earlier,
        _ => now,
    };
    let fields: Map<String, Value> =
        context.iter().map(|((key, _), value)| (key.to_string(), Value::clone(value))).collect();
    Reply::json(200, json!({"_id": id, "active": true, "contactIds": [], "profile": fields}).to_string())
}

fn write(exchange: &Arc<Exchange>, wish: Wish, success: Reply) -> Result<Reply, Later> {
    if let Some(reply) = exchange.refused_by_fault(wish.fields.keys().map(String::as_str)) {
        return Ok(reply);
    }
    exchange.before_touching(&wish.id);
    let parameters = &exchange.faults.faults.parameters;
    if exchange.strikes(Kind::LateApply) {
        apply_later(Arc::clone(exchange), wish, Duration::from_millis(parameters.late_apply_ms));
        return Err(Later);
    }
    if exchange.strikes(Kind::LostWrite) {
        return Ok(success);
    }
    if exchange.strikes(Kind::BufferedWrite) {
        apply_later(Arc::clone(exchange), wish, Duration::from_millis(parameters.buffered_ms));
        return Ok(success);
    }
    Ok(match apply(exchange, &wish, false) {
        Ok(_) => success.applied(),
        Err(NotApplied::TooLarge(bytes)) => {
            let detail = format!("the context would have {bytes} bytes");
            problem(exchange, 413, "context_too_large", &detail)
        }
        // Without a version there is nothing to be at odds with.
        Err(NotApplied::NotFound | NotApplied::Conflict { .. }) => not_found(exchange),
    })
}

fn apply(exchange: &Exchange, wish: &Wish, late: bool) -> Result<Applied, NotApplied> {
    let settings = &exchange.platform.settings.v2;
    let create = exchange.platform.creates(&wish.id);
    let limit = (wish.scope == Scope::Session).then_some(settings.max_context_bytes);
    let mut origin = exchange.origin(late);
    origin.if_match = None;
    let (applied, keys) = {
        let mut world = exchange.platform.world();
        let now = world.touch(&wish.id, create).ok_or(NotApplied::NotFound)?;
        let changes = changes(&now.context, wish, settings.merge, settings.keep_null);
        (world.write(&wish.id, create, &changes, &origin, limit)?, changes.len())
    };
    exchange.applied(applied.seq, keys);
    Ok(applied)
}

fn apply_later(exchange: Arc<Exchange>, wish: Wish, wait: Duration) {
    let platform = Arc::clone(&exchange.platform);
    platform.tasks.spawn(async move {
        tokio::select! {
            () = exchange.platform.stop.cancelled() => {}
            () = sleep(wait) => if apply(&exchange, &wish, true).is_err() {
                exchange.late_refused();
            },
        }
    });
}

/// What a write changes, given what is there.
fn changes(now: &Context, wish: &Wish, merge: V2Merge, keep_null: bool) -> Vec<Change> {
    let kept = |value: Value| (keep_null || !value.is_null()).then(|| Arc::new(value));
    let set = wish.fields.iter().map(|(key, value)| {
        let key: Arc<str> = Arc::from(key.as_str());
        let old = now.get(&(Arc::clone(&key), wish.scope));
        let value = match (merge, old) {
            (V2Merge::Deep, Some(old)) => deep(old, value, keep_null),
            _ => value.clone(),
        };
        Change { key, scope: wish.scope, value: kept(value) }
    });
    let replaced = now.keys().filter(|(key, _)| merge == V2Merge::Replace && !wish.fields.contains_key(&**key));
    let removed = replaced.map(|(key, scope)| Change { key: Arc::clone(key), scope: *scope, value: None });
    removed.chain(set).collect()
}

/// Merges objects at every depth; anything else replaces. The depth is bounded by the parser.
fn deep(old: &Value, new: &Value, keep_null: bool) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut merged = old.clone();
    for (key, value) in new {
        match merged.get_mut(key) {
            _ if value.is_null() && !keep_null => drop(merged.remove(key)),
            Some(there) => *there = deep(there, value, keep_null),
            None => drop(merged.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(merged)
}

fn parse<'a, T: Deserialize<'a>>(exchange: &Exchange, received: &'a Received) -> Result<T, Reply> {
    if let Some(reply) = refused_credentials(exchange, received) {
        return Err(reply);
    }
    let most = exchange.platform.settings.v2.max_body_bytes;
    if received.too_long || received.body.len() > most {
        return Err(problem(exchange, 413, "payload_too_large", &format!("the body is over {most} bytes")));
    }
    serde_json::from_slice(&received.body).map_err(|error| problem(exchange, 400, "bad_request", &error.to_string()))
}

fn fields(exchange: &Exchange, name: &str, raw: &RawValue) -> Result<Map<String, Value>, Reply> {
    let refused = |detail: &str| problem(exchange, 400, "bad_request", detail);
    let fields = match stored(raw.get(), exchange.platform.settings.javascript_numbers) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(refused(&format!("{name} is an object"))),
        Err(error) => return Err(refused(&format!("{name}: {error}"))),
    };
    match fields.keys().find(|key| key.is_empty() || key.contains(['.', '-', '$'])) {
        Some(key) => Err(refused(&format!("{name}: the key {key:?} has a character that the platform cannot keep"))),
        None => Ok(fields),
    }
}

fn refused_credentials(exchange: &Exchange, received: &Received) -> Option<Reply> {
    let platform = &exchange.platform;
    let by_key = received.api_key.as_deref() == Some(&*platform.settings.api_key);
    if by_key || platform.tokens.check(exchange.authorization.as_deref(), None, Instant::now()).is_ok() {
        return None;
    }
    platform.stats.add(|counts| counts.unauthenticated += 1);
    Some(problem(exchange, 401, "unauthorized", "X-API-Key or an access token is needed"))
}

fn not_found(exchange: &Exchange) -> Reply {
    problem(exchange, 404, "not_found", "there is no such session or profile")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(old: Value, new: Value, merge: V2Merge, keep_null: bool) -> Value {
        let object = |value: Value| value.as_object().cloned().unwrap();
        let mut conversation = super::super::state::Conversation::new();
        for fields in [object(old), object(new)] {
            let wish = Wish { id: "session/s/u".into(), scope: Scope::Session, fields };
            conversation.merge(&changes(&conversation.context, &wish, merge, keep_null));
        }
        let fields = conversation.context.iter().map(|((key, _), value)| (key.to_string(), Value::clone(value)));
        Value::Object(fields.collect())
    }

    #[test]
    fn an_injection_meets_the_context_as_set() {
        let old = json!({"a": {"x": 1, "y": 2}, "b": 1});
        let new = json!({"a": {"y": null, "z": 3}, "c": null});
        for (merge, keep_null, expected) in [
            (V2Merge::Shallow, false, json!({"a": {"y": null, "z": 3}, "b": 1})),
            (V2Merge::Shallow, true, json!({"a": {"y": null, "z": 3}, "b": 1, "c": null})),
            (V2Merge::Deep, false, json!({"a": {"x": 1, "z": 3}, "b": 1})),
            (V2Merge::Deep, true, json!({"a": {"x": 1, "y": null, "z": 3}, "b": 1, "c": null})),
            (V2Merge::Replace, false, json!({"a": {"y": null, "z": 3}})),
        ] {
            assert_eq!(after(old.clone(), new.clone(), merge, keep_null), expected, "{merge:?} {keep_null}");
        }
    }

    #[test]
    fn different_sessions_have_different_names() {
        assert_ne!(session("a/b", "c"), session("a", "b/c"));
        assert_ne!(session("a%2Fb", "c"), session("a/b", "c"));
    }
}
