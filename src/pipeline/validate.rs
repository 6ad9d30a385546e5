//! To come.
use std::process::ExitCode;
/// Which.
#[derive(Debug, clap::Args)]
pub struct SchemaArgs {
    /// Which
    pub which: String,
}
/// Prints.
pub fn print_schema(_a: &SchemaArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
