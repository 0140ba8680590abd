//! `clients` and `entra`: who may call.

use std::time::Duration;

use super::record::RecordedContent;
use crate::config::values::Endpoint;
use crate::names::{CertificateSubject, ClientName, DeploymentName};

/// Who may call.
#[derive(Clone, Debug)]
pub enum ClientsConfig {
    /// Anyone who can connect.
    Anyone,
    /// These, each with keys of its own; at least one.
    Listed(Vec<ClientConfig>),
}

/// One caller.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Unique in the file.
    pub name: ClientName,
    /// SHA-256 of each key; no hash belongs to two clients. It has one of these, or one of the
    /// following three.
    pub key_hashes: Vec<[u8; 32]>,
    /// Ids of applications whose tokens it shows; none belongs to two clients.
    pub app_ids: Vec<String>,
    /// App roles of the tokens that it shows; none belongs to two clients.
    pub app_roles: Vec<String>,
    /// Subjects of its certificates; none belongs to two clients.
    pub certificate_subjects: Vec<CertificateSubject>,
    /// What it may ask for; `None`: everything. Never empty.
    pub allowed_deployments: Option<Vec<DeploymentName>>,
    /// Whether it may use files, batches, stored responses and the like.
    pub allows_stateful_calls: bool,
    /// What is kept of its content, where that differs from [`Record::content`].
    pub recorded_content: Option<RecordedContent>,
}

/// The tokens of Entra ID that clients may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTokenConfig {
    /// Where its signing keys are published.
    pub authority_host: Endpoint,
    /// The directory's id.
    pub tenant_id: String,
    /// Whom its tokens have to be for: one of these; at least one.
    pub audiences: Vec<String>,
    /// Whose they have to be: one of these; at least one.
    pub issuers: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}
