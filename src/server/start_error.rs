//! Why the process cannot start.

use std::io;

use super::upgrade::TakeoverError;
use crate::proxy::client::tls::TlsError;
use crate::proxy::upstream::peer::CertificateFileError;
use crate::record::RecorderError;
use crate::system_error::describe;

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("{key}: cannot listen on {address}: {reason}")]
    Listen {
        /// Its key in the file.
        key: String,
        /// The address.
        address: String,
        /// Why not, and who holds it if it is taken.
        reason: String,
    },
    /// The recorder cannot start.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// The TLS of a listener or of the admin API cannot be set up.
    #[error("{key}.tls.{problem}")]
    ListenerTls {
        /// The key of the listener in the file.
        key: String,
        /// What is wrong.
        problem: TlsError,
    },
    /// A TLS file of a backend cannot be read.
    #[error("backends[].tls: {0}")]
    BackendTls(#[from] CertificateFileError),
    /// The sockets of the running process cannot be taken over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The background runtime cannot be started.
    #[error("cannot start the background runtime: {}", describe(.0))]
    BackgroundRuntime(io::Error),
}
