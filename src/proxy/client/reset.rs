//! Closing a connection so that the other side cannot take it for the end of an answer.

use std::io;
use std::time::Duration;

use pingora::protocols::Stream;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// From now on closing this connection resets it.
///
/// The engine lends the number of the socket and nothing that owns it, so a second owner is
/// asked from the kernel, for which the process is a stranger to itself.
///
/// # Errors
/// The kernel's, such as where a sandbox forbids it; the connection is then closed as usual.
pub(in crate::proxy) fn reset_on_close(stream: &Stream) -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, stream.id(), PidfdGetfdFlags::empty())?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(())
}
