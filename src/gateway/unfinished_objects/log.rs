//! The file of the objects that this process remembers: neither a restart nor a kill loses them.
//!
//! A line for each object that was made and for each that was forgotten. A thread appends them, so that a slow disk delays no
//! record, and replaces the file by what is remembered once it has many lines of objects that were forgotten.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::take;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use serde::{Deserialize, Serialize};

use super::report::MadeObject;
use crate::record::stored_objects::{StoredObjectKey, UnfinishedObject};
use crate::state::StateDirectory;

/// The name of the file.
const FILE_NAME: &str = "objects.log";
/// The first line.
const HEADER: &str = r#"{"version":1}"#;
/// How much of the file is read. Ours are much shorter.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The file is replaced once it has at least so many lines of objects that were forgotten.
const MIN_FORGOTTEN_LINES: usize = 4096;
/// How long after a failure it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of the process, or a handover, waits until everything is written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The way to the thread that writes the file; closed until this process has a state directory.
#[derive(Debug, Default)]
pub(super) struct ObjectLog {
    lines: Mutex<Option<Sender<Command>>>,
}

enum Command {
    Append(LogLine),
    Close(SyncSender<()>),
}

/// A line after the first one. Its serialized form must not change.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LogLine {
    Forgotten { forgotten: String },
    Made(MadeObject),
}

/// All objects that are remembered.
pub(super) type ListObjects = Box<dyn Fn() -> Vec<MadeObject> + Send>;

/// What the thread works with.
struct LogWriter {
    list_objects: ListObjects,
    directory: Arc<StateDirectory>,
    /// `None` if all of it has to be written.
    file: Option<File>,
    forgotten_lines: usize,
    /// When all of it is written again after a failure.
    retry_at: Option<Instant>,
}

impl ObjectLog {
    /// Writes the file in this directory from now on: first what `list_objects` returns, then what changes.
    pub(super) fn start(&self, directory: &Arc<StateDirectory>, list_objects: ListObjects) {
        let (sender, commands) = channel();
        let directory = Arc::clone(directory);
        let writer = LogWriter { list_objects, directory, file: None, forgotten_lines: 0, retry_at: None };
        *self.lock() = Some(sender);
        let thread = std::thread::Builder::new().name("object log".to_owned());
        if let Err(problem) = thread.spawn(move || writer.run(&commands)) {
            *self.lock() = None;
            warn!("server.state_directory: {FILE_NAME} is not written: cannot start a thread: {problem}");
        }
    }

    /// An object is remembered from now on.
    pub(super) fn add(&self, key: StoredObjectKey, object: &UnfinishedObject) {
        self.append(|| LogLine::Made(MadeObject::new(key, object)));
    }

    /// An object was forgotten.
    pub(super) fn remove(&self, key: StoredObjectKey) {
        self.append(|| LogLine::Forgotten { forgotten: key.to_text() });
    }

    fn append(&self, line: impl FnOnce() -> LogLine) {
        if let Some(lines) = &*self.lock() {
            let _ = lines.send(Command::Append(line()));
        }
    }

    /// Writes everything, and nothing more.
    pub(super) fn close(&self) {
        let Some(lines) = self.lock().take() else { return };
        let (done, is_done) = sync_channel(1);
        if lines.send(Command::Close(done)).is_ok() && is_done.recv_timeout(CLOSE_TIMEOUT).is_err() {
            warn!(
                "server.state_directory: the last lines of {FILE_NAME} may be missing: the disk is too slow"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sender<Command>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogWriter {
    fn run(mut self, commands: &Receiver<Command>) {
        self.note(Self::replace);
        loop {
            let command = match self.retry_at {
                Some(at) => commands.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => commands.recv().map_err(RecvTimeoutError::from),
            };
            match command {
                // What is remembered has the change: it is written by the next attempt.
                Ok(Command::Append(_)) if self.retry_at.is_some_and(|at| Instant::now() < at) => {}
                Ok(Command::Append(line)) => self.note(|writer| writer.append(&line)),
                Err(RecvTimeoutError::Timeout) => self.note(Self::replace),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Close(done)) => {
                    if self.file.is_none() {
                        self.note(Self::replace);
                    }
                    drop(self);
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    fn append(&mut self, line: &LogLine) -> io::Result<()> {
        self.forgotten_lines += usize::from(matches!(line, LogLine::Forgotten { .. }));
        // What is remembered has the change already.
        let is_replaced = self.file.is_none() || self.forgotten_lines >= MIN_FORGOTTEN_LINES;
        let Some(file) = self.file.as_mut().filter(|_| !is_replaced) else { return self.replace() };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        file.write_all(&text)
    }

    /// Replaces the file by what is remembered.
    fn replace(&mut self) -> io::Result<()> {
        self.file = None;
        let mut text = format!("{HEADER}\n").into_bytes();
        for object in (self.list_objects)() {
            serde_json::to_writer(&mut text, &object)?;
            text.push(b'\n');
        }
        let mut replacement = self.directory.begin_replacement(FILE_NAME)?;
        replacement.file().write_all(&text)?;
        self.file = Some(replacement.commit()?);
        self.forgotten_lines = 0;
        Ok(())
    }

    /// Logs the first of several failures.
    fn note(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        match write(self) {
            Ok(()) => {
                if self.retry_at.take().is_some() {
                    warn!("server.state_directory: {FILE_NAME} is saved again");
                }
            }
            Err(problem) => {
                self.file = None;
                if self.retry_at.replace(Instant::now() + RETRY_INTERVAL).is_none() {
                    warn!(
                        "server.state_directory: cannot write {FILE_NAME}: {problem}. After a restart, background \
                         responses that have not ended yet count as estimated."
                    );
                }
            }
        }
    }
}

/// The objects that a file says are remembered, oldest first. Lines that are not understood are skipped: the last one may
/// not be complete.
pub(super) fn read(directory: &StateDirectory) -> Vec<MadeObject> {
    let content = match read_file(directory) {
        Ok(content) => content,
        Err(problem) => {
            let consequence = "background responses that have not ended yet count as estimated";
            directory.set_aside_and_log(FILE_NAME, consequence, &problem);
            return Vec::new();
        }
    };
    let (mut objects, mut places) = (Vec::new(), HashMap::new());
    for line in content.split(|byte| *byte == b'\n').skip(1) {
        match serde_json::from_slice(line) {
            // It is there twice if it was made while the file was replaced.
            Ok(LogLine::Made(made)) if !places.contains_key(&made.object) => {
                places.insert(made.object.clone(), objects.len());
                objects.push(Some(made));
            }
            Ok(LogLine::Made(_)) | Err(_) => {}
            Ok(LogLine::Forgotten { forgotten }) => {
                if let Some(object) = places.remove(&forgotten).and_then(|place| objects.get_mut(place)) {
                    take(object);
                }
            }
        }
    }
    objects.into_iter().flatten().collect()
}

/// Empty if there is no file.
fn read_file(directory: &StateDirectory) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let Some(file) = directory.open_to_append(FILE_NAME)? else { return Ok(content) };
    file.take(MAX_FILE_BYTES).read_to_end(&mut content)?;
    let first_line = content.split(|byte| *byte == b'\n').next();
    if first_line != Some(HEADER.as_bytes()) {
        return Err(io::Error::other("it is of another version, or damaged at its beginning"));
    }
    Ok(content)
}
