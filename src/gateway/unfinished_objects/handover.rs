//! Objects during an upgrade. The successor gets those of this process, and reports of what happens to objects
//! afterwards. From then on only the successor corrects bookings, so that each is corrected once. It also answers which ends
//! it had already seen, so that only one record has the tokens.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use log::debug;

use super::objects::UnfinishedObjects;
use super::report::{EndedObject, Handover, MadeObject, ObjectReport, ReportObjects};
use crate::record::stored_objects::StoredObjectKey;

/// The pause after the successor was not reached.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// How long the end of the process waits for the last report.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl UnfinishedObjects {
    /// All objects, for a successor. Until [`Self::cancel_handover`] nothing that was booked is corrected here.
    pub fn begin_handover(&self) -> Vec<MadeObject> {
        let mut state = self.lock();
        state.handover = Some(Handover::default());
        state.memory.all().map(|(key, object)| MadeObject::new(key, object)).collect()
    }

    /// The handover has failed, or was given up: this process corrects what it has put off.
    pub fn cancel_handover(&self) {
        if self.is_reporting.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        let Some(Handover { pending, pending_ends, .. }) = state.handover.take() else { return };
        drop(state);
        for (ended, end) in pending.ended.iter().zip(&pending_ends) {
            if let Some((booked, used)) = end.booked.as_ref().zip(ended.used) {
                self.accounts.correct(booked, used);
            }
        }
    }

    /// Reports to the successor, which serves soon, what has happened since [`Self::begin_handover`] and what happens from
    /// now on.
    pub fn report_to_successor(self: &Arc<Self>, report: ReportObjects) {
        if self.lock().handover.is_none() {
            return;
        }
        self.is_reporting.store(true, Ordering::Release);
        let objects = Arc::clone(self);
        let thread = std::thread::Builder::new().name("objects".to_owned());
        if let Err(problem) = thread.spawn(move || objects.report_changes(&report)) {
            self.is_reporting.store(false, Ordering::Release);
            debug!(
                "cannot start a thread: {problem}: background responses are not reported to the successor"
            );
        }
    }

    /// Takes the objects of a predecessor, or what it has reported since. Returns the ended objects whose end this process
    /// had already seen.
    pub fn adopt(&self, report: ObjectReport) -> Vec<String> {
        for MadeObject { object, made } in report.made {
            if let Some(key) = StoredObjectKey::parse(&object) {
                self.remember(key, made);
            }
        }
        let mut ended_before = Vec::new();
        for EndedObject { object, used } in report.ended {
            let Some(key) = StoredObjectKey::parse(&object) else { continue };
            if self.forget(key, |_| used).is_none() && self.lock().has_ended(key) {
                ended_before.push(object);
            }
        }
        ended_before
    }

    /// Reports and writes for the last time, at the end of the process.
    pub fn close(&self) {
        self.cancel_handover();
        self.release_directory();
        let mut state = self.lock();
        let Some(handover) = &mut state.handover else { return };
        let (done, is_done) = sync_channel(1);
        handover.closing = Some(done);
        drop(state);
        self.changed.notify_all();
        let _ = is_done.recv_timeout(CLOSE_TIMEOUT);
    }

    /// Reports until the process ends.
    fn report_changes(&self, report: &ReportObjects) {
        let mut state = self.lock();
        loop {
            let Some(handover) = &mut state.handover else { return };
            let (batch, mut ends) = handover.take_pending();
            if !batch.is_empty() {
                drop(state);
                let reported = report(&batch);
                for (ended, end) in batch.ended.iter().zip(&mut ends) {
                    // Without an answer, this process is the first one.
                    let ended_before = reported.as_deref().unwrap_or_default();
                    if let Some(answer) = end.answer.take() {
                        let _ = answer.try_send(!ended_before.contains(&ended.object));
                    }
                }
                state = self.lock();
                match reported {
                    Ok(_) => continue,
                    Err(problem) if was_not_reached(&problem) => {
                        let Some(handover) = &mut state.handover else { return };
                        handover.put_back(batch, ends);
                        if handover.closing.is_none() {
                            let waited = self.changed.wait_timeout(state, RETRY_DELAY);
                            state = waited.unwrap_or_else(PoisonError::into_inner).0;
                            continue;
                        }
                    }
                    // The successor may have counted it: a second time would be worse than none.
                    Err(problem) => debug!("background responses: cannot report to the successor: {problem}"),
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
