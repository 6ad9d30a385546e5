//! The outcome schema against what the code makes: every verdict, every reason, whatever a job did.

use context_injector::audit::{self, Chain};
use context_injector::config::{Bot, Config};
use context_injector::job::{ConversationId, JobId, Name, Scope, Version};
use context_injector::outcome::{Outcome, Subject, Timings};
use context_injector::pipeline::plan::KeyOutcome;
use context_injector::pipeline::verdict::{KeyResult, Reason, Rejection, Verdict};
use serde_json::json;

use super::*;

const WRITER: &str = "6f1ed002-ab5f-4b0e-8a3c-0d3c4d2b7a11";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const DIGEST_KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Reasons for which nobody can know; all others say that the job had no effect.
const OPEN: [Reason; 4] =
    [Reason::AmbiguousWrite, Reason::LedgerOverrun, Reason::ConversationReset, Reason::LedgerUnreadable];

fn bot_with(more: &str) -> Bot {
    let settings = format!(
        "[bots.default]\nbase_url = \"https://bot.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"\n{more}"
    );
    Config::parse(&settings, []).unwrap().bots.remove("default").unwrap()
}

fn conversation() -> ConversationId {
    ConversationId::new("conv_8a7b9c2d1e3f", &bot().conversation_id_pattern).unwrap()
}

fn key(scope: Scope, key: &str, result: KeyResult, value: Option<Value>) -> KeyOutcome {
    KeyOutcome { name: Name::new(scope, key), result, value }
}

/// A job that was applied.
fn applied() -> Outcome {
    Outcome {
        subject: Subject::Job(JobId::new("order-8123-paid").unwrap()),
        conversation: Some(conversation()),
        verdict: Verdict::Applied,
        time: "2026-11-23T10:00:00.123Z".parse().unwrap(),
        repeat: false,
        keys: vec![
            key(Scope::User, "customer_tier", KeyResult::Written, Some(json!("premium"))),
            key(Scope::Session, "cart_total", KeyResult::Written, Some(serde_json::from_str("149.99").unwrap())),
            key(Scope::Conversation, "stage", KeyResult::KeptTheirs, None),
            key(Scope::Conversation, "language", KeyResult::Unchanged, Some(json!("en"))),
            key(Scope::Global, "banner", KeyResult::Superseded, None),
            key(Scope::Session, "coupon", KeyResult::Written, None),
        ],
        unresolved: vec!["user.name".to_owned()],
        templates: vec![("crm_note".to_owned(), "Tier premium".to_owned())],
        version_before: Some(Version::new("41")),
        version_after: Some(Version::new("42")),
        conflicts: 1,
        attempts: 1,
        batch_size: 3,
        request_bytes: 412,
        generation: 0,
        timings: Timings {
            queued: Duration::from_micros(3_100),
            budget: Duration::ZERO,
            api: Duration::from_micros(8_437),
            total: Duration::from_micros(12_900),
        },
        traceparent: TRACE.to_owned(),
    }
}

/// The same job with another end.
fn ended(verdict: Verdict) -> Outcome {
    Outcome {
        verdict,
        keys: Vec::new(),
        unresolved: Vec::new(),
        templates: Vec::new(),
        version_before: None,
        version_after: None,
        conflicts: 0,
        batch_size: 1,
        request_bytes: 0,
        ..applied()
    }
}

fn refused(reason: Reason) -> Verdict {
    let rejection = Rejection::new(reason, "why, in a sentence");
    if OPEN.contains(&reason) { Verdict::Unknown(rejection) } else { Verdict::NotApplied(rejection) }
}

fn sealed(outcome: &Outcome, bot: &Bot) -> Value {
    link(&mut Chain::new(WRITER.to_owned()), outcome, bot)
}

/// An outcome as the next event of a chain, read again.
fn link(chain: &mut Chain, outcome: &Outcome, bot: &Bot) -> Value {
    json::parse(chain.seal(|link| outcome.event(bot, DIGEST_KEY).linked(link)).as_bytes()).unwrap()
}

/// The schema as it would be if nothing could be added to it: what the code makes and the schema does not name
/// shows.
fn closed() -> Validator {
    let (_, text) = SCHEMAS.into_iter().find(|(name, _)| *name == "outcome").unwrap();
    let mut schema: Value = serde_json::from_str(text).unwrap();
    let objects = ["", "/$defs/data", "/$defs/reason", "/$defs/key_result", "/$defs/data/properties/timings_ms"];
    for object in objects {
        schema.pointer_mut(object).unwrap()["additionalProperties"] = json!(false);
    }
    compile(&schema)
}

fn check(schema: &Validator, event: &Value) {
    assert!(schema.is_valid(event), "{event}\n{}", objections(schema, event));
}

#[test]
fn the_outcome_of_every_verdict_and_reason_is_in_the_schema() {
    let closed = closed();
    let with_values = bot_with("values_in_events = true");
    let bots =
        [bot(), bot_with("ledger = \"off\""), bot_with("dialect = \"cognigy-v2\"\napi_key = \"k\""), with_values];
    for bot in &bots {
        check(&closed, &sealed(&applied(), bot));
        check(&closed, &sealed(&Outcome { repeat: true, ..ended(Verdict::Applied) }, bot));
        for reason in Reason::ALL {
            for repeat in [false, true] {
                check(&closed, &sealed(&Outcome { repeat, ..ended(refused(reason)) }, bot));
            }
        }
        let nobody = Outcome {
            subject: Subject::new(None, b"{"),
            conversation: None,
            attempts: 0,
            ..ended(refused(Reason::MalformedJson))
        };
        check(&closed, &sealed(&nobody, bot));
    }
}

#[test]
fn what_inject_direct_prints_is_in_the_schema_without_a_chain() {
    check(&closed(), &applied().event(&bot(), DIGEST_KEY).to_json());
}

#[test]
fn a_verdict_with_the_reason_of_another_is_not_in_the_schema() {
    let schema = schema("outcome");
    for reason in Reason::ALL {
        let mut event = sealed(&ended(refused(reason)), &bot());
        for verdict in ["applied", "not_applied", "unknown"] {
            let right = event["data"]["verdict"] == verdict;
            let mut changed = event.clone();
            changed["data"]["verdict"] = verdict.into();
            assert_eq!(schema.is_valid(&changed), right, "{verdict} with {}", reason.as_str());
        }
        event["data"]["reason"]["code"] = "because".into();
        assert!(!schema.is_valid(&event));
        event["data"]["reason"] = Value::Null;
        assert!(!schema.is_valid(&event));
    }
}

fn results() -> impl Strategy<Value = KeyResult> {
    proptest::sample::select(vec![
        KeyResult::Written,
        KeyResult::KeptTheirs,
        KeyResult::Superseded,
        KeyResult::Unchanged,
    ])
}

/// What the planner makes of a variable: the value is known where it was written or left as it was.
fn key_outcomes() -> impl Strategy<Value = Vec<KeyOutcome>> {
    let scopes = proptest::sample::select(Scope::BY_PRECEDENCE.to_vec());
    let values = proptest::option::of(proptest::sample::select(vec![json!(""), json!([1, {}]), json!(true), json!(0)]));
    let made = (scopes, "[a-z_]{1,8}", results(), values).prop_map(|(scope, name, result, value)| {
        let known = matches!(result, KeyResult::Written | KeyResult::Unchanged);
        key(scope, &name, result, value.filter(|_| known))
    });
    proptest::collection::vec(made, 0..5)
}

fn versions() -> impl Strategy<Value = Option<Version>> {
    let texts = ["0", "41", "18446744073709551615", "18446744073709551616", "\"33a6\"", "W/\"1\"", "a-b"];
    proptest::option::of(proptest::sample::select(texts.to_vec()).prop_map(Version::new))
}

proptest! {
    #[test]
    fn whatever_a_job_did_its_outcome_is_in_the_schema(
        keys in key_outcomes(),
        (before, after) in (versions(), versions()),
        (conflicts, attempts, generation) in (0..u32::MAX, 0..u32::MAX, 0..=1_000_000_u32),
        (batch_size, request_bytes) in (1..=64_usize, 0..600_000_usize),
        (queued, total) in (0..u64::MAX / 2, 0..100_000_000_u64),
        seconds in 0..4_000_000_000_i64,
        values_in_events: bool,
        refusal in proptest::option::of((proptest::sample::select(Reason::ALL.to_vec()), "(/[a-zA-Z0-9_]{1,9}|/a~1b){0,3}")),
    ) {
        thread_local!(static SCHEMA: Validator = closed());
        let done = match refusal {
            None => Outcome { keys, ..applied() },
            Some((reason, pointer)) => {
                let rejection = Rejection::at(reason, pointer, "why");
                ended(if OPEN.contains(&reason) { Verdict::Unknown(rejection) } else { Verdict::NotApplied(rejection) })
            }
        };
        let timings = Timings {
            queued: Duration::from_nanos(queued),
            total: Duration::from_micros(total),
            ..Timings::default()
        };
        let time = Timestamp::from_second(seconds).unwrap();
        let outcome = Outcome {
            version_before: before, version_after: after, conflicts, attempts, generation, batch_size, request_bytes,
            timings, time, ..done
        };
        let bot = bot_with(&format!("values_in_events = {values_in_events}"));
        // As a subscriber gets it.
        let event: Value = serde_json::from_str(&sealed(&outcome, &bot).to_string()).unwrap();
        SCHEMA.with(|schema| {
            prop_assert!(schema.is_valid(&event), "{event}\n{}", objections(schema, &event));
            Ok(())
        })?;
    }
}

/// The committed examples, by name: one chain of one writer.
fn made() -> Vec<(&'static str, Value)> {
    let (plain, with_values) = (bot(), bot_with("values_in_events = true"));
    let too_large =
        Rejection::at(Reason::ValueTooLarge, "/variables/bio/value", "has 10241 bytes; max_value_bytes is 10240");
    let broken = Rejection::new(Reason::MalformedJson, "the JSON ends too early (line 1, column 12)");
    let ambiguous = Rejection::new(
        Reason::AmbiguousWrite,
        "a try may have been applied, and the target failed ever since, 8 attempts (500 Internal Server Error)",
    );
    let nobody = Outcome {
        subject: Subject::new(None, b"{\"job_id\": "),
        conversation: None,
        attempts: 0,
        ..ended(Verdict::NotApplied(broken))
    };
    let outcomes = [
        ("1-applied", applied(), &plain),
        ("2-applied-repeat", Outcome { repeat: true, ..ended(Verdict::Applied) }, &plain),
        ("3-applied-with-values", applied(), &with_values),
        ("4-not-applied", ended(Verdict::NotApplied(too_large)), &plain),
        ("5-not-a-job", nobody, &plain),
        ("6-unknown", Outcome { attempts: 8, ..ended(Verdict::Unknown(ambiguous)) }, &plain),
    ];
    let mut chain = Chain::new(WRITER.to_owned());
    let seal = |(name, outcome, bot): (&'static str, Outcome, &Bot)| (name, link(&mut chain, &outcome, bot));
    outcomes.into_iter().map(seal).collect()
}

#[test]
fn the_valid_examples_are_what_the_code_makes() {
    let (schema, made) = (schema("outcome"), made());
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        for (name, event) in &made {
            let file = format!("{}/schemas/examples/outcome/valid/{name}.json", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(file, format!("{event:#}\n")).unwrap();
        }
    }
    let files = examples("outcome/valid");
    let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        names(files.iter().map(|(name, _)| name.as_str()).collect()),
        names(made.iter().map(|(name, _)| *name).collect())
    );
    for ((name, file), (_, event)) in files.iter().zip(&made) {
        let file = json::parse(file).unwrap();
        assert_eq!(&file, event, "{name} (UPDATE_EXAMPLES=1 writes the files anew)");
        check(&schema, &file);
        assert_eq!(audit::hash(file.as_object().unwrap()), file["hash"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn the_invalid_examples_are_not_in_the_schema_for_the_reason_that_they_give() {
    let schema = schema("outcome");
    for (name, file) in examples("outcome/invalid") {
        let file = json::parse(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (why, at) = (file["why"].as_str().unwrap(), file["at"].as_str().unwrap());
        let places: Vec<_> =
            schema.iter_errors(&file["event"]).map(|error| error.instance_path().to_string()).collect();
        assert!(places.iter().any(|place| place == at), "{name}: {why}: expected at {at:?}, found at {places:?}");
    }
}
