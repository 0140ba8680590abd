//! The `aoai-lb` binary: sets the allocator and returns the exit code of the command line.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(aoai_lb::cli::main())
}
