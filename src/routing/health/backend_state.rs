//! The state of a backend and of each of its deployments, in one word: the same in the status, on the page, in
//! metrics and in the log.

use std::time::Instant;

use super::availability::{Outage, UnavailableReason};

/// The state of a backend or of a deployment on it. The later of two is the worse, as far as an operator can tell
/// them apart at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// It serves.
    Healthy,
    /// `backends[].enabled` is false.
    Disabled,
    /// The operator drains it.
    Drained,
    /// It answered 429, or sent `retry-after`.
    Cooling,
    /// The credential may not do an operation.
    Permission,
    /// The resource does not have a deployment.
    Absent,
    /// It fails most of what it is asked.
    Failing,
    /// Its circuit breaker is open.
    BreakerOpen,
    /// It does not answer any more.
    Stalled,
    /// Its name has never resolved.
    Unresolvable,
    /// It rejects the credential or the network, or there is no secret yet.
    Credential,
}

impl BackendState {
    /// All states, from good to bad.
    pub const ALL: [Self; 11] = [
        Self::Healthy,
        Self::Disabled,
        Self::Drained,
        Self::Cooling,
        Self::Permission,
        Self::Absent,
        Self::Failing,
        Self::BreakerOpen,
        Self::Stalled,
        Self::Unresolvable,
        Self::Credential,
    ];

    /// Its name in the status API, in metrics and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Disabled => "disabled",
            Self::Drained => "drained",
            Self::Cooling => "cooling",
            Self::Permission => "permission",
            Self::Absent => "absent",
            Self::Failing => "failing",
            Self::BreakerOpen => "breaker_open",
            Self::Stalled => "stalled",
            Self::Unresolvable => "unresolvable",
            Self::Credential => "credential",
        }
    }

    /// What it means, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Healthy => "serves",
            Self::Disabled => "enabled: false in the configuration",
            Self::Drained => "drained by the operator",
            Self::Cooling => "answered 429, or sent retry-after",
            Self::Permission => {
                "its credential may not do an operation (403); check the role that it has on the resource"
            }
            Self::Absent => {
                "the resource does not have a deployment; check its name, or wait if it was created a few minutes ago"
            }
            Self::Failing => "fails most of what it is asked",
            Self::BreakerOpen => "failed too often",
            Self::Stalled => "does not answer any more, not even a free question",
            Self::Unresolvable => "its name does not resolve",
            Self::Credential => {
                "rejects its credential or our network (401, 403); check its key or role, and the network rules of the resource"
            }
        }
    }

    /// Whether the operator wants it so, which is no trouble.
    pub fn is_intended(self) -> bool {
        matches!(self, Self::Healthy | Self::Disabled | Self::Drained)
    }
}

impl From<UnavailableReason> for BackendState {
    fn from(reason: UnavailableReason) -> Self {
        match reason {
            UnavailableReason::CoolingDown => Self::Cooling,
            UnavailableReason::DeploymentNotFound => Self::Absent,
            UnavailableReason::NoUsableCredential => Self::Credential,
            UnavailableReason::PermissionDenied => Self::Permission,
            UnavailableReason::BreakerOpen => Self::BreakerOpen,
            UnavailableReason::Stalled => Self::Stalled,
            UnavailableReason::Drained => Self::Drained,
        }
    }
}

/// A state and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendCondition {
    /// The state.
    pub state: BackendState,
    /// When it began; `None` if it is healthy, or that is not known.
    pub since: Option<Instant>,
    /// When the next request may use it; `None` if no time is known.
    pub until: Option<Instant>,
}

impl BackendCondition {
    /// Of what serves.
    pub const HEALTHY: Self = Self { state: BackendState::Healthy, since: None, until: None };

    /// The condition of something in an outage. A drain, and the lack of a secret, have no known end.
    pub fn from_outage(outage: Option<Outage>, now: Instant) -> Self {
        let Some(Outage { unavailable, since }) = outage else { return Self::HEALTHY };
        let has_end = unavailable.reason != UnavailableReason::Drained && unavailable.until > now;
        Self {
            state: unavailable.reason.into(),
            since: Some(since),
            until: has_end.then_some(unavailable.until),
        }
    }
}

/// What the state of a backend is derived from.
#[derive(Clone, Debug, Default)]
pub struct BackendFacts {
    /// The outage of the whole backend.
    pub outage: Option<Outage>,
    /// Since when its name has not resolved, if it has no address.
    pub unresolvable_since: Option<Instant>,
    /// Since when it fails most of what it is asked.
    pub failing_since: Option<Instant>,
    /// The outage of each of its deployments; `None` for one that is available.
    pub deployments: Vec<Option<Outage>>,
    /// The outages of operations.
    pub operations: Vec<Outage>,
}

impl BackendFacts {
    /// The condition of the backend now. What its deployments lack is its own condition if no deployment can be
    /// used, or if only the operator can repair it.
    pub fn condition(&self, now: Instant) -> BackendCondition {
        let since = |state, since: Option<Instant>| {
            since.map(|since| BackendCondition { state, since: Some(since), until: None })
        };
        let whole = BackendCondition::from_outage(self.outage, now);
        if matches!(whole.state, BackendState::Drained | BackendState::Credential) {
            return whole;
        }
        let of_parts = || {
            let all_are_out = self.deployments.iter().all(Option::is_some);
            let deployments = self.deployments.iter().flatten();
            let outages = deployments
                .filter(|outage| all_are_out || outage.unavailable.reason.is_misconfiguration())
                .chain(&self.operations);
            outages
                .map(|outage| BackendCondition::from_outage(Some(*outage), now))
                .max_by_key(|condition| condition.state)
        };
        since(BackendState::Unresolvable, self.unresolvable_since)
            .or((whole.state != BackendState::Healthy).then_some(whole))
            .or(since(BackendState::Failing, self.failing_since))
            .or_else(of_parts)
            .unwrap_or(BackendCondition::HEALTHY)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routing::health::availability::Unavailable;

    #[test]
    fn all_states_are_listed_from_good_to_bad() {
        assert!(BackendState::ALL.is_sorted_by(|a, b| a < b));
        assert_eq!(BackendState::ALL.last().map(|last| *last as usize), Some(BackendState::ALL.len() - 1));
    }

    #[test]
    fn the_state_says_what_an_operator_has_to_know_first() {
        use UnavailableReason::{
            BreakerOpen, CoolingDown, DeploymentNotFound, Drained, NoUsableCredential, PermissionDenied,
            Stalled,
        };
        let now = Instant::now();
        let outage = |reason| Outage {
            unavailable: Unavailable { reason, until: now + Duration::from_secs(9) },
            since: now,
        };
        let facts = |whole: Option<UnavailableReason>,
                     is_unresolvable: bool,
                     is_failing: bool,
                     deployments: &[Option<UnavailableReason>],
                     operations: &[UnavailableReason]| BackendFacts {
            outage: whole.map(outage),
            unresolvable_since: is_unresolvable.then_some(now),
            failing_since: is_failing.then_some(now),
            deployments: deployments.iter().map(|reason| reason.map(outage)).collect(),
            operations: operations.iter().copied().map(outage).collect(),
        };
        let (cooling, absent) = (Some(CoolingDown), Some(DeploymentNotFound));
        let table = [
            (facts(None, false, false, &[], &[]), "healthy"),
            (facts(None, false, false, &[cooling, None], &[]), "healthy"),
            (facts(None, false, false, &[cooling, cooling], &[]), "cooling"),
            (facts(None, false, false, &[absent, None], &[]), "absent"),
            (facts(None, false, false, &[None], &[PermissionDenied]), "permission"),
            (facts(None, false, false, &[cooling, absent], &[PermissionDenied]), "absent"),
            (facts(None, false, true, &[cooling], &[]), "failing"),
            (facts(Some(BreakerOpen), false, true, &[], &[]), "breaker_open"),
            (facts(Some(Stalled), false, true, &[], &[]), "stalled"),
            (facts(Some(BreakerOpen), true, true, &[], &[]), "unresolvable"),
            (facts(Some(NoUsableCredential), false, true, &[], &[]), "credential"),
            (facts(Some(Drained), true, true, &[absent], &[]), "drained"),
        ];
        for (facts, expected) in table {
            assert_eq!(facts.condition(now).state.as_str(), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_condition_has_an_end_only_if_one_is_known() {
        let now = Instant::now();
        let until = now + Duration::from_secs(9);
        let table = [
            (UnavailableReason::CoolingDown, until, Some(until)),
            (UnavailableReason::BreakerOpen, now, None),
            (UnavailableReason::Drained, until, None),
        ];
        for (reason, until, expected) in table {
            let outage = Outage { unavailable: Unavailable { reason, until }, since: now };
            let condition = BackendCondition::from_outage(Some(outage), now);
            assert_eq!((condition.since, condition.until), (Some(now), expected), "{reason:?}");
        }
    }
}
