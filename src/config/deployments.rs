//! What one backend serves: the client's name for a deployment, and this resource's.

use std::collections::HashMap;

use crate::names::Deployment;

/// The deployments of a backend. Names compare without case.
#[derive(Clone, Debug)]
pub struct DeploymentMap {
    listed: Vec<(Deployment, Deployment)>,
    upstream: HashMap<Deployment, Deployment>,
    passes_all: bool,
}

impl DeploymentMap {
    /// A map of `listed` names (client's first, each once); `passes_all` for those not listed.
    pub(super) fn new(listed: Vec<(Deployment, Deployment)>, passes_all: bool) -> Self {
        Self { upstream: listed.iter().cloned().collect(), listed, passes_all }
    }

    /// The name to use upstream: the mapped one, or the client's own spelling where all names
    /// pass. `None`: not served here.
    pub fn upstream<'a>(&'a self, asked: &'a Deployment) -> Option<&'a Deployment> {
        self.upstream.get(asked).or(self.passes_all.then_some(asked))
    }

    /// The listed names in the order of the file: the client's, and the one upstream.
    pub fn listed(&self) -> impl Iterator<Item = (&Deployment, &Deployment)> {
        self.listed.iter().map(|(client, upstream)| (client, upstream))
    }

    /// Whether names that are not listed pass as they are.
    pub fn passes_all(&self) -> bool {
        self.passes_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_names_are_mapped_and_others_pass_or_not() {
        let name = |name: &str| Deployment::parse(name).unwrap();
        let listed = vec![(name("gpt-4o"), name("GPT-4o-ptu"))];
        for (passes_all, asked, expected) in [
            (false, "GPT-4O", Some("GPT-4o-ptu")),
            (false, "o3", None),
            (true, "gpt-4o", Some("GPT-4o-ptu")),
            (true, "O3-Mini", Some("O3-Mini")),
        ] {
            let map = DeploymentMap::new(listed.clone(), passes_all);
            assert_eq!(map.upstream(&name(asked)).map(Deployment::as_str), expected, "{asked}");
        }
    }
}
