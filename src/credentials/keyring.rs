//! All secrets and tokens of the process. Backends that use the same one share it, so that it is
//! fetched only once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::credential::BackendCredential;
use super::fetchers::SecretFetcher;
use super::fetchers::application::{ApplicationProof, ApplicationTokenFetcher};
use super::fetchers::key_vault::{KeyVaultFetcher, vault_token_scope};
use super::fetchers::managed_identity::ManagedIdentityFetcher;
use super::refresh::refresh_forever;
use super::refreshed_secret::{RefreshedSecret, WeakRefreshedSecret};
use super::secret_state::SecretState;
use super::signing_keys::{self, SigningKeys};
use crate::config::{
    self, AppCredential, ClientTokenConfig, EntraCredential, EntraIdentity, SecretSource, VaultSecretRef,
};
use crate::outbound::OutboundClient;

/// Longest duration of one request for a token, a secret or signing keys.
const SECRET_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What identifies a secret that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FetchSource {
    /// A token of Entra ID. Its application may have a client secret in a key vault.
    EntraToken(EntraCredential, config::KeyVaultConfig),
    /// A secret of a key vault and how to authenticate to that vault.
    VaultSecret(VaultSecretRef, config::KeyVaultConfig),
}

/// The secrets, tokens and signing keys that are in use.
pub struct Keyring {
    runtime: Handle,
    outbound_client: Arc<OutboundClient>,
    weak_secrets_by_source: Mutex<Vec<(FetchSource, WeakRefreshedSecret)>>,
    weak_signing_keys_by_tenant: Mutex<Vec<(ClientTokenConfig, Weak<SigningKeys>)>>,
    /// Source of [`SecretValue::id`](super::SecretValue::id).
    value_id_counter: Arc<AtomicU64>,
    /// If set, nothing is fetched.
    is_offline: bool,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

impl Keyring {
    /// An empty keyring whose background tasks run on `runtime`.
    pub fn new(runtime: &Handle) -> Self {
        Self {
            runtime: runtime.clone(),
            outbound_client: Arc::new(OutboundClient::new(SECRET_REQUEST_TIMEOUT)),
            weak_secrets_by_source: Mutex::default(),
            weak_signing_keys_by_tenant: Mutex::default(),
            value_id_counter: Arc::new(AtomicU64::new(0)),
            is_offline: false,
        }
    }

    /// A keyring that fetches nothing and has a placeholder for every fetched secret, for commands that
    /// only explain the configuration.
    pub fn offline(runtime: &Handle) -> Self {
        Self { is_offline: true, ..Self::new(runtime) }
    }

    /// The credential of a backend.
    pub fn build_backend_credential(
        &self,
        credential: &config::CredentialConfig,
        key_vault: &config::KeyVaultConfig,
    ) -> BackendCredential {
        match credential {
            config::CredentialConfig::ApiKey(source) => BackendCredential::new(
                HeaderName::from_static("api-key"),
                self.find_or_start_secret(source, key_vault),
            ),
            config::CredentialConfig::Entra(entra) => {
                BackendCredential::new(AUTHORIZATION, self.find_or_start_entra_token(entra, key_vault))
            }
        }
    }

    /// A secret that is written in the configuration or kept in a key vault.
    pub fn find_or_start_secret(
        &self,
        source: &SecretSource,
        key_vault: &config::KeyVaultConfig,
    ) -> RefreshedSecret {
        match source {
            SecretSource::Literal(secret) => {
                let id = self.value_id_counter.fetch_add(1, Ordering::Relaxed) + 1;
                RefreshedSecret::fixed(secret, id)
            }
            SecretSource::KeyVault(secret) => self.find_or_start_refresh(
                FetchSource::VaultSecret(secret.clone(), key_vault.clone()),
                || {
                    let scope = key_vault.token_scope.clone().unwrap_or_else(|| vault_token_scope(secret));
                    let entra = EntraCredential { identity: key_vault.identity.clone(), token_scope: scope };
                    let token = self.find_or_start_entra_token(&entra, key_vault);
                    SecretFetcher::VaultSecret(KeyVaultFetcher::new(
                        secret.clone(),
                        token,
                        key_vault.refresh_interval,
                    ))
                },
            ),
        }
    }

    /// A token of Entra ID. `key_vault` says how to read the client secret if that is in a key vault.
    pub fn find_or_start_entra_token(
        &self,
        entra: &EntraCredential,
        key_vault: &config::KeyVaultConfig,
    ) -> RefreshedSecret {
        let scope = &entra.token_scope;
        self.find_or_start_refresh(FetchSource::EntraToken(entra.clone(), key_vault.clone()), || match &entra
            .identity
        {
            EntraIdentity::AppRegistration(application) => {
                let proof = match &application.credential {
                    AppCredential::ClientSecret(source) => {
                        ApplicationProof::ClientSecret(self.find_or_start_secret(source, key_vault))
                    }
                    AppCredential::ClientCertificate(files) => {
                        ApplicationProof::ClientCertificate(files.clone())
                    }
                    AppCredential::FederatedTokenFile(path) => {
                        ApplicationProof::FederatedTokenFile(path.clone())
                    }
                };
                SecretFetcher::ApplicationToken(ApplicationTokenFetcher::new(application, proof, scope))
            }
            EntraIdentity::VirtualMachine { metadata_service, selector } => {
                SecretFetcher::ManagedIdentityToken(ManagedIdentityFetcher::for_virtual_machine(
                    metadata_service,
                    selector,
                    scope,
                ))
            }
            EntraIdentity::AppService { endpoint, path, identity_header, selector } => {
                SecretFetcher::ManagedIdentityToken(ManagedIdentityFetcher::for_app_service(
                    endpoint,
                    path,
                    identity_header,
                    selector,
                    scope,
                ))
            }
        })
    }

    /// The keys that Entra ID signs the tokens of clients with.
    pub fn find_or_start_signing_keys(&self, tokens: &ClientTokenConfig) -> Arc<SigningKeys> {
        let mut known = self.weak_signing_keys_by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same_directory = |known: &ClientTokenConfig| {
            (&known.authority_host, &known.tenant_id) == (&tokens.authority_host, &tokens.tenant_id)
        };
        known.retain(|(_, keys)| keys.strong_count() > 0);
        let existing = known.iter().find(|(known, _)| is_same_directory(known));
        if let Some(keys) = existing.and_then(|(_, keys)| keys.upgrade()) {
            return keys;
        }
        let keys = Arc::new(SigningKeys::new(tokens, Arc::clone(&self.outbound_client)));
        if !self.is_offline {
            self.runtime.spawn(signing_keys::refresh_until_dropped(Arc::downgrade(&keys)));
        }
        known.push((tokens.clone(), Arc::downgrade(&keys)));
        keys
    }

    /// Waits until every secret in use has been fetched or has failed, but not longer than `max_wait`.
    pub async fn wait_for_pending_fetches(&self, max_wait: Duration) {
        let fetches = async {
            for (_, secret) in self.live_refreshed_secrets() {
                secret.wait_for_pending_fetch().await;
            }
        };
        let _ = timeout(max_wait, fetches).await;
    }

    /// The secret of this source: the existing one, or a new one whose refresh task is started.
    fn find_or_start_refresh(
        &self,
        source: FetchSource,
        create_fetcher: impl FnOnce() -> SecretFetcher,
    ) -> RefreshedSecret {
        let existing = self.live_refreshed_secrets().into_iter().find(|(known, _)| *known == source);
        if let Some((_, secret)) = existing {
            return secret;
        }
        if self.is_offline {
            return RefreshedSecret::fixed(&config::Secret::new("-"), 1);
        }
        let fetcher = create_fetcher();
        let state = Arc::new(SecretState::new(fetcher.description(), Arc::clone(&self.value_id_counter)));
        let refresh = refresh_forever(Arc::clone(&state), fetcher, Arc::clone(&self.outbound_client));
        let secret = RefreshedSecret::new(state, self.runtime.spawn(refresh).abort_handle());
        let mut secrets = self.weak_secrets_by_source.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.retain(|(_, secret)| !secret.is_dropped());
        secrets.push((source, secret.downgrade()));
        secret
    }

    /// The secrets that have a handle.
    fn live_refreshed_secrets(&self) -> Vec<(FetchSource, RefreshedSecret)> {
        let secrets = self.weak_secrets_by_source.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().filter_map(|(source, secret)| Some((source.clone(), secret.upgrade()?))).collect()
    }
}
