//! Programs that are not ours publish jobs and read outcomes: Debian's amqp-tools and Python's pika.

use std::process::Stdio;

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::world::{LIMIT, World, eventually};

#[tokio::test]
async fn amqp_tools_publish_a_job_and_read_its_outcome() {
    if run("amqp-publish", &["--help"]).await.is_none() {
        eprintln!("SKIPPED: no amqp-publish on this machine (Debian: apt-get install amqp-tools)");
        return;
    }
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let queue = subscribe_foreign(&world, "tools").await;
    let job = json!({"job_id": "foreign-1", "conversation_id": world.conversation(),
                     "variables": {"tier": {"value": "premium", "scope": "user"}}});
    let exchange = format!("{}.jobs", world.prefix);
    let body = job.to_string();
    let arguments =
        ["-u", &world.amqp_url, "-e", &exchange, "-r", "default", "-p", "-C", "application/json", "-b", &body];
    let published = run("amqp-publish", &arguments).await;
    assert!(matches!(published, Some((0, _))), "{published:?}");

    let event = eventually(LIMIT, "an outcome that amqp-get reads", async || {
        let (_, text) = run("amqp-get", &["-u", &world.amqp_url, "-q", &queue]).await?;
        serde_json::from_str::<Value>(&text).ok()
    })
    .await;
    assert_eq!(event["data"]["job_id"], "foreign-1");
    assert_eq!(event["data"]["verdict"], "applied");
    let conversation = job["conversation_id"].as_str().unwrap();
    assert_eq!(world.value(conversation, "tier").await, "premium");
}

/// Publishes what it gets as arguments and prints the first outcome that it sees.
const PIKA: &str = r#"
import sys, pika
url, prefix, message_id, body = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, prefix + ".outcomes", "default.*")
channel.confirm_delivery()
properties = pika.BasicProperties(message_id=message_id, delivery_mode=2, content_type="application/json")
channel.basic_publish(prefix + ".jobs", "default", body.encode(), properties, mandatory=True)
for method, properties, event in channel.consume(queue, auto_ack=True, inactivity_timeout=60):
    print(event.decode() if event else "nothing came")
    break
connection.close()
"#;

#[tokio::test]
async fn pika_publishes_a_job_and_reads_its_outcome() {
    let given = std::env::var("PIKA_PYTHON").unwrap_or_default();
    let mut python = None;
    for candidate in [given.as_str(), "/usr/bin/python3", "python3"] {
        if matches!(run(candidate, &["-c", "import pika"]).await, Some((0, _))) {
            python = Some(candidate);
            break;
        }
    }
    let Some(python) = python else {
        eprintln!("SKIPPED: no python with pika (Debian: apt-get install python3-pika; or set PIKA_PYTHON)");
        return;
    };
    let world = World::new().await;
    let _worker = world.start_worker().await;
    let conversation = world.conversation();
    let body = json!({"conversation_id": conversation,
                      "variables": {"tier": {"key": "tier", "value": "premium", "scope": "user"}}});
    let arguments = ["-c", PIKA, &world.amqp_url, &world.prefix, "foreign-2", &body.to_string()];
    let (status, text) = run(python, &arguments).await.unwrap();
    assert_eq!(status, 0, "{text}");
    let event: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(event["data"]["job_id"], "foreign-2");
    assert_eq!(event["data"]["verdict"], "applied");
    assert_eq!(world.value(&conversation, "tier").await, "premium");
}

async fn subscribe_foreign(world: &World, name: &str) -> String {
    let channel = world.channel().await;
    let queue = format!("{}.{name}", world.prefix);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    let exchange = format!("{}.outcomes", world.prefix);
    channel
        .queue_bind(
            queue.as_str().into(),
            exchange.into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    queue
}

/// Exit code and output of a program; `None` where it is not there.
async fn run(program: &str, arguments: &[&str]) -> Option<(i32, String)> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("a program that ends").ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    Some((output.status.code().unwrap_or(-1), text))
}
