//! The result of every letter, told as it is known: a line for people, a JSON object for scripts.

use std::io::{BufRead, IsTerminal as _, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::cli::output::say;

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
            say!("{number} {done}, {refused} refused, {failed} failed.")?;
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

/// Asks the person at the terminal; only a plain yes is one.
pub(super) fn agreed(question: &str) -> anyhow::Result<bool> {
    ask(question, &mut std::io::stdin().lock(), &mut std::io::stderr().lock())
}

fn ask(question: &str, answers: &mut impl BufRead, out: &mut impl Write) -> anyhow::Result<bool> {
    write!(out, "{question} [y/N] ").and_then(|()| out.flush()).context("cannot ask")?;
    let mut answer = String::new();
    answers.read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_is_one() {
        for (typed, expected) in [
            ("y\n", true),
            ("Y\n", true),
            ("  yes \r\n", true),
            ("y", true),
            ("\n", false),
            // The terminal was closed.
            ("", false),
            ("n\n", false),
            ("yep\n", false),
            ("yes, no\n", false),
            ("no\nyes\n", false),
        ] {
            let (mut answers, mut out) = (typed.as_bytes(), Vec::new());
            assert_eq!(ask("Discard 3 letter(s) for ever?", &mut answers, &mut out).unwrap(), expected, "{typed:?}");
            assert_eq!(String::from_utf8(out).unwrap(), "Discard 3 letter(s) for ever? [y/N] ");
        }
    }

    #[test]
    fn a_question_that_nobody_can_read_is_no_yes() {
        let mut nowhere = [0_u8; 3];
        assert!(ask("Discard?", &mut "yes\n".as_bytes(), &mut nowhere.as_mut_slice()).is_err());
    }
}
