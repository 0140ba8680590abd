//! The lines of record files do not depend on how they arrive, and are held within a bound.
#![no_main]

use std::io::BufReader;

use aoai_lb::cli::record_lines::{LineRead, RecordLines};
use libfuzzer_sys::fuzz_target;

/// More than any line that is returned.
const BOUND: usize = 1 << 20;

/// All lines; `None` for one that is too long.
fn read_all(text: &[u8], buffer_bytes: usize) -> Vec<Option<Vec<u8>>> {
    let mut lines = RecordLines::new(BufReader::with_capacity(buffer_bytes, text));
    let mut all = Vec::new();
    loop {
        match lines.next_line().expect("memory can be read") {
            LineRead::End => return all,
            LineRead::TooLong => all.push(None),
            LineRead::Line(line) => {
                assert!(line.len() < BOUND && !line.contains(&b'\n'));
                all.push(Some(line.to_vec()));
            }
        }
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (buffer_bytes, text) = input;
    let unsplit = read_all(text, text.len().max(1));
    assert_eq!(read_all(text, usize::from(buffer_bytes).max(1)), unsplit);
    assert_eq!(unsplit.len(), text.iter().filter(|byte| **byte == b'\n').count());
});
