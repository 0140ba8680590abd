//! What it means for this instance that another one has found something unavailable, or available again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

use super::message::{Event, Message};
use super::part::SharedPart;
use super::targets::Target;
use crate::credentials::{is_proof_of, prove_secret};
use crate::gateway::backend_question::{BackendQuestion, QuestionSubject};
use crate::names::DeploymentName;
use crate::routing::health::availability::{AvailabilityCell, Unavailable, UnavailableReason};
use crate::routing::health::rejection_review::MISCONFIGURATION_RECHECK_INTERVAL;

/// The status of a refused credential. A 403 is about the network of the instance that got it.
const UNAUTHORIZED: u16 = 401;

/// What has been done.
#[derive(Debug)]
pub(super) enum Applied {
    /// The cell has changed.
    Changed,
    /// This instance has to find out for itself, with this question.
    Ask(BackendQuestion),
    /// Nothing.
    Nothing,
}

/// The time that this instance's own configuration allows.
pub(super) fn allowed_time(target: &Target, reason: UnavailableReason, left: Duration) -> Duration {
    left.min(match reason {
        UnavailableReason::CoolingDown => target.max_cooldown,
        UnavailableReason::BreakerOpen => target.max_open,
        _ => MISCONFIGURATION_RECHECK_INTERVAL,
    })
}

/// The proof that this instance's current secret is meant; `None` where the secret does not matter.
pub(super) fn proof_for(target: &Target, part: &SharedPart) -> Option<String> {
    if !depends_on_secret(part) {
        return None;
    }
    let secret = target.credential.secret().current_value()?;
    prove_secret(&secret.secret, &proof_context(target))
}

fn depends_on_secret(part: &SharedPart) -> bool {
    matches!(part, SharedPart::Credential | SharedPart::Operation(_))
}

fn proof_context(target: &Target) -> String {
    format!("{} {}", target.name, target.url)
}

/// Whether the secret that another instance means is this instance's own.
fn is_own_secret(target: &Target, proof: Option<&str>) -> bool {
    let secret = target.credential.secret().current_value();
    secret
        .zip(proof)
        .is_some_and(|(secret, proof)| is_proof_of(&secret.secret, &proof_context(target), proof))
}

/// Applies a message of another instance about this part; `told_at` is when the last one of the same instance was applied
/// that told of the outage. The sender's probes are left to `worker.rs`.
pub(super) fn apply(
    target: &Arc<Target>,
    cell: &AvailabilityCell,
    message: &Message,
    told_at: Option<Instant>,
    now: Instant,
) -> Applied {
    match &message.event {
        Event::Unavailable { left, status, proof } => {
            let until = now + allowed_time(target, message.reason, *left);
            let unavailable = Unavailable { reason: message.reason, until };
            mark_unavailable(target, cell, &message.part, unavailable, *status, proof.as_deref(), now)
        }
        Event::Over { age, proof } => {
            let found_at = now.checked_sub(*age).unwrap_or(now);
            // Messages of one instance arrive in order, but may be delayed. If the first is delayed by more than the age of the
            // second, `found_at` is before the outage that it ends.
            let found_at = told_at.map_or(found_at, |told_at| told_at.max(found_at));
            if mark_over(target, cell, message, proof.as_deref(), found_at, now) {
                Applied::Changed
            } else {
                Applied::Nothing
            }
        }
        Event::Probing { .. } => Applied::Nothing,
    }
}

fn mark_unavailable(
    target: &Target,
    cell: &AvailabilityCell,
    part: &SharedPart,
    unavailable: Unavailable,
    status: Option<u16>,
    proof: Option<&str>,
    now: Instant,
) -> Applied {
    let was_available = match part {
        // A circuit that is closed here stays closed: the other instance's network may be what fails.
        SharedPart::Breaker => {
            if !cell.is_in_outage(unavailable.reason, now) {
                return Applied::Nothing;
            }
            cell.mark_unavailable(unavailable, now)
        }
        SharedPart::Deployment(name) => {
            if unavailable.reason == UnavailableReason::CoolingDown
                && let Some(deployment) = target.health.find_deployment(name)
            {
                deployment.slow_start.on_refusal(now);
            }
            cell.mark_unavailable(unavailable, now)
        }
        SharedPart::Credential | SharedPart::Operation(_) if !is_own_secret(target, proof) => {
            return question(target, part, now);
        }
        SharedPart::Credential if status != Some(UNAUTHORIZED) => return question(target, part, now),
        SharedPart::Credential => {
            let secret = target.credential.secret();
            let secret_id = secret.current_value_id();
            // Before the backend is marked: as in `rejections.rs`.
            if target.health.try_begin_secret_renewal(secret_id, now) {
                secret.on_value_rejected(secret_id);
            }
            target.health.record_credential_rejection(&target.credential, secret_id, unavailable, now)
        }
        SharedPart::FlexRequests(_) | SharedPart::Operation(_) => cell.mark_unavailable(unavailable, now),
    };
    // Cooldowns are told in episodes by the monitor.
    if was_available && unavailable.reason.is_misconfiguration() {
        info!(
            "backend {}: {} unavailable ({}), as another instance has found",
            target.name,
            describe(part),
            unavailable.reason.as_str()
        );
    }
    Applied::Changed
}

/// Returns whether something has changed.
fn mark_over(
    target: &Target,
    cell: &AvailabilityCell,
    message: &Message,
    proof: Option<&str>,
    found_at: Instant,
    now: Instant,
) -> bool {
    let Message { part, reason, .. } = message;
    match part {
        SharedPart::Breaker => return cell.make_probe_due(*reason, found_at, now),
        SharedPart::Credential | SharedPart::Operation(_) if !is_own_secret(target, proof) => {
            // The other one has a secret that is accepted; perhaps there is a newer one.
            let secret = target.credential.secret();
            let secret_id = secret.current_value_id();
            if cell.is_in_outage(UnavailableReason::NoUsableCredential, now)
                && target.health.try_begin_secret_renewal(secret_id, now)
            {
                secret.on_value_rejected(secret_id);
            }
            return false;
        }
        _ => {}
    }
    let is_over = cell.end_outage_found_over(*reason, found_at);
    if is_over && reason.is_misconfiguration() {
        info!("backend {}: {} available again, as another instance has found", target.name, describe(part));
    }
    is_over
}

/// The question with which this instance finds out for itself, unless it has been asked a moment ago.
fn question(target: &Target, part: &SharedPart, now: Instant) -> Applied {
    let (review, subject) = match part {
        SharedPart::Credential => (&target.health.credential_review, Some(QuestionSubject::Credential)),
        SharedPart::Operation(operation) => {
            let subject = |name: DeploymentName| QuestionSubject::Operation(*operation, name);
            (target.health.operation_review(*operation), target.first_deployment.clone().map(subject))
        }
        SharedPart::Deployment(_) | SharedPart::FlexRequests(_) | SharedPart::Breaker => {
            return Applied::Nothing;
        }
    };
    match subject {
        Some(subject) if review.begin_question(now) => {
            Applied::Ask(BackendQuestion { backend: target.name.clone(), subject })
        }
        _ => Applied::Nothing,
    }
}

/// A part for a log line.
fn describe(part: &SharedPart) -> String {
    match part {
        SharedPart::Credential => "its credential is".to_owned(),
        SharedPart::Deployment(name) => format!("deployment '{name}' is"),
        SharedPart::FlexRequests(name) => format!("flex processing of deployment '{name}' is"),
        SharedPart::Operation(operation) => format!("{} is", operation.name()),
        SharedPart::Breaker => "its circuit is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;
    use crate::credentials::BackendCredential;
    use crate::names::BackendName;
    use crate::routing::health::availability::Availability;
    use crate::routing::health::backend_health::HealthRegistry;

    const S: Duration = Duration::from_secs(1);
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// A backend with this secret and the deployment `gpt-4o`.
    fn target(secret: &str, now: Instant) -> Arc<Target> {
        let name = BackendName::new("a");
        let health = HealthRegistry::new(now).get_or_create_backend(&name);
        let deployment = DeploymentName::parse("gpt-4o").unwrap();
        health.get_or_create_deployment(Some(&deployment));
        Arc::new(Target {
            name,
            url: "https://a.b".to_owned(),
            health,
            credential: Arc::new(BackendCredential::fixed_for_test(secret)),
            first_deployment: Some(deployment),
            max_cooldown: 30 * S,
            max_open: 40 * S,
        })
    }

    fn tell(
        target: &Arc<Target>,
        part: SharedPart,
        reason: UnavailableReason,
        event: Event,
        now: Instant,
    ) -> Applied {
        tell_after(target, None, part, reason, event, now)
    }

    fn tell_after(
        target: &Arc<Target>,
        told_at: Option<Instant>,
        part: SharedPart,
        reason: UnavailableReason,
        event: Event,
        now: Instant,
    ) -> Applied {
        let cell = part.cell(target).unwrap();
        let text = str::to_owned;
        let message =
            Message { from: text("1"), backend: text("a"), url: text("https://a.b"), part, reason, event };
        apply(target, &cell, &message, told_at, now)
    }

    /// For how long a part is unavailable.
    fn left(target: &Arc<Target>, part: &SharedPart, now: Instant) -> Option<Duration> {
        match part.cell(target).unwrap().availability(now) {
            Availability::Unavailable(unavailable) => Some(unavailable.until - now),
            _ => None,
        }
    }

    #[test]
    fn nothing_is_unavailable_for_longer_than_this_configuration_allows() {
        let now = Instant::now();
        let deployment = || SharedPart::Deployment("gpt-4o".to_owned());
        let operation = || SharedPart::Operation(Operation::Images);
        let flex_requests = || SharedPart::FlexRequests("gpt-4o".to_owned());
        for (part, reason, told, expected) in [
            (deployment(), UnavailableReason::CoolingDown, 5 * S, Some(5 * S)),
            (deployment(), UnavailableReason::CoolingDown, 500 * S, Some(30 * S)),
            (deployment(), UnavailableReason::DeploymentNotFound, 500 * S, Some(60 * S)),
            (SharedPart::Credential, UnavailableReason::NoUsableCredential, 500 * S, Some(60 * S)),
            (operation(), UnavailableReason::PermissionDenied, 500 * S, Some(60 * S)),
            (flex_requests(), UnavailableReason::CoolingDown, 500 * S, Some(30 * S)),
            // A circuit that is closed here stays closed.
            (SharedPart::Breaker, UnavailableReason::BreakerOpen, 5 * S, None),
        ] {
            let target = target(SECRET, now);
            let event =
                Event::Unavailable { left: told, status: Some(401), proof: proof_for(&target, &part) };
            tell(&target, part.clone(), reason, event, now);
            assert_eq!(left(&target, &part, now), expected, "{part:?} {reason:?}");
            if part == flex_requests() {
                assert_eq!(left(&target, &deployment(), now), None, "other requests go on");
            }
        }
        let target = target(SECRET, now);
        target
            .health
            .breaker
            .availability
            .mark_unavailable(Unavailable { reason: UnavailableReason::BreakerOpen, until: now + S }, now);
        let event = Event::Unavailable { left: 500 * S, status: None, proof: None };
        tell(&target, SharedPart::Breaker, UnavailableReason::BreakerOpen, event, now);
        assert_eq!(left(&target, &SharedPart::Breaker, now), Some(40 * S), "the probe of another has failed");
    }

    #[test]
    fn a_refusal_of_another_secret_or_network_leads_to_a_question_of_our_own() {
        let now = Instant::now();
        let same = target(SECRET, now);
        let other = target("another-secret-of-thirty-two-bytes", now);
        let short = target("short", now);
        for (part, reason) in [
            (SharedPart::Credential, UnavailableReason::NoUsableCredential),
            (SharedPart::Operation(Operation::Chat), UnavailableReason::PermissionDenied),
        ] {
            let proof = proof_for(&same, &part);
            assert!(proof.is_some() && proof_for(&short, &part).is_none());
            let event = |status| Event::Unavailable { left: S, status: Some(status), proof: proof.clone() };
            for target in [&other, &short] {
                let asked = tell(target, part.clone(), reason, event(401), now);
                assert!(matches!(asked, Applied::Ask(_)), "{part:?}");
                let again = tell(target, part.clone(), reason, event(401), now + S);
                assert!(matches!(again, Applied::Nothing), "a question is under way");
                assert_eq!(left(target, &part, now), None);
            }
        }
        let proof = proof_for(&same, &SharedPart::Credential);
        let event = Event::Unavailable { left: S, status: Some(403), proof };
        let reason = UnavailableReason::NoUsableCredential;
        assert!(matches!(tell(&same, SharedPart::Credential, reason, event, now), Applied::Ask(_)));
    }

    #[test]
    fn what_another_has_found_over_is_over_here_if_it_is_the_same() {
        let now = Instant::now();
        let same = target(SECRET, now);
        let part = SharedPart::Credential;
        let reason = UnavailableReason::NoUsableCredential;
        let proof = proof_for(&same, &part);
        let unavailable = Event::Unavailable { left: 9 * S, status: Some(401), proof: proof.clone() };
        tell(&same, part.clone(), reason, unavailable, now);
        let over = |proof| Event::Over { age: Duration::ZERO, proof };
        tell(&same, part.clone(), reason, over(Some("00:00".to_owned())), now + S);
        assert!(left(&same, &part, now + S).is_some(), "another secret is accepted");
        tell(&same, part.clone(), reason, over(proof), now + S);
        assert_eq!(left(&same, &part, now + S), None);

        let deployment = SharedPart::Deployment("gpt-4o".to_owned());
        let reason = UnavailableReason::CoolingDown;
        let event = Event::Unavailable { left: 9 * S, status: None, proof: None };
        tell(&same, deployment.clone(), reason, event.clone(), now);
        let old = Event::Over { age: 2 * S, proof: None };
        tell(&same, deployment.clone(), reason, old.clone(), now + S);
        assert!(left(&same, &deployment, now + S).is_some(), "it was found before the refusal");
        tell(&same, deployment.clone(), reason, over(None), now + S);
        assert_eq!(left(&same, &deployment, now + S), None);

        // What the same instance has told before this one marked it again.
        tell(&same, deployment.clone(), reason, event.clone(), now);
        tell_after(&same, Some(now - S), deployment.clone(), reason, old.clone(), now + S);
        assert!(left(&same, &deployment, now + S).is_some(), "it was found again");
        tell_after(&same, Some(now), deployment.clone(), reason, old, now + S);
        assert_eq!(left(&same, &deployment, now + S), None, "the first message was late");
    }
}
