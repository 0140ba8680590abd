//! Reserves what a request may use from the leases of this instance.

use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout_at;

use super::super::amounts::Amounts;
use super::super::check::Basis;
use super::super::limit_key::LimitReached;
use super::super::limiter::ClientLimiter;
use super::super::reservation::Reservation;
use super::super::token_estimate::{Demand, TokenEstimate};
use super::lease_desk::{LeaseDesk, ReportRequest};
use crate::config::LimitMode;
use crate::names::DeploymentName;

/// How long a request waits for a lease.
const LEASE_TIMEOUT: Duration = Duration::from_millis(5);

/// A request that needs a lease.
struct LeaseRequest<'r, T> {
    desk: &'r LeaseDesk,
    deployment: Option<&'r DeploymentName>,
    /// Its tokens and cost, according to an estimate.
    amounts: T,
    demand: Demand,
    now: Instant,
    time: SystemTime,
}

/// What comes after a look at the leases.
#[expect(clippy::large_enum_variant, reason = "it is returned and taken apart at once")]
enum Next {
    Decided(Result<Reservation, LimitReached>),
    /// It depends on this report.
    Wait(u64),
}

impl ClientLimiter {
    /// Reserves what a request may use of limits that several instances share: from the leases of this one, or, if the
    /// server does not answer in time, up to this instance's part of a rate.
    ///
    /// # Errors
    /// The limit that the request would exceed.
    pub async fn reserve_with_lease(
        &self,
        desk: &LeaseDesk,
        deployment: Option<&DeploymentName>,
        demand: &Demand,
        now: Instant,
        time: SystemTime,
    ) -> Result<Reservation, LimitReached> {
        let amounts = |estimate: TokenEstimate| estimate.amounts(demand);
        self.wait_for_lease(LeaseRequest { desk, deployment, amounts, demand: *demand, now, time }).await
    }

    /// The same for a request whose tokens and cost are estimated.
    ///
    /// # Errors
    /// The limit that the request would exceed.
    pub async fn reserve_amounts_with_lease(
        &self,
        desk: &LeaseDesk,
        deployment: Option<&DeploymentName>,
        amounts: Amounts,
        now: Instant,
        time: SystemTime,
    ) -> Result<Reservation, LimitReached> {
        let (amounts, demand) = (|_| amounts, Demand::default());
        self.wait_for_lease(LeaseRequest { desk, deployment, amounts, demand, now, time }).await
    }

    async fn wait_for_lease(
        &self,
        request: LeaseRequest<'_, impl Fn(TokenEstimate) -> Amounts>,
    ) -> Result<Reservation, LimitReached> {
        // Most requests need not wait.
        let mut report = match self.try_lease(&request, None) {
            Next::Decided(decided) => return decided,
            Next::Wait(report) => report,
        };
        let deadline = tokio::time::Instant::now() + LEASE_TIMEOUT;
        loop {
            let answered = self.account.answered();
            tokio::pin!(answered);
            // From here on it is woken. What was answered before is seen now.
            answered.as_mut().enable();
            report = match self.try_lease(&request, Some(report)) {
                Next::Decided(decided) => return decided,
                Next::Wait(report) => report,
            };
            if timeout_at(deadline, answered).await.is_err() {
                return self.reserve_alone(&request);
            }
        }
    }

    fn try_lease(
        &self,
        request: &LeaseRequest<'_, impl Fn(TokenEstimate) -> Amounts>,
        awaited: Option<u64>,
    ) -> Next {
        let LeaseRequest { desk, deployment, amounts, demand, now, time } = request;
        let is_observed = self.mode() == LimitMode::Observe;
        if !desk.is_up() && !is_observed {
            return Next::Decided(self.reserve_alone(request));
        }
        let mut state = self.account.lock();
        // Nothing is refused that is only observed, so nothing has to be leased.
        let basis = if is_observed { Basis::Known } else { Basis::Lease };
        let mut check = self.check(&mut state, basis, *deployment, amounts, *now, *time);
        let Some(reached) = check.reached.clone().filter(|_| !is_observed) else {
            return Next::Decided(Ok(self.book(check, *deployment, *demand, None)));
        };
        if reached.wait.is_none() || check.is_used_up() {
            return Next::Decided(Err(reached));
        }
        match awaited {
            Some(report) if !check.reports.is_finished(report) => Next::Wait(report),
            Some(_) if check.reports.has_failed() => {
                drop(state);
                Next::Decided(self.reserve_alone(request))
            }
            // Others may have taken what was leased for it.
            _ => {
                check.ask_for_lease();
                let report = check.reports.next_number();
                if check.reports.request() {
                    desk.hand_in(ReportRequest::Urgent(self.account.client.clone()));
                }
                Next::Wait(report)
            }
        }
    }

    /// Reserves what a request may use up to this instance's part of a rate.
    fn reserve_alone(
        &self,
        request: &LeaseRequest<'_, impl Fn(TokenEstimate) -> Amounts>,
    ) -> Result<Reservation, LimitReached> {
        let LeaseRequest { desk, deployment, amounts, demand, now, time } = request;
        desk.count_limited_alone();
        let mut state = self.account.lock();
        let basis = Basis::Part(desk.instances());
        let check = self.check(&mut state, basis, *deployment, amounts, *now, *time);
        Ok(self.book(check.unless_refused(self.mode())?, *deployment, *demand, None))
    }
}
