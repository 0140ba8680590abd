//! The lines of record files do not depend on how they arrive, and are held within a bound.
#![no_main]

use std::io::BufReader;

use aoai_lb::cli::record_lines::{LineRead, read_record_line};
use libfuzzer_sys::fuzz_target;

/// More than any line that is returned.
const BOUND: usize = 1 << 20;

fn read_all(text: &[u8], buffer_bytes: usize) -> Vec<(LineRead, Vec<u8>)> {
    let mut lines = BufReader::with_capacity(buffer_bytes, text);
    let mut all = Vec::new();
    loop {
        let mut line = Vec::new();
        match read_record_line(&mut lines, &mut line).expect("memory can be read") {
            LineRead::End => return all,
            read => {
                assert!(line.len() < BOUND && !line.contains(&b'\n'));
                all.push((read, line));
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
