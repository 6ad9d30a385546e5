//! The producer and the subscriber of the suite: plain AMQP, as other people's programs would be, and able to outlive
//! their broker.
//!
//! The producer publishes in order and confirmed. What was not confirmed when the broker went is published again, as
//! a producer must; since a window of unconfirmed messages holds each conversation once, that leaves doubles and no
//! other order. The subscriber has a durable queue and acknowledges what it has noted, so it misses nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::checker::Told;
use super::load::Load;
use crate::world::{LIMIT, eventually};

/// Messages that wait for their confirms at the same time.
const WINDOW: usize = 50;
/// Jobs without an outcome, at most: enough that there is always work, little enough that faults meet fresh jobs.
const BACKLOG: usize = 600;
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
/// A node that a network has cut off may take a connection and then say nothing.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Address {
    /// Of each node of the broker.
    pub amqp_urls: Vec<String>,
    pub prefix: String,
}

/// Publishes the whole load, never much ahead of the outcomes. `sent` is when each job went out first, in milliseconds
/// since 1970, which is also what its messages say, to the second.
pub async fn produce(
    address: &Address,
    load: &Load,
    mut outcomes: watch::Receiver<usize>,
    sent: &RefCell<Vec<Option<u64>>>,
) {
    let mut channel = None;
    sent.borrow_mut().resize(load.jobs.len(), None);
    let (mut at, mut published) = (0, 0);
    while at < load.stream.len() {
        outcomes.wait_for(|told| published < told + BACKLOG).await.unwrap();
        let window = window(load, at);
        for number in window {
            sent.borrow_mut()[*number].get_or_insert_with(now_ms);
        }
        // Whatever was confirmed of a window that broke or was refused: all of it goes out again.
        while let Err(error) = publish(&mut channel, address, load, window, sent).await {
            eprintln!("producer: {error}");
            channel = None;
        }
        at += window.len();
        published = load.stream[..at].iter().max().map_or(0, |newest| newest + 1);
    }
}

/// The next messages, each of another conversation.
fn window(load: &Load, at: usize) -> &[usize] {
    let mut conversations = BTreeSet::new();
    let rest = &load.stream[at..];
    let fits = rest.iter().take(WINDOW).take_while(|number| conversations.insert(&load.jobs[**number].conversation));
    &rest[..fits.count()]
}

async fn publish(
    channel: &mut Option<(Connection, Channel)>,
    address: &Address,
    load: &Load,
    window: &[usize],
    sent: &RefCell<Vec<Option<u64>>>,
) -> Result<(), Box<dyn std::error::Error>> {
    if channel.is_none() {
        let connection = connect(address).await;
        let publisher = connection.create_channel().await?;
        publisher.confirm_select(ConfirmSelectOptions::default()).await?;
        *channel = Some((connection, publisher));
    }
    let Some((_, publisher)) = channel else { return Ok(()) };
    let exchange = format!("{}.jobs", address.prefix);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut confirms = Vec::with_capacity(window.len());
    for number in window {
        let job = &load.jobs[*number];
        let timestamp = sent.borrow()[*number].unwrap_or_default() / 1_000;
        let properties = BasicProperties::default().with_delivery_mode(2).with_timestamp(timestamp);
        let body = job.body(*number).to_string();
        let publish =
            publisher.basic_publish(exchange.as_str().into(), job.bot.into(), options, body.as_bytes(), properties);
        confirms.push(publish.await?);
    }
    for confirm in confirms {
        let confirm = confirm.await?;
        // A cluster refuses what its queue's leader cannot take; what it cannot route would be a fault of ours.
        if let Confirmation::Nack(None) = confirm {
            return Err("the broker takes no responsibility for a job".into());
        }
        assert!(matches!(confirm, Confirmation::Ack(None)), "the broker returned a job: {confirm:?}");
    }
    Ok(())
}

/// What a subscriber has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub told: Vec<Told>,
    /// When an event came that was not seen before.
    pub new: Vec<Instant>,
    events: BTreeSet<String>,
    jobs: BTreeSet<String>,
}

/// A subscriber to all outcomes.
#[derive(Debug)]
pub struct Subscriber {
    pub seen: Arc<Mutex<Seen>>,
    /// How many jobs have an outcome.
    pub outcomes: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Subscriber {
    /// Subscribes; what is published from now on is seen.
    pub async fn open(address: Address) -> Subscriber {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (tell, outcomes) = watch::channel(0);
        let (ready, mut is_ready) = watch::channel(false);
        let noting = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = subscribe(&address, &noting, &tell, &ready).await {
                    eprintln!("subscriber: {error}");
                }
            }
        });
        is_ready.wait_for(|ready| *ready).await.unwrap();
        Subscriber { seen, outcomes, task }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Notes outcomes until the connection breaks.
async fn subscribe(
    address: &Address,
    seen: &Mutex<Seen>,
    tell: &watch::Sender<usize>,
    ready: &watch::Sender<bool>,
) -> Result<(), lapin::Error> {
    let connection = connect(address).await;
    let channel = connection.create_channel().await?;
    channel.basic_qos(500, BasicQosOptions::default()).await?;
    let queue = format!("{}.subscriber", address.prefix);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, arguments).await?;
    let exchange = format!("{}.outcomes", address.prefix);
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.as_str().into(), exchange.into(), "#".into(), bind, FieldTable::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    ready.send_replace(true);
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let event: Value = serde_json::from_slice(&delivery.data).unwrap();
        let count = note(&mut seen.lock().unwrap(), &event, delivery.redelivered);
        tell.send_replace(count);
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

fn note(seen: &mut Seen, event: &Value, redelivered: bool) -> usize {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let data = &event["data"];
    let told = Told {
        event: text(&event["id"]),
        job: text(&data["job_id"]),
        verdict: text(&data["verdict"]),
        reason: text(&data["reason"]["code"]),
    };
    let new = seen.events.insert(told.event.clone());
    if new {
        seen.new.push(Instant::now());
    }
    seen.jobs.insert(told.job.clone());
    // What the broker hands to us once more because we had not acknowledged it was told once.
    if new || !redelivered {
        seen.told.push(told);
    }
    seen.jobs.len()
}

/// The ids of all events that the audit stream holds. A node that has just come back has not got it yet.
pub async fn audited(address: &Address, limit: Duration) -> BTreeSet<String> {
    eventually(LIMIT, "an audit stream that can be read", async || match read_audit(address, limit).await {
        Ok(events) => Some(events),
        Err(error) => {
            eprintln!("audit stream: {error}");
            None
        }
    })
    .await
}

async fn read_audit(address: &Address, limit: Duration) -> Result<BTreeSet<String>, lapin::Error> {
    let connection = connect(address).await;
    let channel = connection.create_channel().await?;
    channel.basic_qos(500, BasicQosOptions::default()).await?;
    let stream = format!("{}.audit", address.prefix);
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(stream.into(), "".into(), options, arguments).await?;
    let mut events = BTreeSet::new();
    // A stream has no end: it is over when nothing more comes.
    while let Ok(Some(Ok(delivery))) = tokio::time::timeout(limit, consumer.next()).await {
        let event: Value = serde_json::from_slice(&delivery.data).unwrap();
        events.insert(event["id"].as_str().unwrap_or_default().to_owned());
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(events)
}

async fn connect(address: &Address) -> Connection {
    let mut tick = tokio::time::interval(RECONNECT_EVERY);
    loop {
        tick.tick().await;
        let url = &address.amqp_urls[rand::random_range(0..address.amqp_urls.len())];
        let connecting = Connection::connect(url, ConnectionProperties::default());
        if let Ok(Ok(connection)) = tokio::time::timeout(CONNECT_WITHIN, connecting).await {
            return connection;
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}
