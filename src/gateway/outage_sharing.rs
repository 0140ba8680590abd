//! Tells the task that shares with other instances what this one has found unavailable (`shared_rests/`).

use std::sync::Arc;

use super::shared_rests::{Target, Targets};
use super::{Backend, Gateway, SharedPart};
use crate::names::{BackendName, DeploymentName};
use crate::routing::pool::Candidate;

impl Gateway {
    /// This gateway is the active one: its backends and settings are those that count for what instances share.
    pub fn share_backends(&self) {
        if let Some(homes) = self.shared_homes() {
            homes.set_lifetime(&self.affinity_config);
        }
        let Some(rests) = self.process_state.shared_rests.get() else { return };
        let target = |backend: &Backend| Target {
            name: backend.config.name.clone(),
            url: Target::url_of(&backend.config.endpoint),
            health: backend.health.clone(),
            credential: backend.credential.clone(),
            first_deployment: backend
                .config
                .deployments
                .listed_entries()
                .next()
                .map(|(_, upstream)| upstream.clone()),
            max_cooldown: self.cooldown_config.max_duration,
            max_open: self.breaker_config.max_open_duration,
        };
        let targets = Arc::new(Targets::new(self.backends.iter().map(target)));
        if let Some(sends) = self.process_state.shared_sends.get() {
            sends.set_targets(if self.pools.some_use_headroom() {
                Arc::clone(&targets)
            } else {
                Arc::default()
            });
        }
        rests.set_targets(targets);
    }

    /// This instance has found this part of a backend unavailable.
    pub(super) fn share_outage(&self, backend: &BackendName, part: impl FnOnce() -> SharedPart) {
        if let Some(rests) = self.process_state.shared_rests.get() {
            rests.on_found_unavailable(backend, part(), None);
        }
    }

    /// This instance has found that a backend rejects its credential or network, with this status.
    pub(super) fn share_rejected_credential(&self, backend: &BackendName, status: u16) {
        if let Some(rests) = self.process_state.shared_rests.get() {
            rests.on_found_unavailable(backend, SharedPart::Credential, Some(status));
        }
    }

    /// A deployment, or another `part` of that name, has begun or extended its cooldown. `requested` is the client's name
    /// for the deployment.
    pub(super) fn share_cooldown(
        &self,
        candidate: &Candidate,
        requested: Option<&DeploymentName>,
        part: impl FnOnce(String) -> SharedPart,
    ) {
        let Some(rests) = self.process_state.shared_rests.get() else { return };
        let Some(backend) = self.backends.get(candidate.backend_index) else { return };
        let name = candidate.upstream_deployment_override.as_ref().or(requested);
        let name = name.map(DeploymentName::to_lowercase).unwrap_or_default();
        rests.on_found_unavailable(&backend.config.name, part(name), None);
    }
}
