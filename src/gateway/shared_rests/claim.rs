//! Which instance probes, of the ones that find something unavailable. Decisions only: the commands are in `store.rs`.

use std::time::{Duration, Instant};

use crate::routing::health::availability::{OutageView, UnavailableReason};

/// So long before the time of an outage is over, its probe is claimed: no request waits for the answer.
pub(super) const CLAIM_LEAD: Duration = Duration::from_millis(100);
/// An instance claims a probe only if one of its requests would have used the backend within this time. It may wait for
/// the end of a long cooldown.
const WANTED_WITHIN: Duration = Duration::from_secs(120);
/// An instance keeps its claim for longer only if a request would have used the backend within this time.
const STILL_WANTED_WITHIN: Duration = Duration::from_secs(1);
/// An instance that has claimed a probe and has no request to probe with for so long leaves it to the others.
const GIVE_UP_AFTER: Duration = Duration::from_millis(150);
/// How long after the end of a cooldown the others wait for an instance that says nothing.
const COOLDOWN_HOLD: Duration = Duration::from_secs(1);
/// The same after other outages, whose probes end with an answer.
const OTHER_HOLD: Duration = Duration::from_secs(3);
/// While it probes, an instance says so this often.
const RENEW_INTERVAL: Duration = Duration::from_millis(400);
/// A claim that did not succeed or fail is made again after this time.
pub(super) const CLAIM_TIMEOUT: Duration = Duration::from_millis(100);
/// Others begin to claim a probe when its claim has run out; they do not probe before they know who has got it.
const CLAIM_MARGIN: Duration = Duration::from_millis(60);

/// Who may probe something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody has claimed it, as far as is known.
    #[default]
    None,
    /// This instance has asked for it.
    Asked,
    /// This instance has got it.
    Own { until: Instant, renew_at: Instant },
    /// Another instance has it; its id, if that is known.
    Other { id: Option<String>, until: Instant },
    /// It could not be claimed: this instance probes as if it were alone.
    Failed { retry_at: Instant },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimStep {
    Nothing,
    /// Claim it for so long.
    Claim(Duration),
    /// Keep the claim for so long from now.
    Renew(Duration),
    /// Leave it to the others.
    GiveUp,
}

/// How long after the time of an outage its probe may take without a word.
pub(super) fn hold_after(reason: UnavailableReason) -> Duration {
    if reason == UnavailableReason::CoolingDown { COOLDOWN_HOLD } else { OTHER_HOLD }
}

/// Until when requests are kept from probing while another instance has a claim until this moment.
pub(super) fn hold_end(until: Instant) -> Instant {
    until + CLAIM_MARGIN
}

impl Claim {
    /// What to do about an outage now. `wanted_at` is when a request of this instance would last have used what is
    /// unavailable.
    pub(super) fn next_step(
        &mut self,
        view: &OutageView,
        wanted_at: Option<Instant>,
        now: Instant,
    ) -> ClaimStep {
        let is_wanted_within =
            |time: Duration| view.is_probing || wanted_at.is_some_and(|at| now < at + time);
        let until = view.unavailable.until;
        let remaining = until.saturating_duration_since(now);
        let hold = remaining + hold_after(view.unavailable.reason);
        match self {
            Self::Asked => return ClaimStep::Nothing,
            Self::Own { until: claimed_until, renew_at } if now < *claimed_until => {
                let has_come = wanted_at.is_some_and(|at| at >= until);
                if !view.is_probing && !has_come && now >= until + GIVE_UP_AFTER {
                    // A request that comes after all may probe.
                    *self = Self::Failed { retry_at: now + hold };
                    return ClaimStep::GiveUp;
                }
                if now < *renew_at || !is_wanted_within(STILL_WANTED_WITHIN) {
                    return ClaimStep::Nothing;
                }
                (*claimed_until, *renew_at) = (now + hold, now + RENEW_INTERVAL);
                return ClaimStep::Renew(hold);
            }
            Self::Other { until, .. } if now < *until => return ClaimStep::Nothing,
            Self::Failed { retry_at } if now < *retry_at => return ClaimStep::Nothing,
            Self::None | Self::Own { .. } | Self::Other { .. } | Self::Failed { .. } => *self = Self::None,
        }
        if !is_wanted_within(WANTED_WITHIN) || remaining > CLAIM_LEAD {
            return ClaimStep::Nothing;
        }
        *self = Self::Asked;
        ClaimStep::Claim(hold)
    }

    /// This instance has got the claim for so long.
    pub(super) fn on_won(&mut self, hold: Duration, now: Instant) {
        *self = Self::Own { until: now + hold, renew_at: now + RENEW_INTERVAL };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::health::availability::Unavailable;

    const MS: Duration = Duration::from_millis(1);

    fn view(until: Instant, is_probing: bool) -> OutageView {
        let unavailable = Unavailable { reason: UnavailableReason::CoolingDown, until };
        OutageView { unavailable, is_probing, wanted_at: None }
    }

    #[test]
    fn a_probe_is_claimed_shortly_before_it_is_due_if_a_request_wants_it() {
        let now = Instant::now();
        let until = now + 130_000 * MS;
        let mut claim = Claim::default();
        let mut step = |at: u32, wanted: Option<u32>| {
            claim.next_step(&view(until, false), wanted.map(|at| now + at * MS), now + at * MS)
        };
        assert_eq!(step(129_899, Some(129_899)), ClaimStep::Nothing, "too early");
        assert_eq!(step(129_950, Some(9_950)), ClaimStep::Nothing, "not wanted any more");
        assert_eq!(step(129_950, None), ClaimStep::Nothing);
        assert_eq!(step(129_950, Some(9_951)), ClaimStep::Claim(1050 * MS));
        assert_eq!(step(129_951, Some(129_951)), ClaimStep::Nothing, "it is asked already");
    }

    #[test]
    fn a_request_that_probes_without_a_claim_claims_it() {
        let now = Instant::now();
        let mut claim = Claim::default();
        assert_eq!(claim.next_step(&view(now, true), None, now + 10 * MS), ClaimStep::Claim(1000 * MS));
    }

    #[test]
    fn a_claim_is_kept_while_it_is_used_and_then_runs_out() {
        let now = Instant::now();
        let mut claim = Claim::default();
        claim.on_won(1000 * MS, now);
        let step = |claim: &mut Claim, is_probing, wanted: u32, at: u32| {
            claim.next_step(&view(now, is_probing), Some(now + wanted * MS), now + at * MS)
        };
        assert_eq!(step(&mut claim, true, 0, 399), ClaimStep::Nothing);
        assert_eq!(step(&mut claim, true, 0, 400), ClaimStep::Renew(1000 * MS));
        assert_eq!(step(&mut claim, false, 100, 1099), ClaimStep::Renew(1000 * MS));
        assert_eq!(step(&mut claim, false, 100, 2098), ClaimStep::Nothing);
        assert!(matches!(claim, Claim::Own { .. }));
        assert_eq!(step(&mut claim, false, 100, 2099), ClaimStep::Claim(1000 * MS), "as any other may");
    }

    #[test]
    fn a_claim_without_a_request_is_given_up() {
        let (now, until) = (Instant::now(), Instant::now() + 100 * MS);
        let mut claim = Claim::default();
        claim.on_won(1100 * MS, now);
        let mut step = |at: u32| claim.next_step(&view(until, false), Some(now), now + at * MS);
        assert_eq!(step(249), ClaimStep::Nothing);
        assert_eq!(step(260), ClaimStep::GiveUp);
        assert_eq!(step(1259), ClaimStep::Nothing, "others may have it");
        assert_eq!(step(1260), ClaimStep::Claim(1000 * MS));
    }

    #[test]
    fn a_probe_of_another_instance_is_claimed_when_its_time_is_over() {
        let now = Instant::now();
        let mut claim = Claim::Other { id: None, until: now + 1000 * MS };
        let wanted = Some(now + 900 * MS);
        assert_eq!(claim.next_step(&view(now, false), wanted, now + 999 * MS), ClaimStep::Nothing);
        assert_eq!(claim.next_step(&view(now, false), wanted, now + 1000 * MS), ClaimStep::Claim(1000 * MS));
        let mut failed = Claim::Failed { retry_at: now + 100 * MS };
        assert_eq!(failed.next_step(&view(now, true), None, now + 99 * MS), ClaimStep::Nothing);
        assert_eq!(failed.next_step(&view(now, true), None, now + 100 * MS), ClaimStep::Claim(1000 * MS));
    }
}
