//! The function with which the admin API reloads the configuration. The server supplies it, so that
//! nothing here depends on `server`.

use std::pin::Pin;
use std::sync::Arc;

use super::config_status::ConfigStatus;
use crate::config::{ConfigChanges, ConfigProblem};

/// The result of a successful reload.
#[derive(Debug)]
pub struct ReloadReport {
    /// The status of the new configuration.
    pub status: Arc<ConfigStatus>,
    /// What differs from the configuration before.
    pub changes: ConfigChanges,
    /// Warnings about the new configuration.
    pub warnings: Vec<ConfigProblem>,
}

/// A reload in progress. The error is the reason why the configuration was not replaced.
pub type ReloadFuture = Pin<Box<dyn Future<Output = Result<ReloadReport, String>> + Send>>;

/// Starts a reload.
pub type ReloadFunction = Box<dyn Fn() -> ReloadFuture + Send + Sync>;
