//! The attempts of one request: which backend is next, the attempt that is under way, and the record of
//! those before it. What a response leads to is `outcome.rs`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::held_response::{AttemptTarget, HeldResponse};
use crate::azure::Operation;
use crate::credentials::Credential;
use crate::gateway::{AdmittedRequest, AttemptFailure, Gateway, UpstreamRequest};
use crate::names::BackendName;
use crate::record::exchange::AttemptRecord;
use crate::routing::availability::{ProbePermit, Unavailable};
use crate::routing::headroom::SendTicket;
use crate::routing::pool::BackendPool;
use crate::routing::retry_plan::{AttemptOutcome, NextAttempt, NextStep, RetryLimits, RetryPlan, Wait};

/// No failure of a backend.
pub(super) const NO_FAILURE: AttemptFailure =
    AttemptFailure { is_first_of_request: false, opens_circuit_alone: false, was_counted_as_success: false };

/// An admitted request and its attempts.
pub(in crate::proxy) struct RetryState {
    pub(super) gateway: Arc<Gateway>,
    pub(in crate::proxy) admitted: AdmittedRequest,
    /// The attempts begun so far, for the record.
    pub(super) attempts: Vec<AttemptRecord>,
    pub(super) plan: RetryPlan,
    limits: RetryLimits,
    /// The next step, once it has been chosen: a response may be judged before it is taken.
    next: Option<NextStep>,
    pub(super) current: Option<CurrentAttempt>,
    /// The target of the current attempt, or of the last.
    last_target: Option<AttemptTarget>,
    /// The most useful of the responses that were held back.
    best_response: Option<HeldResponse>,
    /// The default backend does not know the id of the request, and other resources are tried.
    pub(super) searches_other_resources: bool,
    /// The candidate that refused `stream_options`; no other is sent them then.
    pub(super) refused_stream_options: Option<usize>,
}

/// The attempt under way.
pub(super) struct CurrentAttempt {
    /// The index of the candidate in its pool.
    pub(super) candidate: usize,
    pub(super) started: Instant,
    pub(super) send_ticket: Option<SendTicket>,
    /// Some of the request may have been sent.
    is_sent: bool,
    asks_for_usage: bool,
    /// The number of the secret it is sent with; 0: none yet.
    pub(super) secret_number: u64,
    /// Its response is relayed and has been counted.
    pub(super) is_answered: bool,
    probe_permit: ProbePermit,
    is_last_resort: bool,
}

/// An attempt that has ended. A probe permit that was not used up is given back when this is dropped,
/// which is after the gateway has learned from the response.
pub(super) struct FinishedAttempt {
    /// The index of the candidate in its pool.
    pub(super) candidate: usize,
    pub(super) send_ticket: Option<SendTicket>,
    pub(super) secret_number: u64,
    _probe_permit: ProbePermit,
}

/// What to do next.
pub(in crate::proxy) enum RetryStep {
    /// Make an attempt on the backend with this index in the configuration.
    Attempt(usize),
    /// Wait, then call [`RetryState::on_wait_over`].
    Wait(Wait),
    /// Wait for a new secret, then call [`RetryState::on_credential_renewed`].
    AwaitCredential(Arc<Credential>),
    /// No attempt is left.
    Exhausted,
}

impl RetryState {
    pub(in crate::proxy) fn new(
        gateway: Arc<Gateway>,
        admitted: AdmittedRequest,
        limits: RetryLimits,
    ) -> Self {
        Self {
            gateway,
            plan: RetryPlan::new(&admitted.pool),
            admitted,
            attempts: Vec::new(),
            limits,
            next: None,
            current: None,
            last_target: None,
            best_response: None,
            searches_other_resources: false,
            refused_stream_options: None,
        }
    }

    fn operation(&self) -> Operation {
        self.admitted.target.operation
    }

    /// The next step. It stays the same until it is taken.
    pub(in crate::proxy) fn next_step(&mut self, now: Instant) -> RetryStep {
        let (plan, admitted, limits) = (&self.plan, &self.admitted, &self.limits);
        let next = self.next.get_or_insert_with(|| {
            plan.next_step(&admitted.pool, admitted.target.operation, limits, now, fastrand::f64())
        });
        match next {
            NextStep::Attempt(attempt) => match admitted.pool.candidate(attempt.candidate_index) {
                Some(candidate) => RetryStep::Attempt(candidate.backend_index),
                None => RetryStep::Exhausted,
            },
            NextStep::Wait(wait) => RetryStep::Wait(*wait),
            NextStep::AwaitCredential(candidate) => match admitted.pool.candidate(*candidate) {
                Some(candidate) => RetryStep::AwaitCredential(Arc::clone(&candidate.credential)),
                None => RetryStep::Exhausted,
            },
            NextStep::Exhausted => RetryStep::Exhausted,
        }
    }

    pub(in crate::proxy) fn on_wait_over(&mut self, wait: Wait) {
        self.next = None;
        self.plan.on_wait_over(wait);
    }

    pub(in crate::proxy) fn on_credential_renewed(&mut self) {
        self.next = None;
        self.plan.on_credential_wait_over();
    }

    /// Begins the attempt that is the next step.
    pub(in crate::proxy) fn begin_attempt(&mut self, backend_name: &BackendName, now: Instant) {
        let Some(NextStep::Attempt(attempt)) = self.next.take() else { return };
        self.plan.on_attempt_start(&self.admitted.pool, &attempt, now);
        let NextAttempt { candidate_index, probe_permit, is_last_resort, .. } = attempt;
        let candidate = self.admitted.pool.candidate(candidate_index);
        self.current = Some(CurrentAttempt {
            candidate: candidate_index,
            started: now,
            send_ticket: candidate.and_then(|candidate| candidate.record_send(now)),
            is_sent: false,
            asks_for_usage: false,
            secret_number: 0,
            is_answered: false,
            probe_permit,
            is_last_resort,
        });
        if let Some(candidate) = candidate {
            candidate.backend_health.on_attempt_start();
            let upstream_deployment = candidate.upstream_deployment.clone();
            self.last_target = Some(AttemptTarget { backend: candidate.backend_index, upstream_deployment });
        }
        self.attempts.push(AttemptRecord {
            backend: backend_name.clone(),
            status: None,
            error: None,
            duration_ms: 0,
            retry_after_ms: None,
        });
    }

    /// The request of the current attempt, which is sent with the secret of this number.
    pub(in crate::proxy) fn prepare_request(&mut self, secret_number: u64) -> Option<UpstreamRequest> {
        let current = self.current.as_mut()?;
        current.secret_number = secret_number;
        let candidate = self.admitted.pool.candidate(current.candidate)?;
        let may_ask_for_usage = self.refused_stream_options.is_none();
        let request = self.gateway.upstream_request(&self.admitted, candidate, may_ask_for_usage);
        current.is_sent = true;
        current.asks_for_usage = request.adds_stream_usage;
        Some(request)
    }

    /// Whether the current attempt asks for the usage of a stream on the balancer's own account.
    pub(super) fn asks_for_usage(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.asks_for_usage)
    }

    pub(in crate::proxy) fn has_current_attempt(&self) -> bool {
        self.current.is_some()
    }

    /// Attempts begun so far.
    pub(in crate::proxy) fn attempt_count(&self) -> u32 {
        self.plan.attempts_started()
    }

    /// The target of the current attempt, or of the last.
    pub(in crate::proxy) fn last_target(&self) -> Option<&AttemptTarget> {
        self.last_target.as_ref()
    }

    /// Names the backend whose response the client gets, if it is known.
    pub(super) fn set_last_target(&mut self, target: Option<AttemptTarget>) {
        self.last_target = target.or(self.last_target.take());
    }

    /// Takes the attempts for the record.
    pub(in crate::proxy) fn take_attempts(&mut self) -> Vec<AttemptRecord> {
        std::mem::take(&mut self.attempts)
    }

    /// Whether the current attempt may be followed by another although it broke off.
    pub(super) fn can_repeat(&self) -> bool {
        self.admitted.is_repeatable || !self.current.as_ref().is_some_and(|current| current.is_sent)
    }

    /// Whether another attempt or a wait is left.
    pub(super) fn has_next_step(&mut self, now: Instant) -> bool {
        !matches!(self.next_step(now), RetryStep::Exhausted)
    }

    /// Records that the current attempt has been sent whole.
    pub(in crate::proxy) fn on_request_sent(&self, now: Instant) {
        if let Some(current) = &self.current {
            current.probe_permit.on_request_sent(now);
        }
    }

    /// Everything that the current attempt probes is available again: its response is no refusal.
    pub(super) fn mark_all_available(&mut self) {
        let Some(current) = &mut self.current else { return };
        std::mem::take(&mut current.probe_permit).mark_all_available();
        if current.is_last_resort
            && let Some(candidate) = self.admitted.pool.candidate(current.candidate)
        {
            candidate.backend_health.breaker.availability.mark_available();
        }
    }

    /// Closes the circuit breaker of the current attempt's backend. A response head is enough for
    /// that, whatever it says.
    pub(super) fn close_circuit(&mut self) {
        let Some(current) = &mut self.current else { return };
        if let Some(candidate) = self.admitted.pool.candidate(current.candidate) {
            let breaker = &candidate.backend_health.breaker;
            current.probe_permit.mark_available(&breaker.availability);
            if current.is_last_resort {
                breaker.close_circuit();
            }
        }
    }

    /// What a failure of the current attempt counts as.
    pub(super) fn current_failure(&mut self) -> AttemptFailure {
        let Some(current) = &self.current else { return NO_FAILURE };
        let candidate = self.admitted.pool.candidate(current.candidate);
        let breaker = candidate.map(|candidate| &candidate.backend_health.breaker.availability);
        AttemptFailure {
            is_first_of_request: self.plan.record_first_failure(current.candidate),
            opens_circuit_alone: breaker.is_some_and(|breaker| current.probe_permit.covers(breaker)),
            was_counted_as_success: current.is_answered,
        }
    }

    /// Ends the current attempt in the record; `note` adds how it ended.
    pub(super) fn finish_attempt(
        &mut self,
        now: Instant,
        note: impl FnOnce(&mut AttemptRecord),
    ) -> Option<FinishedAttempt> {
        let current = self.current.take()?;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.duration_ms = whole_millis(now.saturating_duration_since(current.started));
            note(attempt);
        }
        if let Some(candidate) = self.admitted.pool.candidate(current.candidate) {
            candidate.backend_health.on_attempt_end();
        }
        let CurrentAttempt { candidate, send_ticket, secret_number, probe_permit, .. } = current;
        Some(FinishedAttempt { candidate, send_ticket, secret_number, _probe_permit: probe_permit })
    }

    /// Records what came of the attempt on this candidate, for the choice of the next.
    pub(super) fn note_outcome(&mut self, candidate: usize, outcome: AttemptOutcome) {
        // An id that the default backend does not know is looked for on each other resource once: a
        // failure there is no reason for further rounds.
        let outcome = if self.searches_other_resources && outcome == AttemptOutcome::Failed {
            AttemptOutcome::CannotServe
        } else {
            outcome
        };
        self.plan.on_attempt_end(candidate, outcome);
        self.next = None;
    }

    /// Goes on with the resources that may know the id of the request.
    pub(super) fn search_other_resources(&mut self, pool: Arc<BackendPool>) {
        self.searches_other_resources = true;
        self.plan = self.plan.continue_in_pool(&pool);
        self.admitted.pool = pool;
    }

    /// Keeps the more useful of two held responses. Of equals it is the later, except in a search by
    /// id: there the default backend, which was tried first, knows best that the id does not exist.
    pub(super) fn keep_best_response(&mut self, held: HeldResponse) {
        let is_better = match &self.best_response {
            None => true,
            Some(best) if best.rank() == held.rank() => !self.admitted.searches_by_id,
            Some(best) => held.rank() < best.rank(),
        };
        if is_better {
            self.best_response = Some(held);
        }
    }

    pub(super) fn has_best_response(&self) -> bool {
        self.best_response.is_some()
    }

    pub(super) fn take_best_response(&mut self) -> Option<HeldResponse> {
        self.best_response.take()
    }

    /// Whether some backend is available that this request has not tried.
    pub(super) fn has_untried_backend(&self, now: Instant) -> bool {
        self.plan.has_untried_candidate(&self.admitted.pool, self.operation(), now)
    }

    /// When the soonest cooldown ends that is worth waiting for.
    pub(super) fn soonest_cooldown(&self, now: Instant) -> Option<Instant> {
        self.plan.earliest_cooldown_end(&self.admitted.pool, self.operation(), now)
    }

    /// Why backends of the pool are unavailable.
    pub(super) fn unavailable_backends(&self, now: Instant) -> impl Iterator<Item = Unavailable> {
        let operation = self.operation();
        self.admitted
            .pool
            .candidates()
            .iter()
            .filter_map(move |candidate| candidate.unavailability(operation, now))
    }

    /// Ends an attempt that is still under way when the request ends.
    pub(in crate::proxy) fn close(&mut self, client_gone: bool, now: Instant) {
        self.finish_attempt(now, |attempt| {
            if client_gone && attempt.status.is_none() {
                attempt.error = Some("client_gone");
            }
        });
    }
}

/// Whole milliseconds, as records have them.
pub(super) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
