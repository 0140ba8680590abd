//! What the balancer shows to other services, and who it is to them.
//!
//! Tokens and secrets are one thing here: a value that the background keeps fresh ([`Kept`]) and
//! that is read without waiting. The keyring has each of them once.
//!
//! Microsoft's crates for Rust are not used: without their second TLS stack they bring no
//! transport, with it 80 crates, and what remains of them are the few calls below.

mod application;
pub mod jwt;
mod key_vault;
mod managed_identity;
mod refreshed;
pub mod signing_keys;
mod token_response;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::application::Assertion;
use self::refreshed::Fetch;
use self::signing_keys::Signers;
use crate::config::{self, ClientTokens, Entra, Identity, Proof, SecretSource, VaultSecret};
use crate::outbound::Outbound;

pub use self::refreshed::{NoValue, State, Value};

/// The most that a call for a token or a secret may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a backend is called with.
#[derive(Clone, Debug)]
pub struct Credential {
    name: HeaderName,
    kept: Kept,
}

impl Credential {
    /// A key that does not change.
    #[cfg(test)]
    pub(crate) fn for_test(key: &str) -> Self {
        let state = Arc::new(State::fixed(&config::Secret::new(key), 1));
        let kept = Kept(Arc::new(Keeping { state, task: None }));
        Self { name: HeaderName::from_static("api-key"), kept }
    }

    /// The same for one that somebody renews, by [`State::renew_for_test`].
    #[cfg(test)]
    pub(crate) fn renewable_for_test(key: &str) -> Self {
        let state = Arc::new(State::new("a key".to_owned(), Arc::default()));
        state.renew_for_test(key);
        Self { name: HeaderName::from_static("api-key"), kept: Kept(Arc::new(Keeping { state, task: None })) }
    }

    /// The header to send, and the value to say so about if it is refused; `None` while there is
    /// none yet.
    pub fn present(&self) -> Option<(HeaderName, Arc<Value>)> {
        Some((self.name.clone(), self.kept.now()?))
    }

    /// Waits until there is a new one or will not be, but not longer.
    pub async fn renewal(&self, patience: Duration) {
        let _ = timeout(patience, self.kept.settled()).await;
    }

    /// The value behind it.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }
}

/// A secret or a token: the one at hand, and the background task that keeps it fresh for as long
/// as somebody holds it.
#[derive(Clone, Debug)]
pub struct Kept(Arc<Keeping>);

#[derive(Debug)]
struct Keeping {
    state: Arc<State>,
    /// None for what is written in the file.
    task: Option<AbortHandle>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl std::ops::Deref for Kept {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0.state
    }
}

/// What a kept value is of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// And how the secret is read that it may take.
    Token(Entra, config::KeyVault),
    /// And how it is read.
    Secret(VaultSecret, config::KeyVault),
}

/// Every secret and token of the process, each once, whoever uses it.
pub struct Keyring {
    runtime: Handle,
    outbound: Arc<Outbound>,
    known: Mutex<Vec<(Source, Weak<Keeping>)>>,
    signers: Mutex<Vec<(ClientTokens, Weak<Signers>)>>,
    numbers: Arc<AtomicU64>,
    /// Nothing is fetched.
    is_offline: bool,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

impl Keyring {
    /// An empty keyring, whose background work is done on `runtime`.
    pub fn new(runtime: &Handle) -> Self {
        Self {
            runtime: runtime.clone(),
            outbound: Arc::new(Outbound::new(PATIENCE)),
            known: Mutex::default(),
            signers: Mutex::default(),
            numbers: Arc::new(AtomicU64::new(0)),
            is_offline: false,
        }
    }

    /// A keyring for those who only want to know what would be done: it fetches nothing, and has
    /// something in place of every secret.
    pub fn offline(runtime: &Handle) -> Self {
        Self { is_offline: true, ..Self::new(runtime) }
    }

    /// What a backend of the configuration is called with.
    pub fn credential(&self, credential: &config::Credential, vaults: &config::KeyVault) -> Credential {
        match credential {
            config::Credential::ApiKey(source) => {
                Credential { name: HeaderName::from_static("api-key"), kept: self.secret(source, vaults) }
            }
            config::Credential::Entra(entra) => {
                Credential { name: AUTHORIZATION, kept: self.token(entra, vaults) }
            }
        }
    }

    /// A secret of the configuration.
    pub fn secret(&self, source: &SecretSource, vaults: &config::KeyVault) -> Kept {
        match source {
            SecretSource::Written(secret) => {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
                Kept(Arc::new(Keeping { state: Arc::new(State::fixed(secret, number)), task: None }))
            }
            SecretSource::Vault(secret) => self.keep(Source::Secret(secret.clone(), vaults.clone()), || {
                let scope = vaults.scope.clone().unwrap_or_else(|| key_vault::scope(secret));
                let entra = Entra { identity: vaults.identity.clone(), scope };
                let token = self.token(&entra, vaults);
                Fetch::Secret(key_vault::Fetch::new(secret.clone(), token, vaults.refresh))
            }),
        }
    }

    /// A token of Entra ID.
    pub fn token(&self, entra: &Entra, vaults: &config::KeyVault) -> Kept {
        let scope = &entra.scope;
        self.keep(Source::Token(entra.clone(), vaults.clone()), || match &entra.identity {
            Identity::Application(application) => {
                let assertion = match &application.proof {
                    Proof::Secret(source) => Assertion::Secret(self.secret(source, vaults)),
                    Proof::Certificate(files) => Assertion::Certificate(files.clone()),
                    Proof::TokenFile(path) => Assertion::File(path.clone()),
                };
                Fetch::Token(application::Fetch::new(application, assertion, scope))
            }
            Identity::Machine { service, which } => {
                Fetch::Managed(managed_identity::Fetch::of_machine(service, which, scope))
            }
            Identity::AppService { service, path, header, which } => {
                Fetch::Managed(managed_identity::Fetch::of_app(service, path, header, which, scope))
            }
        })
    }

    /// The keys with which the tokens of clients are signed.
    pub fn signers(&self, tokens: &ClientTokens) -> Arc<Signers> {
        let mut known = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |known: &ClientTokens| (&known.authority, &known.tenant) == (&tokens.authority, &tokens.tenant);
        known.retain(|(_, signers)| signers.strong_count() > 0);
        let held = known.iter().find(|(known, _)| same(known));
        if let Some(signers) = held.and_then(|(_, signers)| signers.upgrade()) {
            return signers;
        }
        let signers = Arc::new(Signers::new(tokens, Arc::clone(&self.outbound)));
        if !self.is_offline {
            self.runtime.spawn(signing_keys::keep(Arc::downgrade(&signers)));
        }
        known.push((tokens.clone(), Arc::downgrade(&signers)));
        signers
    }

    /// The one there is of this source, or a new one.
    fn keep(&self, source: Source, fetch: impl FnOnce() -> Fetch) -> Kept {
        if let Some(kept) =
            self.held().into_iter().find_map(|(known, kept)| (known == source).then_some(kept))
        {
            return kept;
        }
        if self.is_offline {
            let state = Arc::new(State::fixed(&config::Secret::new("-"), 1));
            return Kept(Arc::new(Keeping { state, task: None }));
        }
        let fetch = fetch();
        let state = Arc::new(State::new(fetch.what(), Arc::clone(&self.numbers)));
        let keeping = refreshed::keep(Arc::clone(&state), fetch, Arc::clone(&self.outbound));
        let task = self.runtime.spawn(keeping).abort_handle();
        let keeping = Arc::new(Keeping { state, task: Some(task) });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, kept)| kept.strong_count() > 0);
        known.push((source, Arc::downgrade(&keeping)));
        Kept(keeping)
    }

    /// Everything that somebody holds.
    fn held(&self) -> Vec<(Source, Kept)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let held = known.iter().filter_map(|(source, kept)| Some((source.clone(), Kept(kept.upgrade()?))));
        held.collect()
    }

    /// Waits, but not for ever, until everything that is held has been fetched or could not be.
    pub async fn settle(&self, patience: Duration) {
        let all = async {
            for (_, kept) in self.held() {
                kept.settled().await;
            }
        };
        let _ = timeout(patience, all).await;
    }
}
