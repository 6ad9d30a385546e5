//! To come.
pub mod templates;
pub mod validate;
