//! A backend of one configuration: how it is called, and what is known of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::process_state::ProcessState;
use crate::config;
use crate::credentials::BackendCredential;
use crate::routing::health::availability::{Outage, Unavailable, UnavailableReason};
use crate::routing::health::backend_health::BackendHealth;

/// How long a backend without a secret is unavailable at most; the first secret ends it.
const MISSING_SECRET_OUTAGE_DURATION: Duration = Duration::from_secs(86_400);

/// A backend of one configuration.
#[derive(Debug)]
pub struct Backend {
    /// As configured.
    pub config: config::BackendConfig,
    /// The index of its resource in [`Gateway::resources`](super::Gateway::resources).
    pub resource_index: usize,
    /// The value of `Host`: `tls.server_name_override` if it is set, since a resource answers only to its own name
    /// and the endpoint may be a private address.
    pub host_header_value: HeaderValue,
    /// Its name, for a header of the response.
    pub name_header_value: HeaderValue,
    /// The credential that is sent to it.
    pub credential: Arc<BackendCredential>,
    /// What is known of it; outlives the configuration.
    pub health: Arc<BackendHealth>,
}

impl Backend {
    /// A backend of this configuration, with its health in the process so far.
    pub(super) fn new(
        config: &config::BackendConfig,
        resource_index: usize,
        key_vault: &config::KeyVaultConfig,
        process: &ProcessState,
    ) -> Self {
        let server_name = config.tls.server_name_override.clone();
        Self {
            config: config.clone(),
            resource_index,
            host_header_value: to_header_value(server_name.unwrap_or_else(|| config.endpoint.authority())),
            name_header_value: to_header_value(config.name.as_str().to_owned()),
            credential: Arc::new(process.keyring.build_backend_credential(&config.credential, key_vault)),
            health: process.health_registry.get_or_create_backend(&config.name),
        }
    }

    /// The outage of the whole backend, if it is in one.
    pub fn current_outage(&self, now: Instant) -> Option<Outage> {
        self.health.current_outage(&self.credential, now)
    }

    /// Makes it unavailable if there is no secret for it. The first secret ends that.
    pub fn mark_unavailable_if_no_secret(&self, now: Instant) {
        if self.credential.secret().current_value_id() == 0 {
            let until = now + MISSING_SECRET_OUTAGE_DURATION;
            let unavailable = Unavailable { reason: UnavailableReason::NoUsableCredential, until };
            self.health.record_credential_rejection(&self.credential, 0, unavailable, now);
        }
    }
}

/// A backend that this configuration disables. Requests that it got before may still be in flight.
#[derive(Debug)]
pub struct DisabledBackend {
    /// As configured.
    pub config: config::DisabledBackend,
    /// What is known of it; outlives the configuration.
    pub health: Arc<BackendHealth>,
}

impl DisabledBackend {
    pub(super) fn new(config: &config::DisabledBackend, process: &ProcessState) -> Self {
        let health = process.health_registry.get_or_create_backend(&config.name);
        Self { config: config.clone(), health }
    }
}

/// The configuration is checked for values that a header cannot hold, so the fallback is not used.
fn to_header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"))
}
