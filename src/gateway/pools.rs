//! Who can serve what: a pool for each deployment, for those nobody lists, and for calls that
//! name none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::Backend;
use crate::config::{Balance, Config};
use crate::names::{Deployment, Tier, Weight};
use crate::refusal::{Reason, Refusal};
use crate::routing::pool::{Candidate, Pool};

/// Most deployments that are learned from answers rather than named in the configuration.
const LEARNED_MAX: usize = 500;

/// What a pool is of.
#[derive(Clone, Debug)]
pub enum Pooled {
    /// A deployment.
    Deployment(Deployment),
    /// Every deployment that nobody lists and nobody has answered for yet.
    Unlisted,
    /// Calls that name no deployment.
    Home,
}

impl std::fmt::Display for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deployment(name) => write!(f, "deployment '{name}'"),
            Self::Unlisted => f.write_str("deployments that nobody lists"),
            Self::Home => f.write_str("calls that name no deployment"),
        }
    }
}

/// All pools of a configuration.
pub(super) struct Pools {
    balance: Balance,
    listed: HashMap<Deployment, Arc<Pool>>,
    /// For all other names, if some backend passes them.
    unlisted: Option<Arc<Pool>>,
    /// Those of them that have been answered for.
    learned: ArcSwap<HashMap<Deployment, Arc<Pool>>>,
    /// For calls that name no deployment.
    pub(super) home: Arc<Pool>,
    /// Who else is asked for an id that home does not know.
    pub(super) strangers: Arc<Pool>,
}

impl Pools {
    pub(super) fn new(config: &Config, backends: &[Backend], now: Instant) -> Self {
        let balance = config.balance;
        let names = config.backends.iter().flat_map(|backend| backend.deployments.listed());
        let listed = names.map(|(name, _)| {
            let pool = Pool::new(serving(backends, name), balance, now);
            (name.clone(), Arc::new(pool))
        });
        let all = backends.iter().enumerate();
        let passing = all.filter(|(_, backend)| backend.config.deployments.passes_all());
        let passing: Vec<Candidate> =
            passing.map(|(index, backend)| candidate(index, backend, None, false)).collect();
        let home = config.requests.home;
        Self {
            balance,
            listed: listed.collect(),
            unlisted: (!passing.is_empty()).then(|| Arc::new(Pool::new(passing, balance, now))),
            learned: ArcSwap::default(),
            home: Arc::new(Pool::new(home_pool(backends, home), balance, now)),
            strangers: Arc::new(Pool::new(strangers(backends, home), balance, now)),
        }
    }

    /// The pool of a deployment, and whether it is the one of names that nobody lists.
    ///
    /// # Errors
    /// `DeploymentNotFound`.
    pub(super) fn of(&self, deployment: &Deployment) -> Result<(Arc<Pool>, bool), Refusal> {
        if let Some(pool) = self.listed.get(deployment).or(self.learned.load().get(deployment)) {
            return Ok((Arc::clone(pool), false));
        }
        if let Some(pool) = &self.unlisted {
            return Ok((Arc::clone(pool), true));
        }
        let message = format!("The API deployment '{deployment}' does not exist: no backend serves it.");
        Err(Refusal::new(Reason::DeploymentNotFound, message))
    }

    /// Deployments that have been answered for, though nobody lists them.
    pub(super) fn learned(&self) -> Vec<Deployment> {
        let mut learned: Vec<_> = self.learned.load().keys().cloned().collect();
        learned.sort_by_key(Deployment::key);
        learned
    }

    /// Whether some backend passes names that nobody lists.
    pub(super) fn passes_unlisted(&self) -> bool {
        self.unlisted.is_some()
    }

    /// All of them: deployments by name, then the others.
    pub(super) fn all(&self) -> Vec<(Pooled, Arc<Pool>)> {
        let learned = self.learned.load();
        let named = self.listed.iter().chain(learned.iter());
        let mut named: Vec<_> = named.map(|(name, pool)| (name.clone(), Arc::clone(pool))).collect();
        named.sort_by_key(|(name, _)| name.key());
        let mut all: Vec<_> =
            named.into_iter().map(|(name, pool)| (Pooled::Deployment(name), pool)).collect();
        all.extend(self.unlisted.iter().map(|pool| (Pooled::Unlisted, Arc::clone(pool))));
        all.push((Pooled::Home, Arc::clone(&self.home)));
        all
    }

    /// Whether a deployment has a pool of its own.
    pub(super) fn knows(&self, deployment: &Deployment) -> bool {
        self.listed.contains_key(deployment) || self.learned.load().contains_key(deployment)
    }

    /// A deployment that the configuration does not name has been answered for: from now on
    /// it has a wheel and rests of its own. Returns whether that is news.
    pub(super) fn learn(&self, backends: &[Backend], deployment: &Deployment, now: Instant) -> bool {
        let known = self.learned.load();
        if known.contains_key(deployment) || known.len() >= LEARNED_MAX {
            return false;
        }
        drop(known);
        let pool = Pool::new(serving(backends, deployment), self.balance, now);
        if let Some(unlisted) = &self.unlisted {
            pool.continue_from(unlisted);
        }
        let pool = Arc::new(pool);
        self.learned.rcu(|known| {
            let mut known = HashMap::clone(known);
            if known.len() < LEARNED_MAX {
                known.entry(deployment.clone()).or_insert_with(|| Arc::clone(&pool));
            }
            known
        });
        true
    }
}

/// The backends that serve a deployment, each with its memory of it.
fn serving(backends: &[Backend], deployment: &Deployment) -> Vec<Candidate> {
    let serving = backends.iter().enumerate().filter_map(|(index, backend)| {
        let upstream = backend.config.deployments.upstream(deployment)?;
        let mapped = backend.config.deployments.listed().any(|(name, _)| name == deployment);
        // Where the name passes as it is, the client's spelling goes upstream.
        let mut candidate = candidate(index, backend, mapped.then(|| upstream.clone()), false);
        candidate.deployment = Some(backend.memory.deployment(Some(upstream)));
        Some(candidate)
    });
    serving.collect()
}

/// The home backend alone.
fn home_pool(backends: &[Backend], home: usize) -> Vec<Candidate> {
    let home = backends.iter().enumerate().filter(|(index, _)| *index == home);
    home.map(|(index, backend)| candidate(index, backend, None, true)).collect()
}

/// Every endpoint but home's, once: two backends on one endpoint are one resource, and asking
/// it twice finds nothing more.
fn strangers(backends: &[Backend], home: usize) -> Vec<Candidate> {
    let mut asked: Vec<_> = backends.get(home).map(|home| &home.config.endpoint).into_iter().collect();
    let mut candidates = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let endpoint = &backend.config.endpoint;
        if asked.contains(&endpoint) {
            continue;
        }
        asked.push(endpoint);
        let candidate = candidate(index, backend, None, true);
        candidates.push(Candidate { tier: Tier::FIRST, weight: Weight::ONE, ..candidate });
    }
    candidates
}

fn candidate(index: usize, backend: &Backend, upstream: Option<Deployment>, remembered: bool) -> Candidate {
    Candidate {
        backend: index,
        tier: backend.config.tier,
        weight: backend.config.weight,
        upstream,
        credential: Arc::clone(&backend.credential),
        memory: Arc::clone(&backend.memory),
        deployment: remembered.then(|| backend.memory.deployment(None)),
    }
}
