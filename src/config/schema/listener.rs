//! `listeners`: where clients connect.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::values::CertifiedKeyFiles;

/// One address clients connect to.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The socket address; `[::]` is dual-stack.
    pub address: SocketAddr,
    /// What clients speak TLS with; `None`: they do not.
    pub tls: Option<ListenerTlsConfig>,
    /// Whether clients may speak HTTP/2; only with TLS.
    pub http2_enabled: bool,
    /// The networks whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Most connections at once from one address that is no trusted proxy's; at least 1.
    pub max_connections_per_client: usize,
}

/// The TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTlsConfig {
    /// What it shows: the first to whoever names none of the others' hosts. At least one.
    pub certified_keys: Vec<CertifiedKeyFiles>,
    /// What clients have to speak at least.
    pub minimum_version: TlsVersion,
    /// For TLS 1.2, by OpenSSL's names; `None`: Mozilla's "intermediate".
    pub tls12_ciphers: Option<String>,
    /// For TLS 1.3, by OpenSSL's names; `None`: Mozilla's "intermediate".
    pub tls13_ciphersuites: Option<String>,
    /// A PEM file of authorities: clients have to show a certificate of one of them. `None`: they
    /// need none.
    pub client_ca_file: Option<PathBuf>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the version's number")]
pub enum TlsVersion {
    Tls12,
    Tls13,
}
