//! Hostile JSON that others have collected (JSONTestSuite by Nicolas Seriot, `tests/json_suite`): each text is refused
//! with a code or accepted, as a whole message and as the value of a job, and what is not JSON never is accepted.
//!
//! `y_` is JSON, `n_` is not, of `i_` each reader may think what it likes. Two files of over 100 kB, which are nothing
//! but deep, are made here.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::parse;
use crate::config::{Bot, Config};
use crate::pipeline::validate::{Source, validate};
use crate::pipeline::verdict::Reason;

/// JSON, and refused all the same: two readers of one job must not see two jobs.
const NAMES_TWICE: [&str; 2] = ["y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"];

fn cases() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/json_suite");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut cases = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect::<Vec<_>>();
    cases.push(("n_structure_100000_opening_arrays.json".to_owned(), b"[".repeat(100_000)));
    cases.push(("n_structure_open_array_object.json".to_owned(), b"[{\"\":".repeat(50_000)));
    cases.sort();
    cases
}

fn verdict(bot: &Bot, body: &[u8]) -> Result<(), Reason> {
    let (message_id, content_encoding, published, now) = (None, None, None, Timestamp::UNIX_EPOCH);
    let source = Source { body, message_id, content_encoding, published, first_seen: now, now };
    let job = validate(bot, Duration::from_secs(60), &source);
    job.map(|_| ()).map_err(|invalid| invalid.rejection.code)
}

#[test]
fn each_text_is_judged_and_what_is_not_json_never_passes() {
    let settings = "[bots.b]\nbase_url = \"https://b.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"";
    let bot = Config::parse(settings, []).unwrap().bots.remove("b").unwrap();
    let cases = cases();
    assert_eq!(cases.len(), 318, "the suite is whole");
    for (name, text) in &cases {
        let as_value =
            [br#"{"job_id":"j","conversation_id":"conv_1","variables":{"k":{"value":"#, &text[..], b"}}}"].concat();
        let (read, whole, value) = (parse(text), verdict(&bot, text), verdict(&bot, &as_value));
        let is_json = name.starts_with("y_") && !NAMES_TWICE.contains(&name.as_str());
        if is_json {
            assert!(read.is_ok(), "{name}: {read:?}");
            // None of the suite's texts is a job.
            assert!(matches!(whole, Err(Reason::SchemaViolation | Reason::MissingJobId)), "{name}: {whole:?}");
            assert!(matches!(value, Ok(()) | Err(Reason::InvalidNumber)), "{name}: {value:?}");
        } else if name.starts_with("n_") || name.starts_with("y_") {
            assert!(read.is_err(), "{name}");
            assert_eq!((whole, value), (Err(Reason::MalformedJson), Err(Reason::MalformedJson)), "{name}");
        } else {
            assert_eq!(whole == Err(Reason::MalformedJson), read.is_err(), "{name}: {whole:?}");
            let wide_number = value == Err(Reason::InvalidNumber);
            assert_eq!(value == Err(Reason::MalformedJson), read.is_err(), "{name}: {value:?}");
            assert!(value.is_ok() || read.is_err() || wide_number, "{name}: {value:?}");
        }
    }
}
