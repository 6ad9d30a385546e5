//! The one binary: see `context-injector --help`.

use std::process::ExitCode;

/// With the system's allocator a job takes half as much CPU time again (`make bench`, scenario cold).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    context_injector::cli::main()
}
