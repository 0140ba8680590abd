//! The backends that can serve a deployment, in tiers, with a weighted round robin for each tier.
//!
//! A pool knows which backend's turn it is among those that one request may use; which those are is
//! decided in `retry_plan.rs`.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::headroom::SendTicket;
use super::health::availability::{
    Availability, AvailabilityCell, ProbePermit, Unavailable, UnavailableReason,
};
use super::health::backend_health::{BackendHealth, DeploymentHealth};
use super::retry_budget::RetryBudget;
use super::weighted_round_robin::WeightedRoundRobin;
use crate::azure::Operation;
use crate::config::BalancePolicy;
use crate::credentials::BackendCredential;
use crate::names::{DeploymentName, Tier, Weight};

/// From this share of its turns on, a member takes all of them, so that round robin among members with
/// nearly the same headroom stays exact.
const MIN_SHARE_FOR_EVERY_TURN: f64 = 0.9;

/// One backend as a member of one pool.
#[derive(Debug)]
pub struct Candidate {
    /// The index of the backend in the configuration.
    pub backend_index: usize,
    /// The tier of the backend; 1 is tried first.
    pub tier: Tier,
    /// Its share of the requests of its tier.
    pub weight: Weight,
    /// The resource's name for the deployment; `None` if it is the client's name, or if there is none.
    pub upstream_deployment_override: Option<DeploymentName>,
    /// The credential that is sent to the backend.
    pub credential: Arc<BackendCredential>,
    /// The health of the backend.
    pub backend_health: Arc<BackendHealth>,
    /// The health of the deployment on it. `None` for a deployment that the configuration does not name
    /// until a backend has answered for it, so that made-up names take no memory.
    pub deployment_health: Option<Arc<DeploymentHealth>>,
}

impl Candidate {
    /// Why and until when it cannot be used for this operation. If there are several reasons, it is the one
    /// that will last longest: what an operator has to repair outlasts what ends by itself.
    pub fn unavailability(&self, operation: Operation, now: Instant) -> Option<Unavailable> {
        let rank = |reason: UnavailableReason| match reason {
            UnavailableReason::CoolingDown => 0,
            UnavailableReason::BreakerOpen | UnavailableReason::Stalled => 1,
            UnavailableReason::Drained => 3,
            _ => 2,
        };
        self.availability_cells(operation)
            .filter_map(|cell| cell.unavailability(now))
            .max_by_key(|unavailable| (rank(unavailable.reason), unavailable.until))
    }

    /// Until when its circuit is open, if that is the only reason why it is unavailable.
    pub(super) fn open_until_if_only_breaker(&self, operation: Operation, now: Instant) -> Option<Instant> {
        let mut until = None;
        for cell in self.availability_cells(operation) {
            match cell.availability(now) {
                Availability::Unavailable(unavailable)
                    if matches!(
                        unavailable.reason,
                        UnavailableReason::BreakerOpen | UnavailableReason::Stalled
                    ) =>
                {
                    until = Some(unavailable.until);
                }
                Availability::Unavailable(_) => return None,
                Availability::Available | Availability::ProbeDue => {}
            }
        }
        until
    }

    /// The permit to use it, and to probe what is due; `None` if it is unavailable.
    pub(super) fn acquire_probe_permit(&self, operation: Operation, now: Instant) -> Option<ProbePermit> {
        ProbePermit::acquire(self.availability_cells(operation), now)
    }

    /// The permit to try it although something about it is misconfigured; `None` if it is unavailable for
    /// another reason, was tried a short time ago, or has no secret to be sent.
    pub(super) fn acquire_last_resort_permit(
        &self,
        operation: Operation,
        now: Instant,
    ) -> Option<ProbePermit> {
        // 0 is the id of no secret.
        if self.credential.secret().current_value_id() == 0 {
            return None;
        }
        ProbePermit::acquire_last_resort(self.availability_cells(operation), now)
    }

    /// Counts an attempt that begins.
    pub fn record_send(&self, now: Instant) -> Option<SendTicket> {
        self.deployment_health.as_ref().map(|deployment| deployment.headroom.record_send(now))
    }

    /// The share of its turns that it should take, from 0 to 1.
    fn turn_share(&self, now: Instant) -> f64 {
        self.deployment_health.as_ref().map_or(1.0, |deployment| deployment.headroom.turn_share(now))
    }

    fn availability_cells(&self, operation: Operation) -> impl Iterator<Item = &Arc<AvailabilityCell>> {
        let health = &self.backend_health;
        let backend_cells = [
            &health.drain_state,
            health.refresh_credential_availability(&self.credential),
            health.operation_availability(operation),
            &health.breaker.availability,
        ];
        let deployment_cell = self.deployment_health.as_deref().map(|deployment| &deployment.availability);
        backend_cells.into_iter().chain(deployment_cell)
    }
}

/// The candidates of one tier.
pub(super) struct PoolTier {
    /// Their indexes in the pool.
    pub(super) member_indexes: Range<usize>,
    round_robin: WeightedRoundRobin,
    /// For each member, the sum of the shares of its turns since the last turn that it took, in units of
    /// 2^-32.
    turn_credits: Box<[AtomicU32]>,
}

impl PoolTier {
    /// Counts a turn of a member that is to take `share` of its turns, and returns whether it takes this one.
    /// Each turn adds the share to its credit; whenever that reaches 1, the member takes the turn.
    fn try_take_turn(&self, member: usize, share: f64) -> bool {
        if share >= MIN_SHARE_FOR_EVERY_TURN {
            return true;
        }
        let Some(credit) = self.turn_credits.get(member) else { return true };
        // `share` is below 1 here. The sum reaches 1 when it overflows.
        let gain = (share * f64::from(u32::MAX)) as u32;
        credit.fetch_add(gain, Ordering::Relaxed).checked_add(gain).is_none()
    }
}

/// The candidates for one deployment, lowest tier first.
pub struct BackendPool {
    candidates: Vec<Candidate>,
    balance_policy: BalancePolicy,
    tiers: Vec<PoolTier>,
    /// Limits retries while its backends fail.
    pub retry_budget: RetryBudget,
}

impl BackendPool {
    /// A pool of these candidates; within a tier they keep their order.
    pub fn new(mut candidates: Vec<Candidate>, balance_policy: BalancePolicy, now: Instant) -> Self {
        candidates.sort_by_key(|candidate| candidate.tier);
        let mut tiers = Vec::new();
        let mut start = 0;
        for tier in candidates.chunk_by(|a, b| a.tier == b.tier) {
            let weights: Vec<Weight> = tier.iter().map(|candidate| candidate.weight).collect();
            let member_indexes = start..start + tier.len();
            start = member_indexes.end;
            tiers.push(PoolTier {
                member_indexes,
                round_robin: WeightedRoundRobin::new(&weights),
                turn_credits: weights.iter().map(|_| AtomicU32::new(0)).collect(),
            });
        }
        Self { candidates, balance_policy, tiers, retry_budget: RetryBudget::new(now) }
    }

    /// Continues the round robin of another pool of the same backends, so that a deployment that gets a
    /// pool of its own does not start again with the first.
    pub fn continue_rotation_of(&self, other: &Self) {
        for (tier, other) in self.tiers.iter().zip(&other.tiers) {
            tier.round_robin.advance(other.round_robin.pick_count());
        }
    }

    /// The candidate at this index.
    pub fn candidate(&self, index: usize) -> Option<&Candidate> {
        self.candidates.get(index)
    }

    /// All candidates, lowest tier first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    pub(super) fn tiers(&self) -> &[PoolTier] {
        &self.tiers
    }

    /// The index of the candidate whose turn it is among the eligible ones of a tier.
    pub(super) fn pick_in_tier(
        &self,
        tier: &PoolTier,
        is_eligible: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let index_of = |member: usize| tier.member_indexes.start + member;
        let is_eligible_member = |member| is_eligible(index_of(member));
        let member = match self.balance_policy {
            BalancePolicy::RoundRobin => tier.round_robin.pick(is_eligible_member, |_| true),
            BalancePolicy::Headroom => {
                let share_of = |index: usize| {
                    self.candidates.get(index).map_or(0.0, |candidate| candidate.turn_share(now))
                };
                // Computed only if a member has less than its full share.
                let largest_share = OnceCell::new();
                let largest_share = || {
                    let eligible = tier.member_indexes.clone().filter(|index| is_eligible(*index));
                    *largest_share.get_or_init(|| eligible.map(share_of).fold(0.0, f64::max))
                };
                let takes_turn = |member| {
                    let share = share_of(index_of(member));
                    // Shares are relative: the member with the largest takes every turn.
                    share >= MIN_SHARE_FOR_EVERY_TURN
                        || largest_share() <= 0.0
                        || tier.try_take_turn(member, share / largest_share())
                };
                tier.round_robin.pick(is_eligible_member, takes_turn)
            }
        };
        member.map(index_of)
    }
}
