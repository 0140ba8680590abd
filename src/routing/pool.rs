//! The backends of a deployment in the order of trying: tiers, and a wheel for each.
//!
//! A pool knows who may serve and whose turn it is among those who may; who that is for one
//! request is `journey.rs`'s.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::headroom::Sent;
use super::health::{BackendMemory, Cell, Claim, DeploymentMemory, Reason, Rest, Standing};
use super::retry_budget::Budget;
use super::wheel::Wheel;
use crate::azure::Operation;
use crate::config::Balance;
use crate::credentials::Credential;
use crate::names::{Deployment, Tier, Weight};

/// From this part of its turns on, a member takes all of them: round robin among as good as
/// equals stays exact.
const AS_GOOD_AS_ALL: f64 = 0.9;

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
    /// What the backend is called with.
    pub credential: Arc<Credential>,
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
        // What asking cannot end counts before what time ends.
        let rank = |reason| match reason {
            Reason::Cooling => 0,
            Reason::BreakerOpen => 1,
            Reason::Absent | Reason::Credential | Reason::PermissionDenied => 2,
            Reason::Drained => 3,
        };
        self.cells(operation)
            .filter_map(|cell| cell.rest_at(now))
            .max_by_key(|rest| (rank(rest.reason), rest.until))
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

    /// An attempt on it begins.
    pub fn sent(&self, now: Instant) -> Option<Sent> {
        self.deployment.as_ref().map(|deployment| deployment.headroom.sent(now))
    }

    /// How freely it may be asked among its equals, 0 to 1.
    fn pace(&self, now: Instant) -> f64 {
        self.deployment.as_ref().map_or(1.0, |deployment| deployment.headroom.pace(now))
    }

    fn cells(&self, operation: Operation) -> impl Iterator<Item = &Arc<Cell>> {
        let memory = &self.memory;
        let deployment = self.deployment.as_deref().map(|deployment| &deployment.cell);
        let credential = memory.credential(&self.credential);
        let cells = [&memory.drained, credential, memory.operation(operation), &memory.breaker.cell];
        cells.into_iter().chain(deployment)
    }
}

/// Those of equal priority.
pub(super) struct TierOfPool {
    /// Their places in the pool.
    pub(super) members: Range<usize>,
    wheel: Wheel,
    /// What each has saved up for its next turn, in parts of 2^32.
    savings: Box<[AtomicU32]>,
}

impl TierOfPool {
    /// Whether a member takes its turn that may take this part of its turns: each turn adds
    /// that part to its savings, and every time they are whole it goes.
    fn takes_turn(&self, member: usize, part: f64) -> bool {
        if part >= AS_GOOD_AS_ALL {
            return true;
        }
        let Some(savings) = self.savings.get(member) else { return true };
        // Within u32 by the line above; saturates.
        let gain = (part * f64::from(u32::MAX)) as u32;
        savings.fetch_add(gain, Ordering::Relaxed).checked_add(gain).is_none()
    }
}

/// Candidates in tier order.
pub struct Pool {
    candidates: Vec<Candidate>,
    balance: Balance,
    tiers: Vec<TierOfPool>,
    /// Bounds further tries while its backends fail.
    pub budget: Budget,
}

impl Pool {
    /// A pool of these candidates; within a tier they keep the order given.
    pub fn new(mut candidates: Vec<Candidate>, balance: Balance, now: Instant) -> Self {
        candidates.sort_by_key(|candidate| candidate.tier);
        let mut tiers = Vec::new();
        let mut start = 0;
        for tier in candidates.chunk_by(|a, b| a.tier == b.tier) {
            let weights: Vec<Weight> = tier.iter().map(|candidate| candidate.weight).collect();
            let members = start..start + tier.len();
            start = members.end;
            let savings = weights.iter().map(|_| AtomicU32::new(0)).collect();
            tiers.push(TierOfPool { members, wheel: Wheel::new(&weights), savings });
        }
        Self { candidates, balance, tiers, budget: Budget::new(now) }
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

    /// Whose turn it is among the open members of a tier: the place.
    pub(super) fn next_of(
        &self,
        tier: &TierOfPool,
        is_open: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let place = |member: usize| tier.members.start + member;
        let member = match self.balance {
            Balance::RoundRobin => tier.wheel.next(|member| is_open(place(member)), |_| true),
            Balance::Headroom => {
                let pace = |place: usize| self.candidates.get(place).map_or(0.0, |other| other.pace(now));
                let best = OnceCell::new();
                let best = || {
                    let open = tier.members.clone().filter(|place| is_open(*place));
                    *best.get_or_init(|| open.map(pace).fold(0.0, f64::max))
                };
                let takes_turn = |member| {
                    let pace = pace(place(member));
                    // Only where one is not well off, the others are looked at: the best of them
                    // takes every turn.
                    pace >= AS_GOOD_AS_ALL || best() <= 0.0 || tier.takes_turn(member, pace / best())
                };
                tier.wheel.next(|member| is_open(place(member)), takes_turn)
            }
        };
        member.map(place)
    }
}
