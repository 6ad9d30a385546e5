//! The dialect `context-v1`: reads and conditional writes of versioned variables.

use std::collections::BTreeMap;
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
use super::platform::{Applied, NotApplied, Versions};
use super::settings::VersionForm;
use super::state::{Change, Context, Scope, shown};
use super::token;

/// Names that a JavaScript runtime cannot take as keys of an object.
const FORBIDDEN_KEYS: [&str; 3] = ["__proto__", "constructor", "prototype"];
const MAX_KEY: usize = 128;

/// The body of a PATCH, its values as they came.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchBody {
    #[serde(rename = "conversationId")]
    pub conversation_id: String,
    context: BTreeMap<String, PatchEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchEntry {
    value: Box<RawValue>,
    #[serde(default)]
    scope: Option<String>,
}

/// `GET /api/v1/context/{conversationId}`
pub(super) fn read(exchange: &Exchange, id: &str, received: &Received) -> Reply {
    if let Some(reply) = refused_credentials(exchange, "conversation:read") {
        return reply;
    }
    if !received.body.is_empty() {
        return problem(exchange, 400, "unexpected_body", "a GET has no body");
    }
    exchange.before_touching(id);
    let create = exchange.platform.creates(id);
    let back = exchange.faults.faults.parameters.back;
    let found = {
        let mut world = exchange.platform.world();
        let versions = world.versions();
        world.touch(id, create).map(|conversation| {
            let now = (conversation.version, Arc::clone(&conversation.context));
            (versions, now, conversation.earlier(back))
        })
    };
    let Some((versions, (mut version, mut context), earlier)) = found else { return not_found(exchange) };
    if let Some((old_version, old_context)) = earlier {
        if exchange.strikes(Kind::StaleRead) {
            (version, context) = (old_version, old_context);
        } else if exchange.strikes(Kind::VersionRegression) {
            version = old_version;
        }
    }
    let shown = shown(&context, exchange.platform.settings.omit_default_scope);
    let mut body = Map::new();
    body.insert("conversationId".into(), Value::String(id.into()));
    body.insert("context".into(), Value::Object(shown));
    with_version(body, versions, id, version)
}

/// `PATCH /api/v1/context`
pub(super) fn write(
    exchange: &Arc<Exchange>,
    received: &Received,
    patch: Option<serde_json::Result<PatchBody>>,
) -> Result<Reply, Later> {
    if let Some(reply) = refused_credentials(exchange, "context:write") {
        return Ok(reply);
    }
    let (id, changes) = match checked(exchange, received, patch) {
        Ok(parsed) => parsed,
        Err(reply) => return Ok(reply),
    };
    if let Some(reply) = exchange.refused_by_fault(changes.iter().map(|change| &*change.key)) {
        return Ok(reply);
    }
    if exchange.platform.settings.require_if_match && exchange.if_match.is_none() {
        return Ok(problem(exchange, 428, "precondition_required", "If-Match is needed"));
    }
    exchange.before_touching(&id);
    if exchange.strikes(Kind::LateApply) {
        apply_later(Arc::clone(exchange), id, changes);
        return Err(Later);
    }
    Ok(match apply(exchange, &id, &changes, false) {
        Ok(applied) => success(exchange, &id, applied.after).applied(),
        Err(NotApplied::NotFound) => not_found(exchange),
        Err(NotApplied::TooLarge(_)) => problem(exchange, 413, "context_too_large", "the context is too large"),
        Err(NotApplied::Conflict { version, appears_applied }) => {
            exchange.platform.stats.add(|counts| counts.conflicts += 1);
            if appears_applied && exchange.strikes(Kind::LenientSuccess) {
                success(exchange, &id, version)
            } else {
                exchange.conflict(exchange.strikes(Kind::SwappedConflict))
            }
        }
    })
}

fn apply(exchange: &Exchange, id: &str, changes: &[Change], late: bool) -> Result<Applied, NotApplied> {
    let origin = exchange.origin(late);
    let create = exchange.platform.creates(id);
    let applied = exchange.platform.world().write(id, create, changes, &origin, None)?;
    exchange.applied(applied.seq, changes.len());
    Ok(applied)
}

/// The write waits, and is applied if its precondition still holds then.
fn apply_later(exchange: Arc<Exchange>, id: String, changes: Vec<Change>) {
    let platform = Arc::clone(&exchange.platform);
    let wait = Duration::from_millis(exchange.faults.faults.parameters.late_apply_ms);
    platform.tasks.spawn(async move {
        tokio::select! {
            () = exchange.platform.stop.cancelled() => {}
            () = sleep(wait) => if apply(&exchange, &id, &changes, true).is_err() {
                exchange.late_refused();
            },
        }
    });
}

fn checked(
    exchange: &Exchange,
    received: &Received,
    patch: Option<serde_json::Result<PatchBody>>,
) -> Result<(String, Vec<Change>), Reply> {
    let settings = &exchange.platform.settings;
    if received.too_long || received.body.len() > settings.max_payload_bytes {
        let detail = format!("the payload is over {} bytes", settings.max_payload_bytes);
        return Err(problem(exchange, 413, "payload_too_large", &detail));
    }
    let json = received.content_type.as_deref().is_none_or(|value| value.trim_start().starts_with("application/json"));
    if !json {
        return Err(problem(exchange, 415, "unsupported_media_type", "the body is application/json"));
    }
    let body = match patch {
        Some(Ok(body)) => body,
        Some(Err(error)) => return Err(problem(exchange, 400, "malformed_body", &error.to_string())),
        None => return Err(problem(exchange, 400, "malformed_body", "there is no body")),
    };
    let changes = body
        .context
        .into_iter()
        .map(|(key, entry)| change(exchange, &key, &entry))
        .collect::<Result<Vec<Change>, Reply>>()?;
    if changes.is_empty() {
        return Err(problem(exchange, 400, "empty_context", "context names no variable"));
    }
    Ok((body.conversation_id, changes))
}

fn change(exchange: &Exchange, key: &str, entry: &PatchEntry) -> Result<Change, Reply> {
    let refused = |code: &str, text: &str| problem(exchange, 400, code, &format!("context.{key}: {text}"));
    if !is_key(key) {
        return Err(refused("invalid_key", "letters, digits and underscore, no digit first, at most 128"));
    }
    let scope = match entry.scope.as_deref() {
        None => Scope::Conversation,
        Some(name) => {
            Scope::from_name(name).ok_or_else(|| refused("invalid_scope", "global, conversation, user or session"))?
        }
    };
    let text = entry.value.get();
    let settings = &exchange.platform.settings;
    if text.len() > settings.max_value_bytes {
        let detail = format!("the value has {} bytes, {} are allowed", text.len(), settings.max_value_bytes);
        return Err(refused("value_too_large", &detail));
    }
    let value = stored(text, settings.javascript_numbers).map_err(|error| refused("invalid_value", &error))?;
    Ok(Change { key: Arc::from(key), scope, value: (!value.is_null()).then(|| Arc::new(value)) })
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first
        && key.len() <= MAX_KEY
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !FORBIDDEN_KEYS.contains(&key)
}

fn refused_credentials(exchange: &Exchange, scope: &str) -> Option<Reply> {
    let refused =
        exchange.platform.tokens.check(exchange.authorization.as_deref(), Some(scope), Instant::now()).err()?;
    exchange.platform.stats.add(|counts| counts.unauthenticated += 1);
    Some(match refused {
        token::Refused::Unknown => problem(exchange, 401, "unauthorized", "the access token is absent or not valid")
            .header("www-authenticate", "Bearer error=\"invalid_token\""),
        token::Refused::Scope => problem(exchange, 403, "insufficient_scope", &format!("the token lacks {scope}")),
    })
}

fn not_found(exchange: &Exchange) -> Reply {
    problem(exchange, 404, "conversation_not_found", "there is no such conversation")
}

fn success(exchange: &Exchange, id: &str, version: u64) -> Reply {
    let versions = exchange.platform.world().versions();
    let mut body = Map::new();
    body.insert("conversationId".into(), Value::String(id.into()));
    with_version(body, versions, id, version)
}

fn with_version(mut body: Map<String, Value>, versions: Versions, id: &str, version: u64) -> Reply {
    let text = versions.shown(id, version);
    let (field, tag) = match versions.form() {
        VersionForm::ContextVersion => (Some(("contextVersion", json!(version))), false),
        VersionForm::Version => (Some(("version", json!(version))), false),
        VersionForm::Opaque => (Some(("contextVersion", json!(text))), false),
        VersionForm::Etag => (None, true),
        VersionForm::Both => (Some(("contextVersion", json!(version))), true),
    };
    if let Some((name, value)) = field {
        body.insert(name.into(), value);
    }
    let reply = Reply::json(200, Value::Object(body).to_string());
    if tag { reply.header("etag", format!("\"{text}\"")) } else { reply }
}

/// The variables of a context as one JSON value, for the control interface.
pub(super) fn as_json(context: &Context) -> Value {
    Value::Object(shown(context, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_contract() {
        for key in ["a", "_injection_ledger", "Cart_2", &"k".repeat(128)] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "2a", "a.b", "a-b", "ä", "__proto__", "constructor", "prototype", &"k".repeat(129)] {
            assert!(!is_key(key), "{key}");
        }
    }
}
