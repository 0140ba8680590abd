//! The `aoai-lb` binary: exit codes, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(aoai_lb::cli::main())
}
