//! A predecessor reports to the process that serves now, whichever that is.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::control_socket_path::control_socket_path;
use super::protocol::ControlMessage;

/// How long each step of a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a message to the process that serves now. Returns the answer and the connection.
///
/// # Errors
/// If there is no other process, or it has another version that does not know the message.
pub(super) fn begin_report(
    upgrade_socket_path: &Path,
    message: &ControlMessage,
) -> io::Result<(ControlMessage, UnixStream)> {
    let mut stream = UnixStream::connect(control_socket_path(upgrade_socket_path))?;
    if socket_peercred(&stream)?.pid == rustix::process::getpid() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no other process has taken the socket"));
    }
    stream.set_read_timeout(Some(REPORT_TIMEOUT))?;
    stream.set_write_timeout(Some(REPORT_TIMEOUT))?;
    writeln!(stream, "{}", serde_json::to_string(message)?)?;
    let mut reply = String::new();
    BufReader::new(&stream).read_line(&mut reply)?;
    Ok((serde_json::from_str(&reply)?, stream))
}
