//! One request to a backend on our own account, beside those of clients.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;

use super::headers;
use crate::credentials::Value;
use crate::gateway::Backend;

/// The most that an answer may take once the question is put.
pub(in crate::proxy) const ANSWER: Duration = Duration::from_secs(10);
/// Most bytes of a reply that are looked at: those of an error.
const LOOKED_AT: usize = 64 * 1024;

/// What is asked.
pub(in crate::proxy) struct Question<'q> {
    pub(in crate::proxy) method: Method,
    pub(in crate::proxy) target: &'q str,
    /// JSON; empty: none.
    pub(in crate::proxy) body: &'static str,
}

/// Asks; returns status and the beginning of the body.
pub(in crate::proxy) async fn ask(
    backend: &Backend,
    (name, secret): (HeaderName, Arc<Value>),
    peer: &HttpPeer,
    connector: &Connector,
    question: Question<'_>,
) -> pingora::Result<(u16, Vec<u8>)> {
    let mut request = RequestHeader::build(question.method, question.target.as_bytes(), Some(6))?;
    headers::address(&mut request, backend)?;
    request.insert_header(name, secret.header.clone())?;
    if !question.body.is_empty() {
        request.insert_header(http::header::CONTENT_TYPE, "application/json")?;
        request.insert_header(http::header::CONTENT_LENGTH, question.body.len())?;
    }
    let (mut session, _) = connector.get_http_session(peer).await?;
    session.set_read_timeout(Some(ANSWER));
    session.write_request_header(Box::new(request)).await?;
    if !question.body.is_empty() {
        session.write_request_body(Bytes::from_static(question.body.as_bytes()), true).await?;
    }
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let status = session.response_header().map_or(0, |header| header.status.as_u16());
    let mut body = Vec::new();
    while let Some(piece) = session.read_response_body().await? {
        body.extend_from_slice(&piece);
        if body.len() > LOOKED_AT {
            break;
        }
    }
    if session.response_done() {
        connector.release_http_session(session, peer, peer.options.idle_timeout).await;
    }
    Ok((status, body))
}
