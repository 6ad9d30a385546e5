//! What producers, subscribers and operators see of the broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;

use super::{BOT, LIMIT, World, eventually};

/// An outcome event as a subscriber gets it.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub event: Value,
    /// As it was published.
    pub body: String,
    pub routing_key: String,
}

impl Outcome {
    pub fn id(&self) -> &str {
        self.event["id"].as_str().unwrap()
    }

    pub fn job_id(&self) -> Option<&str> {
        self.event["data"]["job_id"].as_str()
    }

    pub fn verdict(&self) -> &str {
        self.event["data"]["verdict"].as_str().unwrap()
    }

    /// The reason's code; "" for `applied`.
    pub fn reason(&self) -> &str {
        self.event["data"]["reason"]["code"].as_str().unwrap_or_default()
    }

    /// The JSON pointer of the fault; "" where there is none.
    pub fn pointer(&self) -> &str {
        self.event["data"]["reason"]["pointer"].as_str().unwrap_or_default()
    }

    /// What happened to a key.
    pub fn result(&self, key: &str) -> &str {
        self.event["data"]["keys"][key]["result"].as_str().unwrap_or_default()
    }
}

/// A message as it lies in a queue of dead letters.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub body: Vec<u8>,
    pub headers: BTreeMap<String, String>,
    pub message_id: Option<String>,
}

impl DeadLetter {
    /// A header as text; "" where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Properties of a published message.
pub type Properties = BasicProperties;

pub(super) struct Queues {
    connection: Connection,
    publisher: Channel,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

impl Queues {
    async fn open(world: &World) -> Queues {
        let connection = Connection::connect(&world.amqp_url, ConnectionProperties::default()).await.unwrap();
        let publisher = connection.create_channel().await.unwrap();
        publisher.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let subscriber = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = subscriber.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let name = queue.name().clone();
        let exchange = format!("{}.outcomes", world.prefix);
        subscriber
            .queue_bind(name.clone(), exchange.into(), "#".into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = subscriber.basic_consume(name, "".into(), options, FieldTable::default()).await.unwrap();
        let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
        let seen = Arc::clone(&outcomes);
        tokio::spawn(async move {
            // The channel lives as long as its consumer is read.
            let _subscriber = subscriber;
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = serde_json::from_slice(&delivery.data).unwrap();
                let body = String::from_utf8(delivery.data).unwrap();
                let routing_key = delivery.routing_key.to_string();
                seen.lock().unwrap().push(Outcome { event, body, routing_key });
            }
        });
        Queues { connection, publisher, outcomes }
    }
}

impl World {
    async fn queues(&self) -> &Queues {
        self.queues.get_or_init(async || Queues::open(self).await).await
    }

    /// Subscribes to the outcomes; what is published before it is not seen.
    pub async fn subscribe(&self) {
        self.queues().await;
    }

    /// Publishes a job of the bot, as a producer does: persistent, mandatory, confirmed.
    pub async fn publish_job(&self, job: &Value) {
        self.publish_raw(job.to_string().as_bytes(), Properties::default()).await;
    }

    /// Publishes many jobs in order and waits for the confirms of all of them.
    pub async fn publish_jobs(&self, jobs: &[Value]) {
        for some in jobs.chunks(500) {
            let mut confirms = Vec::new();
            for job in some {
                confirms.push(self.publish(BOT, job.to_string().as_bytes(), Properties::default()).await);
            }
            for confirm in confirms {
                taken(confirm.await);
            }
        }
    }

    /// Publishes any bytes with any properties as a job of the bot.
    pub async fn publish_raw(&self, body: &[u8], properties: Properties) {
        self.publish_to(BOT, body, properties).await;
    }

    /// Publishes any bytes with any properties as a job of any bot.
    pub async fn publish_to(&self, bot: &str, body: &[u8], properties: Properties) {
        taken(self.publish(bot, body, properties).await.await);
    }

    async fn publish(&self, bot: &str, body: &[u8], properties: Properties) -> lapin::PublisherConfirm {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = format!("{}.jobs", self.prefix);
        let publisher = &self.queues().await.publisher;
        let properties = properties.with_delivery_mode(2);
        publisher.basic_publish(exchange.into(), bot.into(), options, body, properties).await.unwrap()
    }

    /// Every outcome so far.
    pub async fn outcomes(&self) -> Vec<Outcome> {
        self.queues().await.outcomes.lock().unwrap().clone()
    }

    /// The outcomes of one job so far.
    pub async fn outcomes_of(&self, job_id: &str) -> Vec<Outcome> {
        let outcomes = self.queues().await.outcomes.lock().unwrap();
        outcomes.iter().filter(|outcome| outcome.job_id() == Some(job_id)).cloned().collect()
    }

    /// Waits for the outcome of a job.
    pub async fn expect_outcome(&self, job_id: &str) -> Outcome {
        eventually(LIMIT, &format!("an outcome of {job_id}"), async || self.outcomes_of(job_id).await.pop()).await
    }

    /// Waits for the outcome of a job and insists that it was applied.
    pub async fn expect_applied(&self, job_id: &str) -> Outcome {
        let outcome = self.expect_outcome(job_id).await;
        assert_eq!(outcome.verdict(), "applied", "{}", outcome.event);
        outcome
    }

    /// Waits for the outcome of a job and insists on its reason.
    pub async fn expect_refused(&self, job_id: &str, reason: &str) -> Outcome {
        let outcome = self.expect_outcome(job_id).await;
        assert_eq!((outcome.verdict(), outcome.reason()), ("not_applied", reason), "{}", outcome.event);
        outcome
    }

    /// The dead letters of jobs, left where they are.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.messages("jobs.dead").await
    }

    /// Waits for a dead letter of jobs whose body is exactly this.
    pub async fn expect_dead_letter(&self, body: &[u8]) -> DeadLetter {
        eventually(LIMIT, "the dead letter with that body", async || {
            self.dead_letters().await.into_iter().find(|letter| letter.body == body)
        })
        .await
    }

    /// The messages of a queue, by its name without prefix, left where they are.
    pub async fn messages(&self, queue: &str) -> Vec<DeadLetter> {
        let channel = self.channel().await;
        let queue = format!("{}.{queue}", self.prefix);
        let mut found = Vec::new();
        while let Some(message) = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap() {
            let headers = message.properties.headers().iter().flat_map(FieldTable::inner);
            found.push(DeadLetter {
                headers: headers.map(|(name, value)| (name.to_string(), show(value))).collect(),
                message_id: message.properties.message_id().as_ref().map(ToString::to_string),
                body: message.delivery.data,
            });
        }
        // Unacknowledged, so the broker takes them back.
        channel.close(200, "seen".into()).await.unwrap();
        found
    }

    /// How many messages are ready in a queue, by its name without prefix.
    pub async fn ready_messages(&self, queue: &str) -> u32 {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = format!("{}.{queue}", self.prefix);
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        channel.close(200, "counted".into()).await.unwrap();
        queue.message_count()
    }

    /// A channel of its own, for what is not in the vocabulary.
    pub async fn channel(&self) -> Channel {
        self.queues().await.connection.create_channel().await.unwrap()
    }
}

fn taken(confirm: lapin::Result<Confirmation>) {
    let confirm = confirm.unwrap();
    assert!(matches!(confirm, Confirmation::Ack(None)), "the broker did not take the job: {confirm:?}");
}

fn show(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}
