//! The active configuration: the gateway, which decides about requests, and how to connect to the
//! backends.

use std::sync::Arc;

use ipnet::IpNet;

use super::upstream::peer::Peers;
use crate::config::ListenerConfig;
use crate::credentials::RefreshedSecret;
use crate::gateway::Gateway;

/// The active configuration. A reload replaces it as a whole; a request uses the same one to its end.
pub struct ActiveConfig {
    /// Decides about requests.
    pub gateway: Arc<Gateway>,
    /// Addresses and connection settings of the backends.
    pub peers: Peers,
    /// The listeners of this configuration. Open listeners keep the settings of the start, except for
    /// those that are read from here.
    pub reloadable_listener_settings: Vec<ListenerConfig>,
    /// The token of the admin API; `None` if it needs none.
    pub admin_token: Option<RefreshedSecret>,
}

impl ActiveConfig {
    /// The networks whose `x-forwarded-for` is trusted on this listener.
    pub(super) fn trusted_proxies<'s>(&'s self, listener: &'s ListenerConfig) -> &'s [IpNet] {
        &self.current_listener_settings(listener).trusted_proxies
    }

    /// The settings of an open listener in this configuration; those of the start if it is not in there.
    pub(super) fn current_listener_settings<'s>(
        &'s self,
        listener: &'s ListenerConfig,
    ) -> &'s ListenerConfig {
        self.reloadable_listener_settings
            .iter()
            .find(|current| current.address == listener.address)
            .unwrap_or(listener)
    }
}
