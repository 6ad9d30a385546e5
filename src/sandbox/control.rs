//! The control interface under `/_sandbox/`: faults, conversations, history and counts, without credentials, without
//! limits, not counted. Everything here is also a method of [`Sandbox`](super::Sandbox).

use std::sync::Arc;

use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::Reply;
use super::context_v1::as_json;
use super::faults::Faults;
use super::history::Writer;
use super::platform::{Origin, Platform};
use super::second_writer::{self, SecondWriter};
use super::state::from_shown;

/// The prefix of all its paths.
pub(super) const PREFIX: &str = "/_sandbox/";

/// Entries of the history in one answer, where the request does not say.
const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutConversation {
    context: Map<String, Value>,
}

/// Serves one control request.
pub(super) fn serve(platform: &Arc<Platform>, method: &str, path: &str, query: Option<&str>, body: &Bytes) -> Reply {
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    let segments: Vec<String> = path
        .split('/')
        .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (method, segments.as_slice()) {
        // `livez`, so that `context-injector health --live` can ask it.
        ("GET", ["health" | "livez"]) => ok(json!({"status": "ok"})),
        ("GET", ["faults"]) => shown(&platform.faults().faults),
        ("PUT", ["faults"]) => parsed(body, |faults: Faults| {
            platform.set_faults(faults);
            shown(&platform.faults().faults)
        }),
        ("GET", ["second-writer"]) => shown(&*platform.second_writer.borrow()),
        ("PUT", ["second-writer"]) => parsed(body, |settings: SecondWriter| {
            second_writer::change(platform, settings.clone());
            shown(&settings)
        }),
        ("GET", ["stats"]) => shown(&counts(platform)),
        ("GET", ["history"]) => history(platform, query),
        ("POST", ["tokens", "revoke"]) => {
            platform.tokens.revoke();
            Reply::empty(204)
        }
        ("GET", ["conversations"]) => {
            let list = platform.world().list();
            let list: Vec<Value> = list.iter().map(|(id, version)| json!({"id": id, "version": version})).collect();
            ok(json!({ "conversations": list }))
        }
        ("GET", ["conversations", id]) => conversation(platform, id),
        ("PUT", ["conversations", id]) => parsed(body, |put: PutConversation| match from_shown(&put.context) {
            Ok(context) => {
                platform.world().put(id, context, &origin());
                conversation(platform, id)
            }
            Err(text) => wrong(400, &text),
        }),
        ("POST", ["conversations", id, "reset"]) => {
            let reset = platform.world().reset(id, &origin());
            if reset { conversation(platform, id) } else { wrong(404, "there is no such conversation") }
        }
        ("DELETE", ["conversations", id]) => {
            platform.world().delete(id, &origin());
            Reply::empty(204)
        }
        _ => wrong(
            404,
            "the control interface has: health, faults, second-writer, stats, history, tokens/revoke, conversations",
        ),
    }
}

/// The control interface as the author of a change.
pub(super) fn origin() -> Origin {
    Origin { writer: Some(Writer::Control), ..Origin::default() }
}

/// The counts, with those that others keep.
pub(super) fn counts(platform: &Platform) -> super::stats::Counts {
    let mut counts = platform.stats.get();
    counts.history_dropped = platform.world().history.dropped();
    counts
}

fn conversation(platform: &Platform, id: &str) -> Reply {
    let world = platform.world();
    let found = world.get(id).map(|conversation| (conversation.version, Arc::clone(&conversation.context)));
    let versions = world.versions();
    drop(world);
    ok(match found {
        Some((version, context)) => json!({
            "id": id, "exists": true, "version": version, "shown_version": versions.shown(id, version),
            "context": as_json(&context),
        }),
        None => json!({"id": id, "exists": false, "version": 0, "shown_version": "", "context": {}}),
    })
}

fn history(platform: &Platform, query: Option<&str>) -> Reply {
    let number = |name: &str| {
        let pairs = url::form_urlencoded::parse(query.unwrap_or("").as_bytes());
        pairs.into_owned().find(|(key, _)| key == name).map(|(_, value)| value.parse::<u64>())
    };
    let (Ok(after), Ok(limit)) = (number("after").unwrap_or(Ok(0)), number("limit").transpose()) else {
        return wrong(400, "after and limit are numbers");
    };
    let limit = limit.map_or(DEFAULT_LIMIT, |limit| usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT));
    let (entries, next, dropped) = {
        let world = platform.world();
        let (entries, next) = world.history.after(after, limit);
        (entries, next, world.history.dropped())
    };
    ok(json!({ "entries": entries, "next": next, "dropped": dropped }))
}

fn parsed<T: serde::de::DeserializeOwned>(body: &Bytes, then: impl FnOnce(T) -> Reply) -> Reply {
    match serde_json::from_slice(body) {
        Ok(value) => then(value),
        Err(error) => wrong(400, &error.to_string()),
    }
}

fn shown(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(text) => Reply::json(200, text),
        Err(error) => wrong(500, &error.to_string()),
    }
}

fn ok(value: Value) -> Reply {
    Reply::json(200, value.to_string())
}

fn wrong(status: u16, detail: &str) -> Reply {
    Reply::json(status, json!({"status": status, "detail": detail}).to_string())
}
