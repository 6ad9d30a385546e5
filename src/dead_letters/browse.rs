//! Looking through a queue of dead letters without changing it.
//!
//! `basic.get` is no way: it is refused on some queues, and returns what it gave to the head, so that it never
//! gets past the first message. So the queue is consumed, in windows: a window holds 5,000 unsettled messages;
//! once it is full the next one is opened beside it. At the end, even of a process that is killed, the broker has
//! everything back in its order: all windows are consumers of one channel, and a quorum queue sorts what comes
//! back from a channel that ends (up to 32 windows; beyond, windows can swap places).
//!
//! When is everything seen? The broker's counts cannot be believed just like that: one with much to do says that a
//! queue is empty where it could not ask the queue in time, and a message that is on its way to us is in no count.
//! So the look begins first, and the queue is counted then: an answer that does not know our own consumer is not the
//! queue's. While messages wait beside us, our window is full of others, so both together are what was there; when
//! none waits, all of them are in our window. A look that did not see so many, or had others beside it, is not
//! [`whole`](Looked::is_whole), and no command that changes something calls that a success.
//!
//! Odd cases:
//! - What a queue got back it keeps in the order in which it got it back. So a look goes through the whole queue, else
//!   the first ones would come behind the others. One that is killed in the middle does that to its letters.
//! - Every look raises the broker's delivery count; these queues have a limit of a million.
//! - What another consumer holds meanwhile (another command, an operator's own tool, a killed process whose end the
//!   broker has not noticed) cannot be seen; it is waited for, then said.
//! - RabbitMQ keeps acks back while a quorum queue has much to do, and forgets those when the channel ends (measured:
//!   up to 436 of 3,000): the messages come back although their acks were sent. So the end first asks for something
//!   that the queue itself answers, after which all acks are carried out; and those who took letters away look again
//!   ([`Taken`](super::taken::Taken)).
//! - A window that is held for more than 30 minutes is cut off by the broker. Nothing is lost: run again.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use crate::broker::topology::{Depth, depth};
use crate::broker::{Broker, Incoming, Options, Receipt, State, Subscription, subscribe};

/// Messages that a window holds.
const WINDOW: u16 = 5_000;
/// How long a window may be quiet before the queue is asked whether anything is left.
const QUIET: Duration = Duration::from_millis(300);
/// How long the command before this one, or one that was killed, may need until the broker has its messages back.
const LEAVING: Duration = Duration::from_secs(10);
/// How long a broker with much to do may need until the queue itself says how many messages it has.
const COUNTING: Duration = Duration::from_secs(60);
/// After this time the broker stops to wait for the queue, and says that it has no message and no consumer.
const UNANSWERED: Duration = Duration::from_millis(250);
/// Between two counts.
const BETWEEN_COUNTS: Duration = Duration::from_millis(100);
/// How long nothing may come from an empty queue before what is missing counts as taken by others.
const TAKEN_AFTER: Duration = Duration::from_secs(3);
/// How long a queue that says it has messages may deliver none.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// How long the reason of a lost connection is waited for.
const SAY_WHY: Duration = Duration::from_secs(1);

/// A look through one queue.
pub(super) struct Browser<'a> {
    broker: &'a Broker,
    queue: String,
    subscription: Subscription,
    /// What came while the queue was counted.
    first: Counted,
    windows: u32,
    /// Messages that stay in the newest window.
    left: u16,
    seen: u32,
    /// Messages that were there at the start: later ones are not looked at.
    pub(super) expected: u32,
    others: u32,
}

/// Messages that came while they were counted; left where they are, like those that did not come yet.
#[derive(Default)]
struct Counted(VecDeque<Incoming>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|incoming| incoming.receipt.leave());
    }
}

/// How a look ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Looked {
    /// Messages that were there at the start and never came.
    missing: u32,
    /// Consumers that were there beside us, at most.
    others: u32,
}

impl Looked {
    /// What two looks could not see.
    pub(super) fn and(self, later: Self) -> Self {
        Self { missing: self.missing + later.missing, others: self.others.max(later.others) }
    }

    /// Whether everything was seen that was there at the start.
    pub(super) fn is_whole(self) -> bool {
        self.missing == 0 && self.others == 0
    }

    /// Whether a command that was to take letters may call itself a success; says why not. Those that were `named`
    /// were found or are told; of others nobody knows how many there are.
    pub(super) fn suffices(self, named: bool) -> bool {
        self.note();
        let enough = named || self.is_whole();
        if !enough {
            eprintln!("error: not every letter could be seen; run it again to be sure that none is left");
        }
        enough
    }

    /// Says on standard error what could not be seen.
    pub(super) fn note(self) {
        if self.missing > 0 {
            eprintln!(
                "note: {} letter(s) that were here at the start were taken by somebody else meanwhile",
                self.missing
            );
        }
        if self.others > 0 {
            eprintln!(
                "note: {} other consumer(s) of this queue; what they hold at the moment is not seen here",
                self.others
            );
        }
    }
}

impl<'a> Browser<'a> {
    /// Starts to look, once nobody else does, or after 10 s beside them.
    pub(super) async fn open(broker: &'a Broker, queue: String) -> anyhow::Result<Self> {
        wait_until_gone(broker, &queue, 0, Instant::now() + LEAVING).await?;
        let options = Options { prefetch: WINDOW, tag: "dead-letters".to_owned(), from: None };
        let subscription = subscribe(broker, &queue, options).await;
        let subscription = subscription.with_context(|| format!("cannot consume queue {queue:?}"))?;
        let mut browser = Self {
            broker,
            queue,
            subscription,
            first: Counted::default(),
            windows: 1,
            left: 0,
            seen: 0,
            expected: 0,
            others: 0,
        };
        browser.count().await?;
        Ok(browser)
    }

    /// Finds out how many messages are there.
    async fn count(&mut self) -> anyhow::Result<()> {
        let patient_until = Instant::now() + COUNTING;
        let ready = loop {
            if let Some(ready) = self.ready().await? {
                break ready;
            }
            if Instant::now() >= patient_until {
                bail!("RabbitMQ has too much to do to say how many messages queue {:?} has; run it again", self.queue);
            }
            tokio::time::sleep(BETWEEN_COUNTS).await;
        };
        if ready > 0 {
            self.expected = ready + u32::from(WINDOW);
            return Ok(());
        }
        // Whatever was sent to us before is here with the answer, or a moment later.
        self.subscription.catch_up().await.with_context(|| format!("cannot look at queue {:?}", self.queue))?;
        // Where new ones come all the time, only what is here already is taken in the end.
        let patient_until = Instant::now() + 10 * QUIET;
        while self.first.0.len() < usize::from(WINDOW) {
            let quiet_until = patient_until.min(Instant::now() + QUIET);
            let Ok(Some(incoming)) = tokio::time::timeout_at(quiet_until, self.subscription.next()).await else {
                break;
            };
            self.first.0.push_back(incoming);
        }
        self.expected = u32::try_from(self.first.0.len()).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Messages that wait, as the queue itself says, and notes the others; `None` where the broker says something else.
    async fn ready(&mut self) -> anyhow::Result<Option<u32>> {
        let connection = self.broker.connection().await;
        let depth = depth(&connection, &self.queue).await;
        let depth = depth.with_context(|| format!("cannot look at queue {:?}", self.queue))?;
        let Some(depth) = depth.filter(|depth| depth.consumers >= self.windows) else {
            if !self.subscription.is_open() {
                bail!("{}", self.why_it_ended().await);
            }
            return Ok(None);
        };
        self.others = self.others.max(depth.consumers - self.windows);
        Ok(Some(depth.ready))
    }

    /// The next message; `None` once all that were there at the start were seen.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Incoming>> {
        if let Some(incoming) = self.first.0.pop_front() {
            self.seen += 1;
            return Ok(Some(incoming));
        }
        let mut silence = Duration::ZERO;
        while self.seen < self.expected {
            if self.left == WINDOW {
                if self.subscription.widen().await.is_err() {
                    bail!("{}", self.why_it_ended().await);
                }
                self.windows += 1;
                self.left = 0;
            }
            match tokio::time::timeout(QUIET, self.subscription.next()).await {
                Ok(Some(incoming)) => {
                    self.seen += 1;
                    return Ok(Some(incoming));
                }
                Ok(None) => bail!("{}", self.why_it_ended().await),
                Err(_quiet) => silence += QUIET,
            }
            if silence >= TAKEN_AFTER && self.ready().await? == Some(0) {
                break;
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

    /// Gives back all that was left, in its order; all acks are carried out before. Everything is back at the end.
    pub(super) async fn close(mut self) -> anyhow::Result<Looked> {
        // Whoever came meanwhile may hold some of what was there at the start.
        self.ready().await?;
        self.subscription.cancel().await;
        self.subscription.close().await;
        // The queue learns of it a moment later; whoever comes after us is to find everything in its place.
        wait_until_gone(self.broker, &self.queue, self.others, Instant::now() + LEAVING).await?;
        Ok(Looked { missing: self.expected - self.seen, others: self.others })
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
}

/// Whether exactly so many messages wait and nobody holds any, without a look. Only a queue itself says more than nought.
pub(super) async fn has(broker: &Broker, queue: &str, number: u32) -> anyhow::Result<bool> {
    let connection = broker.connection().await;
    let depth = depth(&connection, queue).await.with_context(|| format!("cannot look at queue {queue:?}"))?;
    Ok(number > 0 && depth == Some(Depth { ready: number, consumers: 0 }))
}

/// Waits until the queue has no consumer but so many others. Politeness alone depends on it: what is held comes back
/// behind what the next one has got by then, and what the next one has is not seen by the last.
async fn wait_until_gone(broker: &Broker, queue: &str, others: u32, patient_until: Instant) -> anyhow::Result<()> {
    let connection = broker.connection().await;
    let mut was_gone = false;
    loop {
        let asked = Instant::now();
        let depth = depth(&connection, queue).await.with_context(|| format!("cannot look at queue {queue:?}"))?;
        let Some(depth) = depth else {
            bail!("there is no queue {queue:?} in RabbitMQ; `context-injector topology apply` declares it");
        };
        let is_gone = depth.consumers <= others && asked.elapsed() < UNANSWERED;
        if (is_gone && was_gone) || Instant::now() >= patient_until {
            return Ok(());
        }
        was_gone = is_gone;
        tokio::time::sleep(BETWEEN_COUNTS).await;
    }
}
