//! Medians and percentiles.

use std::time::Duration;

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which that share lies (nearest rank); 0 of nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Milliseconds.
pub fn millis(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1_000.0).collect()
}
