//! Counts of what the sandbox met, for checks such as "no unconditional write" or "requests per job".

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::faults::Kind;

/// The counts since the start. Requests to the control interface are not among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Requests by `METHOD status`; the status is `reset`, `hang` or `gone` where the request had no answer.
    pub requests: BTreeMap<String, u64>,
    /// Reads that were asked for, served or not.
    pub reads: u64,
    /// Writes that were asked for, applied or not.
    pub writes: u64,
    /// Token requests.
    pub token_requests: u64,
    /// Writes of clients that were applied.
    pub writes_applied: u64,
    /// Variables in these writes.
    pub keys_written: u64,
    /// Applied writes that had no `If-Match`.
    pub unconditional_writes: u64,
    /// Writes that met another version.
    pub conflicts: u64,
    /// Requests over the rate limit (faults not counted).
    pub rate_limited: u64,
    /// Requests that were refused for their credentials (faults not counted).
    pub unauthenticated: u64,
    /// Faults that were injected, by name.
    pub faults: BTreeMap<String, u64>,
    /// Writes of the second writer.
    pub second_writer_writes: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Most connections open at once.
    pub connections_most: u64,
    /// Requests being worked on now.
    pub in_flight: u64,
    /// Most requests being worked on at once.
    pub in_flight_most: u64,
    /// Writes that arrived while another write on the same conversation was being worked on.
    pub overlapping_writes: u64,
    /// Most requests within one second of the clock, tokens not counted.
    pub requests_per_second_most: u64,
    /// Entries that the history dropped because of its bounds.
    pub history_dropped: u64,
    #[serde(skip)]
    second: (u64, u64),
}

/// The counts, shared.
#[derive(Debug, Default)]
pub(super) struct Stats {
    counts: Mutex<Counts>,
}

impl Stats {
    /// Changes the counts.
    pub fn add(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The counts as they are.
    pub fn get(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a fault that struck.
    pub fn fault(&self, kind: Kind) {
        self.add(|counts| match counts.faults.get_mut(kind.name()) {
            Some(count) => *count += 1,
            None => drop(counts.faults.insert(kind.name().into(), 1)),
        });
    }
}

impl Counts {
    /// A request that spends the rate.
    pub(super) fn spent(&mut self, second: u64) {
        let (of, so_far) = self.second;
        self.second = if of == second { (of, so_far + 1) } else { (second, 1) };
        self.requests_per_second_most = self.requests_per_second_most.max(self.second.1);
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
