//! A log of budgets is read the same way however its bytes arrive, and what was read is written as it was.
#![no_main]

use std::io::{BufRead, BufReader};

use aoai_lb::state::budget_log::{BudgetEntry, Damage, encode_entry, encode_header, read};
use libfuzzer_sys::fuzz_target;

fn read_all(mut reader: impl BufRead) -> Option<(Vec<BudgetEntry>, Damage)> {
    let mut entries = Vec::new();
    let damage = read(&mut reader, |entry| entries.push(entry)).ok()?;
    Some((entries, damage))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, text) = input;
    let found = read_all(text);
    assert_eq!(read_all(BufReader::with_capacity(usize::from(piece).max(1), text)), found);
    let Some((entries, damage)) = found else { return };
    let lines = text.split_inclusive(|byte| *byte == b'\n').count() as u64;
    assert_eq!(1 + entries.len() as u64 + damage.lines + u64::from(damage.torn_bytes > 0), lines);
    let mut written = Vec::new();
    encode_header(&mut written);
    entries.iter().for_each(|entry| encode_entry(entry, &mut written));
    assert_eq!(read_all(&written[..]), Some((entries, Damage::default())));
});
