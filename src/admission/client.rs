//! What one client may use, and how it is recorded.

use std::collections::HashSet;
use std::sync::Arc;

use super::limits::{ClientLimiter, LimitBooks};
use crate::config;
use crate::config::{LimitsConfig, RequestClass};
use crate::names::{ClientName, DeploymentName};
use crate::refusal::{Refusal, RefusalReason};

/// A client of the configuration.
#[derive(Debug)]
pub struct Client {
    /// Its name in records and metrics; `None` if no client has to authenticate.
    pub name: Option<ClientName>,
    /// The deployments that it may use; `None`: all.
    allowed_deployments: Option<HashSet<DeploymentName>>,
    allows_calls_without_deployment: bool,
    /// How much of its prompts and responses is recorded; `None`: as `record.content` says.
    pub recorded_content_override: Option<config::RecordedContent>,
    /// How urgent its requests are.
    pub class: RequestClass,
    /// `None` if it has no limits.
    pub limiter: Option<Arc<ClientLimiter>>,
}

impl Client {
    /// A client of this configuration.
    pub fn new(config: &config::ClientConfig) -> Self {
        Self {
            name: Some(config.name.clone()),
            allowed_deployments: config
                .allowed_deployments
                .as_ref()
                .map(|names| names.iter().cloned().collect()),
            allows_calls_without_deployment: config.allows_stateful_calls,
            recorded_content_override: config.recorded_content_override,
            class: config.class,
            limiter: None,
        }
    }

    /// A client without a name that may use everything.
    pub fn unrestricted() -> Self {
        Self {
            name: None,
            allowed_deployments: None,
            allows_calls_without_deployment: true,
            recorded_content_override: None,
            class: RequestClass::default(),
            limiter: None,
        }
    }

    /// Applies its own limits, or else those that this configuration has for all clients.
    #[must_use]
    pub fn with_limits(
        mut self,
        own: Option<&Arc<config::ClientLimits>>,
        config: &LimitsConfig,
        books: LimitBooks<'_>,
    ) -> Self {
        self.limiter = own.or(config.default.as_ref()).map(|limits| {
            let name = self.name.as_ref();
            let account = books.accounts.find_or_create(name);
            let open_budget = |deployment: Option<&DeploymentName>| (books.open_budget)(name, deployment);
            Arc::new(ClientLimiter::new(Arc::clone(limits), config, account, &open_budget))
        });
        self
    }

    /// The deployments that the client may use; `None`: all.
    pub fn allowed_deployments(&self) -> Option<&HashSet<DeploymentName>> {
        self.allowed_deployments.as_ref()
    }

    /// Checks that the client may use this deployment.
    ///
    /// # Errors
    /// A refusal with the code `deployment_not_allowed`.
    pub fn authorize_deployment(&self, deployment: &DeploymentName) -> Result<(), Refusal> {
        if self.allowed_deployments.as_ref().is_none_or(|allowed| allowed.contains(deployment)) {
            return Ok(());
        }
        let message = format!("this client may not use the deployment '{deployment}'");
        Err(Refusal::new(RefusalReason::DeploymentNotAllowed, message))
    }

    /// Checks that the client may make calls that name no deployment: files, batches, stored responses, …
    ///
    /// # Errors
    /// A refusal with the code `deployment_not_allowed`.
    pub fn authorize_call_without_deployment(&self) -> Result<(), Refusal> {
        if self.allows_calls_without_deployment {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalReason::DeploymentNotAllowed,
            "this client may only make calls that name a deployment; \
             files, batches, stored responses and the like need `stateful: true` for the client",
        ))
    }
}
