//! Looking through a queue of dead letters without changing it.
//!
//! `basic.get` is no way: it is refused on some queues, and returns what it gave to the head, so that it never
//! gets past the first message. So the queue is consumed, in windows: a window holds 2,000 unsettled messages on
//! a channel of its own; once it is full it takes no more and the next one is opened. What is left at the end is
//! given back window by window, which restores the order.
//!
//! Odd cases:
//! - Every look raises the broker's delivery count; these queues have a limit of a million.
//! - What another consumer holds meanwhile (another command, an operator's own tool) cannot be seen; it is said.
//! - A window that is held for more than 30 minutes is cut off by the broker. Nothing is lost: run again.

use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::broker::topology::depth;
use crate::broker::{Broker, Incoming, Options, Receipt, Subscription, subscribe};

/// Messages that a window holds.
const WINDOW: u16 = 2_000;
/// How long a window may be quiet before the queue is asked whether anything is left.
const QUIET: Duration = Duration::from_millis(300);
/// How long a queue that says it has messages may deliver none.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// A look through one queue.
pub(super) struct Browser<'a> {
    broker: &'a Broker,
    queue: String,
    /// Full ones, and last the one that still takes messages.
    windows: Vec<Subscription>,
    /// Messages that stay in the last window.
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
        let depth = depth(&connection, &queue).await.with_context(|| format!("cannot look at queue {queue:?}"))?;
        let Some(depth) = depth else {
            bail!("there is no queue {queue:?} in RabbitMQ; `context-injector topology apply` declares it");
        };
        let (expected, others) = (depth.ready, depth.consumers);
        Ok(Self { broker, queue, windows: Vec::new(), left: 0, seen: 0, expected, others })
    }

    /// The next message; `None` once all that waited at the start were seen.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Incoming>> {
        let mut silence = Duration::ZERO;
        while self.seen < self.expected {
            self.make_room().await?;
            let Some(window) = self.windows.last_mut() else { break };
            match tokio::time::timeout(QUIET, window.next()).await {
                Ok(Some(incoming)) => {
                    self.seen += 1;
                    return Ok(Some(incoming));
                }
                Ok(None) => bail!(
                    "the connection to RabbitMQ was lost; nothing is lost with it, run the command again to go on"
                ),
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

    /// Gives back all that was left, in its order.
    pub(super) async fn close(self) {
        for window in self.windows {
            window.close().await;
        }
    }

    async fn make_room(&mut self) -> anyhow::Result<()> {
        if !self.windows.is_empty() && self.left < WINDOW {
            return Ok(());
        }
        if let Some(full) = self.windows.last() {
            full.cancel().await;
        }
        let options = Options { prefetch: WINDOW, tag: format!("dead-letters-{:05}", self.windows.len()), from: None };
        let window = subscribe(self.broker, &self.queue, options).await;
        self.windows.push(window.with_context(|| format!("cannot consume queue {:?}", self.queue))?);
        self.left = 0;
        Ok(())
    }

    async fn is_drained(&self) -> anyhow::Result<bool> {
        let connection = self.broker.connection().await;
        let depth = depth(&connection, &self.queue).await.context("cannot look at the queue")?;
        Ok(depth.is_none_or(|depth| depth.ready == 0))
    }
}
