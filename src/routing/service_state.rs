//! The state of the whole: what an operator has to know at a glance, and why.

use std::time::{Duration, Instant};

use super::health::backend_state::{BackendCondition, BackendState};

/// The state changes at most once in this time.
const MIN_CHANGE_INTERVAL: Duration = Duration::from_secs(10);
/// It gets better only after it has been better for this long.
const BETTER_AFTER: Duration = Duration::from_secs(30);
/// Of the requests of the last half minute, so many percent have to fail because of backends for the whole to be
/// failing. With fewer it is degraded.
const MIN_FAILED_PERCENTAGE: u64 = 1;

/// The state of the whole; the later of two is the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceState {
    /// All is well.
    #[default]
    Healthy,
    /// A provisioned deployment is full and others serve, which is normal.
    Spilling,
    /// Something is not healthy, and nobody is refused.
    Degraded,
    /// Clients are refused or failed because of backends.
    Failing,
}

impl ServiceState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Spilling, Self::Degraded, Self::Failing];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Spilling => "spilling",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }

    /// Whether an operator need not act.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::Spilling)
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceProblem {
    /// What it means for the whole.
    pub state: ServiceState,
    /// What it is about: a backend, a deployment, a sink, a certificate.
    pub subject: String,
    /// What is wrong, in plain words.
    pub text: String,
}

/// The state of the whole at one moment, and why.
#[derive(Clone, Debug, Default)]
pub struct ServiceReport {
    /// The state.
    pub state: ServiceState,
    /// When it began; `None` before the first look.
    pub since: Option<Instant>,
    /// What is not as it should be, the worst first.
    pub problems: Vec<ServiceProblem>,
}

/// The requests of the last half minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentRequests {
    /// Those that ended.
    pub finished: u64,
    /// Those of them that were refused or failed because of backends.
    pub failed_by_backends: u64,
}

/// The problem that requests fail because of backends. `last_cause` is why the last one did.
pub fn judge_requests(recent: RecentRequests, last_cause: Option<&str>) -> Option<ServiceProblem> {
    let RecentRequests { finished, failed_by_backends } = recent;
    if failed_by_backends == 0 {
        return None;
    }
    let is_share = failed_by_backends * 100 >= finished * MIN_FAILED_PERCENTAGE;
    let cause = last_cause.map(|cause| format!("; last: {cause}")).unwrap_or_default();
    Some(ServiceProblem {
        state: if is_share { ServiceState::Failing } else { ServiceState::Degraded },
        subject: "requests".to_owned(),
        text: format!("{failed_by_backends} of {finished} in the last 30 s were refused or failed{cause}"),
    })
}

/// The problem of a backend. `is_full` says that it is provisioned and throttled, and `is_served_elsewhere` that
/// others serve what it does.
pub fn judge_backend(
    name: &str,
    condition: BackendCondition,
    reason: Option<&str>,
    is_full: bool,
    is_served_elsewhere: bool,
) -> Option<ServiceProblem> {
    let is_cooling = condition.state == BackendState::Cooling;
    if is_full && is_served_elsewhere && (is_cooling || condition.state.is_intended()) {
        return Some(ServiceProblem {
            state: ServiceState::Spilling,
            subject: name.to_owned(),
            text: "its provisioned capacity is full, and others serve".to_owned(),
        });
    }
    if condition.state.is_intended() {
        return None;
    }
    let state = condition.state.as_str();
    Some(ServiceProblem {
        state: ServiceState::Degraded,
        subject: name.to_owned(),
        text: reason.map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}")),
    })
}

/// The problem of a pool: no backend of it can be used. `states` are those of its members.
pub fn judge_pool(name: &str, states: &[BackendState]) -> Option<ServiceProblem> {
    let is_usable = |state: &BackendState| matches!(state, BackendState::Healthy | BackendState::Failing);
    if states.is_empty() || states.iter().any(is_usable) {
        return None;
    }
    Some(ServiceProblem {
        state: ServiceState::Degraded,
        subject: name.to_owned(),
        text: "no backend of it is available".to_owned(),
    })
}

/// Follows the state of the whole, and keeps it from flickering.
#[derive(Debug)]
pub struct ServiceStateTracker {
    current: ServiceState,
    changed_at: Option<Instant>,
    /// When each state was last seen.
    last_seen: [Option<Instant>; ServiceState::ALL.len()],
    started_at: Instant,
}

/// A change of the state of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The state before.
    pub from: ServiceState,
    /// The state from now on.
    pub to: ServiceState,
    /// For how long it was in the state before.
    pub lasted: Duration,
}

impl ServiceStateTracker {
    /// The tracker of a process that starts now, and is healthy until something else is seen.
    pub fn new(now: Instant) -> Self {
        Self {
            current: ServiceState::Healthy,
            changed_at: None,
            last_seen: [None; ServiceState::ALL.len()],
            started_at: now,
        }
    }

    /// Takes the state that the problems amount to now, and returns the change that follows. Call it once a
    /// second.
    pub fn observe(&mut self, seen: ServiceState, now: Instant) -> Option<StateChange> {
        if let Some(last_seen) = self.last_seen.get_mut(seen as usize) {
            *last_seen = Some(now);
        }
        let was_seen_lately = |state: ServiceState| {
            let last_seen = self.last_seen.get(state as usize).copied().flatten();
            last_seen.is_some_and(|at| now.saturating_duration_since(at) < BETTER_AFTER)
        };
        let wanted =
            ServiceState::ALL.into_iter().rev().find(|state| was_seen_lately(*state)).unwrap_or(seen);
        let may_change = self
            .changed_at
            .is_none_or(|changed_at| now.saturating_duration_since(changed_at) >= MIN_CHANGE_INTERVAL);
        if wanted == self.current || !may_change {
            return None;
        }
        let lasted = now.saturating_duration_since(self.since());
        let from = std::mem::replace(&mut self.current, wanted);
        self.changed_at = Some(now);
        Some(StateChange { from, to: wanted, lasted })
    }

    /// The state.
    pub fn current(&self) -> ServiceState {
        self.current
    }

    /// When it began.
    pub fn since(&self) -> Instant {
        self.changed_at.unwrap_or(self.started_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_whole_is_failing_only_if_clients_are_refused_or_failed_because_of_backends() {
        let table = [
            ((0, 0), None),
            ((1000, 0), None),
            ((1, 1), Some(ServiceState::Failing)),
            ((100, 1), Some(ServiceState::Failing)),
            ((101, 1), Some(ServiceState::Degraded)),
        ];
        for ((finished, failed_by_backends), expected) in table {
            let recent = RecentRequests { finished, failed_by_backends };
            assert_eq!(judge_requests(recent, None).map(|problem| problem.state), expected, "{recent:?}");
        }
        let recent = RecentRequests { finished: 24, failed_by_backends: 3 };
        let text = judge_requests(recent, Some("a: connection refused")).unwrap().text;
        assert_eq!(text, "3 of 24 in the last 30 s were refused or failed; last: a: connection refused");
    }

    #[test]
    fn a_full_provisioned_backend_is_no_trouble_as_long_as_others_serve() {
        let condition = |state| BackendCondition { state, since: None, until: None };
        let table = [
            (BackendState::Healthy, false, true, None),
            (BackendState::Drained, false, true, None),
            (BackendState::Disabled, false, true, None),
            (BackendState::Cooling, true, true, Some(ServiceState::Spilling)),
            (BackendState::Healthy, true, true, Some(ServiceState::Spilling)),
            (BackendState::Cooling, true, false, Some(ServiceState::Degraded)),
            (BackendState::Cooling, false, true, Some(ServiceState::Degraded)),
            (BackendState::Failing, true, true, Some(ServiceState::Degraded)),
        ];
        for (state, is_full, is_served_elsewhere, expected) in table {
            let problem = judge_backend("a", condition(state), Some("why"), is_full, is_served_elsewhere);
            assert_eq!(problem.map(|problem| problem.state), expected, "{state:?} {is_full}");
        }
    }

    #[test]
    fn a_pool_without_a_backend_that_can_be_used_is_a_problem() {
        use BackendState::{BreakerOpen, Cooling, Drained, Failing, Healthy};
        let table: [(&[BackendState], bool); 5] = [
            (&[], false),
            (&[Healthy, BreakerOpen], false),
            (&[Failing], false),
            (&[Cooling, BreakerOpen], true),
            (&[Drained], true),
        ];
        for (states, expected) in table {
            assert_eq!(judge_pool("gpt-4o", states).is_some(), expected, "{states:?}");
        }
    }

    #[test]
    fn the_state_gets_worse_at_once_and_better_after_half_a_minute_and_changes_every_ten_seconds_at_most() {
        use ServiceState::{Degraded, Failing, Healthy, Spilling};
        let start = Instant::now();
        let mut tracker = ServiceStateTracker::new(start);
        let mut changes = Vec::new();
        for second in 0..200_u32 {
            let seen = match second {
                // A provisioned tier that is full every other second.
                10..60 if second % 2 == 0 => Spilling,
                60..62 => Degraded,
                64..66 => Failing,
                _ => Healthy,
            };
            if let Some(change) = tracker.observe(seen, start + second * S) {
                changes.push((second, change.to, change.lasted.as_secs()));
            }
        }
        let expected = [(10, Spilling, 10), (60, Degraded, 50), (70, Failing, 10), (95, Healthy, 25)];
        assert_eq!(changes, expected);
        assert_eq!((tracker.current(), tracker.since()), (Healthy, start + 95 * S));
    }
}
