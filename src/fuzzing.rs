//! What must hold for every input from outside, whatever bytes it is made of: a message, an answer of the platform, a
//! template. Compiled for the fuzzer, which looks for an input that breaks it (`make fuzz`), and for the tests, which
//! replay what the fuzzer kept, so that the corpus cannot rot.
//!
//! A check fails by panicking, which is what the fuzzer listens for.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a check that fails must stop the fuzzer")]

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::config::{Bot, Config};
use crate::job::{Job, Name, OnUnresolved, Scope};
use crate::pipeline::evicted::Evicted;
use crate::pipeline::json;
use crate::pipeline::ledger::Mark;
use crate::pipeline::plan::{Candidate, Ground, plan};
use crate::pipeline::snapshot::{Snapshot, Variables};
use crate::pipeline::templates::{RenderError, Template};
use crate::pipeline::validate::{Invalid, MAX_DEADLINE, Source, validate};
use crate::pipeline::verdict::Reason;
use crate::target;

pub use crate::target::fuzzing::answer;

/// Longest text that a template may become.
const LIMIT: usize = 10_240;

/// An ordinary bot; one without a ledger and with small limits; one of the other dialect.
static BOTS: LazyLock<Vec<Bot>> = LazyLock::new(|| {
    let kinds = [
        "",
        "ledger = \"off\"\nmax_value_bytes = 40\nmax_payload_bytes = 60",
        "dialect = \"cognigy-v2\"\nmerge_semantics = \"shallow\"",
    ];
    let bot = |more: &&str| {
        let settings = format!(
            "[bots.b]\nbase_url = \"https://b.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n{more}\n"
        );
        Config::parse(&settings, []).unwrap().bots.remove("b").unwrap()
    };
    kinds.iter().map(bot).collect()
});

fn now() -> Timestamp {
    Timestamp::from_second(1_795_428_000).unwrap()
}

/// A message: the first byte chooses the bot and whether there is a message id, the rest is the body. It is a job or one
/// of the reason codes, and a job can be planned.
pub fn job(input: &[u8]) {
    let (choice, body) = input.split_first().unwrap_or((&0, &[]));
    let bot = &BOTS[usize::from(choice & 0x0f) % BOTS.len()];
    let message_id = (choice & 0x10 != 0).then_some("message-1");
    let (content_encoding, published) = (None, (choice & 0x20 != 0).then(now));
    let source = Source { body, message_id, content_encoding, published, first_seen: now(), now: now() };
    match validate(bot, Duration::from_secs(900), &source) {
        Ok(job) => is_sound(bot, body, &job),
        Err(invalid) => is_explained(body, &invalid),
    }
}

fn is_sound(bot: &Bot, body: &[u8], job: &Job) {
    serde_json::from_slice::<Value>(body).expect("what is a job to us is JSON to others");
    assert!(!(job.variables.is_empty() && job.templates.is_empty()), "there is something to do");
    assert!(job.deadline <= now() + MAX_DEADLINE, "a job ends within a day");
    if let Err(text) = target::supports(bot, job) {
        assert!(text.len() < 1_000, "a sentence: {text}");
        return;
    }
    let variables = Variables::from([
        (Name::new(Scope::User, "a"), Value::from(1)),
        (Name::new(Scope::Session, "b"), Value::from(vec!["x"])),
    ]);
    let snapshot = Snapshot::read(Some(crate::job::Version::new("1")), variables, &bot.ledger_key, None, now());
    let candidate = Candidate {
        job,
        mark: Mark::of_job(&bot.name, &job.conversation, &job.id),
        generation: 0,
        suspect: true,
        uncertain: true,
        published: None,
        tried: None,
        tried_without_entry: false,
        before: None,
    };
    let evicted = Evicted::default();
    let ground = Ground { bot, snapshot: &snapshot, base: None, backfill: &[], evicted: &evicted, now: now() };
    let plan = plan(ground, &[candidate], 1, None);
    assert_eq!(plan.fates.len(), 1, "a job has one fate");
    let bytes = plan.body.as_ref().map_or(0, bytes::Bytes::len);
    assert!(bytes <= bot.max_payload_bytes, "a request keeps its limit");
}

fn is_explained(body: &[u8], invalid: &Invalid) {
    const CODES: [Reason; 12] = [
        Reason::MalformedJson,
        Reason::SchemaViolation,
        Reason::MissingJobId,
        Reason::JobIdMismatch,
        Reason::InvalidJobId,
        Reason::InvalidConversationId,
        Reason::InvalidKey,
        Reason::InvalidScope,
        Reason::InvalidOperation,
        Reason::InvalidNumber,
        Reason::ValueTooLarge,
        Reason::PayloadTooLarge,
    ];
    let rejection = &invalid.rejection;
    assert!(CODES.contains(&rejection.code), "{:?} is no verdict on a message", rejection.code);
    assert!(!rejection.text.is_empty() && rejection.text.len() < 1_000, "a sentence: {}", rejection.text);
    let pointer = rejection.pointer.as_deref().unwrap_or_default();
    assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer} is no JSON pointer");
    // Names of the message are in it, each cut, with "~" as "~0".
    assert!(pointer.len() <= 2 * body.len() + 200, "the pointer is longer than what it points into");
}

/// A template and, after the first line, the state as JSON. It renders in one pass, within the limit.
pub fn template(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (source, state) = text.split_once('\n').unwrap_or((text, "{}"));
    let state = json::parse(state.as_bytes()).unwrap_or_default();
    let template = Template::parse(source);
    let placeholders = template.paths().count();
    let looks = Cell::new(0);
    let look_up = |scope: Scope, key: &str| {
        looks.set(looks.get() + 1);
        state.get(scope.as_str()).and_then(|of_scope| of_scope.get(key)).or_else(|| state.get(key))
    };
    for policy in [OnUnresolved::Keep, OnUnresolved::Empty, OnUnresolved::Fail] {
        looks.set(0);
        match template.render(look_up, policy, LIMIT) {
            Ok(rendered) => {
                assert!(rendered.text.len() <= LIMIT, "the limit holds");
                assert!(policy != OnUnresolved::Fail || rendered.unresolved.is_empty(), "nothing is passed over");
            }
            Err(RenderError::TooLarge) => {}
            Err(RenderError::Unresolved(path)) => assert!(source.contains(&path), "{path} is what was written"),
        }
        // Each placeholder is looked up once in each scope, at most: nothing that is brought in is looked at.
        assert!(looks.get() <= 4 * placeholders, "{} look-ups for {placeholders} placeholders", looks.get());
    }
    if let Ok(kept) = template.render(|_, _| None, OnUnresolved::Keep, usize::MAX) {
        assert_eq!(kept.text, source, "without a state a template is its own text");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, check: impl Fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 10, "the corpus of {target} is there");
    }

    #[test]
    fn what_the_fuzzer_kept_of_messages_holds() {
        replay("job", super::job);
    }

    #[test]
    fn what_the_fuzzer_kept_of_answers_holds() {
        replay("answer", super::answer);
    }

    #[test]
    fn what_the_fuzzer_kept_of_templates_holds() {
        replay("template", super::template);
    }
}
