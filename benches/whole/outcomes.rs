//! The subscriber: sees every outcome event, and when.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};

use crate::load::JOB_ID;

/// How long the next outcome may take: something is broken then.
const PATIENCE: Duration = Duration::from_secs(30);

/// A queue of its own, bound to all outcomes.
#[derive(Debug)]
pub struct Outcomes {
    consumer: Consumer,
    _channel: Channel,
}

/// One outcome event.
#[derive(Debug)]
pub struct Outcome {
    pub at: Instant,
    body: Vec<u8>,
}

impl Outcomes {
    pub async fn subscribe(connection: &Connection) -> anyhow::Result<Self> {
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let (name, none) = (queue.name().clone(), FieldTable::default());
        channel
            .queue_bind(name.clone(), "context.outcomes".into(), "#".into(), QueueBindOptions::default(), none)
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(name, "".into(), options, FieldTable::default()).await?;
        Ok(Self { consumer, _channel: channel })
    }

    /// The next one, which must say `applied`.
    pub async fn next(&mut self) -> anyhow::Result<Outcome> {
        let next = tokio::time::timeout(PATIENCE, self.consumer.next()).await;
        let next = next.with_context(|| format!("no outcome within {} s", PATIENCE.as_secs()))?;
        let delivery = next.context("the subscription ended")??;
        let outcome = Outcome { at: Instant::now(), body: delivery.data };
        anyhow::ensure!(
            delivery.routing_key.as_str().ends_with(".applied"),
            "an outcome is {}: {}",
            delivery.routing_key,
            String::from_utf8_lossy(&outcome.body)
        );
        Ok(outcome)
    }

    /// Waits for so many more; the time of the last.
    pub async fn skip(&mut self, count: usize) -> anyhow::Result<Instant> {
        let mut at = Instant::now();
        for _ in 0..count {
            at = self.next().await?.at;
        }
        Ok(at)
    }
}

impl Outcome {
    /// The number of its job.
    pub fn number(&self) -> anyhow::Result<usize> {
        let after = self.after(&format!(r#""job_id":"{JOB_ID}"#)).context("an outcome of somebody else's job")?;
        let digits = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        Ok(digits.parse()?)
    }

    /// Which process wrote it.
    pub fn writer(&self) -> &str {
        self.after(r#""writer":""#).and_then(|rest| rest.split('"').next()).unwrap_or_default()
    }

    /// The event as it is.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_default()
    }

    fn after(&self, text: &str) -> Option<&str> {
        self.text().split_once(text).map(|(_, rest)| rest)
    }
}
