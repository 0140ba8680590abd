//! Finds the lines that contain an id. The bytes are searched as they are, so that only such lines are ever parsed.

use std::io::{self, Read};

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};

/// How much is read at a time, unless a line is longer.
const BUFFER_BYTES: usize = 1024 * 1024;
/// A longer line is not searched. No record is longer.
const MAX_LINE_BYTES: usize = 256 * 1024 * 1024;
/// How a record begins; its time follows.
const RECORD_START: &[u8] = b"{\"time\":\"";

/// What was searched.
#[derive(Debug, Default)]
pub(super) struct ScannedLines {
    pub(super) bytes: u64,
    /// Lines that were not searched, because they are longer than a record.
    pub(super) too_long: u64,
    /// The time of the first record.
    pub(super) first_time: Option<String>,
}

/// A line that contains the id.
pub(super) struct FoundLine<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether it has its end; the last line of a file may still be being written.
    pub(super) is_complete: bool,
}

/// Calls `on_line` with each line in which one of the finders finds something.
///
/// # Errors
/// If it cannot be read; `scanned` is what was searched before.
pub(super) fn scan_lines(
    mut reader: impl Read,
    finders: &[Finder<'_>],
    scanned: &mut ScannedLines,
    on_line: &mut dyn FnMut(FoundLine<'_>),
) -> io::Result<()> {
    scan_lines_within(&mut reader, finders, BUFFER_BYTES, MAX_LINE_BYTES, scanned, on_line)
}

fn scan_lines_within(
    reader: &mut dyn Read,
    finders: &[Finder<'_>],
    buffer_bytes: usize,
    max_line_bytes: usize,
    scanned: &mut ScannedLines,
    on_line: &mut dyn FnMut(FoundLine<'_>),
) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    // The beginning of a line is kept until its end has been read.
    let mut kept_bytes = 0;
    let mut skips_line = false;
    loop {
        if kept_bytes == buffer.len() {
            if buffer.len() < max_line_bytes {
                buffer.resize((2 * buffer.len()).min(max_line_bytes), 0);
            } else {
                scanned.too_long += u64::from(!skips_line);
                (skips_line, kept_bytes) = (true, 0);
            }
        }
        let (kept, free) = buffer.split_at_mut(kept_bytes);
        let count = match reader.read(free) {
            Ok(0) => break,
            Ok(count) => count,
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => continue,
            Err(problem) => return Err(problem),
        };
        scanned.bytes += count as u64;
        let read = free.get(..count).unwrap_or_default();
        let Some(last_end) = memrchr(b'\n', read) else {
            kept_bytes += count;
            continue;
        };
        let (lines_end, filled) = (kept.len() + last_end + 1, kept.len() + count);
        let mut lines = buffer.get(..lines_end).unwrap_or_default();
        if skips_line {
            let end = memchr(b'\n', lines).map_or(lines.len(), |end| end + 1);
            lines = lines.get(end..).unwrap_or_default();
            skips_line = false;
        }
        search(lines, finders, true, scanned, on_line);
        buffer.copy_within(lines_end..filled, 0);
        kept_bytes = filled - lines_end;
    }
    if !skips_line {
        search(buffer.get(..kept_bytes).unwrap_or_default(), finders, false, scanned, on_line);
    }
    Ok(())
}

fn search(
    lines: &[u8],
    finders: &[Finder<'_>],
    is_complete: bool,
    scanned: &mut ScannedLines,
    on_line: &mut dyn FnMut(FoundLine<'_>),
) {
    if scanned.first_time.is_none() {
        scanned.first_time = record_time(lines);
    }
    for finder in finders {
        let mut rest = lines;
        while let Some(at) = finder.find(rest) {
            let start = rest.get(..at).and_then(|before| memrchr(b'\n', before)).map_or(0, |end| end + 1);
            let end = rest
                .get(at..)
                .and_then(|after| memchr(b'\n', after))
                .map_or(rest.len(), |length| at + length);
            on_line(FoundLine { bytes: rest.get(start..end).unwrap_or_default(), is_complete });
            rest = rest.get(end..).unwrap_or_default();
        }
    }
}

/// The time of a record, without parsing the rest of it.
pub(super) fn record_time(record: &[u8]) -> Option<String> {
    let rest = record.strip_prefix(RECORD_START)?;
    let time = rest.get(..memchr(b'"', rest.get(..64).unwrap_or(rest))?)?;
    chrono::DateTime::parse_from_rfc3339(std::str::from_utf8(time).ok()?).ok()?;
    String::from_utf8(time.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(
        text: &[u8],
        ids: &[&str],
        buffer_bytes: usize,
        max_bytes: usize,
    ) -> (Vec<(String, bool)>, ScannedLines) {
        let finders: Vec<_> = ids.iter().map(Finder::new).collect();
        let (mut lines, mut scanned) = (Vec::new(), ScannedLines::default());
        let mut on_line = |line: FoundLine<'_>| {
            lines.push((String::from_utf8_lossy(line.bytes).into_owned(), line.is_complete));
        };
        scan_lines_within(&mut &*text, &finders, buffer_bytes, max_bytes, &mut scanned, &mut on_line)
            .unwrap();
        (lines, scanned)
    }

    #[test]
    fn lines_of_any_length_are_found_wherever_reads_end() {
        let long = "y".repeat(1000);
        let text = format!("a id b\nnothing\n{long} id {long}\n\nid id\nhalf id");
        for buffer_bytes in 1..60 {
            let (lines, scanned) = found(text.as_bytes(), &["id"], buffer_bytes, 1 << 20);
            let whole = |text: &str| (text.to_owned(), true);
            let expected = [
                whole("a id b"),
                whole(&format!("{long} id {long}")),
                whole("id id"),
                ("half id".to_owned(), false),
            ];
            assert_eq!(lines, expected, "{buffer_bytes}");
            assert_eq!((scanned.bytes, scanned.too_long), (text.len() as u64, 0));
        }
    }

    #[test]
    fn a_line_that_is_longer_than_a_record_is_counted_and_not_held() {
        let text = format!("id 1\n{}id\nid 2\n{}id", "x".repeat(100), "x".repeat(100));
        for buffer_bytes in [1, 7, 64] {
            let (lines, scanned) = found(text.as_bytes(), &["id"], buffer_bytes, 64);
            assert_eq!(lines, [("id 1".to_owned(), true), ("id 2".to_owned(), true)], "{buffer_bytes}");
            assert_eq!(scanned.too_long, 2);
        }
    }

    #[test]
    fn the_time_of_the_first_record_is_known() {
        for (text, expected) in [
            (
                "{\"time\":\"2026-11-23T08:00:00.000001Z\",\"request_id\":\"1\"}\n",
                Some("2026-11-23T08:00:00.000001Z"),
            ),
            ("{\"time\":\"2026-11-23T08:00:00.000001Z", None),
            ("{\"time\":\"\u{1b}[2J\"}", None),
            ("", None),
        ] {
            assert_eq!(found(text.as_bytes(), &["id"], 512, 512).1.first_time.as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn exactly_the_lines_with_the_id_are_found(text in "(id|i|d|x|\n){0,60}", buffer_bytes in 1_usize..20) {
            let (lines, _) = found(text.as_bytes(), &["id"], buffer_bytes, 1 << 20);
            let mut expected: Vec<(String, bool)> = text.split('\n').map(|line| (line.to_owned(), true)).collect();
            expected.last_mut().unwrap().1 = false;
            expected.retain(|(line, _)| line.contains("id"));
            prop_assert_eq!(lines, expected);
        }
    }
}
