//! To come.
pub mod topology;
