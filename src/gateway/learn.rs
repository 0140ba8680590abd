//! What the outcome of an attempt or of a health check means for the backend: availability, circuit
//! breaker, headroom, and deployments that are found to exist. What a response means by itself is decided
//! in `azure/response/verdict.rs`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use log::{error, info};

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::backend::Backend;
use super::log_text::escape_for_log;
use super::shared_rests::SharedPart;
use crate::azure::Operation;
use crate::azure::response::error_body::error_code_and_message;
use crate::azure::response::hints;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config;
use crate::credentials::CredentialRedactor;
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::headroom::SendTicket;
use crate::routing::health::availability::{Availability, Unavailable, UnavailableReason};
use crate::routing::health::backend_health::BackendHealth;
use crate::routing::health::breaker::{FailureFlags, OpenedCircuit};
use crate::routing::health::recent_attempts::FailureRun;
use crate::routing::health::stall::{STALL_QUESTION_INTERVAL, Unanswered};
use crate::routing::pool::Candidate;

/// The longest cooldown after a hint of 0 seconds.
const MAX_COOLDOWN_FOR_ZERO_HINT: Duration = Duration::from_secs(1);

/// How long a stalled backend is unavailable after an unanswered question. The next one follows earlier.
const STALL_OUTAGE_DURATION: Duration = STALL_QUESTION_INTERVAL.saturating_mul(3);

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
    /// What has arrived of the body of an error.
    pub body: &'a [u8],
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
            let capacity = hints::reported_capacity(headers);
            deployment.headroom.record_response(ticket, &capacity);
            if let Some(ratio) = capacity.provisioned_utilization
                && self.shed_config.sheds()
            {
                deployment.utilization.record_reading(ticket, ratio, now);
            }
        }
        // Any other response, even a 401 or a 429, shows that the backend answers.
        if verdict != Verdict::BackendFailure {
            candidate.backend_health.breaker.record_success(&self.breaker_config, now);
            candidate.backend_health.recent_attempts.record_answer(now);
        }
        if is_about_backend(verdict) {
            keep_error(&response);
        }
        // Azure checks the credential before it answers like this.
        if matches!(
            verdict,
            Verdict::Success
                | Verdict::ClientError
                | Verdict::NotOnThisResource
                | Verdict::Throttled
                | Verdict::TooLargeForBackend
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
            Verdict::NotOnThisResource => Some(AttemptOutcome::NotOnThisResource),
            Verdict::PromptTooLong => Some(AttemptOutcome::TierCannotServe),
            Verdict::Throttled if admitted.routed_operation().is_flex => {
                Some(AttemptOutcome::Throttled(self.begin_cooldown(admitted, candidate, true, headers, now)))
            }
            Verdict::Throttled => {
                let until = self.begin_cooldown(admitted, candidate, false, headers, now);
                // A failure with `retry-after` is a cooldown too, but does not show that the capacity is used up.
                if let Some(deployment) = &candidate.deployment_health {
                    deployment.throttled_responses.fetch_add(1, Ordering::Relaxed);
                    if self.shed_config.sheds() {
                        let is_provisioned = candidate.is_configured_as_provisioned;
                        deployment.utilization.record_throttling(is_provisioned, until);
                    }
                }
                Some(AttemptOutcome::Throttled(until))
            }
            Verdict::BackendFailure => {
                if hints::has_retry_after(headers) {
                    self.begin_cooldown(admitted, candidate, false, headers, now);
                }
                self.record_attempt_failure(candidate, response.failure_flags, now);
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

    /// Counts an attempt that failed without a response, for this reason.
    pub fn record_connection_failure(
        &self,
        candidate: &Candidate,
        failure: FailureFlags,
        error_code: &str,
        now: Instant,
    ) {
        let recent = &candidate.backend_health.recent_attempts;
        recent.record_error(None, now, || (Some(error_code.to_owned()), None));
        self.record_attempt_failure(candidate, failure, now);
    }

    /// Counts a failed attempt. Its error has been kept.
    fn record_attempt_failure(&self, candidate: &Candidate, failure: FailureFlags, now: Instant) {
        let health = &candidate.backend_health;
        if let Some(opened) = self.count_failure(health, failure, now) {
            let name = self.backend_name(candidate);
            if let Some(backend) = self.backends.get(candidate.backend_index) {
                self.share_outage(&backend.config.name, || SharedPart::Breaker);
            }
            let error = health.recent_attempts.last_error().unwrap_or_default().describe();
            info!("backend {name}: {opened}, last: {}", for_log(&error));
        }
    }

    /// Counts a failure of a backend, for its circuit breaker as well.
    fn count_failure(
        &self,
        health: &BackendHealth,
        failure: FailureFlags,
        now: Instant,
    ) -> Option<OpenedCircuit> {
        let run = if failure.is_first_of_request_on_backend {
            health.recent_attempts.record_failure(failure.was_counted_as_success, now)
        } else {
            FailureRun::default()
        };
        health.breaker.record_failure(&self.breaker_config, failure, run, now)
    }

    /// Records the answer to the question whether a backend answers at all, which is asked while attempts wait
    /// for longer than usual. `has_answered` says that there was one, whatever it was.
    pub fn record_stall_answer(&self, backend: &Backend, has_answered: bool, now: Instant) {
        let (name, health) = (&backend.config.name, &backend.health);
        if has_answered {
            if health.stall_watch.on_answer() {
                health.breaker.close_circuit();
                health.recent_attempts.on_stall_end(now);
                info!("backend {name}: answers again");
                self.wake_queue();
            }
            return;
        }
        let failure = FailureFlags { is_first_of_request_on_backend: true, ..FailureFlags::default() };
        health.recent_attempts.record_error(None, now, || (Some("no_answer".to_owned()), None));
        match health.stall_watch.on_no_answer(now) {
            Unanswered::Undecided => {
                if let Some(opened) = self.count_failure(health, failure, now) {
                    self.share_outage(name, || SharedPart::Breaker);
                    info!("backend {name}: {opened}, last: no answer to a free question");
                }
                return;
            }
            Unanswered::Stalled { waiting, longest } => info!(
                "backend {name}: new requests go elsewhere: attempts wait for a response ({waiting}, the longest for \
                 {}s), and two free questions in a row got no answer",
                longest.as_secs()
            ),
            Unanswered::StillStalled => {}
        }
        health.recent_attempts.record_failure(false, now);
        health.breaker.open_for_stall(now + STALL_OUTAGE_DURATION, now);
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
                let code = || (response.is_none().then(|| "no_answer".to_owned()), None);
                health.recent_attempts.record_error(response.map(|(status, _)| status), now, code);
                if let Some(opened) = self.count_failure(health, failure, now) {
                    let result = match response {
                        Some((status, _)) => format!("status {status}"),
                        None => "no response".to_owned(),
                    };
                    let duration = opened.duration;
                    self.share_outage(name, || SharedPart::Breaker);
                    info!("backend {name}: circuit open for {duration:?}: health check failed: {result}");
                }
                return false;
            }
            Some(Verdict::CredentialRejected) => {
                let status = response.map_or(0, |(status, _)| status);
                if Self::renew_rejected_secret(backend, status, secret_id, now) {
                    self.mark_credential_rejected(backend, status, secret_id, now);
                }
            }
            Some(Verdict::Success) => {
                health.breaker.close_circuit();
                health.recent_attempts.record_probe_answer(now);
                health.refresh_credential_availability(&backend.credential).mark_available();
                self.wake_queue();
            }
            // The backend answers, which is enough for its circuit; about the credential it says nothing.
            Some(_) => {
                health.breaker.close_circuit();
                health.recent_attempts.record_probe_answer(now);
                self.wake_queue();
            }
        }
        true
    }

    /// Records the answer to the question whether a backend that failed, and has no traffic since, answers again: the
    /// status and body of the response, or `None` if there was none. Its circuit breaker is left to requests.
    pub fn record_recovery_check(
        &self,
        backend: &Backend,
        response: Option<(u16, &[u8])>,
        secret_id: u64,
        now: Instant,
    ) {
        let recent = &backend.health.recent_attempts;
        match response.map(|(status, body)| (status, verdict::judge_response(status, body, &|_| true))) {
            None => recent.record_error(None, now, || (Some("no_answer".to_owned()), None)),
            Some((status, Verdict::BackendFailure)) => {
                recent.record_error(Some(status), now, || (None, None));
            }
            Some((status, verdict)) => {
                recent.record_probe_answer(now);
                if verdict == Verdict::CredentialRejected
                    && Self::renew_rejected_secret(backend, status, secret_id, now)
                {
                    self.mark_credential_rejected(backend, status, secret_id, now);
                }
            }
        }
    }

    /// Logs why no TLS connection to a backend could be made, at most once an hour. The records have only
    /// the word `tls`.
    pub fn log_tls_failure(&self, backend_index: usize, error: &str, now: Instant) {
        let Some(backend) = self.backends.get(backend_index) else { return };
        if backend.health.claim_tls_error_log(now) {
            let config::BackendConfig { name, endpoint, tls, .. } = &backend.config;
            let host = tls.server_name_override.as_ref().unwrap_or(&endpoint.host);
            let authorities = if tls.ca_file.is_some() { "in tls.ca" } else { "that the system trusts" };
            error!(
                "backend {name}: TLS handshake failed; expected an unexpired certificate for {host} from an \
                 authority {authorities}: {}",
                for_log(error)
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

    /// Begins the cooldown that a response asks for; returns its end. A 429 to a flex request keeps only flex requests
    /// away: their capacity is used up, whether others are served or not.
    fn begin_cooldown(
        &self,
        admitted: &AdmittedRequest,
        candidate: &Candidate,
        is_flex: bool,
        headers: &HeaderMap,
        now: Instant,
    ) -> Instant {
        let until = now + self.cooldown_duration(headers);
        let Some(deployment) = &candidate.deployment_health else { return until };
        let (availability, part): (_, fn(String) -> SharedPart) = if is_flex {
            (deployment.get_or_create_flex_availability(), SharedPart::FlexRequests)
        } else {
            deployment.slow_start.on_refusal(now);
            (&deployment.availability, SharedPart::Deployment)
        };
        // The monitor logs them as episodes: a full deployment begins hundreds of cooldowns a minute.
        availability.mark_unavailable(Unavailable { reason: UnavailableReason::CoolingDown, until }, now);
        self.share_cooldown(candidate, admitted.deployment.as_ref(), part);
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

/// Whether a response of this verdict tells the operator something about the backend. Others are about the
/// request, and may quote it.
fn is_about_backend(verdict: Verdict) -> bool {
    match verdict {
        Verdict::BackendFailure
        | Verdict::Throttled
        | Verdict::CredentialRejected
        | Verdict::PermissionDenied
        | Verdict::DeploymentNotFound => true,
        Verdict::Success
        | Verdict::ClientError
        | Verdict::RetryElsewhere
        | Verdict::TooLargeForBackend
        | Verdict::UnsupportedByBackend
        | Verdict::NotOnThisResource
        | Verdict::PromptTooLong => false,
    }
}

/// Keeps an error as the last one of its backend, without the credential, which it may quote.
fn keep_error(response: &ResponseFacts<'_>) {
    let ResponseFacts { candidate, body, status, now, .. } = *response;
    candidate.backend_health.recent_attempts.record_error(Some(status), now, || {
        let secret = candidate.credential.secret().current_value();
        let redactor = secret.and_then(|secret| CredentialRedactor::new(&secret.secret));
        let redacted = redactor.and_then(|redactor| redactor.redact_if_found(body));
        error_code_and_message(redacted.as_deref().unwrap_or(body))
    });
}

/// A text from outside for a log line: control characters and non-ASCII escaped, and cut.
fn for_log(text: &str) -> String {
    escape_for_log(text).chars().take(MAX_LOGGED_MESSAGE_CHARS).collect()
}
