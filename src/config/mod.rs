//! The configuration as the rest of the program may trust it: every value here has been
//! read, expanded and checked against the others, so no room checks it again.
//!
//! What the YAML may look like is decided in `check.rs` and its parts; what a runtime does
//! with a value is left to the rooms, which build themselves from [`Config`].

mod check;
mod error;
mod load;
mod schema;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

pub use error::{ConfigError, ConfigProblem};
pub use load::{CheckedConfig, environment_variable, load_file, load_upgrade_socket_path, parse_yaml};
pub use schema::{
    AdminAddress, AdminConfig, AppCredential, AppRegistration, BackendConfig, BackendTlsConfig,
    BalancePolicy, BreakerConfig, ClientConfig, ClientTokenConfig, ClientsConfig, Config, CooldownConfig,
    CredentialConfig, EntraCredential, EntraIdentity, JsonlConfig, KeyVaultConfig, ListenerConfig,
    ListenerTlsConfig, LogAnalyticsConfig, ManagedIdentitySelector, RecordConfig, RecordedContent,
    RequestsConfig, RetryConfig, SecretSource, ServerConfig, SpoolConfig, StreamHoldLimits, TimeoutsConfig,
    TlsVersion, TokenUsageMode, VaultSecretRef,
};
pub use values::{
    AllowRule, CertifiedKey, CertifiedKeyError, CertifiedKeyFiles, DeploymentMap, Endpoint, PathPattern,
    Percentage, Secret, StatusSet,
};
