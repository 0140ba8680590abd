//! One file of the spool, and beside it a note for each sink of how far it got.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::frame::{self, MAGIC, Next};

const OPEN: &str = "open";
const SEALED: &str = "sealed";
const YOUNG: &str = "young";
/// After so long nobody is making a segment any more that has no lock yet.
const STRAY: Duration = Duration::from_secs(60);
/// How much is read at a time where a whole segment is looked through.
const PIECE: usize = 1024 * 1024;

/// A segment that this process holds the lock of.
#[derive(Debug)]
pub(super) struct Segment {
    /// Its file's name without the ending: sorts by age.
    name: String,
    ending: &'static str,
    file: Arc<File>,
    /// Bytes that are whole records.
    length: u64,
    /// It was another process's.
    is_claimed: bool,
    cursors: Vec<Cursor>,
}

/// How far a sink got.
#[derive(Debug)]
struct Cursor {
    sink: &'static str,
    at: u64,
    note: Option<File>,
}

/// A segment whose process is gone.
pub struct Found {
    pub(super) segment: Segment,
    /// Bytes at its end that were no whole record.
    pub(super) torn: u64,
}

/// A new segment.
pub(super) fn create(directory: &Path, number: u64, sinks: &[&'static str]) -> io::Result<Segment> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mark = fastrand::u32(..);
    let name = format!("{:013}-{number:06}-{}-{mark:08x}", since.as_millis(), std::process::id());
    // Nobody may claim it before it is locked.
    let young = path(directory, &name, YOUNG);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&young)?;
    let made = flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(io::Error::from)
        .and_then(|()| file.write_all_at(MAGIC, 0))
        .and_then(|()| fs::rename(&young, path(directory, &name, OPEN)));
    if let Err(problem) = made {
        let _ = fs::remove_file(&young);
        return Err(problem);
    }
    let length = MAGIC.len() as u64;
    let cursors = sinks.iter().map(|sink| Cursor { sink, at: length, note: None }).collect();
    Ok(Segment { name, ending: OPEN, file: Arc::new(file), length, is_claimed: false, cursors })
}

/// Writes all of it at this place, or nothing.
pub(super) fn write_whole(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at).inspect_err(|_| {
        let _ = file.set_len(at);
    })
}

/// Whole records from this place on, at most about so many bytes but one at least; nothing where
/// what lies there is no record.
pub(super) fn read(file: &File, from: u64, length: u64, most: usize) -> io::Result<Vec<u8>> {
    let rest = usize::try_from(length.saturating_sub(from)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; rest.min(most.max(64))];
    file.read_exact_at(&mut bytes, from)?;
    let mut whole = 0;
    loop {
        match frame::next(bytes.get(whole..).unwrap_or_default()) {
            Next::Record(_, length) => whole += length,
            // The first is longer than what was read.
            Next::More(needs) if whole == 0 && needs <= rest && needs > bytes.len() => {
                bytes = vec![0; needs];
                file.read_exact_at(&mut bytes, from)?;
            }
            Next::More(_) | Next::Torn => break,
        }
    }
    bytes.truncate(whole);
    Ok(bytes)
}

/// The segments in the directory that nobody holds, now held by this process.
pub(super) fn orphans(directory: &Path, sinks: &[&'static str]) -> Vec<Result<Found, (PathBuf, io::Error)>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let segments = entries.filter_map(|entry| {
        let path = entry.path();
        let ending = path.extension()?.to_str()?;
        let ending = [OPEN, SEALED].into_iter().find(|known| *known == ending)?;
        Some((path, ending))
    });
    segments
        .filter_map(|(path, ending)| {
            claim(&path, ending, sinks).map_err(|problem| (path, problem)).transpose()
        })
        .collect()
}

/// Removes notes of segments that are gone, and what a process left that was killed while it made
/// one.
pub(super) fn remove_strays(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(ending) = path.extension().and_then(|ending| ending.to_str()) else { continue };
        let is_stray = if ending.starts_with("at-") {
            ![OPEN, SEALED].iter().any(|ending| path.with_extension(ending).exists())
        } else {
            // One that is being made is so for a moment only.
            let made = entry.metadata().and_then(|there| there.modified()).ok();
            let age = made.and_then(|made| made.elapsed().ok());
            ending == YOUNG && age.is_some_and(|age| age > STRAY)
        };
        if is_stray {
            let _ = fs::remove_file(&path);
        }
    }
}

fn claim(path: &Path, ending: &'static str, sinks: &[&'static str]) -> io::Result<Option<Found>> {
    let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { return Ok(None) };
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    // Its process may have sealed or removed it between the look and the lock.
    if !path.exists() {
        return Ok(None);
    }
    let written = file.metadata()?.len();
    let length = if ending == OPEN { whole(&file, written)? } else { written };
    let torn = written - length;
    if torn > 0 {
        file.set_len(length)?;
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let least = MAGIC.len() as u64;
    let cursor = |sink: &&'static str| {
        let at = fs::read_to_string(note_path(directory, name, sink)).ok();
        let at = at.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Cursor { sink, at: u64::clamp(at, least, length.max(least)), note: None }
    };
    let cursors = sinks.iter().map(cursor).collect();
    let mut segment =
        Segment { name: name.to_owned(), ending, file: Arc::new(file), length, is_claimed: true, cursors };
    segment.seal(directory);
    Ok(Some(Found { segment, torn }))
}

/// How much of a file is whole records.
fn whole(file: &File, written: u64) -> io::Result<u64> {
    let mut magic = [0; MAGIC.len()];
    if written < MAGIC.len() as u64 {
        return Ok(0);
    }
    file.read_exact_at(&mut magic, 0)?;
    if magic != *MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no segment of this version"));
    }
    let mut at = MAGIC.len() as u64;
    loop {
        match read(file, at, written, PIECE)?.len() {
            0 => return Ok(at),
            more => at += more as u64,
        }
    }
}

fn path(directory: &Path, name: &str, ending: &str) -> PathBuf {
    directory.join(format!("{name}.{ending}"))
}

fn note_path(directory: &Path, name: &str, sink: &str) -> PathBuf {
    directory.join(format!("{name}.at-{sink}"))
}

impl Segment {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.is_claimed
    }

    pub(super) fn grew(&mut self, bytes: u64) {
        self.length += bytes;
    }

    pub(super) fn seal(&mut self, directory: &Path) {
        if self.ending == OPEN
            && fs::rename(path(directory, &self.name, OPEN), path(directory, &self.name, SEALED)).is_ok()
        {
            self.ending = SEALED;
        }
    }

    /// Up to where a sink has it.
    pub(super) fn delivered(&self, sink: usize) -> u64 {
        self.cursors.get(sink).map_or(self.length, |cursor| cursor.at)
    }

    /// Bytes that a sink has not.
    pub(super) fn unread(&self, sink: usize) -> u64 {
        self.length.saturating_sub(self.delivered(sink))
    }

    /// Records that a sink has not.
    pub(super) fn undelivered(&self, sink: usize) -> u64 {
        let (mut at, mut count) = (self.delivered(sink), 0);
        while let Ok(bytes) = read(&self.file, at, self.length, PIECE) {
            let mut rest = &bytes[..];
            while let Next::Record(_, length) = frame::next(rest) {
                count += 1;
                rest = rest.get(length..).unwrap_or_default();
            }
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
        }
        count
    }

    /// Notes how far a sink got, for the next process.
    pub(super) fn note(&mut self, sink: usize, directory: &Path, to: u64) {
        let Some(cursor) = self.cursors.get_mut(sink) else { return };
        cursor.at = to;
        if cursor.note.is_none() {
            let path = note_path(directory, &self.name, cursor.sink);
            cursor.note =
                OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(path).ok();
        }
        if let Some(note) = &cursor.note {
            // Without it the sink gets these records twice after a kill, which is allowed.
            let _ = note.write_all_at(format!("{to:020}\n").as_bytes(), 0);
        }
    }

    /// Whether every sink has all of it and nothing more will come.
    pub(super) fn is_done(&self) -> bool {
        self.ending == SEALED && (0..self.cursors.len()).all(|sink| self.unread(sink) == 0)
    }

    /// Removes its files.
    pub(super) fn remove(&self, directory: &Path) {
        let _ = fs::remove_file(path(directory, &self.name, self.ending));
        for cursor in &self.cursors {
            let _ = fs::remove_file(note_path(directory, &self.name, cursor.sink));
        }
    }
}

#[cfg(test)]
impl Segment {
    pub(super) fn replace_file(&mut self, file: Arc<File>) -> Arc<File> {
        std::mem::replace(&mut self.file, file)
    }
}
