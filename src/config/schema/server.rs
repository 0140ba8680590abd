//! `timeouts`, `admin` and `server`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::credentials::SecretSource;
use super::listener::ListenerTlsConfig;

/// How long each step may take; all above zero and at most 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutsConfig {
    /// TCP and TLS to a backend.
    pub connect: Duration,
    /// From the request sent to the response head.
    pub first_byte: Duration,
    /// The same for a request that asks for a stream.
    pub first_byte_of_stream: Duration,
    /// Between two pieces of a response.
    pub response_idle: Duration,
    /// For a client's request head.
    pub request_head: Duration,
    /// For the whole of a client's request body; between two pieces of one that passes through.
    pub request_body: Duration,
    /// How long an unused upstream connection is kept.
    pub pooled_connection_idle: Duration,
}

/// The admin API.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: AdminAddress,
    /// What has to be shown; always there beyond loopback.
    pub token: Option<SecretSource>,
    /// The same.
    pub tls: Option<ListenerTlsConfig>,
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address that no listener uses.
    Tcp(SocketAddr),
    /// A Unix socket; the path is short enough for one.
    Unix(PathBuf),
}

/// The process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Worker threads; 1 to 256.
    pub worker_threads: usize,
    /// How long requests in flight may go on after a stop was asked for.
    pub grace_period: Duration,
    /// How long listeners stay after readiness has failed.
    pub drain_delay: Duration,
    /// Silence after which TCP probes both sides; whole seconds, 1 s to 9 h.
    pub tcp_keepalive: Duration,
    /// Where an upgrade hands the listening sockets over; its directory is the balancer's own.
    pub upgrade_socket_path: PathBuf,
}
