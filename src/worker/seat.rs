//! The worker's seat at the queue of one bot: what its intake, the measuring and the sharing-out tell each other.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, topology};
use crate::metrics as names;

/// How often the queue's length is read.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// One bot's queue, seen from this worker.
#[derive(Debug)]
pub struct Seat {
    /// The bot.
    pub bot: String,
    /// Its queue.
    pub queue: String,
    ready: AtomicU32,
    taken: AtomicBool,
    active: AtomicBool,
    held: AtomicBool,
    leaving: Notify,
}

impl Seat {
    /// A seat that nobody has taken.
    #[must_use]
    pub fn new(bot: String, queue: String) -> Self {
        Self {
            bot,
            queue,
            ready: AtomicU32::new(0),
            taken: AtomicBool::new(false),
            active: AtomicBool::new(false),
            held: AtomicBool::new(false),
            leaving: Notify::new(),
        }
    }

    /// Messages in the queue, when it was measured last.
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether this worker is in the queue's line.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether this worker is the one that the queue's messages come to.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// The worker has subscribed: it is in the line.
    pub fn take(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// A message came, so the worker is the first in the line.
    pub fn activate(&self) {
        self.active.store(true, Ordering::Relaxed);
    }

    /// The subscription is over.
    pub fn leave(&self) {
        self.taken.store(false, Ordering::Relaxed);
        self.active.store(false, Ordering::Relaxed);
    }

    /// Notes whether the bot is held (breaker, pause).
    pub fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether the bot is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Asks the intake to let the next worker have the queue. Without a subscription there is nobody to ask.
    pub fn ask_to_leave(&self) {
        self.leaving.notify_waiters();
    }

    /// Waits until that is asked.
    pub async fn asked_to_leave(&self) {
        self.leaving.notified().await;
    }

    /// Reads the queue's length every ten seconds.
    pub async fn measure(&self, broker: Broker, stop: CancellationToken) {
        let mut clock = tokio::time::interval(MEASURE_EVERY);
        let measuring = async {
            loop {
                clock.tick().await;
                let connection = broker.connection().await;
                // A look that meets the end of its connection may never be answered.
                let looking = tokio::time::timeout(MEASURE_EVERY, topology::depth(&connection, &self.queue));
                if let Ok(Ok(Some(depth))) = looking.await {
                    self.ready.store(depth.ready, Ordering::Relaxed);
                    metrics::gauge!(names::JOBS_WAITING, "bot" => self.bot.clone()).set(f64::from(depth.ready));
                }
            }
        };
        stop.run_until_cancelled(measuring).await;
    }
}
