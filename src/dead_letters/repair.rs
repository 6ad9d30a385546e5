//! What a dead letter becomes when it is replayed, edited or laid down again. Pure.
//!
//! The message keeps its id, so that the worker's ledger and the receivers know it, and the producer's own
//! properties and headers. What told of its death is taken off. A job gets the next replay generation and a new
//! time of publication: its default deadline is counted from there, and would have passed long ago otherwise. The
//! first one stays in `x-first-published`.

use bytes::Bytes;
use jiff::Timestamp;
use lapin::types::{AMQPValue, LongString};
use serde_json::Value;

use super::{Kind, Letter};
use crate::broker::topology::Names;
use crate::broker::{Message, header};
use crate::config::{Bot, Config};
use crate::pipeline::json;
use crate::pipeline::merge::merge_patch;
use crate::pipeline::validate::{Source, validate};
use crate::pipeline::verdict::Reason;

/// Longest body that is kept in a header: all headers together must fit into one frame.
pub(super) const MAX_ORIGINAL: usize = 32_768;

/// A merge patch as it is typed.
pub(super) fn read_patch(text: &str) -> Result<Value, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(patch) if patch.is_object() => Ok(patch),
        Ok(_) => Err("the patch must be a JSON object".to_owned()),
        Err(error) => Err(format!("the patch is not JSON: {error}")),
    }
}

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
    let bot = bot_of(config, letter)?;
    if let Some(patch) = &repair.patch {
        again.body = patched(&message.body, patch)?;
    }
    if let Some(id) = &repair.message_id {
        again = again.with_message_id(id);
    }
    if repair.patch.is_some() || repair.message_id.is_some() {
        check(bot, config, &again, now)?;
    }
    if let Some(first) =
        message.timestamp().or(message.first_seen()).filter(|_| message.header(header::FIRST_PUBLISHED).is_none())
    {
        again = again.with_text(header::FIRST_PUBLISHED, &first.to_string());
    }
    let generation = u64::from(message.replay_generation()) + 1;
    again = again.with_integer(header::REPLAY_GENERATION, generation).with_timestamp(now);
    Ok(Outgoing { exchange: names.jobs(), routing_key: bot.name.clone(), message: again })
}

/// The body after a merge patch (RFC 7396).
pub(super) fn patched(body: &[u8], patch: &Value) -> Result<Bytes, Refusal> {
    let refuse = |text| refusal(Reason::MalformedJson, format!("{text}; a patch needs JSON to begin with"));
    let mut body = json::parse(body).map_err(refuse)?;
    merge_patch(&mut body, patch);
    Ok(body.to_string().into())
}

/// The letter with another body, checked as the worker would if it were replayed now.
pub(super) fn edited(
    kind: Kind,
    config: &Config,
    letter: &Letter,
    message: &Message,
    body: Bytes,
    by: &str,
    now: Timestamp,
) -> Result<Message, Refusal> {
    let mut edited = laid_down(kind, &Told::of(letter), message);
    edited.body = body;
    check(bot_of(config, letter)?, config, &edited, now)?;
    // The first original is the one that counts.
    if edited.header(header::ORIGINAL_BODY).is_none() && message.body.len() <= MAX_ORIGINAL {
        let original = AMQPValue::LongString(LongString::from(message.body.to_vec()));
        edited = edited.with_header(header::ORIGINAL_BODY, original);
    }
    Ok(edited.with_text(header::EDITED_BY, by).with_text(header::EDITED_AT, &format!("{now:.3}")))
}

/// What a letter says of itself that is lost when it is published once more.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) reason: String,
    pub(super) text: String,
    pub(super) bot: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) died_at: Option<String>,
}

impl Told {
    pub(super) fn of(letter: &Letter) -> Self {
        Self {
            reason: letter.reason.clone(),
            text: letter.text.clone(),
            bot: letter.bot.clone(),
            endpoint: letter.endpoint.clone(),
            died_at: letter.died_at.map(|time| format!("{time:.3}")),
        }
    }
}

/// A letter fit to be published into a queue of its kind: what the broker told of it goes into our headers.
pub(super) fn laid_down(kind: Kind, told: &Told, message: &Message) -> Message {
    let mut again = message.republish();
    match kind {
        Kind::Quarantine | Kind::WebhooksQuarantine => {
            let owner = if kind.is_jobs() { (header::BOT, &told.bot) } else { (header::ENDPOINT, &told.endpoint) };
            if let (name, Some(owner)) = owner {
                again = again.with_text(name, owner);
            }
            again = again.with_text(header::REASON, &told.reason).with_text(header::REASON_TEXT, &told.text);
        }
        Kind::Jobs | Kind::Webhooks | Kind::Unroutable | Kind::WebhooksUnroutable => {}
    }
    match &told.died_at {
        Some(died_at) => again.with_text(header::DIED_AT, died_at),
        None => again,
    }
}

/// Where a letter of that kind is published to. The unroutable ones keep whose they are in the routing key.
pub(super) fn home(kind: Kind, names: &Names, told: &Told) -> (String, String) {
    match kind {
        Kind::Unroutable => (names.jobs_unroutable(), told.bot.clone().unwrap_or_default()),
        Kind::WebhooksUnroutable => (names.webhooks_unroutable(), told.endpoint.clone().unwrap_or_default()),
        Kind::Jobs | Kind::Webhooks | Kind::Quarantine | Kind::WebhooksQuarantine => (String::new(), kind.queue(names)),
    }
}

fn bot_of<'c>(config: &'c Config, letter: &Letter) -> Result<&'c Bot, Refusal> {
    let name = letter.bot.as_deref().unwrap_or_default();
    config.bots.get(name).ok_or_else(|| {
        let text = format!("no bot {name:?} in the settings ([bots.…]), so nobody would take it");
        refusal(Reason::UnknownBot, text)
    })
}

fn check(bot: &Bot, config: &Config, message: &Message, now: Timestamp) -> Result<(), Refusal> {
    let source = Source {
        body: &message.body,
        message_id: message.message_id(),
        content_encoding: message.content_encoding(),
        published: Some(now),
        first_seen: now,
        now,
    };
    let checked = validate(bot, config.retry.deadline, &source);
    checked.map(drop).map_err(|invalid| Refusal {
        code: invalid.rejection.code.as_str(),
        text: invalid.rejection.text,
        pointer: invalid.rejection.pointer,
    })
}

fn refusal(code: Reason, text: String) -> Refusal {
    Refusal { code: code.as_str(), text, pointer: None }
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
        header::ORIGINAL_BODY,
        header::EDITED_BY,
        header::EDITED_AT,
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
    fn what_the_broker_told_of_a_quarantined_job_stays_when_it_is_laid_down_again() {
        let told = Told {
            reason: "delivery_limit".into(),
            text: "it crashed its consumer".into(),
            bot: Some("default".into()),
            endpoint: None,
            died_at: Some("2026-11-23T10:00:00.000Z".into()),
        };
        let message = Message::new("{}").with_text("x-first-death-reason", "delivery_limit").with_text("own", "kept");
        let letter = laid_down(Kind::Quarantine, &told, &message);
        let headers = letter.headers().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(headers, ["own", "x-bot", "x-died-at", "x-reason", "x-reason-text"]);
        let names = Names::new("context");
        assert_eq!(home(Kind::Quarantine, &names, &told), (String::new(), "context.jobs.quarantine".to_owned()));
        let unroutable = home(Kind::Unroutable, &names, &told);
        assert_eq!(unroutable, ("context.jobs.unroutable".to_owned(), "default".to_owned()));
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
