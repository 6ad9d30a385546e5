//! The pipeline of a job, one room a stage: validate → snapshot → plan → execute → verdict.
//!
//! Everything but [`execute`] is pure: no clock, no socket, no randomness. What a stage makes is the next
//! stage's only input.

pub mod endings;
pub mod evicted;
pub mod execute;
pub mod json;
pub mod ledger;
pub mod memory;
pub mod merge;
pub mod numbers;
pub mod place;
pub mod plan;
pub mod snapshot;
pub mod templates;
pub mod validate;
pub mod verdict;

#[cfg(test)]
mod proofs;
