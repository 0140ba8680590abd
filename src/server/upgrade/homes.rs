//! The memory of homes goes over connections of its own to the control socket, in the format of its log: it is
//! large, and the predecessor goes on to learn until its last stream ends.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use log::{debug, warn};
use tokio::task::spawn_blocking;

use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::protocol::ControlMessage;
use super::report::begin_report;
use crate::gateway::ProcessState;
use crate::gateway::homes_keeper::HomesSource;

/// Asks the predecessor for the homes that it remembers; `None`, with a line in the log, if they do not come.
pub(super) async fn follow_homes(upgrade_socket_path: &Path) -> Option<HomesSource> {
    let opened = async {
        let mut channel = ControlChannel::connect(&control_socket_path(upgrade_socket_path)).await?;
        channel.send(&ControlMessage::FollowHomes).await?;
        let stream = channel.into_blocking()?;
        spawn_blocking(move || HomesSource::open(stream)).await?.map_err(io::Error::other)
    };
    opened
        .await
        .inspect_err(|problem| {
            warn!("upgrade: the predecessor does not hand over the ids of stored objects: {problem}");
        })
        .ok()
}

/// Tells a successor the homes that this process remembers, and then what it learns.
pub(super) fn tell_homes(channel: ControlChannel, process: &ProcessState) {
    if let Err(problem) = channel.into_blocking().and_then(|stream| process.homes_keeper.tell(stream)) {
        warn!("upgrade: cannot hand over the ids of stored objects: {problem}");
    }
}

/// Adds what a predecessor reports.
pub(super) async fn accept_homes(mut channel: ControlChannel, process: Arc<ProcessState>) {
    let ready = channel.send(&ControlMessage::ReadyForHomes).await;
    let accept = move || {
        let stream = ready.and_then(|()| channel.into_blocking())?;
        process.homes_keeper.accept_report(stream).map_err(io::Error::other)
    };
    // The task of a blocking call is not cancelled.
    let accepted = spawn_blocking(accept).await;
    debug!("homes: a predecessor has reported: {accepted:?}");
}

/// Sends homes that this process has learned to the one that serves now.
///
/// # Errors
/// If there is none, or it has another version that does not know them.
pub fn report_homes(upgrade_socket_path: &Path, homes: &[u8]) -> io::Result<()> {
    match begin_report(upgrade_socket_path, &ControlMessage::ReportHomes)? {
        (ControlMessage::ReadyForHomes, mut stream) => stream.write_all(homes),
        (other, _) => Err(io::Error::other(format!("unexpected message {other:?}"))),
    }
}
