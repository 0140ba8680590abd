//! `clients` and `entra`: who may send requests, and how a client proves who it is.

use std::sync::Arc;
use std::time::Duration;

use super::limits::{ClientLimits, RequestClass};
use super::record::RecordedContent;
use crate::config::values::Endpoint;
use crate::names::{CertificateSubject, ClientName, DeploymentName};

/// Who may send requests.
#[derive(Clone, Debug)]
pub enum ClientsConfig {
    /// `clients: open`: anyone who can connect, without a credential.
    Anyone,
    /// Only these; at least one.
    Listed(Vec<ClientConfig>),
}

/// One client. It has at least one key hash, app id, app role or certificate subject, and shares none
/// of them with another client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Unique in the file.
    pub name: ClientName,
    /// The SHA-256 of each of its keys.
    pub key_hashes: Vec<[u8; 32]>,
    /// Application (client) ids in its Entra ID tokens, in lower case.
    pub token_app_ids: Vec<String>,
    /// App roles in its Entra ID tokens.
    pub token_app_roles: Vec<String>,
    /// Subjects of its client certificates.
    pub certificate_subjects: Vec<CertificateSubject>,
    /// The deployments that it may use; `None` allows all. Never empty.
    pub allowed_deployments: Option<Vec<DeploymentName>>,
    /// Whether it may make calls about stored state: files, batches, stored responses and the like.
    pub allows_stateful_calls: bool,
    /// How much of its prompts and completions is recorded, if other than
    /// [`RecordConfig::recorded_content`](super::RecordConfig::recorded_content).
    pub recorded_content_override: Option<RecordedContent>,
    /// How urgent its requests are.
    pub class: RequestClass,
    /// Its own limits; `None` if [`LimitsConfig::default`](super::LimitsConfig::default) applies.
    pub limits: Option<Arc<ClientLimits>>,
}

/// Which Entra ID tokens are accepted from clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTokenConfig {
    /// The host that publishes the tenant's signing keys.
    pub authority_host: Endpoint,
    /// The id of the tenant (directory).
    pub tenant_id: String,
    /// A token's `aud` claim must be one of these; at least one.
    pub audiences: Vec<String>,
    /// A token's `iss` claim must be one of these; at least one.
    pub issuers: Vec<String>,
    /// The clock difference that is tolerated when a token's lifetime is checked.
    pub leeway: Duration,
}
