//! Publishing with a confirm.
//!
//! One task owns one channel in confirm mode and everything that is published goes through it, pipelined: many
//! callers wait for their confirms at the same time. The task also is what makes lapin's bookkeeping safe: the
//! number of a message and its frames are taken in two steps, so two threads that publish on one channel could
//! swap their confirms.
//!
//! Rules:
//! - [`Publisher::publish`] succeeds on the broker's confirm and on nothing else.
//! - Without a connection a message waits 5 s for one, then fails. A message that was under way when the channel
//!   broke fails at once; whether it arrived is not known. Callers publish again: at least once.
//! - Messages are published in the order of the calls of [`Publisher::hand_over`], which does not wait; the futures
//!   of [`Publisher::publish`] hand over when they are first polled. A queue with a limit would let some overtake
//!   others, so its bound is that of its callers: each waits for its confirm.
//! - At most 4,096 messages are under way; more wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::returns::{Answer, Returned, Returns, Sent};
use super::{Broker, Message};

mod returns;

/// Messages under way on the channel.
const IN_FLIGHT_LIMIT: usize = 4_096;
/// How long a message waits for a connection.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// How often a channel with messages under way is looked at: lapin may leave the confirm of a message unanswered that
/// met the end of its channel, and everybody may be waiting for just that.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the messages under way on a broken channel have to learn of it.
const BROKEN_WAIT: Duration = Duration::from_secs(1);
/// Delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Whether a message that no queue takes is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mandatory {
    /// It is.
    Yes,
    /// It is gone, and that is fine: nobody subscribed.
    No,
}

/// Why a message is not known to be safe.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue takes it.
    #[error("no queue takes messages to exchange {exchange:?} with routing key {routing_key:?} ({text})")]
    Unroutable {
        /// Where it was published to.
        exchange: String,
        /// With which key.
        routing_key: String,
        /// The broker's words.
        text: String,
    },
    /// The broker could not store it.
    #[error("the broker refused the message (nack)")]
    Refused,
    /// The channel ended before the confirm came; it may have arrived.
    #[error("the channel ended before the confirm of the message came")]
    Broken(#[source] Option<lapin::Error>),
    /// There was no connection for 5 s.
    #[error("no connection to RabbitMQ within {} s", CONNECTION_WAIT.as_secs())]
    Unavailable,
    /// AMQP cannot carry this name.
    #[error("a name of exchange or routing key is longer than 255 bytes")]
    NameTooLong,
}

impl PublishError {
    /// Whether publishing once more, later, can help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused | Self::Broken(_) | Self::Unavailable => true,
            Self::Unroutable { .. } | Self::NameTooLong => false,
        }
    }
}

/// Publishes with confirms. Clones share the channel.
#[derive(Debug, Clone)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<Request>,
}

impl Publisher {
    /// Opens a channel when the first message comes, and again whenever it broke. The task ends with the last
    /// clone.
    #[must_use]
    pub fn new(broker: &Broker) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        tokio::spawn(serve(broker.clone(), receiver));
        Self { requests }
    }

    /// Publishes a message, persistent, and waits for the broker's confirm. The body is not copied on our side.
    ///
    /// # Errors
    /// [`PublishError`]. When the future is dropped the message may be published all the same.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
        mandatory: Mandatory,
    ) -> Result<(), PublishError> {
        self.hand_over(exchange, routing_key, message, mandatory).wait().await
    }

    /// Takes a message at once, so that it comes before every later one; its confirm is waited for apart.
    #[must_use]
    pub fn hand_over(&self, exchange: &str, routing_key: &str, message: &Message, mandatory: Mandatory) -> Confirm {
        let name = |text: &str| ShortString::try_new(text).map_err(|_| PublishError::NameTooLong);
        let handed_over = || {
            let (reply, answer) = oneshot::channel();
            let request = Request {
                exchange: name(exchange)?,
                routing_key: name(routing_key)?,
                properties: message.properties().clone().with_delivery_mode(PERSISTENT),
                body: message.body.clone(),
                mandatory: mandatory == Mandatory::Yes,
                connect_by: Instant::now() + CONNECTION_WAIT,
                reply,
            };
            self.requests.send(request).map_err(|_| PublishError::Broken(None))?;
            Ok(answer)
        };
        Confirm(handed_over())
    }
}

/// The confirm of a message that was handed over.
#[derive(Debug)]
pub struct Confirm(Result<oneshot::Receiver<Result<(), PublishError>>, PublishError>);

impl Confirm {
    /// Waits for the broker's confirm.
    ///
    /// # Errors
    /// [`PublishError`]. When the future is dropped the message may be published all the same.
    pub async fn wait(self) -> Result<(), PublishError> {
        self.0?.await.unwrap_or(Err(PublishError::Broken(None)))
    }
}

#[derive(Debug)]
struct Request {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    mandatory: bool,
    /// Without a connection by then it fails; counted from its own start, so that a queue of them fails together.
    connect_by: Instant,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<(), PublishError>>;
type Done = (Sent<Reply>, Result<Confirmation, lapin::Error>);

async fn serve(broker: Broker, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut waiting = None;
    loop {
        let request = match waiting.take() {
            Some(request) => request,
            None => match requests.recv().await {
                Some(request) => request,
                None => return,
            },
        };
        match tokio::time::timeout_at(request.connect_by, open(&broker)).await {
            Ok(channel) => waiting = Lane::new(channel).run(request, &mut requests).await,
            Err(_elapsed) => {
                // Nobody listens any more where the caller gave up.
                let _ = request.reply.send(Err(PublishError::Unavailable));
            }
        }
    }
}

/// A channel in confirm mode, however often the connection breaks meanwhile.
async fn open(broker: &Broker) -> Arc<Channel> {
    loop {
        let connection = broker.connection().await;
        if let Ok(channel) = connection.create_channel().await
            && channel.confirm_select(ConfirmSelectOptions::default()).await.is_ok()
        {
            return Arc::new(channel);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One channel and what is under way on it.
struct Lane {
    channel: Arc<Channel>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    returns: Returns<Reply>,
}

impl Lane {
    fn new(channel: Arc<Channel>) -> Self {
        Self { channel, in_flight: FuturesUnordered::new(), returns: Returns::default() }
    }

    /// Serves until the channel is broken; gives back the request that it could not send any more.
    async fn run(mut self, first: Request, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Request> {
        let mut next = Some(first);
        let mut open = true;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            if let Some(request) = next.take() {
                if !self.channel.status().connected() {
                    self.finish().await;
                    return Some(request);
                }
                self.send(request);
            }
            tokio::select! {
                biased;
                Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => self.collect(done),
                request = requests.recv(), if open && self.in_flight.len() < IN_FLIGHT_LIMIT => match request {
                    Some(request) => next = Some(request),
                    None => open = false,
                },
                _ = looks.tick(), if !self.in_flight.is_empty() => if !self.channel.status().connected() {
                    self.finish().await;
                    return None;
                },
                else => return None,
            }
        }
    }

    fn send(&self, request: Request) {
        let channel = Arc::clone(&self.channel);
        let mut sending = async move {
            let Request { exchange, routing_key, properties, body, mandatory, reply, .. } = request;
            let options = BasicPublishOptions { mandatory, immediate: false };
            let key = mandatory.then(|| Returned {
                exchange: exchange.to_string(),
                routing_key: routing_key.to_string(),
                message_id: properties.message_id().as_ref().map(ShortString::to_string),
                body: body.clone(),
            });
            let published = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
            let confirmed = match published {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (Sent { key, ticket: reply }, confirmed)
        }
        .boxed();
        // The first poll takes the number and queues the frames: here, in the order of the requests.
        match (&mut sending).now_or_never() {
            Some(done) => self.in_flight.push(std::future::ready(done).boxed()),
            None => self.in_flight.push(sending),
        }
    }

    /// Settles all confirms that are there. A return can hang on another message's confirm, so they are judged
    /// together (see [`returns`]).
    fn collect(&mut self, first: Done) {
        let mut batch = vec![first];
        let mut dealt_out = false;
        loop {
            let before = batch.len();
            while let Some(Some(done)) = self.in_flight.next().now_or_never() {
                batch.push(done);
            }
            // lapin deals an acknowledgement of many out one by one, under a lock that this call takes: after it,
            // all that belong together are there.
            let _ = self.channel.wait_for_confirms().now_or_never();
            if batch.len() == before && dealt_out {
                break;
            }
            dealt_out = true;
        }
        let mut answers = Vec::with_capacity(batch.len());
        for (sent, confirmed) in batch {
            match confirmed {
                Ok(Confirmation::Ack(carried)) => answers.push((sent, Answer::Stored, carried.map(returned))),
                Ok(Confirmation::Nack(carried)) => answers.push((sent, Answer::Refused, carried.map(returned))),
                Ok(Confirmation::NotRequested) => tell(sent.ticket, Err(PublishError::Broken(None))),
                Err(error) => tell(sent.ticket, Err(PublishError::Broken(Some(error)))),
            }
        }
        for (sent, answer) in self.returns.judge(answers, self.in_flight.is_empty()) {
            tell(
                sent.ticket,
                match answer {
                    Answer::Stored => Ok(()),
                    Answer::Refused => Err(PublishError::Refused),
                    Answer::Unroutable => {
                        let (exchange, routing_key) =
                            sent.key.map(|key| (key.exchange, key.routing_key)).unwrap_or_default();
                        Err(PublishError::Unroutable { exchange, routing_key, text: "NO_ROUTE".to_owned() })
                    }
                },
            );
        }
    }

    /// Lets what is under way on a broken channel learn of it.
    async fn finish(&mut self) {
        let draining = async {
            while let Some(done) = self.in_flight.next().await {
                self.collect(done);
            }
        };
        // Whoever is left then is answered by the drop of its ticket.
        let _ = tokio::time::timeout(BROKEN_WAIT, draining).await;
    }
}

fn returned(message: lapin::message::BasicReturnMessage) -> Returned {
    let delivery = message.delivery;
    Returned {
        exchange: delivery.exchange.into(),
        routing_key: delivery.routing_key.into(),
        message_id: delivery.properties.message_id().as_ref().map(ShortString::to_string),
        body: delivery.data.into(),
    }
}

fn tell(reply: Reply, answer: Result<(), PublishError>) {
    // The caller may have stopped waiting.
    let _ = reply.send(answer);
}
