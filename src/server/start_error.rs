//! Why the process cannot start.

use std::io;

use super::upgrade::TakeoverError;
use crate::proxy::client::tls::TlsError;
use crate::proxy::upstream::peer::CaError;
use crate::record::RecorderError;

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{key}: cannot listen on {address}: {problem}")]
    Listen {
        /// The configuration's key.
        key: String,
        /// The address.
        address: String,
        /// The system's reason.
        problem: io::Error,
    },
    /// Records cannot be kept.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// A listener's TLS cannot be set up.
    #[error("{key}.tls.{problem}")]
    ListenerTls {
        /// The configuration's key of the listener.
        key: String,
        /// What is wrong.
        problem: TlsError,
    },
    /// A file of a backend's TLS cannot be read.
    #[error("backends[].tls: {0}")]
    BackendTls(#[from] CaError),
    /// Nobody is there whose sockets could be taken over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The background runtime cannot be started.
    #[error("cannot start the background runtime: {0}")]
    BackgroundRuntime(io::Error),
}
