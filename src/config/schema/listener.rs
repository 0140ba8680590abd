//! `listeners`: the addresses that clients connect to.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::values::CertifiedKeyFiles;

/// One address that clients connect to.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// The address to listen on; `[::]` accepts IPv4 and IPv6.
    pub address: SocketAddr,
    /// `None` for plain HTTP.
    pub tls: Option<ServerTlsConfig>,
    /// Whether HTTP/2 is offered to clients; only with TLS.
    pub http2_enabled: bool,
    /// The networks whose `x-forwarded-for` header is trusted.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The most connections at a time from one client address. Addresses of trusted proxies are not
    /// limited. At least 1.
    pub max_connections_per_client_address: usize,
}

/// The TLS settings of a listener, or of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsConfig {
    /// The server certificates, chosen by SNI; the first is the default. At least one.
    pub certified_key_files: Vec<CertifiedKeyFiles>,
    /// The lowest version that clients may use.
    pub minimum_version: TlsVersion,
    /// Cipher list for TLS 1.2 in OpenSSL's names; `None` for Mozilla's "intermediate" list.
    pub tls12_ciphers: Option<String>,
    /// Cipher suites for TLS 1.3 in OpenSSL's names; `None` for Mozilla's "intermediate" list.
    pub tls13_ciphersuites: Option<String>,
    /// A PEM file of certificate authorities: clients must present a certificate from one of them.
    /// `None`: no client certificate is requested.
    pub client_ca_file: Option<PathBuf>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is named after its version")]
pub enum TlsVersion {
    Tls12,
    Tls13,
}
