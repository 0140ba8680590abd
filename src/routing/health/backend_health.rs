//! What is known of a backend and of each deployment on it. It outlives a configuration: the next one
//! finds it again by the backend's name.
//!
//! What a response means for it is decided in `gateway/learn.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::answer_times::AnswerTimes;
use super::availability::{Availability, AvailabilityCell, Outage, Unavailable, UnavailableReason};
use super::breaker::CircuitBreaker;
use super::recent_attempts::RecentAttempts;
use super::rejection_review::RejectionReview;
use super::slow_start::SlowStart;
use super::stall::StallWatch;
use super::utilization::Utilization;
use crate::azure::Operation;
use crate::credentials::BackendCredential;
use crate::names::{BackendName, DeploymentName};
use crate::routing::headroom::Headroom;
use crate::routing::prompt_cache::TokenLoad;

/// A backend that rejects each new secret has its secret renewed at most this often.
const MIN_SECRET_RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// A backend's TLS errors are logged at most this often.
const TLS_ERROR_LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// The duration of a drain: longer than any process runs.
const DRAIN_DURATION: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The health of every backend that a configuration of this process has named.
#[derive(Debug)]
pub struct HealthRegistry {
    created_at: Instant,
    backends: Mutex<HashMap<BackendName, Arc<BackendHealth>>>,
}

impl HealthRegistry {
    /// An empty registry; no later call may pass an earlier `now`.
    pub fn new(now: Instant) -> Self {
        Self { created_at: now, backends: Mutex::default() }
    }

    /// The health of this backend; a new one if the name is new.
    pub fn get_or_create_backend(&self, name: &BackendName) -> Arc<BackendHealth> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let health = backends.entry(name.clone());
        Arc::clone(health.or_insert_with(|| Arc::new(BackendHealth::new(self.created_at))))
    }

    /// The drained backends and since when, sorted by name.
    pub fn drained_backends(&self, now: Instant) -> Vec<(BackendName, Instant)> {
        let backends = self.backends_by_name().into_iter();
        backends
            .filter_map(|(name, health)| Some((name, health.drain_state.current_outage(now)?.since)))
            .collect()
    }

    /// All backends, sorted by name.
    pub(super) fn backends_by_name(&self) -> Vec<(BackendName, Arc<BackendHealth>)> {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            backends.iter().map(|(name, health)| (name.clone(), Arc::clone(health))).collect();
        all.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        all
    }
}

/// What is known of one backend.
#[derive(Debug)]
pub struct BackendHealth {
    /// Unavailable while the resource rejects our credential, or while there is no secret.
    credential_availability: Arc<AvailabilityCell>,
    /// The id of the secret that was rejected; 0: there was no secret.
    rejected_secret_id: AtomicU64,
    /// The id of the secret that was last renewed because this backend rejected it, and when; `None`
    /// once the backend has accepted one.
    last_secret_renewal: Mutex<Option<(u64, Instant)>>,
    /// Whether `last_secret_renewal` is set, to be read without a lock.
    has_renewed_secret: AtomicBool,
    /// When a TLS error was last logged.
    tls_error_logged_at: Mutex<Option<Instant>>,
    /// Unavailable while the operator drains the backend.
    pub(in crate::routing) drain_state: Arc<AvailabilityCell>,
    /// Its circuit breaker.
    pub breaker: CircuitBreaker,
    /// How its recent attempts ended.
    pub recent_attempts: RecentAttempts,
    /// Its attempts that wait for a response.
    pub stall_watch: Arc<StallWatch>,
    availability_by_operation: [Arc<AvailabilityCell>; Operation::ALL.len()],
    /// Reviews rejections of the credential.
    pub credential_review: RejectionReview,
    reviews_by_operation: [RejectionReview; Operation::ALL.len()],
    deployments: Mutex<HashMap<String, Arc<DeploymentHealth>>>,
    /// Attempts that have begun and not ended.
    pub attempts_in_flight: AtomicUsize,
    /// Attempts since the process started.
    pub attempts_started: AtomicU64,
    /// It does not know lanes (`stream_id`) on Responses sockets.
    pub rejects_socket_lanes: AtomicBool,
}

impl BackendHealth {
    fn new(now: Instant) -> Self {
        Self {
            credential_availability: Arc::default(),
            rejected_secret_id: AtomicU64::new(0),
            last_secret_renewal: Mutex::default(),
            has_renewed_secret: AtomicBool::new(false),
            tls_error_logged_at: Mutex::default(),
            drain_state: Arc::default(),
            breaker: CircuitBreaker::new(now),
            recent_attempts: RecentAttempts::new(now),
            stall_watch: Arc::default(),
            availability_by_operation: std::array::from_fn(|_| Arc::default()),
            credential_review: RejectionReview::default(),
            reviews_by_operation: std::array::from_fn(|_| RejectionReview::default()),
            deployments: Mutex::default(),
            attempts_in_flight: AtomicUsize::new(0),
            attempts_started: AtomicU64::new(0),
            rejects_socket_lanes: AtomicBool::new(false),
        }
    }

    /// Whether the resource accepts our credential. It is available again as soon as there is another
    /// secret than the one that was rejected.
    pub fn refresh_credential_availability(&self, credential: &BackendCredential) -> &Arc<AvailabilityCell> {
        let cell = &self.credential_availability;
        if cell.may_be_unavailable()
            && self.rejected_secret_id.load(Ordering::Acquire) != credential.secret().current_value_id()
        {
            cell.mark_available();
        }
        cell
    }

    /// Records that the secret of this id was rejected; 0: there is no secret. Returns whether the
    /// credential was good before.
    pub fn record_credential_rejection(
        &self,
        credential: &BackendCredential,
        secret_id: u64,
        unavailable: Unavailable,
        now: Instant,
    ) -> bool {
        self.rejected_secret_id.store(secret_id, Ordering::Release);
        let was_good = self.credential_availability.mark_unavailable(unavailable, now);
        // A secret that was renewed just now is not unavailable because of the one before it.
        self.refresh_credential_availability(credential);
        was_good
    }

    /// Records that a secret that this backend rejected is about to be renewed. Returns false if it is not to
    /// be, because the backend rejected the one before as well a short time ago: a backend that accepts none
    /// must not cause a new fetch with each request.
    pub fn try_begin_secret_renewal(&self, secret_id: u64, now: Instant) -> bool {
        let mut last_renewal = self.last_secret_renewal.lock().unwrap_or_else(PoisonError::into_inner);
        match *last_renewal {
            Some((renewed_id, _)) if renewed_id == secret_id => true,
            Some((_, at)) if now < at + MIN_SECRET_RENEWAL_INTERVAL => false,
            _ => {
                *last_renewal = Some((secret_id, now));
                self.has_renewed_secret.store(true, Ordering::Release);
                true
            }
        }
    }

    /// Returns whether to log a TLS error that has happened now, and if so records it as logged: at most one
    /// is logged an hour.
    pub fn claim_tls_error_log(&self, now: Instant) -> bool {
        let mut logged_at = self.tls_error_logged_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = logged_at.is_none_or(|at| now >= at + TLS_ERROR_LOG_INTERVAL);
        if is_due {
            *logged_at = Some(now);
        }
        is_due
    }

    /// Records that the backend has accepted our credential.
    pub fn on_credential_accepted(&self) {
        if self.has_renewed_secret.load(Ordering::Acquire) {
            self.has_renewed_secret.store(false, Ordering::Release);
            *self.last_secret_renewal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Keeps new requests away until [`BackendHealth::undrain`]. Returns false if it was drained already.
    pub fn drain(&self, now: Instant) -> bool {
        let until = now + DRAIN_DURATION;
        self.drain_state.mark_unavailable(Unavailable { reason: UnavailableReason::Drained, until }, now)
    }

    /// Whether new requests are kept away.
    pub fn is_drained(&self, now: Instant) -> bool {
        matches!(self.drain_state.availability(now), Availability::Unavailable(_))
    }

    /// Continues a drain that began earlier.
    pub fn restore_drain(&self, since: Instant, now: Instant) {
        let unavailable = Unavailable { reason: UnavailableReason::Drained, until: now + DRAIN_DURATION };
        self.drain_state.restore_outage(Outage { unavailable, since });
    }

    /// Ends a drain. Returns false if it was not drained.
    pub fn undrain(&self, now: Instant) -> bool {
        let was_drained = self.drain_state.availability(now) != Availability::Available;
        self.drain_state.mark_available();
        was_drained
    }

    /// The outage of the whole backend, if it is in one.
    pub fn current_outage(&self, credential: &BackendCredential, now: Instant) -> Option<Outage> {
        let cells =
            [&self.drain_state, self.refresh_credential_availability(credential), &self.breaker.availability];
        cells.into_iter().find_map(|cell| cell.current_outage(now))
    }

    /// Counts an attempt that begins.
    pub fn on_attempt_start(&self) {
        self.attempts_started.fetch_add(1, Ordering::Relaxed);
        self.attempts_in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an attempt that has ended.
    pub fn on_attempt_end(&self) {
        self.attempts_in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the credential is allowed to do this operation.
    pub fn operation_availability(&self, operation: Operation) -> &Arc<AvailabilityCell> {
        // In bounds: there are as many states as operations.
        &self.availability_by_operation[operation as usize]
    }

    /// Reviews rejections of this operation.
    pub fn operation_review(&self, operation: Operation) -> &RejectionReview {
        // In bounds: as above.
        &self.reviews_by_operation[operation as usize]
    }

    /// The health of one of its deployments, by the resource's name for it; `None` is for calls that
    /// name no deployment.
    pub fn get_or_create_deployment(&self, upstream: Option<&DeploymentName>) -> Arc<DeploymentHealth> {
        self.get_or_create_deployment_by_key(upstream.map(DeploymentName::to_lowercase).unwrap_or_default())
    }

    /// The health of a deployment that is known already, by the resource's name for it in lower case.
    pub fn find_deployment(&self, upstream: &str) -> Option<Arc<DeploymentHealth>> {
        let deployments = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        deployments.get(upstream).map(Arc::clone)
    }

    pub(super) fn get_or_create_deployment_by_key(&self, key: String) -> Arc<DeploymentHealth> {
        let mut deployments = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(deployments.entry(key).or_default())
    }

    /// Its deployments that have been looked up so far, sorted by upstream name.
    pub fn deployments(&self) -> Vec<(String, Arc<DeploymentHealth>)> {
        let deployments = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<_> =
            deployments.iter().map(|(name, health)| (name.clone(), Arc::clone(health))).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted
    }

    /// Its parts that are in an outage now: deployments and their flex requests by upstream name, then operations.
    pub fn unavailable_parts(&self, now: Instant) -> Vec<(BackendPart, Outage)> {
        let deployments = self.deployments().into_iter().flat_map(|(name, health)| {
            let outage = health.availability.current_outage(now);
            let flex_outage = health.flex_availability().and_then(|cell| cell.current_outage(now));
            let part = outage.map(|outage| (BackendPart::Deployment(name.clone()), outage));
            part.into_iter().chain(flex_outage.map(|outage| (BackendPart::FlexRequests(name), outage)))
        });
        let operations = Operation::ALL.into_iter().filter_map(|operation| {
            let outage = self.operation_availability(operation).current_outage(now)?;
            Some((BackendPart::Operation(operation), outage))
        });
        deployments.chain(operations).collect()
    }
}

/// What is known of one deployment on one backend.
#[derive(Debug, Default)]
pub struct DeploymentHealth {
    /// Whether it can be used.
    pub availability: Arc<AvailabilityCell>,
    /// Whether it can be used for flex processing as well; empty until that was found unavailable once.
    flex_availability: OnceLock<Arc<AvailabilityCell>>,
    /// Reviews responses which say that it does not exist.
    pub review: RejectionReview,
    /// Responses with status 429, since the process started.
    pub throttled_responses: AtomicU64,
    /// How much of its quota is left.
    pub headroom: Headroom,
    /// How many requests that have waited are sent to it at once.
    pub slow_start: Arc<SlowStart>,
    /// How much of its provisioned capacity is used.
    pub utilization: Utilization,
    /// What it holds in flight, if requests for it are routed by their prompts.
    pub token_load: Arc<TokenLoad>,
    /// How long it takes to answer.
    pub answer_times: Arc<AnswerTimes>,
    /// It rejected `stream_options`, so no more streams are asked for their usage.
    pub rejects_stream_options: AtomicBool,
}

impl DeploymentHealth {
    /// Whether it can be used for flex processing, besides for other requests; `None` if nothing was ever wrong with that.
    pub fn flex_availability(&self) -> Option<&Arc<AvailabilityCell>> {
        self.flex_availability.get()
    }

    /// The same, to find it unavailable.
    pub fn get_or_create_flex_availability(&self) -> &Arc<AvailabilityCell> {
        self.flex_availability.get_or_init(Arc::default)
    }
}

/// A part of a backend that can be unavailable on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendPart {
    /// A deployment, by the resource's name for it; empty for calls that name none.
    Deployment(String),
    /// An operation.
    Operation(Operation),
    /// The flex requests of a deployment. Its other requests are served.
    FlexRequests(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_found_again_by_the_names_of_backend_and_deployment() {
        let now = Instant::now();
        let registry = HealthRegistry::new(now);
        let name = BackendName::new("a");
        let deployment = |name| DeploymentName::parse(name).unwrap();
        let until = now + Duration::from_secs(1);
        let unavailable = Unavailable { reason: UnavailableReason::DeploymentNotFound, until };
        let health = registry.get_or_create_backend(&name).get_or_create_deployment(Some(&deployment("GPT")));
        health.availability.mark_unavailable(unavailable, now);
        let same = registry.get_or_create_backend(&name).get_or_create_deployment(Some(&deployment("gpt")));
        assert_eq!(same.availability.unavailability(now), Some(unavailable));
        assert_eq!(registry.get_or_create_backend(&name).unavailable_parts(now).len(), 1);
    }
}
