//! Answers the handshake of a Responses socket and hands the connection over to its session.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::{Error, ErrorType, Result};

use super::client_link::ClientLink;
use super::session::SocketSession;
use super::shared::{SocketOpener, SocketServices, SocketShared};
use super::upstream_socket::accept_value;
use crate::proxy::attempt::final_response::adjust_common_headers;
use crate::proxy::client::client_request::ClientRequest;
use crate::proxy::client::response_writer::write_to_client;
use crate::proxy::client::websocket_handshake::offered_subprotocol;
use crate::proxy::context::RequestContext;
use crate::proxy::timer::Timer;
use crate::proxy::websocket::frames::{FrameSender, MessageReader, MessageWriter};

/// The largest first message of a socket, in bytes.
const MAX_FIRST_MESSAGE_BYTES: usize = 1024 * 1024;

/// Answers the handshake of a Responses socket, and runs the socket to its end.
///
/// # Errors
/// If the client is lost before it has the answer.
pub(in crate::proxy) async fn open_responses_socket(
    services: SocketServices,
    session: &mut ServerSession,
    context: &mut RequestContext,
    timer: &mut Timer,
) -> Result<()> {
    let handshake_head = session.req_header().clone();
    let subprotocol = offered_subprotocol(&handshake_head.headers).map(str::to_owned);
    let mut header = ResponseHeader::build(StatusCode::SWITCHING_PROTOCOLS, Some(8))?;
    header.insert_header(CONNECTION, "Upgrade")?;
    header.insert_header(UPGRADE, "websocket")?;
    let key = handshake_head.headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], |key| key.as_bytes());
    header.insert_header(SEC_WEBSOCKET_ACCEPT, accept_value(key))?;
    if let Some(subprotocol) = &subprotocol {
        header.insert_header(SEC_WEBSOCKET_PROTOCOL, subprotocol.as_str())?;
    }
    adjust_common_headers(context, &mut header)?;
    context.overhead_clock.pause(Instant::now());
    context.ending.client_status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
    let limit = context.gateway().timeouts.response_idle;
    let tasks = vec![HttpTask::Header(Box::new(header), false)];
    write_to_client(session, tasks, limit, || context.hold_unread_response()).await?;
    // From now on only the turns count as in flight.
    context.leave_in_flight();
    let first_bytes = session.read_body_or_idle(false).now_or_never();
    let first_bytes = first_bytes.transpose().map_err(Error::into_down)?.flatten().unwrap_or_default();
    let unused = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    let ServerSession::H1(client) = std::mem::replace(session, unused) else {
        return Error::e_explain(ErrorType::InternalError, "a WebSocket needs HTTP/1.1");
    };
    let Some(opener) = socket_opener(context, &handshake_head)? else { return Ok(()) };
    let (read_half, write_half) = tokio::io::split(client.into_inner());
    let mut reader = MessageReader::new(
        read_half,
        FrameSender::Client,
        first_bytes,
        MAX_FIRST_MESSAGE_BYTES,
        context.empty_memory_reservation(),
    );
    reader.limit_message_time(context.gateway().timeouts.request_body);
    let link = ClientLink::new(MessageWriter::new(write_half, FrameSender::Backend));
    let subject = context.request.certificate_subject.take();
    let shared = SocketShared::new(services, handshake_head, subject, subprotocol, opener, link);
    SocketSession::new(Arc::new(shared), reader).run(context, timer).await;
    Ok(())
}

/// The details of the handshake that its turns need.
fn socket_opener(
    context: &RequestContext,
    handshake_head: &pingora::http::RequestHeader,
) -> Result<Option<SocketOpener>> {
    let opened = &context.request;
    let Some(client) = opened.client.clone() else { return Ok(None) };
    let mut request = ClientRequest::new(Method::GET);
    request.id = Arc::clone(&opened.id);
    request.peer_ip = opened.peer_ip;
    request.client_ip = opened.client_ip;
    request.headers_for_record = opened.headers_for_record.clone();
    request.target.clone_from(&opened.target);
    request.class = opened.class;
    // Parsed as a POST: a deployment in the query, which a handshake may have, does not apply to turns.
    let turn_target = context
        .gateway()
        .check_method_and_parse_target(&Method::POST, handshake_head.raw_path(), false)
        .map_err(|_| {
            Error::explain(ErrorType::InternalError, "the target of a handshake was parsed before")
        })?;
    Ok(Some(SocketOpener { request, turn_target, config: Arc::clone(&context.config), client }))
}
