//! Reads the lines of record files within a bound: of a long text, such as a prompt, only the beginning is
//! kept, and a line that is long without it is passed over.

use std::io::{self, BufRead};

use memchr::{memchr, memchr2};

/// How much of a text within a line is kept. Names, times and ids are shorter. A line that is no longer than this is
/// kept as it is.
const MAX_TEXT_BYTES: usize = 16 * 1024;
/// The longest line, with its texts cut: records have a few dozen fields.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum LineRead<'l> {
    /// A line, without its end.
    Line(&'l [u8]),
    /// A line that is longer than a record can be; it was passed over.
    TooLong,
    /// The end of the file. A last line without its end is still being written, and was passed over.
    End,
}

/// Reads a record file line by line.
pub struct RecordLines<R> {
    reader: R,
    /// The length of the last line if it is in the buffer of the reader, with its end.
    consumed_bytes: usize,
    /// The last line, if it is not.
    line: Vec<u8>,
}

/// Where in a line the reader is.
#[derive(Default)]
struct LineState {
    is_in_text: bool,
    /// The bytes of the text so far, escapes as they are written.
    text_bytes: usize,
    /// The bytes that are left of an escape in a text: `\n` or `\u00e4`.
    escape_bytes: usize,
    keeps_escape: bool,
    is_too_long: bool,
}

impl<R: BufRead> RecordLines<R> {
    /// The lines of a file.
    pub fn new(reader: R) -> Self {
        Self { reader, consumed_bytes: 0, line: Vec::new() }
    }

    /// Reads the next line.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> io::Result<LineRead<'_>> {
        self.reader.consume(std::mem::take(&mut self.consumed_bytes));
        match memchr(b'\n', self.reader.fill_buf()?) {
            // Nearly all lines: no text in it can be too long, and it need not be copied.
            Some(end) if end <= MAX_TEXT_BYTES => {
                self.consumed_bytes = end + 1;
                // What is in the buffer stays there until it is consumed.
                let buffer = self.reader.fill_buf()?;
                Ok(LineRead::Line(buffer.get(..end).unwrap_or_default()))
            }
            _ => self.read_in_parts(),
        }
    }

    /// Reads a line that is long, or only partly in the buffer.
    fn read_in_parts(&mut self) -> io::Result<LineRead<'_>> {
        self.line.clear();
        let mut state = LineState::default();
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(LineRead::End);
            }
            let end = memchr(b'\n', bytes);
            state.add(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default(), &mut self.line);
            let consumed = end.map_or(bytes.len(), |end| end + 1);
            self.reader.consume(consumed);
            if end.is_some() {
                return Ok(if state.is_too_long { LineRead::TooLong } else { LineRead::Line(&self.line) });
            }
        }
    }
}

impl LineState {
    fn add(&mut self, mut bytes: &[u8], line: &mut Vec<u8>) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.is_too_long {
                return;
            }
            if self.escape_bytes > 0 {
                self.text_bytes += 1;
                // The byte after the backslash says how long the escape is.
                let is_unicode = self.escape_bytes == 1 && *first == b'u';
                self.escape_bytes = match (is_unicode, self.escape_bytes) {
                    (true, _) => 5,
                    (false, 1 | 2) => 0,
                    (false, left) => left - 1,
                };
                let keeps = self.keeps_escape;
                self.keep(if keeps { &bytes[..1] } else { &[] }, line);
                bytes = rest;
            } else if self.is_in_text {
                let run = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                let kept = run.min(MAX_TEXT_BYTES.saturating_sub(self.text_bytes));
                self.keep(&bytes[..kept], line);
                self.text_bytes += run;
                bytes = &bytes[run..];
                match bytes.first() {
                    Some(b'"') => {
                        self.is_in_text = false;
                        self.keep(b"\"", line);
                    }
                    Some(_) => {
                        self.keeps_escape = self.text_bytes < MAX_TEXT_BYTES;
                        self.escape_bytes = 1;
                        self.text_bytes += 1;
                        let keeps = self.keeps_escape;
                        self.keep(if keeps { b"\\" } else { b"" }, line);
                    }
                    None => return,
                }
                bytes = &bytes[1..];
            } else {
                let run = memchr(b'"', bytes).map_or(bytes.len(), |quote| {
                    self.is_in_text = true;
                    self.text_bytes = 0;
                    quote + 1
                });
                self.keep(&bytes[..run], line);
                bytes = &bytes[run..];
            }
        }
    }

    fn keep(&mut self, bytes: &[u8], line: &mut Vec<u8>) {
        if line.len() + bytes.len() > MAX_LINE_BYTES {
            self.is_too_long = true;
            line.clear();
        } else {
            line.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    /// The other texts are skipped, as `aoai-lb usage` does.
    #[derive(serde::Deserialize)]
    struct Fields {
        a: String,
        c: Vec<u8>,
    }

    /// All lines; `None` for one that is too long.
    fn read_all(text: &[u8], buffer_bytes: usize) -> Vec<Option<Vec<u8>>> {
        let mut lines = RecordLines::new(BufReader::with_capacity(buffer_bytes, text));
        let mut read = Vec::new();
        loop {
            match lines.next_line().unwrap() {
                LineRead::End => return read,
                LineRead::TooLong => read.push(None),
                LineRead::Line(line) => read.push(Some(line.to_vec())),
            }
        }
    }

    #[test]
    fn a_line_of_any_length_is_read_if_only_its_texts_are_long() {
        for filler in ["x", "\\n", "\\u00e4", "\\\\", "\\\"", "ü", "\\ud83d\\ude00"] {
            let text = format!("{{\"a\":\"b\",\"prompt\":\"{}\",\"c\":[1]}}\nnext\n", filler.repeat(100_000));
            let lines = read_all(text.as_bytes(), 1000);
            assert_eq!((lines.len(), &lines[1]), (2, &Some(b"next".to_vec())), "{filler}");
            let line = lines[0].as_ref().unwrap();
            assert!(line.len() < 2 * MAX_TEXT_BYTES, "{filler}");
            let line: Fields = serde_json::from_slice(line).unwrap();
            assert_eq!((line.a.as_str(), line.c), ("b", vec![1]), "{filler}");
        }
    }

    #[test]
    fn a_line_that_is_no_record_is_passed_over_without_being_held() {
        let long = [b"[".repeat(1 << 20), b"\"a\",".repeat(1 << 18), vec![0xff; 1 << 20]];
        for long in long {
            let text = [long.as_slice(), b"\nnext\nunfinished"].concat();
            assert_eq!(read_all(&text, 4096), [None, Some(b"next".to_vec())]);
        }
    }

    #[test]
    fn lines_do_not_depend_on_the_buffer() {
        for length in [0, 1, MAX_TEXT_BYTES - 2, MAX_TEXT_BYTES, MAX_TEXT_BYTES + 1, 2 * MAX_TEXT_BYTES] {
            let text = format!("{{\"a\":\"b\"}}\n\"{}\"\n\nnext\nunfinished", "\\n".repeat(length / 2));
            let expected = read_all(text.as_bytes(), text.len());
            assert_eq!((expected.len(), &expected[3]), (4, &Some(b"next".to_vec())));
            for buffer_bytes in [1, 7, 4096, MAX_TEXT_BYTES, MAX_TEXT_BYTES + 1] {
                let is_equal = read_all(text.as_bytes(), buffer_bytes) == expected;
                assert!(is_equal, "{length} {buffer_bytes}");
            }
        }
    }

    proptest! {
        #[test]
        fn short_lines_are_read_as_they_are(
            lines in proptest::collection::vec("[a-z\"\\\\u0{},:ü]{0,40}", 0..8),
            buffer_bytes in 1usize..50,
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let read: Vec<String> = read_all(text.as_bytes(), buffer_bytes)
                .into_iter()
                .map(|line| String::from_utf8(line.unwrap()).unwrap())
                .collect();
            prop_assert_eq!(read, lines);
        }
    }
}
