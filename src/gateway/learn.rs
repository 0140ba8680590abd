//! What a reply means for its backend: rests, breaker, and deployments that turn out to exist.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use log::{error, info, warn};

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::backend::Backend;
use crate::azure::response::hints;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config;
use crate::names::DeploymentName;
use crate::routing::availability::{Availability, AvailabilityCell, Unavailable, UnavailableReason};
use crate::routing::breaker::AttemptFailure;
use crate::routing::headroom::SendTicket;
use crate::routing::pool::Candidate;
use crate::routing::retry_plan::AttemptOutcome;

/// How long a backend is left alone that cannot serve (deployment missing, credential
/// refused) before it is asked again.
const MISCONFIGURATION_RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Most characters of somebody else's words in a line of the log.
const MAX_LOGGED_MESSAGE_CHARS: usize = 256;

/// A reply of a backend, as far as learning from it goes.
#[derive(Clone, Copy)]
pub struct ResponseFacts<'a> {
    /// Who replied.
    pub candidate: &'a Candidate,
    /// The attempt it replies to.
    pub send_ticket: Option<SendTicket>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its status, or the one that it stands for.
    pub status: u16,
    /// The number of the secret that it was shown; 0: none.
    pub secret_id: u64,
    /// What it counts as if it is a failure.
    pub failure: AttemptFailure,
    /// The moment.
    pub now: Instant,
}

impl Gateway {
    /// Takes note of what a reply means for its backend, and says what it means for the
    /// request: `None` when it is to be relayed.
    pub fn learn_from_response(
        &self,
        admitted: &AdmittedRequest,
        verdict: Verdict,
        response: ResponseFacts<'_>,
    ) -> Option<AttemptOutcome> {
        let ResponseFacts { candidate, headers, now, .. } = response;
        let unavailable_for = |reason, duration: Duration| Unavailable { reason, until: now + duration };
        let cooldown = || unavailable_for(UnavailableReason::CoolingDown, self.cooldown_duration(headers));
        let unusable = |reason| unavailable_for(reason, MISCONFIGURATION_RECHECK_INTERVAL);
        let deployment_cell = candidate.deployment_health.as_ref().map(|deployment| &deployment.availability);
        if let (Some(ticket), Some(deployment)) = (response.send_ticket, &candidate.deployment_health) {
            deployment.headroom.record_response(ticket, &hints::reported_capacity(headers));
        }
        if verdict != Verdict::BackendFailure {
            candidate.backend_health.breaker.record_success(&self.breaker_config, now);
        }
        if matches!(verdict, Verdict::Success | Verdict::ClientError | Verdict::Throttled) {
            candidate.backend_health.on_credential_accepted();
        }
        match verdict {
            Verdict::Success => {
                if (200..300).contains(&response.status)
                    && admitted.is_unlisted_deployment
                    && let Some(deployment) = &admitted.deployment
                    && self.pools.add_learned_deployment(&self.backends, deployment, now)
                {
                    info!("deployment '{deployment}' is served, though no backend lists it");
                }
                None
            }
            Verdict::ClientError => None,
            Verdict::RetryableStatus => Some(AttemptOutcome::CannotServe),
            Verdict::Throttled => {
                let cooldown = cooldown();
                self.mark_unavailable(candidate, deployment_cell, cooldown, now);
                Some(AttemptOutcome::Throttled(cooldown.until))
            }
            Verdict::BackendFailure => {
                if hints::has_retry_after(headers) {
                    self.mark_unavailable(candidate, deployment_cell, cooldown(), now);
                }
                let error = format_args!("status {}", response.status);
                self.record_attempt_failure(candidate, response.failure, error, now);
                Some(AttemptOutcome::Failed)
            }
            Verdict::CredentialRejected => {
                if let Some(backend) = self.backends.get(candidate.backend_index) {
                    Self::record_credential_rejection(backend, response.status, response.secret_id, now);
                }
                Some(AttemptOutcome::CredentialRejected(response.secret_id))
            }
            Verdict::PermissionDenied => {
                let operation_cell = candidate.backend_health.operation_state(admitted.target.operation);
                let denied = unusable(UnavailableReason::PermissionDenied);
                self.mark_unavailable(candidate, Some(operation_cell), denied, now);
                Some(AttemptOutcome::CannotServe)
            }
            Verdict::DeploymentNotFound => {
                let not_found = unusable(UnavailableReason::DeploymentNotFound);
                self.mark_unavailable(candidate, deployment_cell, not_found, now);
                Some(AttemptOutcome::CannotServe)
            }
            Verdict::UnsupportedByBackend => Some(AttemptOutcome::CannotServe),
        }
    }

    /// Takes note that a backend refuses our credential, or our network.
    fn record_credential_rejection(backend: &Backend, status: u16, secret_id: u64, now: Instant) {
        let current_secret = backend.credential.secret();
        if current_secret.current_value_id() != secret_id {
            // An earlier secret was rejected, and has been replaced.
            return;
        }
        // Before the backend is marked: a request that finds it unavailable must find the renewal to wait
        // for as well.
        if status == 401 && backend.health.should_renew_secret(secret_id, now) {
            current_secret.on_rejected(secret_id);
        }
        let until = now + MISCONFIGURATION_RECHECK_INTERVAL;
        let unavailable = Unavailable { reason: UnavailableReason::NoUsableCredential, until };
        if backend.health.record_credential_rejection(&backend.credential, secret_id, unavailable, now) {
            let name = &backend.config.name;
            error!(
                "backend {name}: its credential or our network is refused; asked again in {MISCONFIGURATION_RECHECK_INTERVAL:?}"
            );
        }
    }

    /// Says why a backend's certificate is not believed, which no record tells: once in a while.
    pub fn log_tls_failure(&self, backend_index: usize, error: &str, now: Instant) {
        let Some(backend) = self.backends.get(backend_index) else { return };
        if backend.health.should_log_tls_error(now) {
            let config::BackendConfig { name, endpoint, tls, .. } = &backend.config;
            let host = tls.server_name.as_ref().unwrap_or(&endpoint.host);
            let authorities = if tls.ca_file.is_some() { "in tls.ca" } else { "of the system" };
            let error: String = error.escape_default().take(MAX_LOGGED_MESSAGE_CHARS).collect();
            error!(
                "backend {name}: no TLS connection; expected a certificate, not expired, for {host}, \
                 of an authority {authorities}: {error}"
            );
        }
    }

    /// Takes note that a try broke off.
    pub fn record_attempt_failure(
        &self,
        candidate: &Candidate,
        failure: AttemptFailure,
        error: impl Display,
        now: Instant,
    ) {
        let breaker = &candidate.backend_health.breaker;
        if let Some(opened) = breaker.record_failure(&self.breaker_config, failure, now) {
            let name = self.backend_name(candidate);
            error!(
                "backend {name} fails too often: left alone for {:?}: {opened}, last: {error}",
                opened.duration
            );
        }
    }

    /// Takes note of what a probe of a backend without traffic found: the status and body of
    /// its reply, or `None` if there was none. It was shown the secret of this number. `repeated`
    /// says that the one before had failed too. Returns whether this one went well.
    pub fn record_health_check(
        &self,
        backend: &Backend,
        response: Option<(u16, &[u8])>,
        secret_id: u64,
        has_previous_failed: bool,
        now: Instant,
    ) -> bool {
        let name = &backend.config.name;
        let health = &backend.health;
        match response.map(|(status, body)| verdict::judge_response(status, body, &|_| true)) {
            // No reply, or one that says that it is ill.
            None | Some(Verdict::BackendFailure) => {
                // One lost probe is no outage; but it is enough where another was to find out.
                let opens_circuit_alone = match health.breaker.availability.availability(now) {
                    Availability::Available => has_previous_failed,
                    Availability::ProbeDue => true,
                    Availability::Unavailable(_) => false,
                };
                let failure = AttemptFailure {
                    is_first_of_request: true,
                    opens_circuit_alone,
                    was_counted_as_success: false,
                };
                if let Some(opened) = health.breaker.record_failure(&self.breaker_config, failure, now) {
                    error!("backend {name} does not answer its probe: left alone for {:?}", opened.duration);
                }
                return false;
            }
            Some(Verdict::CredentialRejected) => {
                let status = response.map_or(0, |(status, _)| status);
                Self::record_credential_rejection(backend, status, secret_id, now);
            }
            Some(Verdict::Success) => {
                health.breaker.close_circuit();
                health.credential_state(&backend.credential).mark_available();
            }
            // Whatever else it says, it is there.
            Some(_) => health.breaker.close_circuit(),
        }
        true
    }

    /// How long a throttled reply asks to wait, within bounds.
    pub fn cooldown_duration(&self, headers: &HeaderMap) -> Duration {
        let hint = hints::cooldown_hint(headers, SystemTime::now());
        hint.unwrap_or(self.cooldown_config.default_duration).min(self.cooldown_config.max_duration)
    }

    /// How long a reply asked to wait, as it said, if it said so in earnest.
    pub fn requested_wait(&self, verdict: Verdict, headers: &HeaderMap) -> Option<Duration> {
        let asks = verdict == Verdict::Throttled || hints::has_retry_after(headers);
        asks.then(|| hints::cooldown_hint(headers, SystemTime::now())).flatten()
    }

    fn mark_unavailable(
        &self,
        candidate: &Candidate,
        cell: Option<&Arc<AvailabilityCell>>,
        unavailable: Unavailable,
        now: Instant,
    ) {
        let Some(cell) = cell else { return };
        if !cell.mark_unavailable(unavailable, now) {
            return;
        }
        // Once for each outage: it was available until now.
        let backend = self.backend_name(candidate);
        let duration = unavailable.until.saturating_duration_since(now);
        let deployment = candidate.upstream_deployment.as_ref().map_or("", DeploymentName::as_str);
        match unavailable.reason {
            UnavailableReason::CoolingDown => {
                info!("backend {backend}: deployment '{deployment}' asks to wait {duration:?}");
            }
            UnavailableReason::DeploymentNotFound => {
                warn!(
                    "backend {backend}: deployment '{deployment}' does not exist there; asked again in {duration:?}"
                );
            }
            UnavailableReason::PermissionDenied => {
                error!(
                    "backend {backend}: its credential may not do this operation; asked again in {duration:?}"
                );
            }
            // Logged where they begin.
            UnavailableReason::BreakerOpen
            | UnavailableReason::NoUsableCredential
            | UnavailableReason::Drained => {}
        }
    }

    fn backend_name(&self, candidate: &Candidate) -> &str {
        self.backends.get(candidate.backend_index).map_or("?", |backend| backend.config.name.as_str())
    }
}
