//! The deployments of one backend, by the name that clients use and the name on its resource.

use std::collections::HashMap;

use crate::names::DeploymentName;

/// The deployments of a backend. Names are compared without case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentMap {
    listed_entries: Vec<(DeploymentName, DeploymentName)>,
    upstream_by_requested_name: HashMap<DeploymentName, DeploymentName>,
    passes_unlisted: bool,
}

impl DeploymentMap {
    /// A map of `entries` (the client's name first, each once). If `passes_unlisted`, names that are not
    /// listed are served as well, under the same name upstream.
    pub(crate) fn new(listed_entries: Vec<(DeploymentName, DeploymentName)>, passes_unlisted: bool) -> Self {
        Self {
            upstream_by_requested_name: listed_entries.iter().cloned().collect(),
            listed_entries,
            passes_unlisted,
        }
    }

    /// The name to use upstream: the mapped one, or the client's own spelling where all names
    /// pass. `None`: not served here.
    pub fn upstream_name<'a>(&'a self, requested: &'a DeploymentName) -> Option<&'a DeploymentName> {
        self.upstream_by_requested_name.get(requested).or(self.passes_unlisted.then_some(requested))
    }

    /// The listed names in the order of the file: the client's name and the one upstream.
    pub fn listed_entries(&self) -> impl Iterator<Item = (&DeploymentName, &DeploymentName)> {
        self.listed_entries.iter().map(|(client, upstream)| (client, upstream))
    }

    /// Whether names that are not listed are served as well, under the same name upstream.
    pub fn passes_unlisted(&self) -> bool {
        self.passes_unlisted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_names_are_mapped_and_others_pass_only_if_allowed() {
        let name = |name: &str| DeploymentName::parse(name).unwrap();
        let listed = vec![(name("gpt-4o"), name("GPT-4o-ptu"))];
        for (passes_all, requested, expected) in [
            (false, "GPT-4O", Some("GPT-4o-ptu")),
            (false, "o3", None),
            (true, "gpt-4o", Some("GPT-4o-ptu")),
            (true, "O3-Mini", Some("O3-Mini")),
        ] {
            let map = DeploymentMap::new(listed.clone(), passes_all);
            assert_eq!(
                map.upstream_name(&name(requested)).map(DeploymentName::as_str),
                expected,
                "{requested}"
            );
        }
    }
}
