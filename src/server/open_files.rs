//! The limit of open files, of which each connection needs one.

use log::warn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::system_error::describe;

/// Raises the limit of open files to its maximum.
pub(super) fn raise_open_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!("cannot raise the limit of open files: {}", describe(&error.into()));
    }
}

/// How many connections clients may have together: three quarters of the limit. The rest is for connections to
/// backends, and for files.
pub(super) fn max_client_connections() -> usize {
    open_file_limit().map_or(usize::MAX, |limit| limit - limit / 4)
}

/// How many WebSockets to backends may be kept without a turn: half of what is left to backends.
pub(super) fn max_idle_upstream_sockets() -> usize {
    open_file_limit().map_or(usize::MAX, |limit| limit / 8)
}

fn open_file_limit() -> Option<usize> {
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok())
}
