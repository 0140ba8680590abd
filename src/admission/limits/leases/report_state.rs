//! Which reports of an account have been made, and whether another one is needed.

use std::time::Duration;

/// Which reports of an account have been made.
#[derive(Debug, Default)]
pub(in super::super) struct ReportState {
    pub(super) begun: u64,
    pub(super) finished: u64,
    pub(super) has_failed: bool,
    /// Another report has to follow at once.
    pub(super) is_wanted: bool,
    /// A report at once has been asked for.
    pub(super) is_requested: bool,
    /// Something has changed since the latest report.
    pub(super) is_changed: bool,
    pub(super) last_begun_at: Duration,
}

impl ReportState {
    /// The number of the first report that has everything of now.
    pub(super) fn next_number(&self) -> u64 {
        self.begun + 1
    }

    /// Whether this report is answered, or has failed.
    pub(super) fn is_finished(&self, number: u64) -> bool {
        self.finished >= number
    }

    /// Whether the latest report has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Something has changed. Returns whether nothing had since the latest report.
    pub(in super::super) fn note_change(&mut self) -> bool {
        !std::mem::replace(&mut self.is_changed, true)
    }

    /// A report is answered, or has failed: then it has to be made again.
    pub(super) fn finish(&mut self, number: u64, is_answered: bool) {
        self.finished = number;
        self.has_failed = !is_answered;
        self.is_changed |= !is_answered;
    }

    /// A report is to be made at once. Returns whether that was not asked for yet.
    pub(in super::super) fn request(&mut self) -> bool {
        !std::mem::replace(&mut self.is_requested, true)
    }

    pub(super) fn is_in_progress(&self) -> bool {
        self.begun > self.finished
    }
}
