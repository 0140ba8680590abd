//! The configuration: loaded from YAML, expanded and checked as a whole, so that no other module has to
//! check it again.
//!
//! `environment` has the variables for `${NAME}`, `yaml` reads single values, `check` reads and checks the blocks of a file, and `schema` and `values` are
//! the types of the result. How the values are used is left to the other modules, which build themselves
//! from [`Config`].

mod changes;
mod check;
mod compare;
mod environment;
mod error;
mod load;
mod reference;
mod schema;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

pub(crate) use changes::join_shortened;
pub use changes::{ChangedEntry, ConfigChanges, ListChanges};
pub(crate) use check::{is_api_version, reserved_header_reason};
pub use compare::compare_configs;
pub use environment::{Environment, VariableChange};
pub use error::{ConfigError, ConfigProblem, Severity, problem_report};
pub use load::{
    CheckedConfig, load_admin, load_and_check_file, load_and_check_without_secrets, load_upgrade_socket_path,
    parse_and_check_yaml,
};
pub use reference::{configuration_page, json_schema, manual_page, roff_in_ascii};
pub use schema::{
    AdminAddress, AdminConfig, AffinityConfig, AppCredential, AppRegistration, AskLimit, BackendConfig,
    BackendTlsConfig, BalancePolicy, BreakerConfig, ClientConfig, ClientLimits, ClientTokenConfig,
    ClientsConfig, Config, CooldownConfig, CredentialConfig, DisabledBackend, EntraCredential, EntraIdentity,
    JsonlConfig, KeyVaultConfig, LimitMode, LimitSet, LimitsConfig, ListenerConfig, LogAnalyticsConfig,
    ManagedIdentitySelector, ModelsSource, OwnerPolicy, ProvisionedThroughput, QueueConfig, RecordConfig,
    RecordedContent, RedisConfig, RedisCredential, RequestClass, RequestsConfig, RetryConfig, SecretSource,
    ServerConfig, ServerTlsConfig, ShedConfig, SpoolConfig, StreamHoldLimits, StreamUsageMode,
    TimeoutsConfig, TlsVersion, TracesConfig, UnavailableHomePolicy, VaultSecretRef, WebSocketConfig,
};
pub use values::{
    AllowRule, CertifiedKey, CertifiedKeyError, CertifiedKeyFiles, DeploymentMap, Endpoint, PathPattern,
    Percentage, Secret, StatusSet, certificate_expires_at, load_certificate_authorities,
};
pub(crate) use yaml::closest_match;
