//! `backends`: the routable entries.

use std::path::PathBuf;
use std::time::Duration;

use super::credentials::CredentialConfig;
use crate::config::values::{CertifiedKeyFiles, DeploymentMap, Endpoint};
use crate::names::{BackendName, Tier, Weight};

/// One routable entry: an endpoint with its credential, tier and weight.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Unique in the file.
    pub name: BackendName,
    /// The Azure resource host; several backends may share one.
    pub endpoint: Endpoint,
    /// Its place in the order of trying.
    pub tier: Tier,
    /// Its share of the tier.
    pub weight: Weight,
    /// What it is called with.
    pub credential: CredentialConfig,
    /// What it serves, under which names.
    pub deployments: DeploymentMap,
    /// Replaces the client's `api-version` on the classic path.
    pub api_version_override: Option<String>,
    /// How its certificate is checked; empty for an `http` endpoint.
    pub tls: BackendTlsConfig,
    /// Whether it is offered HTTP/2; never for an `http` endpoint.
    pub http2_enabled: bool,
    /// How long it may be without traffic before it is asked whether it is well; `None`: for
    /// ever.
    pub health_probe_interval: Option<Duration>,
}

/// What differs from the usual check of a backend's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTlsConfig {
    /// A PEM file of authorities to trust in place of the system's; was readable at the check.
    pub ca_file: Option<PathBuf>,
    /// The name for SNI, for the check of the certificate and for `Host`, in place of the
    /// endpoint's host.
    pub server_name: Option<String>,
    /// The certificate that the balancer shows.
    pub client_certificate: Option<CertifiedKeyFiles>,
}
