//! Looking through a queue of dead letters without changing it.
//!
//! `basic.get` is no way: it is refused on some queues, and returns what it gave to the head, so that it never
//! gets past the first message. So the queue is consumed, in windows: a window holds 5,000 unsettled messages;
//! once it is full the next one is opened beside it. At the end, even of a process that is killed, the broker has
//! everything back in its order: all windows are consumers of one channel, and a quorum queue sorts what comes
//! back from a channel that ends (up to 32 windows; beyond, windows can swap places).
//!
//! Odd cases:
//! - Every look raises the broker's delivery count; these queues have a limit of a million.
//! - What another consumer holds meanwhile (another command, an operator's own tool) cannot be seen; it is said.
//! - A broker with much to do says that a queue is empty where it could not ask the queue in time, and has given back
//!   only a part of what the command before this one held. Such counts are not believed (`count`).
//! - A window that is held for more than 30 minutes is cut off by the broker. Nothing is lost: run again.

use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::Connection;
use tokio::time::Instant;

use crate::broker::topology::{Depth, depth};
use crate::broker::{Broker, Incoming, Options, Receipt, State, Subscription, subscribe};

/// Messages that a window holds.
const WINDOW: u16 = 5_000;
/// How long a window may be quiet before the queue is asked whether anything is left.
const QUIET: Duration = Duration::from_millis(300);
/// How long the command before this one, or one that was killed, may need until the broker has its messages back.
const LEAVING: Duration = Duration::from_secs(10);
/// After this time the broker stops to wait for the queue, and says that it has no message and no consumer.
const UNANSWERED: Duration = Duration::from_millis(250);
/// Between two counts that must be the same.
const BETWEEN_COUNTS: Duration = Duration::from_millis(100);
/// How long a queue that says it has messages may deliver none.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// How long the reason of a lost connection is waited for.
const SAY_WHY: Duration = Duration::from_secs(1);

/// A look through one queue.
pub(super) struct Browser<'a> {
    broker: &'a Broker,
    queue: String,
    subscription: Subscription,
    /// Messages that stay in the newest window.
    left: u16,
    seen: u32,
    /// Messages that waited at the start: later ones are not looked at.
    pub(super) expected: u32,
    /// Consumers that were there before.
    pub(super) others: u32,
}

impl<'a> Browser<'a> {
    /// Starts to look.
    pub(super) async fn open(broker: &'a Broker, queue: String) -> anyhow::Result<Self> {
        let connection = broker.connection().await;
        let patient_until = Instant::now() + LEAVING;
        let mut before = None;
        let depth = loop {
            let Count { depth, is_certain } = count(&connection, &queue).await?;
            let Some(depth) = depth else {
                bail!("there is no queue {queue:?} in RabbitMQ; `context-injector topology apply` declares it");
            };
            let is_settled = is_certain && depth.consumers == 0 && before == Some(depth);
            if is_settled || Instant::now() >= patient_until {
                break depth;
            }
            before = Some(depth);
            tokio::time::sleep(BETWEEN_COUNTS).await;
        };
        let (expected, others) = (depth.ready, depth.consumers);
        let options = Options { prefetch: WINDOW, tag: "dead-letters".to_owned(), from: None };
        let subscription = subscribe(broker, &queue, options).await;
        let subscription = subscription.with_context(|| format!("cannot consume queue {queue:?}"))?;
        Ok(Self { broker, queue, subscription, left: 0, seen: 0, expected, others })
    }

    /// The next message; `None` once all that waited at the start were seen.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Incoming>> {
        let mut silence = Duration::ZERO;
        while self.seen < self.expected {
            if self.left == WINDOW {
                if self.subscription.widen().await.is_err() {
                    bail!("{}", self.why_it_ended().await);
                }
                self.left = 0;
            }
            match tokio::time::timeout(QUIET, self.subscription.next()).await {
                Ok(Some(incoming)) => {
                    self.seen += 1;
                    return Ok(Some(incoming));
                }
                Ok(None) => bail!("{}", self.why_it_ended().await),
                Err(_quiet) if self.is_drained().await? => break,
                Err(_quiet) => silence += QUIET,
            }
            if silence >= SILENCE_LIMIT {
                bail!("queue {:?} has messages but delivers none; is RabbitMQ short of memory or disk?", self.queue);
            }
        }
        Ok(None)
    }

    /// Leaves a message where it is.
    pub(super) fn leave(&mut self, receipt: Receipt) {
        receipt.leave();
        self.left += 1;
    }

    /// Notes that a message is held until the end, beside those that are left.
    pub(super) fn hold(&mut self) {
        self.left += 1;
    }

    /// Whether the window delivers no more before some of these that were taken from it are settled.
    pub(super) fn is_full_with(&self, taken: usize) -> bool {
        usize::from(self.left) + taken >= usize::from(WINDOW)
    }

    /// Gives back all that was left, in its order.
    pub(super) async fn close(self) {
        self.subscription.close().await;
    }

    async fn why_it_ended(&self) -> String {
        let mut state = self.broker.state();
        // The connection is known to be gone a moment after its subscription.
        let gone = state.wait_for(|state| matches!(state, State::Connecting { .. }));
        let why = match tokio::time::timeout(SAY_WHY, gone).await.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Connecting { why })) => why,
            _ => format!("RabbitMQ ended the look into queue {:?}", self.queue),
        };
        format!("{why}. No message is lost by it; run the command again to go on")
    }

    async fn is_drained(&self) -> anyhow::Result<bool> {
        let connection = self.broker.connection().await;
        let Count { depth, is_certain } = count(&connection, &self.queue).await?;
        Ok(is_certain && depth.is_none_or(|depth| depth.ready == 0))
    }
}

/// What the broker says of a queue.
struct Count {
    depth: Option<Depth>,
    /// Whether the queue itself was asked.
    is_certain: bool,
}

async fn count(connection: &Connection, queue: &str) -> anyhow::Result<Count> {
    let asked = Instant::now();
    let depth = depth(connection, queue).await.with_context(|| format!("cannot look at queue {queue:?}"))?;
    Ok(Count { depth, is_certain: asked.elapsed() < UNANSWERED })
}
