//! An operator edits, discards and moves dead letters: each act is on record before it happens, the others keep
//! their order, and nothing is lost wherever a command ends.

use std::collections::BTreeSet;
use std::process::Stdio;

use context_injector::broker::{Mandatory, Message};
use context_injector::pipeline::validate::SCHEMAS;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::looks_into_dead_letters::{Room, assert_same, id, ids};
use crate::support::within;

const PATCH: &str = r#"{"variables": {"n": {"value": "a new secret"}}}"#;
const ALICE: [&str; 4] = ["--by", "alice", "--why", "ticket 4711"];

fn words<'a>(first: &[&'a str]) -> Vec<&'a str> {
    [&["dead-letters"], first, &ALICE].concat()
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap()
}

impl Room {
    /// What is on record of operators.
    async fn records(&self) -> Vec<Value> {
        let (_, schema) = SCHEMAS.into_iter().find(|(name, _)| *name == "operation").unwrap();
        let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
        let (status, text) = self.run(&["audit", "verify"]).await;
        assert_eq!(status, 0, "{text}");
        let rows = self.rows(&["audit", "export"]).await;
        for row in &rows {
            assert!(schema.is_valid(row), "{row}: {:?}", schema.validate(row).err());
        }
        rows
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_job_keeps_its_original_is_on_record_and_is_replayed_as_it_is_now() {
    let room = Room::new("edit").await;
    room.bury(3).await;
    let (status, text) = room.run(&words(&["edit", "job-00001", "--patch", PATCH, "--dry-run"])).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("/variables/n/value: 1 becomes \"a new secret\""), "{text}");
    assert_eq!(room.records().await.len(), 0, "a dry run does nothing");
    let (status, text) = room.run(&words(&["edit", "job-00001", "--patch", PATCH])).await;
    assert_eq!(status, 0, "{text}");

    let records = room.records().await;
    let data = &records[0]["data"];
    assert_eq!(records.len(), 1);
    assert_eq!((&data["action"], &data["by"], &data["why"]), (&json!("edit"), &json!("alice"), &json!("ticket 4711")));
    assert_ne!(data["body_before"]["digest"], data["body_after"]["digest"]);
    assert!(!records[0].to_string().contains("a new secret"), "{}", records[0]);
    let rows = room.rows(&["dead-letters", "list", "--json"]).await;
    let listed = rows.iter().map(|row| row["message_id"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(listed, ["job-00000", "job-00002", "job-00001"], "the others keep their order");
    assert_eq!((&rows[2]["id"], &rows[2]["reason"]), (&data["letter_after"], &json!("attempts_exhausted")));

    // Edited once more: the first original is the one that is kept.
    let again = r#"{"variables": {"n": {"value": 7}}}"#;
    let (status, text) = room.run(&words(&["edit", "job-00001", "--patch", again])).await;
    assert_eq!(status, 0, "{text}");
    let shown = room.rows(&["dead-letters", "show", "job-00001", "--json"]).await;
    let original: Value = serde_json::from_str(shown[0]["headers"]["x-original-body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&original["variables"]["n"]["value"], &shown[0]["headers"]["x-edited-by"]),
        (&json!(1), &json!("alice"))
    );

    let (status, text) = room.run(&["dead-letters", "replay", "job-00001"]).await;
    assert_eq!(status, 0, "{text}");
    let replayed = room.empty(&room.names.jobs_of("default"), 1).await;
    assert_eq!(body(&replayed[0])["variables"]["n"]["value"], 7);
    assert!(replayed[0].header("x-original-body").is_none() && replayed[0].header("x-edited-by").is_none());
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), 2).await), [0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_the_worker_would_refuse_changes_nothing_and_an_event_is_never_edited() {
    let room = Room::new("refuse").await;
    room.bury(2).await;
    let wrong = r#"{"variables": {"n": {"scope": "town"}}}"#;
    let (status, text) = room.run(&words(&["edit", "job-00000", "--patch", wrong])).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("refused: invalid_scope at /variables/n/scope"), "{text}");
    let (status, text) = room.run(&words(&["edit", "x", "--kind", "webhooks", "--patch", PATCH])).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("it is not rewritten"), "{text}");
    let (status, text) = room.run(&words(&["edit", "job-00009", "--patch", PATCH])).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("no letter \"job-00009\""), "{text}");
    assert_eq!(room.records().await.len(), 0);
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), 2).await), 0..2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_edited_in_the_operators_editor_and_a_refused_text_is_not_lost() {
    let room = Room::new("editor").await;
    room.bury(1).await;
    let edit = async |script: &str| {
        let mut command = room.process(&words(&["edit", "job-00000"]));
        command.env_remove("VISUAL").env("EDITOR", script).env("TMPDIR", room.directory.path()).stdin(Stdio::null());
        let output = within("the command", command.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    let drafts = || {
        let files = std::fs::read_dir(room.directory.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("dead-letter-")).count()
    };
    let (status, text) = edit("true").await;
    assert_eq!((status, text.contains("Nothing was changed.")), (0, true), "{text}");
    let (status, text) = edit("false").await;
    assert_eq!((status, text.contains("the editor ended")), (1, true), "{text}");
    assert_eq!(drafts(), 0, "bodies hold values and are not left behind");
    let (status, text) = edit("sed -i s/value/worth/").await;
    assert_eq!((status, text.contains("Your text is kept in ")), (1, true), "{text}");
    assert_eq!(drafts(), 1);
    let (status, text) = edit("sed -i 's/\"value\": 0/\"value\": 5/'").await;
    assert_eq!(status, 0, "{text}");
    let letters = room.empty(&room.names.jobs_dead(), 1).await;
    assert_eq!(body(&letters[0])["variables"]["n"]["value"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_was_cut_off_before_its_last_step_is_ended_by_the_same_command() {
    let room = Room::new("cut").await;
    room.bury(1).await;
    let export = room.directory.path().join("before.jsonl");
    std::fs::write(&export, room.run(&["dead-letters", "export"]).await.1).unwrap();
    let (status, text) = room.run(&words(&["edit", "job-00000", "--patch", PATCH])).await;
    assert_eq!(status, 0, "{text}");
    // As if it had been killed between the confirm of the edited letter and the ack of the original.
    let (status, text) = room.run(&["dead-letters", "import", export.to_str().unwrap()]).await;
    assert_eq!(status, 0, "{text}");
    let named = room.rows(&["dead-letters", "list", "--json"]).await;
    let original = named[1]["id"].as_str().unwrap();
    let (status, text) = room.run(&words(&["edit", original, "--patch", PATCH])).await;
    assert_eq!(status, 0, "{text}");
    let letters = room.empty(&room.names.jobs_dead(), 1).await;
    assert_eq!(body(&letters[0])["variables"]["n"]["value"], "a new secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_too_large_for_a_header_is_edited_only_with_a_copy() {
    let room = Room::new("large").await;
    let large =
        json!({"job_id": "large", "conversation_id": "conv_1", "variables": {"n": {"value": "x".repeat(40_000)}}});
    let letter = Message::new(large.to_string()).with_message_id("large").with_text("x-bot", "default");
    room.publisher.publish("", &room.names.jobs_dead(), &letter, Mandatory::Yes).await.unwrap();
    let (status, text) = room.run(&words(&["edit", "large", "--patch", PATCH])).await;
    assert_eq!((status, text.contains("--save-original")), (1, true), "{text}");
    let copy = room.directory.path().join("copy.jsonl");
    let (status, text) =
        room.run(&words(&["edit", "large", "--patch", PATCH, "--save-original", copy.to_str().unwrap()])).await;
    assert_eq!(status, 0, "{text}");
    let saved: Value = serde_json::from_slice(&std::fs::read(&copy).unwrap()).unwrap();
    assert_eq!(saved["body"], large.to_string());
    assert_eq!(room.empty(&room.names.jobs_dead(), 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_discarded_is_on_record_and_the_others_keep_their_order() {
    let room = Room::new("discard").await;
    room.bury(50).await;
    for (arguments, said) in
        [(words(&["discard", "--yes"]), "discard what?"), (words(&["discard", "--all"]), "no terminal to ask at")]
    {
        let (status, text) = room.run(&arguments).await;
        assert_eq!((status, text.contains(said)), (1, true), "{text}");
    }
    let (status, text) = room.run(&["dead-letters", "discard", "--all", "--yes", "--by", "alice"]).await;
    assert_eq!((status, text.contains("--why")), (2, true), "{text}");
    let (status, text) = room.run(&words(&["discard", "--reason", "expired", "--dry-run"])).await;
    assert_eq!((status, text.contains("5 would be discarded")), (0, true), "{text}");
    assert_eq!(room.records().await.len(), 0);
    let (status, text) = room.run(&words(&["discard", "--reason", "expired", "--yes"])).await;
    assert_eq!((status, text.contains("5 discarded, 0 refused, 0 failed.")), (0, true), "{text}");
    let records = room.records().await;
    let recorded = records.iter().map(|record| record["data"]["message_id"].as_str().unwrap().to_owned());
    assert_same(&recorded.collect::<Vec<_>>(), (0..50).filter(|number| number % 10 == 0));
    let (status, text) = room.run(&words(&["discard", "job-00000", "--yes"])).await;
    assert_eq!((status, text.contains("no letter \"job-00000\"")), (1, true), "{text}");
    let left = (0..50).filter(|number| number % 10 != 0);
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), 45).await), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_that_is_killed_took_nothing_away_that_is_not_on_record() {
    const LETTERS: usize = 6_000;
    let room = Room::new("taken").await;
    room.bury(LETTERS).await;
    let mut process = room.process(&words(&["discard", "--all", "--yes"])).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    for _ in 0..200 {
        within("a discarded letter", lines.next_line()).await.unwrap().expect("it is at work");
    }
    // SIGKILL.
    process.kill().await.unwrap();
    room.wait_until_nobody_looks().await;
    let recorded = room.records().await;
    let name = |record: &Value| record["data"]["message_id"].as_str().unwrap().to_owned();
    let recorded = recorded.iter().map(name).collect::<BTreeSet<_>>();
    let waiting = room.waiting(&room.names.jobs_dead()).await;
    assert!(waiting < LETTERS, "some were taken away");
    let left = ids(&room.empty(&room.names.jobs_dead(), waiting).await);
    assert!(left.is_sorted(), "those that are left keep their order");
    let left = left.into_iter().collect::<BTreeSet<_>>();
    for number in 0..LETTERS {
        assert!(
            left.contains(&id(number)) || recorded.contains(&id(number)),
            "{} is gone and not on record",
            id(number)
        );
    }
    // 64 that were under way, and acks that the broker had not carried out.
    let both = left.intersection(&recorded).count();
    assert!(both <= 1_000, "{both} are on record and still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_moved_byte_for_byte_and_a_second_one_in_the_file_is_refused() {
    let room = Room::new("move").await;
    room.bury(3).await;
    let odd =
        Message::new(vec![0xff, 0x00, b'x']).with_message_id("odd").with_text("x-bot", "default").with_text("own", "ü");
    room.publisher.publish("", &room.names.jobs_dead(), &odd, Mandatory::Yes).await.unwrap();
    let nobody = Message::new("{ \"a\" :  1.50 }").with_message_id("nobody");
    room.publisher.publish(&room.names.jobs(), "nobody", &nobody, Mandatory::Yes).await.unwrap();
    let (_, jobs) = room.run(&["dead-letters", "export"]).await;
    let (_, unroutable) = room.run(&["dead-letters", "export", "--kind", "unroutable"]).await;
    let dead = room.empty(&room.names.jobs_dead(), 4).await;
    room.empty(&room.names.jobs_unroutable(), 1).await;

    let file = room.directory.path().join("letters.jsonl");
    let second = jobs.lines().next().unwrap();
    std::fs::write(&file, format!("{jobs}{unroutable}{second}\n{{\"a\": 1}}\n")).unwrap();
    let file = file.to_str().unwrap();
    let (status, text) = room.run(&["dead-letters", "import", file, "--dry-run"]).await;
    assert_eq!((status, text.contains("5 would be imported, 2 refused, 0 failed.")), (1, true), "{text}");
    let (status, text) = room.run(&["dead-letters", "import", file]).await;
    assert_eq!(status, 1, "{text}");
    for part in [
        "5 imported, 2 refused",
        "line 6 refused: it is the letter job-00000~",
        "of line 1",
        "line 7 refused: it has no",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_, listed) = room.run(&["dead-letters", "export", "--kind", "unroutable"]).await;
    let row: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&row["bot"], &row["body"]), (&json!("nobody"), &json!("{ \"a\" :  1.50 }")));
    assert_eq!(room.run(&["dead-letters", "export"]).await.1, jobs, "what is exported again is the same");
    let moved = room.empty(&room.names.jobs_dead(), 4).await;
    for (moved, dead) in moved.iter().zip(&dead) {
        assert_eq!((&moved.body, moved.message_id()), (&dead.body, dead.message_id()));
    }
}
