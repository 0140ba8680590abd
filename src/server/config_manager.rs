//! Reloads the configuration: a valid file replaces the active configuration as a whole, an invalid
//! one leaves it unchanged.
//!
//! Listeners, the admin API's address, the sinks of records and Pingora's own settings are fixed at
//! startup (`startup_settings.rs`); a reload reports which of them differ.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use log::{Level, error, info, log, warn};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

use super::build_config::build_active_config;
use super::drained_backends::log_drained_backends;
use super::startup_settings::{config_keys_needing_upgrade, restore_startup_sinks};
use crate::admin::config_status::ConfigStatus;
use crate::admin::reload::ReloadReport;
use crate::config::{
    self, CheckedConfig, Config, ConfigError, ConfigProblem, Environment, Severity, compare_configs,
};
use crate::gateway::ProcessState;
use crate::names::{BackendName, DeploymentName};
use crate::proxy::ActiveConfig;
use crate::proxy::upstream::dns::AddressBook;
use crate::proxy::upstream::peer::CertificateFileError;
use crate::proxy::upstream::{probe, question, rechecks, stall_questions};
use crate::record::cost::Pricing;

/// What a configuration was read from.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    /// The file, which a reload reads again.
    pub file: PathBuf,
    /// The environment of the start, which stays as it is.
    pub environment: Environment,
}

/// Holds the active configuration and replaces it on reload.
pub struct ConfigManager {
    /// What new requests use.
    active_config: Arc<ArcSwap<ActiveConfig>>,
    process_state: Arc<ProcessState>,
    /// The configuration at startup, whose listeners and sinks are in use.
    startup_config: Config,
    /// `None` for the demo.
    source: Option<ConfigSource>,
    addresses_and_tasks: Mutex<AddressesAndTasks>,
    config_status: Arc<ArcSwap<ConfigStatus>>,
}

/// What a reload compares, and replaces along with the active configuration. Its lock is held during a reload.
struct AddressesAndTasks {
    /// The active configuration as its file has it; settings that need an upgrade may not be in use.
    config: Config,
    address_book: AddressBook,
    /// The balancer's own requests to the backends of the active configuration; dropping them stops them.
    _balancer_requests: JoinSet<()>,
}

impl AddressesAndTasks {
    fn new(config: Config, address_book: AddressBook, active_config: &Arc<ActiveConfig>) -> Self {
        let mut requests = probe::spawn_probes(active_config);
        question::spawn_questions(active_config, &mut requests);
        stall_questions::spawn_stall_questions(active_config, &mut requests);
        rechecks::spawn_rechecks(active_config, &mut requests);
        active_config.gateway.share_backends();
        Self { config, address_book, _balancer_requests: requests }
    }
}

/// Why the configuration was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration was not read from a file (the demo).
    #[error("the running configuration was not read from a file")]
    NotReadFromFile,
    /// The file is missing or invalid.
    #[error("{0}{hint}", hint = environment_hint(.0))]
    InvalidConfig(#[from] ConfigError),
    /// A TLS file of a backend cannot be read.
    #[error("backends[].tls: {0}")]
    BackendTls(#[from] CertificateFileError),
    /// A fault of aoai-lb itself.
    #[error("an internal error: loading the file did not complete")]
    Internal,
}

/// Explains why a variable that was just set is still unknown.
fn environment_hint(problems: &ConfigError) -> &'static str {
    if problems.errors.iter().any(|problem| problem.message.contains("} is not set")) {
        "\nvariables are read when the process starts: those of the environment file get new values by an upgrade \
         (aoai-lb upgrade), others by a restart"
    } else {
        ""
    }
}

/// Reports that a reload leaves out what has changed in the environment file.
fn environment_file_warning(environment: &Environment) -> Option<ConfigProblem> {
    let path = environment.file_path().filter(|_| environment.has_file_changed())?;
    let message = "has changed since the start; its new values take effect with an upgrade (aoai-lb upgrade)";
    Some(ConfigProblem::of_file(Severity::Warning, path, None, message))
}

/// A problem that a reload does not fail for.
fn as_warning(problem: ConfigProblem) -> ConfigProblem {
    ConfigProblem { severity: Severity::Warning, ..problem }
}

impl ConfigManager {
    /// Activates the configuration of the start, which was read from `source`.
    ///
    /// # Errors
    /// If a TLS file of a backend cannot be read.
    pub async fn new(
        checked: CheckedConfig,
        source: Option<ConfigSource>,
        process: Arc<ProcessState>,
    ) -> Result<Self, CertificateFileError> {
        let CheckedConfig { config, file_sha256: sha256, .. } = checked;
        let (active_config, address_book) =
            build_active_config(&config, &AddressBook::default(), &process).await?;
        for backend in &active_config.gateway.backends {
            if backend.credential.secret().current_value_id() == 0 {
                let (name, error) = (&backend.config.name, backend.credential.secret().last_fetch_error());
                // The monitor tells it as an error, if it lasts.
                info!("backend {name} is unavailable until its credential is fetched: {error}");
            }
        }
        let state = AddressesAndTasks::new(config.clone(), address_book, &active_config);
        let status = ConfigStatus {
            file: source.as_ref().map(|source| source.file.clone()),
            activation_number: 1,
            sha256,
            loaded_at: SystemTime::now(),
            last_reload_error: None,
            config_keys_needing_upgrade: Vec::new(),
        };
        Ok(Self {
            active_config: Arc::new(ArcSwap::new(active_config)),
            process_state: process,
            startup_config: config,
            source,
            addresses_and_tasks: Mutex::new(state),
            config_status: Arc::new(ArcSwap::from_pointee(status)),
        })
    }

    /// The active configuration; a reload stores the next one in it.
    pub fn active_config(&self) -> &Arc<ArcSwap<ActiveConfig>> {
        &self.active_config
    }

    /// The status of the active configuration; a reload stores the next one in it.
    pub fn config_status(&self) -> &Arc<ArcSwap<ConfigStatus>> {
        &self.config_status
    }

    /// The state of this process, which all its configurations share.
    pub fn process_state(&self) -> &Arc<ProcessState> {
        &self.process_state
    }

    /// Adds deployments that the previous process has found to exist.
    pub fn learn_deployments(&self, deployments: &[DeploymentName], now: Instant) {
        let active_config = self.active_config.load();
        deployments
            .iter()
            .for_each(|deployment| active_config.gateway.adopt_learned_deployment(deployment, now));
    }

    /// Reads the file again and activates it. Requests in flight keep the configuration they started
    /// with.
    ///
    /// # Errors
    /// [`ReloadError`]; the active configuration is unchanged then.
    pub async fn reload(&self) -> Result<ReloadReport, ReloadError> {
        // Concurrent reloads run one after the other, and each reads the file anew.
        let mut state = self.addresses_and_tasks.lock().await;
        let has_failed_before = self.config_status.load().last_reload_error.is_some();
        let result = self.load_and_activate(&mut state).await;
        self.process_state.recorder.metrics().record_config_reload(result.is_ok());
        let process = Arc::clone(&self.process_state);
        let save = move || process.drains.save_pending(&process.health_registry, Instant::now());
        let _ = spawn_blocking(save).await;
        match &result {
            Ok(ReloadReport { status, changes, warnings }) => {
                warnings.iter().for_each(|warning| warn!("{warning}"));
                let sha256 = status.short_sha256();
                // Who has read of the failure reads of its end.
                let level = if has_failed_before { Level::Warn } else { Level::Info };
                log!(
                    level,
                    "configuration {} is active (SHA-256 {sha256}): {changes}",
                    status.activation_number
                );
                let added =
                    |name: &BackendName| changes.backends.added.iter().any(|added| added == name.as_str());
                log_drained_backends(&self.active_config.load().gateway, added);
                for key in &status.config_keys_needing_upgrade {
                    warn!("configuration: {key}: the change takes effect with an upgrade (aoai-lb upgrade)");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                error!(
                    "reload failed, the previous configuration stays active: {}",
                    reason.replace('\n', "; ")
                );
                self.config_status.rcu(|status| ConfigStatus {
                    last_reload_error: Some(reason.clone()),
                    ..ConfigStatus::clone(status)
                });
            }
        }
        result
    }

    async fn load_and_activate(&self, state: &mut AddressesAndTasks) -> Result<ReloadReport, ReloadError> {
        let previous = self.config_status.load_full();
        let source = self.source.clone().ok_or(ReloadError::NotReadFromFile)?;
        let loaded = spawn_blocking(move || {
            let loaded = config::load_and_check_file(&source.file, &|name| source.environment.variable(name));
            (loaded, environment_file_warning(&source.environment))
        });
        let (loaded, environment_warning) = loaded.await.map_err(|_| ReloadError::Internal)?;
        let CheckedConfig { mut config, file_sha256: sha256, mut warnings, unusable_paths } = loaded?;
        // The balancer serves without records; it does not refuse a reload because of them either.
        warnings.extend(unusable_paths.into_iter().map(as_warning));
        warnings.extend(environment_warning);
        let changes = compare_configs(&state.config, &config);
        let config_of_file = config.clone();
        let keys_needing_upgrade = config_keys_needing_upgrade(&self.startup_config, &config);
        restore_startup_sinks(&self.startup_config, &mut config);
        let (active_config, address_book) =
            build_active_config(&config, &state.address_book, &self.process_state).await?;
        let now = Instant::now();
        for deployment in self.active_config.load().gateway.learned_deployments() {
            active_config.gateway.adopt_learned_deployment(&deployment, now);
        }
        self.process_state.recorder.set_traced_backends(&state.config, &config);
        self.process_state.recorder.set_pricing(Pricing::of(&config));
        let redact = config.record.map(|record| record.redaction_patterns).unwrap_or_default();
        self.process_state.recorder.set_redaction_patterns(redact);
        *state = AddressesAndTasks::new(config_of_file, address_book, &active_config);
        self.active_config.store(active_config);
        let status = Arc::new(ConfigStatus {
            file: previous.file.clone(),
            activation_number: previous.activation_number + 1,
            sha256,
            loaded_at: SystemTime::now(),
            last_reload_error: None,
            config_keys_needing_upgrade: keys_needing_upgrade,
        });
        self.config_status.store(Arc::clone(&status));
        Ok(ReloadReport { status, changes, warnings })
    }
}
