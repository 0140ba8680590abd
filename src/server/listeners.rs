//! The services of Pingora: one for each listener, and one for the admin API.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use tokio::runtime::{Handle, Runtime};

use super::start_error::StartError;
use crate::admin::AdminApi;
use crate::config::{self, AdminAddress, Config};
use crate::proxy::client::connection::ConnectionHandler;
use crate::proxy::client::tls::{ServerTls, TlsError};
use crate::proxy::runner::Runner;
use crate::proxy::upstream::peer::tcp_keepalive;
use crate::proxy::{ActiveConfig, Balancer};

/// The runtime that serves a listener, once it has served somebody.
pub(super) type ListenerRuntime = Arc<OnceLock<Handle>>;

/// A service of Pingora for one listener.
pub(super) struct ListenerService {
    pub(super) service: Service<ConnectionHandler>,
    pub(super) runtime: ListenerRuntime,
}

/// A service for each listener, in front of the balancer that all share.
pub(super) fn listener_services(
    config: &Config,
    active_config: &Arc<ArcSwap<ActiveConfig>>,
    pingora_config: &Arc<ServerConf>,
    background: &Runtime,
) -> Result<Vec<ListenerService>, StartError> {
    let balancer = Balancer::new(Arc::clone(active_config));
    let runner = Arc::new(Runner::new(balancer, pingora_config));
    let mut services = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let runtime = ListenerRuntime::default();
        let handler = ConnectionHandler::new(
            Arc::clone(&runner),
            Arc::new(listener.clone()),
            Arc::clone(active_config),
            Arc::clone(&runtime),
        );
        let mut service = Service::new(format!("listener {}", listener.address), handler);
        let mut endpoint = ListenerConfig::tcp(listener.address.to_string())
            .tcp_socket_options(tcp_socket_options(config, listener.address))
            .l4_buffer(buffer_settings(listener.tls.is_some()));
        if let Some(tls) = &listener.tls {
            let tls = ServerTls::for_listener(listener, tls)
                .and_then(|tls| reloading_tls_settings(&tls, background));
            let key = || format!("listeners[{index}]");
            endpoint = endpoint.tls(tls.map_err(|problem| StartError::ListenerTls { key: key(), problem })?);
        }
        service.add_listener(endpoint);
        services.push(ListenerService { service, runtime });
    }
    Ok(services)
}

/// The service of the admin API.
pub(super) fn admin_service(
    config: &config::AdminConfig,
    api: AdminApi,
    background: &Runtime,
) -> Result<Service<AdminApi>, StartError> {
    let tls = match &config.tls {
        Some(tls) => {
            let tls = ServerTls::for_admin(tls).and_then(|tls| reloading_tls_settings(&tls, background));
            let key = || "admin".to_owned();
            Some(tls.map_err(|problem| StartError::ListenerTls { key: key(), problem })?)
        }
        None => None,
    };
    let mut service = Service::new("admin".to_owned(), api);
    // It has little to do and is to get its turn all the same.
    service.threads = Some(1);
    match (&config.address, tls) {
        (AdminAddress::Tcp(address), Some(tls)) => {
            service.add_tls_with_settings(&address.to_string(), None, tls);
        }
        (AdminAddress::Tcp(address), None) => service.add_tcp(&address.to_string()),
        (AdminAddress::Unix(path), _) => {
            let owner_only = std::fs::Permissions::from_mode(0o600);
            service.add_uds(&path.to_string_lossy(), Some(owner_only));
        }
    }
    Ok(service)
}

/// The settings of a listener whose certificates are read again when their files change.
fn reloading_tls_settings(tls: &Arc<ServerTls>, background: &Runtime) -> Result<TlsSettings, TlsError> {
    background.block_on(async { tls.watch_files() });
    tls.to_settings()
}

/// What of a connection's bytes is gathered, in bytes: an answer's head and a short body leave as
/// one. Heads and bodies are read into memory of their own, but TLS reads the five bytes before
/// each record by themselves.
fn buffer_settings(has_tls: bool) -> L4BufferSettings {
    L4BufferSettings::new(if has_tls { 16 * 1024 + 512 } else { 0 }, 4 * 1024)
}

fn tcp_socket_options(config: &Config, address: SocketAddr) -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(tcp_keepalive(&config.server));
    options.ipv6_only = address.is_ipv6().then_some(false);
    options
}
