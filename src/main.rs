//! The `aoai-lb` binary: sets the allocator and returns the exit code of the command line.

use std::process::ExitCode;

use rustix::thread::disable_transparent_huge_pages;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    // Huge pages keep buffers of the engine resident that are hardly used: 66 KiB per stream where the system
    // gives them to everybody. If this fails, they only cost memory.
    let _ = disable_transparent_huge_pages(true);
    ExitCode::from(aoai_lb::cli::main())
}
