//! Acknowledgements of one channel, told to the broker together: one frame says that everything up to a message is
//! done (`multiple`, AMQP 0-9-1 §1.8.3.13), which to a quorum queue is one entry of its log instead of many.
//!
//! Rules:
//! - Only what is done is ever covered: an acknowledgement of all up to a message goes no further than to the first
//!   that is still held. One that is given back counts as held until the broker was told.
//! - What is done behind one that is still held waits for it for [`PATIENCE`], and then is told alone, in order. So a
//!   place of the prefetch window is free [`LINGER`] and [`PATIENCE`] late at most, and after a crash what was done
//!   in this time comes again. Where half of the window waits so, nobody waits any longer.
//!
//! [`Acks`] decides and is pure; [`Teller`] is the task that tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::consumer::ANSWER_WITHIN;

/// How long what is done waits for company.
const LINGER: Duration = Duration::from_millis(10);
/// How long what is done waits for one before it that is still held.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is held of a channel, and what is done and not told yet, by delivery tag.
#[derive(Debug, Default)]
struct Acks {
    held: BTreeSet<u64>,
    done: BTreeMap<u64, Instant>,
    /// So many do not wait behind one that is held.
    crowd: usize,
}

/// What the broker is told at one time, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Everything up to this message is done.
    up_to: Option<u64>,
    /// These are done.
    alone: Vec<u64>,
}

impl Acks {
    fn done(&mut self, tag: u64, now: Instant) {
        if self.held.remove(&tag) {
            self.done.insert(tag, now);
        }
    }

    /// What is to be told now; `all`: nobody waits for anybody any more.
    fn take(&mut self, now: Instant, all: bool) -> Told {
        let behind = match self.held.first() {
            Some(first_held) => self.done.split_off(first_held),
            None => BTreeMap::new(),
        };
        let up_to = std::mem::replace(&mut self.done, behind).into_keys().next_back();
        let nobody_waits = all || self.done.len() >= self.crowd;
        let mut alone = Vec::new();
        self.done.retain(|tag, since| {
            let waits = !nobody_waits && now.saturating_duration_since(*since) < PATIENCE;
            if !waits {
                alone.push(*tag);
            }
            waits
        });
        Told { up_to, alone }
    }
}

/// What is held and done of one channel, shared by its receipts and the task that tells.
#[derive(Debug, Clone)]
pub(super) struct Tracker {
    acks: Arc<Mutex<Acks>>,
    /// There is something to tell, or much.
    changed: Arc<Notify>,
    /// So many do not wait for company.
    many: usize,
}

impl Tracker {
    /// A message came.
    pub fn hold(&self, tag: u64) {
        self.acks().held.insert(tag);
    }

    /// A message is done; the broker is told soon.
    pub fn done(&self, tag: u64) {
        let count = {
            let mut acks = self.acks();
            acks.done(tag, Instant::now());
            acks.done.len()
        };
        if count == 1 || count.is_multiple_of(self.many) {
            self.changed.notify_one();
        }
    }

    /// From now on nothing is told together: messages may be on their way here that stand before others.
    pub fn tell_each_alone(&self) {
        // Tags begin at 1: this one is before all, and is held for ever.
        self.hold(0);
    }

    /// The broker was told by itself what becomes of a message.
    pub fn settled(&self, tag: u64) {
        self.acks().held.remove(&tag);
    }

    fn take(&self, all: bool) -> Told {
        self.acks().take(Instant::now(), all)
    }

    /// How many are done and not told yet.
    fn waiting(&self) -> usize {
        self.acks().done.len()
    }

    fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that tells the broker.
#[derive(Debug)]
pub(super) struct Teller {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

impl Teller {
    /// Begins. `prefetch` is the size of the window that must not fill up with what is done.
    pub fn start(channel: &Arc<Channel>, prefetch: u16) -> (Self, Tracker) {
        let window = usize::from(prefetch);
        let acks = Acks { crowd: window.div_ceil(2), ..Acks::default() };
        let tracker =
            Tracker { acks: Arc::new(Mutex::new(acks)), changed: Arc::default(), many: (window / 8).clamp(1, 64) };
        let closing = CancellationToken::new();
        let task = tokio::spawn(tell(Arc::clone(channel), tracker.clone(), closing.clone()));
        (Self { task, closing }, tracker)
    }

    /// Tells what is left, and ends.
    pub async fn close(mut self) {
        self.closing.cancel();
        let _ = timeout(ANSWER_WITHIN, &mut self.task).await;
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell(channel: Arc<Channel>, tracker: Tracker, closing: CancellationToken) {
    let linger = async || {
        tokio::select! {
            () = sleep(LINGER) => {}
            () = tracker.changed.notified() => {}
            () = closing.cancelled() => {}
        }
    };
    while !closing.is_cancelled() {
        tokio::select! {
            () = tracker.changed.notified() => {}
            () = closing.cancelled() => {}
        }
        if tracker.waiting() < tracker.many {
            linger().await;
        }
        send(&channel, tracker.take(false)).await;
        while tracker.waiting() > 0 && !closing.is_cancelled() {
            linger().await;
            send(&channel, tracker.take(false)).await;
        }
    }
    send(&channel, tracker.take(true)).await;
}

/// On a channel that is gone there is nobody to tell: all that is held comes again.
async fn send(channel: &Channel, told: Told) {
    let together = told.up_to.map(|tag| (tag, true));
    for (tag, multiple) in together.into_iter().chain(told.alone.into_iter().map(|tag| (tag, false))) {
        let _ = timeout(ANSWER_WITHIN, channel.basic_ack(tag, BasicAckOptions { multiple })).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(tags: impl IntoIterator<Item = u64>) -> Acks {
        Acks { held: tags.into_iter().collect(), crowd: 64, ..Acks::default() }
    }

    #[test]
    fn what_is_done_is_told_together_up_to_the_first_that_is_held() {
        let (mut acks, now) = (holding(1..=6), Instant::now());
        for tag in [2, 1, 3, 6, 5] {
            acks.done(tag, now);
        }
        assert_eq!(acks.take(now, false), Told { up_to: Some(3), alone: vec![] });
        assert_eq!(acks.take(now + PATIENCE, false), Told { up_to: None, alone: vec![5, 6] });
        acks.done(4, now);
        assert_eq!(acks.take(now, false), Told { up_to: Some(4), alone: vec![] });
        assert_eq!(acks.take(now + PATIENCE, true), Told::default(), "nothing is told twice");
    }

    #[test]
    fn nobody_waits_where_half_of_the_window_would() {
        let (mut acks, now) = (Acks { crowd: 2, ..holding(1..=4) }, Instant::now());
        acks.done(3, now);
        assert_eq!(acks.take(now, false), Told::default());
        acks.done(4, now);
        assert_eq!(acks.take(now, false), Told { up_to: None, alone: vec![3, 4] });
    }

    #[test]
    fn at_the_end_nobody_waits() {
        let (mut acks, now) = (holding(1..=3), Instant::now());
        acks.done(1, now);
        acks.done(3, now);
        assert_eq!(acks.take(now, true), Told { up_to: Some(1), alone: vec![3] });
    }

    #[test]
    fn what_was_settled_otherwise_is_not_done() {
        let (mut acks, now) = (holding(1..=2), Instant::now());
        acks.held.remove(&1);
        acks.done(1, now);
        assert_eq!(acks.take(now, true), Told::default());
    }

    proptest! {
        /// What a broker would take for done is done, is all that is done in the end, and comes in order.
        #[test]
        fn nothing_is_told_that_is_not_done(steps in proptest::collection::vec((0u8..4, 0usize..64, 0u64..15), 1..200)) {
            let (mut acks, mut now) = (holding([]), Instant::now());
            let (mut next, mut held, mut done) = (1, Vec::<u64>::new(), BTreeSet::new());
            // What the broker holds as not acknowledged.
            let mut open = BTreeSet::new();
            let told = |acks: &mut Acks, done: &BTreeSet<u64>, open: &mut BTreeSet<u64>, now, all| {
                let told = acks.take(now, all);
                let covered = open.iter().filter(|tag| told.up_to.is_some_and(|up_to| **tag <= up_to));
                let covered = covered.copied().chain(told.alone.iter().copied()).collect::<Vec<_>>();
                assert!(covered.is_sorted());
                assert!(told.up_to.is_none_or(|up_to| open.contains(&up_to)));
                for tag in covered {
                    assert!(done.contains(&tag), "{tag} is held");
                    assert!(open.remove(&tag), "{tag} was told before");
                }
            };
            for (action, which, pause) in steps {
                now += Duration::from_millis(pause);
                match action {
                    0 => {
                        acks.held.insert(next);
                        held.push(next);
                        open.insert(next);
                        next += 1;
                    }
                    1 if !held.is_empty() => {
                        let tag = held.swap_remove(which % held.len());
                        acks.done(tag, now);
                        done.insert(tag);
                    }
                    2 if !held.is_empty() => {
                        let tag = held.swap_remove(which % held.len());
                        acks.held.remove(&tag);
                        open.remove(&tag);
                    }
                    _ => told(&mut acks, &done, &mut open, now, false),
                }
            }
            told(&mut acks, &done, &mut open, now, true);
            prop_assert!(open.iter().all(|tag| !done.contains(tag)), "what is done was told");
        }
    }
}
