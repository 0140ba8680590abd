//! A backend as Pingora's peer: address, name, TLS, time-outs.
//!
//! Addresses come from `dns.rs`; no look-up happens here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use openssl::x509::X509;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::CertKey;

use super::dns::Addresses;
use crate::config::{self, Backend, BadPair, Config, KeyPair};

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
            Ok(Template { peer, addresses: Arc::clone(addresses) })
        });
        Ok(Self { peers: peers.collect::<Result<_, _>>()? })
    }

    /// A peer for one attempt on this backend; `None` while its name has never resolved.
    pub(super) fn of(&self, backend: usize) -> Option<Box<HttpPeer>> {
        let template = self.peers.get(backend)?;
        let address = template.addresses.next()?;
        let mut peer = Box::new(template.peer.clone());
        peer._address = SocketAddr::Inet(address);
        Some(peer)
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
    (&endpoint.host, endpoint.port, &backend.tls.ca, files).hash(&mut key);
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
        interval: (server.tcp_keepalive / 3).max(std::time::Duration::from_secs(1)),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: std::time::Duration::ZERO,
    }
}

pub(super) fn authorities(path: &Path) -> Result<Box<[X509]>, BadAuthority> {
    let bad = |problem: String| BadAuthority { path: path.to_owned(), problem };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let authorities = X509::stack_from_pem(&pem).map_err(|e| bad(e.to_string()))?;
    if authorities.is_empty() {
        return Err(bad("holds no PEM certificate".to_owned()));
    }
    Ok(authorities.into_boxed_slice())
}
