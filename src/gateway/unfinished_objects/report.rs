//! What one process reports to another of objects.

use std::io;
use std::mem::take;
use std::sync::mpsc::SyncSender;

use serde::{Deserialize, Serialize};

use crate::admission::limits::{Booked, FinalUse};
use crate::record::stored_objects::{StoredObjectKey, UnfinishedObject};

/// Sends a report to the process that serves now. Returns the ended objects whose end that process had already seen.
pub type ReportObjects = Box<dyn Fn(&ObjectReport) -> io::Result<Vec<String>> + Send>;

/// What has happened to objects since they were captured. Its serialized form must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectReport {
    #[serde(default)]
    pub(super) made: Vec<MadeObject>,
    #[serde(default)]
    pub(super) ended: Vec<EndedObject>,
}

/// An object that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeObject {
    pub(super) object: String,
    #[serde(flatten)]
    pub(super) made: UnfinishedObject,
}

/// The end of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedObject {
    pub(super) object: String,
    #[serde(flatten)]
    pub(super) used: Option<FinalUse>,
}

/// A handover of objects, from their capture on.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// What is to be reported.
    pub(super) pending: ObjectReport,
    /// The ends in `pending`, in the same order.
    pub(super) pending_ends: Vec<PendingEnd>,
    /// The process ends, and waits here for the last report.
    pub(super) closing: Option<SyncSender<()>>,
}

/// An end that is to be reported.
#[derive(Debug)]
pub(super) struct PendingEnd {
    /// What was booked for the object.
    pub(super) booked: Option<Booked>,
    /// Takes the answer whether this process has seen the end first, if somebody waits for it.
    pub(super) answer: Option<SyncSender<bool>>,
}

impl ObjectReport {
    pub(super) fn is_empty(&self) -> bool {
        self.made.is_empty() && self.ended.is_empty()
    }
}

impl MadeObject {
    pub(super) fn new(key: StoredObjectKey, made: &UnfinishedObject) -> Self {
        Self { object: key.to_text(), made: made.clone() }
    }
}

impl Handover {
    pub(super) fn add_made(&mut self, key: StoredObjectKey, made: &UnfinishedObject) {
        self.pending.made.push(MadeObject::new(key, made));
    }

    pub(super) fn add_ended(
        &mut self,
        key: StoredObjectKey,
        object: &UnfinishedObject,
        used: Option<FinalUse>,
        answer: Option<SyncSender<bool>>,
    ) {
        self.pending.ended.push(EndedObject { object: key.to_text(), used });
        self.pending_ends.push(PendingEnd { booked: object.booked().cloned(), answer });
    }

    pub(super) fn take_pending(&mut self) -> (ObjectReport, Vec<PendingEnd>) {
        (take(&mut self.pending), take(&mut self.pending_ends))
    }

    /// They were not reported.
    pub(super) fn put_back(&mut self, mut report: ObjectReport, mut ends: Vec<PendingEnd>) {
        report.made.append(&mut self.pending.made);
        report.ended.append(&mut self.pending.ended);
        ends.append(&mut self.pending_ends);
        (self.pending, self.pending_ends) = (report, ends);
    }
}

impl From<Vec<MadeObject>> for ObjectReport {
    fn from(made: Vec<MadeObject>) -> Self {
        Self { made, ended: Vec::new() }
    }
}
