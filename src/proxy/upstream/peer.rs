//! Each backend as a Pingora peer: address, server name, TLS, timeouts. Addresses come from `dns.rs`; no
//! name is resolved here.

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
use crate::config::{self, BackendConfig, CertifiedKey, CertifiedKeyError, Config};

/// Most HTTP/2 streams of one connection, unless the backend allows fewer. 100 is what Azure and most
/// servers allow.
const MAX_HTTP2_STREAMS: usize = 100;
/// The flow-control window of a stream: a fast response over a round trip of 100 ms needs as much.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// A request waits no longer for another to make a connection. A healthy one takes less: three round
/// trips to another continent, and a busy machine at either end.
const CONNECT_TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// A file of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CaError {
    path: std::path::PathBuf,
    problem: String,
}

/// The peers of a configuration, by the index of the backend in it.
pub struct Peers {
    peers: Vec<PeerTemplate>,
}

struct PeerTemplate {
    peer: HttpPeer,
    addresses: Arc<EndpointAddresses>,
    /// `None` for backends without HTTP/2.
    http2_gate: Option<Http2ConnectGate>,
}

/// Lets one request at a time look for a connection: requests that come together then share the
/// connection that the first of them opens.
struct Http2ConnectGate {
    turns: Arc<Semaphore>,
    /// The backend has chosen HTTP/1.1: no connection can be shared, and the gate is open.
    speaks_http1_only: AtomicBool,
    /// When the current turn began.
    turn_started: Mutex<Instant>,
}

/// Held while a request looks for a connection.
pub(in crate::proxy) type ConnectTurn = OwnedSemaphorePermit;

impl Http2ConnectGate {
    fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(1)),
            speaks_http1_only: AtomicBool::new(false),
            turn_started: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a turn; `None` if the request before takes longer than a healthy connection does, so
    /// that one connection that hangs does not hold up the others.
    async fn turn(&self) -> Option<ConnectTurn> {
        let turn = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let mut turn = pin!(Arc::clone(&self.turns).acquire_owned());
                loop {
                    match timeout(CONNECT_TURN_TIMEOUT, &mut turn).await {
                        Ok(turn) => break turn.ok()?,
                        Err(_) if self.turn_started().elapsed() >= CONNECT_TURN_TIMEOUT => return None,
                        Err(_) => {}
                    }
                }
            }
        };
        *self.turn_started() = Instant::now();
        Some(turn)
    }

    fn turn_started(&self) -> MutexGuard<'_, Instant> {
        self.turn_started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// The peers of this configuration; `addresses` are those of its endpoints, one for each
    /// backend.
    ///
    /// # Errors
    /// When a file of its TLS cannot be read.
    pub fn new(config: &Config, addresses: &[Arc<EndpointAddresses>]) -> Result<Self, CaError> {
        let peers = config.backends.iter().zip(addresses).map(|(backend, addresses)| {
            let peer = template(backend, &config.timeouts, &config.server)?;
            let http2_gate = backend.http2_enabled.then(Http2ConnectGate::new);
            Ok(PeerTemplate { peer, addresses: Arc::clone(addresses), http2_gate: http2_gate })
        });
        Ok(Self { peers: peers.collect::<Result<_, _>>()? })
    }

    /// The peer for one attempt on this backend; `None` while its name has never resolved. An upgrade
    /// gets a connection of its own, over HTTP/1.1.
    pub(in crate::proxy) fn peer_for_attempt(
        &self,
        backend: usize,
        is_upgrade: bool,
    ) -> Option<Box<HttpPeer>> {
        let template = self.peers.get(backend)?;
        let address = template.addresses.next_address()?;
        let mut peer = Box::new(template.peer.clone());
        peer._address = SocketAddr::Inet(address);
        if is_upgrade {
            peer.options.set_http_version(1, 1);
        }
        Some(peer)
    }

    /// Waits for the turn to look for an HTTP/2 connection to this backend.
    pub(in crate::proxy) async fn connect_turn(&self, backend: usize) -> Option<ConnectTurn> {
        let http2_gate = self.peers.get(backend)?.http2_gate.as_ref()?;
        if http2_gate.speaks_http1_only.load(Ordering::Relaxed) {
            return None;
        }
        http2_gate.turn().await
    }

    /// Records which protocol a backend chose that was offered HTTP/2.
    pub(in crate::proxy) fn note_protocol(&self, backend: usize, version: Version) {
        if let Some(http2_gate) = self.peers.get(backend).and_then(|peer| peer.http2_gate.as_ref()) {
            let speaks_http1_only = version != Version::HTTP_2;
            // It seldom changes: a load leaves the cache line shared, a store does not.
            if http2_gate.speaks_http1_only.load(Ordering::Relaxed) != speaks_http1_only {
                http2_gate.speaks_http1_only.store(speaks_http1_only, Ordering::Relaxed);
            }
        }
    }
}

fn template(
    backend: &BackendConfig,
    timeouts: &config::TimeoutsConfig,
    server: &config::ServerConfig,
) -> Result<HttpPeer, CaError> {
    let endpoint = &backend.endpoint;
    let name = backend.tls.server_name.clone().unwrap_or_else(|| endpoint.host.clone());
    let mut peer = HttpPeer::new((Ipv4Addr::UNSPECIFIED, endpoint.port), endpoint.uses_tls, name);
    // Many resources share addresses: a connection of one must never carry a request for another.
    let mut key = DefaultHasher::new();
    let files = backend.tls.client_certificate.as_ref().map(|files| &files.certificate);
    let server_name = &backend.tls.server_name;
    (&endpoint.host, endpoint.port, endpoint.uses_tls, server_name, &backend.tls.ca_file, files)
        .hash(&mut key);
    peer.group_key = key.finish();
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect);
    options.idle_timeout = Some(timeouts.pooled_connection_idle);
    // The engine's read timeout is one for the first byte and for silence between bytes;
    // `attempt/deadline.rs` tells them apart.
    options.read_timeout = None;
    options.write_timeout = Some(timeouts.response_idle);
    options.tcp_keepalive = Some(tcp_keepalive(server));
    if backend.http2_enabled {
        options.set_http_version(2, 1);
        options.max_h2_streams = MAX_HTTP2_STREAMS;
        // A response that its client does not read must not hold up the others on its connection.
        options.h2_stream_window_size = Some(HTTP2_STREAM_WINDOW_BYTES);
        options.h2_connection_window_size = Some(HTTP2_STREAM_WINDOW_BYTES * MAX_HTTP2_STREAMS as u32);
        options.h2_ping_interval = Some(server.tcp_keepalive);
    }
    if let Some(path) = &backend.tls.ca_file {
        options.ca = Some(Arc::new(load_ca_certificates(path)?));
    }
    if let Some(files) = &backend.tls.client_certificate {
        let bad = |problem: CertifiedKeyError| CaError {
            path: files.certificate.clone(),
            problem: problem.to_string(),
        };
        let CertifiedKey { leaf, intermediates: chain, private_key: key } =
            CertifiedKey::from_files(files).map_err(bad)?;
        let certificates = std::iter::once(leaf).chain(chain).collect();
        peer.client_cert_key = Some(Arc::new(CertKey::new(certificates, key)));
    }
    Ok(peer)
}

/// TCP keep-alive: it begins after the configured silence, and then sends three probes, a third of that
/// time apart.
pub(crate) fn tcp_keepalive(server: &config::ServerConfig) -> TcpKeepalive {
    TcpKeepalive {
        idle: server.tcp_keepalive,
        interval: (server.tcp_keepalive / 3).max(Duration::from_secs(1)),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

pub(in crate::proxy) fn load_ca_certificates(path: &Path) -> Result<Box<[X509]>, CaError> {
    let bad = |problem: String| CaError { path: path.to_owned(), problem };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let authorities = X509::stack_from_pem(&pem).map_err(|e| bad(e.to_string()))?;
    if authorities.is_empty() {
        return Err(bad("holds no PEM certificate".to_owned()));
    }
    Ok(authorities.into_boxed_slice())
}
