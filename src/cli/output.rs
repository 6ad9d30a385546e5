//! What commands print, and how that ends.

use std::fmt;
use std::io::{self, Write as _};

/// Whoever read our output has enough, as `head` has. For commands that only look it is a quiet end; those that
/// change something must not use this: they stop in the middle.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct Closed;

/// The result of writing to standard output.
///
/// # Errors
/// [`Closed`], or why else it cannot be written to.
pub fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// Prints one line for `say!`.
///
/// # Errors
/// Why standard output cannot be written to, unless nobody reads it any more: what the command does, and its exit
/// code, are the same then.
pub fn say_line(line: fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

/// `println!` that does not panic where nobody reads any more; its result says why else it could not print.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::say_line(format_args!($($text)*))
    };
}
pub(crate) use say;

/// What others wrote must not steer the operator's terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
