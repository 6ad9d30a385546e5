//! Schemas, examples, parser and worker say the same about a job and about its outcome.
//!
//! The examples are files for other people's programs: `job/valid` holds jobs as they are published; `job/invalid`
//! says of each why it is none, the code and the pointer that the worker tells, and whether the schema can see it.
//! What a schema cannot say is listed once, in [`beyond_the_schema`].

mod jobs;
mod outcomes;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use context_injector::config::{Bot, Config};
use context_injector::job::Job;
use context_injector::pipeline::json;
use context_injector::pipeline::validate::{Invalid, SCHEMAS, Source, validate};
use context_injector::pipeline::verdict::{Reason, Rejection};
use jiff::Timestamp;
use jsonschema::{Draft, Validator};
use proptest::prelude::*;
use serde_json::Value;

use crate::world::{BOT, LIMIT, Outcome, Properties, World, eventually};

/// The instant at which the examples are read.
const NOW: &str = "2026-11-23T10:00:00Z";
const DEFAULT_DEADLINE: Duration = Duration::from_secs(900);

/// Valid jobs that a conversation nobody has written to refuses.
const REFUSED_BY_STATE: [(&str, &str); 2] =
    [("base-version", "precondition_failed"), ("base-version-text", "precondition_failed")];

/// A job that is none.
struct InvalidExample {
    name: String,
    body: Vec<u8>,
    message_id: Option<String>,
    code: String,
    pointer: Option<String>,
    schema_refuses: bool,
}

/// The files of a directory below `schemas/examples`, in the order of their names.
fn examples(directory: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/examples").join(directory);
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().unwrap(), "json", "{}", path.display());
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(read).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn invalid_examples() -> Vec<InvalidExample> {
    let read = |(name, file): (String, Vec<u8>)| {
        let file = json::parse(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = |field: &str| file[field].as_str().map(str::to_owned);
        assert!(text("why").is_some_and(|why| !why.is_empty()), "{name} does not say why");
        InvalidExample {
            body: text("text").unwrap_or_else(|| file["job"].to_string()).into_bytes(),
            message_id: text("message_id"),
            code: text("code").unwrap(),
            pointer: text("pointer"),
            schema_refuses: match file["schema"].as_str() {
                Some("refuses") => true,
                Some("cannot tell") => false,
                other => panic!("{name}: schema is {other:?}"),
            },
            name,
        }
    };
    examples("job/invalid").into_iter().map(read).collect()
}

fn schema(name: &str) -> Validator {
    let (_, text) = SCHEMAS.into_iter().find(|(known, _)| *known == name).unwrap();
    compile(&serde_json::from_str(text).unwrap())
}

fn compile(schema: &Value) -> Validator {
    let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
    options.build(schema).unwrap_or_else(|error| panic!("{error}"))
}

/// What the schema has against a document, for a person.
fn objections(schema: &Validator, value: &Value) -> String {
    schema.iter_errors(value).map(|error| format!("{}: {error}\n", error.instance_path())).collect()
}

fn bot() -> Bot {
    let settings =
        "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n";
    Config::parse(settings, []).unwrap().bots.remove("default").unwrap()
}

fn read(bot: &Bot, body: &[u8], message_id: Option<&str>) -> Result<Job, Invalid> {
    let now: Timestamp = NOW.parse().unwrap();
    let source = Source { body, message_id, content_encoding: None, published: None, first_seen: now, now };
    validate(bot, DEFAULT_DEADLINE, &source)
}

/// Whether the fault is one that a schema cannot see: it lies in the message around the body, in the text below the
/// values (depth, names twice), in the bot's settings (sizes, the form of ids), in the clock, in how exact a number
/// is, or between two fields.
fn beyond_the_schema(rejection: &Rejection) -> bool {
    let pointer = rejection.pointer.as_deref().unwrap_or_default();
    match rejection.code {
        Reason::MissingJobId | Reason::JobIdMismatch | Reason::InvalidConversationId => true,
        Reason::ValueTooLarge | Reason::PayloadTooLarge => true,
        Reason::InvalidJobId => pointer.is_empty(),
        Reason::MalformedJson => rejection.text.contains("twice") || rejection.text.contains("deep"),
        Reason::InvalidKey => pointer.ends_with("/key"),
        Reason::InvalidNumber => !rejection.text.contains("is not a decimal number"),
        Reason::SchemaViolation => match pointer {
            "/deadline" => rejection.text.contains("ahead"),
            // A version is compared as text: 41, but neither 41.0 nor 4.1e1.
            "/base_version" => rejection.text.contains("whole number"),
            _ => pointer.ends_with("/min"),
        },
        _ => false,
    }
}

#[test]
fn the_schemas_are_schemas() {
    for (name, text) in SCHEMAS {
        let value: Value = serde_json::from_str(text).unwrap();
        jsonschema::meta::validate(&value).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(value["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}

#[test]
fn every_valid_example_is_a_job_to_schema_and_parser() {
    let (schema, bot) = (schema("job"), bot());
    for (name, body) in examples("job/valid") {
        let value = json::parse(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(schema.is_valid(&value), "{name}: {}", objections(&schema, &value));
        let message_id = value.get("job_id").is_none().then_some(name.as_str());
        if let Err(invalid) = read(&bot, &body, message_id) {
            panic!("{name}: {}", invalid.rejection);
        }
    }
}

#[test]
fn every_invalid_example_is_refused_with_its_code_and_pointer() {
    let (schema, bot) = (schema("job"), bot());
    for example in invalid_examples() {
        let InvalidExample { name, body, message_id, code, pointer, schema_refuses } = example;
        let Err(invalid) = read(&bot, &body, message_id.as_deref()) else { panic!("{name} is taken for a job") };
        let found = (invalid.rejection.code.as_str(), &invalid.rejection.pointer);
        assert_eq!(found, (code.as_str(), &pointer), "{name}: {}", invalid.rejection);
        // As any JSON reader sees it, who is less strict than we are.
        let value = serde_json::from_slice::<Value>(&body).ok();
        let refuses = value.is_none_or(|value| !schema.is_valid(&value));
        assert_eq!(refuses, schema_refuses, "{name}: whether the schema sees it");
        assert!(refuses || beyond_the_schema(&invalid.rejection), "{name}: the schema should see it");
    }
}

#[test]
fn every_code_that_a_message_alone_can_have_has_an_example() {
    let found: BTreeSet<_> = invalid_examples().into_iter().map(|example| example.code).collect();
    let wanted = [
        Reason::MalformedJson,
        Reason::SchemaViolation,
        Reason::MissingJobId,
        Reason::JobIdMismatch,
        Reason::InvalidConversationId,
        Reason::InvalidKey,
        Reason::InvalidScope,
        Reason::InvalidOperation,
        Reason::InvalidNumber,
        Reason::InvalidJobId,
        Reason::ValueTooLarge,
    ];
    assert_eq!(found, wanted.iter().map(|reason| reason.as_str().to_owned()).collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn schema_and_parser_agree_about_every_job(job in jobs::nearly_right()) {
        thread_local!(static TOOLS: (Validator, Bot) = (schema("job"), bot()));
        TOOLS.with(|(schema, bot)| {
            let valid = schema.is_valid(&job);
            match read(bot, job.to_string().as_bytes(), Some(jobs::ID)) {
                Ok(_) => prop_assert!(valid, "only the schema refuses {job}:\n{}", objections(schema, &job)),
                Err(Invalid { rejection, .. }) => {
                    prop_assert!(!valid || beyond_the_schema(&rejection), "only the parser refuses {job}: {rejection}");
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn the_generated_jobs_are_of_both_kinds() {
    use proptest::strategy::ValueTree as _;
    let bot = bot();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let jobs = (0..400).map(|_| jobs::nearly_right().new_tree(&mut runner).unwrap().current().to_string());
    let valid = jobs.filter(|job| read(&bot, job.as_bytes(), Some(jobs::ID)).is_ok()).count();
    assert!((80..=320).contains(&valid), "{valid} of 400 are jobs");
}

/// The next outcome of a worker that gets one message after the other.
async fn outcome_number(world: &World, number: usize, name: &str) -> Outcome {
    eventually(LIMIT, &format!("an outcome of {name}"), async || world.outcomes().await.into_iter().nth(number)).await
}

#[tokio::test]
async fn a_worker_ends_every_example_as_it_says() {
    let world = World::new().await;
    let worker = world.start_worker().await;
    let schema = schema("outcome");
    let mut faults = Vec::new();
    let mut number = 0;
    let mut check = |name: &str, outcome: &Outcome, verdict: &str, code: &str, pointer: Option<&str>| {
        let event = &outcome.event;
        let found = (outcome.verdict(), outcome.reason(), event["data"]["reason"]["pointer"].as_str());
        if found != (verdict, code, pointer) {
            faults.push(format!("{name}: {found:?} instead of {:?}", (verdict, code, pointer)));
        }
        if !schema.is_valid(event) {
            faults.push(format!("{name}: {event}: {}", objections(&schema, event)));
        }
        if outcome.routing_key != format!("{BOT}.{verdict}") {
            faults.push(format!("{name}: routing key {}", outcome.routing_key));
        }
    };
    for (name, body) in examples("job/valid") {
        let mut job = json::parse(&body).unwrap();
        if job.get("deadline").is_some() {
            // An example cannot know when it is read.
            let soon = Timestamp::now() + Duration::from_secs(600);
            job["deadline"] = soon.to_string().into();
        }
        let properties = match job.get("job_id") {
            Some(_) => Properties::default(),
            None => Properties::default().with_message_id(name.as_str().into()),
        };
        world.publish_raw(job.to_string().as_bytes(), properties).await;
        let outcome = outcome_number(&world, number, &name).await;
        number += 1;
        match REFUSED_BY_STATE.iter().find(|(refused, _)| *refused == name) {
            Some((_, code)) => check(&name, &outcome, "not_applied", code, Some("/base_version")),
            None => check(&name, &outcome, "applied", "", None),
        }
    }
    for InvalidExample { name, body, message_id, code, pointer, .. } in invalid_examples() {
        let properties = match &message_id {
            Some(id) => Properties::default().with_message_id(id.as_str().into()),
            None => Properties::default(),
        };
        world.publish_raw(&body, properties).await;
        let outcome = outcome_number(&world, number, &name).await;
        number += 1;
        check(&name, &outcome, "not_applied", &code, pointer.as_deref());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(world.outcomes().await.len(), number, "one outcome each");
    assert!(worker.runs());
}
