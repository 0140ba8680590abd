//! `timeouts`, `admin` and `server`: the process as a whole.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials::SecretSource;
use super::listener::ServerTlsConfig;

/// How long each step may take. Each is above zero and at most 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutsConfig {
    /// To connect to a backend, TLS handshake included.
    pub connect: Duration,
    /// From the end of the request to the response head.
    pub first_byte: Duration,
    /// The same for a request that asks for a stream.
    pub first_byte_of_stream: Duration,
    /// Between two reads of a response body, and for each write.
    pub response_idle: Duration,
    /// For a client to send its request head.
    pub request_head: Duration,
    /// For a client to send its whole request body; for a streamed upload, between two reads.
    pub request_body: Duration,
    /// How long an idle upstream connection is kept.
    pub pooled_connection_idle: Duration,
}

/// The admin API.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: AdminAddress,
    /// The bearer token that requests must have. Always set for a TCP address other than loopback.
    pub token: Option<SecretSource>,
    /// `None` for plain HTTP. Always set for a TCP address other than loopback.
    pub tls: Option<ServerTlsConfig>,
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address and port that no listener uses.
    Tcp(SocketAddr),
    /// The path of a Unix socket, within the length that the kernel allows.
    Unix(PathBuf),
}

/// Threads, shutdown, keepalive and upgrades.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Worker threads; 1 to 256.
    pub worker_threads: usize,
    /// How long requests in flight may take to finish after the process was told to stop.
    pub grace_period: Duration,
    /// How long listeners keep accepting after readiness has begun to fail.
    pub drain_delay: Duration,
    /// How long a connection is idle before TCP keepalive probes are sent, to clients and to backends.
    /// Whole seconds, 1 s to 9 h.
    pub tcp_keepalive_idle: Duration,
    /// The Unix socket through which an upgrade hands over the listening sockets. Only the balancer uses
    /// its directory.
    pub upgrade_socket_path: PathBuf,
    /// The directory for what survives a restart; only the balancer uses it. It may be missing or not be
    /// writable. `None` for nothing.
    pub state_directory: Option<PathBuf>,
}

impl ServerConfig {
    /// The directory of the upgrade socket, which only the balancer uses.
    pub fn runtime_directory(&self) -> &Path {
        let parent = self.upgrade_socket_path.parent();
        parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}
