//! What a dead letter becomes when it is replayed. Pure.
//!
//! The message keeps its id, so that the worker's ledger and the receivers know it, and the producer's own
//! properties and headers. What told of its death is taken off. A job gets the next replay generation and a new
//! time of publication: its default deadline is counted from there, and would have passed long ago otherwise. The
//! first one stays in `x-first-published`.

use jiff::Timestamp;
use serde_json::Value;

use super::{Kind, Letter};
use crate::broker::topology::Names;
use crate::broker::{Message, header};
use crate::config::Config;
use crate::pipeline::json;
use crate::pipeline::merge::merge_patch;
use crate::pipeline::validate::{Source, validate};
use crate::pipeline::verdict::Reason;

/// What an operator changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Repair {
    /// RFC 7396 patch of the body.
    pub(super) patch: Option<Value>,
    /// Another message id.
    pub(super) message_id: Option<String>,
}

/// A message ready to be published.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) message: Message,
}

/// Why a letter cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) pointer: Option<String>,
}

/// The message to publish, or why none.
pub(super) fn prepare(
    kind: Kind,
    config: &Config,
    letter: &Letter,
    message: &Message,
    repair: &Repair,
    now: Timestamp,
) -> Result<Outgoing, Refusal> {
    let names = Names::new(&config.amqp.prefix);
    let refuse = |code: Reason, text: String| Refusal { code: code.as_str(), text, pointer: None };
    let mut again = without_death(message);
    if !kind.is_jobs() {
        let endpoint = letter.endpoint.as_deref().unwrap_or_default();
        if !config.endpoints.contains_key(endpoint) {
            let text = format!("no endpoint {endpoint:?} in the settings ([endpoints.…]), so nobody would take it");
            return Err(Refusal { code: "unknown_endpoint", text, pointer: None });
        }
        let (exchange, routing_key) = (names.webhooks(), endpoint.to_owned());
        return Ok(Outgoing { exchange, routing_key, message: again });
    }
    let name = letter.bot.as_deref().unwrap_or_default();
    let Some(bot) = config.bots.get(name) else {
        let text = format!("no bot {name:?} in the settings ([bots.…]), so nobody would take it");
        return Err(refuse(Reason::UnknownBot, text));
    };
    if let Some(patch) = &repair.patch {
        let mut body = json::parse(&message.body)
            .map_err(|text| refuse(Reason::MalformedJson, format!("{text}; a patch needs JSON to begin with")))?;
        merge_patch(&mut body, patch);
        again.body = body.to_string().into();
    }
    if let Some(id) = &repair.message_id {
        again = again.with_message_id(id);
    }
    if repair.patch.is_some() || repair.message_id.is_some() {
        let source = Source {
            body: &again.body,
            message_id: again.message_id(),
            content_encoding: again.content_encoding(),
            published: Some(now),
            first_seen: now,
            now,
        };
        validate(bot, config.retry.deadline, &source).map_err(|invalid| Refusal {
            code: invalid.rejection.code.as_str(),
            text: invalid.rejection.text,
            pointer: invalid.rejection.pointer,
        })?;
    }
    if let Some(first) =
        message.timestamp().or(message.first_seen()).filter(|_| message.header(header::FIRST_PUBLISHED).is_none())
    {
        again = again.with_text(header::FIRST_PUBLISHED, &first.to_string());
    }
    let generation = u64::from(message.replay_generation()) + 1;
    again = again.with_integer(header::REPLAY_GENERATION, generation).with_timestamp(now);
    Ok(Outgoing { exchange: names.jobs(), routing_key: name.to_owned(), message: again })
}

fn without_death(message: &Message) -> Message {
    let told = [
        header::REASON,
        header::REASON_TEXT,
        header::CERTAINTY,
        header::ATTEMPT,
        header::CLIMBED,
        header::ATTEMPTS,
        header::FIRST_SEEN,
        header::LAST_STATUS,
        header::TRACE_ID,
        header::BOT,
        header::ENDPOINT,
        header::DIED_AT,
    ];
    told.into_iter().fold(message.republish(), Message::without_header)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dead_letters::letter::{Death, Owner, letter};

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn config() -> Config {
        let text = "[bots.default]\nbase_url = \"https://b.example\"\nclient_id = \"a\"\nclient_secret = \"b\"\n\
                    [endpoints.analytics]\nurl = \"https://e.example\"\nsecret = \"whsec_AAAA\"\n";
        Config::parse(text, []).unwrap()
    }

    fn dead_job(body: &Value) -> Message {
        let original = Message::new(body.to_string())
            .with_message_id("job-1")
            .with_text("producer", "kept")
            .with_timestamp("2026-11-23T09:00:00Z".parse().unwrap());
        let death = Death {
            owner: Owner::Bot("default"),
            reason: "attempts_exhausted",
            text: "eight attempts failed",
            certainty: Some("not_applied"),
            attempts: 8,
            first_seen: "2026-11-23T09:00:00Z".parse().unwrap(),
            last_status: Some(503),
            trace_id: None,
            generation: 2,
            now: "2026-11-23T09:20:00Z".parse().unwrap(),
        };
        letter(&original, &death)
    }

    fn read(bot: Option<&str>, endpoint: Option<&str>) -> Letter {
        Letter {
            id: "x".into(),
            message_id: None,
            reason: "x".into(),
            text: String::new(),
            certainty: None,
            bot: bot.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
            conversation: None,
            job_id: None,
            attempts: None,
            status: None,
            trace_id: None,
            generation: 2,
            died_at: None,
            first_seen: None,
            bytes: 0,
        }
    }

    fn job() -> Value {
        json!({"conversation_id": "conv_1", "variables": {"a": {"value": 1}}})
    }

    #[test]
    fn a_replayed_job_is_the_same_job_in_the_next_generation_with_a_fresh_start() {
        let dead = dead_job(&job());
        let now = NOW.parse().unwrap();
        let again =
            prepare(Kind::Jobs, &config(), &read(Some("default"), None), &dead, &Repair::default(), now).unwrap();
        assert_eq!((again.exchange.as_str(), again.routing_key.as_str()), ("context.jobs", "default"));
        let message = again.message;
        assert_eq!((message.body.clone(), message.message_id()), (dead.body.clone(), Some("job-1")));
        assert_eq!((message.replay_generation(), message.attempt(), message.timestamp()), (3, 0, Some(now)));
        let headers = message.headers().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(headers, ["producer", "x-first-published", "x-replay-generation"]);
        assert_eq!(message.text("x-first-published"), Some("2026-11-23T09:00:00Z"));
    }

    #[test]
    fn a_patch_repairs_the_body_and_is_checked_before_anything_is_published() {
        let broken = json!({"conversation_id": "conv_1", "variables": {"a": {"value": 1, "scope": "galaxy"}}});
        let (now, letter) = (NOW.parse().unwrap(), read(Some("default"), None));
        let with = |patch: Value| Repair { patch: Some(patch), message_id: None };
        let right = with(json!({"variables": {"a": {"scope": "user"}}}));
        let again = prepare(Kind::Jobs, &config(), &letter, &dead_job(&broken), &right, now).unwrap();
        let body = serde_json::from_slice::<Value>(&again.message.body).unwrap();
        assert_eq!(body["variables"]["a"], json!({"value": 1, "scope": "user"}));

        let wrong = with(json!({"variables": {"a": {"scope": "town"}}}));
        let refusal = prepare(Kind::Jobs, &config(), &letter, &dead_job(&broken), &wrong, now).unwrap_err();
        assert_eq!((refusal.code, refusal.pointer.as_deref()), ("invalid_scope", Some("/variables/a/scope")));

        let text = Message::new("no json").with_message_id("x");
        let refusal = prepare(Kind::Jobs, &config(), &letter, &text, &right, now).unwrap_err();
        assert_eq!(refusal.code, "malformed_json");
    }

    #[test]
    fn a_wrong_message_id_can_be_replaced() {
        let repair = Repair { patch: None, message_id: Some("job-2".into()) };
        let (now, letter) = (NOW.parse().unwrap(), read(Some("default"), None));
        let again = prepare(Kind::Jobs, &config(), &letter, &dead_job(&job()), &repair, now).unwrap();
        assert_eq!(again.message.message_id(), Some("job-2"));
        let repair = Repair { patch: None, message_id: Some("not an id".into()) };
        let refusal = prepare(Kind::Jobs, &config(), &letter, &dead_job(&job()), &repair, now).unwrap_err();
        assert_eq!(refusal.code, "invalid_job_id");
    }

    #[test]
    fn what_nobody_would_take_is_not_published() {
        let now = NOW.parse().unwrap();
        let refused = |kind, letter| {
            prepare(kind, &config(), &letter, &dead_job(&job()), &Repair::default(), now).unwrap_err().code
        };
        assert_eq!(refused(Kind::Unroutable, read(Some("nobody"), None)), "unknown_bot");
        assert_eq!(refused(Kind::Quarantine, read(None, None)), "unknown_bot");
        assert_eq!(refused(Kind::Webhooks, read(Some("default"), Some("gone"))), "unknown_endpoint");
    }

    #[test]
    fn a_webhook_goes_back_to_its_endpoint_unchanged() {
        let event = Message::new("{}").with_message_id("event-1").with_integer(header::ATTEMPT, 9);
        let now = NOW.parse().unwrap();
        let letter = read(None, Some("analytics"));
        let again = prepare(Kind::Webhooks, &config(), &letter, &event, &Repair::default(), now).unwrap();
        assert_eq!((again.exchange.as_str(), again.routing_key.as_str()), ("context.webhooks", "analytics"));
        assert_eq!((again.message.message_id(), again.message.headers().count()), (Some("event-1"), 0));
        assert_eq!(again.message.timestamp(), None);
    }
}
