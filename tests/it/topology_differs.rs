//! A queue that exists with other arguments is named, with the argument that differs and what to do.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::world::World;

#[tokio::test]
async fn what_is_missing_and_what_is_right_are_told_apart() {
    let world = World::bare(None, |_| {}).await;
    let (status, output) = world.command(&["topology", "check"]).await;
    assert_eq!(status, 3, "{output}");
    assert!(output.contains("jobs.default"), "{output}");
    world.apply_topology().await;
    let (status, output) = world.command(&["topology", "check"]).await;
    assert_eq!(status, 0, "{output}");
    world.apply_topology().await;
}

#[tokio::test]
async fn a_queue_with_another_argument_is_explained_by_check_apply_and_worker() {
    let world = World::bare(None, |_| {}).await;
    let connection = lapin::Connection::connect(&world.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let queue = format!("{}.jobs.default", world.prefix);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();

    let (status, output) = world.command(&["topology", "check"]).await;
    assert_eq!(status, 3, "{output}");
    explains(&output, &queue);
    let (status, output) = world.command(&["topology", "apply"]).await;
    assert_ne!(status, 0, "{output}");
    explains(&output, &queue);
    let worker = world.spawn("worker");
    explains(&worker.logs(&queue).await, &queue);
}

fn explains(text: &str, queue: &str) {
    let line = text.lines().find(|line| line.contains(queue)).unwrap_or_else(|| panic!("{queue} not named: {text}"));
    assert!(line.contains("x-"), "the argument is named: {line}");
}
