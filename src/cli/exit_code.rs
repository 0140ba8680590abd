//! The exit codes of the binary.

/// The command succeeded.
pub(super) const EXIT_SUCCESS: u8 = 0;
/// The command failed. Usage errors have the exit code 2, which clap chooses.
pub(super) const EXIT_FAILURE: u8 = 1;
