//! The connection to the process that keeps the limits in place of this one. Messages go into a queue, which
//! `server/upgrade/limits.rs` sends; a question that is not answered in time is given up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::limit_key::LimitReached;
use super::limit_message::{Booking, LimitAnswer, LimitMessage};
use super::sliding_minute::ReservedAt;

/// How long a request waits for permission.
const PERMISSION_TIMEOUT: Duration = Duration::from_millis(5);

/// The connection to the keeper of the limits.
#[derive(Debug)]
pub struct KeeperLink {
    queue: mpsc::UnboundedSender<QueuedMessage>,
    questions: Mutex<HashMap<u64, Question>>,
    next_id: AtomicU64,
    is_lost: AtomicBool,
}

/// An entry of the queue.
#[derive(Debug)]
pub enum QueuedMessage {
    /// A message to send as a line.
    Send(LimitMessage),
    /// Sends nothing. The sender is dropped once everything before it has been sent.
    Flush(SyncSender<()>),
}

/// A question that has not been answered.
#[derive(Debug)]
struct Question {
    booking: Booking,
    answer: oneshot::Sender<Result<Grant, LimitReached>>,
}

/// Permission to admit a request, which the keeper counts as in flight. If it is dropped unused, it is given back.
#[derive(Debug)]
pub(super) struct Grant {
    link: Arc<KeeperLink>,
    booking: Option<Booking>,
}

impl KeeperLink {
    /// A connection, and the queue of what has to be sent over it.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<QueuedMessage>) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let link = Self {
            queue,
            questions: Mutex::default(),
            next_id: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
        };
        (Arc::new(link), receiver)
    }

    /// Sends a message, unless the connection is lost.
    pub(super) fn send(&self, message: LimitMessage) {
        let _ = self.queue.send(QueuedMessage::Send(message));
    }

    /// Asks for permission. `None` if there is no answer in time.
    pub(super) async fn ask(self: &Arc<Self>, booking: Booking) -> Option<Result<Grant, LimitReached>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.questions().insert(id, Question { booking: booking.clone(), answer });
        // Checked after the insertion: `close` drops the questions that it finds.
        if self.is_lost() {
            self.questions().remove(&id);
            return None;
        }
        self.send(LimitMessage::Ask { id, booking });
        timeout(PERMISSION_TIMEOUT, answered).await.ok()?.ok()
    }

    /// The keeper has answered. A grant that comes too late is given back.
    pub fn on_answer(self: &Arc<Self>, answer: LimitAnswer) {
        let (id, answer) = match answer {
            LimitAnswer::Granted { id, reserved_at } => (id, Ok(reserved_at)),
            LimitAnswer::Refused { id, reached } => (id, Err(reached.into())),
        };
        let Some(question) = self.questions().remove(&id) else { return };
        let answer = answer.map(|reserved_at| {
            let booking = Booking { reserved_at, ..question.booking };
            Grant { link: Arc::clone(self), booking: Some(booking) }
        });
        // Outside the lock: a grant that nobody waits for is dropped here.
        let _ = question.answer.send(answer);
    }

    /// The connection has ended.
    pub fn close(&self) {
        self.is_lost.store(true, Ordering::SeqCst);
        self.questions().clear();
    }

    /// Whether the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// Blocks until all messages so far have been sent, the connection is lost, or the time limit has passed.
    pub fn flush(&self, time_limit: Duration) {
        let (flushed, is_flushed) = sync_channel(1);
        let _ = self.queue.send(QueuedMessage::Flush(flushed));
        let _ = is_flushed.recv_timeout(time_limit);
    }

    fn questions(&self) -> MutexGuard<'_, HashMap<u64, Question>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grant {
    /// The request is admitted. Returns when the keeper has reserved its tokens.
    pub(super) fn into_reserved_at(mut self) -> [Option<ReservedAt>; 2] {
        self.booking.take().map(|booking| booking.reserved_at).unwrap_or_default()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(booking) = self.booking.take() {
            self.link.send(LimitMessage::Ended(booking.scope.clone()));
            self.link.send(LimitMessage::Settled { booking, used: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::limits::amounts::Amounts;
    use crate::admission::limits::limit_key::{LimitKey, LimitKind};
    use crate::admission::limits::limit_message::LimitScope;

    fn booking() -> Booking {
        Booking { scope: LimitScope::default(), amounts: Amounts::of_tokens(5), reserved_at: [None; 2] }
    }

    fn sent(queue: &mut mpsc::UnboundedReceiver<QueuedMessage>) -> LimitMessage {
        match queue.try_recv().unwrap() {
            QueuedMessage::Send(message) => message,
            QueuedMessage::Flush(_) => panic!("a flush"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_decides_and_a_late_grant_is_given_back() {
        let (link, mut queue) = KeeperLink::new();
        let reached = LimitReached {
            key: LimitKey { deployment: None, kind: LimitKind::InFlight },
            limit: 1,
            demand: 1,
            wait: None,
        };
        for answer in [
            LimitAnswer::Granted { id: 0, reserved_at: [None; 2] },
            LimitAnswer::Refused { id: 1, reached: reached.clone().into() },
        ] {
            let is_granted = matches!(answer, LimitAnswer::Granted { .. });
            let (asked, ()) = tokio::join!(link.ask(booking()), async { link.on_answer(answer) });
            assert!(matches!(sent(&mut queue), LimitMessage::Ask { .. }));
            match asked.unwrap() {
                Ok(grant) => assert!(is_granted && grant.into_reserved_at() == [None; 2]),
                Err(refused) => assert_eq!((is_granted, refused), (false, reached.clone())),
            }
        }
        assert!(queue.try_recv().is_err(), "nothing is given back");
        assert!(link.ask(booking()).await.is_none(), "it is too late");
        assert!(matches!(sent(&mut queue), LimitMessage::Ask { id: 2, .. }));
        link.on_answer(LimitAnswer::Granted { id: 2, reserved_at: [None; 2] });
        assert_eq!(sent(&mut queue), LimitMessage::Ended(LimitScope::default()));
        assert_eq!(sent(&mut queue), LimitMessage::Settled { booking: booking(), used: 0 });
        link.close();
        assert!(link.ask(booking()).await.is_none() && queue.try_recv().is_err(), "nobody is asked");
        assert!(link.questions().is_empty());
    }
}
