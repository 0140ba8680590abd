//! The Azure resources of a configuration. What is made on a resource is known to all of its backends, and to no
//! other.

use crate::config::Config;
use crate::names::{BackendName, ResourceName};
use crate::routing::homes::{Homes, KnownResources, ResourceTag};

/// A resource and its backends.
#[derive(Debug)]
pub struct Resource {
    /// Its host and port, or what the configuration calls it.
    pub name: ResourceName,
    /// Its name as homes are remembered with it.
    pub tag: ResourceTag,
    /// The indexes of its enabled backends in the configuration.
    pub backend_indexes: Vec<usize>,
    /// Its backends that are disabled.
    pub disabled_backends: Vec<BackendName>,
}

/// The resources of this configuration: those of enabled backends in their order, then those that have only
/// disabled ones.
pub(super) fn list_resources(config: &Config, homes: &Homes) -> Vec<Resource> {
    let mut resources = Vec::new();
    for (index, backend) in config.backends.iter().enumerate() {
        find_or_add(&mut resources, homes, &backend.resource, |resource| {
            resource.backend_indexes.push(index);
        });
    }
    for backend in &config.disabled_backends {
        find_or_add(&mut resources, homes, &backend.resource, |resource| {
            resource.disabled_backends.push(backend.name.clone());
        });
    }
    resources
}

fn find_or_add(
    resources: &mut Vec<Resource>,
    homes: &Homes,
    name: &ResourceName,
    add_backend: impl FnOnce(&mut Resource),
) {
    if let Some(known) = resources.iter_mut().find(|resource| resource.name == *name) {
        return add_backend(known);
    }
    let mut resource = Resource {
        name: name.clone(),
        tag: homes.resource_tag(name.as_str()),
        backend_indexes: Vec::new(),
        disabled_backends: Vec::new(),
    };
    add_backend(&mut resource);
    resources.push(resource);
}

/// The resources by their tags, each with its index.
pub(super) fn resources_by_tag(resources: &[Resource], homes: &Homes) -> KnownResources<usize> {
    KnownResources::new(
        homes,
        resources.iter().enumerate().map(|(index, resource)| (resource.name.as_str(), index)),
    )
}
