//! What one configuration file says, after every check.

mod backend;
mod clients;
mod credentials;
mod listener;
mod record;
mod requests;
mod retry;
mod server;

pub use backend::{BackendConfig, BackendTlsConfig};
pub use clients::{ClientConfig, ClientTokenConfig, ClientsConfig};
pub use credentials::{
    AppCredential, AppRegistration, CredentialConfig, EntraCredential, EntraIdentity, KeyVaultConfig,
    ManagedIdentitySelector, SecretSource, VaultSecretRef,
};
pub use listener::{ListenerConfig, ListenerTlsConfig, TlsVersion};
pub use record::{
    JsonlConfig, LogAnalyticsConfig, RecordConfig, RecordedContent, SpoolConfig, TokenUsageMode,
};
pub use requests::RequestsConfig;
pub use retry::{BalancePolicy, BreakerConfig, CooldownConfig, RetryConfig, StreamHoldLimits};
pub use server::{AdminAddress, AdminConfig, ServerConfig, TimeoutsConfig};

/// Everything one file says, with its defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect; at least one.
    pub listeners: Vec<ListenerConfig>,
    /// The routable entries, in the order of the file; at least one, names unique.
    pub backends: Vec<BackendConfig>,
    /// Who may call.
    pub clients: ClientsConfig,
    /// Whose tokens clients may show in place of a key; `None`: nobody's.
    pub client_tokens: Option<ClientTokenConfig>,
    /// What may be asked, and how much of it.
    pub requests: RequestsConfig,
    /// How the backends of a tier take turns.
    pub balance_policy: BalancePolicy,
    /// When another attempt is made.
    pub retry: RetryConfig,
    /// How long a throttled deployment rests.
    pub cooldown: CooldownConfig,
    /// When a failing backend is left alone.
    pub breaker: BreakerConfig,
    /// How long each step may take.
    pub timeouts: TimeoutsConfig,
    /// What is written down; `None`: nothing.
    pub record: Option<RecordConfig>,
    /// How secrets that are in a vault are read.
    pub key_vault: KeyVaultConfig,
    /// Where the admin API listens; `None`: nowhere.
    pub admin: Option<AdminConfig>,
    /// The process itself.
    pub server: ServerConfig,
}
