//! The queue that the requests of a process share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout_at;

use super::charges::LineCharges;
use super::line::{Choice, LineNumber};
use super::ticket::QueuedRequest;
use super::waiting_requests::{Place, QueueBounds, WaitingRequests};
use crate::config::RequestClass;
use crate::names::Caller;

/// The clock does not run more often than this.
const MIN_CLOCK_WAIT: Duration = Duration::from_millis(1);
/// While requests wait, the clock runs at least this often: it notices what calls no [`RequestQueue::wake`], such as a
/// secret that was renewed.
const MAX_CLOCK_WAIT: Duration = Duration::from_secs(1);

/// The requests that wait, each with its choice `C` of backends.
pub struct RequestQueue<C: Choice> {
    requests: Mutex<WaitingRequests<C, Waiter<C>>>,
    lines: Mutex<HashMap<String, Arc<QueueLine>>>,
    waiting_by_class: [AtomicUsize; RequestClass::ALL.len()],
    /// Wakes the clock.
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
struct Waiter<C: Choice> {
    line: Arc<QueueLine>,
    class: RequestClass,
    holds_up_others: bool,
    /// Its turn is sent here. If it is dropped, the request is given up.
    turn: oneshot::Sender<C::Turn>,
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
pub struct QueuePlace<C: Choice> {
    queue: Arc<RequestQueue<C>>,
    place: Place,
    tokens: u64,
    deadline: Instant,
    turn: oneshot::Receiver<C::Turn>,
    end: Option<QueueEnd<C::Turn>>,
}

/// The estimated tokens that a client is charged for its turn, until the tokens that the request has used are known.
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

impl<C: Choice> Default for RequestQueue<C> {
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

    /// Whether a new request has to wait behind others, even if a backend is free.
    pub fn holds_up_others(&self) -> bool {
        self.holding_up.load(Ordering::Acquire) > 0
    }

    /// What it serves.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<C: Choice> RequestQueue<C> {
    /// The line of this name; it is created if there is none.
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

    /// Queues a request in this line until its deadline. If a backend is free, the returned place has its turn already.
    /// `refused_turn` is the charge of its last turn, if the backend answered that with a 429: it is refunded, and the
    /// request goes back to its place.
    pub fn join(
        self: &Arc<Self>,
        line: &Arc<QueueLine>,
        request: &QueuedRequest,
        choice: C,
        refused_turn: Option<QueueCharge>,
        limits: QueueLimits,
        now: Instant,
    ) -> QueuePlace<C> {
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

    /// Serves waiting requests, because a backend may have become free.
    pub fn wake(&self) {
        if self.waiting_by_class.iter().any(|waiting| waiting.load(Ordering::Acquire) > 0) {
            self.changed.notify_one();
        }
    }

    /// Gives each free backend to the request whose turn it is. Returns when to call it again at the latest; `None` if
    /// no request waits. [`Self::run_clock`] does so.
    pub fn serve(&self, now: Instant) -> Option<Instant> {
        let mut requests = self.lock();
        for line in requests.lines() {
            self.serve_line(&mut requests, line, now);
        }
        let next = requests.next_chance(now);
        next.or_else(|| (!requests.lines().is_empty()).then_some(now + MAX_CLOCK_WAIT))
    }

    /// Serves requests whenever a backend becomes free; never returns.
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

    /// Collects from now on what clients are charged.
    pub fn collect_charges(&self) {
        self.lock().collect_charges();
    }

    /// What clients with names were charged since the last call, or refunded; empty unless it is collected.
    pub fn take_charges(&self) -> Vec<LineCharges> {
        let charges = self.lock().take_charges();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        charges.into_charges(|number| {
            lines.values().find(|line| line.number == number).map(|line| line.name.clone())
        })
    }

    /// Charges clients what another instance has charged them. Lines that are not known are ignored.
    pub fn add_charges_of_others(&self, charges: Vec<LineCharges>) {
        for LineCharges { line, class, clients } in charges {
            let number = {
                let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.get(&line).map(|line| line.number)
            };
            let Some(number) = number else { continue };
            let clients: Vec<_> =
                clients.into_iter().map(|(client, tokens)| (Caller::Client(client), tokens)).collect();
            self.lock().add_charges_of_others(number, class, &clients);
        }
    }

    fn serve_line(&self, requests: &mut WaitingRequests<C, Waiter<C>>, line: LineNumber, now: Instant) {
        while let Some((waiter, turn)) = requests.serve_first(line, now) {
            self.on_left(&waiter);
            // This cannot fail: a place that is dropped leaves the line first.
            let _ = waiter.turn.send(turn);
        }
    }

    fn on_left(&self, waiter: &Waiter<C>) {
        self.count(waiter, |counter| counter.fetch_sub(1, Ordering::AcqRel));
    }

    fn count(&self, waiter: &Waiter<C>, change: impl Fn(&AtomicUsize) -> usize) {
        change(&waiter.line.waiting);
        if waiter.holds_up_others {
            change(&waiter.line.holding_up);
        }
        self.waiting_by_class.get(waiter.class as usize).map(change);
    }

    fn lock(&self) -> MutexGuard<'_, WaitingRequests<C, Waiter<C>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Choice> ChargeLedger for RequestQueue<C> {
    fn settle(&self, place: &Place, counted: u64, used: u64) {
        self.lock().settle(place.line, place.class, &place.caller, counted, used);
    }
}

impl<C: Choice> QueuePlace<C> {
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
    pub fn take_end(&mut self) -> QueueEnd<C::Turn> {
        self.try_end();
        self.end.take().unwrap_or(QueueEnd::TooLate)
    }

    fn on_turn(&mut self, turn: C::Turn) {
        let books: Arc<dyn ChargeLedger> = Arc::<RequestQueue<C>>::clone(&self.queue);
        let charge =
            QueueCharge { books, place: self.place.clone(), counted: self.tokens, is_settled: false };
        self.end = Some(QueueEnd::Turn(turn, charge));
    }
}

impl<C: Choice> Drop for QueuePlace<C> {
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
    /// Replaces the estimate by the tokens that the request has used.
    pub fn settle(mut self, used: u64) {
        self.correct_to(used);
    }

    /// The tokens it was charged, for a caller that refunds them itself.
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

impl<C: Choice> fmt::Debug for RequestQueue<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue")
            .field("waiting_by_class", &self.waiting_by_class)
            .finish_non_exhaustive()
    }
}
