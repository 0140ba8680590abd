//! How the balancer authenticates to other services: secrets and identities of Entra ID.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::values::{CertifiedKeyFiles, Endpoint, Secret};

/// The domains of Key Vault in Azure's clouds.
/// <https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates>
const AZURE_VAULT_DOMAINS: [&str; 3] = ["vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net"];

/// The credential that a backend is called with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialConfig {
    /// A key of the Azure resource, sent in the `api-key` header.
    ApiKey(SecretSource),
    /// An Entra ID token, sent as `Authorization: Bearer`.
    Entra(EntraCredential),
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Written in the configuration, or expanded there from the environment or a file. If it is sent in
    /// a header, it is a valid header value.
    Literal(Secret),
    /// A key vault, from which it is fetched again every [`KeyVaultConfig::refresh_interval`].
    KeyVault(VaultSecretRef),
}

/// Names a secret in Azure Key Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSecretRef {
    /// The host of the vault.
    pub vault: Endpoint,
    /// The secret's name.
    pub name: String,
    /// A fixed version; `None` for the latest.
    pub version: Option<String>,
}

impl VaultSecretRef {
    /// The Key Vault domain that the vault is in, if it is in one. The scope of the token that opens the
    /// vault follows from it.
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

/// How secrets are read from key vaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVaultConfig {
    /// The identity that may read them.
    pub identity: EntraIdentity,
    /// The scope of the token; `None` for the one that belongs to the vault's domain.
    pub token_scope: Option<String>,
    /// How often each secret is fetched again; at least 1 s.
    pub refresh_interval: Duration,
}

/// An Entra ID token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntraCredential {
    /// The identity that it is issued to.
    pub identity: EntraIdentity,
    /// The scope to request, such as `https://cognitiveservices.azure.com/.default`.
    pub token_scope: String,
}

/// An identity of the balancer in Entra ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntraIdentity {
    /// A managed identity of this virtual machine, from its metadata service (IMDS).
    VirtualMachine {
        /// The metadata service.
        metadata_service: Endpoint,
        /// Which of the machine's identities.
        selector: ManagedIdentitySelector,
    },
    /// A managed identity in App Service, Functions or Container Apps.
    AppService {
        /// The host and port in the variable `IDENTITY_ENDPOINT`.
        endpoint: Endpoint,
        /// The path in that variable.
        path: String,
        /// The value of `IDENTITY_HEADER`, which each request must carry.
        identity_header: Secret,
        /// Which of the app's identities.
        selector: ManagedIdentitySelector,
    },
    /// An application that is registered in Entra ID (a service principal).
    AppRegistration(AppRegistration),
}

/// Which managed identity to use if there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedIdentitySelector {
    /// The system-assigned one.
    SystemAssigned,
    /// The one with this client id.
    ClientId(String),
    /// The one with this object (principal) id.
    ObjectId(String),
    /// The one with this resource id.
    ResourceId(String),
}

/// An application that is registered in Entra ID, with a credential of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRegistration {
    /// The Entra ID host that issues tokens, such as `login.microsoftonline.com`.
    pub authority_host: Endpoint,
    /// The id or domain name of the tenant (directory).
    pub tenant_id: String,
    /// The application (client) id.
    pub client_id: String,
    /// What the application authenticates with.
    pub credential: AppCredential,
}

/// What an application authenticates with when it requests a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppCredential {
    /// A client secret.
    ClientSecret(SecretSource),
    /// A certificate. Its files are read again for each token.
    ClientCertificate(CertifiedKeyFiles),
    /// A file with a token of another issuer, which Kubernetes keeps fresh: workload identity.
    FederatedTokenFile(PathBuf),
}
