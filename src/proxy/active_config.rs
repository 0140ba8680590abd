//! A configuration in use: what decides about requests, and how to reach the backends it decides on.

use std::sync::Arc;

use ipnet::IpNet;

use super::upstream::peer::Peers;
use crate::config::ListenerConfig;
use crate::credentials::RefreshedSecret;
use crate::gateway::Gateway;

/// A configuration in use. It is replaced whole by a reload; a request keeps the one it began with.
pub struct ActiveConfig {
    /// Decides about requests.
    pub gateway: Arc<Gateway>,
    /// Addresses and connection settings of the backends.
    pub peers: Peers,
    /// The listeners as they are configured now, which may be newer than those that are open.
    pub listeners: Vec<ListenerConfig>,
    /// The token of the admin API; `None` if it needs none.
    pub admin_token: Option<RefreshedSecret>,
}

impl ActiveConfig {
    /// The networks whose `x-forwarded-for` is trusted on this listener.
    pub(super) fn trusted_proxies<'s>(&'s self, open: &'s ListenerConfig) -> &'s [IpNet] {
        &self.listener(open).trusted_proxies
    }

    /// An open listener as it is configured now.
    pub(super) fn listener<'s>(&'s self, open: &'s ListenerConfig) -> &'s ListenerConfig {
        self.listeners.iter().find(|now| now.address == open.address).unwrap_or(open)
    }
}
