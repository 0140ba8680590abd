//! `backends`: the entries that requests can be routed to.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::credentials::CredentialConfig;
use crate::config::values::{CertifiedKeyFiles, DeploymentMap, Endpoint};
use crate::money::Amount;
use crate::names::{BackendName, ResourceName, Tier, Weight};

/// One routable entry: an endpoint with its credential, tier and weight.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Unique in the file.
    pub name: BackendName,
    /// The host of the Azure resource; several backends may share one.
    pub endpoint: Endpoint,
    /// The Azure resource; several backends may share one.
    pub resource: ResourceName,
    /// Lower tiers are tried first.
    pub tier: Tier,
    /// Its share of the requests of its tier.
    pub weight: Weight,
    /// How the balancer authenticates to it.
    pub credential: CredentialConfig,
    /// The deployments that it serves, and their names on this resource.
    pub deployments: DeploymentMap,
    /// Replaces the client's `api-version` on classic paths.
    pub api_version_override: Option<String>,
    /// TLS settings; the default for an `http` endpoint.
    pub tls: BackendTlsConfig,
    /// Whether HTTP/2 is offered to it; never for an `http` endpoint.
    pub http2_enabled: bool,
    /// A health probe is sent after this long without traffic; `None` for never. At least 1 s.
    pub health_probe_after_idle: Option<Duration>,
    /// Its deployments have provisioned throughput, which is paid for by the hour; `None` if they have not.
    pub provisioned: Option<ProvisionedThroughput>,
}

/// Provisioned throughput, as far as the file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvisionedThroughput {
    /// The number of provisioned throughput units (PTU).
    pub units: Option<NonZeroU32>,
    /// What all of them cost in an hour, in the currency of the prices.
    pub cost_per_hour: Option<Amount>,
}

/// A backend with `enabled: false`. It takes part in nothing, and no secret or file of it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisabledBackend {
    /// Its index among all backends of the file.
    pub position: usize,
    /// Unique in the file.
    pub name: BackendName,
    /// The host of the Azure resource.
    pub endpoint: Endpoint,
    /// The Azure resource.
    pub resource: ResourceName,
    /// Its tier if it were enabled.
    pub tier: Tier,
    /// Its weight if it were enabled.
    pub weight: Weight,
    /// The deployments that it would serve.
    pub deployments: DeploymentMap,
}

/// TLS settings of a backend, where they differ from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTlsConfig {
    /// A PEM file of certificate authorities to trust in place of the system's. It was readable when the
    /// configuration was checked.
    pub ca_file: Option<PathBuf>,
    /// The name for SNI, certificate verification and the `Host` header, in place of the endpoint's
    /// host.
    pub server_name_override: Option<String>,
    /// The client certificate that the balancer presents.
    pub client_certificate: Option<CertifiedKeyFiles>,
}
