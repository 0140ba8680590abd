//! The backends of a deployment in the order of trying: tiers, and a wheel for each.
//!
//! A pool knows who may serve; whose turn it is in one request is `journey.rs`'s.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::budget::Budget;
use super::health::{BackendMemory, Cell, Claim, DeploymentMemory, Reason, Rest, Standing};
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
        let rest = |cell: &Arc<Cell>| match cell.standing(now) {
            Standing::Resting(rest) => Some(rest),
            Standing::Awake | Standing::Due => None,
        };
        // What asking cannot end counts before what time ends.
        let rank = |reason| match reason {
            Reason::Cooling => 0,
            Reason::BreakerOpen => 1,
            Reason::Absent | Reason::Credential | Reason::PermissionDenied => 2,
        };
        self.cells(operation).filter_map(rest).max_by_key(|rest| (rank(rest.reason), rest.until))
    }

    /// Until when nothing but its breaker keeps it from being asked; `None` if nothing does,
    /// or something else.
    pub(super) fn only_breaker(&self, operation: Operation, now: Instant) -> Option<Instant> {
        let mut until = None;
        for cell in self.cells(operation) {
            match cell.standing(now) {
                Standing::Resting(rest) if rest.reason == Reason::BreakerOpen => until = Some(rest.until),
                Standing::Resting(_) => return None,
                Standing::Awake | Standing::Due => {}
            }
        }
        until
    }

    /// The right to ask it, and to find out whether its rests are over; `None` if it rests or
    /// another request finds out.
    pub(super) fn claim(&self, operation: Operation, now: Instant) -> Option<Claim> {
        Claim::of(self.cells(operation), now)
    }

    fn cells(&self, operation: Operation) -> impl Iterator<Item = &Arc<Cell>> {
        let memory = &self.memory;
        let deployment = self.deployment.as_deref().map(|deployment| &deployment.cell);
        [&memory.credential, memory.operation(operation), &memory.breaker.cell].into_iter().chain(deployment)
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
    /// Bounds further tries while its backends fail.
    pub budget: Budget,
}

impl Pool {
    /// A pool of these candidates; within a tier they keep the order given.
    pub fn new(mut candidates: Vec<Candidate>, now: Instant) -> Self {
        candidates.sort_by_key(|candidate| candidate.tier);
        let mut tiers = Vec::new();
        let mut start = 0;
        for tier in candidates.chunk_by(|a, b| a.tier == b.tier) {
            let weights: Vec<Weight> = tier.iter().map(|candidate| candidate.weight).collect();
            let members = start..start + tier.len();
            start = members.end;
            tiers.push(TierOfPool { members, wheel: Wheel::new(&weights) });
        }
        Self { candidates, tiers, budget: Budget::new(now) }
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
