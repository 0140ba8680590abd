//! Closes a connection with a reset, so that the client does not take the close for the end of the response.

use std::io;
use std::time::Duration;

use pingora::protocols::Stream;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Lets the kernel reset this connection when it is closed (`SO_LINGER` of 0).
///
/// Pingora shows only the number of the socket's file descriptor, and safe Rust cannot make an owned or
/// borrowed descriptor of a number. So the kernel is asked for a duplicate, through a pidfd of this process.
///
/// # Errors
/// The kernel's error, for instance if a sandbox forbids these calls. The connection is then closed as usual.
pub(in crate::proxy) fn enable_reset_on_close(stream: &Stream) -> io::Result<()> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(this_process, stream.id(), PidfdGetfdFlags::empty())?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(())
}
