//! The backends that can serve a deployment, in tiers, with a weighted round robin for each tier.
//!
//! A pool knows which backend's turn it is among those that one request may use; which those are is
//! decided in `retry_plan.rs`.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use smallvec::SmallVec;

use super::headroom::SendTicket;
use super::health::availability::{Availability, AvailabilityCell, Unavailable, UnavailableReason};
use super::health::backend_health::{BackendHealth, DeploymentHealth};
use super::health::probe_permit::ProbePermit;
use super::prompt_cache::{LoadTicket, LoadedMember, RankedBackend, choose_member};
use super::retry_budget::RetryBudget;
use super::routed_operation::RoutedOperation;
use super::weighted_round_robin::{WeightedRoundRobin, turns_per_round};
use crate::config::BalancePolicy;
use crate::credentials::BackendCredential;
use crate::names::{BackendName, CacheKey, DeploymentName, RoutedKey, Tier, Weight};

/// From this share of its turns on, a member takes all of them, so that round robin among members with
/// nearly the same headroom stays exact.
const MIN_SHARE_FOR_EVERY_TURN: f64 = 0.9;

/// The most turns that a member owes: more would keep it without new conversations for long after a time in which
/// most requests had to go to it.
const MAX_OWED_TURNS: u32 = 256;

/// One backend as a member of one pool.
#[derive(Debug)]
pub struct Candidate {
    /// The index of the backend in the configuration.
    pub backend_index: usize,
    /// The name of the backend.
    pub name: BackendName,
    /// The index of its resource among those of the configuration. What is made on a resource is known to all
    /// backends of it, and to no other.
    pub resource_index: usize,
    /// The tier of the backend; 1 is tried first.
    pub tier: Tier,
    /// Its share of the requests of its tier.
    pub weight: Weight,
    /// Whether its deployment has provisioned throughput according to the configuration. Others may have it as well.
    pub is_configured_as_provisioned: bool,
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
    pub fn unavailability(&self, operation: RoutedOperation, now: Instant) -> Option<Unavailable> {
        Self::unavailability_in(self.availability_cells(operation), now)
    }

    /// The same for a request that is sent there although it is drained.
    pub(super) fn unavailability_despite_drain(
        &self,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<Unavailable> {
        Self::unavailability_in(self.cells_despite_drain(operation), now)
    }

    fn unavailability_in<'c>(
        cells: impl Iterator<Item = &'c Arc<AvailabilityCell>>,
        now: Instant,
    ) -> Option<Unavailable> {
        let rank = |reason: UnavailableReason| match reason {
            UnavailableReason::CoolingDown => 0,
            UnavailableReason::BreakerOpen | UnavailableReason::Stalled => 1,
            UnavailableReason::Drained => 3,
            _ => 2,
        };
        cells
            .filter_map(|cell| cell.unavailability_for_request(now))
            .max_by_key(|unavailable| (rank(unavailable.reason), unavailable.until))
    }

    /// Until when its circuit is open, if that is the only reason why it is unavailable.
    pub(super) fn open_until_if_only_breaker(
        &self,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<Instant> {
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
    pub(super) fn acquire_probe_permit(
        &self,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<ProbePermit> {
        ProbePermit::acquire(self.availability_cells(operation), now)
    }

    /// The permit to use it although it is drained; `None` if it is unavailable for another reason.
    pub(super) fn acquire_permit_despite_drain(
        &self,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<ProbePermit> {
        ProbePermit::acquire(self.cells_despite_drain(operation), now)
    }

    /// The permit to try it although something about it is misconfigured; `None` if it is unavailable for
    /// another reason, was tried a short time ago, or has no secret to be sent.
    pub(super) fn acquire_last_resort_permit(
        &self,
        operation: RoutedOperation,
        now: Instant,
    ) -> Option<ProbePermit> {
        // 0 is the id of no secret.
        if self.credential.secret().current_value_id() == 0 {
            return None;
        }
        ProbePermit::acquire_last_resort(self.availability_cells(operation), now)
    }

    /// Whether the health of its deployment is tracked.
    pub(super) fn has_deployment_health(&self) -> bool {
        self.deployment_health.is_some()
    }

    /// Counts an attempt that begins.
    pub fn record_send(&self, now: Instant) -> Option<SendTicket> {
        self.deployment_health.as_ref().map(|deployment| deployment.headroom.record_send(now))
    }

    /// Counts an attempt of about this many tokens as held by its deployment, until the ticket is dropped.
    pub fn hold_tokens(&self, tokens: u64) -> Option<LoadTicket> {
        self.deployment_health.as_ref().map(|deployment| deployment.token_load.add(tokens))
    }

    /// The share of its turns that it should take, from 0 to 1.
    fn turn_share(&self, now: Instant) -> f64 {
        self.deployment_health.as_ref().map_or(1.0, |deployment| deployment.headroom.turn_share(now))
    }

    fn cells_despite_drain(
        &self,
        operation: RoutedOperation,
    ) -> impl Iterator<Item = &Arc<AvailabilityCell>> {
        let drain = &self.backend_health.drain_state;
        self.availability_cells(operation).filter(move |cell| !Arc::ptr_eq(cell, drain))
    }

    fn availability_cells(&self, operation: RoutedOperation) -> impl Iterator<Item = &Arc<AvailabilityCell>> {
        let health = &self.backend_health;
        let backend_cells = [
            &health.drain_state,
            health.refresh_credential_availability(&self.credential),
            health.operation_availability(operation.operation),
            &health.breaker.availability,
        ];
        let deployment = self.deployment_health.as_deref();
        let deployment_cell = deployment.map(|deployment| &deployment.availability);
        let flex_cell =
            deployment.filter(|_| operation.is_flex).and_then(DeploymentHealth::flex_availability);
        backend_cells.into_iter().chain(deployment_cell).chain(flex_cell)
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
    /// For each member, the turns that it owes: those that it took out of turn, because only its resource could
    /// serve the request.
    owed_turns: Box<[AtomicU32]>,
    /// For each member, its turns in the shortest sequence that has the proportions of the weights.
    turns_per_round: Box<[u32]>,
    /// For each member, its place in the orders of keys; empty unless requests are routed by their prompts.
    ranked: Box<[RankedBackend]>,
}

/// How a member of a tier is picked for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PickBy {
    /// The one whose turn it is.
    Turn,
    /// Out of turn: only one resource can serve the request.
    Home,
    /// By the key of its prompt.
    Prompt(RoutedKey),
}

impl PickBy {
    /// For a request with this key, if it has one. `has_home` if only one resource can serve it.
    pub(super) fn new(key: Option<RoutedKey>, has_home: bool) -> Self {
        match key {
            Some(key) => Self::Prompt(key),
            None if has_home => Self::Home,
            None => Self::Turn,
        }
    }
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

    /// Counts a turn that a member took out of turn.
    fn owe_turn(&self, member: usize) {
        if let Some(owed) = self.owed_turns.get(member) {
            let add = |owed: u32| (owed < MAX_OWED_TURNS).then_some(owed + 1);
            let _ = owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
        // What every member owes in proportion to its weight is owed to nobody.
        let owes_round = |(owed, share): (&AtomicU32, &u32)| owed.load(Ordering::Relaxed) >= *share;
        if self.owed_turns.iter().zip(&self.turns_per_round).all(owes_round) {
            for (owed, share) in self.owed_turns.iter().zip(&self.turns_per_round) {
                let _ =
                    owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(*share));
            }
        }
    }

    /// Pays a turn that the member owes; false if it owes none.
    fn pay_owed_turn(&self, member: usize) -> bool {
        self.owed_turns.get(member).is_some_and(|owed| {
            owed.load(Ordering::Relaxed) > 0
                && owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1)).is_ok()
        })
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
        let is_by_prompt = balance_policy == BalancePolicy::PromptCache;
        for tier in candidates.chunk_by(|a, b| a.tier == b.tier) {
            let ranked = tier.iter().filter(|_| is_by_prompt);
            let weights: Vec<Weight> = tier.iter().map(|candidate| candidate.weight).collect();
            let member_indexes = start..start + tier.len();
            start = member_indexes.end;
            tiers.push(PoolTier {
                member_indexes,
                round_robin: WeightedRoundRobin::new(&weights),
                turn_credits: weights.iter().map(|_| AtomicU32::new(0)).collect(),
                owed_turns: weights.iter().map(|_| AtomicU32::new(0)).collect(),
                turns_per_round: turns_per_round(&weights),
                ranked: ranked.map(|one| RankedBackend::new(&one.name, one.weight)).collect(),
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

    /// Whether no lower tier serves the deployment as well: whether the candidate is in the tier that is tried last.
    pub fn is_in_last_tier(&self, index: usize) -> bool {
        self.tiers.last().is_none_or(|last| index >= last.member_indexes.start)
    }

    /// How a candidate is chosen among those of a tier.
    pub fn balance_policy(&self) -> BalancePolicy {
        self.balance_policy
    }

    /// The indexes of all candidates in the order of a key, whatever their state; empty unless requests are routed by
    /// their prompts.
    pub fn key_order(&self, key: CacheKey) -> Vec<usize> {
        let in_tier = |tier: &PoolTier| {
            let mut scored: Vec<(f64, usize)> =
                tier.ranked.iter().map(|one| one.score(key)).zip(tier.member_indexes.clone()).collect();
            scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            scored.into_iter().map(|(_, index)| index)
        };
        self.tiers.iter().flat_map(in_tier).collect()
    }

    /// The index of the candidate that is the first in the order of a key.
    pub(super) fn first_of_key(&self, key: CacheKey) -> Option<usize> {
        let tier = self.tiers.first()?;
        let scored = tier.ranked.iter().map(|one| one.score(key)).zip(tier.member_indexes.clone());
        scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, index)| index)
    }

    /// The index of the candidate that a request goes to if all are available and idle.
    pub(super) fn first_of_route(&self, routed: RoutedKey) -> Option<usize> {
        let tier = self.tiers.first()?;
        let members = tier.member_indexes.clone().zip(&tier.ranked);
        let mut members: SmallVec<[LoadedMember; 8]> =
            members.map(|(index, ranked)| LoadedMember::idle(index, *ranked)).collect();
        choose_member(&mut members, routed)
    }

    pub(super) fn tiers(&self) -> &[PoolTier] {
        &self.tiers
    }

    /// The index of the eligible candidate of a tier that a request gets.
    pub(super) fn pick(
        &self,
        tier: &PoolTier,
        by: PickBy,
        is_eligible: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        match by {
            PickBy::Turn => self.pick_in_turn(tier, is_eligible, now),
            PickBy::Home => self.pick_out_of_turn(tier, is_eligible),
            PickBy::Prompt(key) => self.pick_by_key(tier, key, is_eligible),
        }
    }

    /// The index of the eligible candidate of a tier that is the first in the order of the key, of those within the
    /// bound.
    fn pick_by_key(
        &self,
        tier: &PoolTier,
        routed: RoutedKey,
        is_eligible: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let members = tier.member_indexes.clone().zip(&tier.ranked).filter(|(index, _)| is_eligible(*index));
        let loaded = members.map(|(index, ranked)| {
            let health = self.candidates.get(index).and_then(|one| one.deployment_health.as_ref());
            let (tokens, requests) =
                health.map_or((0, 0), |health| (health.token_load.tokens(), health.token_load.requests()));
            LoadedMember::idle(index, *ranked).holding(tokens, requests)
        });
        choose_member(&mut loaded.collect::<SmallVec<[LoadedMember; 8]>>(), routed)
    }

    /// The index of the eligible candidate of a tier that owes the fewest turns for its weight. It owes one more
    /// from then on, so that the shares of all requests stay those of the weights.
    fn pick_out_of_turn(&self, tier: &PoolTier, is_eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let eligible = tier.member_indexes.clone().enumerate().filter(|(_, index)| is_eligible(*index));
        let owed_for_weight = |member: usize, index: usize| {
            let owed = tier.owed_turns.get(member).map_or(0, |owed| owed.load(Ordering::Relaxed));
            let weight = self.candidates.get(index).map_or(1, |candidate| candidate.weight.get());
            f64::from(owed + 1) / f64::from(weight)
        };
        let (member, index) = eligible.min_by(|(member, index), (other_member, other_index)| {
            owed_for_weight(*member, *index).total_cmp(&owed_for_weight(*other_member, *other_index))
        })?;
        tier.owe_turn(member);
        Some(index)
    }

    /// The index of the candidate whose turn it is among the eligible ones of a tier.
    fn pick_in_turn(
        &self,
        tier: &PoolTier,
        is_eligible: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let index_of = |member: usize| tier.member_indexes.start + member;
        let is_eligible_member = |member| is_eligible(index_of(member));
        let member = match self.balance_policy {
            BalancePolicy::RoundRobin => {
                tier.round_robin.pick(is_eligible_member, |member| !tier.pay_owed_turn(member))
            }
            BalancePolicy::Headroom | BalancePolicy::PromptCache => {
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
                    let takes_turn = share >= MIN_SHARE_FOR_EVERY_TURN
                        || largest_share() <= 0.0
                        || tier.try_take_turn(member, share / largest_share());
                    takes_turn && !tier.pay_owed_turn(member)
                };
                tier.round_robin.pick(is_eligible_member, takes_turn)
            }
        };
        member.map(index_of)
    }
}
