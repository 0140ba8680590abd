//! What the outcome of an attempt or of a health check means for the backend: availability, circuit
//! breaker, headroom, and deployments that are found to exist. What a response means by itself is decided
//! in `azure/response/verdict.rs`.

use std::fmt::Display;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use log::{error, info};

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::backend::Backend;
use crate::azure::Operation;
use crate::azure::response::hints;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config;
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::availability::{Availability, Unavailable, UnavailableReason};
use crate::routing::breaker::FailureFlags;
use crate::routing::headroom::SendTicket;
use crate::routing::pool::Candidate;

/// The longest cooldown after a hint of 0 seconds.
const MAX_COOLDOWN_FOR_ZERO_HINT: Duration = Duration::from_secs(1);

/// The longest text of an error from outside in a log line.
const MAX_LOGGED_MESSAGE_CHARS: usize = 256;

/// What the gateway learns from about a response.
#[derive(Clone, Copy)]
pub struct ResponseFacts<'a> {
    /// The candidate that sent it.
    pub candidate: &'a Candidate,
    /// The attempt that it answers; `None` if the health of the deployment is not tracked.
    pub send_ticket: Option<SendTicket>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its status. For a stream of status 200 that begins with an error, the status of that error.
    pub status: u16,
    /// The id of the secret that was sent; 0: none.
    pub secret_id: u64,
    /// What it counts as, if the verdict is a failure.
    pub failure_flags: FailureFlags,
    /// When it came.
    pub now: Instant,
}

impl Gateway {
    /// Records what a response means for its backend. Returns the outcome of the attempt, or `None` if the
    /// response is to be relayed.
    pub fn learn_and_decide_outcome(
        &self,
        admitted: &AdmittedRequest,
        verdict: Verdict,
        response: ResponseFacts<'_>,
    ) -> Option<AttemptOutcome> {
        let ResponseFacts { candidate, headers, now, .. } = response;
        if let (Some(ticket), Some(deployment)) = (response.send_ticket, &candidate.deployment_health) {
            deployment.headroom.record_response(ticket, &hints::reported_capacity(headers));
        }
        // Any other response, even a 401 or a 429, shows that the backend answers.
        if verdict != Verdict::BackendFailure {
            candidate.backend_health.breaker.record_success(&self.breaker_config, now);
        }
        // Azure checks the credential before it answers like this.
        if matches!(
            verdict,
            Verdict::Success | Verdict::ClientError | Verdict::Throttled | Verdict::TooLargeForBackend
        ) {
            candidate.backend_health.on_credential_accepted();
        }
        match verdict {
            Verdict::Success => {
                note_no_rejection(candidate, admitted.target.operation);
                // A redirect is a success as well, but does not show that the deployment exists.
                if (200..300).contains(&response.status)
                    && admitted.uses_unlisted_pool
                    && let Some(deployment) = &admitted.deployment
                    && self.pools.add_learned_deployment(&self.backends, deployment, now)
                {
                    info!(
                        "deployment '{deployment}': no backend lists it, but one has it; it gets its own pool"
                    );
                }
                None
            }
            Verdict::ClientError => None,
            Verdict::RetryElsewhere | Verdict::TooLargeForBackend | Verdict::UnsupportedByBackend => {
                Some(AttemptOutcome::CannotServe)
            }
            Verdict::PromptTooLong => Some(AttemptOutcome::TierCannotServe),
            Verdict::Throttled => {
                Some(AttemptOutcome::Throttled(self.begin_cooldown(candidate, headers, now)))
            }
            Verdict::BackendFailure => {
                if hints::has_retry_after(headers) {
                    self.begin_cooldown(candidate, headers, now);
                }
                let error = format_args!("status {}", response.status);
                self.record_attempt_failure(candidate, response.failure_flags, error, now);
                Some(AttemptOutcome::Failed)
            }
            Verdict::CredentialRejected => {
                self.review_credential_rejection(admitted, &response);
                Some(AttemptOutcome::CredentialRejected(response.secret_id))
            }
            Verdict::PermissionDenied => {
                self.review_denied_permission(admitted, &response);
                Some(AttemptOutcome::CannotServe)
            }
            Verdict::DeploymentNotFound => {
                self.review_missing_deployment(admitted, &response);
                Some(AttemptOutcome::CannotServe)
            }
        }
    }

    /// Counts a failed attempt for the circuit breaker; `error` is for the log.
    pub fn record_attempt_failure(
        &self,
        candidate: &Candidate,
        failure: FailureFlags,
        error: impl Display,
        now: Instant,
    ) {
        let breaker = &candidate.backend_health.breaker;
        if let Some(opened) = breaker.record_failure(&self.breaker_config, failure, now) {
            let name = self.backend_name(candidate);
            error!("backend {name}: {opened}, last: {error}");
        }
    }

    /// Records the result of a health check of a backend without traffic: the status and body of the
    /// response, or `None` if there was none. `secret_id` is the secret that was sent. Returns whether the
    /// backend answered; `has_previous_failed` says that it did not answer the check before.
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
            None | Some(Verdict::BackendFailure) => {
                // A single lost health check is no outage, so two in a row are needed. A half-open circuit
                // has to be probed anyway, and this was the probe.
                let opens_circuit_alone = match health.breaker.availability.availability(now) {
                    Availability::Available => has_previous_failed,
                    Availability::ProbeDue => true,
                    Availability::Unavailable(_) => false,
                };
                let failure = FailureFlags {
                    is_first_of_request_on_backend: true,
                    opens_circuit_alone,
                    was_counted_as_success: false,
                };
                if let Some(opened) = health.breaker.record_failure(&self.breaker_config, failure, now) {
                    let result = match response {
                        Some((status, _)) => format!("status {status}"),
                        None => "no response".to_owned(),
                    };
                    let duration = opened.duration;
                    error!("backend {name}: circuit open for {duration:?}: health check failed: {result}");
                }
                return false;
            }
            Some(Verdict::CredentialRejected) => {
                let status = response.map_or(0, |(status, _)| status);
                if Self::renew_rejected_secret(backend, status, secret_id, now) {
                    Self::mark_credential_rejected(backend, status, secret_id, now);
                }
            }
            Some(Verdict::Success) => {
                health.breaker.close_circuit();
                health.refresh_credential_availability(&backend.credential).mark_available();
            }
            // The backend answers, which is enough for its circuit; about the credential it says nothing.
            Some(_) => health.breaker.close_circuit(),
        }
        true
    }

    /// Logs why no TLS connection to a backend could be made, at most once a minute. The records have only
    /// the word `tls`.
    pub fn log_tls_failure(&self, backend_index: usize, error: &str, now: Instant) {
        let Some(backend) = self.backends.get(backend_index) else { return };
        if backend.health.claim_tls_error_log(now) {
            let config::BackendConfig { name, endpoint, tls, .. } = &backend.config;
            let host = tls.server_name_override.as_ref().unwrap_or(&endpoint.host);
            let authorities = if tls.ca_file.is_some() { "in tls.ca" } else { "that the system trusts" };
            let error: String = error.escape_default().take(MAX_LOGGED_MESSAGE_CHARS).collect();
            error!(
                "backend {name}: TLS handshake failed; expected an unexpired certificate for {host} from an \
                 authority {authorities}: {error}"
            );
        }
    }

    /// The wait that the headers of a response ask for, without the limits of the configuration. `None` if
    /// the response is not a 429 and has no `retry-after`: successful responses, too, carry the reset times
    /// of rate limits, and those ask for nothing.
    pub fn requested_wait(&self, verdict: Verdict, headers: &HeaderMap) -> Option<Duration> {
        let asks_to_wait = matches!(verdict, Verdict::Throttled | Verdict::TooLargeForBackend)
            || hints::has_retry_after(headers);
        asks_to_wait.then(|| hints::cooldown_hint(headers, SystemTime::now())).flatten()
    }

    /// The cooldown that a response starts: the wait that its headers ask for, otherwise the configured
    /// default; never more than the configured maximum. A hint of 0 names no time: it means the default,
    /// but at most [`MAX_COOLDOWN_FOR_ZERO_HINT`].
    fn cooldown_duration(&self, headers: &HeaderMap) -> Duration {
        let config::CooldownConfig { default_duration, max_duration } = self.cooldown_config;
        match hints::cooldown_hint(headers, SystemTime::now()) {
            Some(Duration::ZERO) => default_duration.min(MAX_COOLDOWN_FOR_ZERO_HINT),
            hint => hint.unwrap_or(default_duration).min(max_duration),
        }
    }

    /// Begins the cooldown that a response asks for; returns its end.
    fn begin_cooldown(&self, candidate: &Candidate, headers: &HeaderMap, now: Instant) -> Instant {
        let duration = self.cooldown_duration(headers);
        let until = now + duration;
        let Some(deployment) = &candidate.deployment_health else { return until };
        let cooldown = Unavailable { reason: UnavailableReason::CoolingDown, until };
        // It was available until now, so each outage is logged once.
        if deployment.availability.mark_unavailable(cooldown, now) {
            let backend = self.backend_name(candidate);
            let deployment = match &candidate.upstream_deployment_override {
                Some(deployment) => format!(", deployment '{deployment}'"),
                // It is the client's name, or there is none: made-up names must not fill the log.
                None => String::new(),
            };
            info!("backend {backend}{deployment}: cooling down for {duration:?} (429 or retry-after)");
        }
        until
    }

    fn backend_name(&self, candidate: &Candidate) -> &str {
        self.backends.get(candidate.backend_index).map_or("?", |backend| backend.config.name.as_str())
    }
}

/// A request was served: a rejection that another has met was about that request.
fn note_no_rejection(candidate: &Candidate, operation: Operation) {
    candidate.backend_health.credential_review.on_success();
    candidate.backend_health.operation_review(operation).on_success();
    if let Some(deployment) = &candidate.deployment_health {
        deployment.review.on_success();
    }
}
