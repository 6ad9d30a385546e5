//! The result of every letter, told as it is known: a line for people, a JSON object for scripts.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How a letter ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Refused,
    Failed,
}

/// Tells and counts.
pub(super) struct Results {
    pub(super) bar: ProgressBar,
    json: bool,
    done: u64,
    refused: u64,
    failed: u64,
}

impl Results {
    pub(super) fn new(bar: ProgressBar, json: bool) -> Self {
        Self { bar, json, done: 0, refused: 0, failed: 0 }
    }

    pub(super) fn tell(&mut self, ended: Ended, line: String, row: Value) -> anyhow::Result<()> {
        match ended {
            Ended::Done => self.done += 1,
            Ended::Refused => self.refused += 1,
            Ended::Failed => self.failed += 1,
        }
        let line = if self.json { row.to_string() } else { line };
        self.bar.suspend(|| writeln!(std::io::stdout(), "{line}")).context("cannot write to standard output")
    }

    /// How many letters were told.
    pub(super) fn total(&self) -> u64 {
        self.done + self.refused + self.failed
    }

    /// The sum for people; exit code 1 unless all went well.
    pub(super) fn finish(&self, done: &str) -> anyhow::Result<ExitCode> {
        self.bar.finish_and_clear();
        if !self.json {
            let (number, refused, failed) = (self.done, self.refused, self.failed);
            writeln!(std::io::stdout(), "{number} {done}, {refused} refused, {failed} failed.")
                .context("cannot write to standard output")?;
        }
        Ok(if self.refused + self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A bar on a terminal.
pub(super) fn progress(total: u32, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} looked at, {per_sec}, {eta} left");
    ProgressBar::new(u64::from(total)).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Asks a person; only a plain yes is one.
pub(super) fn agreed(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
