//! The state directory: what has to survive a restart and a kill, in files that one process at a time writes.
//!
//! What the files mean is left to its users; `budget_log.rs`, `drains.rs`, `homes_log.rs` and
//! `instances.rs` have their formats.

pub mod budget_log;
pub mod drains;
pub mod homes_log;
pub mod instances;
pub mod ledger;

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use log::error;
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::files::{FileError, read_text_file};

/// Its owner holds a lock on this file, which contains the owner's process id.
const LOCK_FILE_NAME: &str = "lock";
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// More than the digits of a process id.
const MAX_PID_BYTES: u64 = 32;

/// A directory that only this process writes to, for as long as this value exists.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be created, or nothing can be written there.
    #[error(
        "cannot use {}: {problem}. It has to be a directory that this user can write to; a restart or an upgrade \
         tries again", path.display()
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        problem: io::Error,
    },
    /// Another process uses it.
    #[error("{owner} uses {}: each instance needs a directory of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Which process.
        owner: String,
    },
}

impl StateDirectory {
    /// Takes the directory for this process; creates it if only it is missing.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |problem| StateError::Unusable { path: path.to_owned(), problem };
        match DirBuilder::new().mode(0o750).create(path) {
            Err(problem) if problem.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(problem)),
            _ => {}
        }
        // Non-blocking: opening a FIFO would wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o640).custom_flags(flags.bits().cast_signed());
        let mut lock = options.open(path.join(LOCK_FILE_NAME)).map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(problem) if problem.kind() == io::ErrorKind::WouldBlock => {
                return Err(StateError::InUse { path: path.to_owned(), owner: describe_owner(&mut lock) });
            }
            Err(problem) => return Err(unusable(problem.into())),
        }
        write_own_pid(&mut lock).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of a file in it; `None` if there is no such file.
    ///
    /// # Errors
    /// [`FileError`] if it is not a text file of a usual size, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<String>, FileError> {
        match read_text_file(&self.path.join(name), MAX_FILE_BYTES) {
            Err(FileError::Io(problem)) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Replaces a file, or creates it. After a kill or a power cut it has either its old or its new content.
    ///
    /// # Errors
    /// If it cannot be written; the old content is kept then.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut replacement = self.begin_replacement(name)?;
        replacement.file().write_all(content)?;
        replacement.commit().map(drop)
    }

    /// Begins to replace a file whose content is written step by step.
    ///
    /// # Errors
    /// If the new file cannot be created.
    pub fn begin_replacement(&self, name: &str) -> io::Result<Replacement> {
        let temporary = self.path.join(format!("{name}.new"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
        let (directory, target) = (self.path.clone(), self.path.join(name));
        Ok(Replacement { file, temporary, target, directory, is_in_place: false })
    }

    /// Opens a file to read it and to write at its end; `None` if there is no such file.
    ///
    /// # Errors
    /// If it is not a regular file or cannot be opened.
    pub fn open_to_append(&self, name: &str) -> io::Result<Option<File>> {
        open_regular(OpenOptions::new().read(true).append(true), &self.path.join(name))
    }

    /// Keeps a file that cannot be used under another name, for a person to look at, and logs that with what follows
    /// from it.
    pub fn set_aside_and_log(&self, name: &str, consequence: &str, problem: &dyn Display) {
        match self.set_aside(name) {
            Ok(target) => error!(
                "server.state_directory: {name} cannot be used, {consequence}: {problem}. It was renamed to {}",
                target.display()
            ),
            Err(error) => error!(
                "server.state_directory: {name} cannot be used, {consequence}: {problem}. It cannot be renamed either: \
                 {error}"
            ),
        }
    }

    fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let time = DateTime::<Utc>::from(SystemTime::now()).format("%Y%m%dT%H%M%S%.3fZ");
        let target = self.path.join(format!("{name}.unusable-{time}"));
        fs::rename(self.path.join(name), &target)?;
        Ok(target)
    }
}

/// A file that will replace another one as a whole. Until [`Replacement::commit`] the other one stays as it is.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    directory: PathBuf,
    is_in_place: bool,
}

impl Replacement {
    /// The new file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts the new file in place of the other one, durably. Returns the file, for more at its end.
    ///
    /// # Errors
    /// If the system does not confirm it; the old content is kept, or the new one is in place.
    pub fn commit(mut self) -> io::Result<File> {
        self.file.sync_all()?;
        let file = self.file.try_clone()?;
        fs::rename(&self.temporary, &self.target)?;
        self.is_in_place = true;
        // The rename is durable once the directory is.
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_in_place {
            // It may be what fills the disk.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Opens a file of a state directory that another process may own, to read it; `None` if there is none.
///
/// # Errors
/// If it is not a regular file or cannot be opened.
pub fn open_to_read(directory: &Path, name: &str) -> io::Result<Option<File>> {
    open_regular(OpenOptions::new().read(true), &directory.join(name))
}

fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<Option<File>> {
    // Non-blocking: opening a FIFO would wait.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

fn describe_owner(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.take(MAX_PID_BYTES).read_to_string(&mut text);
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

fn write_own_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time_who_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let first = StateDirectory::open(&path).unwrap();
        let refused = StateDirectory::open(&path).unwrap_err().to_string();
        let expected = format!(
            "process {} uses {}: each instance needs a directory of its own",
            std::process::id(),
            path.display()
        );
        assert_eq!(refused, expected);
        drop(first);
        StateDirectory::open(&path).unwrap();
    }

    #[test]
    fn a_path_that_is_no_directory_or_has_no_parent_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("file"), "").unwrap();
        for name in ["file", "missing/state"] {
            let error = StateDirectory::open(&parent.path().join(name)).unwrap_err().to_string();
            assert!(error.starts_with("cannot use ") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn files_are_replaced_as_a_whole_and_set_aside_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(state.read("x.json").unwrap(), None);
        // What a kill in the middle of an earlier write has left.
        std::fs::write(directory.path().join("x.json.new"), "half of somethi").unwrap();
        state.replace("x.json", b"one").unwrap();
        state.replace("x.json", b"two").unwrap();
        assert_eq!(state.read("x.json").unwrap().as_deref(), Some("two"));
        assert!(!directory.path().join("x.json.new").exists());
        let aside = state.set_aside("x.json").unwrap();
        assert_eq!(
            (std::fs::read_to_string(aside).unwrap().as_str(), state.read("x.json").unwrap()),
            ("two", None)
        );
        std::fs::create_dir(directory.path().join("x.json")).unwrap();
        assert!(state.read("x.json").is_err() && state.replace("x.json", b"three").is_err());
        assert!(!directory.path().join("x.json.new").exists(), "a failed attempt leaves nothing behind");
    }

    #[test]
    fn a_replacement_is_seen_when_it_is_committed_and_can_be_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        assert!(state.open_to_append("x.log").unwrap().is_none());
        state.replace("x.log", b"old").unwrap();
        let mut abandoned = state.begin_replacement("x.log").unwrap();
        abandoned.file().write_all(b"half").unwrap();
        drop(abandoned);
        let mut replacement = state.begin_replacement("x.log").unwrap();
        replacement.file().write_all(b"new").unwrap();
        assert_eq!(state.read("x.log").unwrap().as_deref(), Some("old"));
        replacement.commit().unwrap().write_all(b", longer").unwrap();
        state.open_to_append("x.log").unwrap().unwrap().write_all(b", longest").unwrap();
        assert_eq!(state.read("x.log").unwrap().as_deref(), Some("new, longer, longest"));
        for kind in ["directory", "link"] {
            let path = directory.path().join(kind);
            match kind {
                "directory" => std::fs::create_dir(&path).unwrap(),
                _ => std::os::unix::fs::symlink("x.log", &path).unwrap(),
            }
            assert!(state.open_to_append(kind).is_err() && open_to_read(directory.path(), kind).is_err());
        }
    }
}
