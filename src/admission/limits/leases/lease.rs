//! What this instance has leased of one limit, and what it knows of the others' use of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::amounts::{Amounts, LimitUnit};
use super::super::budget_sums::UnitSums;
use super::super::limit_key::LimitKind;

/// The server counts a lease for five seconds after the latest report; this instance uses it for less, since the report
/// was made earlier than it arrived.
const LEASE_TIME: Duration = Duration::from_secs(4);
/// What was used of a rate does not count any longer.
const RATE_TIME: Duration = Duration::from_secs(60);
/// After a refusal, requests that lack a lease are refused for so long without another question.
const REFUSAL_TIME: Duration = Duration::from_millis(20);

/// The leases of one scope. They take no memory unless limits are shared.
#[derive(Debug, Default)]
pub(in super::super) struct Leases(Option<Box<[LimitLease; LimitKind::ALL.len()]>>);

/// A lease of one limit.
#[derive(Debug, Default)]
pub(in super::super) struct LimitLease {
    /// What requests may still take.
    free: u64,
    expires_at: Duration,
    /// What requests have taken since the latest report.
    spent: u64,
    /// What requests wait for.
    asked: u64,
    /// How much of it should be free.
    target: u64,
    /// The largest demand since the latest report.
    largest_demand: u64,
    /// Until when the server has nothing to lease.
    used_up_until: Duration,
    /// Little is left of the limit: what is not needed at once is given back.
    is_scarce: bool,
    /// The server has answered a report of this process, under the id that this instance has now.
    is_known: bool,
    /// What this instance had counted of a budget at that time, with the day or month.
    reported: Option<(u32, UnitSums)>,
    others: Others,
}

/// What the other instances have used or leased.
#[derive(Debug, Default)]
struct Others {
    total: u64,
    learned_at: Duration,
    /// Of a rate, by second; known after a refusal.
    by_second: Vec<(u64, u64)>,
    /// Of a budget, by instance, also if the server has lost it; with the day or month.
    by_instance: BTreeMap<String, UnitSums>,
    window: Option<u32>,
}

/// The server's answer about one limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseGrant {
    /// What is leased in addition.
    pub granted: u64,
    /// What is left of the limit afterwards.
    pub room: u64,
    /// What the other instances have used or leased; of a budget, what they have booked or leased.
    pub others: u64,
    /// What this instance had counted of a budget, as the server knows it.
    pub own: UnitSums,
    /// What the others have used of a rate, by the server's second, if what was asked for is not granted.
    pub others_by_second: Vec<(u64, u64)>,
    /// What each of the others has counted of a budget.
    pub others_by_instance: Vec<(String, UnitSums)>,
}

/// What is asked for in one report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeaseDemand {
    /// What the instance still has.
    pub(super) free: u64,
    /// What requests wait for, beyond that.
    pub(super) short: u64,
    /// What it would like to have in advance.
    pub(super) extra: u64,
}

/// When a report was made and answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportTiming {
    /// What the server's seconds are ahead.
    pub(super) second_offset: i64,
    pub(super) reported_at: Duration,
    pub(super) now: Duration,
}

impl Leases {
    /// Limits are shared: what the others use counts, even if nothing has been reported yet.
    pub(in super::super) fn begin_use(&mut self) {
        self.0.get_or_insert_default();
    }

    /// Whether limits are shared.
    pub(in super::super) fn are_used(&self) -> bool {
        self.0.is_some()
    }

    /// What requests may still take of a limit.
    pub(in super::super) fn free(&self, kind: LimitKind, now: Duration) -> u64 {
        self.get(kind).map_or(0, |lease| lease.free(now))
    }

    /// What the other instances have used of a rate or have in flight, as far as this one knows and as long as it counts.
    pub(in super::super) fn others(&self, kind: LimitKind, now: Duration) -> u64 {
        let lifetime = if kind == LimitKind::InFlight { LEASE_TIME } else { RATE_TIME };
        self.others_learned_within(lifetime, kind, now)
    }

    /// What the other instances of now have used of a rate or have in flight.
    pub(in super::super) fn recent_others(&self, kind: LimitKind, now: Duration) -> u64 {
        self.others_learned_within(LEASE_TIME, kind, now)
    }

    fn others_learned_within(&self, lifetime: Duration, kind: LimitKind, now: Duration) -> u64 {
        let others = self.get(kind).map(|lease| &lease.others);
        let known = others.filter(|others| now < others.learned_at.saturating_add(lifetime));
        known.map_or(0, |others| others.total)
    }

    /// What the other instances have counted or leased of a budget in this day or month, as far as this one knows.
    pub(in super::super) fn others_of_budget(&self, kind: LimitKind, window: u32) -> UnitSums {
        let others = self.get(kind).map(|lease| &lease.others);
        let known = others.filter(|others| others.window == Some(window));
        known.map_or_else(UnitSums::default, |others| UnitSums {
            booked: others.total,
            refunded: others.counted().refunded,
        })
    }

    /// What the other instances have used of a rate, by second.
    pub(in super::super) fn others_by_second(&self, kind: LimitKind) -> Vec<(u64, u64)> {
        self.get(kind).map_or_else(Vec::new, |lease| lease.others.by_second.clone())
    }

    /// A request waits until this much can be taken of a limit.
    pub(in super::super) fn ask(&mut self, kind: LimitKind, demand: u64) {
        let lease = self.get_mut(kind);
        lease.asked = lease.asked.saturating_add(demand);
        lease.largest_demand = lease.largest_demand.max(demand);
    }

    /// A request takes this much. Returns whether more should be leased in advance.
    pub(in super::super) fn take(&mut self, kind: LimitKind, demand: u64) -> bool {
        let lease = self.get_mut(kind);
        lease.free = lease.free.saturating_sub(demand);
        lease.spent = lease.spent.saturating_add(demand);
        lease.largest_demand = lease.largest_demand.max(demand);
        lease.free < lease.target / 2
    }

    /// A request gives this much back. Returns whether others may be waiting for it.
    pub(in super::super) fn give_back(&mut self, kind: LimitKind, amount: u64) -> bool {
        let Some(lease) = self.get_allocated(kind) else { return false };
        lease.free = lease.free.saturating_add(amount);
        lease.is_scarce
    }

    /// A request has used so much beyond what it took.
    pub(in super::super) fn take_excess(&mut self, excess: Amounts) {
        for kind in LimitKind::ALL.into_iter().filter(|kind| kind.unit() != LimitUnit::Requests) {
            if let Some(lease) = self.get_allocated(kind) {
                lease.free = lease.free.saturating_sub(excess.in_unit(kind.unit()));
            }
        }
    }

    /// Whether the server has just had nothing to lease.
    pub(in super::super) fn is_used_up(&self, kind: LimitKind, now: Duration) -> bool {
        self.get(kind).is_some_and(|lease| now < lease.used_up_until)
    }

    /// Whether something is leased.
    pub(super) fn has_free(&self) -> bool {
        self.0.as_ref().is_some_and(|leases| leases.iter().any(|lease| lease.free > 0))
    }

    pub(super) fn get_mut(&mut self, kind: LimitKind) -> &mut LimitLease {
        // There is one for each kind.
        &mut self.0.get_or_insert_default()[kind as usize]
    }

    fn get_allocated(&mut self, kind: LimitKind) -> Option<&mut LimitLease> {
        self.0.as_mut()?.get_mut(kind as usize)
    }

    fn get(&self, kind: LimitKind) -> Option<&LimitLease> {
        self.0.as_ref()?.get(kind as usize)
    }
}

impl Others {
    /// What they have counted of a budget, without what they have leased.
    fn counted(&self) -> UnitSums {
        self.by_instance.values().fold(UnitSums::default(), |sum, amount| sum.saturating_add(*amount))
    }
}

impl LimitLease {
    fn free(&self, now: Duration) -> u64 {
        if now < self.expires_at { self.free } else { 0 }
    }

    /// What to ask for, if `in_advance` is a second's worth of the limit. What requests will not need is given back.
    pub(super) fn begin_report(&mut self, in_advance: u64, now: Duration) -> LeaseDemand {
        let (spent, asked) = (std::mem::take(&mut self.spent), std::mem::take(&mut self.asked));
        let largest_demand = std::mem::take(&mut self.largest_demand);
        let is_used = spent > 0 || asked > 0;
        self.target = if is_used { in_advance.max(spent).max(largest_demand) } else { 0 };
        let kept = if self.is_scarce { asked } else { asked.saturating_add(self.target) };
        self.free = self.free(now).min(kept);
        let short = asked.saturating_sub(self.free);
        let extra = self.target.saturating_sub(self.free.saturating_sub(asked));
        LeaseDemand { free: self.free, short, extra }
    }

    /// Applies the answer to a report. `is_scarce` if little of the limit is left; `window` is the day or month of a budget.
    pub(super) fn finish_report(
        &mut self,
        demand: LeaseDemand,
        grant: LeaseGrant,
        is_scarce: bool,
        window: Option<u32>,
        timing: ReportTiming,
    ) {
        let ReportTiming { second_offset, reported_at, now } = timing;
        self.free = self.free.saturating_add(grant.granted);
        self.expires_at = reported_at + LEASE_TIME;
        self.is_scarce = is_scarce;
        self.is_known = true;
        self.reported = window.map(|window| (window, grant.own));
        if grant.granted < demand.short {
            self.used_up_until = now + REFUSAL_TIME;
        }
        if self.others.window != window {
            self.others = Others { window, ..Others::default() };
        }
        self.others.learned_at = reported_at;
        let local = |(second, amount): (u64, u64)| {
            u64::try_from(i64::try_from(second).ok()?.checked_sub(second_offset)?)
                .ok()
                .map(|second| (second, amount))
        };
        self.others.by_second = grant.others_by_second.into_iter().filter_map(local).collect();
        for (instance, amount) in grant.others_by_instance {
            let known = self.others.by_instance.entry(instance).or_default();
            *known = amount.max(*known);
        }
        // What the server has lost counts on.
        self.others.total = grant.others.max(self.others.counted().booked);
    }

    /// Whether the server has answered a report of this process, under the id that this instance has now.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// What this instance has reported of a budget in a day or month; `None` if it has reported nothing.
    pub(super) fn reported(&self, window: u32) -> Option<UnitSums> {
        self.reported.filter(|(of, _)| *of == window).map(|(_, amount)| amount)
    }

    /// What is reported from now on is under another id.
    pub(super) fn forget_reports(&mut self) {
        (self.is_known, self.reported) = (false, None);
    }

    /// This instance, another one from now on, has counted so much of a budget in a day or month.
    pub(super) fn add_other(&mut self, id: &str, window: u32, amount: UnitSums) {
        if self.others.window != Some(window) {
            self.others = Others { window: Some(window), ..Others::default() };
        }
        let known = self.others.by_instance.entry(id.to_owned()).or_default();
        *known = amount.max(*known);
        self.others.total = self.others.total.max(self.others.counted().booked);
    }

    /// What the others have counted of a budget, without what they have leased.
    pub(super) fn counted_by_others(&self) -> UnitSums {
        self.others.counted()
    }

    /// What the others had counted of a budget, as this instance knows it.
    pub(super) fn known_by_instance(&self, window: Option<u32>) -> Vec<(String, UnitSums)> {
        if self.others.window != window {
            return Vec::new();
        }
        self.others.by_instance.iter().map(|(instance, amount)| (instance.clone(), *amount)).collect()
    }
}
