//! A stop that reaches a process just after it has handed over is passed on to its successor.

use std::io;
use std::path::Path;

use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::protocol::{ControlMessage, REPLY_TIMEOUT};

/// Tells the successor, which listens on the control socket by now, to stop. When it has agreed, it does not
/// wait for this process: this one waits for it.
///
/// # Errors
/// If it cannot be reached, or does not agree.
pub async fn tell_successor_to_stop(upgrade_socket_path: &Path) -> io::Result<()> {
    let mut channel = ControlChannel::connect(&control_socket_path(upgrade_socket_path)).await?;
    channel.send(&ControlMessage::Stop).await?;
    match channel.receive(REPLY_TIMEOUT).await? {
        ControlMessage::Stopping => Ok(()),
        other => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}

/// Agrees to stop.
pub async fn accept_stop(mut channel: ControlChannel) {
    let _ = channel.send(&ControlMessage::Stopping).await;
}
