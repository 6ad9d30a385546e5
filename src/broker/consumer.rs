//! Consuming with manual settlement.
//!
//! Rules:
//! - A [`Receipt`] is settled once, by value. One that is dropped unsettled gives its message back: a lost
//!   receipt would otherwise hold it, and a place of the prefetch window, until the channel ends.
//! - [`Receipt::ack`] tells the broker at once, [`Receipt::ack_soon`] together with others ([`acks`]).
//! - [`Subscription::cancel`] stops the intake and keeps the channel, so that what is held can still be settled.
//!   What the broker had sent before comes out of [`Subscription::next`], then `None`.
//! - Nothing waits for the broker for ever: lapin may leave a request unanswered that met the end of its connection.
//!   Whatever then was done all the same (a subscription, an ack) ends with its channel, or was wanted.
//! - A stream knows no way back: `give_back` on a message of a stream acks it (a nack would end the whole
//!   connection).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

use super::acks::{self, Teller};
use super::message::header;
use super::{Broker, Message};

/// How long a request may wait for the broker.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a queue or stream is consumed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Messages held at the same time, at least 1.
    pub prefetch: u16,
    /// Start of the consumer's name in RabbitMQ's tools.
    pub tag: String,
    /// For a stream: where to begin.
    pub from: Option<Offset>,
}

/// Where to begin in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// With the oldest message that is kept.
    First,
    /// With the last chunk of messages.
    Last,
    /// With what comes from now on.
    Next,
    /// With this message.
    At(u64),
    /// With the chunk of this time (to the second).
    Since(Timestamp),
}

/// Subscribes to a queue on a channel of its own. Waits for a connection.
///
/// # Errors
/// What the broker said: a queue that is not there, no permission, a connection that broke.
pub async fn subscribe(broker: &Broker, queue: &str, options: Options) -> lapin::Result<Subscription> {
    let connection = broker.connection().await;
    timeout(ANSWER_WITHIN, subscribe_on(&connection, queue, options)).await.unwrap_or_else(|_| Err(no_answer()))
}

async fn subscribe_on(connection: &Connection, queue: &str, options: Options) -> lapin::Result<Subscription> {
    let channel = connection.create_channel().await?;
    let prefetch = options.prefetch.max(1);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    if let Some(offset) = options.from {
        arguments.insert(ShortString::from("x-stream-offset"), offset.into_value());
    }
    let tag = format!("{:.60}.{}", options.tag, uuid::Uuid::new_v4().simple());
    let consumer = consume(&channel, queue, &tag, arguments).await?;
    let (channel, stream) = (Arc::new(channel), options.from.is_some());
    let (teller, acks) = Teller::start(&channel, prefetch);
    Ok(Subscription { channel, consumer, full: Vec::new(), prefetch, tag, stream, teller, acks })
}

async fn consume(channel: &Channel, queue: &str, tag: &str, arguments: FieldTable) -> lapin::Result<Consumer> {
    // A queue's name was declared by us or typed by an operator: 255 bytes are the protocol's limit.
    let queue = ShortString::try_new(queue).map_err(|error| std::io::Error::other(error.to_string()))?;
    channel.basic_consume(queue, tag.into(), BasicConsumeOptions::default(), arguments).await
}

/// What comes from one queue.
#[derive(Debug)]
pub struct Subscription {
    channel: Arc<Channel>,
    consumer: Consumer,
    /// Consumers whose prefetch is used up by what is held.
    full: Vec<Consumer>,
    prefetch: u16,
    tag: String,
    stream: bool,
    teller: Teller,
    acks: acks::Tracker,
}

impl Subscription {
    /// The next message; `None` when the channel is gone or the subscription was cancelled, by us or by the
    /// broker (the queue was deleted). May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Incoming> {
        match self.consumer.next().await? {
            Ok(delivery) => Some(Incoming::new(delivery, &self.channel, &self.acks, self.stream)),
            Err(error) => {
                tracing::debug!(%error, queue = %self.consumer.queue(), "the subscription ended");
                None
            }
        }
    }

    /// Makes room for as many messages as the prefetch again, beside all that are held. Only for a subscription
    /// whose prefetch is used up, since messages come from the new room alone.
    ///
    /// # Errors
    /// The channel is gone.
    pub async fn widen(&mut self) -> lapin::Result<()> {
        self.acks.tell_each_alone();
        // Names in order: at the end of the channel a quorum queue gives back consumer by consumer in this order.
        let tag = format!("{}.{:05}", self.tag, self.full.len() + 1);
        let queue = self.consumer.queue();
        let wider = consume(&self.channel, queue.as_str(), &tag, FieldTable::default()).await?;
        self.full.push(std::mem::replace(&mut self.consumer, wider));
        Ok(())
    }

    /// Stops the intake. Messages that are held, and those that `next` still gives, can be settled. A quorum queue
    /// answers this itself, so that all acks are carried out by then.
    pub async fn cancel(&self) {
        // On a channel that is gone there is nothing left to cancel.
        let cancelling = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        let _ = timeout(ANSWER_WITHIN, cancelling).await;
    }

    /// Waits until the broker has carried out what was asked on this channel, and has sent what it was about to send.
    ///
    /// # Errors
    /// The channel is gone.
    pub async fn catch_up(&self) -> lapin::Result<()> {
        // Harmless, and answered in its turn: it counts for later consumers, which get the same.
        let asking = self.channel.basic_qos(self.prefetch, BasicQosOptions::default());
        timeout(ANSWER_WITHIN, asking).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Ends the subscription and gives back, in their order and before another consumer gets any, all messages
    /// that were not settled.
    pub async fn close(self) {
        self.teller.close().await;
        // Not by a nack of all at once: a quorum queue puts the messages of one nack back in any order (3.10).
        let _ = timeout(ANSWER_WITHIN, self.channel.close(200, "done".into())).await;
    }

    /// Whether the channel lives.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }
}

/// A message that came, and the duty to settle it.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// The exchange that it was published to; empty for the default one.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Whether it was delivered before, to us or to another.
    pub redelivered: bool,
    /// The duty to settle it.
    pub receipt: Receipt,
}

impl Incoming {
    fn new(mut delivery: Delivery, channel: &Arc<Channel>, acks: &acks::Tracker, stream: bool) -> Self {
        let body = std::mem::take(&mut delivery.data);
        acks.hold(delivery.delivery_tag);
        Self {
            message: Message::from_parts(body, std::mem::take(&mut delivery.properties)),
            exchange: std::mem::take(&mut delivery.exchange).into(),
            routing_key: std::mem::take(&mut delivery.routing_key).into(),
            redelivered: delivery.redelivered,
            receipt: Receipt { held: Some(delivery), channel: Arc::clone(channel), acks: acks.clone(), stream },
        }
    }

    /// How often the broker says that it came back; what counts differs between versions of RabbitMQ.
    #[must_use]
    pub fn delivery_count(&self) -> Option<u64> {
        self.message.integer(header::DELIVERY_COUNT)
    }

    /// Done with it: the broker forgets it.
    ///
    /// # Errors
    /// The channel is gone; the message will come again.
    pub async fn ack(self) -> Result<(), SettleError> {
        self.receipt.ack().await
    }

    /// Back to its queue.
    ///
    /// # Errors
    /// The channel is gone; the message will come again.
    pub async fn give_back(self) -> Result<(), SettleError> {
        self.receipt.give_back().await
    }
}

/// A message could not be settled: its channel is gone. The broker delivers it again.
#[derive(Debug, thiserror::Error)]
#[error("the channel of the message is gone; it will be delivered again")]
pub struct SettleError(#[source] Option<lapin::Error>);

/// The duty to settle one message.
#[derive(Debug)]
pub struct Receipt {
    /// What is left of the delivery settles it (lapin gives its handle no name).
    held: Option<Delivery>,
    /// Keeps the channel open while its messages are held.
    channel: Arc<Channel>,
    acks: acks::Tracker,
    stream: bool,
}

impl Receipt {
    /// See [`Incoming::ack`].
    ///
    /// # Errors
    /// The channel is gone; the message will come again.
    pub async fn ack(mut self) -> Result<(), SettleError> {
        match self.held.take() {
            Some(held) => {
                check(held.ack(BasicAckOptions::default())).await?;
                self.acks.settled(held.delivery_tag);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Done with it: the broker is told within some milliseconds, together with others. Where the channel is gone by
    /// then, the message comes again.
    pub fn ack_soon(mut self) {
        if let Some(held) = self.held.take() {
            self.acks.done(held.delivery_tag);
        }
    }

    /// See [`Incoming::give_back`].
    ///
    /// # Errors
    /// The channel is gone; the message will come again.
    pub async fn give_back(mut self) -> Result<(), SettleError> {
        match self.held.take() {
            Some(held) => give_back(&held, &self.acks, self.stream).await,
            None => Ok(()),
        }
    }

    /// Leaves the message to the end of its subscription, or of the process: then the broker has it back, in its
    /// place. For those who look through a queue.
    pub fn leave(mut self) {
        self.held = None;
    }

    /// Whether the channel lives, so that settling can succeed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.usable())
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let Some(held) = self.held.take().filter(|held| held.usable()) else { return };
        let (channel, acks, stream) = (Arc::clone(&self.channel), self.acks.clone(), self.stream);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // A channel that is gone gives everything back by itself.
                let _ = give_back(&held, &acks, stream).await;
                drop(channel);
            });
        }
    }
}

async fn give_back(held: &Delivery, acks: &acks::Tracker, stream: bool) -> Result<(), SettleError> {
    if stream {
        check(held.ack(BasicAckOptions::default())).await?;
    } else {
        // lapin's default does not requeue.
        check(held.nack(BasicNackOptions { multiple: false, requeue: true })).await?;
    }
    acks.settled(held.delivery_tag);
    Ok(())
}

async fn check(settling: impl Future<Output = lapin::Result<bool>>) -> Result<(), SettleError> {
    match timeout(ANSWER_WITHIN, settling).await.unwrap_or_else(|_| Err(no_answer())) {
        Ok(true) => Ok(()),
        Ok(false) => Err(SettleError(None)),
        Err(error) => Err(SettleError(Some(error))),
    }
}

fn no_answer() -> lapin::Error {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

impl Offset {
    fn into_value(self) -> AMQPValue {
        match self {
            Self::First => AMQPValue::LongString(LongString::from("first")),
            Self::Last => AMQPValue::LongString(LongString::from("last")),
            Self::Next => AMQPValue::LongString(LongString::from("next")),
            Self::At(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
            Self::Since(time) => AMQPValue::Timestamp(u64::try_from(time.as_second()).unwrap_or(0)),
        }
    }
}
