//! What the attempts of a request tell about the objects that it refers to, and the refusal if the resource that
//! has them cannot be asked.

use std::time::{Duration, Instant};

use super::exhaustion::time_until_available;
use super::retry_state::RetryState;
use crate::azure::ReferenceKind;
use crate::gateway::ObjectLearner;
use crate::names::Caller;
use crate::proxy::client::client_request::ClientRequest;
use crate::record::affinity::{AffinityRecord, AskAnswer, AskedResource};
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::health::availability::UnavailableReason;

impl RetryState {
    /// Whether what the request refers to is known to be on one resource.
    pub(super) fn needs_known_home(&self) -> bool {
        self.admitted.affinity.as_ref().is_some_and(|affinity| affinity.home().is_some())
    }

    /// Records that the resource of this candidate does not have what the request refers to.
    pub(super) fn on_denied(&mut self, candidate_index: usize, now: Instant) {
        self.is_denied_by_pinned_backend = self.is_pinned;
        let Some(affinity) = self.admitted.affinity.as_deref() else { return };
        if affinity.asks()
            && let Some(turn) = self
                .gateway
                .take_turn_to_ask(&Caller::of(self.admitted.client_name.as_ref(), self.client_ip), now)
        {
            self.plan.delay_next_ask(turn);
        }
        self.note_answer(candidate_index, AskAnswer::Denied);
    }

    /// Records that the resource of this candidate answers the request with success.
    pub(super) fn on_accepted(&mut self, candidate_index: usize, now: Instant) {
        let (Some(affinity), Some(candidate)) =
            (self.admitted.affinity.as_deref(), self.admitted.pool.candidate(candidate_index))
        else {
            return;
        };
        let now = self.received.at(now);
        self.gateway.on_references_accepted(affinity, candidate.resource_index, now);
        if affinity.asks() {
            self.note_answer(candidate_index, AskAnswer::Accepted);
        } else if self.plan.denial_count() > 0 {
            self.read_lag = affinity.age(now);
        }
    }

    /// Records that no further attempt is made.
    pub(super) fn on_exhausted(&mut self, now: Instant) {
        if let Some(affinity) = self.admitted.affinity.as_deref()
            && affinity.asks()
            && self.plan.denial_count() > 0
            && !self.must_not_deny()
        {
            self.gateway.on_references_denied(affinity, now);
        }
    }

    fn note_answer(&mut self, candidate_index: usize, answer: AskAnswer) {
        if let Some(candidate) = self.admitted.pool.candidate(candidate_index) {
            self.asked_resources.push((candidate.resource_index, answer));
        }
    }

    /// Takes what the record tells of the resource that has what the request refers to.
    pub(in crate::proxy) fn take_affinity_record(&mut self) -> Option<Box<AffinityRecord>> {
        let affinity = self.admitted.affinity.as_deref()?;
        let resource = |index: usize| self.gateway.resources.get(index).map(|resource| resource.name.clone());
        let tried = self.current_or_last_target().and_then(|target| {
            self.gateway.backends.get(target.backend_index).map(|backend| backend.resource_index)
        });
        let asked = self.asked_resources.iter().filter_map(|(index, answer)| {
            Some(AskedResource { resource: resource(*index)?, answer: *answer })
        });
        Some(Box::new(AffinityRecord {
            by: affinity.kind.map(ReferenceKind::as_str),
            how: affinity.how(),
            resource: affinity.home().or(tried).and_then(resource),
            asked: asked.collect(),
            waited: self.home_wait,
            read_lag: self.read_lag,
        }))
    }

    /// What learns from the response of the current attempt; `None` if such responses tell of no objects.
    pub(super) fn object_learner(&self, request: &ClientRequest) -> Option<Box<ObjectLearner>> {
        let current = self.current_attempt.as_ref()?;
        let resource_index = self.admitted.pool.candidate(current.candidate_index)?.resource_index;
        let (client, method) = (request.client.as_deref(), &request.method);
        self.gateway
            .object_learner(&self.admitted, method, client, resource_index, self.received)
            .map(Box::new)
    }

    /// Whether a client must not be told that what it refers to does not exist: a resource that may have it could
    /// not be asked.
    pub(super) fn must_not_deny(&self) -> bool {
        self.admitted.affinity.as_ref().is_some_and(|affinity| affinity.asks())
            && self.plan.denial_count() > 0
            && (self.plan.has_unasked_resource() || self.gateway.disabled_resource(&self.admitted).is_some())
    }

    /// The refusal of a request for which no further attempt is possible, because the resource that has what it
    /// refers to, or may have it, is unavailable; `None` if that is not the reason.
    pub(super) fn home_refusal(&self, default_cooldown: Duration, now: Instant) -> Option<Refusal> {
        let affinity = self.admitted.affinity.as_deref()?;
        if self.must_not_deny() {
            let disabled = self.gateway.disabled_resource(&self.admitted);
            let others = match disabled.filter(|_| !self.plan.has_unasked_resource()) {
                Some(disabled) => format!("{disabled} is disabled in the balancer's configuration"),
                None => "others could not be asked".to_owned(),
            };
            let message = format!(
                "the object that the request refers to was not found on the Azure resources that could be asked, and \
                 {others}: it may be there"
            );
            let wait = time_until_available(self, now);
            return Some(with_hint(Refusal::new(RefusalReason::HomeUnavailable, message), wait));
        }
        let resource = self.gateway.resources.get(affinity.home()?)?;
        let name = &resource.name;
        let was_throttled = self.attempt_records.last().is_some_and(|attempt| attempt.status == Some(429));
        let cooldown_end = self.earliest_cooldown_end(now);
        if was_throttled || cooldown_end.is_some() || self.gave_up_queueing().is_some() {
            let wait = cooldown_end.map_or(default_cooldown, |end| end.saturating_duration_since(now));
            let message = format!(
                "The Azure resource {name}, which has what the request refers to, is at its rate limit. Please retry \
                 after {} seconds.",
                wait.as_millis().max(1).div_ceil(1000)
            );
            return Some(Refusal::new(RefusalReason::AllThrottled, message).with_retry_after(wait));
        }
        let until = self
            .backend_unavailabilities(now)
            .filter(|unavailable| unavailable.reason != UnavailableReason::Drained)
            .map(|unavailable| unavailable.until)
            .min();
        let message =
            format!("the Azure resource {name}, which has what the request refers to, is unavailable");
        let wait = until.map(|until| until.saturating_duration_since(now));
        Some(with_hint(Refusal::new(RefusalReason::HomeUnavailable, message), wait))
    }
}

fn with_hint(refusal: Refusal, wait: Option<Duration>) -> Refusal {
    match wait {
        Some(wait) => refusal.with_retry_after(wait),
        None => refusal,
    }
}
