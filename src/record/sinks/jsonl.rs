//! Records as lines of JSON in a file that rotates.
//!
//! Lines are whole at any moment, so that `jq` can read along. Two processes may append to one
//! file during an upgrade: whoever finds that it is not the one of that name any more opens the
//! new one. What was rotated is compressed once nobody can still be writing to it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use log::{error, info, warn};
use rustix::fs::{FlockOperation, flock};

use crate::config;
use crate::record::metrics::Metrics;
use crate::record::spool::{Batch, Read, Reader};

/// Most bytes of a write.
const BATCH: usize = 256 * 1024;
/// How long lines are gathered before a write; nobody waits for them.
const GATHER: Duration = Duration::from_millis(10);
/// How often the wish to rotate is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long a file that cannot be written is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// How long after it was renamed somebody may still write to a file.
const SETTLED: Duration = Duration::from_secs(3);
/// How far back repeated records are looked for: more than one write.
const LOOK_BACK: u64 = 16 * 1024 * 1024;
/// What every record begins with.
const BEGINNING: &[u8] = b"{\"time\":\"";
/// How often a file may be another one by the time it is locked.
const RENAMES: usize = 10;

/// What others know of the sink.
#[derive(Debug, Default)]
pub struct Control {
    /// The file is to be rotated now.
    pub rotate: AtomicBool,
    /// The end has come: what cannot be written at once stays in the spool.
    pub hurry: AtomicBool,
}

/// Starts the sink's thread.
///
/// # Errors
/// When the file cannot be opened or the thread not started.
pub fn start(
    config: &config::Jsonl,
    reader: Reader,
    metrics: &Arc<Metrics>,
) -> io::Result<(Arc<Control>, JoinHandle<()>)> {
    let control = Arc::<Control>::default();
    let file = open(&config.path)?;
    let mut sink = Sink {
        file,
        config: config.clone(),
        control: Arc::clone(&control),
        metrics: Arc::clone(metrics),
        known: None,
        tidying: Arc::default(),
        lines: Vec::new(),
        is_failing: false,
    };
    sink.tidy_later(SETTLED);
    let thread = std::thread::Builder::new().name("jsonl".into()).spawn(move || sink.run(&reader))?;
    Ok((control, thread))
}

struct Sink {
    file: File,
    config: config::Jsonl,
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    /// Ids in the file, where the records of this segment may repeat those of a process that is gone.
    known: Option<(String, HashSet<Box<[u8]>>)>,
    /// One tidies up at a time.
    tidying: Arc<Mutex<()>>,
    lines: Vec<u8>,
    is_failing: bool,
}

impl Sink {
    fn run(&mut self, reader: &Reader) {
        loop {
            if self.control.rotate.swap(false, Ordering::Relaxed) {
                self.rotate();
            }
            match reader.next(BATCH, LOOK) {
                Read::Batch(batch) => {
                    if !self.take(&batch) {
                        return;
                    }
                    reader.delivered(&batch);
                    if self.lines.len() < BATCH / 2 && !self.control.hurry.load(Ordering::Relaxed) {
                        std::thread::sleep(GATHER);
                    }
                }
                Read::Nothing => {}
                Read::Closed => return,
            }
        }
    }

    /// Writes a batch, however often it takes; `false` if the end came first.
    fn take(&mut self, batch: &Batch) -> bool {
        self.lines.clear();
        if batch.may_repeat && self.known.as_ref().is_none_or(|(segment, _)| segment != batch.segment()) {
            self.known = Some((batch.segment().to_owned(), recent_ids(&self.config.path)));
        }
        let known = self.known.as_ref().map(|(_, known)| known).filter(|_| batch.may_repeat);
        let mut count = 0;
        for record in batch.records() {
            if known.is_some_and(|known| id(record).is_some_and(|id| known.contains(id))) {
                continue;
            }
            self.lines.extend_from_slice(record);
            self.lines.push(b'\n');
            count += 1;
        }
        loop {
            match self.write() {
                Ok(()) => break,
                Err(problem) => {
                    self.metrics.count("jsonl", "retried", count);
                    let path = self.config.path.display();
                    if !std::mem::replace(&mut self.is_failing, true) {
                        error!("records stay in the spool, {path} cannot be written: {problem}");
                    }
                    if self.control.hurry.load(Ordering::Relaxed) {
                        return false;
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        }
        if std::mem::take(&mut self.is_failing) {
            info!("records are written to {} again", self.config.path.display());
        }
        self.metrics.count("jsonl", "delivered", count);
        true
    }

    /// Writes whole lines or none: what was written of a batch that failed is taken back. Two
    /// processes at one file do so one after the other.
    fn write(&mut self) -> io::Result<()> {
        self.lock()?;
        let written = self.write_locked();
        let _ = flock(&self.file, FlockOperation::Unlock);
        written
    }

    /// Locks the file that has the name, and opens it anew where that is another one by now.
    fn lock(&mut self) -> io::Result<()> {
        for _ in 0..RENAMES {
            flock(&self.file, FlockOperation::LockExclusive)?;
            let own = self.file.metadata()?;
            let there = fs::metadata(&self.config.path);
            if there.is_ok_and(|there| own.ino() == there.ino() && own.dev() == there.dev()) {
                return Ok(());
            }
            // Its lock goes with it.
            self.file = open(&self.config.path)?;
        }
        Err(io::Error::other("it is renamed again and again"))
    }

    fn write_locked(&mut self) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        self.file.write_all(&self.lines).inspect_err(|_| {
            let _ = self.file.set_len(before);
        })?;
        if before + self.lines.len() as u64 >= self.config.rotate {
            self.rotate_locked();
        }
        Ok(())
    }

    /// Begins a new file, unless this one is empty.
    fn rotate(&mut self) {
        match self.lock() {
            Ok(()) if self.file.metadata().is_ok_and(|own| own.len() > 0) => self.rotate_locked(),
            Ok(()) => {}
            Err(problem) => warn!("{} cannot be rotated: {problem}", self.config.path.display()),
        }
        let _ = flock(&self.file, FlockOperation::Unlock);
    }

    fn rotate_locked(&mut self) {
        let path = &self.config.path;
        match fs::rename(path, rotated_name(path, SystemTime::now())) {
            // The next write opens the new one.
            Ok(()) => self.tidy_later(SETTLED),
            Err(problem) => warn!("{} cannot be rotated: {problem}", path.display()),
        }
    }

    /// Compresses and removes old files, in a while and beside the writing.
    fn tidy_later(&self, wait: Duration) {
        let (path, keep) = (self.config.path.clone(), self.config.keep);
        let tidying = Arc::clone(&self.tidying);
        let work = move || {
            std::thread::sleep(wait);
            let _one = tidying.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(problem) = tidy(&path, keep) {
                warn!("old records beside {} are not tidied: {problem}", path.display());
            }
        };
        let _ = std::thread::Builder::new().name("tidy".into()).spawn(work);
    }
}

/// Opens the file, at whose end there is a whole line then.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).read(true).create(true).mode(0o640).open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let mended = mend_end(&file);
    flock(&file, FlockOperation::Unlock)?;
    mended.map(|()| file)
}

/// Cuts off what a killed process left of a record; what is none of ours is left and ended.
fn mend_end(mut file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LOOK_BACK);
    let mut end = vec![0; usize::try_from(length - from).unwrap_or(0)];
    file.read_exact_at(&mut end, from)?;
    let whole = memchr::memrchr(b'\n', &end).map_or(0, |last| last + 1);
    let rest = end.get(whole..).unwrap_or_default();
    let is_record = rest.starts_with(BEGINNING) || BEGINNING.starts_with(rest);
    match rest {
        [] => Ok(()),
        _ if is_record && (whole > 0 || from == 0) => file.set_len(from + whole as u64),
        _ => file.write_all(b"\n"),
    }
}

/// `exchanges.jsonl` becomes `exchanges-20261123T080000.123Z.jsonl`: names sort by time.
fn rotated_name(path: &Path, now: SystemTime) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    let time = chrono::DateTime::<chrono::Utc>::from(now);
    (0..)
        .map(|more| {
            let time = time + chrono::Duration::milliseconds(more);
            path.with_file_name(format!("{stem}-{}{ending}", time.format("%Y%m%dT%H%M%S%.3fZ")))
        })
        .find(|name| !name.exists() && !gz(name).exists())
        .unwrap_or_else(|| path.with_extension("old"))
}

fn gz(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    PathBuf::from(name)
}

/// The rotated files of this name, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    let is_rotated = |name: &str| {
        let time = name.strip_prefix(&prefix).map(|rest| rest.strip_suffix(".gz").unwrap_or(rest));
        time.and_then(|rest| rest.strip_suffix(&ending)).is_some_and(|time| {
            time.len() == "20261123T080000.123Z".len()
                && time.bytes().all(|b| b.is_ascii_digit() || b"TZ.".contains(&b))
        })
    };
    let mut names: Vec<PathBuf> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_rotated))
        .collect();
    names.sort();
    Ok(names)
}

fn tidy(path: &Path, keep: usize) -> io::Result<()> {
    for name in rotated(path)?.iter().filter(|name| gz(name).exists()) {
        // A process ended before it could remove what it had compressed.
        remove(name)?;
    }
    let names = rotated(path)?;
    let excess = names.len().saturating_sub(keep);
    let (old, young) = names.split_at(excess);
    for name in old {
        remove(name)?;
    }
    for name in young.iter().filter(|name| name.extension().is_none_or(|ending| ending != "gz")) {
        let age = fs::metadata(name).and_then(|there| there.modified()).ok();
        let age = age.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_none_or(|age| age >= SETTLED) {
            compress(name)?;
        }
    }
    Ok(())
}

/// Another process may tidy up as well.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => Err(problem),
        _ => Ok(()),
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let mut from = match File::open(path) {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    // Of two processes at it each has its own, and either is the whole.
    let working = path.with_extension(format!("{}.partial", std::process::id()));
    let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&working)?;
    let mut encoder = GzEncoder::new(to, Compression::fast());
    let done = io::copy(&mut from, &mut encoder)
        .and_then(|_| encoder.finish())
        .and_then(|_| fs::rename(&working, gz(path)));
    match done {
        Ok(()) => remove(path),
        Err(problem) => {
            remove(&working)?;
            Err(problem)
        }
    }
}

/// The ids of the records at the end of the file, and of the one before it where it is short. One
/// that is compressed already was noted as delivered long before.
fn recent_ids(path: &Path) -> HashSet<Box<[u8]>> {
    let mut ids = HashSet::new();
    let newest =
        rotated(path).unwrap_or_default().pop().filter(|path| path.extension().is_none_or(|e| e != "gz"));
    for path in [Some(path.to_owned()), newest].into_iter().flatten() {
        let Ok(mut file) = File::open(&path) else { continue };
        let length = file.metadata().map_or(0, |there| there.len());
        let mut end = Vec::new();
        if file.seek(SeekFrom::Start(length.saturating_sub(LOOK_BACK))).is_ok() {
            let _ = file.take(LOOK_BACK).read_to_end(&mut end);
        }
        // A line without its end is none.
        end.truncate(memchr::memrchr(b'\n', &end).map_or(0, |last| last + 1));
        ids.extend(end.split(|byte| *byte == b'\n').filter_map(id).map(Box::from));
        if length >= LOOK_BACK {
            break;
        }
    }
    ids
}

/// The `request_id` of a record, which stands near its beginning.
fn id(record: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = b"\"request_id\":\"";
    let at = memchr::memmem::find(record.get(..256).unwrap_or(record), KEY)? + KEY.len();
    let rest = record.get(at..)?;
    rest.get(..memchr::memchr(b'"', rest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, name: &str, text: &str) -> PathBuf {
        let path = path.with_file_name(name);
        fs::write(&path, text).unwrap();
        let old = SystemTime::now() - 2 * SETTLED;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        path
    }

    #[test]
    fn old_files_are_compressed_and_only_so_many_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exchanges.jsonl");
        fs::write(&path, "now").unwrap();
        for minute in 10..16 {
            write(&path, &format!("exchanges-20261123T08{minute}00.000Z.jsonl"), &format!("{minute}\n"));
        }
        let others = [
            "exchanges-notes.jsonl",
            "other-20261123T081000.000Z.jsonl",
            "exchanges-20261123T081000.000Z.txt",
        ];
        others.iter().for_each(|name| drop(write(&path, name, "mine")));
        tidy(&path, 3).unwrap();
        let names: Vec<String> = rotated(&path)
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [13, 14, 15].map(|minute| format!("exchanges-20261123T08{minute}00.000Z.jsonl.gz"))
        );
        let mut text = String::new();
        let file = File::open(path.with_file_name(&names[1])).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "14\n");
        assert!(others.iter().all(|name| path.with_file_name(name).exists()));
        // One that was renamed just now may still be written to.
        let young = path.with_file_name("exchanges-20261123T082000.000Z.jsonl");
        fs::write(&young, "young").unwrap();
        tidy(&path, 3).unwrap();
        assert!(young.exists() && rotated(&path).unwrap().len() == 3);
    }

    #[test]
    fn what_a_killed_process_left_of_a_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        for (there, expected) in [
            ("", ""),
            ("{\"time\":1}\nwhole\n", "{\"time\":1}\nwhole\n"),
            ("one\n{\"time\":\"2026-1", "one\n"),
            ("one\n{\"ti", "one\n"),
            ("{\"time\":\"2026-1", ""),
            // Somebody else's file is not cut.
            ("no record of ours", "no record of ours\n"),
            ("one\n{\"name\":1}", "one\n{\"name\":1}\n"),
        ] {
            fs::write(&path, there).unwrap();
            open(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        fs::write(&path, "{\"request_id\":\"a\"}\n{\"request_id\":\"b\",").unwrap();
        assert_eq!(recent_ids(&path).len(), 1, "half a line is no record");
    }

    #[test]
    fn names_of_rotated_files_are_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_420_800);
        let first = rotated_name(&path, now);
        assert_eq!(first.file_name().unwrap(), "x-20261123T080000.000Z.jsonl");
        fs::write(gz(&first), "").unwrap();
        assert_eq!(rotated_name(&path, now).file_name().unwrap(), "x-20261123T080000.001Z.jsonl");
    }

    #[test]
    fn ids_are_found_in_file_and_in_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.jsonl");
        let line = |n: usize| {
            format!(
                "{{\"time\":\"t\",\"request_id\":\"id-{n}\",\"prompt\":\"\\\"request_id\\\":\\\"no\\\"\"}}\n"
            )
        };
        fs::write(&path, line(1) + &line(2)).unwrap();
        write(&path, "x-20261123T080000.000Z.jsonl", &line(3));
        let ids = recent_ids(&path);
        let mut ids: Vec<_> = ids.iter().map(|id| String::from_utf8_lossy(id).into_owned()).collect();
        ids.sort();
        assert_eq!(ids, ["id-1", "id-2", "id-3"]);
    }
}
