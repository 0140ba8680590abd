//! The queue of requests that are exported: limited in number and in memory, so that a collector that is away costs
//! nothing but traces.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::spans::TracedRequest;

/// The most requests that wait: what OpenTelemetry's own exporters keep.
const MAX_REQUESTS: usize = 2048;
/// The most memory that they take.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The requests that are not exported yet.
#[derive(Default)]
pub(super) struct TraceQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    requests: VecDeque<TracedRequest>,
    bytes: usize,
    is_closed: bool,
}

/// What was taken out of the queue.
pub(super) enum Taken {
    Requests(Vec<TracedRequest>),
    /// Nothing came in time.
    Nothing,
    /// Nothing will come.
    Closed,
}

impl TraceQueue {
    /// Adds a request. If there is no room for it, it is lost: the first ones of an outage show how it began.
    ///
    /// # Errors
    /// The number of its spans.
    pub(super) fn push(&self, request: TracedRequest) -> Result<(), usize> {
        let mut state = self.lock();
        let bytes = request.memory_bytes();
        if state.requests.len() >= MAX_REQUESTS || state.bytes + bytes > MAX_BYTES {
            return Err(request.span_count());
        }
        state.bytes += bytes;
        state.requests.push_back(request);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes requests with at most about this many spans. Waits for the first one.
    pub(super) fn take(&self, max_spans: usize, limit: Duration) -> Taken {
        let state = self.lock();
        let is_waiting = |state: &mut QueueState| state.requests.is_empty() && !state.is_closed;
        let waited = self.changed.wait_timeout_while(state, limit, is_waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (mut taken, mut spans) = (Vec::new(), 0);
        while spans < max_spans
            && let Some(request) = state.requests.pop_front()
        {
            state.bytes = state.bytes.saturating_sub(request.memory_bytes());
            spans += request.span_count();
            taken.push(request);
        }
        match taken.is_empty() {
            false => Taken::Requests(taken),
            true if state.is_closed => Taken::Closed,
            true => Taken::Nothing,
        }
    }

    /// Nothing is added any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// How many requests wait.
    pub(super) fn len(&self) -> usize {
        self.lock().requests.len()
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::record::traces::testing::traced_request;

    #[test]
    fn a_full_queue_takes_nothing_and_keeps_the_first() {
        let queue = TraceQueue::default();
        for number in 0..MAX_REQUESTS {
            assert_eq!(queue.push(traced_request(number % 3)), Ok(()));
        }
        assert_eq!(queue.push(traced_request(2)), Err(3));
        assert_eq!(queue.len(), MAX_REQUESTS);
        let Taken::Requests(taken) = queue.take(6, Duration::ZERO) else { panic!("nothing is taken") };
        assert_eq!(taken.iter().map(TracedRequest::span_count).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(queue.push(traced_request(0)), Ok(()));
    }

    #[test]
    fn long_texts_count_for_the_memory() {
        let queue = TraceQueue::default();
        let large = || {
            let mut request = traced_request(0);
            request.exchange.unparsed_path = Some("x".repeat(1024 * 1024));
            request
        };
        let taken = (0..100).filter(|_| queue.push(large()).is_ok()).count();
        assert_eq!(taken, 15);
        assert_eq!(queue.push(traced_request(0)), Ok(()));
    }

    #[test]
    fn a_closed_queue_is_emptied_first() {
        let queue = TraceQueue::default();
        assert!(matches!(queue.take(9, Duration::ZERO), Taken::Nothing));
        queue.push(traced_request(0)).unwrap();
        queue.close();
        assert!(matches!(queue.take(9, Duration::from_secs(60)), Taken::Requests(_)));
        let start = Instant::now();
        assert!(matches!(queue.take(9, Duration::from_secs(60)), Taken::Closed));
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
