//! What commands print, and how that ends.

use std::io;

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

/// What others wrote must not steer the operator's terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
