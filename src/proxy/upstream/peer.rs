//! A backend as Pingora's peer: address, name, TLS, time-outs.
//!
//! Addresses come from `dns.rs`; no look-up happens here.

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

use super::dns::Addresses;
use crate::config::{self, Backend, BadPair, Config, KeyPair};

/// Most streams of one connection, where the other side does not ask for fewer. Azure allows as
/// many as most servers do.
const STREAMS: usize = 100;
/// How much of an answer may be under way, in bytes: a fast answer over a tenth of a second's way
/// needs as much.
const STREAM_WINDOW: u32 = 512 * 1024;
/// A good connection is made within this time: three ways there and back to another continent,
/// and a busy machine at either end.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);

/// Why a backend cannot be connected to at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct BadAuthority {
    path: std::path::PathBuf,
    problem: String,
}

/// The peers of a configuration, by the backend's place in it.
pub struct Peers {
    peers: Vec<Template>,
}

struct Template {
    peer: HttpPeer,
    addresses: Arc<Addresses>,
    /// Before a stream of HTTP/2; none for backends without.
    entrance: Option<Entrance>,
}

/// One after the other looks for a connection, so that many requests at once share the one that the
/// first of them opens.
struct Entrance {
    turns: Arc<Semaphore>,
    /// The other side speaks HTTP/1.1 after all: no connection can be shared.
    is_useless: AtomicBool,
    /// Since when somebody has the turn.
    since: Mutex<Instant>,
}

/// The right to look for a connection, until there is one.
pub(in crate::proxy) type Turn = OwnedSemaphorePermit;

impl Entrance {
    fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(1)),
            is_useless: AtomicBool::new(false),
            since: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn, unless whoever has it takes longer than a good connection does.
    async fn turn(&self) -> Option<Turn> {
        let turn = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let mut turn = pin!(Arc::clone(&self.turns).acquire_owned());
                loop {
                    match timeout(CONNECTS_WITHIN, &mut turn).await {
                        Ok(turn) => break turn.ok()?,
                        Err(_) if self.since().elapsed() >= CONNECTS_WITHIN => return None,
                        Err(_) => {}
                    }
                }
            }
        };
        *self.since() = Instant::now();
        Some(turn)
    }

    fn since(&self) -> MutexGuard<'_, Instant> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// The peers of this configuration; `addresses` are those of its endpoints, one for each
    /// backend.
    ///
    /// # Errors
    /// When a file of its TLS cannot be read.
    pub fn new(config: &Config, addresses: &[Arc<Addresses>]) -> Result<Self, BadAuthority> {
        let peers = config.backends.iter().zip(addresses).map(|(backend, addresses)| {
            let peer = template(backend, &config.timeouts, &config.server)?;
            let entrance = backend.http2.then(Entrance::new);
            Ok(Template { peer, addresses: Arc::clone(addresses), entrance })
        });
        Ok(Self { peers: peers.collect::<Result<_, _>>()? })
    }

    /// A peer for one attempt on this backend; `None` while its name has never resolved. One that
    /// is to become another protocol cannot share a connection.
    pub(in crate::proxy) fn of(&self, backend: usize, upgrades: bool) -> Option<Box<HttpPeer>> {
        let template = self.peers.get(backend)?;
        let address = template.addresses.next()?;
        let mut peer = Box::new(template.peer.clone());
        peer._address = SocketAddr::Inet(address);
        if upgrades {
            peer.options.set_http_version(1, 1);
        }
        Some(peer)
    }

    /// The turn to look for a connection to a backend of HTTP/2.
    pub(in crate::proxy) async fn turn(&self, backend: usize) -> Option<Turn> {
        let entrance = self.peers.get(backend)?.entrance.as_ref()?;
        if entrance.is_useless.load(Ordering::Relaxed) {
            return None;
        }
        entrance.turn().await
    }

    /// Takes note of what a backend speaks that was offered HTTP/2.
    pub(in crate::proxy) fn speaks(&self, backend: usize, version: Version) {
        if let Some(entrance) = self.peers.get(backend).and_then(|peer| peer.entrance.as_ref()) {
            let is_useless = version != Version::HTTP_2;
            // It seldom changes.
            if entrance.is_useless.load(Ordering::Relaxed) != is_useless {
                entrance.is_useless.store(is_useless, Ordering::Relaxed);
            }
        }
    }
}

fn template(
    backend: &Backend,
    timeouts: &config::Timeouts,
    server: &config::Server,
) -> Result<HttpPeer, BadAuthority> {
    let endpoint = &backend.endpoint;
    let name = backend.tls.server_name.clone().unwrap_or_else(|| endpoint.host.clone());
    let mut peer = HttpPeer::new((Ipv4Addr::UNSPECIFIED, endpoint.port), endpoint.tls, name);
    // Many resources share addresses: a connection of one must never carry another's request.
    let mut key = DefaultHasher::new();
    let files = backend.tls.pair.as_ref().map(|files| &files.certificate);
    let server_name = &backend.tls.server_name;
    (&endpoint.host, endpoint.port, endpoint.tls, server_name, &backend.tls.ca, files).hash(&mut key);
    peer.group_key = key.finish();
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect);
    options.idle_timeout = Some(timeouts.pool_idle);
    // Time to first byte and silence between bytes are told apart by a timer of ours; the
    // engine's single read time-out could not.
    options.read_timeout = None;
    options.write_timeout = Some(timeouts.idle);
    options.tcp_keepalive = Some(keepalive(server));
    if backend.http2 {
        options.set_http_version(2, 1);
        options.max_h2_streams = STREAMS;
        // One answer that its client does not read must not hold up the others of its connection.
        options.h2_stream_window_size = Some(STREAM_WINDOW);
        options.h2_connection_window_size = Some(STREAM_WINDOW * STREAMS as u32);
        options.h2_ping_interval = Some(server.tcp_keepalive);
    }
    if let Some(path) = &backend.tls.ca {
        options.ca = Some(Arc::new(authorities(path)?));
    }
    if let Some(files) = &backend.tls.pair {
        let bad =
            |problem: BadPair| BadAuthority { path: files.certificate.clone(), problem: problem.to_string() };
        let KeyPair { leaf, chain, key } = KeyPair::read(files).map_err(bad)?;
        let certificates = std::iter::once(leaf).chain(chain).collect();
        peer.client_cert_key = Some(Arc::new(CertKey::new(certificates, key)));
    }
    Ok(peer)
}

/// Probing begins after the configured silence; then three probes, a third of it apart.
pub(crate) fn keepalive(server: &config::Server) -> TcpKeepalive {
    TcpKeepalive {
        idle: server.tcp_keepalive,
        interval: (server.tcp_keepalive / 3).max(Duration::from_secs(1)),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

pub(in crate::proxy) fn authorities(path: &Path) -> Result<Box<[X509]>, BadAuthority> {
    let bad = |problem: String| BadAuthority { path: path.to_owned(), problem };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let authorities = X509::stack_from_pem(&pem).map_err(|e| bad(e.to_string()))?;
    if authorities.is_empty() {
        return Err(bad("holds no PEM certificate".to_owned()));
    }
    Ok(authorities.into_boxed_slice())
}
