//! The event that holds the queue of an ordered endpoint: how often it was tried, and when it is due again.
//!
//! It lies at the head of its queue in the broker, untouched, so nothing can be written on it; this is what must be
//! known beside it. Redis remembers it across restarts. Without Redis the next process tries the event at once and
//! begins its schedule anew, in the same place of the queue.

use std::time::{Duration, Instant};

/// An event that failed and keeps its place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// Its id.
    pub event: String,
    /// Tries so far.
    pub tries: u32,
    /// When the next one is due, Unix time in milliseconds.
    pub until_ms: i64,
    /// The whole wait for it, in milliseconds.
    pub wait_ms: i64,
}

impl Held {
    /// An event that failed at `now_ms` (Unix time) and waits so long.
    #[must_use]
    pub fn new(event: &str, tries: u32, wait: Duration, now_ms: i64) -> Self {
        let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self { event: event.to_owned(), tries, until_ms: now_ms.saturating_add(wait_ms), wait_ms }
    }

    /// When the next try is due. A clock that was wrong lengthens no wait.
    #[must_use]
    pub fn until(&self, now: Instant, now_ms: i64) -> Instant {
        let left = self.until_ms.saturating_sub(now_ms).min(self.wait_ms);
        now + Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_wait_is_waited_and_never_more_than_the_whole() {
        let now = Instant::now();
        let held = Held::new("4f2a", 1, Duration::from_secs(60), 1_000);
        for (now_ms, left_ms) in
            [(1_000, 60_000), (60_999, 1), (61_000, 0), (i64::MAX, 0), (0, 60_000), (i64::MIN, 60_000)]
        {
            assert_eq!(held.until(now, now_ms), now + Duration::from_millis(left_ms), "restored at {now_ms}");
        }
    }
}
