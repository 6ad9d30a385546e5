//! A message whose properties are no text, or nested without end, costs nobody a connection: it is a message like
//! others, and where its id is not one it is refused.

use context_injector::broker::header;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Properties, World};

/// What [`publish_illegible`] replaces, by bytes that are UTF-8 nowhere.
const MARK: &str = "MARK";
const ILLEGIBLE: &[u8; 4] = b"\xff\xfe\xc3\xf5";

#[tokio::test]
async fn text_that_is_no_text_is_read_as_question_marks() {
    let world = World::new().await;
    world.subscribe().await;
    let worker = world.start_worker().await;
    let conversation = world.conversation();
    let job =
        |id: &str| json!({"job_id": id, "conversation_id": conversation, "variables": {"n": {"op": "increment"}}});
    let headers = |name: &str| {
        let mut table = FieldTable::default();
        table.insert(name.into(), AMQPValue::Boolean(true));
        table
    };

    let nameless = json!({"conversation_id": conversation, "variables": {"n": {"op": "increment"}}});
    publish_illegible(&world, &nameless.to_string(), Properties::default().with_message_id(MARK.into())).await;
    let properties = Properties::default()
        .with_correlation_id(MARK.into())
        .with_content_type(MARK.into())
        .with_headers(headers(MARK));
    publish_illegible(&world, &job("legible").to_string(), properties).await;

    world.expect_applied("legible").await;
    let outcomes = world.outcomes().await;
    assert_eq!((outcomes[0].verdict(), outcomes[0].reason()), ("not_applied", "invalid_job_id"));
    let letter = world.expect_dead_letter(nameless.to_string().as_bytes()).await;
    assert_eq!((letter.message_id.as_deref(), letter.header(header::REASON)), (Some("????"), "invalid_job_id"));
    assert_eq!(world.json(&["dead-letters", "list", "--json"]).await.len(), 1, "operators can look at it");
    assert_eq!(worker.metric("context_injector_broker_reconnects_total", &[]).await, 0.0);
}

#[tokio::test]
async fn headers_nested_without_end_are_not_followed() {
    let world = World::new().await;
    let worker = world.start_worker().await;
    let job = json!({"job_id": "deep", "conversation_id": world.conversation(), "variables": {"n": {"value": 1}}});
    let mut deep = FieldTable::default();
    for _ in 0..1_000 {
        let mut outer = FieldTable::default();
        outer.insert("k".into(), AMQPValue::FieldTable(deep));
        deep = outer;
    }
    world.publish_raw(job.to_string().as_bytes(), Properties::default().with_headers(deep)).await;
    world.expect_applied("deep").await;
    assert_eq!(worker.metric("context_injector_broker_reconnects_total", &[]).await, 0.0);
}

/// Publishes over a connection that replaces [`MARK`]: lapin cannot write what it cannot read.
async fn publish_illegible(world: &World, body: &str, properties: Properties) {
    let broker = world.amqp_url.parse::<lapin::uri::AMQPUri>().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut through = broker.clone();
    through.authority.host = "127.0.0.1".to_owned();
    through.authority.port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect((broker.authority.host.as_str(), broker.authority.port)).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
            for at in 0..count.saturating_sub(MARK.len() - 1) {
                if bytes[at..].starts_with(MARK.as_bytes()) {
                    bytes[at..at + ILLEGIBLE.len()].copy_from_slice(ILLEGIBLE);
                }
            }
            to_server.write_all(&bytes[..count]).await.unwrap();
        }
    });
    let connection = Connection::connect_uri(through, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exchange = format!("{}.jobs", world.prefix);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm =
        channel.basic_publish(exchange.into(), "default".into(), options, body.as_bytes(), properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}
