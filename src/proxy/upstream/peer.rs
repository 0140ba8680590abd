//! The backends as Pingora peers: address, server name, TLS, timeouts. The addresses are resolved by
//! `dns.rs`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Version;
use openssl::x509::X509;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::CertKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::dns::EndpointAddresses;
use crate::config::{self, BackendConfig, CertifiedKey, CertifiedKeyError, Config, certificate_expires_at};
use crate::gateway::LoadedCertificate;

/// Maximum HTTP/2 streams per connection, unless the backend allows fewer. 100 is what Azure and most servers
/// allow.
const MAX_HTTP2_STREAMS: usize = 100;
/// The size of socket buffers for responses; `net.core.rmem_max` and `wmem_max` limit it. The kernel takes up to
/// twice as much.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 256 * 1024;
/// The flow-control window of a stream: what waits in memory for a client that does not read. Enough for 2 MiB/s
/// at a round-trip time of 30 ms; HTTP/1.1 has no such limit.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Longest time that a request waits while another one connects. A healthy connection takes less, even
/// with three round trips to another continent and a busy machine at either end.
const CONNECT_TURN_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that a request waits while one after the other connects. Where all of them fail slowly, it would be the
/// sum of their times. Long enough for a thousand requests on a busy machine.
const MAX_CONNECT_TURN_WAIT: Duration = Duration::from_secs(30);

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CertificateFileError {
    path: std::path::PathBuf,
    problem: String,
}

/// The peers of a configuration.
pub struct Peers {
    /// In the order of the backends in the configuration.
    peers: Vec<PeerTemplate>,
}

struct PeerTemplate {
    /// The peer without an address; each attempt gets a copy with the next address.
    peer: HttpPeer,
    addresses: Arc<EndpointAddresses>,
    /// `None` for backends without HTTP/2.
    http2_gate: Option<Http2ConnectGate>,
}

/// Lets one request at a time find or make a connection to a backend with HTTP/2. Requests that arrive
/// together would otherwise open a connection each, before the first one is ready to be shared.
struct Http2ConnectGate {
    /// Has one permit.
    turns: Arc<Semaphore>,
    /// The backend chose HTTP/1.1, so there is nothing to share and no reason to wait.
    speaks_http1_only: AtomicBool,
    /// When the current or the last turn began.
    turn_started_at: Mutex<Instant>,
}

/// The turn of one request; ends when dropped.
pub(in crate::proxy) type ConnectTurn = OwnedSemaphorePermit;

impl Http2ConnectGate {
    fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(1)),
            speaks_http1_only: AtomicBool::new(false),
            turn_started_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a turn. `None` if the current one takes longer than [`CONNECT_TURN_TIMEOUT`], because a connection
    /// that hangs must not delay other requests, or all of them together longer than `max_wait`.
    async fn acquire_turn(&self, max_wait: Duration) -> Option<ConnectTurn> {
        let turn = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let mut turn = pin!(Arc::clone(&self.turns).acquire_owned());
                let began_at = Instant::now();
                loop {
                    let left = max_wait.saturating_sub(began_at.elapsed());
                    match timeout(CONNECT_TURN_TIMEOUT.min(left), &mut turn).await {
                        Ok(turn) => break turn.ok()?,
                        Err(_) if began_at.elapsed() >= max_wait => return None,
                        Err(_) if self.lock_turn_start().elapsed() >= CONNECT_TURN_TIMEOUT => return None,
                        // Other requests have had their turns meanwhile, and none of them hangs.
                        Err(_) => {}
                    }
                }
            }
        };
        *self.lock_turn_start() = Instant::now();
        Some(turn)
    }

    fn lock_turn_start(&self) -> MutexGuard<'_, Instant> {
        self.turn_started_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// The peers of this configuration. `addresses` has the endpoint addresses of each backend.
    ///
    /// # Errors
    /// If a TLS file of a backend cannot be read.
    pub fn new(config: &Config, addresses: &[Arc<EndpointAddresses>]) -> Result<Self, CertificateFileError> {
        let peers = config.backends.iter().zip(addresses).map(|(backend, addresses)| {
            let peer = build_peer(backend, &config.timeouts, &config.server)?;
            let http2_gate = backend.http2_enabled.then(Http2ConnectGate::new);
            Ok(PeerTemplate { peer, addresses: Arc::clone(addresses), http2_gate })
        });
        Ok(Self { peers: peers.collect::<Result<_, _>>()? })
    }

    /// The certificates that backends of this configuration require.
    pub fn client_certificates(&self, config: &Config) -> Vec<LoadedCertificate> {
        let backends = config.backends.iter().zip(&self.peers);
        let certificates = backends.filter_map(|(backend, template)| {
            let certificate = template.peer.client_cert_key.as_ref()?.leaf();
            Some(LoadedCertificate {
                file: backend.tls.client_certificate.as_ref()?.certificate_path.clone(),
                user: format!("backend {}", backend.name),
                expires_at: certificate_expires_at(certificate)?,
            })
        });
        certificates.collect()
    }

    /// The peer for one attempt on the backend with this index; `None` if its name has never resolved. An
    /// upgrade gets HTTP/1.1, which WebSockets need.
    pub(in crate::proxy) fn peer_for_attempt(
        &self,
        backend_index: usize,
        is_upgrade: bool,
    ) -> Option<Box<HttpPeer>> {
        let template = self.peers.get(backend_index)?;
        let address = template.addresses.next_address()?;
        let mut peer = Box::new(template.peer.clone());
        // Pingora has no other way to set the address of a peer that has been built.
        peer._address = SocketAddr::Inet(address);
        if is_upgrade {
            peer.options.set_http_version(1, 1);
        }
        Some(peer)
    }

    /// The addresses of the endpoint of the backend with this index.
    pub fn endpoint_addresses(&self, backend_index: usize) -> Option<&EndpointAddresses> {
        self.peers.get(backend_index).map(|template| &*template.addresses)
    }

    /// Waits for the turn to find or make a connection to this backend; `None` if it needs none, or the
    /// wait took too long.
    pub(in crate::proxy) async fn acquire_connect_turn(&self, backend_index: usize) -> Option<ConnectTurn> {
        let http2_gate = self.peers.get(backend_index)?.http2_gate.as_ref()?;
        if http2_gate.speaks_http1_only.load(Ordering::Relaxed) {
            return None;
        }
        http2_gate.acquire_turn(MAX_CONNECT_TURN_WAIT).await
    }

    /// Records which protocol a backend chose, if it was offered HTTP/2.
    pub(in crate::proxy) fn note_protocol(&self, backend_index: usize, version: Version) {
        if let Some(http2_gate) = self.peers.get(backend_index).and_then(|peer| peer.http2_gate.as_ref()) {
            let speaks_http1_only = version != Version::HTTP_2;
            // Loaded first, because it seldom changes: unlike a store, a load leaves the cache line shared
            // between the cores.
            if http2_gate.speaks_http1_only.load(Ordering::Relaxed) != speaks_http1_only {
                http2_gate.speaks_http1_only.store(speaks_http1_only, Ordering::Relaxed);
            }
        }
    }
}

/// The peer of a backend, without an address.
fn build_peer(
    backend: &BackendConfig,
    timeouts: &config::TimeoutsConfig,
    server: &config::ServerConfig,
) -> Result<HttpPeer, CertificateFileError> {
    let endpoint = &backend.endpoint;
    let name = backend.tls.server_name_override.clone().unwrap_or_else(|| endpoint.host.clone());
    let mut peer = HttpPeer::new((Ipv4Addr::UNSPECIFIED, endpoint.port), endpoint.uses_tls, name);
    // The key tells connections apart in the pools. The address is not enough: many Azure resources share
    // addresses, and a connection to one must never carry a request for another. Nor does Pingora's own key
    // contain the CA.
    let mut key = DefaultHasher::new();
    let certificate = backend.tls.client_certificate.as_ref().map(|files| &files.certificate_path);
    let server_name = &backend.tls.server_name_override;
    (&endpoint.host, endpoint.port, endpoint.uses_tls, server_name, &backend.tls.ca_file, certificate)
        .hash(&mut key);
    peer.group_key = key.finish();
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect);
    options.idle_timeout = Some(timeouts.pooled_connection_idle);
    // Pingora's read timeout is the same for the first byte and between two reads. The deadlines of
    // `attempt/deadline.rs` distinguish them.
    options.read_timeout = None;
    options.write_timeout = Some(timeouts.response_idle);
    options.tcp_keepalive = Some(tcp_keepalive(server));
    // What a client does not read waits here as well.
    options.tcp_recv_buf = Some(SOCKET_BUFFER_BYTES);
    if backend.http2_enabled {
        options.set_http_version(2, 1);
        // Pingora's default is 1, that is, a connection for each request in flight.
        options.max_h2_streams = MAX_HTTP2_STREAMS;
        // The connection's window is large enough for all its streams: a response that its client does not
        // read must not block the others.
        options.h2_stream_window_size = Some(HTTP2_STREAM_WINDOW_BYTES);
        options.h2_connection_window_size = Some(HTTP2_STREAM_WINDOW_BYTES * MAX_HTTP2_STREAMS as u32);
        options.h2_ping_interval = Some(server.tcp_keepalive_idle);
    }
    if let Some(path) = &backend.tls.ca_file {
        options.ca = Some(Arc::new(load_ca_certificates(path)?));
    }
    if let Some(files) = &backend.tls.client_certificate {
        let to_ca_error = |error: CertifiedKeyError| CertificateFileError {
            path: files.certificate_path.clone(),
            problem: error.to_string(),
        };
        let CertifiedKey { leaf, intermediates, private_key } =
            CertifiedKey::from_files(files).map_err(to_ca_error)?;
        let certificates = std::iter::once(leaf).chain(intermediates).collect();
        peer.client_cert_key = Some(Arc::new(CertKey::new(certificates, private_key)));
    }
    Ok(peer)
}

/// TCP keep-alive: after the configured idle time three probes are sent, a third of that time apart.
pub(crate) fn tcp_keepalive(server: &config::ServerConfig) -> TcpKeepalive {
    TcpKeepalive {
        idle: server.tcp_keepalive_idle,
        interval: (server.tcp_keepalive_idle / 3).max(Duration::from_secs(1)),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// If the file cannot be read or has no certificate.
pub(in crate::proxy) fn load_ca_certificates(path: &Path) -> Result<Box<[X509]>, CertificateFileError> {
    let to_error = |problem| CertificateFileError { path: path.to_owned(), problem };
    config::load_certificate_authorities(path).map_err(to_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_does_not_wait_for_ever_while_others_have_their_turns() {
        let gate = Arc::new(Http2ConnectGate::new());
        let mut turn = gate.acquire_turn(MAX_CONNECT_TURN_WAIT).await;
        assert!(turn.is_some());
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.acquire_turn(Duration::from_millis(200)).await.is_some() }
        });
        // Each turn is short, and the next one follows before the request has its own.
        let others = async {
            while !waiting.is_finished() {
                *gate.lock_turn_start() = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), others).await.expect("it waits on");
        assert!(!waiting.await.unwrap());
        drop(turn.take());
        assert!(gate.acquire_turn(Duration::ZERO).await.is_some(), "a turn that is free is had at once");
    }
}
