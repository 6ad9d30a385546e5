//! The one binary: see `context-injector --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    context_injector::cli::main()
}
