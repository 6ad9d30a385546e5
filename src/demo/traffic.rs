//! A producer and a subscriber, as other people's programs would be: plain AMQP, nothing of the pipeline's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;

use super::input::Message;

/// Messages published before their confirms are waited for.
const AT_ONCE: usize = 200;

/// The connection of the demo itself.
pub struct Traffic {
    publisher: Channel,
    exchange: String,
    outcomes: Arc<Mutex<Vec<Value>>>,
    _connection: Connection,
}

impl Traffic {
    /// Connects, and subscribes to all outcomes with a queue of its own that goes with the connection.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn open(url: &str, prefix: &str) -> anyhow::Result<Traffic> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let publisher = connection.create_channel().await?;
        publisher.confirm_select(ConfirmSelectOptions::default()).await?;
        let subscriber = connection.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = subscriber.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
        let exchange = format!("{prefix}.outcomes");
        let bind = QueueBindOptions::default();
        subscriber.queue_bind(queue.clone(), exchange.into(), "#".into(), bind, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = subscriber.basic_consume(queue, "demo".into(), options, FieldTable::default()).await?;
        let outcomes: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&outcomes);
        tokio::spawn(async move {
            // The channel lives as long as its consumer is read.
            let _subscriber = subscriber;
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = serde_json::from_slice(&delivery.data).unwrap_or(Value::Null);
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        Ok(Traffic { publisher, exchange: format!("{prefix}.jobs"), outcomes, _connection: connection })
    }

    /// Publishes messages in order: persistent, mandatory, confirmed.
    ///
    /// # Errors
    /// The broker does not take one.
    pub async fn publish(&self, messages: &[Message]) -> anyhow::Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        for some in messages.chunks(AT_ONCE) {
            let mut confirms = Vec::with_capacity(some.len());
            for message in some {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let properties = match &message.message_id {
                    Some(id) => properties.with_message_id(id.as_str().into()),
                    None => properties.with_content_type("application/json".into()),
                };
                let exchange = self.exchange.as_str().into();
                let publish =
                    self.publisher.basic_publish(exchange, "default".into(), options, &message.body, properties);
                confirms.push(publish.await.context("cannot publish")?);
            }
            for confirm in confirms {
                let confirm = confirm.await.context("no confirm of the broker")?;
                ensure!(matches!(confirm, Confirmation::Ack(None)), "the broker did not take a job: {confirm:?}");
            }
        }
        Ok(())
    }

    /// Every outcome so far.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Value> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many different events there are so far.
    #[must_use]
    pub fn different(&self) -> usize {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.iter().filter_map(|event| event["id"].as_str()).collect::<BTreeSet<_>>().len()
    }

    /// Whether an event fits.
    pub fn any(&self, fits: impl Fn(&Value) -> bool) -> bool {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).iter().any(fits)
    }
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traffic").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
