//! What one client may use, and how it is recorded.

use std::collections::HashSet;

use crate::config;
use crate::names::{ClientName, DeploymentName};
use crate::refusal::{Refusal, RefusalReason};

/// What a client may use and how it is recorded.
#[derive(Debug)]
pub struct Client {
    /// Its name in records and metrics; `None` when the balancer is open to everyone.
    pub name: Option<ClientName>,
    /// The deployments it may use; `None`: all.
    allowed_deployments: Option<HashSet<DeploymentName>>,
    allows_stateful_calls: bool,
    /// What of its prompts and answers is kept, where it differs from the rest.
    pub recorded_content: Option<config::RecordedContent>,
}

impl Client {
    pub(super) fn new(config: &config::ClientConfig) -> Self {
        Self {
            name: Some(config.name.clone()),
            allowed_deployments: config
                .allowed_deployments
                .as_ref()
                .map(|names| names.iter().cloned().collect()),
            allows_stateful_calls: config.allows_stateful_calls,
            recorded_content: config.recorded_content,
        }
    }

    /// One that may use everything.
    pub fn unrestricted() -> Self {
        Self { name: None, allowed_deployments: None, allows_stateful_calls: true, recorded_content: None }
    }

    /// Whether it may use this deployment.
    ///
    /// # Errors
    /// `deployment_not_allowed`.
    pub fn authorize_deployment(&self, deployment: &DeploymentName) -> Result<(), Refusal> {
        if self.allowed_deployments.as_ref().is_none_or(|allowed| allowed.contains(deployment)) {
            return Ok(());
        }
        let message = format!("this key may not use the deployment '{deployment}'");
        Err(Refusal::new(RefusalReason::DeploymentNotAllowed, message))
    }

    /// Whether it may make calls that name no deployment: files, stored responses, models, …
    ///
    /// # Errors
    /// `deployment_not_allowed`.
    pub fn authorize_stateful_call(&self) -> Result<(), Refusal> {
        if self.allows_stateful_calls {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalReason::DeploymentNotAllowed,
            "this key may only make calls that name a deployment; \
             calls such as files, models or stored responses need `stateful: true` for its client",
        ))
    }
}
