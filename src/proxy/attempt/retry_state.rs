//! The state of a request's attempts: the next step, the current attempt and the records of all attempts.
//! The backend is chosen by `routing`; what a response leads to is decided in `outcome.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::held_response::{AttemptTarget, HeldResponse};
use super::queue_wait::QueueWait;
use crate::credentials::BackendCredential;
use crate::gateway::{AdmittedRequest, FailureFlags, Gateway, Moment, UpstreamRequest};
use crate::names::BackendName;
use crate::record::affinity::AskAnswer;
use crate::record::exchange::AttemptRecord;
use crate::record::trace_context::SpanId;
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::headroom::SendTicket;
use crate::routing::health::probe_permit::ProbePermit;
use crate::routing::health::slow_start::UndecidedRequest;
use crate::routing::health::stall::WatchedAttempt;
use crate::routing::prompt_cache::LoadTicket;
use crate::routing::retry_plan::{NextAttempt, NextStep, RetryLimits, RetryPlan, Wait};
use crate::routing::spill::SpillReason;

/// For responses and errors that are no failure of the backend.
pub(super) const NO_FAILURE: FailureFlags = FailureFlags {
    is_first_of_request_on_backend: false,
    opens_circuit_alone: false,
    was_counted_as_success: false,
};

/// An admitted request and its attempts.
pub(in crate::proxy) struct RetryState {
    pub(super) gateway: Arc<Gateway>,
    pub(in crate::proxy) admitted: AdmittedRequest,
    /// One for each attempt started so far.
    pub(super) attempt_records: Vec<AttemptRecord>,
    pub(super) plan: RetryPlan,
    limits: RetryLimits,
    pub(super) received: Moment,
    /// The address of the client.
    pub(super) client_ip: Option<IpAddr>,
    /// How long the request has waited between attempts, without the wait that goes on.
    finished_waits: Duration,
    /// When the wait that goes on has begun.
    waiting_since: Option<Instant>,
    pub(super) queue_wait: QueueWait,
    /// The next step, if it has been chosen. Whether there is one decides what becomes of a response, and
    /// the same step has to be taken afterwards.
    chosen_step: Option<NextStep>,
    pub(super) current_attempt: Option<CurrentAttempt>,
    /// The target of the current attempt; between attempts, of the last. At the end it is the backend whose
    /// response the client gets.
    current_or_last_target: Option<AttemptTarget>,
    /// The most useful held response so far, which the client gets if no attempt succeeds.
    pub(super) best_response: Option<HeldResponse>,
    /// How long the request has waited for the resource that has what it refers to.
    pub(super) home_wait: Duration,
    /// The indexes of the resources that were asked for it, with their answers.
    pub(super) asked_resources: Vec<(usize, AskAnswer)>,
    /// How long after it was made the object could be read, if it could not at first.
    pub(super) read_lag: Option<Duration>,
    /// The indexes of the candidates that have said that they do not have the deployment.
    pub(super) candidates_without_deployment: SmallVec<[usize; 2]>,
    /// The index of the candidate that refused the `stream_options` added by the balancer. From then on
    /// they are not added for any candidate.
    pub(super) stream_options_refused_by: Option<usize>,
    /// It has left a stalled backend, which it does at most once.
    has_left_stalled_backend: bool,
    /// Only one backend can answer it, whatever else it refers to.
    pub(super) is_pinned: bool,
    /// That backend does not have all that it refers to.
    pub(super) is_denied_by_pinned_backend: bool,
}

/// The current attempt.
pub(super) struct CurrentAttempt {
    /// The index of the candidate in its pool.
    pub(super) candidate_index: usize,
    pub(super) started_at: Instant,
    /// Puts the capacity that the response reports in order with those of other attempts.
    pub(super) send_ticket: Option<SendTicket>,
    /// What it counts for among the tokens in flight, if it is routed by its prompt.
    _load: Option<LoadTicket>,
    /// At least a part of the request may have reached the backend.
    may_have_been_sent: bool,
    /// The balancer added `stream_options` to get the usage of a stream.
    balancer_asks_for_usage: bool,
    /// The id of the secret that the request is sent with; 0 if none has been chosen yet.
    pub(super) secret_id: u64,
    /// The response is that to the handshake of a WebSocket, over which the request would have been sent.
    pub(super) is_handshake_refused: bool,
    /// The response is relayed, and was counted as a success of the backend.
    pub(super) is_response_relayed: bool,
    /// What this attempt probes, such as a half-open circuit breaker.
    probe_permit: ProbePermit,
    /// The backend is tried although it is unavailable, because no other is left.
    is_last_resort: bool,
    /// Its place among the requests that have waited in the queue, until it is known whether the backend takes it.
    undecided: Option<UndecidedRequest>,
}

/// An attempt that has ended. What its probe permit has not decided may be probed by another request once
/// this is dropped, which must not be before the gateway has learned from the response.
pub(super) struct FinishedAttempt {
    /// The index of the candidate in its pool.
    pub(super) candidate_index: usize,
    pub(super) send_ticket: Option<SendTicket>,
    pub(super) secret_id: u64,
    _probe_permit: ProbePermit,
}

/// What to do next.
pub(in crate::proxy) enum RetryStep {
    /// Make an attempt on the backend with this index in the configuration: call
    /// [`RetryState::begin_attempt`].
    Attempt(usize),
    /// Wait, then call [`RetryState::on_wait_over`].
    Wait(Wait),
    /// Wait in the queue.
    Queue,
    /// Wait for this credential's renewal, then call [`RetryState::on_credential_wait_over`].
    AwaitCredential(Arc<BackendCredential>),
    /// No further attempt is possible.
    Exhausted,
}

impl RetryState {
    pub(in crate::proxy) fn new(
        gateway: Arc<Gateway>,
        admitted: AdmittedRequest,
        limits: RetryLimits,
        received: Moment,
        client_ip: Option<IpAddr>,
    ) -> Self {
        Self {
            gateway,
            plan: admitted.retry_plan(),
            admitted,
            // Most requests have one.
            attempt_records: Vec::with_capacity(1),
            limits,
            received,
            client_ip,
            finished_waits: Duration::ZERO,
            waiting_since: None,
            queue_wait: QueueWait::default(),
            chosen_step: None,
            current_attempt: None,
            current_or_last_target: None,
            best_response: None,
            home_wait: Duration::ZERO,
            asked_resources: Vec::new(),
            read_lag: None,
            candidates_without_deployment: SmallVec::new(),
            stream_options_refused_by: None,
            has_left_stalled_backend: false,
            is_pinned: false,
            is_denied_by_pinned_backend: false,
        }
    }

    /// The next step. It is chosen once and stays the same until it is taken.
    pub(in crate::proxy) fn next_step(&mut self, now: Instant) -> RetryStep {
        let (plan, admitted, limits) = (&self.plan, &self.admitted, &self.limits);
        let (pool, operation) = (&admitted.pool, admitted.routed_operation());
        let next = self.chosen_step.get_or_insert_with(|| {
            if self.gateway.is_queue_before(admitted, plan.has_home())
                && plan.waits_behind_others(pool, operation, limits, now)
            {
                return NextStep::Queue;
            }
            plan.next_step(pool, operation, limits, now, fastrand::f64())
        });
        match next {
            NextStep::Attempt(attempt) => match admitted.pool.candidate(attempt.candidate_index) {
                Some(candidate) => RetryStep::Attempt(candidate.backend_index),
                None => RetryStep::Exhausted,
            },
            NextStep::Wait(wait) => RetryStep::Wait(*wait),
            NextStep::Queue => RetryStep::Queue,
            NextStep::AwaitCredential(candidate) => match admitted.pool.candidate(*candidate) {
                Some(candidate) => RetryStep::AwaitCredential(Arc::clone(&candidate.credential)),
                None => RetryStep::Exhausted,
            },
            NextStep::Exhausted => RetryStep::Exhausted,
        }
    }

    /// Has the next attempt go to this backend, whatever its state; returns whether it is in the pool.
    pub(in crate::proxy) fn pin_to_backend(&mut self, backend_index: usize) -> bool {
        let candidates = self.admitted.pool.candidates();
        let index = candidates.iter().position(|candidate| candidate.backend_index == backend_index);
        self.chosen_step = index.map(|index| NextStep::Attempt(NextAttempt::pinned(index)));
        self.is_pinned = index.is_some();
        self.is_pinned
    }

    /// Chooses the next step; `None` leaves the choice to the plan.
    pub(super) fn choose_step(&mut self, step: Option<NextStep>) {
        self.chosen_step = step;
    }

    /// When a request gives up that has waited in the queue since then.
    pub(super) fn queue_deadline(&self, since: Instant) -> Instant {
        let wait = self.limits.max_queue_wait.unwrap_or_default();
        (since + wait).min(self.limits.latest_retry_start)
    }

    /// Begins the wait that [`Self::next_step`] returned.
    pub(in crate::proxy) fn begin_wait(&mut self, now: Instant) {
        self.waiting_since = Some(now);
    }

    pub(in crate::proxy) fn on_wait_over(&mut self, wait: Wait, now: Instant) {
        if self.plan.is_wait_for_home(wait) {
            self.home_wait +=
                self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        }
        self.end_wait(now);
        self.plan.on_wait_over(wait);
    }

    pub(in crate::proxy) fn on_credential_wait_over(&mut self, now: Instant) {
        self.end_wait(now);
        self.plan.on_credential_wait_over();
    }

    fn end_wait(&mut self, now: Instant) {
        self.finished_waits = self.total_wait(now);
        self.waiting_since = None;
        self.chosen_step = None;
    }

    /// How long the request has waited between attempts, until now if a wait goes on.
    pub(in crate::proxy) fn total_wait(&self, now: Instant) -> Duration {
        let current = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.finished_waits + current.unwrap_or_default()
    }

    /// Begins the attempt that [`Self::next_step`] returned.
    pub(in crate::proxy) fn begin_attempt(&mut self, backend_name: &BackendName, now: Instant) {
        let Some(NextStep::Attempt(attempt)) = self.chosen_step.take() else { return };
        let (pool, operation) = (&self.admitted.pool, self.admitted.routed_operation());
        self.plan.note_move(pool, operation, &attempt, self.is_pinned, now);
        self.plan.on_attempt_start(pool, &attempt, now);
        let NextAttempt { candidate_index, probe_permit, is_last_resort, undecided, .. } = attempt;
        let candidate = self.admitted.pool.candidate(candidate_index);
        self.current_attempt = Some(CurrentAttempt {
            candidate_index,
            started_at: now,
            send_ticket: candidate.and_then(|candidate| candidate.record_send(now)),
            _load: candidate
                .zip(self.admitted.prompt_route)
                .and_then(|(candidate, route)| candidate.hold_tokens(route.tokens)),
            may_have_been_sent: false,
            balancer_asks_for_usage: false,
            secret_id: 0,
            is_handshake_refused: false,
            is_response_relayed: false,
            probe_permit,
            is_last_resort,
            undecided,
        });
        if let Some(candidate) = candidate {
            candidate.backend_health.on_attempt_start();
            let (pool, operation) = (&self.admitted.pool, self.admitted.routed_operation());
            let spilled = self.plan.spill_reason(pool, candidate_index, operation, now);
            self.current_or_last_target = Some(AttemptTarget {
                backend_index: candidate.backend_index,
                upstream_deployment: candidate.upstream_deployment_override.clone(),
                spilled: if self.is_pinned { spilled.map(|_| SpillReason::Home) } else { spilled },
            });
        }
        self.attempt_records.push(AttemptRecord {
            backend: backend_name.clone(),
            status: None,
            error_code: None,
            start: now.saturating_duration_since(self.received.instant),
            time_to_response_head: None,
            duration_ms: 0,
            retry_after_ms: None,
            verdict: None,
            span_id: None,
        });
    }

    /// The request of the current attempt for its backend. It is sent with the secret of this id.
    pub(in crate::proxy) fn prepare_request(&mut self, secret_id: u64) -> Option<UpstreamRequest> {
        let current = self.current_attempt.as_mut()?;
        current.secret_id = secret_id;
        let candidate = self.admitted.pool.candidate(current.candidate_index)?;
        let may_ask_for_usage = self.stream_options_refused_by.is_none();
        let request = self.gateway.build_upstream_request(&self.admitted, candidate, may_ask_for_usage);
        current.may_have_been_sent = true;
        current.balancer_asks_for_usage = request.asks_for_unrequested_usage;
        Some(request)
    }

    /// Whether the balancer added `stream_options` to the current attempt's request to get the usage.
    pub(super) fn balancer_asks_for_usage(&self) -> bool {
        self.current_attempt.as_ref().is_some_and(|current| current.balancer_asks_for_usage)
    }

    /// Records that the response to the current attempt is that to the handshake of a WebSocket.
    pub(in crate::proxy) fn note_refused_handshake(&mut self) {
        if let Some(current) = &mut self.current_attempt {
            current.is_handshake_refused = true;
        }
    }

    pub(in crate::proxy) fn has_current_attempt(&self) -> bool {
        self.current_attempt.is_some()
    }

    /// Number of attempts started so far.
    pub(in crate::proxy) fn attempt_count(&self) -> u32 {
        self.plan.attempts_started()
    }

    /// The target of the current attempt; between attempts, of the last.
    pub(in crate::proxy) fn current_or_last_target(&self) -> Option<&AttemptTarget> {
        self.current_or_last_target.as_ref()
    }

    /// Sets the backend whose response the client gets; `None` changes nothing.
    pub(super) fn set_answering_target(&mut self, target: Option<AttemptTarget>) {
        self.current_or_last_target = target.or(self.current_or_last_target.take());
    }

    /// Records the id of the span of the current attempt, which its backend gets.
    pub(in crate::proxy) fn note_span(&mut self, span_id: SpanId) {
        if let Some(attempt) = self.attempt_records.last_mut() {
            attempt.span_id = Some(span_id);
        }
    }

    /// Takes the records of all attempts.
    pub(in crate::proxy) fn take_attempt_records(&mut self) -> Vec<AttemptRecord> {
        std::mem::take(&mut self.attempt_records)
    }

    /// Whether the request may be sent again if the current attempt fails: repeating it does no harm, or
    /// nothing of it has been sent.
    pub(super) fn can_repeat_request(&self) -> bool {
        self.admitted.is_repeatable
            || !self.current_attempt.as_ref().is_some_and(|current| current.may_have_been_sent)
    }

    /// Watches the current attempt, which was sent then and has no response yet.
    pub(in crate::proxy) fn watch_current_attempt(&self, sent_at: Instant) -> Option<WatchedAttempt> {
        let candidate = self.admitted.pool.candidate(self.current_attempt.as_ref()?.candidate_index)?;
        let usual = candidate.deployment_health.as_ref().map(|health| Arc::clone(&health.answer_times));
        Some(candidate.backend_health.stall_watch.watch(sent_at, usual))
    }

    /// Whether the request leaves its stalled backend: another one is available, it may be repeated, the budget
    /// allows it, and it is the first time.
    pub(in crate::proxy) fn try_leave_stalled_backend(&mut self, now: Instant) -> bool {
        let leaves = !self.has_left_stalled_backend
            && self.can_repeat_request()
            && self.has_untried_backend(now)
            && self.admitted.pool.retry_budget.try_retry(self.limits.retry_budget_percentage, now);
        self.has_left_stalled_backend |= leaves;
        leaves
    }

    /// Whether another attempt is possible, at once or after a wait.
    pub(super) fn can_make_another_attempt(&mut self, now: Instant) -> bool {
        !matches!(self.next_step(now), RetryStep::Exhausted)
    }

    /// Records that the current attempt's request has been sent completely.
    pub(in crate::proxy) fn on_request_sent(&self, now: Instant) {
        if let Some(current) = &self.current_attempt {
            current.probe_permit.on_request_sent(now);
            if let Some(undecided) = &current.undecided {
                undecided.on_sent(now);
                self.gateway.wake_queue();
            }
        }
    }

    /// Records that the head of the current attempt's response has arrived.
    pub(super) fn on_response_head(&mut self, now: Instant) {
        if let (Some(current), Some(attempt)) = (&self.current_attempt, self.attempt_records.last_mut()) {
            attempt.time_to_response_head = Some(now.saturating_duration_since(current.started_at));
        }
    }

    /// Marks everything that the current attempt probes as available, because its response is no refusal.
    pub(super) fn mark_probed_available(&mut self) {
        let Some(current) = &mut self.current_attempt else { return };
        std::mem::take(&mut current.probe_permit).mark_all_available();
        if let Some(undecided) = current.undecided.take() {
            undecided.on_accepted();
        }
        if current.is_last_resort
            && let Some(candidate) = self.admitted.pool.candidate(current.candidate_index)
        {
            candidate.backend_health.breaker.availability.mark_available();
        }
    }

    /// Closes the circuit breaker of the current attempt's backend, if this attempt probes it or is a last
    /// resort. Even a refusal shows that the backend responds.
    pub(super) fn close_probed_circuit(&mut self) {
        let Some(current) = &mut self.current_attempt else { return };
        if let Some(candidate) = self.admitted.pool.candidate(current.candidate_index) {
            let breaker = &candidate.backend_health.breaker;
            current.probe_permit.mark_available(&breaker.availability);
            if current.is_last_resort {
                breaker.close_circuit();
            }
        }
    }

    /// Records a failure of the current attempt in the plan. Returns how it counts for its backend's circuit
    /// breaker.
    pub(super) fn record_current_failure(&mut self) -> FailureFlags {
        let Some(current) = &self.current_attempt else { return NO_FAILURE };
        let candidate = self.admitted.pool.candidate(current.candidate_index);
        let breaker = candidate.map(|candidate| &candidate.backend_health.breaker.availability);
        FailureFlags {
            is_first_of_request_on_backend: self.plan.record_failure(current.candidate_index),
            opens_circuit_alone: breaker.is_some_and(|breaker| current.probe_permit.is_probing(breaker)),
            was_counted_as_success: current.is_response_relayed,
        }
    }

    /// Ends the current attempt; `describe_ending` adds to its record how it ended. `None` if there is no
    /// current attempt.
    pub(super) fn finish_attempt(
        &mut self,
        now: Instant,
        describe_ending: impl FnOnce(&mut AttemptRecord),
    ) -> Option<FinishedAttempt> {
        let current = self.current_attempt.take()?;
        if let Some(attempt) = self.attempt_records.last_mut() {
            attempt.duration_ms = whole_millis(now.saturating_duration_since(current.started_at));
            describe_ending(attempt);
        }
        if let Some(candidate) = self.admitted.pool.candidate(current.candidate_index) {
            candidate.backend_health.on_attempt_end();
        }
        drop(current.undecided);
        let CurrentAttempt { candidate_index, send_ticket, secret_id, probe_permit, .. } = current;
        Some(FinishedAttempt { candidate_index, send_ticket, secret_id, _probe_permit: probe_permit })
    }

    /// Records the outcome of the attempt on this candidate, for the choice of the next step.
    pub(super) fn note_outcome(&mut self, candidate_index: usize, outcome: AttemptOutcome) {
        if matches!(outcome, AttemptOutcome::Throttled(_)) {
            self.queue_wait.on_refused_turn();
        }
        self.plan.on_attempt_end(&self.admitted.pool, candidate_index, outcome);
        // Chosen before this outcome was known.
        self.chosen_step = None;
    }

    /// Records that a candidate has said that it does not have the deployment.
    pub(super) fn note_missing_deployment(&mut self, candidate_index: usize) {
        self.candidates_without_deployment.push(candidate_index);
    }

    /// Ends the current attempt, if there is one, at the end of the request.
    pub(in crate::proxy) fn finish_attempt_at_request_end(&mut self, client_gone: bool, now: Instant) {
        self.finish_attempt(now, |attempt| {
            if client_gone && attempt.status.is_none() {
                attempt.error_code = Some("client_gone");
            }
        });
    }
}

/// The duration in whole milliseconds, for records.
pub(super) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
