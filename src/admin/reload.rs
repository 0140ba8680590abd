//! How the admin API has the configuration reloaded: the server hands it a function.

use std::pin::Pin;
use std::sync::Arc;

use super::config_status::ConfigStatus;
use crate::config::ConfigProblem;

/// What a successful reload reports.
#[derive(Debug)]
pub struct ReloadReport {
    /// The status of the new configuration.
    pub status: Arc<ConfigStatus>,
    /// Warnings about the new configuration.
    pub warnings: Vec<ConfigProblem>,
}

/// A reload in progress. The error is the reason why the configuration was not replaced.
pub type ReloadFuture = Pin<Box<dyn Future<Output = Result<ReloadReport, String>> + Send>>;

/// Starts a reload.
pub type ReloadFunction = Box<dyn Fn() -> ReloadFuture + Send + Sync>;
