//! The audit chain: each outcome event names the hash of the one before it, so that nothing can be taken out,
//! put in or changed without a trace.
//!
//! Every writer (one start of one process) has a chain of its own: `writer`, `seq` from 1 without gaps,
//! `prevhash`, `hash`. The hash is SHA-256 over the event in canonical form ([`canonical`], RFC 8785) without
//! `hash` itself, `prevhash` inside it. The events are CloudEvents, and these are extension attributes of it.

pub mod canonical;

mod chain;
mod writer;

pub use chain::{Chain, GENESIS, hash};
pub use writer::Writer;

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
