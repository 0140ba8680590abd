//! The log of homes as this process writes it: appended, brought to the disk each second, written anew when
//! much of it is out of date or when it is damaged.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::records::apply;
use crate::routing::homes::{HashKey, Homes};
use crate::state::homes_log::{
    Damage, FILE_NAME, HEADER_BYTES, HeaderError, RECORD_BYTES, read_header, read_records,
};
use crate::state::{Replacement, StateDirectory, open_to_read};

/// How often appended records are brought to the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after the log could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// A log of fewer records is not written anew because of its length.
const MIN_COMPACTED_RECORDS: u64 = 4096;

/// The hash key of the log in a directory, whoever owns that; `None` if there is no readable log.
pub fn read_hash_key(directory: &Path) -> Option<HashKey> {
    let mut file = open_to_read(directory, FILE_NAME).ok()??;
    read_header(&mut file).ok().map(HashKey::from_bytes)
}

/// The log of the process that owns the state directory.
#[derive(Debug)]
pub(super) struct HomesLog {
    directory: Arc<StateDirectory>,
    /// `None` if there is no log whose end is known to be whole.
    file: Option<File>,
    /// The records in it.
    records: u64,
    /// When the first record was appended that may not be on the disk.
    unsynced_since: Option<Instant>,
    /// Whether the file does not tell all that is remembered, or tells it badly.
    needs_rewrite: bool,
    rewrite_not_before: Instant,
    /// Whether changes were lost since the last rewrite began.
    has_lost_changes: bool,
}

impl HomesLog {
    /// The log in this directory, which has to be written anew unless it is read or continued.
    pub(super) fn new(directory: Arc<StateDirectory>) -> Self {
        Self {
            directory,
            file: None,
            records: 0,
            unsynced_since: None,
            needs_rewrite: true,
            rewrite_not_before: Instant::now(),
            has_lost_changes: false,
        }
    }

    pub(super) fn directory_path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Reads everything in it into the memory, and appends to it from then on.
    pub(super) fn restore(&mut self, homes: &Homes) {
        let opened = self.directory.open_to_append(FILE_NAME).map_err(HeaderError::from);
        let read = opened.and_then(|file| {
            let Some(mut file) = file else { return Ok(None) };
            if read_header(&mut file)? != homes.hash_key().to_bytes() {
                return Err(HeaderError::Malformed);
            }
            let damage = read_records(&mut file, |record| apply(record, homes))?;
            Ok(Some((file, damage)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((file, damage))) => {
                report_damage(damage);
                self.append_to(file, damage != Damage::default());
            }
            Err(problem) => {
                let consequence = "so resources are asked for the objects in it";
                self.directory.set_aside_and_log(FILE_NAME, consequence, &problem);
            }
        }
    }

    /// Appends to what is there until it has been written anew: the memory came from the predecessor.
    pub(super) fn continue_unread(&mut self, homes: &Homes) {
        let Ok(Some(mut file)) = self.directory.open_to_append(FILE_NAME) else { return };
        if read_header(&mut file).is_ok_and(|key| key == homes.hash_key().to_bytes()) {
            self.append_to(file, true);
        }
    }

    fn append_to(&mut self, file: File, needs_rewrite: bool) {
        let Ok(length) = file.metadata().map(|metadata| metadata.len()) else { return };
        let body = length.saturating_sub(HEADER_BYTES as u64);
        let torn = body % RECORD_BYTES as u64;
        if torn != 0 && file.set_len(length - torn).is_err() {
            return;
        }
        self.records = body / RECORD_BYTES as u64;
        (self.file, self.needs_rewrite) = (Some(file), needs_rewrite);
    }

    /// Appends encoded records. Nothing is done while there is no file: it will be written anew.
    pub(super) fn append(&mut self, records: &[u8], now: Instant) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if records.is_empty() {
            return Ok(());
        }
        if let Err(problem) = file.write_all(records) {
            self.give_up_file(now);
            return Err(problem);
        }
        self.records += (records.len() / RECORD_BYTES) as u64;
        self.unsynced_since.get_or_insert(now);
        Ok(())
    }

    /// Brings what was appended to the disk, if that is due or if it has to be now.
    pub(super) fn sync(&mut self, now: Instant, has_to: bool) -> io::Result<()> {
        let (Some(file), Some(since)) = (&self.file, self.unsynced_since) else { return Ok(()) };
        if !has_to && now.saturating_duration_since(since) < SYNC_INTERVAL {
            return Ok(());
        }
        self.unsynced_since = None;
        let synced = file.sync_data();
        if synced.is_err() {
            // What the system could not write may be gone from its memory as well.
            self.give_up_file(now);
        }
        synced
    }

    fn give_up_file(&mut self, now: Instant) {
        self.file = None;
        self.unsynced_since = None;
        self.needs_rewrite = true;
        self.rewrite_not_before = now + RETRY_DELAY;
    }

    /// The file no longer tells all.
    pub(super) fn on_lost_changes(&mut self) {
        (self.needs_rewrite, self.has_lost_changes) = (true, true);
    }

    /// Whether it has to be written anew now.
    pub(super) fn is_rewrite_due(&self, homes: &Homes, now: Instant) -> bool {
        let is_mostly_outdated =
            || self.records > MIN_COMPACTED_RECORDS && self.records > 2 * homes.statistics().entries;
        now >= self.rewrite_not_before && (self.needs_rewrite || is_mostly_outdated())
    }

    /// Whether it has to be written anew to tell all.
    pub(super) fn is_incomplete(&self) -> bool {
        self.needs_rewrite
    }

    /// Begins to write it anew.
    pub(super) fn begin_rewrite(&mut self, now: Instant) -> io::Result<Replacement> {
        self.rewrite_not_before = now + RETRY_DELAY;
        self.has_lost_changes = false;
        self.directory.begin_replacement(FILE_NAME)
    }

    /// Goes on with the new file, which has this many records.
    pub(super) fn finish_rewrite(&mut self, replacement: Replacement, records: u64) -> io::Result<()> {
        let file = replacement.commit()?;
        (self.file, self.records, self.unsynced_since) = (Some(file), records, None);
        self.needs_rewrite = self.has_lost_changes;
        Ok(())
    }
}

fn report_damage(damage: Damage) {
    if damage.records > 0 {
        warn!(
            "server.state_directory: {} records of {FILE_NAME} are damaged; resources are asked for these objects",
            damage.records
        );
    } else if damage.torn_bytes > 0 {
        info!("server.state_directory: the last record of {FILE_NAME} is incomplete, as a kill leaves it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::homes_log::{HomeRecord, encode, header};

    #[test]
    fn a_log_that_cannot_be_written_is_written_anew_after_a_pause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let homes = Homes::new(1 << 16);
        let mut record = Vec::new();
        encode(HomeRecord::Forgotten(7), &mut record);
        std::fs::write(&path, [&header(homes.hash_key().to_bytes())[..], &record].concat()).unwrap();
        let mut log = HomesLog::new(Arc::new(StateDirectory::open(directory.path()).unwrap()));
        log.restore(&homes);
        let now = Instant::now();
        assert!(!log.is_rewrite_due(&homes, now), "it is whole");
        log.append(&record, now).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (HEADER_BYTES + 2 * RECORD_BYTES) as u64);
        // As a full disk: this descriptor cannot be written to.
        log.file = Some(File::open(&path).unwrap());
        log.append(&record, now).unwrap_err();
        log.append(&record, now).unwrap();
        assert!(log.is_incomplete() && !log.is_rewrite_due(&homes, now));
        assert!(log.is_rewrite_due(&homes, now + RETRY_DELAY));
        let mut replacement = log.begin_rewrite(now).unwrap();
        replacement.file().write_all(&header(homes.hash_key().to_bytes())).unwrap();
        log.finish_rewrite(replacement, 0).unwrap();
        assert!(!log.is_incomplete());
        log.append(&record, now).unwrap();
        log.sync(now, true).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (HEADER_BYTES + RECORD_BYTES) as u64);
    }

    #[test]
    fn changes_that_are_lost_during_a_rewrite_lead_to_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let homes = Homes::new(1 << 16);
        let mut log = HomesLog::new(Arc::new(StateDirectory::open(directory.path()).unwrap()));
        for loses_changes in [true, false] {
            let replacement = log.begin_rewrite(Instant::now()).unwrap();
            if loses_changes {
                log.on_lost_changes();
            }
            log.finish_rewrite(replacement, 0).unwrap();
            assert_eq!(log.is_rewrite_due(&homes, Instant::now() + RETRY_DELAY), loses_changes);
        }
    }
}
