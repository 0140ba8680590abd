//! A log of homes is read the same way however its bytes arrive, and what was read is written as it was.
#![no_main]

use std::io::{self, Read};

use aoai_lb::state::homes_log::{
    Damage, HEADER_BYTES, HomeRecord, RECORD_BYTES, encode, header, read_header, read_records,
};
use libfuzzer_sys::fuzz_target;

/// Gives at most so many bytes at a time.
struct Piecewise<'t>(&'t [u8], usize);

impl Read for Piecewise<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(into.len());
        self.0.read(&mut into[..length])
    }
}

fn read_all(mut reader: impl Read) -> (Vec<HomeRecord>, Damage) {
    let mut records = Vec::new();
    let damage = read_records(&mut reader, |record| records.push(record)).expect("memory can be read");
    (records, damage)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, text) = input;
    if let Ok(key) = read_header(&mut &text[..]) {
        let written = header(key);
        assert!(text.starts_with(&written[..32]) || text[32..].starts_with(&written[32..]));
    }
    let body = text.get(HEADER_BYTES..).unwrap_or_default();
    let (records, damage) = read_all(body);
    assert_eq!(read_all(Piecewise(body, usize::from(piece).max(1))), (records.clone(), damage));
    assert_eq!(records.len() as u64 + damage.records, (body.len() / RECORD_BYTES) as u64);
    assert_eq!(damage.torn_bytes, body.len() % RECORD_BYTES);
    let mut written = Vec::new();
    records.iter().for_each(|record| encode(*record, &mut written));
    assert_eq!(read_all(&written[..]), (records, Damage::default()));
});
