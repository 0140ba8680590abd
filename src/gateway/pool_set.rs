//! The pools of a configuration: one for each deployment, one for deployments that are not listed, and
//! those for calls that name no deployment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::backend::Backend;
use super::backend_queue::BackendQueue;
use super::shared_lines::{PoolWithQueue, waits_for_same, with_lines};
use crate::config::{BalancePolicy, Config};
use crate::names::{DeploymentName, Tier, Weight};
use crate::refusal::Refusal;
use crate::routing::pool::{BackendPool, Candidate};

/// The largest number of deployments that are learned from responses.
const MAX_LEARNED_DEPLOYMENTS: usize = 500;

/// What a pool serves.
#[derive(Clone, Debug)]
pub enum PoolKey {
    /// A deployment.
    Deployment(DeploymentName),
    /// All deployments that no backend lists and none has answered for yet.
    Unlisted,
    /// Calls that name no deployment: they go to the default backend.
    DefaultBackend,
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deployment(name) => write!(f, "deployment '{name}'"),
            Self::Unlisted => f.write_str("deployments that no backend lists"),
            Self::DefaultBackend => f.write_str("calls that name no deployment"),
        }
    }
}

/// All pools of a configuration.
pub(super) struct PoolSet {
    balance_policy: BalancePolicy,
    /// Of deployments that have a policy of their own.
    pool_policies: BTreeMap<DeploymentName, BalancePolicy>,
    /// `None` if requests do not wait.
    queue: Option<Arc<BackendQueue>>,
    /// For deployments that some backend lists.
    pools_by_listed_deployment: HashMap<DeploymentName, PoolWithQueue>,
    /// For all other deployments, if some backend passes them on.
    unlisted_pool: Option<Arc<BackendPool>>,
    /// For those of them that a backend has answered for.
    pools_by_learned_deployment: ArcSwap<HashMap<DeploymentName, PoolWithQueue>>,
    /// For calls that name neither a deployment nor an object: the default backend, and then the others of its
    /// resource; empty if the default backend is disabled.
    pub(super) default_backend_pool: PoolWithQueue,
    /// For calls that name an object and no deployment: all backends, those of the default backend's resource
    /// first.
    pub(super) all_resources_pool: PoolWithQueue,
}

impl PoolSet {
    /// Whether the turns of some pool depend on the headroom of its backends.
    pub(super) fn some_use_headroom(&self) -> bool {
        let mut policies = self.pool_policies.values().chain([&self.balance_policy]);
        policies.any(|policy| match policy {
            BalancePolicy::Headroom | BalancePolicy::PromptCache => true,
            BalancePolicy::RoundRobin => false,
        })
    }

    fn balance_policy_of(&self, deployment: &DeploymentName) -> BalancePolicy {
        self.pool_policies.get(deployment).copied().unwrap_or(self.balance_policy)
    }

    pub(super) fn new(
        config: &Config,
        backends: &[Backend],
        queue: Option<Arc<BackendQueue>>,
        now: Instant,
    ) -> Self {
        let balance_policy = config.balance_policy;
        let new_pool = |candidates| Arc::new(BackendPool::new(candidates, balance_policy, now));
        let no_deployment_line = queue.as_ref().map(|queue| queue.line(&PoolKey::DefaultBackend.to_string()));
        let without_deployment =
            |candidates| PoolWithQueue { pool: new_pool(candidates), line: no_deployment_line.clone() };
        let listed_names = config.backends.iter().flat_map(|backend| backend.deployments.listed_entries());
        let unlisted: Vec<Candidate> = backends
            .iter()
            .enumerate()
            .filter(|(_, backend)| backend.config.deployments.passes_unlisted())
            .map(|(index, backend)| new_candidate(index, backend))
            .collect();
        let default_index = config.requests.default_backend_index;
        let listed_pools = listed_names.map(|(name, _)| {
            let candidates = candidates_serving(backends, name);
            let pool = BackendPool::new(candidates, config.balance_policy_of(name), now);
            (name.clone(), Arc::new(pool))
        });
        Self {
            balance_policy,
            pool_policies: config.pool_policies.clone(),
            pools_by_listed_deployment: with_lines(listed_pools.collect(), queue.as_deref()),
            unlisted_pool: (!unlisted.is_empty()).then(|| new_pool(unlisted)),
            pools_by_learned_deployment: ArcSwap::default(),
            default_backend_pool: without_deployment(default_resource_candidates(backends, default_index)),
            all_resources_pool: without_deployment(all_resource_candidates(backends, default_index)),
            queue,
        }
    }

    /// The pool for a deployment, and whether that is the pool for unlisted ones.
    ///
    /// # Errors
    /// `DeploymentNotFound`.
    pub(super) fn own_or_unlisted_pool(
        &self,
        deployment: &DeploymentName,
    ) -> Result<(PoolWithQueue, bool), Refusal> {
        if let Some(pool) = self
            .pools_by_listed_deployment
            .get(deployment)
            .or(self.pools_by_learned_deployment.load().get(deployment))
        {
            return Ok((pool.clone(), false));
        }
        if let Some(pool) = &self.unlisted_pool {
            return Ok((PoolWithQueue { pool: Arc::clone(pool), line: None }, true));
        }
        Err(Refusal::deployment_not_found(deployment))
    }

    /// Deployments that no backend lists and some backend has answered for, sorted by name.
    pub(super) fn learned_deployments(&self) -> Vec<DeploymentName> {
        let mut learned: Vec<_> = self.pools_by_learned_deployment.load().keys().cloned().collect();
        learned.sort_by_key(DeploymentName::to_lowercase);
        learned
    }

    /// Whether some backend passes on deployments that are not listed.
    pub(super) fn accepts_unlisted(&self) -> bool {
        self.unlisted_pool.is_some()
    }

    /// All pools with what they serve: deployments by name, then the others.
    pub(super) fn pools_by_key(&self) -> Vec<(PoolKey, Arc<BackendPool>)> {
        let learned = self.pools_by_learned_deployment.load();
        let named = self.pools_by_listed_deployment.iter().chain(learned.iter());
        let mut named: Vec<_> = named.map(|(name, pool)| (name.clone(), Arc::clone(&pool.pool))).collect();
        named.sort_by_key(|(name, _)| name.to_lowercase());
        let mut all: Vec<_> =
            named.into_iter().map(|(name, pool)| (PoolKey::Deployment(name), pool)).collect();
        all.extend(self.unlisted_pool.iter().map(|pool| (PoolKey::Unlisted, Arc::clone(pool))));
        if !self.default_backend_pool.pool.candidates().is_empty() {
            all.push((PoolKey::DefaultBackend, Arc::clone(&self.default_backend_pool.pool)));
        }
        all
    }

    /// Whether some backend lists a deployment.
    pub(super) fn is_listed(&self, deployment: &DeploymentName) -> bool {
        self.pools_by_listed_deployment.contains_key(deployment)
    }

    /// Whether a deployment has a pool of its own.
    pub(super) fn has_own_pool(&self, deployment: &DeploymentName) -> bool {
        self.pools_by_listed_deployment.contains_key(deployment)
            || self.pools_by_learned_deployment.load().contains_key(deployment)
    }

    /// Gives a deployment that is not listed and that a backend has answered for a pool of its own.
    /// Returns false if it has one already, or if there are too many.
    pub(super) fn add_learned_deployment(
        &self,
        backends: &[Backend],
        deployment: &DeploymentName,
        now: Instant,
    ) -> bool {
        let learned = self.pools_by_learned_deployment.load();
        if learned.contains_key(deployment) || learned.len() >= MAX_LEARNED_DEPLOYMENTS {
            return false;
        }
        drop(learned);
        let policy = self.balance_policy_of(deployment);
        let pool = BackendPool::new(candidates_serving(backends, deployment), policy, now);
        if let Some(unlisted) = &self.unlisted_pool {
            pool.continue_rotation_of(unlisted);
        }
        let pool = Arc::new(pool);
        let learned = self.pools_by_learned_deployment.load();
        let mut others = self.pools_by_listed_deployment.values().chain(learned.values());
        let line =
            others.find(|other| waits_for_same(&pool, &other.pool)).and_then(|other| other.line.clone());
        let own_line = || self.queue.as_ref().map(|queue| queue.line(&deployment.to_lowercase()));
        let pool = PoolWithQueue { line: line.or_else(own_line), pool };
        self.pools_by_learned_deployment.rcu(|learned| {
            let mut learned = HashMap::clone(learned);
            if learned.len() < MAX_LEARNED_DEPLOYMENTS {
                learned.entry(deployment.clone()).or_insert_with(|| pool.clone());
            }
            learned
        });
        true
    }
}

/// The backends that serve a deployment, each with its health.
fn candidates_serving(backends: &[Backend], deployment: &DeploymentName) -> Vec<Candidate> {
    let candidates = backends.iter().enumerate().filter_map(|(index, backend)| {
        let upstream = backend.config.deployments.upstream_name(deployment)?;
        let is_listed = backend.config.deployments.listed_entries().any(|(name, _)| name == deployment);
        Some(Candidate {
            // A name that is passed on as it is goes upstream in the client's spelling.
            upstream_deployment_override: is_listed.then(|| upstream.clone()),
            deployment_health: Some(backend.health.get_or_create_deployment(Some(upstream))),
            ..new_candidate(index, backend)
        })
    });
    candidates.collect()
}

/// The default backend, and in the next tier the others of its resource; nothing if it is disabled.
fn default_resource_candidates(backends: &[Backend], default_index: Option<usize>) -> Vec<Candidate> {
    let Some(default) = default_index.and_then(|index| backends.get(index)) else { return Vec::new() };
    all_resource_candidates(backends, default_index)
        .into_iter()
        .filter(|candidate| candidate.resource_index == default.resource_index)
        .collect()
}

/// The default backend, then the others of its resource, then those of all other resources.
fn all_resource_candidates(backends: &[Backend], default_index: Option<usize>) -> Vec<Candidate> {
    let default_resource =
        default_index.and_then(|index| backends.get(index)).map(|backend| backend.resource_index);
    let candidate = |(index, backend)| {
        let candidate = candidate_without_deployment(index, backend);
        let tier = match () {
            () if default_index == Some(index) => Tier::FIRST,
            () if default_resource == Some(candidate.resource_index) => Tier::FIRST.next(),
            () => Tier::FIRST.next().next(),
        };
        Candidate { tier, weight: Weight::ONE, ..candidate }
    };
    backends.iter().enumerate().map(candidate).collect()
}

/// A candidate for calls that name no deployment.
fn candidate_without_deployment(index: usize, backend: &Backend) -> Candidate {
    Candidate {
        is_configured_as_provisioned: false,
        deployment_health: Some(backend.health.get_or_create_deployment(None)),
        ..new_candidate(index, backend)
    }
}

fn new_candidate(index: usize, backend: &Backend) -> Candidate {
    Candidate {
        backend_index: index,
        name: backend.config.name.clone(),
        resource_index: backend.resource_index,
        tier: backend.config.tier,
        weight: backend.config.weight,
        is_configured_as_provisioned: backend.config.provisioned.is_some(),
        upstream_deployment_override: None,
        credential: Arc::clone(&backend.credential),
        backend_health: Arc::clone(&backend.health),
        deployment_health: None,
    }
}
