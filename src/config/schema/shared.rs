//! `shared`: what several instances know together.

use std::path::PathBuf;

use super::credentials::{EntraCredential, SecretSource};
use crate::config::values::Endpoint;

/// The Redis or Valkey server through which several instances act as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// Its host and port, and whether connections to it use TLS.
    pub endpoint: Endpoint,
    /// The user of its access control list; `None` for the default user.
    pub username: Option<String>,
    /// What this instance authenticates with; `None` if the server asks for nothing.
    pub credential: Option<RedisCredential>,
    /// The PEM file of the certificate authorities that its certificate has to come from; `None` for those of the
    /// system.
    pub ca_file: Option<PathBuf>,
    /// What all keys and channels begin with.
    pub prefix: String,
}

/// What authenticates to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisCredential {
    /// A password, or an access key.
    Password(SecretSource),
    /// An Entra ID token in place of the password. It is renewed on the open connection.
    Entra(EntraCredential),
}

impl RedisConfig {
    /// `HOST:PORT`, always with the port.
    pub fn address(&self) -> String {
        let Endpoint { host, port, .. } = &self.endpoint;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}
