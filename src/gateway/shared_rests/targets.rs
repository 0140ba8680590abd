//! The backends of the active configuration, as other instances know them.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Endpoint;
use crate::credentials::BackendCredential;
use crate::names::{BackendName, DeploymentName};
use crate::routing::health::backend_health::BackendHealth;

/// A backend. Another instance means the same if its name and its URL are the same.
#[derive(Debug)]
pub struct Target {
    /// As configured.
    pub name: BackendName,
    /// The URL of its endpoint.
    pub url: String,
    /// What is known of it.
    pub health: Arc<BackendHealth>,
    /// The credential that is sent to it.
    pub credential: Arc<BackendCredential>,
    /// A deployment that questions about operations can name.
    pub first_deployment: Option<DeploymentName>,
    /// The longest cooldown that this configuration allows.
    pub max_cooldown: Duration,
    /// The longest time that a circuit stays open.
    pub max_open: Duration,
}

/// All backends of the active configuration.
#[derive(Debug, Default)]
pub struct Targets {
    list: Vec<Arc<Target>>,
}

impl Targets {
    /// These backends.
    pub fn new(targets: impl Iterator<Item = Target>) -> Self {
        Self { list: targets.map(Arc::new).collect() }
    }

    /// All of them, in the order of the configuration.
    pub fn list(&self) -> &[Arc<Target>] {
        &self.list
    }

    /// The backend of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Target>> {
        self.list.iter().find(|target| target.name.as_str() == name)
    }
}

impl Target {
    /// The URL of an endpoint, in one spelling.
    pub fn url_of(endpoint: &Endpoint) -> String {
        let scheme = if endpoint.uses_tls { "https" } else { "http" };
        format!("{scheme}://{}", endpoint.authority())
    }
}
