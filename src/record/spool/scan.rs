//! Reads the records of a spool beside the process that owns it: nothing is locked, changed or taken over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{self, FRAME_HEADER_BYTES, ParsedFrame, SEGMENT_MAGIC};
use super::segment::{
    OPEN_EXTENSION, SCAN_CHUNK_BYTES, SEALED_EXTENSION, has_segment_magic, position_path, read_frames,
    segment_path,
};

/// A record in a segment.
pub struct SpooledRecord<'a> {
    /// The record.
    pub bytes: &'a [u8],
    /// The sinks that have not delivered it.
    pub undelivered_to: Vec<&'static str>,
}

/// What is at the end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// A whole record, or nothing at all.
    Whole,
    /// The beginning of a record: it is being written, or its process was killed meanwhile.
    HalfWritten,
    /// So many bytes that are no records.
    Damaged(u64),
}

/// The names of the segments in a spool directory, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn list_segments(directory: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_segment = path.extension().is_some_and(|e| e == OPEN_EXTENSION || e == SEALED_EXTENSION);
        names.extend(
            path.file_stem().filter(|_| is_segment).and_then(|name| name.to_str()).map(str::to_owned),
        );
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Visits the records of a segment, oldest first. `None` if the segment is gone, since all of it is delivered.
///
/// # Errors
/// If the segment cannot be read.
pub fn visit_records(
    directory: &Path,
    name: &str,
    sinks: &[&'static str],
    mut visit: impl FnMut(SpooledRecord<'_>),
) -> io::Result<Option<SegmentEnd>> {
    let Some((path, file)) = open_segment(directory, name)? else { return Ok(None) };
    let delivered: Vec<(&'static str, u64)> =
        sinks.iter().map(|sink| (*sink, delivered_offset(directory, name, sink))).collect();
    // What is appended from now on is newer than this visit.
    let length = file.metadata()?.len();
    if !has_segment_magic(&file, length)? {
        return Ok(Some(SegmentEnd::HalfWritten));
    }
    let mut offset = SEGMENT_MAGIC.len() as u64;
    loop {
        let frames = read_frames(&file, offset, length, SCAN_CHUNK_BYTES)?;
        if frames.is_empty() {
            return Ok(Some(end_of_segment(&path, &file, offset, length)?));
        }
        for bytes in frame::records(&frames) {
            let undelivered = delivered.iter().filter(|(_, delivered)| *delivered <= offset);
            visit(SpooledRecord { bytes, undelivered_to: undelivered.map(|(sink, _)| *sink).collect() });
            offset += (FRAME_HEADER_BYTES + bytes.len()) as u64;
        }
    }
}

/// Opens a segment, which its process may be giving its other name.
fn open_segment(directory: &Path, name: &str) -> io::Result<Option<(PathBuf, File)>> {
    for extension in [OPEN_EXTENSION, SEALED_EXTENSION] {
        let path = segment_path(directory, name, extension);
        match File::open(&path) {
            Ok(file) => return Ok(Some((path, file))),
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(None)
}

/// Up to where a sink has delivered a segment; zero if it has not begun.
fn delivered_offset(directory: &Path, name: &str, sink: &str) -> u64 {
    let text = fs::read_to_string(position_path(directory, name, sink)).ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// What the rest of a segment is, of which no record can be read.
fn end_of_segment(path: &Path, file: &File, offset: u64, length: u64) -> io::Result<SegmentEnd> {
    let rest = length.saturating_sub(offset);
    if rest == 0 {
        return Ok(SegmentEnd::Whole);
    }
    let mut head = [0; FRAME_HEADER_BYTES];
    let head = head
        .get_mut(..usize::try_from(rest).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES))
        .unwrap_or_default();
    file.read_exact_at(head, offset)?;
    // A sealed segment is complete.
    let is_growing = path.extension().is_some_and(|extension| extension == OPEN_EXTENSION);
    match frame::parse_frame(head) {
        ParsedFrame::Incomplete(needed) if is_growing && needed as u64 > rest => Ok(SegmentEnd::HalfWritten),
        _ => Ok(SegmentEnd::Damaged(rest)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::time::{Duration, Instant};

    use super::super::{FrameBuffer, Spool, SpoolRead};
    use super::*;

    fn visited(directory: &Path, name: &str) -> (Vec<(String, Vec<&'static str>)>, Option<SegmentEnd>) {
        let mut records = Vec::new();
        let end = visit_records(directory, name, &["a", "b"], |record| {
            records.push((String::from_utf8(record.bytes.to_vec()).unwrap(), record.undelivered_to));
        });
        (records, end.unwrap())
    }

    fn frames(records: &[&str]) -> FrameBuffer {
        let mut frames = FrameBuffer::default();
        records
            .iter()
            .for_each(|record| frames.push_record(|buffer| buffer.extend_from_slice(record.as_bytes())));
        frames
    }

    #[test]
    fn records_are_visited_beside_their_process_and_with_the_sinks_that_they_wait_for() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let now = Instant::now();
        let (mut spool, readers) = Spool::open(directory, 64 << 20, &["a", "b"], now);
        assert_eq!(spool.append(&mut frames(&["one", "two"]), None, now), 0);
        let SpoolRead::Batch(batch) = readers[0].wait_for_batch(1 << 20, Duration::from_secs(9)) else {
            panic!()
        };
        readers[0].mark_delivered(&batch);
        assert_eq!(spool.append(&mut frames(&["three"]), None, now), 0);
        let names = list_segments(directory).unwrap();
        let [name] = names.as_slice() else { panic!("{names:?}") };
        let one_sink = |text: &str| (text.to_owned(), vec!["b"]);
        let expected = vec![one_sink("one"), one_sink("two"), ("three".to_owned(), vec!["a", "b"])];
        assert_eq!(visited(directory, name), (expected.clone(), Some(SegmentEnd::Whole)));
        // Its process still owns it.
        assert_eq!(spool.append(&mut frames(&["four"]), None, now), 0);
        assert_eq!(visited(directory, name).0.len(), 4);
        assert_eq!(visited(directory, "0-000000-1-00000000"), (Vec::new(), None));
    }

    #[test]
    fn a_half_written_end_is_no_damage_and_other_bytes_are() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let whole = [SEGMENT_MAGIC.as_slice(), frames(&["one", "two"]).complete_frames()].concat();
        let with = |more: &[u8]| [&whole, more].concat();
        let half = frames(&["three"]).complete_frames()[..10].to_vec();
        let path = |extension: &str| segment_path(directory, "7", extension);
        for (extension, bytes, count, end) in [
            (OPEN_EXTENSION, whole.clone(), 2, SegmentEnd::Whole),
            (OPEN_EXTENSION, whole[..SEGMENT_MAGIC.len()].to_vec(), 0, SegmentEnd::Whole),
            (OPEN_EXTENSION, whole[..5].to_vec(), 0, SegmentEnd::HalfWritten),
            (OPEN_EXTENSION, with(&half), 2, SegmentEnd::HalfWritten),
            (OPEN_EXTENSION, with(&half[..3]), 2, SegmentEnd::HalfWritten),
            (OPEN_EXTENSION, with(&[0; 40]), 2, SegmentEnd::Damaged(40)),
            (SEALED_EXTENSION, with(&half), 2, SegmentEnd::Damaged(10)),
            (SEALED_EXTENSION, with(&half[..3]), 2, SegmentEnd::Damaged(3)),
        ] {
            for other in [OPEN_EXTENSION, SEALED_EXTENSION] {
                let _ = fs::remove_file(path(other));
            }
            fs::write(path(extension), &bytes).unwrap();
            let (records, found) = visited(directory, "7");
            assert_eq!((records.len(), found), (count, Some(end)), "{extension} {} bytes", bytes.len());
            assert_eq!(fs::read(path(extension)).unwrap(), bytes, "it stays as it is");
        }
        // A flipped bit hides what follows.
        let mut bytes = whole.clone();
        bytes[SEGMENT_MAGIC.len() + FRAME_HEADER_BYTES] ^= 1;
        let rest = (whole.len() - SEGMENT_MAGIC.len()) as u64;
        fs::write(path(SEALED_EXTENSION), &bytes).unwrap();
        assert_eq!(visited(directory, "7"), (Vec::new(), Some(SegmentEnd::Damaged(rest))));
        OpenOptions::new().write(true).open(path(SEALED_EXTENSION)).unwrap().write_all_at(b"x", 0).unwrap();
        let foreign = visit_records(directory, "7", &[], |_| {});
        assert_eq!(foreign.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
