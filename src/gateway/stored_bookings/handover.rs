//! Bookings during an upgrade. The successor gets those of this process, and reports of what happens to objects
//! afterwards. It alone corrects bookings then, so that each is corrected once.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use log::debug;

use super::bookings::StoredBookings;
use super::report::{BookingReport, EndedObject, Handover, MadeObject, ReportBookings};
use crate::record::stored_bookings::{BookingKeeper, ObjectEnd, StoredObjectKey};

/// The pause after the successor was not reached.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// How long the end of the process waits for the last report.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl StoredBookings {
    /// All bookings, for a successor. Until [`Self::cancel_handover`] nothing is corrected here.
    pub fn begin_handover(&self) -> Vec<MadeObject> {
        if self.are_shared() {
            return Vec::new();
        }
        let mut state = self.lock();
        state.handover = Some(Handover::default());
        state.open.all().map(|(object, booked)| MadeObject::new(object, booked)).collect()
    }

    /// The handover has failed, or was given up: this process corrects what it has put off.
    pub fn cancel_handover(&self) {
        let mut state = self.lock();
        if state.handover.as_ref().is_some_and(|handover| handover.is_reporting) {
            return;
        }
        let Some(Handover { pending, ended_bookings, .. }) = state.handover.take() else { return };
        drop(state);
        for (ended, booked) in pending.ended.iter().zip(&ended_bookings) {
            self.accounts.correct(booked, ended.used);
        }
    }

    /// Reports to the successor, which serves soon, what has happened since [`Self::begin_handover`] and what happens from
    /// now on.
    pub fn report_to_successor(self: &Arc<Self>, report: ReportBookings) {
        {
            let mut state = self.lock();
            let Some(handover) = &mut state.handover else { return };
            handover.is_reporting = true;
        }
        let bookings = Arc::clone(self);
        let thread = std::thread::Builder::new().name("bookings".to_owned());
        if let Err(problem) = thread.spawn(move || bookings.report_changes(&report)) {
            debug!("cannot start a thread: {problem}: bookings of background responses are not corrected");
        }
    }

    /// Takes the bookings of a predecessor, or what it has reported since.
    pub fn adopt(&self, report: BookingReport) {
        for MadeObject { object, booked } in report.made {
            if let Some(object) = StoredObjectKey::parse(&object) {
                self.on_made(object, booked);
            }
        }
        for EndedObject { object, used } in report.ended {
            if let Some(object) = StoredObjectKey::parse(&object) {
                self.on_ended(object, ObjectEnd::known(used));
            }
        }
    }

    /// Reports for the last time, at the end of the process.
    pub fn close(&self) {
        self.cancel_handover();
        let mut state = self.lock();
        let Some(handover) = &mut state.handover else { return };
        let (done, is_done) = sync_channel(1);
        handover.closing = Some(done);
        drop(state);
        self.changed.notify_all();
        let _ = is_done.recv_timeout(CLOSE_TIMEOUT);
    }

    /// Reports until the process ends.
    fn report_changes(&self, report: &ReportBookings) {
        let mut state = self.lock();
        loop {
            let Some(handover) = &mut state.handover else { return };
            let batch = handover.take_pending();
            if !batch.is_empty() {
                drop(state);
                let reported = report(&batch);
                state = self.lock();
                match reported {
                    Ok(()) => continue,
                    Err(problem) if was_not_reached(&problem) => {
                        let Some(handover) = &mut state.handover else { return };
                        handover.put_back(batch);
                        if handover.closing.is_none() {
                            let waited = self.changed.wait_timeout(state, RETRY_DELAY);
                            state = waited.unwrap_or_else(PoisonError::into_inner).0;
                            continue;
                        }
                    }
                    // The successor may have counted it: a second time would be worse than none.
                    Err(problem) => debug!("bookings of background responses: cannot report: {problem}"),
                }
            }
            if let Some(closing) = state.handover.as_mut().and_then(|handover| handover.closing.take()) {
                let _ = closing.send(());
                return;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Whether nothing was sent, since there is no other process yet.
fn was_not_reached(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
