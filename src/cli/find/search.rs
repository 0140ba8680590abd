//! Searches the places where records are: the spool, the record files, and what Log Analytics has rejected.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::found::{FoundRecords, Place};
use super::line_scan::{FoundLine, ScannedLines, record_time, scan_lines};
use super::request_id::{IdFields, RequestId};
use crate::cli::progress::Progress;
use crate::cli::record_files::{describe_read_problem, open_record_file, total_bytes};
use crate::config::{JsonlConfig, RecordConfig};
use crate::record::spool::scan::{SegmentEnd, SpooledRecord, list_segments, visit_records};
use crate::record::writer::write_ahead_log::{LogPlace, visit_records as visit_logged_records};
use crate::record::{dead_letter_file, delivery, list_record_files};
use crate::system_error::describe;

/// How often files are listed again because some were renamed or compressed while others were read.
const MAX_LISTINGS: usize = 5;

/// A search for an id, and what was searched.
pub(super) struct Search<'a> {
    id: &'a RequestId,
    progress: &'a Progress,
    pub(super) found: FoundRecords,
    pub(super) searched: Searched,
}

/// What was searched, for those that look for a record that was not found.
#[derive(Debug, Default)]
pub(super) struct Searched {
    /// The places, as people call them.
    pub(super) places: Vec<String>,
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// The time of the oldest record.
    pub(super) oldest_time: Option<String>,
    /// What could not be searched, and why.
    pub(super) problems: Vec<String>,
    /// What is not complete yet.
    pub(super) notes: Vec<String>,
}

impl<'a> Search<'a> {
    /// A search that keeps at most so many records.
    pub(super) fn new(id: &'a RequestId, limit: usize, progress: &'a Progress) -> Self {
        Self { id, progress, found: FoundRecords::new(limit), searched: Searched::default() }
    }

    /// Searches all places of this configuration. `runtime_directory` is where records wait in memory.
    pub(super) fn search_configured(&mut self, config: &RecordConfig, runtime_directory: &Path) {
        let mut sinks = Vec::new();
        sinks.extend(config.jsonl.as_ref().map(|_| delivery::JSONL));
        sinks.extend(config.log_analytics.as_ref().map(|_| delivery::LOG_ANALYTICS));
        // In the order in which records move on: what leaves a place meanwhile is in the next one by then.
        self.search_write_ahead_logs(&LogPlace {
            directory: runtime_directory.to_owned(),
            outlives_process: true,
            spool_directory: config.spool.directory.clone(),
        });
        self.search_spool(&config.spool.directory, &sinks);
        if let Some(jsonl) = &config.jsonl {
            self.search_record_files(jsonl);
        }
        let dead_letters = dead_letter_file(&config.spool);
        if dead_letters.exists() {
            self.search_files(std::slice::from_ref(&dead_letters));
            self.searched.places.push(format!("what Log Analytics rejected ({})", dead_letters.display()));
        }
    }

    /// Searches these files.
    pub(super) fn search_files(&mut self, files: &[PathBuf]) {
        self.progress.add_total_bytes(total_bytes(files));
        for path in files {
            if let Err(problem) = self.search_file(path) {
                self.searched.problems.push(format!(
                    "{}: {}",
                    path.display(),
                    describe_read_problem(&problem)
                ));
            }
        }
    }

    /// A directory that this user may not read is passed over: its records are in the file within milliseconds, or after
    /// the next start if the process was killed.
    fn search_write_ahead_logs(&mut self, place: &LogPlace) {
        let Self { id, found, searched, .. } = self;
        visit_logged_records(place, |record| {
            searched.bytes += record.len() as u64;
            add_if_it_has_the_id(id, record, Place::WriteAheadLog, found);
        });
    }

    fn search_spool(&mut self, directory: &Path, sinks: &[&'static str]) {
        let names = match list_segments(directory) {
            Ok(names) => names,
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
                self.searched.places.push(format!("the spool (there is no {})", directory.display()));
                return;
            }
            Err(problem) => {
                self.searched.problems.push(format!("{}: {}", directory.display(), describe(&problem)));
                return;
            }
        };
        self.searched.places.push(format!("the spool {}", directory.display()));
        for name in names {
            let problem = |problem: &str| format!("segment {name} in {}: {problem}", directory.display());
            match self.search_segment(directory, &name, sinks) {
                Ok(None | Some(SegmentEnd::Whole)) => {}
                Ok(Some(SegmentEnd::HalfWritten)) => {
                    self.searched.notes.push(problem("its last record is not complete"));
                }
                Ok(Some(SegmentEnd::Damaged(bytes))) => {
                    self.searched.problems.push(problem(&format!("its last {bytes} bytes are damaged")));
                }
                Err(error) => self.searched.problems.push(problem(&describe(&error))),
            }
        }
    }

    fn search_segment(
        &mut self,
        directory: &Path,
        name: &str,
        sinks: &[&'static str],
    ) -> io::Result<Option<SegmentEnd>> {
        let Self { id, progress, found, searched } = self;
        let mut is_first = true;
        visit_records(directory, name, sinks, |SpooledRecord { bytes, undelivered_to }| {
            searched.bytes += bytes.len() as u64;
            progress.add_total_bytes(bytes.len() as u64);
            progress.add_done_bytes(bytes.len() as u64);
            if std::mem::take(&mut is_first) {
                searched.note_time(record_time(bytes));
            }
            if id.finders().iter().any(|finder| finder.find(bytes).is_some()) {
                add_if_it_has_the_id(id, bytes, Place::Spool(undelivered_to), found);
            }
        })
    }

    /// Searches the record files, also those that another program has renamed.
    fn search_record_files(&mut self, config: &JsonlConfig) {
        let (mut read_inodes, mut read_names, mut failed) = (HashSet::new(), HashSet::new(), HashSet::new());
        for _ in 0..MAX_LISTINGS {
            let files = match list_all_record_files(config) {
                Ok(files) => files,
                Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
                    self.searched
                        .places
                        .push(format!("{} (its directory is not there)", config.path.display()));
                    return;
                }
                Err(problem) => {
                    self.searched.problems.push(format!("{}: {}", config.path.display(), describe(&problem)));
                    return;
                }
            };
            let new: Vec<PathBuf> = files
                .into_iter()
                .filter(|path| {
                    // A file that has been compressed since it was read.
                    let is_compressed_later = path.extension().is_some_and(|e| e == "gz")
                        && read_names.contains(&path.with_extension(""));
                    let is_read = inode(path).is_some_and(|inode| read_inodes.contains(&inode));
                    !is_read && !is_compressed_later && !failed.contains(path)
                })
                .collect();
            if new.is_empty() {
                break;
            }
            self.progress.add_total_bytes(total_bytes(&new));
            for path in new {
                let inode = inode(&path);
                match self.search_regular_file(&path) {
                    // It has another name now, under which it is listed again.
                    Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
                    Err(problem) => {
                        self.searched.problems.push(format!(
                            "{}: {}",
                            path.display(),
                            describe_read_problem(&problem)
                        ));
                        failed.insert(path);
                    }
                    Ok(()) => {
                        read_inodes.extend(inode);
                        read_names.insert(path);
                    }
                }
            }
        }
        let count = read_names.len();
        let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        self.searched.places.push(format!("{files} of {}", config.path.display()));
    }

    /// A device or pipe that records go to cannot be searched, and may have no end.
    fn search_regular_file(&mut self, path: &Path) -> io::Result<()> {
        if fs::metadata(path)?.is_file() {
            return self.search_file(path);
        }
        Err(io::Error::other("it is not a regular file"))
    }

    fn search_file(&mut self, path: &Path) -> io::Result<()> {
        let Self { id, progress, found, searched } = self;
        if let Some(other) =
            path.extension().filter(|extension| ["xz", "zst", "bz2", "lz4"].iter().any(|e| e == extension))
        {
            let message = format!("it is compressed as {}; decompress it, and name it", other.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let reader = open_record_file(path, progress)?;
        let (mut scanned, mut damaged, mut half_written) = (ScannedLines::default(), 0_u64, false);
        let mut on_line = |line: FoundLine<'_>| {
            let place = Place::File(path.to_owned());
            match add_if_it_has_the_id(id, line.bytes, place, found) {
                true => {}
                false if line.is_complete => damaged += 1,
                false => half_written = true,
            }
        };
        let result = scan_lines(reader, id.finders(), &mut scanned, &mut on_line);
        searched.files += 1;
        searched.bytes += scanned.bytes;
        searched.note_time(scanned.first_time);
        let in_file = |text: String| format!("{}: {text}", path.display());
        if damaged > 0 {
            searched
                .problems
                .push(in_file(format!("lines that contain the id and are not records: {damaged}")));
        }
        if scanned.too_long > 0 {
            searched
                .problems
                .push(in_file(format!("lines that are longer than a record: {}", scanned.too_long)));
        }
        if half_written {
            searched.notes.push(in_file("its last line contains the id, and is not complete".to_owned()));
        }
        result
    }
}

impl Searched {
    fn note_time(&mut self, time: Option<String>) {
        if let Some(time) = time
            && self.oldest_time.as_ref().is_none_or(|oldest| time < *oldest)
        {
            self.oldest_time = Some(time);
        }
    }
}

/// Adds a record if the id is one of its own; `false` if it is no record.
fn add_if_it_has_the_id(id: &RequestId, bytes: &[u8], place: Place, found: &mut FoundRecords) -> bool {
    let Ok(fields) = serde_json::from_slice::<IdFields<'_>>(bytes) else { return false };
    if let Some(field) = id.field_of(&fields) {
        found.add(&fields.time, &fields.request_id, field, bytes, place);
    }
    true
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The record files, and those that a program such as logrotate has made of them: `exchanges.jsonl.1`,
/// `exchanges.jsonl-20261123.gz`.
fn list_all_record_files(config: &JsonlConfig) -> io::Result<Vec<PathBuf>> {
    let mut files = list_record_files(config)?;
    let Some(name) = config.path.file_name().and_then(|name| name.to_str()) else { return Ok(files) };
    let is_renamed = |other: &str| {
        let rest = other.strip_prefix(name).and_then(|rest| rest.strip_prefix(['.', '-']));
        rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let directory = config.path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut renamed = Vec::new();
    for entry in fs::read_dir(directory.unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_renamed) {
            renamed.push(path);
        }
    }
    renamed.sort();
    files.splice(0..0, renamed);
    Ok(files)
}
