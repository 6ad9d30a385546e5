//! The one binary: see `context-injector --help`.

use std::process::ExitCode;

/// With the system's allocator a job takes half as much CPU time again (`make bench`, scenario cold).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    context_injector::cli::main()
}
