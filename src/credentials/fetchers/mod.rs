//! The sources that secrets and tokens are fetched from: a managed identity, a registered application or
//! a key vault. `refresh.rs` decides when to fetch.

pub(super) mod application;
pub(super) mod key_vault;
pub(super) mod managed_identity;
mod token_response;

use self::application::ApplicationTokenFetcher;
use self::key_vault::KeyVaultFetcher;
use self::managed_identity::ManagedIdentityFetcher;
use super::expiry::Expiry;
use super::fetched_secret::{FetchError, FetchedSecret};
use crate::outbound::OutboundClient;

/// Fetches one secret or token.
pub(super) enum SecretFetcher {
    ApplicationToken(ApplicationTokenFetcher),
    ManagedIdentityToken(ManagedIdentityFetcher),
    VaultSecret(KeyVaultFetcher),
}

impl SecretFetcher {
    /// What is fetched, for log lines: `token of …`.
    pub(super) fn description(&self) -> String {
        match self {
            Self::ApplicationToken(fetcher) => fetcher.description(),
            Self::ManagedIdentityToken(fetcher) => fetcher.description(),
            Self::VaultSecret(fetcher) => fetcher.description(),
        }
    }

    /// When the credential ends that the secret or token is fetched with; `None`: not known.
    pub(super) async fn proof_expiry(&self) -> Option<Expiry> {
        match self {
            Self::ApplicationToken(fetcher) => fetcher.proof_expiry().await,
            Self::ManagedIdentityToken(_) => None,
            Self::VaultSecret(fetcher) => fetcher.proof_expiry(),
        }
    }

    pub(super) async fn fetch(&self, client: &OutboundClient) -> Result<FetchedSecret, FetchError> {
        match self {
            Self::ApplicationToken(fetcher) => fetcher.fetch(client).await,
            Self::ManagedIdentityToken(fetcher) => fetcher.fetch(client).await,
            Self::VaultSecret(fetcher) => fetcher.fetch(client).await,
        }
    }
}
