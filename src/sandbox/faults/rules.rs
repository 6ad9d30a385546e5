//! Rules at work: their counters and draws. A draw is a function of seed, fault and turn; nothing else is random.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use regex::Regex;

use super::{Faults, Kind, Only, Operation};

/// What a rule may ask about a request.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Asked<'a> {
    pub method: &'a str,
    pub operation: Operation,
    pub conversation: Option<&'a str>,
    /// Faults that the request itself asked for.
    pub forced: &'a [Kind],
}

/// The rules with their counters; replaced as a whole.
#[derive(Debug)]
pub(in crate::sandbox) struct Active {
    pub faults: Faults,
    seed: u64,
    rules: BTreeMap<Kind, ActiveRule>,
    turn: AtomicU64,
}

#[derive(Debug)]
struct ActiveRule {
    probability: f64,
    count: Option<u64>,
    only: Only,
    conversation: Option<Regex>,
    asked: AtomicU64,
    struck: AtomicU64,
}

impl Active {
    /// Starts all counters at zero.
    pub fn new(faults: Faults, seed: u64) -> Arc<Active> {
        let mut rules = faults.rules.clone();
        if faults.parameters.latency_ms[1] > 0 {
            rules.entry(Kind::Latency).or_default();
        }
        if !faults.parameters.refused_keys.is_empty() {
            rules.entry(Kind::RefusedKey).or_default();
        }
        let rules = rules
            .into_iter()
            .map(|(kind, rule)| {
                let otherwise = if matches!(kind, Kind::Latency | Kind::RefusedKey) { 1.0 } else { 0.0 };
                let active = ActiveRule {
                    probability: rule.effective_probability(otherwise),
                    count: rule.count,
                    conversation: rule.only.conversation.as_deref().and_then(|pattern| Regex::new(pattern).ok()),
                    only: rule.only,
                    asked: AtomicU64::new(0),
                    struck: AtomicU64::new(0),
                };
                (kind, active)
            })
            .filter(|(_, rule)| rule.probability > 0.0)
            .collect();
        Arc::new(Active { faults, seed, rules, turn: AtomicU64::new(0) })
    }

    /// Whether the fault strikes here. Asking spends: ask only where the fault could have its effect.
    pub fn strikes(&self, kind: Kind, asked: Asked<'_>) -> bool {
        if asked.forced.contains(&kind) {
            return true;
        }
        self.rules.get(&kind).is_some_and(|rule| rule.strikes(kind, self.seed, asked))
    }

    /// A number that is the same for the same seed and turn.
    pub fn next_draw(&self) -> u64 {
        mix(self.seed ^ 0x5eed, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// One of `statuses`.
    pub fn status(&self) -> u16 {
        pick(&self.faults.parameters.statuses, self.next_draw()).copied().unwrap_or(500)
    }

    /// The latency of one request, in milliseconds.
    pub fn latency_ms(&self) -> u64 {
        let [least, most] = self.faults.parameters.latency_ms;
        least + self.next_draw() % most.saturating_sub(least).saturating_add(1)
    }

    /// The next `Retry-After` of a throttled request.
    pub fn retry_after(&self) -> Option<&str> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        pick(&self.faults.parameters.retry_after, turn).map(String::as_str).filter(|text| *text != "absent")
    }
}

impl ActiveRule {
    fn strikes(&self, kind: Kind, seed: u64, asked: Asked<'_>) -> bool {
        if !self.concerns(asked) {
            return false;
        }
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        if turn < self.only.skip_n || self.only.first_n.is_some_and(|n| turn - self.only.skip_n >= n) {
            return false;
        }
        if unit(mix(seed, turn) ^ mix(kind as u64, seed)) >= self.probability {
            return false;
        }
        let count = self.count.unwrap_or(u64::MAX);
        let spend = |struck: u64| (struck < count).then(|| struck + 1);
        self.struck.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    fn concerns(&self, asked: Asked<'_>) -> bool {
        let only = &self.only;
        let operation = match only.operations.as_slice() {
            [] => matches!(asked.operation, Operation::Read | Operation::Write),
            some => some.contains(&asked.operation),
        };
        operation
            && (only.methods.is_empty() || only.methods.iter().any(|method| method == asked.method))
            && self
                .conversation
                .as_ref()
                .is_none_or(|pattern| asked.conversation.is_some_and(|conversation| pattern.is_match(conversation)))
    }
}

/// SplitMix64 of a seed and a position.
pub(in crate::sandbox) fn mix(seed: u64, position: u64) -> u64 {
    let mut z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// From 0 (included) to 1 (excluded).
fn unit(draw: u64) -> f64 {
    let high = u32::try_from(mix(draw, 0) >> 32).unwrap_or(0);
    f64::from(high) / (f64::from(u32::MAX) + 1.0)
}

/// One of the items by a draw.
pub(in crate::sandbox) fn pick<T>(items: &[T], draw: u64) -> Option<&T> {
    let at = draw.checked_rem(items.len() as u64)?;
    items.get(usize::try_from(at).ok()?)
}
