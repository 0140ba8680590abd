//! The configuration after all checks, one type for each block of the file. Defaults are filled in, and
//! every value is valid.
//!
//! Reading and checking the YAML is left to `check`.

mod affinity;
mod backend;
mod clients;
mod credentials;
mod limits;
mod listener;
mod queue;
mod record;
mod requests;
mod retry;
mod server;
mod shared;
mod traces;
mod websocket;

use std::collections::BTreeMap;

use crate::names::DeploymentName;

pub use affinity::{AffinityConfig, AskLimit, OwnerPolicy, UnavailableHomePolicy};
pub use backend::{BackendConfig, BackendTlsConfig, DisabledBackend, ProvisionedThroughput};
pub use clients::{ClientConfig, ClientTokenConfig, ClientsConfig};
pub use credentials::{
    AppCredential, AppRegistration, CredentialConfig, EntraCredential, EntraIdentity, KeyVaultConfig,
    ManagedIdentitySelector, SecretSource, VaultSecretRef,
};
pub use limits::{ClientLimits, LimitMode, LimitSet, LimitsConfig, RequestClass, ShedConfig};
pub use listener::{ListenerConfig, ServerTlsConfig, TlsVersion};
pub use queue::QueueConfig;
pub use record::{
    JsonlConfig, LogAnalyticsConfig, RecordConfig, RecordedContent, SpoolConfig, StreamUsageMode,
};
pub use requests::{ModelsSource, RequestsConfig};
pub use retry::{BalancePolicy, BreakerConfig, CooldownConfig, RetryConfig, StreamHoldLimits};
pub use server::{AdminAddress, AdminConfig, ServerConfig, TimeoutsConfig};
pub use shared::{RedisConfig, RedisCredential};
pub use traces::TracesConfig;
pub use websocket::WebSocketConfig;

use crate::money::PriceList;

/// A complete, valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses that clients connect to; at least one.
    pub listeners: Vec<ListenerConfig>,
    /// Those that are enabled, in the order of the file; at least one. Names are unique, also among disabled ones.
    pub backends: Vec<BackendConfig>,
    /// Those with `enabled: false`, in the order of the file.
    pub disabled_backends: Vec<DisabledBackend>,
    /// Who may send requests.
    pub clients: ClientsConfig,
    /// Which Entra ID tokens are accepted from clients; `None` for none.
    pub client_tokens: Option<ClientTokenConfig>,
    /// What applies to the limits of all clients.
    pub limits: LimitsConfig,
    /// How requests wait for which no backend is free; `None` if they are refused at once.
    pub queue: Option<QueueConfig>,
    /// Which classes leave provisioned deployments to more urgent ones.
    pub shed: ShedConfig,
    /// Which requests are allowed, and what is changed in them.
    pub requests: RequestsConfig,
    /// How requests find the resource that has what they refer to.
    pub affinity: AffinityConfig,
    /// How requests are distributed among the backends of a tier.
    pub balance_policy: BalancePolicy,
    /// The same for deployments that have a policy of their own.
    pub pool_policies: BTreeMap<DeploymentName, BalancePolicy>,
    /// When a request is sent again after a failed attempt.
    pub retry: RetryConfig,
    /// How long a throttled deployment is unavailable.
    pub cooldown: CooldownConfig,
    /// When the circuit breaker of a backend opens.
    pub breaker: BreakerConfig,
    /// How long each step may take.
    pub timeouts: TimeoutsConfig,
    /// The limits of Responses WebSockets.
    pub websocket: WebSocketConfig,
    /// What responses cost; `None` if that is not computed.
    pub prices: Option<PriceList>,
    /// What is recorded of each request; `None` for nothing.
    pub record: Option<RecordConfig>,
    /// Which requests are exported to an OpenTelemetry collector; `None` for none.
    pub traces: Option<TracesConfig>,
    /// How secrets are read from key vaults.
    pub key_vault: KeyVaultConfig,
    /// The Redis through which several instances act as one; `None` if this one is alone.
    pub shared: Option<RedisConfig>,
    /// The admin API; `None` if there is none.
    pub admin: Option<AdminConfig>,
    /// Threads, shutdown, keepalive and upgrades.
    pub server: ServerConfig,
}

impl Config {
    /// How requests for a deployment are distributed among the backends of a tier.
    pub fn balance_policy_of(&self, deployment: &DeploymentName) -> BalancePolicy {
        self.pool_policies.get(deployment).copied().unwrap_or(self.balance_policy)
    }
}
