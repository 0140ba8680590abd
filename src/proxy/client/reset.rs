//! Closes a connection with a reset, so that the client cannot take it for the end of a response.

use std::io;
use std::time::Duration;

use pingora::protocols::Stream;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Makes the close of this connection a reset.
///
/// The engine gives the number of the socket and nothing that owns it. A second descriptor of it, which
/// safe code can set options on, comes from the kernel by way of a pidfd of this process.
///
/// # Errors
/// The kernel's, for instance where a sandbox forbids it; the connection is then closed as usual.
pub(in crate::proxy) fn reset_on_close(stream: &Stream) -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, stream.id(), PidfdGetfdFlags::empty())?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(())
}
