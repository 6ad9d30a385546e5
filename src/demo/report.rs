//! The table at the end.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::check::{Evidence, Judgement};

/// Faults that are shown one by one; the rest is counted.
const SHOWN: usize = 20;

/// What the table tells beside the judgement.
#[derive(Debug)]
pub struct Figures<'a> {
    /// The sandbox's counts.
    pub stats: &'a Value,
    /// Time from the first job to the last outcome.
    pub took: Duration,
    /// Dead letters before the repaired one was replayed.
    pub dead_letters: usize,
    /// Whether the repaired one was applied.
    pub repaired: bool,
    /// How often the worker was killed.
    pub kills: usize,
}

/// The table and the verdict, ready to print.
#[must_use]
pub fn table(evidence: &Evidence, judgement: &Judgement, figures: &Figures<'_>) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    let count = |name: &str| figures.stats[name].as_u64().unwrap_or(0);
    let fault = |name: &str| figures.stats["faults"][name].as_u64().unwrap_or(0);
    let verified = evidence.deliveries.iter().filter(|d| d.fault.is_none() && d.answered < 300).count();

    row("messages published", evidence.published.len().to_string());
    row("jobs applied", judgement.applied.to_string());
    for (reason, times) in &judgement.refused {
        row(&format!("refused: {reason}"), times.to_string());
    }
    row("outcome events told again", judgement.repeats.to_string());
    row("worker killed with SIGKILL", figures.kills.to_string());
    row("writes answered 500, not applied", fault("server_error").to_string());
    row("writes answered 500, yet applied", fault("applied_then_500").to_string());
    row("writes of the second writer", count("second_writer_writes").to_string());
    row("conflicts met", count("conflicts").to_string());
    row("requests per applied job", per(count("reads") + count("writes"), judgement.applied));
    row("applied jobs per second", rate(judgement.applied, figures.took));
    row("webhook tries / delivered and verified", format!("{} / {verified}", evidence.deliveries.len()));
    row("dead letters", figures.dead_letters.to_string());
    row("dead letter repaired and replayed", if figures.repaired { "1, applied" } else { "none" }.to_owned());

    let name_width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let value_width = rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:<name_width$}  {value:>value_width$}");
    }
    let _ = writeln!(text, "\n{}", verdict(judgement));
    text
}

fn verdict(judgement: &Judgement) -> String {
    let numbers = format!("lost {}, doubled {}", judgement.lost, judgement.doubled);
    if judgement.faults.is_empty() {
        return format!(
            "CHECK PASSED: every job has exactly one outcome; the target holds what the outcomes claim; {numbers};\n\
             the second writer's keys are untouched; every event was delivered and verified."
        );
    }
    let mut text = format!("CHECK FAILED: {numbers}; {} faults:", judgement.faults.len());
    for fault in judgement.faults.iter().take(SHOWN) {
        let _ = write!(text, "\n  - {fault}");
    }
    if judgement.faults.len() > SHOWN {
        let _ = write!(text, "\n  … and {} more", judgement.faults.len() - SHOWN);
    }
    text
}

fn per(part: u64, whole: usize) -> String {
    let (part, whole) = (u32::try_from(part).unwrap_or(u32::MAX), u32::try_from(whole).unwrap_or(u32::MAX));
    if whole == 0 { "-".to_owned() } else { format!("{:.2}", f64::from(part) / f64::from(whole)) }
}

fn rate(jobs: usize, took: Duration) -> String {
    let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
    let seconds = took.as_secs_f64();
    if seconds > 0.0 { format!("{:.0}", f64::from(jobs) / seconds) } else { "-".to_owned() }
}
