//! What can be unavailable on several instances at once.

use std::sync::Arc;

use super::targets::Target;
use crate::azure::Operation;
use crate::routing::health::availability::{AvailabilityCell, UnavailableReason};

/// A part of a backend whose unavailability, or whose probes, instances share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SharedPart {
    /// Its credential.
    Credential,
    /// A deployment, by the resource's name for it in lower case; empty for calls that name none.
    Deployment(String),
    /// The flex requests of a deployment, by the same name. Another kind than the deployment itself: an instance that
    /// does not know it must not take it for that.
    FlexRequests(String),
    /// An operation, which the credential may not do.
    Operation(Operation),
    /// Its circuit breaker. Each instance opens its own; only probes are shared.
    Breaker,
}

impl SharedPart {
    /// Its kind in messages and keys.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Deployment(_) => "deployment",
            Self::FlexRequests(_) => "flex_requests",
            Self::Operation(_) => "operation",
            Self::Breaker => "breaker",
        }
    }

    /// Its name among those of its kind; empty if there is one only.
    pub fn name(&self) -> &str {
        match self {
            Self::Credential | Self::Breaker => "",
            Self::Deployment(name) | Self::FlexRequests(name) => name,
            Self::Operation(operation) => operation.name(),
        }
    }

    /// The part of this kind and name.
    pub(super) fn parse(kind: &str, name: &str) -> Option<Self> {
        let operation = || Operation::ALL.into_iter().find(|operation| operation.name() == name);
        match kind {
            "credential" => Some(Self::Credential),
            "deployment" => Some(Self::Deployment(name.to_owned())),
            "flex_requests" => Some(Self::FlexRequests(name.to_owned())),
            "operation" => operation().map(Self::Operation),
            "breaker" => Some(Self::Breaker),
            _ => None,
        }
    }

    /// Whether this part can be unavailable for this reason.
    pub(super) fn has_reason(&self, reason: UnavailableReason) -> bool {
        matches!(
            (self, reason),
            (Self::Credential, UnavailableReason::NoUsableCredential)
                | (
                    Self::Deployment(_),
                    UnavailableReason::CoolingDown | UnavailableReason::DeploymentNotFound
                )
                | (Self::FlexRequests(_), UnavailableReason::CoolingDown)
                | (Self::Operation(_), UnavailableReason::PermissionDenied)
                | (Self::Breaker, UnavailableReason::BreakerOpen)
        )
    }

    /// Whether one instance that finds it unavailable makes it so on all.
    pub(super) fn is_announced(&self) -> bool {
        *self != Self::Breaker
    }

    /// Its state on this instance; `None` for a deployment that this instance does not know.
    pub(super) fn cell(&self, target: &Target) -> Option<Arc<AvailabilityCell>> {
        let health = &target.health;
        Some(match self {
            Self::Credential => Arc::clone(health.refresh_credential_availability(&target.credential)),
            Self::Deployment(name) => Arc::clone(&health.find_deployment(name)?.availability),
            Self::FlexRequests(name) => {
                Arc::clone(health.find_deployment(name)?.get_or_create_flex_availability())
            }
            Self::Operation(operation) => Arc::clone(health.operation_availability(*operation)),
            Self::Breaker => Arc::clone(&health.breaker.availability),
        })
    }
}
