//! To come.
pub mod validate;
