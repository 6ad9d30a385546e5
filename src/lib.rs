//! # context-injector
//!
//! Upstream applications publish *injection jobs* to RabbitMQ: "write these variables into that live
//! conversation". A **worker** takes them in order per conversation, folds what is waiting for one
//! conversation into one conditional PATCH, resolves conflicts with whoever else writes, and publishes one
//! **outcome event** per job. A **relay** delivers the events as signed webhooks. Operators browse, repair and
//! **replay** dead letters.
//!
//! The modules below are in reading order; `ARCHITECTURE.md` has the picture.

pub mod admin;
pub mod audit;
pub mod bot;
pub mod breaker;
pub mod broker;
pub mod cli;
pub mod config;
pub mod dead_letters;
pub mod demo;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod inject;
pub mod job;
pub mod ladder;
pub mod lanes;
pub mod lease;
pub mod limiter;
pub mod metrics;
pub mod outcome;
pub mod pipeline;
pub mod redis_link;
pub mod relay;
pub mod retry;
pub mod sandbox;
pub mod servers;
pub mod shutdown;
pub mod target;
pub mod telemetry;
pub mod trace;
pub mod witness;
pub mod worker;
