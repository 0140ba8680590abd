//! The `aoai-lb` binary: exit codes and the allocator, nothing else.

use std::process::ExitCode;

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(aoai_lb::cli::main())
}
