//! Promises, tested against real servers: one file per promise.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends at the first thing that is not as it should be")]

mod broker;
mod support;
