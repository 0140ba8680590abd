//! The configuration over the life of a process: a new file becomes a new gateway, swapped whole;
//! a bad file leaves the old one serving.
//!
//! What was opened at the start (listeners, the admin API, where records go, the engine) stays as it
//! is until an upgrade; a reload says which of it would be another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

use super::build_config::build_active_config;
use super::startup_settings::{keys_needing_upgrade, restore_startup_sinks};
use crate::admin::config_status::ConfigStatus;
use crate::admin::reload::ReloadReport;
use crate::config::{self, CheckedConfig, Config, ConfigError};
use crate::gateway::ProcessState;
use crate::names::DeploymentName;
use crate::proxy::ActiveConfig;
use crate::proxy::upstream::dns::AddressBook;
use crate::proxy::upstream::peer::CaError;
use crate::proxy::upstream::probe;

/// The configuration in place and how it got there.
pub struct ConfigManager {
    /// What requests are served with.
    active_config: Arc<ArcSwap<ActiveConfig>>,
    process: Arc<ProcessState>,
    /// The configuration of the start, whose listeners and sinks are in use.
    startup_config: Config,
    reload_state: Mutex<ReloadState>,
    status: Arc<ArcSwap<ConfigStatus>>,
}

/// What a reload replaces besides; held while one is under way.
struct ReloadState {
    address_book: AddressBook,
    _probes: JoinSet<()>,
}

/// Why a new configuration is not put in place.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no file.
    #[error("this configuration comes from no file")]
    NoFile,
    /// It is bad.
    #[error("{0}{hint}", hint = environment_hint(.0))]
    InvalidConfig(#[from] ConfigError),
    /// A file that it names cannot be read.
    #[error("backends[].tls: {0}")]
    BackendTls(#[from] CaError),
    /// This is a fault of the balancer.
    #[error("it could not be prepared")]
    Internal,
}

/// What somebody may not know who has just changed the environment.
fn environment_hint(problems: &ConfigError) -> &'static str {
    if problems.errors.iter().any(|problem| problem.message.contains("${")) {
        "\nvariables are those of the process's start: a new value needs a restart"
    } else {
        ""
    }
}

impl ConfigManager {
    /// Puts the first configuration in place; `learned` are deployments that another process found
    /// to exist.
    ///
    /// # Errors
    /// When a file of a backend's TLS cannot be read.
    pub async fn new(
        checked: CheckedConfig,
        file: Option<PathBuf>,
        process: Arc<ProcessState>,
    ) -> Result<Self, CaError> {
        let CheckedConfig { config, file_sha256: sha256, .. } = checked;
        let (active_config, address_book) =
            build_active_config(&config, &AddressBook::default(), &process).await?;
        for backend in &active_config.gateway.backends {
            if backend.credential.secret().current_value_id() == 0 {
                let (name, error) = (&backend.config.name, backend.credential.secret().last_error());
                error!("backend {name} is left out until it has its credential: {error}");
            }
        }
        let probes = probe::spawn_probes(&active_config);
        let status = ConfigStatus {
            file,
            version: 1,
            sha256,
            loaded_at: SystemTime::now(),
            reload_error: None,
            keys_needing_upgrade: Vec::new(),
        };
        Ok(Self {
            active_config: Arc::new(ArcSwap::new(active_config)),
            process,
            startup_config: config,
            reload_state: Mutex::new(ReloadState { address_book, _probes: probes }),
            status: Arc::new(ArcSwap::from_pointee(status)),
        })
    }

    /// The active configuration; a reload stores the next one in it.
    pub fn active_config(&self) -> &Arc<ArcSwap<ActiveConfig>> {
        &self.active_config
    }

    /// The status of the active configuration; a reload stores the next one in it.
    pub fn status(&self) -> &Arc<ArcSwap<ConfigStatus>> {
        &self.status
    }

    /// The process that it is of.
    pub fn process(&self) -> &Arc<ProcessState> {
        &self.process
    }

    /// Adds deployments that the previous process has found to exist.
    pub fn learn_deployments(&self, deployments: &[DeploymentName], now: Instant) {
        let active_config = self.active_config.load();
        deployments
            .iter()
            .for_each(|deployment| active_config.gateway.adopt_learned_deployment(deployment, now));
    }

    /// Reads the file again and puts it in place. Requests under way end as they began.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    pub async fn reload(&self) -> Result<ReloadReport, ReloadError> {
        // One after the other, each with the file as it is then.
        let mut state = self.reload_state.lock().await;
        let result = self.load_and_activate(&mut state).await;
        self.process.recorder.metrics().record_config_reload(result.is_ok());
        match &result {
            Ok(ReloadReport { status, warnings }) => {
                warnings.iter().for_each(|warning| warn!("configuration: {warning}"));
                let count = self.active_config.load().gateway.backends.len();
                info!("configuration {} is in place: backends: {count}", status.version);
                for key in &status.keys_needing_upgrade {
                    warn!("configuration: {key}: comes into effect with an upgrade (aoai-lb upgrade)");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                error!("the configuration stays as it is: {}", reason.replace('\n', "; "));
                self.status.rcu(|status| ConfigStatus {
                    reload_error: Some(reason.clone()),
                    ..ConfigStatus::clone(status)
                });
            }
        }
        result
    }

    async fn load_and_activate(&self, state: &mut ReloadState) -> Result<ReloadReport, ReloadError> {
        let previous = self.status.load_full();
        let file = previous.file.clone().ok_or(ReloadError::NoFile)?;
        let loaded = spawn_blocking(move || config::load_file(&file, &config::environment_variable)).await;
        let CheckedConfig { mut config, file_sha256: sha256, warnings } =
            loaded.map_err(|_| ReloadError::Internal)??;
        let keys_needing_upgrade = keys_needing_upgrade(&self.startup_config, &config);
        restore_startup_sinks(&self.startup_config, &mut config);
        let (active_config, address_book) =
            build_active_config(&config, &state.address_book, &self.process).await?;
        let now = Instant::now();
        for deployment in self.active_config.load().gateway.learned_deployments() {
            active_config.gateway.adopt_learned_deployment(&deployment, now);
        }
        let redact = config.record.map(|record| record.redaction_patterns).unwrap_or_default();
        self.process.recorder.set_redaction_patterns(redact);
        *state = ReloadState { address_book, _probes: probe::spawn_probes(&active_config) };
        self.active_config.store(active_config);
        let status = Arc::new(ConfigStatus {
            file: previous.file.clone(),
            version: previous.version + 1,
            sha256,
            loaded_at: SystemTime::now(),
            reload_error: None,
            keys_needing_upgrade,
        });
        self.status.store(Arc::clone(&status));
        Ok(ReloadReport { status, warnings })
    }
}
