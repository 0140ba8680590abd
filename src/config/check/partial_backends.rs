//! The backends of a file that may have errors, as the other blocks see them.

use std::collections::{HashMap, HashSet};

use crate::config::schema::{BackendConfig, DisabledBackend};
use crate::config::values::DeploymentMap;
use crate::names::DeploymentName;

/// The result of looking for a backend by its name.
pub(super) enum NameLookup {
    /// Its index among the enabled backends.
    Enabled(usize),
    /// It is disabled.
    Disabled,
    /// No backend has this name.
    NotFound,
    /// Unknown, since a name that could not be read may be this one.
    Undetermined,
}

/// A valid entry of the list.
pub(super) enum ListedBackend {
    Enabled(Box<BackendConfig>),
    Disabled(DisabledBackend),
}

impl ListedBackend {
    /// Its settings, if it is enabled.
    pub(super) fn enabled(&self) -> Option<&BackendConfig> {
        match self {
            Self::Enabled(backend) => Some(backend),
            Self::Disabled(_) => None,
        }
    }

    /// What it serves, or would serve.
    pub(super) fn deployments(&self) -> &DeploymentMap {
        match self {
            Self::Enabled(backend) => &backend.deployments,
            Self::Disabled(backend) => &backend.deployments,
        }
    }
}

/// The backends as far as they are valid, for the blocks that refer to them.
#[derive(Default)]
pub(super) struct PartialBackends {
    pub(super) backends: Vec<Option<ListedBackend>>,
    /// Includes the names of backends that have errors in other keys.
    pub(super) index_by_name: HashMap<String, usize>,
    /// Whether the name of a backend could not be read.
    pub(super) has_unknown_names: bool,
}

impl PartialBackends {
    /// The enabled and the disabled backends, if all are valid.
    pub(super) fn into_backends(self) -> Option<(Vec<BackendConfig>, Vec<DisabledBackend>)> {
        let (mut enabled, mut disabled) = (Vec::new(), Vec::new());
        for backend in self.backends {
            match backend? {
                ListedBackend::Enabled(backend) => enabled.push(*backend),
                ListedBackend::Disabled(backend) => disabled.push(backend),
            }
        }
        Some((enabled, disabled))
    }

    /// Looks for the backend with this name.
    pub(super) fn look_up_name(&self, name: &str) -> NameLookup {
        match self.index_by_name.get(name) {
            Some(index) => match self.backends.get(*index) {
                Some(Some(ListedBackend::Disabled(_))) => NameLookup::Disabled,
                _ => {
                    let before = self.backends.iter().take(*index);
                    let disabled = before.filter(|b| matches!(b, Some(ListedBackend::Disabled(_)))).count();
                    NameLookup::Enabled(index - disabled)
                }
            },
            None if !self.has_unknown_names => NameLookup::NotFound,
            None => NameLookup::Undetermined,
        }
    }

    /// The index among the enabled backends of the first one of the lowest tier; `None` if a backend has errors,
    /// since that might be the one.
    pub(super) fn first_index_of_lowest_tier(&self) -> Option<usize> {
        let all: Option<Vec<&ListedBackend>> = self.backends.iter().map(Option::as_ref).collect();
        let tiers = all?.into_iter().filter_map(|backend| Some(backend.enabled()?.tier));
        tiers.enumerate().min_by_key(|(_, tier)| *tier).map(|(index, _)| index)
    }

    /// The number of resources of the enabled backends; `None` if a backend has errors.
    pub(super) fn resource_count(&self) -> Option<usize> {
        let all: Option<Vec<&ListedBackend>> = self.backends.iter().map(Option::as_ref).collect();
        let enabled = all?.into_iter().filter_map(ListedBackend::enabled);
        Some(enabled.map(|backend| &backend.resource).collect::<HashSet<_>>().len())
    }

    /// Whether enabled backends of different tiers serve the same deployment; `None` if a backend has errors.
    pub(super) fn has_deployment_in_two_tiers(&self) -> Option<bool> {
        let all: Option<Vec<&ListedBackend>> = self.backends.iter().map(Option::as_ref).collect();
        let enabled: Vec<&BackendConfig> = all?.into_iter().filter_map(ListedBackend::enabled).collect();
        // Of two backends, either both pass every name on, or one of them lists what they have in common.
        let serves_any_of = |server: &DeploymentMap, other: &DeploymentMap| {
            (server.passes_unlisted() && other.passes_unlisted())
                || other.listed_entries().any(|(name, _)| server.upstream_name(name).is_some())
        };
        Some(enabled.iter().enumerate().any(|(index, one)| {
            enabled.iter().skip(index + 1).any(|other| {
                let (a, b) = (&one.deployments, &other.deployments);
                one.tier != other.tier && (serves_any_of(a, b) || serves_any_of(b, a))
            })
        }))
    }

    /// The deployments that clients may ask for, also those of disabled backends; `None` if that is unknown,
    /// because a backend has errors or serves every name.
    pub(super) fn served_deployments(&self) -> Option<HashSet<&DeploymentName>> {
        let mut served = HashSet::new();
        for backend in &self.backends {
            let deployments = backend.as_ref()?.deployments();
            if deployments.passes_unlisted() {
                return None;
            }
            served.extend(deployments.listed_entries().map(|(client, _)| client));
        }
        Some(served)
    }
}
