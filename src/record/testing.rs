//! Exchanges for the tests of this module.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::exchange::FinishedExchange;
use crate::admission::client::Client;
use crate::names::ClientName;

/// A stream that was answered with 200, of no client and without content.
pub(super) fn answered_exchange() -> FinishedExchange {
    FinishedExchange {
        is_deployment_known: true,
        is_stream_requested: Some(true),
        ..FinishedExchange::answered(Arc::from("019"), SystemTime::UNIX_EPOCH, "POST")
    }
}

/// A private directory in memory, as `/run/aoai-lb` is.
pub(super) fn memory_directory() -> tempfile::TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir_in("/dev/shm").unwrap()
}

/// A client of this name.
pub(super) fn client(name: Option<ClientName>) -> Arc<Client> {
    let mut client = Client::unrestricted();
    client.name = name;
    Arc::new(client)
}
