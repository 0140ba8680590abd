//! The queue of finished exchanges: limited in memory, and fair to clients.
//!
//! Each exchange is charged with the memory that it holds. When the queue is full, the client that holds the
//! most prompts and completions loses those of its exchanges first. Only when no content is left, whole
//! records are dropped, first those of the client that holds the most.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use crate::names::ClientName;
use crate::record::delivery::Backlog;
use crate::record::exchange::{CapturePolicy, FinishedExchange};

/// The memory of queued exchanges beyond which content, and then records, are dropped.
const MAX_QUEUED_BYTES: usize = 192 * 1024 * 1024;
/// The memory of queued exchanges after something was dropped. Less than the limit, so that the queue is not
/// searched for each exchange.
const QUEUED_BYTES_AFTER_DROP: usize = MAX_QUEUED_BYTES / 8 * 7;
/// Request bodies are kept to count their tokens while the queue holds less.
const MAX_QUEUED_BYTES_WITH_BODIES: usize = 48 * 1024 * 1024;
/// Long samples of prompts are kept while the queue holds less.
const MAX_QUEUED_BYTES_FOR_LONG_SAMPLES: usize = 16 * 1024 * 1024;
/// A queue that was longer than this gives its memory back when it is empty.
const MAX_IDLE_QUEUE_CAPACITY: usize = 1024;

/// An exchange that waits for the writer.
pub(super) struct QueuedExchange {
    pub(super) exchange: Box<FinishedExchange>,
    pub(super) policy: CapturePolicy,
    /// Tells that the record is written; `None` if none will be.
    pub(super) written_sender: Option<oneshot::Sender<()>>,
    charge: Charge,
}

/// The memory that an exchange is charged with.
pub(super) struct Charge {
    client: Option<ClientName>,
    bytes: usize,
    /// The part of `bytes` that is free again when content is dropped.
    content_bytes: usize,
}

/// What had to be dropped to stay within the limit.
#[derive(Default)]
pub(super) struct Dropped {
    /// How many exchanges lost their content.
    pub(super) lightened_count: u64,
    /// The client that lost content first, if it has a name.
    pub(super) largest_client: Option<ClientName>,
    /// Exchanges without a record.
    pub(super) records: Vec<QueuedExchange>,
}

/// Exchanges on their way to the writer. Slow ones are prepared by another thread first.
#[derive(Default)]
pub(super) struct ExchangeQueue {
    state: Mutex<QueueState>,
    slow_arrived: Condvar,
}

#[derive(Default)]
struct QueueState {
    slow: VecDeque<QueuedExchange>,
    ready: VecDeque<QueuedExchange>,
    /// What is charged and not yet released, also of exchanges that a thread has taken.
    charged_bytes: usize,
    charged_count: u64,
    /// When the oldest exchange ended that the writer has taken and not released.
    oldest_taken: Option<SystemTime>,
    shares: HashMap<Option<ClientName>, ClientShare>,
    is_stopping: bool,
    is_slow_thread_done: bool,
}

/// What one client holds of the queue.
#[derive(Clone, Copy, Default)]
struct ClientShare {
    bytes: usize,
    /// Content of exchanges in the queue, which can be dropped.
    content_bytes: usize,
}

impl QueuedExchange {
    pub(super) fn new(
        exchange: Box<FinishedExchange>,
        policy: CapturePolicy,
        written_sender: Option<oneshot::Sender<()>>,
    ) -> Self {
        let client = exchange.client.as_ref().and_then(|client| client.name.clone());
        let charge =
            Charge { client, bytes: exchange.memory_bytes(), content_bytes: exchange.content_bytes() };
        Self { exchange, policy, written_sender, charge }
    }

    /// Takes it apart. The charge is to be released when the record is written.
    pub(super) fn into_parts(
        self,
    ) -> (Box<FinishedExchange>, CapturePolicy, Option<oneshot::Sender<()>>, Charge) {
        (self.exchange, self.policy, self.written_sender, self.charge)
    }

    /// Drops the content. Returns how much memory is free again.
    fn lighten(&mut self) -> usize {
        self.exchange.drop_content(self.policy);
        let before = std::mem::replace(&mut self.charge.bytes, self.exchange.memory_bytes());
        self.charge.content_bytes = 0;
        before.saturating_sub(self.charge.bytes)
    }
}

impl ExchangeQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an exchange. Returns whether it is the only one that is ready, and what was dropped.
    pub(super) fn push(&self, exchange: QueuedExchange, is_slow: bool) -> (bool, Dropped) {
        let mut state = self.lock();
        state.charge(&exchange.charge);
        if is_slow {
            state.slow.push_back(exchange);
            self.slow_arrived.notify_one();
        } else {
            state.ready.push_back(exchange);
        }
        let is_only_ready = !is_slow && state.ready.len() == 1;
        (is_only_ready, state.enforce_limit())
    }

    /// Waits for an exchange that is to be prepared. `Err` if none arrived within the timeout, `Ok(None)` if
    /// none will arrive any more.
    pub(super) fn take_slow(&self, timeout: Duration) -> Result<Option<QueuedExchange>, ()> {
        let mut state = self.lock();
        if state.slow.is_empty() && !state.is_stopping {
            let waited = self.slow_arrived.wait_timeout(state, timeout);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(exchange) = state.slow.pop_front() else {
            shrink_if_idle(&mut state.slow);
            return if state.is_stopping { Ok(None) } else { Err(()) };
        };
        state.take_content(&exchange.charge);
        Ok(Some(exchange))
    }

    /// How many exchanges wait to be prepared.
    pub(super) fn slow_count(&self) -> usize {
        self.lock().slow.len()
    }

    /// Adds an exchange that was slow and is now prepared. Its charge changes to what it now holds.
    pub(super) fn push_prepared(&self, exchange: QueuedExchange) -> Dropped {
        let QueuedExchange { exchange, policy, written_sender, charge } = exchange;
        let exchange = QueuedExchange::new(exchange, policy, written_sender);
        let mut state = self.lock();
        state.release(&charge);
        state.charge(&exchange.charge);
        state.ready.push_back(exchange);
        state.enforce_limit()
    }

    /// Takes ready exchanges of about `max_bytes`, but at least one.
    pub(super) fn take_ready(&self, max_bytes: usize, taken: &mut Vec<QueuedExchange>) {
        let mut state = self.lock();
        let mut bytes = 0;
        while bytes < max_bytes
            && let Some(exchange) = state.ready.pop_front()
        {
            bytes += exchange.charge.bytes;
            state.take_content(&exchange.charge);
            state.oldest_taken = state.oldest_taken.or(Some(exchange.exchange.ended_at()));
            taken.push(exchange);
        }
        shrink_if_idle(&mut state.ready);
    }

    /// Releases the charges of exchanges whose records are written.
    pub(super) fn release(&self, charges: &mut Vec<Charge>) {
        let mut state = self.lock();
        charges.drain(..).for_each(|charge| state.release(&charge));
        state.oldest_taken = None;
    }

    /// What is not written yet.
    pub(super) fn backlog(&self) -> Backlog {
        let state = self.lock();
        let queued = [&state.slow, &state.ready].into_iter().filter_map(VecDeque::front);
        Backlog {
            records: Some(state.charged_count),
            bytes: state.charged_bytes as u64,
            oldest: queued.map(|queued| queued.exchange.ended_at()).chain(state.oldest_taken).min(),
        }
    }

    /// Whether any exchange is ready.
    pub(super) fn has_ready(&self) -> bool {
        !self.lock().ready.is_empty()
    }

    /// Whether everything is written.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().charged_bytes == 0
    }

    /// How much text of a prompt may be kept to estimate its tokens: the fuller the queue, the less, so that
    /// samples take no room from prompts and completions. `None` if the request body of this length can be kept
    /// instead, so that the thread that serves the request need not read it.
    pub(super) fn max_sample_bytes(&self, body_bytes: usize) -> Option<usize> {
        match self.lock().charged_bytes {
            bytes if bytes + body_bytes < MAX_QUEUED_BYTES_WITH_BODIES => None,
            bytes if bytes < MAX_QUEUED_BYTES_FOR_LONG_SAMPLES => Some(64 * 1024),
            _ => Some(2 * 1024),
        }
    }

    /// Whether less than half of the limit is in use.
    pub(super) fn is_relaxed(&self) -> bool {
        self.lock().charged_bytes < MAX_QUEUED_BYTES / 2
    }

    /// Nothing more is added, except for what is prepared.
    pub(super) fn stop(&self) {
        self.lock().is_stopping = true;
        self.slow_arrived.notify_all();
    }

    /// The slow thread has ended.
    pub(super) fn note_slow_thread_done(&self) {
        self.lock().is_slow_thread_done = true;
    }

    /// Whether nothing is ready and nothing will be.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.lock();
        state.is_slow_thread_done && state.ready.is_empty()
    }
}

impl std::fmt::Debug for ExchangeQueue {
    /// Only the number of exchanges: they contain prompts.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ExchangeQueue").field(&self.lock().ready.len()).finish()
    }
}

impl QueueState {
    /// Charges an exchange that enters the queue.
    fn charge(&mut self, charge: &Charge) {
        self.charged_bytes += charge.bytes;
        self.charged_count += 1;
        let share = self.shares.entry(charge.client.clone()).or_default();
        share.bytes += charge.bytes;
        share.content_bytes += charge.content_bytes;
    }

    /// The content of an exchange that a thread has taken can no longer be dropped.
    fn take_content(&mut self, charge: &Charge) {
        if let Some(share) = self.shares.get_mut(&charge.client) {
            share.content_bytes = share.content_bytes.saturating_sub(charge.content_bytes);
        }
    }

    /// Releases the charge of an exchange that has left the queue.
    fn release(&mut self, charge: &Charge) {
        self.charged_bytes = self.charged_bytes.saturating_sub(charge.bytes);
        self.charged_count = self.charged_count.saturating_sub(1);
        if let Some(share) = self.shares.get_mut(&charge.client) {
            share.bytes = share.bytes.saturating_sub(charge.bytes);
            if share.bytes == 0 {
                self.shares.remove(&charge.client);
            }
        }
    }

    /// Drops content and, if that is not enough, records until the queue is well below its limit.
    fn enforce_limit(&mut self) -> Dropped {
        let mut dropped = Dropped::default();
        // A single exchange of any size is taken: it would never be written otherwise.
        if self.charged_bytes <= MAX_QUEUED_BYTES || self.slow.len() + self.ready.len() < 2 {
            return dropped;
        }
        while self.charged_bytes > QUEUED_BYTES_AFTER_DROP
            && let Some(client) = self.largest_client(|share| share.content_bytes)
        {
            dropped.lightened_count += self.lighten_client(&client);
            dropped.largest_client = dropped.largest_client.or(client);
        }
        while self.charged_bytes > QUEUED_BYTES_AFTER_DROP
            && let Some(client) = self.largest_client(|share| share.bytes)
        {
            let before = dropped.records.len();
            self.drop_records_of(&client, &mut dropped.records);
            if dropped.records.len() == before {
                // All that it holds is being written at the moment.
                break;
            }
        }
        dropped
    }

    /// The client that holds the most; `None` if nobody holds anything.
    fn largest_client(&self, size: impl Fn(&ClientShare) -> usize) -> Option<Option<ClientName>> {
        let largest = self.shares.iter().max_by_key(|(_, share)| size(share))?;
        (size(largest.1) > 0).then(|| largest.0.clone())
    }

    /// Drops the content of the newest exchanges of a client, as far as necessary. Returns of how many.
    fn lighten_client(&mut self, client: &Option<ClientName>) -> u64 {
        let (mut freed, mut content, mut count) = (0, 0, 0);
        let excess = self.charged_bytes.saturating_sub(QUEUED_BYTES_AFTER_DROP);
        let newest_first = self.slow.iter_mut().rev().chain(self.ready.iter_mut().rev());
        for exchange in newest_first
            .filter(|exchange| exchange.charge.content_bytes > 0 && exchange.charge.client == *client)
        {
            if freed >= excess {
                break;
            }
            content += exchange.charge.content_bytes;
            freed += exchange.lighten();
            count += 1;
        }
        self.charged_bytes = self.charged_bytes.saturating_sub(freed);
        if let Some(share) = self.shares.get_mut(client) {
            share.bytes = share.bytes.saturating_sub(freed);
            // Without anything to drop, its content is not in the queue: it must not be chosen again.
            share.content_bytes = if count == 0 { 0 } else { share.content_bytes.saturating_sub(content) };
        }
        count
    }

    /// Takes the newest exchanges of a client out of the queue, as far as necessary.
    fn drop_records_of(&mut self, client: &Option<ClientName>, dropped: &mut Vec<QueuedExchange>) {
        let mut excess = self.charged_bytes.saturating_sub(QUEUED_BYTES_AFTER_DROP);
        let mut removed = Vec::new();
        for queue in [&mut self.slow, &mut self.ready] {
            let mut kept = VecDeque::with_capacity(queue.len());
            while let Some(exchange) = queue.pop_back() {
                if excess > 0 && exchange.charge.client == *client {
                    excess = excess.saturating_sub(exchange.charge.bytes);
                    removed.push(exchange);
                } else {
                    kept.push_front(exchange);
                }
            }
            *queue = kept;
        }
        for exchange in removed {
            self.take_content(&exchange.charge);
            self.release(&exchange.charge);
            dropped.push(exchange);
        }
    }
}

/// Gives the memory of an empty queue back if it was long.
fn shrink_if_idle(queue: &mut VecDeque<QueuedExchange>) {
    if queue.is_empty() && queue.capacity() > MAX_IDLE_QUEUE_CAPACITY {
        *queue = VecDeque::new();
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
