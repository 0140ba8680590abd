//! What the status and an operator ask about the resources of the configuration.

use super::Gateway;
use super::resources::Resource;
use crate::config::OwnerPolicy;
use crate::names::BackendName;

impl Gateway {
    /// The resource of a backend, enabled or not; `None` if the configuration does not have the backend.
    pub fn resource_of(&self, backend: &BackendName) -> Option<&Resource> {
        self.resources.iter().find(|resource| self.backends_of(resource).any(|name| name == backend))
    }

    /// The backends of a resource: those that are enabled, then the others.
    pub fn backends_of<'a>(&'a self, resource: &'a Resource) -> impl Iterator<Item = &'a BackendName> {
        let enabled = resource.backend_indexes.iter().filter_map(|index| self.backends.get(*index));
        enabled.map(|backend| &backend.config.name).chain(&resource.disabled_backends)
    }

    /// Whether a client may refer only to what it has made itself (`affinity.owner: enforce`).
    pub fn enforces_owner(&self) -> bool {
        self.affinity_config.owner_policy == OwnerPolicy::Enforce
    }
}
