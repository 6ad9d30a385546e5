//! The audit chain: each event names the hash of the one before it, so that nothing can be taken out, put in or
//! changed without a trace.
//!
//! Every writer (one start of one process) has a chain of its own: `writer`, `seq` from 1 without gaps,
//! `prevhash`, `hash`. The hash is SHA-256 over the event in canonical form ([`canonical`], RFC 8785) without
//! `hash` itself, `prevhash` inside it. The events are CloudEvents, and these are extension attributes of it.
//!
//! A chain shows a change only to somebody who knows its end: whoever may write to the stream could write all of
//! it anew. So a writer that has a key signs [`checkpoint`]s, and [`verify`] checks both. What is neither hashed
//! nor signed by then, the last events of a writer that was killed, is told.

pub mod canonical;
mod chain;
pub mod checkpoint;
mod command;
mod report;
mod select;
mod stream;
pub mod verify;
mod writer;

pub use chain::{Chain, GENESIS, Link, hash};
pub use command::{Command, run};
pub use writer::{Sealed, Writer};

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}
