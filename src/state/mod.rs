//! The state directory: what has to survive a restart and a kill, in files that one process at a time writes.
//!
//! What the files mean is left to its users; `drains.rs` has the format of one of them.

pub mod drains;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
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
        let temporary = self.path.join(format!("{name}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        // The rename is durable once the directory is.
        File::open(&self.path)?.sync_all()
    }

    /// Renames a file that cannot be used, for a person to look at. Returns its new path.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let time = DateTime::<Utc>::from(SystemTime::now()).format("%Y%m%dT%H%M%S%.3fZ");
        let target = self.path.join(format!("{name}.unusable-{time}"));
        fs::rename(self.path.join(name), &target)?;
        Ok(target)
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
    }
}
