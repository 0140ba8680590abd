//! What several instances know together, through one Redis or Valkey, or a cluster of them: the connection to it, and the registry of the
//! instances that use it.
//!
//! Nothing here waits for the server on the way of a request: [`SharedLink::run`] has a time limit of a few
//! milliseconds, and fails at once while there is no connection. What is kept under the keys is left to the users.

mod backoff;
mod cluster;
mod connect;
mod error;
mod instances;
mod keys;
mod link;
mod link_state;
mod listing;
mod live_check;
mod node_address;
mod open_server;
mod problem;
mod server_connection;
mod session;
mod status;
mod stream;
mod subscriptions;
mod watch;

pub use self::error::SharedError;
pub use self::instances::{InstanceLoad, InstanceRegistry, Instances};
pub use self::keys::KeySpace;
pub use self::link::{DEFAULT_TIME_LIMIT, SharedLink};
pub use self::listing::Instance;
pub use self::live_check::check_server;
pub use self::status::LinkStatus;
pub use redis::{Cmd, Script, ScriptInvocation, Value, cmd};

use std::sync::Arc;

use crate::config::{KeyVaultConfig, RedisConfig, RedisCredential};
use crate::credentials::{Keyring, RefreshedSecret};

/// The password of `shared.redis`, or the token in its place; `None` if there is none.
pub fn find_secret(
    config: &RedisConfig,
    vaults: &KeyVaultConfig,
    keyring: &Keyring,
) -> Option<RefreshedSecret> {
    Some(match config.credential.as_ref()? {
        RedisCredential::Password(source) => keyring.find_or_start_secret(source, vaults),
        RedisCredential::Entra(entra) => keyring.find_or_start_entra_token(entra, vaults),
    })
}

/// What a process has of `shared`.
#[derive(Debug)]
pub struct Shared {
    /// The connection.
    pub link: Arc<SharedLink>,
    /// This instance and the others.
    pub instances: Arc<InstanceRegistry>,
}
