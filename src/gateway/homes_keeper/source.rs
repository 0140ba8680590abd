//! Receives what another process remembers.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use log::debug;
use tokio::sync::oneshot;

use super::records::apply;
use crate::routing::homes::{HashKey, Homes};
use crate::state::homes_log::{HeaderError, HomeRecord, read_header, read_records};

/// How long the other process may take to begin.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection over which another process tells what it remembers.
#[derive(Debug)]
pub struct HomesSource {
    stream: UnixStream,
    hash_key: HashKey,
}

impl HomesSource {
    /// Waits for the beginning, which tells the hash key.
    ///
    /// # Errors
    /// If it does not come within seconds, or cannot be used.
    pub fn open(mut stream: UnixStream) -> Result<Self, HeaderError> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HEADER_TIMEOUT))?;
        let hash_key = HashKey::from_bytes(read_header(&mut stream)?);
        stream.set_read_timeout(None)?;
        Ok(Self { stream, hash_key })
    }

    /// The secret that the other process hashes ids with.
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// Adds everything that comes to this memory, until the other process ends; without a wait. The receiver is
    /// told when all that the other process knew at first is there.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn copy_into(self, homes: Arc<Homes>) -> io::Result<oneshot::Receiver<()>> {
        let (complete, receiver) = oneshot::channel();
        let mut complete = Some(complete);
        std::thread::Builder::new().name("homes source".to_owned()).spawn(move || {
            self.apply_to(&homes, || {
                if let Some(complete) = complete.take() {
                    let _ = complete.send(());
                }
            });
        })?;
        Ok(receiver)
    }

    /// Adds everything that comes to this memory, until the other process ends.
    pub(super) fn apply_to(mut self, homes: &Homes, mut on_snapshot_end: impl FnMut()) {
        if self.hash_key != homes.hash_key() {
            return debug!(
                "homes: another process hashes ids with another key: what it has learned is ignored"
            );
        }
        let read = read_records(&mut self.stream, |record| match record {
            HomeRecord::SnapshotEnd => on_snapshot_end(),
            record => apply(record, homes),
        });
        debug!("homes: another process has told all: {read:?}");
    }
}
