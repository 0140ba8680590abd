//! One segment file of the spool, and beside it a position file for each sink.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::append_times::AppendTimes;
use super::frame::{self, ParsedFrame, SEGMENT_MAGIC};

pub(super) const OPEN_EXTENSION: &str = "open";
pub(super) const SEALED_EXTENSION: &str = "sealed";
/// A segment that is being created and not locked yet.
const UNLOCKED_EXTENSION: &str = "young";
/// An unlocked segment of this age was left by a process that was killed while it created it.
const STRAY_FILE_AGE: Duration = Duration::from_secs(60);
/// The position of a sink that needs nothing of a segment, however long it gets.
const ALL_DELIVERED: u64 = u64::MAX;
/// How much is read at a time when a whole segment is searched.
pub(super) const SCAN_CHUNK_BYTES: usize = 1024 * 1024;

/// A segment that this process has locked.
#[derive(Debug)]
pub(super) struct Segment {
    /// The file name without its extension. Names sort by age.
    name: String,
    extension: &'static str,
    file: Arc<File>,
    /// The length of the whole records in the file.
    length: u64,
    /// Whether another process wrote the segment.
    is_adopted: bool,
    /// The sink that got the records of the segment before they were appended to it.
    delivered_to: Option<&'static str>,
    /// When this process appended records; empty if another process did.
    append_times: AppendTimes,
    positions: Vec<SinkPosition>,
}

/// How far a sink has delivered a segment.
#[derive(Debug)]
struct SinkPosition {
    sink_name: &'static str,
    delivered_offset: u64,
    /// The records beyond it; `None` if they are not counted.
    undelivered_records: Option<u64>,
    position_file: Option<File>,
}

/// A segment of a process that has ended, now locked by this one.
pub(super) struct AdoptedSegment {
    pub(super) segment: Segment,
    /// How many bytes of an incomplete record were cut off its end.
    pub(super) torn_bytes: u64,
}

/// Creates an empty segment and locks it. The sink `delivered_to`, if any, has its records already.
pub(super) fn create_segment(
    directory: &Path,
    number: u64,
    sinks: &[&'static str],
    delivered_to: Option<&'static str>,
) -> io::Result<Segment> {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let random = fastrand::u32(..);
    // Names sort by age, those of earlier versions in milliseconds included: `-` sorts before a digit.
    let name = format!("{:016}-{number:06}-{}-{random:08x}", since_epoch.as_micros(), std::process::id());
    // Under a name that no process adopts: between creation and lock the file looks like an orphan.
    let unlocked_path = segment_path(directory, &name, UNLOCKED_EXTENSION);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&unlocked_path)?;
    let prepared = flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(io::Error::from)
        .and_then(|()| file.write_all_at(SEGMENT_MAGIC, 0))
        .and_then(|()| match delivered_to {
            Some(sink) => fs::write(position_path(directory, &name, sink), position_line(ALL_DELIVERED)),
            None => Ok(()),
        })
        .and_then(|()| fs::rename(&unlocked_path, segment_path(directory, &name, OPEN_EXTENSION)));
    if let Err(problem) = prepared {
        let _ = fs::remove_file(&unlocked_path);
        if let Some(sink) = delivered_to {
            let _ = fs::remove_file(position_path(directory, &name, sink));
        }
        return Err(problem);
    }
    let length = SEGMENT_MAGIC.len() as u64;
    let positions = sinks
        .iter()
        .map(|sink| SinkPosition {
            sink_name: sink,
            delivered_offset: if delivered_to == Some(*sink) { ALL_DELIVERED } else { length },
            undelivered_records: Some(0),
            position_file: None,
        })
        .collect();
    Ok(Segment {
        name,
        extension: OPEN_EXTENSION,
        file: Arc::new(file),
        length,
        is_adopted: false,
        delivered_to,
        append_times: AppendTimes::default(),
        positions,
    })
}

/// Writes all bytes at this offset. After an error the file is truncated to where it was.
pub(super) fn write_all_or_truncate(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset).inspect_err(|_| {
        let _ = file.set_len(offset);
    })
}

/// Reads whole records from `start` on: at most about `max_bytes` of them, but at least one. The result is
/// empty if there is no valid record at `start`.
pub(super) fn read_frames(file: &File, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<u8>> {
    let rest = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; rest.min(max_bytes.max(64))];
    file.read_exact_at(&mut bytes, start)?;
    let mut complete_bytes = 0;
    loop {
        match frame::parse_frame(bytes.get(complete_bytes..).unwrap_or_default()) {
            ParsedFrame::Record(_, length) => complete_bytes += length,
            // The first record is longer than what was read.
            ParsedFrame::Incomplete(needed)
                if complete_bytes == 0 && needed <= rest && needed > bytes.len() =>
            {
                bytes = vec![0; needed];
                file.read_exact_at(&mut bytes, start)?;
            }
            ParsedFrame::Incomplete(_) | ParsedFrame::Corrupt => break,
        }
    }
    bytes.truncate(complete_bytes);
    Ok(bytes)
}

/// Counts the whole records between two offsets. Reads the file.
pub(super) fn count_records(file: &File, start: u64, end: u64) -> u64 {
    let (mut offset, mut count) = (start, 0);
    while let Ok(bytes) = read_frames(file, offset, end, SCAN_CHUNK_BYTES) {
        if bytes.is_empty() {
            break;
        }
        count += frame::records(&bytes).count() as u64;
        offset += bytes.len() as u64;
    }
    count
}

/// Adopts all segments in the directory that no process has locked.
pub(super) fn adopt_orphans(
    directory: &Path,
    sinks: &[&'static str],
) -> Vec<Result<AdoptedSegment, (PathBuf, io::Error)>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let segments = entries.filter_map(|entry| {
        let path = entry.path();
        let found = path.extension()?.to_str()?;
        let extension = [OPEN_EXTENSION, SEALED_EXTENSION].into_iter().find(|known| *known == found)?;
        Some((path, extension))
    });
    segments
        .filter_map(|(path, extension)| {
            adopt_segment(&path, extension, sinks).map_err(|problem| (path, problem)).transpose()
        })
        .collect()
}

/// Deletes position files without a segment, and segments of a process that was killed while it created them.
pub(super) fn remove_stray_files(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(extension) = path.extension().and_then(|extension| extension.to_str()) else { continue };
        let is_stray = if extension.starts_with("at-") {
            ![OPEN_EXTENSION, SEALED_EXTENSION, UNLOCKED_EXTENSION]
                .iter()
                .any(|extension| path.with_extension(extension).exists())
        } else {
            // Another process may be creating this one at the moment: that takes much less than a minute.
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|modified| modified.elapsed().ok());
            extension == UNLOCKED_EXTENSION && age.is_some_and(|age| age > STRAY_FILE_AGE)
        };
        if is_stray {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Locks a segment, cuts off an incomplete last record and reads the positions of the sinks. `None` if
/// another process has the segment or it is gone.
fn adopt_segment(
    path: &Path,
    extension: &'static str,
    sinks: &[&'static str],
) -> io::Result<Option<AdoptedSegment>> {
    let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { return Ok(None) };
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // The kernel releases the lock when a process ends, however it ends.
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    // Its process may have renamed or deleted it between the listing and the lock.
    if !path.exists() {
        return Ok(None);
    }
    let written = file.metadata()?.len();
    let length = if extension == OPEN_EXTENSION { complete_records_length(&file, written)? } else { written };
    let torn_bytes = written - length;
    if torn_bytes > 0 {
        file.set_len(length)?;
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let start = SEGMENT_MAGIC.len() as u64;
    let position = |sink: &&'static str| {
        let text = fs::read_to_string(position_path(directory, name, sink)).ok();
        let saved = text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        SinkPosition {
            sink_name: sink,
            delivered_offset: u64::clamp(saved, start, length.max(start)),
            undelivered_records: None,
            position_file: None,
        }
    };
    let positions = sinks.iter().map(position).collect();
    let mut segment = Segment {
        name: name.to_owned(),
        extension,
        file: Arc::new(file),
        length,
        is_adopted: true,
        delivered_to: None,
        append_times: AppendTimes::default(),
        positions,
    };
    segment.seal(directory);
    Ok(Some(AdoptedSegment { segment, torn_bytes }))
}

/// Whether a file of this length has the first bytes of a segment; `false` if it is shorter than they are.
///
/// # Errors
/// `InvalidData` if it has others.
pub(super) fn has_segment_magic(file: &File, length: u64) -> io::Result<bool> {
    let mut magic = [0; SEGMENT_MAGIC.len()];
    if length < SEGMENT_MAGIC.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut magic, 0)?;
    if magic == *SEGMENT_MAGIC {
        return Ok(true);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a segment in the format of this version"))
}

/// The length of a file up to the end of its last whole record.
fn complete_records_length(file: &File, written: u64) -> io::Result<u64> {
    if !has_segment_magic(file, written)? {
        return Ok(0);
    }
    let mut offset = SEGMENT_MAGIC.len() as u64;
    loop {
        match read_frames(file, offset, written, SCAN_CHUNK_BYTES)?.len() {
            0 => return Ok(offset),
            length => offset += length as u64,
        }
    }
}

pub(super) fn segment_path(directory: &Path, name: &str, extension: &str) -> PathBuf {
    directory.join(format!("{name}.{extension}"))
}

/// The content of a position file. The number has a fixed width, so that it overwrites the previous one completely.
fn position_line(offset: u64) -> String {
    format!("{offset:020}\n")
}

pub(super) fn position_path(directory: &Path, name: &str, sink: &str) -> PathBuf {
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

    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Notes that records were appended to the file.
    pub(super) fn on_appended(&mut self, bytes: u64, records: u64, now: SystemTime) {
        self.append_times.note(self.length, now);
        self.length += bytes;
        for position in
            self.positions.iter_mut().filter(|position| position.delivered_offset != ALL_DELIVERED)
        {
            position.undelivered_records = position.undelivered_records.map(|count| count + records);
        }
    }

    /// Notes that records of another process were written to the empty file.
    pub(super) fn on_recovered(&mut self, bytes: u64, records: u64) {
        self.length += bytes;
        self.is_adopted = true;
        self.positions.iter_mut().for_each(|position| position.undelivered_records = Some(records));
    }

    /// The sink that got the records of the segment before they were appended to it.
    pub(super) fn delivered_to(&self) -> Option<&'static str> {
        self.delivered_to
    }

    /// When the record at this offset was appended; `None` if another process did that.
    pub(super) fn append_time_at(&self, offset: u64) -> Option<SystemTime> {
        self.append_times.time_at(offset)
    }

    /// Whether its file is still in the directory.
    pub(super) fn file_exists(&self, directory: &Path) -> bool {
        segment_path(directory, &self.name, self.extension).exists()
    }

    /// Gives the file the name of a segment that is no longer written.
    pub(super) fn seal(&mut self, directory: &Path) {
        if self.extension != OPEN_EXTENSION {
            return;
        }
        let renamed = fs::rename(
            segment_path(directory, &self.name, OPEN_EXTENSION),
            segment_path(directory, &self.name, SEALED_EXTENSION),
        );
        // A file that somebody has deleted needs no new name. What is in it is still read.
        if renamed.is_ok() || renamed.is_err_and(|problem| problem.kind() == io::ErrorKind::NotFound) {
            self.extension = SEALED_EXTENSION;
        }
    }

    /// The offset up to which a sink has delivered the segment.
    pub(super) fn delivered_offset(&self, sink_index: usize) -> u64 {
        self.positions.get(sink_index).map_or(self.length, |position| position.delivered_offset)
    }

    /// Bytes that a sink has not delivered.
    pub(super) fn undelivered_bytes(&self, sink_index: usize) -> u64 {
        self.length.saturating_sub(self.delivered_offset(sink_index))
    }

    /// Records that a sink has not delivered; `None` if they are not counted.
    pub(super) fn undelivered_records(&self, sink_index: usize) -> Option<u64> {
        self.positions.get(sink_index).and_then(|position| position.undelivered_records)
    }

    /// Sets the number of records that a sink has not delivered, which [`count_records`] has counted.
    pub(super) fn set_undelivered_records(&mut self, sink_index: usize, count: u64) {
        if let Some(position) = self.positions.get_mut(sink_index) {
            position.undelivered_records = Some(count);
        }
    }

    /// Saves how far a sink has delivered, for the next process. `records` are those that are delivered now.
    pub(super) fn save_position(&mut self, sink_index: usize, directory: &Path, offset: u64, records: u64) {
        let Some(position) = self.positions.get_mut(sink_index) else { return };
        position.delivered_offset = offset;
        position.undelivered_records = match position.undelivered_records {
            _ if offset >= self.length => Some(0),
            count => count.map(|count| count.saturating_sub(records)),
        };
        if position.position_file.is_none() {
            let path = position_path(directory, &self.name, position.sink_name);
            position.position_file =
                OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(path).ok();
        }
        if let Some(file) = &position.position_file {
            // If this fails, the sink gets these records again after a crash: delivery is at least once.
            let _ = file.write_all_at(position_line(offset).as_bytes(), 0);
        }
        let all_delivered = self.positions.iter().map(|position| position.delivered_offset).min();
        self.append_times.forget_before(all_delivered.unwrap_or(offset));
    }

    /// Whether the segment is sealed and every sink has delivered all of it.
    pub(super) fn is_fully_delivered(&self) -> bool {
        self.extension == SEALED_EXTENSION
            && (0..self.positions.len()).all(|sink| self.undelivered_bytes(sink) == 0)
    }

    /// Deletes the segment file and its position files.
    pub(super) fn delete_files(&self, directory: &Path) {
        let _ = fs::remove_file(segment_path(directory, &self.name, self.extension));
        for position in &self.positions {
            let _ = fs::remove_file(position_path(directory, &self.name, position.sink_name));
        }
    }
}

#[cfg(test)]
impl Segment {
    pub(super) fn replace_file(&mut self, file: Arc<File>) -> Arc<File> {
        std::mem::replace(&mut self.file, file)
    }
}
