//! To come.
/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);
