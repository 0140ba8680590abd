//! Builds the services of Pingora: one for each listener and one for the admin API.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use tokio::runtime::{Handle, Runtime};

use super::open_files::{max_client_connections, max_idle_upstream_sockets};
use super::start_error::StartError;
use crate::admin::AdminApi;
use crate::admin::connections::AdminConnections;
use crate::config::{self, AdminAddress, Config};
use crate::gateway::CertificateExpiries;
use crate::proxy::client::connection::ConnectionHandler;
use crate::proxy::client::connection_limit::TotalConnectionLimiter;
use crate::proxy::client::tls::ServerTls;
use crate::proxy::runner::Runner;
use crate::proxy::upstream::peer::{SOCKET_BUFFER_BYTES, tcp_keepalive};
use crate::proxy::{ActiveConfig, Balancer};

/// The runtime that serves a listener; set when its first connection arrives.
pub(super) type ListenerRuntimeHandle = Arc<OnceLock<Handle>>;

/// The service of one listener.
pub(super) struct ListenerService {
    pub(super) service: Service<ConnectionHandler>,
    pub(super) runtime_handle: ListenerRuntimeHandle,
}

/// The services of all listeners, which share one balancer.
///
/// # Errors
/// [`StartError::ListenerTls`] if the TLS of a listener cannot be set up.
pub(super) fn listener_services(
    config: &Config,
    active_config: &Arc<ArcSwap<ActiveConfig>>,
    pingora_config: &Arc<ServerConf>,
    background: &Runtime,
) -> Result<Vec<ListenerService>, StartError> {
    let balancer = Balancer::new(Arc::clone(active_config));
    let runner = Arc::new(Runner::new(balancer, pingora_config, max_idle_upstream_sockets()));
    let total_limiter = Arc::new(TotalConnectionLimiter::new(max_client_connections()));
    let certificate_expiries = Arc::clone(&active_config.load().gateway.process_state.certificate_expiries);
    let mut services = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let runtime_handle = ListenerRuntimeHandle::default();
        let new_tls = |tls| ServerTls::for_listener(listener, tls, Arc::clone(&certificate_expiries));
        let tls = listener.tls.as_ref().map(new_tls).transpose();
        let tls =
            tls.map_err(|problem| StartError::ListenerTls { key: format!("listeners[{index}]"), problem })?;
        reload_changed_files(tls.as_ref(), background);
        // Pingora does not know of the TLS: `ConnectionHandler` makes the handshake.
        let endpoint = ListenerConfig::tcp(listener.address.to_string())
            .tcp_socket_options(tcp_socket_options(config, listener.address))
            .l4_buffer(buffer_settings(tls.is_some()));
        let handler = ConnectionHandler::new(
            Arc::clone(&runner),
            Arc::new(listener.clone()),
            Arc::clone(active_config),
            Arc::clone(&runtime_handle),
            tls,
            Arc::clone(&total_limiter),
        );
        let mut service = Service::new(format!("listener {}", listener.address), handler);
        service.add_listener(endpoint);
        services.push(ListenerService { service, runtime_handle });
    }
    Ok(services)
}

/// The service of the admin API.
///
/// # Errors
/// [`StartError::ListenerTls`] if its TLS cannot be set up.
pub(super) fn admin_service(
    config: &config::AdminConfig,
    api: AdminApi,
    certificate_expiries: &Arc<CertificateExpiries>,
    background: &Runtime,
) -> Result<Service<AdminConnections>, StartError> {
    let new_tls = |tls| ServerTls::for_admin(tls, Arc::clone(certificate_expiries));
    let tls = config.tls.as_ref().map(new_tls).transpose();
    let tls = tls.map_err(|problem| StartError::ListenerTls { key: "admin".to_owned(), problem })?;
    reload_changed_files(tls.as_ref(), background);
    let buffers = buffer_settings(tls.is_some());
    let mut service = Service::new("admin".to_owned(), AdminConnections::new(api, tls));
    // Each service has a runtime of its own. One thread is enough, and it responds even when the
    // threads of the listeners are busy.
    service.threads = Some(1);
    let endpoint = match &config.address {
        AdminAddress::Tcp(address) => ListenerConfig::tcp(address.to_string()),
        AdminAddress::Unix(path) => {
            let owner_only = std::fs::Permissions::from_mode(0o600);
            ListenerConfig::uds(path.to_string_lossy()).permissions(owner_only)
        }
    };
    service.add_listener(endpoint.l4_buffer(buffers));
    Ok(service)
}

/// Has the certificates reloaded when their files change.
fn reload_changed_files(tls: Option<&Arc<ServerTls>>, background: &Runtime) {
    if let Some(tls) = tls {
        // This spawns a task, which needs the context of a runtime.
        background.block_on(async { tls.watch_files() });
    }
}

/// The sizes of a connection's read and write buffers. Pingora reads heads and bodies into buffers of its own, so
/// plain connections need no read buffer; OpenSSL reads the five bytes of a record's header separately, so TLS
/// connections get one that holds a whole record (16 KiB). With the write buffer, records of TLS leave together; what is
/// written to a plain connection is collected by `ConnectionHandler`, in memory that idle connections do not need.
fn buffer_settings(has_tls: bool) -> L4BufferSettings {
    if has_tls { L4BufferSettings::new(16 * 1024 + 512, 4 * 1024) } else { L4BufferSettings::unbuffered() }
}

fn tcp_socket_options(config: &Config, address: SocketAddr) -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(tcp_keepalive(&config.server));
    // Left to itself, the kernel lets a client that does not read occupy 4 MiB of the memory that all connections
    // share. With this it is a few hundred KiB, enough for 2 MiB/s at a round-trip time of 100 ms.
    options.tcp_snd_buf = Some(SOCKET_BUFFER_BYTES);
    // `[::]` accepts IPv4 as well, whatever net.ipv6.bindv6only says.
    options.ipv6_only = address.is_ipv6().then_some(false);
    options
}
