//! The queue that the requests of a process share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout_at;

use super::line::Choice;
use super::ticket::QueuedRequest;
use super::waiting_requests::{LineNumber, Place, QueueBounds, WaitingRequests};
use crate::config::RequestClass;

/// What is due now is looked at again after this time at the earliest.
const MIN_CLOCK_WAIT: Duration = Duration::from_millis(1);
/// While requests wait, what becomes free without a word, such as a backend with a new secret, is seen after this time.
const MAX_CLOCK_WAIT: Duration = Duration::from_secs(1);

/// The requests that wait, each with its choice `L` of backends.
pub struct RequestQueue<L: Choice> {
    requests: Mutex<WaitingRequests<L, Waiter<L>>>,
    lines: Mutex<HashMap<String, Arc<QueueLine>>>,
    waiting_by_class: [AtomicUsize; RequestClass::ALL.len()],
    /// Something may be free.
    changed: Notify,
}

/// The line of one deployment. It stays the same when the configuration changes.
#[derive(Debug)]
pub struct QueueLine {
    name: String,
    number: LineNumber,
    waiting: AtomicUsize,
    /// Of those, the ones that hold up others.
    holding_up: AtomicUsize,
}

/// What the queue keeps of a request that waits.
struct Waiter<L: Choice> {
    line: Arc<QueueLine>,
    class: RequestClass,
    holds_up_others: bool,
    /// Its turn is sent here. If it is dropped, the request is given up.
    turn: oneshot::Sender<L::Turn>,
}

/// How much and how long requests may wait.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// How much may wait.
    pub bounds: QueueBounds,
    /// When this request gives up.
    pub deadline: Instant,
}

/// How a wait ends.
pub enum QueueEnd<T> {
    /// It is the request's turn.
    Turn(T, QueueCharge),
    /// Too much waits.
    Full,
    /// The request has waited until its deadline.
    TooLate,
}

/// The place of a request that waits. If it is dropped, the request no longer waits.
pub struct QueuePlace<L: Choice> {
    queue: Arc<RequestQueue<L>>,
    place: Place,
    tokens: u64,
    deadline: Instant,
    turn: oneshot::Receiver<L::Turn>,
    end: Option<QueueEnd<L::Turn>>,
}

/// The tokens that count as got by a client, until those are known that its request has used.
pub struct QueueCharge {
    books: Arc<dyn ChargeLedger>,
    place: Place,
    counted: u64,
    is_settled: bool,
}

/// Where charges are corrected.
trait ChargeLedger: Send + Sync {
    fn settle(&self, place: &Place, counted: u64, used: u64);
}

impl<L: Choice> Default for RequestQueue<L> {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            lines: Mutex::default(),
            waiting_by_class: Default::default(),
            changed: Notify::new(),
        }
    }
}

impl QueueLine {
    /// How many requests wait here.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether a request that comes now has to wait behind others, although something seems to be free for it.
    pub fn holds_up_others(&self) -> bool {
        self.holding_up.load(Ordering::Acquire) > 0
    }

    /// What it serves.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<L: Choice> RequestQueue<L> {
    /// The line for what has this name.
    pub fn line(&self, name: &str) -> Arc<QueueLine> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let number = lines.len() as LineNumber;
        let line = lines.entry(name.to_owned()).or_insert_with(|| {
            let (waiting, holding_up) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(QueueLine { name: name.to_owned(), number, waiting, holding_up })
        });
        Arc::clone(line)
    }

    /// How many requests of this class wait.
    pub fn waiting(&self, class: RequestClass) -> usize {
        self.waiting_by_class.get(class as usize).map_or(0, |waiting| waiting.load(Ordering::Acquire))
    }

    /// The lines with requests that wait.
    pub fn busy_lines(&self) -> Vec<Arc<QueueLine>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.values().filter(|line| line.waiting() > 0).cloned().collect()
    }

    /// Queues a request in this line until the deadline at the latest. If something is free for it, its wait has
    /// ended already. `refused_turn` is that of its last turn, if the backend has refused it: the request goes back to
    /// its place.
    pub fn join(
        self: &Arc<Self>,
        line: &Arc<QueueLine>,
        request: &QueuedRequest,
        choice: L,
        refused_turn: Option<QueueCharge>,
        limits: QueueLimits,
        now: Instant,
    ) -> QueuePlace<L> {
        let (sender, turn) = oneshot::channel();
        let QueuedRequest { class, holds_up_others, tokens, .. } = *request;
        let waiter = Waiter { line: Arc::clone(line), class, holds_up_others, turn: sender };
        self.count(&waiter, |counter| counter.fetch_add(1, Ordering::AcqRel));
        let place = {
            let mut requests = self.lock();
            let refused_turn = refused_turn.map(QueueCharge::into_counted);
            let (place, displaced) =
                requests.join(line.number, request, choice, waiter, refused_turn, limits.bounds);
            for waiter in displaced {
                self.on_left(&waiter);
            }
            self.serve_line(&mut requests, line.number, now);
            place
        };
        let mut place =
            QueuePlace { queue: Arc::clone(self), place, tokens, deadline: limits.deadline, turn, end: None };
        if !place.try_end() {
            // What comes next may come sooner than what the clock waits for.
            self.changed.notify_one();
        }
        place
    }

    /// Something may be free.
    pub fn wake(&self) {
        if self.waiting_by_class.iter().any(|waiting| waiting.load(Ordering::Acquire) > 0) {
            self.changed.notify_one();
        }
    }

    /// Serves what can be served. Returns when something may be free that is not yet, if nothing happens before;
    /// `None` if nothing waits. [`Self::run_clock`] calls it.
    pub fn serve(&self, now: Instant) -> Option<Instant> {
        let mut requests = self.lock();
        for line in requests.lines() {
            self.serve_line(&mut requests, line, now);
        }
        let next = requests.next_chance(now);
        next.or_else(|| (!requests.lines().is_empty()).then_some(now + MAX_CLOCK_WAIT))
    }

    /// Serves requests whenever something becomes free; never ends.
    pub async fn run_clock(&self) {
        loop {
            let now = Instant::now();
            let changed = self.changed.notified();
            match self.serve(now) {
                Some(next) => {
                    let next = next.clamp(now + MIN_CLOCK_WAIT, now + MAX_CLOCK_WAIT).into();
                    let _ = timeout_at(next, changed).await;
                }
                None => changed.await,
            }
        }
    }

    fn serve_line(&self, requests: &mut WaitingRequests<L, Waiter<L>>, line: LineNumber, now: Instant) {
        while let Some((waiter, turn)) = requests.serve_first(line, now) {
            self.on_left(&waiter);
            // This cannot fail: a place that is dropped leaves the line first.
            let _ = waiter.turn.send(turn);
        }
    }

    fn on_left(&self, waiter: &Waiter<L>) {
        self.count(waiter, |counter| counter.fetch_sub(1, Ordering::AcqRel));
    }

    fn count(&self, waiter: &Waiter<L>, change: impl Fn(&AtomicUsize) -> usize) {
        change(&waiter.line.waiting);
        if waiter.holds_up_others {
            change(&waiter.line.holding_up);
        }
        self.waiting_by_class.get(waiter.class as usize).map(change);
    }

    fn lock(&self) -> MutexGuard<'_, WaitingRequests<L, Waiter<L>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Choice> ChargeLedger for RequestQueue<L> {
    fn settle(&self, place: &Place, counted: u64, used: u64) {
        self.lock().settle(place.line, place.class, &place.caller, counted, used);
    }
}

impl<L: Choice> QueuePlace<L> {
    /// Waits for the end, which is taken afterwards.
    pub async fn wait(&mut self) {
        if self.end.is_some() {
            return;
        }
        match timeout_at(self.deadline.into(), &mut self.turn).await {
            Ok(Ok(turn)) => self.on_turn(turn),
            Ok(Err(_)) => self.end = Some(QueueEnd::Full),
            Err(_) => {
                let waiter = self.queue.lock().leave(&self.place);
                match waiter {
                    Some(waiter) => {
                        self.queue.on_left(&waiter);
                        self.end = Some(QueueEnd::TooLate);
                    }
                    // It was served in this moment.
                    None if self.try_end() => {}
                    None => self.end = Some(QueueEnd::TooLate),
                }
            }
        }
    }

    /// Whether the wait has ended.
    pub fn try_end(&mut self) -> bool {
        match self.turn.try_recv() {
            _ if self.end.is_some() => {}
            Ok(turn) => self.on_turn(turn),
            Err(oneshot::error::TryRecvError::Closed) => self.end = Some(QueueEnd::Full),
            Err(oneshot::error::TryRecvError::Empty) => return false,
        }
        true
    }

    /// How the wait has ended; if it has not, it ends here.
    pub fn take_end(&mut self) -> QueueEnd<L::Turn> {
        self.try_end();
        self.end.take().unwrap_or(QueueEnd::TooLate)
    }

    fn on_turn(&mut self, turn: L::Turn) {
        let books: Arc<dyn ChargeLedger> = Arc::<RequestQueue<L>>::clone(&self.queue);
        let charge =
            QueueCharge { books, place: self.place.clone(), counted: self.tokens, is_settled: false };
        self.end = Some(QueueEnd::Turn(turn, charge));
    }
}

impl<L: Choice> Drop for QueuePlace<L> {
    fn drop(&mut self) {
        let waiter = self.queue.lock().leave(&self.place);
        match waiter {
            Some(waiter) => self.queue.on_left(&waiter),
            // A turn that it has not taken is left to the next one.
            None => {
                if self.try_end()
                    && let Some(QueueEnd::Turn(turn, charge)) = self.end.take()
                {
                    drop(turn);
                    charge.settle(0);
                    self.queue.wake();
                }
            }
        }
    }
}

impl QueueCharge {
    /// Corrects what the client got to the tokens that its request has used.
    pub fn settle(mut self, used: u64) {
        self.correct_to(used);
    }

    /// What it counts for. Whoever takes it corrects what the client got.
    fn into_counted(mut self) -> u64 {
        self.is_settled = true;
        self.counted
    }

    fn correct_to(&mut self, used: u64) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.books.settle(&self.place, self.counted, used);
        }
    }
}

impl Drop for QueueCharge {
    fn drop(&mut self) {
        self.correct_to(self.counted);
    }
}

impl fmt::Debug for QueueCharge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueCharge").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<L: Choice> fmt::Debug for RequestQueue<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting_by_class", &self.waiting_by_class)
            .finish_non_exhaustive()
    }
}
