//! The backends of a deployment in the order of trying: tiers, and a wheel for each.
//!
//! A pool knows who may serve; whose turn it is in one request is `journey.rs`'s.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::health::{BackendMemory, DeploymentMemory, Reason, Rest};
use super::wheel::Wheel;
use crate::azure::Operation;
use crate::names::{Deployment, Tier, Weight};

/// One backend as a member of one pool.
#[derive(Debug)]
pub struct Candidate {
    /// The backend's place in the configuration.
    pub backend: usize,
    /// Its tier; 1 is tried first.
    pub tier: Tier,
    /// Its share of the tier.
    pub weight: Weight,
    /// What the resource calls the deployment; `None`: as the client calls it, or no deployment.
    pub upstream: Option<Deployment>,
    /// What is remembered of the backend.
    pub memory: Arc<BackendMemory>,
    /// What is remembered of the deployment on it; `None` for a deployment that the
    /// configuration does not name and no backend has answered for yet, so that invented names
    /// leave no trace.
    pub deployment: Option<Arc<DeploymentMemory>>,
}

impl Candidate {
    /// Why and until when it cannot be asked for this operation, if it cannot.
    pub fn resting(&self, operation: Operation, now: Instant) -> Option<Rest> {
        let cells = [
            Some(&self.memory.credential),
            Some(self.memory.operation(operation)),
            self.deployment.as_deref().map(|deployment| &deployment.cell),
        ];
        let rests = cells.into_iter().flatten().filter_map(|cell| cell.resting(now));
        // A rest that asking again cannot end counts before one that time ends.
        rests.max_by_key(|rest| (rest.reason != Reason::Cooling, rest.until))
    }
}

pub(super) struct TierOfPool {
    pub(super) members: Range<usize>,
    pub(super) wheel: Wheel,
}

/// Candidates in tier order.
pub struct Pool {
    candidates: Vec<Candidate>,
    tiers: Vec<TierOfPool>,
}

impl Pool {
    /// A pool of these candidates; within a tier they keep the order given.
    pub fn new(mut candidates: Vec<Candidate>) -> Self {
        candidates.sort_by_key(|candidate| candidate.tier);
        let mut tiers = Vec::new();
        let mut start = 0;
        for tier in candidates.chunk_by(|a, b| a.tier == b.tier) {
            let weights: Vec<Weight> = tier.iter().map(|candidate| candidate.weight).collect();
            let members = start..start + tier.len();
            start = members.end;
            tiers.push(TierOfPool { members, wheel: Wheel::new(&weights) });
        }
        Self { candidates, tiers }
    }

    /// Goes on where another pool of the same backends is, so that a deployment that gets a
    /// pool of its own keeps its turn.
    pub fn continue_from(&self, other: &Self) {
        for (tier, other) in self.tiers.iter().zip(&other.tiers) {
            tier.wheel.skip(other.wheel.picks());
        }
    }

    /// The candidate at this place.
    pub fn candidate(&self, place: usize) -> Option<&Candidate> {
        self.candidates.get(place)
    }

    /// All candidates in the order of trying.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    pub(super) fn tiers(&self) -> &[TierOfPool] {
        &self.tiers
    }
}
