//! What outlives a configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::backend_question::QuestionQueue;
use super::certificate_expiries::CertificateExpiries;
use super::drains::Drains;
use crate::credentials::Keyring;
use crate::record::Recorder;
use crate::routing::health::backend_health::HealthRegistry;
use crate::routing::service_state::ServiceReport;

/// What a process keeps when it loads another configuration.
#[derive(Debug)]
pub struct ProcessState {
    /// What is known of each backend.
    pub health_registry: HealthRegistry,
    /// The drains of backends, in memory until they get a directory.
    pub drains: Drains,
    /// Requests in progress: from the parsed head until both the record and the response are finished.
    pub requests_in_flight: AtomicUsize,
    /// Requests whose record is finished.
    pub requests_finished: AtomicUsize,
    /// The process is about to stop: its readiness check fails.
    pub is_stopping: AtomicBool,
    /// The process stops, or another has taken over: each connection of a client is closed after its next
    /// response.
    pub is_draining_connections: AtomicBool,
    /// The balancer's own questions to backends that have not been sent.
    pub questions: QuestionQueue,
    /// The state of the whole, as of the last second.
    pub service_report: ArcSwap<ServiceReport>,
    /// Where records go.
    pub recorder: Recorder,
    /// The secrets and tokens of the backends.
    pub keyring: Keyring,
    /// The balancer's own certificates.
    pub certificate_expiries: Arc<CertificateExpiries>,
}

impl ProcessState {
    /// The state of a process that starts now.
    pub fn new(now: Instant, recorder: Recorder, keyring: Keyring) -> Self {
        Self {
            health_registry: HealthRegistry::new(now),
            drains: Drains::default(),
            requests_in_flight: AtomicUsize::new(0),
            requests_finished: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            is_draining_connections: AtomicBool::new(false),
            questions: QuestionQueue::default(),
            service_report: ArcSwap::default(),
            recorder,
            keyring,
            certificate_expiries: Arc::default(),
        }
    }
}
