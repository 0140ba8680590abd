//! Sends everything that is remembered, and then each change, to another process.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::records::encode_entry;
use crate::routing::homes::{Homes, SnapshotPosition};
use crate::state::homes_log::{HomeRecord, encode, header};

/// How long the other process may read nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many bytes of changes may wait for it.
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// How much of the memory is sent at a time.
const SEND_BYTES: usize = 256 << 10;

/// A process that follows what is remembered here.
#[derive(Debug, Default)]
pub(super) struct Follower {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Encoded changes that have not been sent.
    queue: Vec<u8>,
    has_lost_changes: bool,
    /// Whether no more changes will come.
    is_closed: bool,
    /// Whether nothing more is sent.
    has_ended: bool,
}

/// What there is to do next.
enum Step {
    Snapshot,
    Changes(Vec<u8>),
    End,
}

impl Follower {
    /// Follows over this connection. Its thread ends when the connection breaks, or after [`Follower::close`].
    /// `register` has to see to it that every change from then on is pushed.
    pub(super) fn start(
        stream: UnixStream,
        homes: Arc<Homes>,
        register: impl FnOnce(Arc<Self>),
    ) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let follower = Arc::new(Self::default());
        follower.lock().has_lost_changes = true;
        let sender = Arc::clone(&follower);
        // Before the thread reads the memory: what changes meanwhile is sent afterwards.
        register(Arc::clone(&follower));
        let thread = std::thread::Builder::new().name("homes follower".to_owned());
        let started = thread.spawn(move || {
            let _ = sender.send_all(stream, &homes);
            sender.end();
        });
        started.map(drop).inspect_err(|_| follower.end())
    }

    /// Sends these encoded changes soon.
    pub(super) fn push(&self, changes: &[u8]) {
        let mut state = self.lock();
        state.queue.extend_from_slice(changes);
        // It reads so slowly that it is as good as gone.
        state.has_ended |= state.queue.len() > MAX_QUEUED_BYTES;
        self.changed.notify_all();
    }

    /// Not all changes are known: everything has to be sent again.
    pub(super) fn on_lost_changes(&self) {
        self.lock().has_lost_changes = true;
        self.changed.notify_all();
    }

    /// Whether the connection has broken, with the changes that were not sent.
    pub(super) fn take_unsent_if_ended(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.has_ended.then(|| std::mem::take(&mut state.queue))
    }

    /// Waits until everything is sent, for a while. Returns the changes that were not.
    pub(super) fn close(&self, time_limit: Duration) -> Vec<u8> {
        let mut state = self.lock();
        state.is_closed = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, time_limit, |state| !state.has_ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.queue)
    }

    fn send_all(&self, mut stream: UnixStream, homes: &Homes) -> io::Result<()> {
        stream.write_all(&header(homes.hash_key().to_bytes()))?;
        loop {
            match self.next_step() {
                Step::Snapshot => send_snapshot(&mut stream, homes)?,
                Step::Changes(changes) => {
                    if let Err(problem) = stream.write_all(&changes) {
                        // What the other one has read of them does no harm when it is told again.
                        self.lock().queue.splice(0..0, changes);
                        return Err(problem);
                    }
                }
                Step::End => return Ok(()),
            }
        }
    }

    fn next_step(&self) -> Step {
        let is_waiting = |state: &mut State| {
            !state.has_lost_changes && state.queue.is_empty() && !state.is_closed && !state.has_ended
        };
        let waited = self.changed.wait_while(self.lock(), is_waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.has_ended {
            return Step::End;
        }
        if std::mem::take(&mut state.has_lost_changes) {
            return Step::Snapshot;
        }
        match std::mem::take(&mut state.queue) {
            changes if changes.is_empty() => Step::End,
            changes => Step::Changes(changes),
        }
    }

    fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send_snapshot(stream: &mut UnixStream, homes: &Homes) -> io::Result<()> {
    let (mut position, mut entries, mut bytes) = (SnapshotPosition::default(), Vec::new(), Vec::new());
    while homes.copy_entries(&mut position, &mut entries) {
        entries.drain(..).for_each(|entry| encode_entry(&entry, &mut bytes));
        if bytes.len() >= SEND_BYTES {
            stream.write_all(&bytes)?;
            bytes.clear();
        }
    }
    encode(HomeRecord::SnapshotEnd, &mut bytes);
    stream.write_all(&bytes)
}
