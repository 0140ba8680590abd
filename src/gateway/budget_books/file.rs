//! The log of used budgets as this process writes it.
//!
//! It is written anew when this process begins to own it, so that a predecessor that still writes to the old
//! file spoils nothing, after an error, and when most of its lines are out of date.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use log::{info, warn};

use super::subject::BookSubject;
use crate::state::StateDirectory;
use crate::state::budget_log::{BudgetEntry, BudgetLogError, Damage, encode_entry, encode_header, read};

/// A log of fewer lines is not written anew because of its length.
const MIN_COMPACTED_LINES: usize = 4096;

/// The log of the process that owns the state directory.
#[derive(Debug)]
pub(super) struct BudgetFile {
    directory: Arc<StateDirectory>,
    subject: BookSubject,
    /// `None` if it has to be written anew.
    file: Option<File>,
    /// The lines of entries in it.
    lines: usize,
    /// Whether there was a file that this process has not written anew.
    is_inherited: bool,
}

impl BudgetFile {
    /// The log in this directory, and its entries. One that cannot be used is set aside.
    pub(super) fn open(directory: Arc<StateDirectory>, subject: BookSubject) -> (Self, Vec<BudgetEntry>) {
        let mut entries = Vec::new();
        let read_file = |file| read(&mut BufReader::new(file), |entry| entries.push(entry));
        let opened = directory.open_to_append(subject.file_name()).map_err(BudgetLogError::from);
        let is_inherited = match opened.and_then(|file| file.map(read_file).transpose()) {
            Ok(damage) => {
                report_damage(damage.unwrap_or_default(), subject);
                damage.is_some()
            }
            Err(problem) => {
                directory.set_aside_and_log(subject.file_name(), subject.consequence_of_loss(), &problem);
                !entries.is_empty()
            }
        };
        (Self { directory, subject, file: None, lines: 0, is_inherited }, entries)
    }

    pub(super) fn directory_path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether it has to be written as a whole before it can be appended to, or is much longer than the accounts
    /// need.
    pub(super) fn needs_rewrite(&self, accounts: usize) -> bool {
        self.file.is_none() || self.lines > MIN_COMPACTED_LINES && self.lines > 2 * accounts
    }

    /// Appends to another file from now on.
    #[cfg(test)]
    pub(super) fn replace_with(&mut self, file: File) {
        self.file = Some(file);
    }

    /// Whether there is a file that has to be written anew even if nothing has changed.
    pub(super) fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Appends entries.
    ///
    /// # Errors
    /// If they cannot be written, or there is no file to append to; it has to be written anew then.
    pub(super) fn append(&mut self, entries: &[BudgetEntry]) -> io::Result<()> {
        let mut text = Vec::new();
        entries.iter().for_each(|entry| encode_entry(entry, &mut text));
        let mut file = self.file.take().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&text)?;
        self.file = Some(file);
        self.lines += entries.len();
        Ok(())
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// If that fails; it has to be written anew then.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        file.sync_data()?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes the file anew with these entries, durably.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn rewrite(&mut self, entries: &[BudgetEntry]) -> io::Result<()> {
        self.file = None;
        let mut text = Vec::new();
        encode_header(&mut text);
        entries.iter().for_each(|entry| encode_entry(entry, &mut text));
        let mut replacement = self.directory.begin_replacement(self.subject.file_name())?;
        replacement.file().write_all(&text)?;
        (self.file, self.lines, self.is_inherited) = (Some(replacement.commit()?), entries.len(), false);
        Ok(())
    }
}

fn report_damage(damage: Damage, subject: BookSubject) {
    let file_name = subject.file_name();
    if damage.lines > 0 {
        warn!(
            "server.state_directory: {} lines of {file_name} are damaged and skipped: {}",
            damage.lines,
            subject.consequence_of_damage()
        );
    } else if damage.torn_bytes > 0 {
        info!("server.state_directory: the last line of {file_name} is incomplete, as a kill leaves it");
    }
}
