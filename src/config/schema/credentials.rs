//! What the balancer shows to other services to be let in, as the file says it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::values::{CertifiedKeyFiles, Endpoint, Secret};

/// The domains of vaults in Azure's clouds.
/// <https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates>
const AZURE_VAULT_DOMAINS: [&str; 3] = ["vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net"];

/// What a backend is called with.
#[derive(Clone, Debug)]
pub enum CredentialConfig {
    /// An Azure resource key, sent as `api-key`.
    ApiKey(SecretSource),
    /// A token of Entra ID, sent as `Authorization: Bearer`.
    Entra(EntraCredential),
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In the file, the environment or a file of its own. A legal header value.
    Literal(Secret),
    /// In a vault, from where it is read again and again.
    KeyVault(VaultSecretRef),
}

/// A secret in Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSecretRef {
    /// The vault.
    pub vault: Endpoint,
    /// The secret's name.
    pub name: String,
    /// One version of it; `None`: the newest.
    pub version: Option<String>,
}

impl VaultSecretRef {
    /// The domain of Azure's vaults that this one is in, if it is in one. What a token is for
    /// follows from it.
    pub fn azure_vault_domain(&self) -> Option<&'static str> {
        let is_of =
            |domain: &&str| self.vault.host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        AZURE_VAULT_DOMAINS.into_iter().find(is_of)
    }
}

impl fmt::Display for VaultSecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/secrets/{}", self.vault.authority(), self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "/{version}"))
    }
}

/// How secrets that are in a vault are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVaultConfig {
    /// As whom.
    pub identity: EntraIdentity,
    /// What the token is for, where that does not follow from the vault's host.
    pub token_scope: Option<String>,
    /// How often; at least a second.
    pub refresh_interval: Duration,
}

/// A token of Entra ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntraCredential {
    /// Whose.
    pub identity: EntraIdentity,
    /// What for.
    pub token_scope: String,
}

/// Who the balancer is to Entra ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntraIdentity {
    /// An identity of this machine, from the metadata service of its VM.
    VirtualMachine {
        /// The metadata service.
        metadata_service: Endpoint,
        /// Which of the machine's.
        selector: ManagedIdentitySelector,
    },
    /// An identity of App Service, Functions or Container Apps.
    AppService {
        /// The platform's endpoint.
        endpoint: Endpoint,
        /// Its path.
        path: String,
        /// What it has to be shown.
        identity_header: Secret,
        /// Which of the app's.
        selector: ManagedIdentitySelector,
    },
    /// An application that is registered.
    AppRegistration(AppRegistration),
}

/// Which managed identity, where there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedIdentitySelector {
    /// The system's own.
    SystemAssigned,
    /// The one with this client id.
    ClientId(String),
    /// The one with this object (principal) id.
    ObjectId(String),
    /// The one with this resource id.
    ResourceId(String),
}

/// A registered application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRegistration {
    /// Where tokens come from.
    pub authority_host: Endpoint,
    /// The directory's id or name.
    pub tenant_id: String,
    /// The application's id.
    pub client_id: String,
    /// What proves that it is the one.
    pub credential: AppCredential,
}

/// What proves who an application is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppCredential {
    /// A secret.
    ClientSecret(SecretSource),
    /// A certificate, read again for each token.
    ClientCertificate(CertifiedKeyFiles),
    /// A file that somebody else keeps filled with a token of theirs: workload identity.
    FederatedTokenFile(PathBuf),
}
