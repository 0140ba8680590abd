//! Our own calls to other services (tokens, ingestion): one client, one set of time-outs, the same
//! TLS as towards backends.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use pingora::ErrorType;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::time;

use crate::config::Endpoint;

/// The most it may take to find and reach the other side.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are looked at.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Calls other services.
pub struct OutboundClient {
    connector: Connector,
    /// The most a whole call may take.
    timeout: Duration,
    /// Most bytes of an answer that are looked at.
    max_response_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct OutboundResponse {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, or the beginning of a long one.
    pub body: Bytes,
}

/// A call to be made. It has no `Debug`: secrets are in it.
pub struct OutboundRequest<'a> {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub path_and_query: &'a str,
    /// Names and values.
    pub headers: &'a [(&'static str, &'a str)],
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The host's name has no address.
    #[error("{host} does not resolve")]
    Dns {
        /// The host.
        host: String,
    },
    /// No connection, or one that broke.
    #[error("{host}: {message}")]
    Transport {
        /// The host.
        host: String,
        /// What happened to it.
        message: String,
    },
    /// It took too long.
    #[error("{host} did not answer within {timeout:?}")]
    TimedOut {
        /// The host.
        host: String,
        /// How long it had.
        timeout: Duration,
    },
}

impl OutboundClient {
    /// A client whose calls may take so long.
    pub fn new(timeout: Duration) -> Self {
        Self { connector: Connector::new(None), timeout, max_response_bytes: MAX_RESPONSE_BYTES }
    }

    /// The same for answers of so many bytes.
    #[must_use]
    pub fn with_max_response_bytes(self, max_response_bytes: usize) -> Self {
        Self { max_response_bytes, ..self }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// [`OutboundError`] where there is no whole answer.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        request: OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let exchange = async {
            let lookup = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
            let addresses = time::timeout(CONNECT_TIMEOUT, lookup).await.ok().and_then(Result::ok);
            let first_address = addresses.and_then(|mut addresses| addresses.next());
            let address = first_address.ok_or_else(|| OutboundError::Dns { host: endpoint.host.clone() })?;
            let peer = HttpPeer::new(address, endpoint.uses_tls, endpoint.host.clone());
            self.exchange_with_peer(peer, &endpoint.host, &endpoint.authority(), &request).await
        };
        self.run_with_timeout(&endpoint.host, exchange).await
    }

    /// Makes a call to a process of this machine, by its Unix socket.
    ///
    /// # Errors
    /// As [`OutboundClient::call`].
    pub async fn send_to_socket(
        &self,
        path: &str,
        request: OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let exchange = async {
            let peer = HttpPeer::new_uds(path, false, String::new());
            let transport_error = |error: Box<pingora::Error>| OutboundError::Transport {
                host: path.to_owned(),
                message: error.to_string(),
            };
            self.exchange_with_peer(peer.map_err(transport_error)?, path, "localhost", &request).await
        };
        self.run_with_timeout(path, exchange).await
    }

    async fn run_with_timeout(
        &self,
        host: &str,
        exchange: impl Future<Output = Result<OutboundResponse, OutboundError>>,
    ) -> Result<OutboundResponse, OutboundError> {
        let timeout = self.timeout;
        let timed_out = |_| OutboundError::TimedOut { host: host.to_owned(), timeout };
        time::timeout(timeout, exchange).await.map_err(timed_out)?
    }

    async fn exchange_with_peer(
        &self,
        mut peer: HttpPeer,
        host: &str,
        authority: &str,
        request: &OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let transport_error = |error: Box<pingora::Error>| OutboundError::Transport {
            host: host.to_owned(),
            message: match error.etype() {
                // The engine quotes what it could not read, which may be a secret.
                ErrorType::InvalidHTTPHeader => "its answer is not HTTP".to_owned(),
                _ => error.to_string(),
            },
        };
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.idle_timeout = Some(IDLE_TIMEOUT);
        let request_head = build_request_head(authority, request).map_err(transport_error)?;
        loop {
            let (mut session, is_reused) =
                self.connector.get_http_session(&peer).await.map_err(transport_error)?;
            session.set_read_timeout(Some(self.timeout));
            let sent = send_and_read_head(&mut session, request_head.clone(), &request.body).await;
            if is_reused && sent.is_err() {
                // It had been closed meanwhile; there is not much of them, and then a new one.
                continue;
            }
            sent.map_err(transport_error)?;
            let (status, headers) = session
                .response_header()
                .map(|header| (header.status.as_u16(), header.headers.clone()))
                .unwrap_or_default();
            let mut body = BytesMut::new();
            while let Some(chunk) = session.read_response_body().await.map_err(transport_error)? {
                body.extend_from_slice(&chunk);
                if body.len() > self.max_response_bytes {
                    return Ok(OutboundResponse { status, headers, body: body.freeze() });
                }
            }
            if session.response_done() {
                self.connector.release_http_session(session, &peer, Some(IDLE_TIMEOUT)).await;
            }
            return Ok(OutboundResponse { status, headers, body: body.freeze() });
        }
    }
}

fn build_request_head(authority: &str, request: &OutboundRequest<'_>) -> pingora::Result<RequestHeader> {
    let mut head = RequestHeader::build(request.method.clone(), request.path_and_query.as_bytes(), Some(8))?;
    let content_length = request.body.len().to_string();
    head.insert_header("host", authority)?;
    if !request.body.is_empty() {
        head.insert_header("content-length", content_length)?;
    }
    for (name, value) in request.headers {
        head.insert_header(*name, *value)?;
    }
    Ok(head)
}

/// Sends a request and reads the head of its answer.
async fn send_and_read_head(
    session: &mut HttpSession,
    request: RequestHeader,
    body: &Bytes,
) -> pingora::Result<()> {
    session.write_request_header(Box::new(request)).await?;
    if !body.is_empty() {
        session.write_request_body(body.clone(), true).await?;
    }
    session.finish_request_body().await?;
    session.read_response_header().await
}
