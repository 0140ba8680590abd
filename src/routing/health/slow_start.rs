//! How many queued requests are sent to a deployment at once after it has answered 429.
//!
//! Without a limit, all queued requests would be sent when the cooldown ends, and most would get another 429. So one
//! request goes first, and each accepted request lets one more go: 1, 2, 4, 8, … at a time, until the next 429. A request
//! counts as accepted when its response begins, or a short time after it was sent completely: a 429 comes at once, an
//! answer may take minutes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

/// A request counts as accepted when this much time has passed since it was sent whole.
const ACCEPTED_AFTER: Duration = Duration::from_millis(100);
/// The shortest rest after refusals, whatever their `retry-after` says. It doubles each time a request that is sent after
/// it is refused.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Others do not wait for longer for a request that is not sent yet: it may be a slow upload.
const LONGEST_SENDING: Duration = Duration::from_secs(1);

/// The slow start of one deployment.
#[derive(Debug, Default)]
pub struct SlowStart {
    state: Mutex<SlowStartState>,
}

#[derive(Debug)]
struct SlowStartState {
    /// How many requests may be undecided at the same time.
    allowed: usize,
    /// Those that are neither accepted nor refused.
    undecided: SmallVec<[Undecided; 4]>,
    next_id: u64,
    /// Refusals since the last acceptance. Those of requests that were sent together count once.
    refusals_in_a_row: u32,
    /// Whether a request that has waited was sent since the last refusal.
    has_sent_since_refusal: bool,
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Undecided {
    id: u64,
    entered_at: Instant,
    /// When it was sent whole.
    sent_at: Option<Instant>,
}

/// A request that is neither accepted nor refused. If it is dropped, it is neither, and makes room for another one.
#[derive(Debug)]
pub struct UndecidedRequest {
    deployment: Arc<SlowStart>,
    id: u64,
}

impl Default for SlowStartState {
    fn default() -> Self {
        Self {
            // Nothing is known against it.
            allowed: usize::MAX,
            undecided: SmallVec::new(),
            next_id: 0,
            refusals_in_a_row: 0,
            has_sent_since_refusal: false,
            rests_until: None,
        }
    }
}

impl SlowStart {
    /// Whether another request may be sent.
    pub(in crate::routing) fn has_room(&self, now: Instant) -> bool {
        self.lock().has_room(now)
    }

    /// Counts a request that is to be sent; `None` if there is no room.
    pub(in crate::routing) fn enter(self: &Arc<Self>, now: Instant) -> Option<UndecidedRequest> {
        let mut state = self.lock();
        if !state.has_room(now) {
            return None;
        }
        state.next_id += 1;
        let id = state.next_id;
        state.undecided.push(Undecided { id, entered_at: now, sent_at: None });
        state.has_sent_since_refusal = true;
        Some(UndecidedRequest { deployment: Arc::clone(self), id })
    }

    /// When there will be room, if nothing happens before; `None` if there is room, or that is not known.
    pub(in crate::routing) fn next_room(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.has_room(now) {
            return None;
        }
        if let Some(until) = state.rests_until {
            return Some(until);
        }
        state.undecided.iter().map(Undecided::decided_at).min()
    }

    /// The deployment has refused a request for its rate limit.
    pub fn on_refusal(&self, now: Instant) {
        let mut state = self.lock();
        state.accept_silent(now);
        if std::mem::take(&mut state.has_sent_since_refusal) || state.refusals_in_a_row == 0 {
            state.refusals_in_a_row = state.refusals_in_a_row.saturating_add(1);
        }
        let doublings = (state.refusals_in_a_row - 1).min(16);
        let rest = (FIRST_REST * 2_u32.saturating_pow(doublings)).min(LONGEST_REST);
        state.allowed = 1;
        state.rests_until = Some(now + rest);
    }

    fn lock(&self) -> MutexGuard<'_, SlowStartState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlowStartState {
    fn has_room(&mut self, now: Instant) -> bool {
        self.accept_silent(now);
        self.rests_until = self.rests_until.filter(|until| *until > now);
        self.rests_until.is_none() && self.undecided.len() < self.allowed
    }

    /// Accepts the requests that have not been refused for long enough, and no longer counts those that are not sent in
    /// time.
    fn accept_silent(&mut self, now: Instant) {
        let mut accepted = 0;
        self.undecided.retain(|request| {
            let is_over = request.decided_at() <= now;
            accepted += usize::from(is_over && request.sent_at.is_some());
            !is_over
        });
        self.on_accepted(accepted);
    }

    fn on_accepted(&mut self, count: usize) {
        if count > 0 {
            self.allowed = self.allowed.saturating_add(count);
            self.refusals_in_a_row = 0;
        }
    }
}

impl Undecided {
    /// When it counts as accepted, or no longer counts if it has not been sent.
    fn decided_at(&self) -> Instant {
        self.sent_at.map_or(self.entered_at + LONGEST_SENDING, |sent_at| sent_at + ACCEPTED_AFTER)
    }
}

impl UndecidedRequest {
    /// It has been sent whole.
    pub fn on_sent(&self, now: Instant) {
        let mut state = self.deployment.lock();
        if let Some(request) = state.undecided.iter_mut().find(|request| request.id == self.id) {
            request.sent_at.get_or_insert(now);
        }
    }

    /// Its response has begun, and is no refusal.
    pub fn on_accepted(self) {
        let mut state = self.deployment.lock();
        if state.remove(self.id) {
            state.on_accepted(1);
        }
    }
}

impl SlowStartState {
    /// Returns whether it was undecided.
    fn remove(&mut self, id: u64) -> bool {
        let at = self.undecided.iter().position(|request| request.id == id);
        at.map(|at| self.undecided.swap_remove(at)).is_some()
    }
}

impl Drop for UndecidedRequest {
    fn drop(&mut self) {
        self.deployment.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn enter_all(deployment: &Arc<SlowStart>, now: Instant) -> Vec<UndecidedRequest> {
        std::iter::from_fn(|| deployment.enter(now)).collect()
    }

    /// Returns when it has rested after that.
    fn refuse_once(deployment: &Arc<SlowStart>, now: Instant) -> Instant {
        deployment.on_refusal(now);
        now + FIRST_REST
    }

    #[test]
    fn others_wait_for_a_request_that_is_not_sent_for_a_second_at_most() {
        let deployment = Arc::new(SlowStart::default());
        let now = refuse_once(&deployment, Instant::now());
        let upload = deployment.enter(now).unwrap();
        assert!(deployment.enter(now + 999 * MS).is_none());
        assert_eq!(enter_all(&deployment, now + 1000 * MS).len(), 1, "it was not accepted");
        upload.on_sent(now + 1001 * MS);
        upload.on_accepted();
    }

    #[test]
    fn as_many_again_follow_as_were_accepted() {
        let (deployment, start) = (Arc::new(SlowStart::default()), Instant::now());
        let without_limit: Vec<_> = (0..100).filter_map(|_| deployment.enter(start)).collect();
        assert_eq!(without_limit.len(), 100, "it has not refused anything");
        drop(without_limit);
        let (mut now, mut sent) = (refuse_once(&deployment, start), Vec::new());
        for expected in [1, 2, 4, 8] {
            let requests = enter_all(&deployment, now);
            assert_eq!(requests.len(), expected);
            assert_eq!(deployment.next_room(now), Some(now + 1000 * MS), "not sent yet");
            requests.iter().for_each(|request| request.on_sent(now));
            assert_eq!(deployment.next_room(now), Some(now + 100 * MS));
            now += 100 * MS;
            // Their answers take longer.
            sent.extend(requests);
        }
        deployment.on_refusal(now);
        assert!(!deployment.has_room(now));
        assert_eq!(deployment.next_room(now), Some(now + 10 * MS));
        assert_eq!(enter_all(&deployment, now + 10 * MS).len(), 1);
    }

    #[test]
    fn a_response_decides_at_once_and_a_lost_request_makes_room() {
        let deployment = Arc::new(SlowStart::default());
        let now = refuse_once(&deployment, Instant::now());
        let first = deployment.enter(now).unwrap();
        assert!(deployment.enter(now).is_none());
        drop(first);
        deployment.enter(now).unwrap().on_accepted();
        let two = enter_all(&deployment, now);
        assert_eq!(two.len(), 2);
        two.into_iter().for_each(UndecidedRequest::on_accepted);
        assert_eq!(enter_all(&deployment, now).len(), 4);
    }

    #[test]
    fn a_deployment_that_goes_on_to_refuse_is_left_alone_for_longer_each_time() {
        let (deployment, mut now) = (Arc::new(SlowStart::default()), Instant::now());
        for rest in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            drop(deployment.enter(now));
            // Others were sent at the same time.
            (0..3).for_each(|_| deployment.on_refusal(now));
            assert_eq!(deployment.next_room(now), Some(now + rest * MS));
            now += rest * MS;
        }
        deployment.enter(now).unwrap().on_accepted();
        deployment.on_refusal(now);
        assert_eq!(deployment.next_room(now), Some(now + 10 * MS));
    }
}
