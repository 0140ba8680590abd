//! `shed`: a request does not use a provisioned deployment whose utilization is above the threshold of its class, if a
//! lower tier serves the deployment as well.

use std::time::Instant;

use super::RetryPlan;
use crate::config::{Percentage, RequestClass};
use crate::routing::pool::BackendPool;
use crate::routing::routed_operation::RoutedOperation;

/// The utilization of a provisioned deployment above which requests of one class are shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShedRule {
    /// The class.
    pub class: RequestClass,
    /// The utilization.
    pub threshold: Percentage,
}

impl ShedRule {
    /// Whether a request of the class must not use this candidate. It may if no other candidate is possible, now or after
    /// a cooldown.
    pub(super) fn is_shed(
        &self,
        pool: &BackendPool,
        index: usize,
        is_possible: impl Fn(usize) -> bool,
        now: Instant,
    ) -> bool {
        self.applies_to(pool, index, now)
            && (0..pool.candidates().len())
                .rev()
                .any(|other| !self.applies_to(pool, other, now) && is_possible(other))
    }

    /// Whether requests of the class are shed from this candidate, if another one is possible.
    fn applies_to(&self, pool: &BackendPool, index: usize, now: Instant) -> bool {
        !pool.is_in_last_tier(index)
            && pool.candidate(index).is_some_and(|candidate| {
                candidate.deployment_health.as_ref().is_some_and(|deployment| {
                    let is_provisioned = candidate.is_configured_as_provisioned;
                    deployment.utilization.is_shed_for(self.class, self.ratio(), is_provisioned, now)
                })
            })
    }

    /// Admits a request of the class to this candidate, unless the class is shed there now. If the last reading is too
    /// old, this request gets a new one.
    pub(super) fn try_enter(&self, pool: &BackendPool, index: usize, now: Instant) -> bool {
        if pool.is_in_last_tier(index) {
            return true;
        }
        let Some(candidate) = pool.candidate(index) else { return true };
        let Some(deployment) = &candidate.deployment_health else { return true };
        let is_provisioned = candidate.is_configured_as_provisioned;
        deployment.utilization.try_enter(self.class, self.ratio(), is_provisioned, now)
    }

    fn ratio(&self) -> f64 {
        f64::from(self.threshold.percent()) / 100.0
    }
}

impl RetryPlan {
    /// The same plan with this rule.
    #[must_use]
    pub fn with_shed_rule(self, rule: Option<ShedRule>) -> Self {
        Self { shed_rule: rule, ..self }
    }

    /// Whether the request must not use this candidate because of its class.
    pub(super) fn is_shed(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> bool {
        let Some(rule) = self.applicable_shed_rule() else { return false };
        let is_possible = |other| {
            self.is_available(pool, other, operation, now)
                || self.cooldown_end_of_candidate(pool, other, operation, now).is_some()
        };
        rule.is_shed(pool, index, is_possible, now)
    }

    /// Admits the request to this candidate. False if its class is shed there by now, perhaps because another request was
    /// just sent to get a new reading.
    pub(super) fn try_enter(
        &self,
        pool: &BackendPool,
        index: usize,
        operation: RoutedOperation,
        now: Instant,
    ) -> bool {
        let Some(rule) = self.applicable_shed_rule() else { return true };
        rule.try_enter(pool, index, now) || !self.is_shed(pool, index, operation, now)
    }

    /// The rule, unless only one resource can serve the request.
    pub(super) fn applicable_shed_rule(&self) -> Option<&ShedRule> {
        self.shed_rule.as_ref().filter(|_| !self.has_home())
    }
}
