//! The records that were found, in order of time, and where each is.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

/// The most memory that records take together. At least one is kept.
const MAX_KEPT_BYTES: usize = 64 * 1024 * 1024;
/// Beyond so many records they are no longer counted.
const MAX_COUNTED: usize = 100_000;

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the spool, and not delivered to these sinks.
    Spool(Vec<&'static str>),
    /// In memory, where it waits to be written.
    WriteAheadLog,
    File(PathBuf),
    /// In the memory of the running process, which keeps recent trouble.
    RunningProcess,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spool(sinks) if sinks.is_empty() => f.write_str("the spool"),
            Self::Spool(sinks) => write!(f, "the spool (not delivered to {} yet)", sinks.join(" and ")),
            Self::WriteAheadLog => f.write_str("memory (waiting to be written)"),
            Self::File(path) => path.display().fmt(f),
            Self::RunningProcess => f.write_str("the memory of the running process"),
        }
    }
}

/// A record that was found.
pub(super) struct FoundRecord {
    /// The record, as it is.
    pub(super) bytes: Vec<u8>,
    /// The field that has the id.
    pub(super) field: &'static str,
    pub(super) places: Vec<Place>,
}

/// The records that were found: the newest of them, each once.
pub(super) struct FoundRecords {
    /// By time and request id.
    kept: BTreeMap<(String, String), FoundRecord>,
    kept_bytes: usize,
    limit: usize,
    request_ids: HashSet<String>,
}

impl FoundRecords {
    /// Keeps at most so many records.
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: BTreeMap::new(), kept_bytes: 0, limit, request_ids: HashSet::new() }
    }

    /// Adds a record, or another place of one that was found before.
    pub(super) fn add(
        &mut self,
        time: &str,
        request_id: &str,
        field: &'static str,
        bytes: &[u8],
        place: Place,
    ) {
        let key = (time.to_owned(), request_id.to_owned());
        if let Some(record) = self.kept.get_mut(&key) {
            if !record.places.contains(&place) {
                record.places.push(place);
            }
            return;
        }
        if self.request_ids.len() <= MAX_COUNTED && !self.request_ids.insert(key.1.clone()) {
            return;
        }
        self.kept_bytes += bytes.len();
        self.kept.insert(key, FoundRecord { bytes: bytes.to_vec(), field, places: vec![place] });
        while self.kept.len() > self.limit || (self.kept_bytes > MAX_KEPT_BYTES && self.kept.len() > 1) {
            let Some((_, oldest)) = self.kept.pop_first() else { break };
            self.kept_bytes -= oldest.bytes.len();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The newest records, the oldest of them first.
    pub(super) fn records(&self) -> impl Iterator<Item = &FoundRecord> {
        self.kept.values()
    }

    /// How many records were found that are not kept, in words; `None` if all are.
    pub(super) fn left_out(&self) -> Option<String> {
        let left_out = self.request_ids.len().saturating_sub(self.kept.len());
        match self.request_ids.len() {
            _ if left_out == 0 => None,
            count if count > MAX_COUNTED => Some(format!("more than {}", MAX_COUNTED - self.kept.len())),
            _ => Some(left_out.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places_of(found: &FoundRecords) -> Vec<(String, usize)> {
        found
            .records()
            .map(|record| (String::from_utf8(record.bytes.clone()).unwrap(), record.places.len()))
            .collect()
    }

    #[test]
    fn the_newest_are_kept_in_order_and_each_once() {
        let file = || Place::File("a".into());
        let mut found = FoundRecords::new(2);
        for (time, id, place) in [
            ("2026-03", "c", Place::Spool(vec!["jsonl"])),
            ("2026-01", "a", file()),
            ("2026-02", "b", file()),
            ("2026-03", "c", file()),
            ("2026-03", "c", file()),
            ("2026-01", "a", file()),
        ] {
            found.add(time, id, "request_id", id.as_bytes(), place);
        }
        assert_eq!(places_of(&found), [("b".to_owned(), 1), ("c".to_owned(), 2)]);
        assert_eq!(found.left_out().as_deref(), Some("1"));
        let mut found = FoundRecords::new(1);
        assert!(found.is_empty() && found.left_out().is_none());
        for id in 0..MAX_COUNTED + 10 {
            found.add(&format!("{id:07}"), &id.to_string(), "trace_id", b"", file());
        }
        assert_eq!(found.left_out().as_deref(), Some("more than 99999"));
    }

    #[test]
    fn large_records_are_kept_within_a_bound() {
        let large = vec![b'x'; MAX_KEPT_BYTES / 2 + 1];
        let mut found = FoundRecords::new(50);
        for time in ["1", "2", "3"] {
            found.add(time, time, "trace_id", &large, Place::RunningProcess);
        }
        assert_eq!((found.records().count(), found.left_out().as_deref()), (1, Some("2")));
        found.add("4", "4", "trace_id", &vec![b'x'; 3 * MAX_KEPT_BYTES], Place::RunningProcess);
        assert_eq!(
            found.records().map(|record| record.bytes.len()).collect::<Vec<_>>(),
            [3 * MAX_KEPT_BYTES]
        );
    }
}
