//! Rejections: responses that would make a backend, a deployment or an operation unavailable to every
//! client. Whether one holds for all is decided in `routing/health/rejection_review.rs`; here is what follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::backend::Backend;
use super::backend_question::{BackendQuestion, QuestionSubject};
use super::learn::ResponseFacts;
use super::shared_rests::SharedPart;
use crate::azure::Operation;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::names::DeploymentName;
use crate::routing::health::availability::{AvailabilityCell, Unavailable, UnavailableReason};
use crate::routing::health::backend_health::DeploymentHealth;
use crate::routing::health::rejection_review::{
    MISCONFIGURATION_RECHECK_INTERVAL, RejectionReview, ReviewAnswer,
};

/// A request tries again what was rejected as soon as its time has passed. If none has within this time, the balancer
/// asks by itself.
const RECHECK_DELAY: Duration = Duration::from_secs(5);

impl Gateway {
    /// Asks a backend whether it still rejects what it rejected for every request, if no request has tried since.
    pub fn recheck_rejections(&self, backend: &Backend, now: Instant) {
        let health = &backend.health;
        let ask = |subject, cell: &AvailabilityCell, reason, review: &RejectionReview| {
            if cell.is_probe_overdue(reason, RECHECK_DELAY, now) && review.begin_recheck(now) {
                let backend = backend.config.name.clone();
                self.process_state.questions.push(BackendQuestion { backend, subject });
            }
        };
        let credential = health.refresh_credential_availability(&backend.credential);
        let rejected = UnavailableReason::NoUsableCredential;
        ask(QuestionSubject::Credential, credential, rejected, &health.credential_review);
        for (name, deployment) in health.deployments() {
            let Ok(name) = DeploymentName::parse(&name) else { continue };
            let (cell, review) = (&deployment.availability, &deployment.review);
            ask(QuestionSubject::Deployment(name), cell, UnavailableReason::DeploymentNotFound, review);
        }
        let Some((_, deployment)) = backend.config.deployments.listed_entries().next() else { return };
        for operation in Operation::ALL {
            let subject = QuestionSubject::Operation(operation, deployment.clone());
            let (cell, review) =
                (health.operation_availability(operation), health.operation_review(operation));
            ask(subject, cell, UnavailableReason::PermissionDenied, review);
        }
    }

    /// A backend rejected the secret that a request was sent with, or blocks our network.
    pub(super) fn review_credential_rejection(
        &self,
        admitted: &AdmittedRequest,
        response: &ResponseFacts<'_>,
    ) {
        let ResponseFacts { candidate, status, secret_id, now, .. } = *response;
        let Some(backend) = self.backends.get(candidate.backend_index) else { return };
        if !Self::renew_rejected_secret(backend, status, secret_id, now) {
            return;
        }
        let cell = backend.health.refresh_credential_availability(&backend.credential);
        let is_known = cell.is_in_outage(UnavailableReason::NoUsableCredential, now);
        let review = &backend.health.credential_review;
        let holds_for_all =
            self.review_rejection(admitted, backend, review, QuestionSubject::Credential, now);
        if is_known || holds_for_all {
            self.mark_credential_rejected(backend, status, secret_id, now);
        }
    }

    /// A backend said that it does not have the deployment.
    pub(super) fn review_missing_deployment(&self, admitted: &AdmittedRequest, response: &ResponseFacts<'_>) {
        let ResponseFacts { candidate, now, .. } = *response;
        let name = candidate.upstream_deployment_override.as_ref().or(admitted.deployment.as_ref());
        let backend = self.backends.get(candidate.backend_index);
        // Nothing is remembered of a deployment that the configuration does not name and no backend has
        // answered for.
        let (Some(backend), Some(health), Some(name)) = (backend, &candidate.deployment_health, name) else {
            return;
        };
        let is_known = health.availability.is_in_outage(UnavailableReason::DeploymentNotFound, now);
        let subject = QuestionSubject::Deployment(name.clone());
        let holds_for_all = self.review_rejection(admitted, backend, &health.review, subject, now);
        if is_known || holds_for_all {
            self.mark_deployment_missing(backend, name, health, now);
        }
    }

    /// A backend said that the credential may not do the operation.
    pub(super) fn review_denied_permission(&self, admitted: &AdmittedRequest, response: &ResponseFacts<'_>) {
        let ResponseFacts { candidate, now, .. } = *response;
        let Some(backend) = self.backends.get(candidate.backend_index) else { return };
        let operation = admitted.target.operation;
        let is_known = backend
            .health
            .operation_availability(operation)
            .is_in_outage(UnavailableReason::PermissionDenied, now);
        let review = backend.health.operation_review(operation);
        let name = candidate.upstream_deployment_override.as_ref().or(admitted.deployment.as_ref());
        let holds_for_all = match name {
            Some(rejected) => {
                // The question is about all deployments, so it names another one if there is another.
                let mut listed = backend.config.deployments.listed_entries().map(|(_, upstream)| upstream);
                let asked = listed.find(|upstream| *upstream != rejected).unwrap_or(rejected);
                let subject = QuestionSubject::Operation(operation, asked.clone());
                self.review_rejection(admitted, backend, review, subject, now)
            }
            // There is no free question about it.
            None => {
                let client = admitted.client_name.as_ref();
                review.on_rejection(client, self.clients.has_only_one_client(), now).holds_for_all
            }
        };
        if is_known || holds_for_all {
            self.mark_permission_denied(backend, operation, now);
        }
    }

    /// Records the answer to one of our questions: the status and body of the response, or `None` if there
    /// was none in time. `secret_id` is the secret that was sent.
    pub fn record_answer(
        &self,
        question: &BackendQuestion,
        response: Option<(u16, &[u8])>,
        secret_id: u64,
        now: Instant,
    ) {
        let Some(backend) = self.backends.iter().find(|backend| backend.config.name == question.backend)
        else {
            return;
        };
        let status = response.map_or(0, |(status, _)| status);
        let verdict = response.map(|(status, body)| verdict::judge_response(status, body, &|_| true));
        let answer = judge_answer(&question.subject, verdict);
        match &question.subject {
            QuestionSubject::Credential => {
                let cell = backend.health.refresh_credential_availability(&backend.credential);
                backend.health.credential_review.on_answer(answer, now);
                match answer {
                    ReviewAnswer::Confirmed => {
                        if Self::renew_rejected_secret(backend, status, secret_id, now) {
                            self.mark_credential_rejected(backend, status, secret_id, now);
                        }
                    }
                    ReviewAnswer::Denied => {
                        end_outage(backend, cell, UnavailableReason::NoUsableCredential);
                    }
                    ReviewAnswer::Unknown => {}
                }
            }
            QuestionSubject::Deployment(name) => {
                let health = backend.health.get_or_create_deployment(Some(name));
                health.review.on_answer(answer, now);
                match answer {
                    ReviewAnswer::Confirmed => self.mark_deployment_missing(backend, name, &health, now),
                    ReviewAnswer::Denied => {
                        end_outage(backend, &health.availability, UnavailableReason::DeploymentNotFound);
                    }
                    ReviewAnswer::Unknown => {}
                }
            }
            QuestionSubject::Operation(operation, _) => {
                let cell = backend.health.operation_availability(*operation);
                backend.health.operation_review(*operation).on_answer(answer, now);
                match answer {
                    ReviewAnswer::Confirmed => self.mark_permission_denied(backend, *operation, now),
                    ReviewAnswer::Denied => end_outage(backend, cell, UnavailableReason::PermissionDenied),
                    ReviewAnswer::Unknown => {}
                }
            }
        }
        // It may be available again.
        self.wake_queue();
    }

    /// Has a rejected secret renewed. Returns false if it is no longer in use.
    pub(super) fn renew_rejected_secret(
        backend: &Backend,
        status: u16,
        secret_id: u64,
        now: Instant,
    ) -> bool {
        let current_secret = backend.credential.secret();
        if current_secret.current_value_id() != secret_id {
            return false;
        }
        // The renewal is requested before the backend is marked unavailable: a request that finds it
        // unavailable must find the renewal to wait for as well. A 403 is about network rules, which a new
        // secret does not change.
        if status == 401 && backend.health.try_begin_secret_renewal(secret_id, now) {
            current_secret.on_value_rejected(secret_id);
        }
        true
    }

    /// Makes a backend unavailable that rejects its secret.
    pub(super) fn mark_credential_rejected(
        &self,
        backend: &Backend,
        status: u16,
        secret_id: u64,
        now: Instant,
    ) {
        let unavailable = unavailable_until_recheck(UnavailableReason::NoUsableCredential, now);
        if backend.health.record_credential_rejection(&backend.credential, secret_id, unavailable, now) {
            let name = &backend.config.name;
            info!(
                "backend {name}: credential rejected or network blocked (status {status}): unavailable for \
                 {MISCONFIGURATION_RECHECK_INTERVAL:?} or until there is a new secret. Check its key or role, \
                 and the network rules of the resource"
            );
        }
        self.share_rejected_credential(&backend.config.name, status);
    }

    /// Makes a deployment unavailable that its resource does not have.
    fn mark_deployment_missing(
        &self,
        backend: &Backend,
        deployment: &DeploymentName,
        health: &Arc<DeploymentHealth>,
        now: Instant,
    ) {
        let missing = unavailable_until_recheck(UnavailableReason::DeploymentNotFound, now);
        if health.availability.mark_unavailable(missing, now) {
            info!(
                "backend {}, deployment '{deployment}': unavailable for {MISCONFIGURATION_RECHECK_INTERVAL:?}: the \
                 resource does not have this deployment. Check its name, or wait if it was created a few minutes ago",
                backend.config.name
            );
        }
        self.share_outage(&backend.config.name, || SharedPart::Deployment(deployment.to_lowercase()));
    }

    /// Makes an operation unavailable that the credential may not do.
    fn mark_permission_denied(&self, backend: &Backend, operation: Operation, now: Instant) {
        let denied = unavailable_until_recheck(UnavailableReason::PermissionDenied, now);
        if backend.health.operation_availability(operation).mark_unavailable(denied, now) {
            info!(
                "backend {}: {} unavailable for {MISCONFIGURATION_RECHECK_INTERVAL:?}: its credential has no \
                 permission for this operation. Check the role that it is assigned on the resource",
                backend.config.name,
                operation.name()
            );
        }
        self.share_outage(&backend.config.name, || SharedPart::Operation(operation));
    }

    /// Reviews a rejection, and asks the backend if that is due. Returns whether it holds for every request.
    fn review_rejection(
        &self,
        admitted: &AdmittedRequest,
        backend: &Backend,
        review: &RejectionReview,
        subject: QuestionSubject,
        now: Instant,
    ) -> bool {
        let client = admitted.client_name.as_ref();
        let result = review.on_rejection(client, self.clients.has_only_one_client(), now);
        if result.asks_question {
            let question = BackendQuestion { backend: backend.config.name.clone(), subject };
            self.process_state.questions.push(question);
        }
        result.holds_for_all
    }
}

/// What the response to a question says about the rejection.
fn judge_answer(subject: &QuestionSubject, verdict: Option<Verdict>) -> ReviewAnswer {
    let Some(verdict) = verdict else { return ReviewAnswer::Unknown };
    match (subject, verdict) {
        // A backend that fails or is throttled may not have looked at what the question is about.
        (_, Verdict::BackendFailure | Verdict::Throttled) => ReviewAnswer::Unknown,
        (QuestionSubject::Credential, Verdict::CredentialRejected)
        | (QuestionSubject::Deployment(_), Verdict::DeploymentNotFound)
        | (QuestionSubject::Operation(..), Verdict::PermissionDenied) => ReviewAnswer::Confirmed,
        (QuestionSubject::Credential, _) => ReviewAnswer::Denied,
        (_, Verdict::CredentialRejected | Verdict::UnsupportedByBackend)
        | (QuestionSubject::Deployment(_), Verdict::PermissionDenied)
        | (QuestionSubject::Operation(..), Verdict::DeploymentNotFound) => ReviewAnswer::Unknown,
        (QuestionSubject::Deployment(_) | QuestionSubject::Operation(..), _) => ReviewAnswer::Denied,
    }
}

fn unavailable_until_recheck(reason: UnavailableReason, now: Instant) -> Unavailable {
    Unavailable { reason, until: now + MISCONFIGURATION_RECHECK_INTERVAL }
}

/// Ends an outage that our own question has shown to be none.
fn end_outage(backend: &Backend, cell: &AvailabilityCell, reason: UnavailableReason) {
    if cell.end_outage(reason) {
        info!("backend {}: available again: it accepts the balancer's own request", backend.config.name);
    }
}
