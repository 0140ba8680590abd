//! Serves one connection: one request after the other, until either side ends it.

use std::time::Instant;

use super::request_handler::{NextConnectionAction, RequestHandler};
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::status::reason_phrase;
use crate::demo::resource::state::ResourceState;

/// Serves a connection until either side ends it.
pub(super) async fn serve_connection<S: ResettableStream>(
    resource: &ResourceState,
    stream: S,
    connection_number: u64,
) {
    let mut connection = HttpConnection::new(stream);
    loop {
        let head = match connection.read_head(resource.definition.idle_timeout).await {
            Ok(Some(head)) => head,
            Ok(None) => return connection.close().await,
            Err(error) => {
                send_protocol_error(&mut connection, &error).await;
                return connection.close().await;
            }
        };
        let log_entry_number = resource.request_log.record_request(&head, connection_number, Instant::now());
        let mut handler =
            RequestHandler { resource, connection: &mut connection, head: &head, log_entry_number };
        match handler.handle_request().await {
            Ok(NextConnectionAction::ReadNextRequest) => {}
            Ok(NextConnectionAction::Close) => return connection.close().await,
            Ok(NextConnectionAction::Reset) => return connection.reset().await,
            Err(ConnectionError::Disconnected) => {
                resource
                    .request_log
                    .update_request(log_entry_number, |logged| logged.client_disconnected = true);
                return;
            }
            Err(error) => {
                send_protocol_error(&mut connection, &error).await;
                return connection.close().await;
            }
        }
    }
}

/// Responds to a malformed request with the reason as plain text.
async fn send_protocol_error<S: ResettableStream>(
    connection: &mut HttpConnection<S>,
    error: &ConnectionError,
) {
    let ConnectionError::MalformedRequest(status, reason) = error else { return };
    log::debug!("simulate: malformed request, responding with {status}: {reason}");
    let text = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{reason}",
        reason_phrase(*status),
        reason.len()
    );
    if connection.write_all(text.as_bytes()).await.is_err() {
        log::trace!("simulate: the client disconnected before it received the {status}");
    }
}
