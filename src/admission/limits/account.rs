//! What one client uses: the same for all configurations, so that a reload changes limits and forgets nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::amounts::Amounts;
use super::budget::Budget;
use super::budget_sums::UnitSums;
use super::keeper_link::KeeperLink;
use super::leases::{LeaseDesk, Leases, ReportRequest, ReportState};
use super::limit_key::LimitKind;
use super::sliding_minute::SlidingMinute;
use super::token_estimate::TokenEstimate;
use super::unasked_share::UnaskedShare;
use crate::config::ClientLimits;
use crate::names::{ClientName, DeploymentName};

/// For how many deployments of a client estimates are learned. Any name may be one where a backend serves all names.
const MAX_DEPLOYMENTS: usize = 256;
/// From how many of a client's latest ends the time until the next one is estimated.
const REMEMBERED_ENDS: usize = 16;
/// The bounds of `retry-after` for `in_flight`.
const MIN_END_WAIT: Duration = Duration::from_millis(100);
const MAX_END_WAIT: Duration = Duration::from_secs(5);

/// The accounts of all clients that have limits.
#[derive(Debug)]
pub struct ClientAccounts {
    accounts: Mutex<Accounts>,
    /// The instant that windows count from.
    start: Instant,
    /// The connection to the process that keeps the limits in place of this one.
    keeper: OnceLock<Arc<KeeperLink>>,
    /// Where leases come from, if several instances share the limits.
    desk: OnceLock<Arc<LeaseDesk>>,
    /// What the clock of budgets is ahead of this machine's, in milliseconds.
    clock_offset_ms: Arc<AtomicI64>,
}

#[derive(Debug, Default)]
struct Accounts {
    by_client: HashMap<Option<ClientName>, Arc<ClientAccount>>,
    /// The connection to a successor that prepares to keep the limits.
    candidate: Option<Arc<KeeperLink>>,
    /// The `follower` of new accounts.
    follower: Option<Arc<KeeperLink>>,
}

impl ClientAccounts {
    /// No accounts yet. Windows count whole seconds from `start`, which must be the same instant in all processes that
    /// hand over to each other.
    pub fn new(start: Instant) -> Self {
        Self {
            accounts: Mutex::default(),
            start,
            keeper: OnceLock::new(),
            desk: OnceLock::new(),
            clock_offset_ms: Arc::default(),
        }
    }

    /// From now on several instances share the limits. It has to be called before there are accounts.
    pub fn share(&self, desk: Arc<LeaseDesk>) {
        let _ = self.desk.set(desk);
    }

    /// Where leases come from; `None` if this process alone decides, or another one for it.
    pub fn desk(&self) -> Option<&Arc<LeaseDesk>> {
        self.desk.get().filter(|desk| !desk.is_closed())
    }

    /// Days and months are those of a clock that is this much ahead of this machine's.
    pub fn set_clock_offset(&self, milliseconds: i64) {
        self.clock_offset_ms.store(milliseconds, Ordering::Relaxed);
    }

    /// The account of this client, if it has one.
    pub fn find(&self, client: Option<&ClientName>) -> Option<Arc<ClientAccount>> {
        self.lock().by_client.get(&client.cloned()).cloned()
    }

    /// The instant that the seconds of windows are counted from.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The connection over which this process asks its successor for permission. `None` before the handover, and
    /// afterwards if the successor does not support it.
    pub fn keeper(&self) -> Option<&Arc<KeeperLink>> {
        self.keeper.get()
    }

    /// Sets the successor that will keep the limits if the handover succeeds.
    pub fn offer_keeper(&self, link: Arc<KeeperLink>) {
        self.lock().candidate = Some(link);
    }

    /// From now on this process asks its successor for permission. Returns false if the successor does not support it.
    pub fn begin_asking(&self) -> bool {
        let follower = self.lock().follower.clone();
        if let Some(desk) = self.desk.get() {
            desk.replace();
        }
        follower.is_some_and(|link| self.keeper.set(link).is_ok())
    }

    /// The handover has failed: stops reporting to the successor.
    pub fn cancel_handover(&self) {
        let mut accounts = self.lock();
        (accounts.candidate, accounts.follower) = (None, None);
        for account in accounts.by_client.values() {
            account.lock().follower = None;
        }
    }

    /// Whether no client has limits.
    pub fn is_empty(&self) -> bool {
        self.lock().by_client.is_empty()
    }

    /// All accounts.
    pub fn all(&self) -> Vec<Arc<ClientAccount>> {
        self.lock().by_client.values().map(Arc::clone).collect()
    }

    /// New accounts report to the successor that is preparing from now on. Returns the connection to it, if there is one,
    /// and all accounts: the caller sets the `follower` of each, under its lock.
    pub(super) fn begin_following(&self) -> (Option<Arc<KeeperLink>>, Vec<Arc<ClientAccount>>) {
        let mut accounts = self.lock();
        accounts.follower = accounts.candidate.take().filter(|link| !link.is_lost());
        (accounts.follower.clone(), accounts.by_client.values().map(Arc::clone).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of this client; `None` is the one of all clients that need not authenticate.
    pub fn find_or_create(&self, client: Option<&ClientName>) -> Arc<ClientAccount> {
        let mut accounts = self.lock();
        let Accounts { by_client, follower, .. } = &mut *accounts;
        let new = || {
            let state = AccountState { follower: follower.clone(), ..AccountState::default() };
            Arc::new(ClientAccount {
                client: client.cloned(),
                state: Mutex::new(state),
                start: self.start,
                desk: self.desk.get().cloned(),
                answered: Notify::new(),
                clock_offset_ms: Arc::clone(&self.clock_offset_ms),
            })
        };
        Arc::clone(by_client.entry(client.cloned()).or_insert_with(new))
    }
}

/// Where the use of limits is kept.
#[derive(Clone, Copy)]
pub struct LimitBooks<'b> {
    /// The accounts of all clients.
    pub accounts: &'b ClientAccounts,
    /// Finds what is used of the budget of a client for a deployment, or for all.
    pub open_budget: &'b OpenBudget<'b>,
}

/// A function that finds a budget.
pub type OpenBudget<'b> = dyn Fn(Option<&ClientName>, Option<&DeploymentName>) -> Arc<dyn Budget> + 'b;

/// What one client uses.
#[derive(Debug)]
pub struct ClientAccount {
    /// `None`: all clients that need not authenticate.
    pub(super) client: Option<ClientName>,
    state: Mutex<AccountState>,
    start: Instant,
    /// `None` if this process alone decides.
    desk: Option<Arc<LeaseDesk>>,
    /// A report is answered, or has failed.
    answered: Notify,
    clock_offset_ms: Arc<AtomicI64>,
}

/// The state of an account, behind its lock.
#[derive(Debug, Default)]
pub(super) struct AccountState {
    /// Of all requests.
    pub(super) total: ScopeUse,
    /// Of the requests for each deployment.
    pub(super) deployments: HashMap<DeploymentName, ScopeUse>,
    ends: RecentEnds,
    /// The limits of the latest configuration.
    pub(super) limits: Arc<ClientLimits>,
    /// What is reported of the limits that several instances share.
    pub(super) reports: ReportState,
    /// The connection to the successor, which gets a report of each change since its snapshot.
    pub(super) follower: Option<Arc<KeeperLink>>,
}

/// What requests of one scope use: all of a client's, or those for one deployment.
#[derive(Debug, Default)]
pub(super) struct ScopeUse {
    /// Only where a limit needs them.
    pub(super) requests: Option<Box<SlidingMinute>>,
    pub(super) tokens: Option<Box<SlidingMinute>>,
    pub(super) in_flight: u64,
    /// What requests in progress have reserved.
    pub(super) reserved: Amounts,
    /// Kept where a configuration limits it, so that it also counts what was admitted before, or after.
    pub(super) budget: Option<Arc<dyn Budget>>,
    pub(super) estimate: TokenEstimate,
    /// What was admitted without permission since this process has to ask for it.
    pub(super) unasked: Option<Box<UnaskedShare>>,
    pub(super) leases: Leases,
    /// Something has changed since the latest report.
    pub(super) is_changed: bool,
}

/// The parts of a state that concern a request.
pub(super) struct Parts<'s> {
    pub(super) total: &'s mut ScopeUse,
    pub(super) own: Option<&'s mut ScopeUse>,
    /// Of the client's latest requests.
    pub(super) ends: &'s RecentEnds,
    pub(super) reports: &'s mut ReportState,
    pub(super) follower: Option<&'s KeeperLink>,
}

impl ScopeUse {
    /// What counts against a limit, with what is reserved.
    pub(super) fn counted(&mut self, kind: LimitKind, now: Duration, time: SystemTime) -> u64 {
        if kind.window().is_some() {
            return self.booked_and_reserved(kind, time).used();
        }
        if kind == LimitKind::InFlight {
            return self.in_flight;
        }
        self.window(kind).map_or(0, |window| window.total(now))
    }

    /// The same, with what other instances have used, as far as this one knows it.
    pub(super) fn known_use(&mut self, kind: LimitKind, now: Duration, time: SystemTime) -> u64 {
        if !self.leases.are_used() {
            return self.counted(kind, now, time);
        }
        let Some(window) = kind.window() else {
            return self.counted(kind, now, time).saturating_add(self.leases.others(kind, now));
        };
        let number = window.number_at(time);
        // That of a budget is known from before a restart as well.
        let saved = self.budget.as_deref().map(|budget| budget.others(window, number).in_unit(kind.unit()));
        let others = self.leases.others_of_budget(kind, number).max(saved.unwrap_or_default());
        self.booked_and_reserved(kind, time).saturating_add(others).used()
    }

    /// What this instance has counted of a budget.
    pub(super) fn own_sums(&self, kind: LimitKind, time: SystemTime) -> UnitSums {
        let sums =
            self.budget.as_deref().zip(kind.window()).map(|(budget, window)| budget.counted(window, time));
        sums.map_or_else(UnitSums::default, |sums| sums.in_unit(kind.unit()))
    }

    /// The same, with what its requests have reserved.
    fn booked_and_reserved(&self, kind: LimitKind, time: SystemTime) -> UnitSums {
        let UnitSums { booked, refunded } = self.own_sums(kind, time);
        UnitSums { booked: booked.saturating_add(self.reserved.in_unit(kind.unit())), refunded }
    }

    /// The window of a rate, empty if nothing was used.
    pub(super) fn window_or_default(&mut self, kind: LimitKind) -> Option<&mut SlidingMinute> {
        let window = match kind {
            LimitKind::RequestsPerMinute => &mut self.requests,
            LimitKind::TokensPerMinute => &mut self.tokens,
            _ => return None,
        };
        Some(window.get_or_insert_default())
    }

    /// The window of a rate.
    pub(super) fn window(&mut self, kind: LimitKind) -> Option<&mut SlidingMinute> {
        match kind {
            LimitKind::RequestsPerMinute => self.requests.as_deref_mut(),
            LimitKind::TokensPerMinute => self.tokens.as_deref_mut(),
            _ => None,
        }
    }
}

impl ClientAccount {
    /// The client; `None` for all that need not authenticate.
    pub fn client(&self) -> Option<&ClientName> {
        self.client.as_ref()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, AccountState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time that windows count in.
    pub(super) fn time_of(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// The time by which days and months begin.
    pub(super) fn wall_time(&self, time: SystemTime) -> SystemTime {
        let offset = self.clock_offset_ms.load(Ordering::Relaxed);
        let distance = Duration::from_millis(offset.unsigned_abs());
        let shifted = if offset < 0 { time.checked_sub(distance) } else { time.checked_add(distance) };
        shifted.unwrap_or(time)
    }

    /// Ends when the next report is answered or has failed.
    pub(super) fn answered(&self) -> Notified<'_> {
        self.answered.notified()
    }

    pub(super) fn wake_waiting(&self) {
        self.answered.notify_waiters();
    }

    /// Whether several instances share the limits.
    pub(super) fn is_shared(&self) -> bool {
        self.desk.is_some()
    }

    /// Something has changed that the other instances should know, at once if it `is_urgent`.
    pub(super) fn on_change(&self, reports: &mut ReportState, is_urgent: bool) {
        let Some(desk) = self.desk.as_ref().filter(|desk| !desk.is_closed()) else { return };
        if reports.note_change() {
            desk.hand_in(ReportRequest::Changed(self.client.clone()));
        }
        if is_urgent && reports.request() {
            desk.hand_in(ReportRequest::Urgent(self.client.clone()));
        }
    }
}

impl AccountState {
    /// The use of all requests, and that of each deployment.
    pub(super) fn all_scopes(&mut self) -> impl Iterator<Item = (Option<&DeploymentName>, &mut ScopeUse)> {
        let own = self.deployments.iter_mut().map(|(name, own)| (Some(name), own));
        std::iter::once((None, &mut self.total)).chain(own)
    }

    /// The use of all requests, and that of a deployment: none for a call that names none, and for one of too many
    /// deployments without limits of their own.
    pub(super) fn scopes(
        &mut self,
        deployment: Option<&DeploymentName>,
        has_own_limits: bool,
    ) -> (&mut ScopeUse, Option<&mut ScopeUse>) {
        let Parts { total, own, .. } = self.parts(deployment, has_own_limits);
        (total, own)
    }

    /// The same, with the rest of the state.
    pub(super) fn parts(&mut self, deployment: Option<&DeploymentName>, has_own_limits: bool) -> Parts<'_> {
        let Self { total, deployments, ends, reports, follower, .. } = self;
        let own = deployment.and_then(|deployment| {
            let has_room = has_own_limits || deployments.len() < MAX_DEPLOYMENTS;
            if has_room && !deployments.contains_key(deployment) {
                deployments.insert(deployment.clone(), ScopeUse::default());
            }
            deployments.get_mut(deployment)
        });
        Parts { total, own, ends, reports, follower: follower.as_deref() }
    }

    pub(super) fn note_end(&mut self, now: Duration) {
        self.ends.note(now);
    }
}

/// The times between the latest ends of a client's requests.
#[derive(Debug, Default)]
pub(super) struct RecentEnds {
    last: Option<Duration>,
    gaps: [Duration; REMEMBERED_ENDS],
    count: usize,
}

impl RecentEnds {
    fn note(&mut self, now: Duration) {
        if let Some(last) = self.last.replace(now) {
            if let Some(gap) = self.gaps.get_mut(self.count % REMEMBERED_ENDS) {
                *gap = now.saturating_sub(last);
            }
            self.count = self.count.wrapping_add(1);
        }
    }

    /// How long it may take until the next request ends.
    pub(super) fn time_until_next(&self, now: Duration) -> Duration {
        let mut gaps = self.gaps;
        let known = gaps.get_mut(..self.count.min(REMEMBERED_ENDS)).unwrap_or_default();
        known.sort_unstable();
        let median = known.get(known.len() / 2).copied().unwrap_or(Duration::from_secs(1));
        let since_last = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        median.saturating_sub(since_last).clamp(MIN_END_WAIT, MAX_END_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_end_is_expected_after_the_median_of_the_latest() {
        let second = Duration::from_secs(1);
        let mut ends = RecentEnds::default();
        assert_eq!(ends.time_until_next(second), second, "nothing is known");
        for end in [10, 11, 13, 20, 22] {
            ends.note(end * second);
        }
        // The gaps are 1, 2, 2 and 7 s.
        assert_eq!(ends.time_until_next(22 * second), 2 * second);
        assert_eq!(ends.time_until_next(23 * second), second);
        assert_eq!(ends.time_until_next(60 * second), MIN_END_WAIT);
        for end in 0..40 {
            ends.note((100 + 60 * end) * second);
        }
        assert_eq!(ends.time_until_next(100 * second), MAX_END_WAIT);
    }

    #[test]
    fn an_account_has_a_bounded_number_of_deployments() {
        let mut state = AccountState::default();
        for number in 0..2 * MAX_DEPLOYMENTS {
            let name = DeploymentName::parse(&format!("d{number}")).unwrap();
            assert_eq!(state.scopes(Some(&name), false).1.is_some(), number < MAX_DEPLOYMENTS);
        }
        let name = DeploymentName::parse("limited").unwrap();
        assert!(state.scopes(Some(&name), true).1.is_some());
        assert!(state.scopes(None, false).1.is_none());
    }
}
