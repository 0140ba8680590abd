//! Exchanges for the tests of this module.

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

/// A client of this name.
pub(super) fn client(name: Option<ClientName>) -> Arc<Client> {
    let mut client = Client::unrestricted();
    client.name = name;
    Arc::new(client)
}
