//! What one process reports to another of bookings.

use std::io;
use std::sync::mpsc::SyncSender;

use serde::{Deserialize, Serialize};

use crate::admission::limits::{Booked, FinalUse};
use crate::record::stored_bookings::StoredObjectKey;

/// Sends a report to the process that serves now.
pub type ReportBookings = Box<dyn Fn(&BookingReport) -> io::Result<()> + Send>;

/// What has happened to objects since the bookings were captured. Its serialized form must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookingReport {
    #[serde(default)]
    pub(super) made: Vec<MadeObject>,
    #[serde(default)]
    pub(super) ended: Vec<EndedObject>,
}

/// An object that has not ended, and what was booked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeObject {
    pub(super) object: String,
    #[serde(flatten)]
    pub(super) booked: Booked,
}

/// The end of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedObject {
    pub(super) object: String,
    #[serde(flatten)]
    pub(super) used: FinalUse,
}

/// A handover of bookings, from their capture on.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// What is to be reported.
    pub(super) pending: BookingReport,
    /// The bookings of the objects in `pending` that have ended, in the same order.
    pub(super) ended_bookings: Vec<Booked>,
    /// A thread reports to the successor.
    pub(super) is_reporting: bool,
    /// The process ends, and waits here for the last report.
    pub(super) closing: Option<SyncSender<()>>,
}

impl BookingReport {
    pub(super) fn is_empty(&self) -> bool {
        self.made.is_empty() && self.ended.is_empty()
    }
}

impl MadeObject {
    pub(super) fn new(object: StoredObjectKey, booked: &Booked) -> Self {
        Self { object: object.to_text(), booked: booked.clone() }
    }
}

impl Handover {
    pub(super) fn add_made(&mut self, object: StoredObjectKey, booked: &Booked) {
        self.pending.made.push(MadeObject::new(object, booked));
    }

    pub(super) fn add_ended(&mut self, object: StoredObjectKey, booked: Booked, used: FinalUse) {
        self.pending.ended.push(EndedObject { object: object.to_text(), used });
        self.ended_bookings.push(booked);
    }

    pub(super) fn take_pending(&mut self) -> BookingReport {
        self.ended_bookings.clear();
        std::mem::take(&mut self.pending)
    }

    /// It was not reported.
    pub(super) fn put_back(&mut self, mut report: BookingReport) {
        report.made.append(&mut self.pending.made);
        report.ended.append(&mut self.pending.ended);
        self.pending = report;
    }
}

impl From<Vec<MadeObject>> for BookingReport {
    fn from(made: Vec<MadeObject>) -> Self {
        Self { made, ended: Vec::new() }
    }
}
