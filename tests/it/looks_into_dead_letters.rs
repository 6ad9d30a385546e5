//! Looking into dead letters changes nothing, at any size; a replay that is killed in the middle loses nothing.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use context_injector::broker::topology::{self, Names, Part};
use context_injector::broker::{Broker, Mandatory, Message, Options, Publisher, subscribe};
use context_injector::dead_letters::{Death, Owner, letter};
use context_injector::servers::watched::Scratch;
use futures_util::future::join_all;
use jiff::Timestamp;
use lapin::options::BasicGetOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use crate::support::{amqp_url, config, settings, unique_prefix, within};
use crate::world::{LIMIT, eventually};

/// More than two of the windows in which a queue is looked through.
const LETTERS: usize = 12_000;

/// A broker with dead letters, and the commands that look at them.
pub struct Room {
    pub names: Names,
    pub broker: Broker,
    pub publisher: Publisher,
    pub directory: Scratch,
}

impl Room {
    pub async fn new(name: &str) -> Room {
        let (url, prefix) = (amqp_url().await, unique_prefix(name));
        let config = config(url, &prefix, "");
        let directory = Scratch::new(name).unwrap();
        std::fs::write(directory.path().join("settings.toml"), settings(url, &prefix, "")).unwrap();
        let plan = topology::plan(&config, Part::All);
        let broker = Broker::start_declaring(&config.amqp, name, plan, CancellationToken::new());
        within("a connection", broker.connection()).await;
        Room { names: Names::new(&prefix), publisher: Publisher::new(&broker), broker, directory }
    }

    /// Dead letters of jobs `job-00000`, `job-00001`, …; every tenth has another reason.
    pub async fn bury(&self, count: usize) {
        let publish = (0..count).map(async |number| {
            let body = json!({"job_id": id(number), "conversation_id": format!("conv_{:x}", number % 7),
                              "variables": {"n": {"value": number}}});
            let death = Death {
                owner: Owner::Bot("default"),
                reason: if number % 10 == 0 { "expired" } else { "attempts_exhausted" },
                text: "for the test",
                certainty: Some("not_applied"),
                attempts: 8,
                first_seen: Timestamp::now(),
                last_status: Some(503),
                trace_id: None,
                generation: 0,
                now: Timestamp::now(),
            };
            let letter = letter(&Message::new(body.to_string()).with_message_id(&id(number)), &death);
            self.publisher.publish("", &self.names.jobs_dead(), &letter, Mandatory::Yes).await.unwrap();
        });
        within("all confirms", join_all(publish)).await;
    }

    pub fn process(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"));
        command.arg("--config").arg(self.directory.path().join("settings.toml")).args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name == "AMQP_URL" || name.starts_with("CONTEXT_")) {
            command.env_remove(name);
        }
        command.kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = within("the command", self.process(arguments).output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    }

    pub async fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let output = within("the command", self.process(arguments).output()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What the queue itself says: a busy broker that does not get its answer in 250 ms says nought.
    async fn depth(&self, queue: &str) -> topology::Depth {
        let connection = within("a connection", self.broker.connection()).await;
        eventually(LIMIT, "an answer of the queue itself", async || {
            let asked = Instant::now();
            let depth = topology::depth(&connection, queue).await.unwrap().unwrap();
            (asked.elapsed() < Duration::from_millis(250)).then_some(depth)
        })
        .await
    }

    /// Insists on an empty queue; the queue itself answers this, and never too early.
    pub async fn assert_empty(&self, queue: &str) {
        let channel = within("a channel", self.broker.connection()).await.create_channel().await.unwrap();
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        assert!(got.is_none(), "a message is left in {queue}, {:?} beside it", self.depth(queue).await);
    }

    pub async fn waiting(&self, queue: &str) -> usize {
        self.depth(queue).await.ready.try_into().unwrap()
    }

    async fn consumers(&self, queue: &str) -> u32 {
        self.depth(queue).await.consumers
    }

    /// Waits until the broker has back what a killed command held.
    pub async fn wait_until_nobody_looks(&self) {
        let queue = self.names.jobs_dead();
        eventually(LIMIT, "a queue without consumers", async || (self.consumers(&queue).await == 0).then_some(()))
            .await;
    }

    /// Takes so many out of a queue, which holds no more.
    pub async fn empty(&self, queue: &str, expected: usize) -> Vec<Message> {
        let options = Options { prefetch: 500, tag: "test".into(), from: None };
        let mut subscription = within("a subscription", subscribe(&self.broker, queue, options)).await.unwrap();
        let mut found = Vec::new();
        while found.len() < expected {
            let incoming = within("a message", subscription.next()).await.unwrap();
            found.push(incoming.message.clone());
            incoming.ack().await.unwrap();
        }
        assert_eq!(self.waiting(queue).await, 0);
        found
    }
}

pub fn id(number: usize) -> String {
    format!("job-{number:05}")
}

pub fn ids(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.message_id().unwrap().to_owned()).collect()
}

/// Equality of long lists, told by the first difference.
pub fn assert_same(found: &[String], expected: impl IntoIterator<Item = usize>) {
    let expected = expected.into_iter().map(id).collect::<Vec<_>>();
    let difference = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    let at = difference.unwrap_or(found.len().min(expected.len()));
    assert_eq!(found.get(at), expected.get(at), "at {at} of {} and {}", found.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_letters_are_listed_filtered_and_left_in_their_order() {
    let room = Room::new("order").await;
    room.bury(LETTERS).await;
    for _ in 0..2 {
        let rows = room.rows(&["dead-letters", "list", "--json"]).await;
        let listed = rows.iter().map(|row| row["message_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_same(&listed, 0..LETTERS);
    }
    // A reader that has enough, as `head` has, is no error.
    let mut listing = room.process(&["dead-letters", "list", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listing.stdout.take().unwrap()).lines();
    assert!(within("a line", lines.next_line()).await.unwrap().is_some());
    drop(lines);
    assert_eq!(within("the end", listing.wait()).await.unwrap().code(), Some(0));
    let (status, text) = room.run(&["dead-letters", "list", "--limit", "2"]).await;
    assert_eq!(status, 0, "{text}");
    for part in ["12000 in ", "10800  attempts_exhausted", "1200  expired", "job-00001~", "11998 more"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let rows = room.rows(&["dead-letters", "list", "--json", "--reason", "expired", "--conversation", "conv_3"]).await;
    let fit = (0..LETTERS).filter(|number| number % 10 == 0 && number % 7 == 3).count();
    assert_eq!(rows.len(), fit);
    let (status, text) = room.run(&["dead-letters", "show", "job-11999"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("attempts_exhausted") && text.contains("\"job-11999\""), "{text}");
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), LETTERS).await), 0..LETTERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_some_leaves_the_others_in_their_order() {
    let room = Room::new("some").await;
    room.bury(LETTERS).await;
    let (status, text) = room.run(&["dead-letters", "replay", "--reason", "expired"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("1200 replayed, 0 refused, 0 failed."), "{text}");
    let (replayed, left): (Vec<_>, Vec<_>) = (0..LETTERS).partition(|number| number % 10 == 0);
    assert_same(&ids(&room.empty(&room.names.jobs_of("default"), replayed.len()).await), replayed);
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), left.len()).await), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_loses_nothing_and_goes_on_when_run_again() {
    let room = Room::new("killed").await;
    room.bury(LETTERS).await;
    let queue = room.names.jobs_of("default");
    const KILLS: usize = 5;
    for _ in 0..KILLS {
        let mut process = room.process(&["dead-letters", "replay"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        for _ in 0..300 {
            within("a replayed letter", lines.next_line()).await.unwrap().expect("it is at work");
        }
        // SIGKILL.
        process.kill().await.unwrap();
    }
    // At once: what the killed ones held may still be on its way back.
    let (status, text) = room.run(&["dead-letters", "replay"]).await;
    assert_eq!(status, 0, "{text}");
    room.assert_empty(&room.names.jobs_dead()).await;

    let arrived = room.waiting(&queue).await;
    let arrived = room.empty(&queue, arrived).await;
    let mut times = BTreeMap::<String, usize>::new();
    let mut first_times = Vec::new();
    for message in &arrived {
        assert_eq!(message.replay_generation(), 1);
        let id = message.message_id().unwrap().to_owned();
        if !times.contains_key(&id) {
            first_times.push(id.clone());
        }
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(times.len(), LETTERS, "none is lost");
    assert_same(&first_times, 0..LETTERS);
    let repeated = times.values().map(|times| times - 1).sum::<usize>();
    // 64 that were under way, and acks that the broker had not carried out.
    assert!(repeated <= KILLS * 1_000, "{repeated} repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_reports_success_left_nothing_though_the_broker_forgets_acks() {
    let room = Room::new("acks").await;
    for round in 1..=4 {
        room.bury(3_000).await;
        let (status, text) = room.run(&["dead-letters", "replay"]).await;
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("3000 replayed, 0 refused, 0 failed."), "round {round}: {text}");
        room.assert_empty(&room.names.jobs_dead()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_beside_somebody_who_holds_letters_is_no_success() {
    let room = Room::new("held").await;
    room.bury(20).await;
    let options = Options { prefetch: 3, tag: "somebody".into(), from: None };
    let queue = room.names.jobs_dead();
    let mut somebody = within("a subscription", subscribe(&room.broker, &queue, options)).await.unwrap();
    let held = within("a letter", somebody.next()).await.unwrap();
    for (arguments, expected) in [(&["replay"][..], 1), (&["list"], 0)] {
        let (status, text) = room.run(&[&["dead-letters"], arguments].concat()).await;
        assert_eq!(status, expected, "{text}");
        assert!(text.contains("note: 1 other consumer(s) of this queue"), "{text}");
        assert_eq!(text.contains("error: not every letter could be seen"), expected == 1, "{text}");
    }
    held.receipt.leave();
    somebody.close().await;
    let (status, text) = room.run(&["dead-letters", "replay"]).await;
    assert_eq!((status, text.contains("3 replayed, 0 refused, 0 failed.")), (0, true), "{text}");
    room.assert_empty(&queue).await;
    assert_eq!(room.waiting(&room.names.jobs_of("default")).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_tell_what_was_refused_and_ids_that_are_not_there() {
    let room = Room::new("results").await;
    room.bury(3).await;
    let patch = r#"{"variables": {"n": {"scope": "town"}}}"#;
    let (status, text) = room.run(&["dead-letters", "replay", "job-00001", "--patch", patch]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("refused: invalid_scope at /variables/n/scope"), "{text}");
    let (status, text) = room.run(&["dead-letters", "replay", "job-00009"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("no letter \"job-00009\""), "{text}");
    let (status, text) = room.run(&["dead-letters", "replay", "job-00001", "--set-message-id", "other"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("job_id_mismatch"), "{text}");
    let (status, text) = room.run(&["dead-letters", "replay", "--dry-run", "--json"]).await;
    assert_eq!((status, text.matches("\"dry_run\"").count()), (0, 3), "{text}");
    assert_same(&ids(&room.empty(&room.names.jobs_dead(), 3).await), 0..3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_keeps_to_its_pace() {
    let room = Room::new("pace").await;
    room.bury(30).await;
    let start = Instant::now();
    let (status, text) = room.run(&["dead-letters", "replay", "--rate", "20"]).await;
    assert_eq!(status, 0, "{text}");
    assert!(start.elapsed() >= Duration::from_millis(1_400), "30 at 20 a second");
    assert_eq!(room.waiting(&room.names.jobs_of("default")).await, 30);
}
