//! Promises, tested against real servers: one file per promise.

mod broker;
mod relay;
mod support;
