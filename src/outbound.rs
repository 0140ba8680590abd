//! The HTTP client for the balancer's own calls to other services: tokens, secrets, ingestion of records,
//! the admin API. It uses Pingora's connector, hence the same TLS as the calls to backends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use openssl::x509::X509;
use pingora::ErrorType;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::time;

use crate::config::Endpoint;
use crate::system_error;

/// Longest duration of the DNS lookup, and of connecting including TLS.
const LOOKUP_OR_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept for reuse.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Default of [`OutboundClient::with_read_limit_bytes`].
const DEFAULT_READ_LIMIT_BYTES: usize = 256 * 1024;

/// Sends requests to other services and keeps their connections for reuse.
pub struct OutboundClient {
    connector: Connector,
    /// Longest duration of a request, from the DNS lookup to the end of the response.
    timeout: Duration,
    /// A response body is read until it exceeds this many bytes.
    read_limit_bytes: usize,
    /// The certificate authorities that certificates have to come from; `None` for those of the system.
    certificate_authorities: Option<Arc<Box<[X509]>>>,
}

/// A response of any status.
#[derive(Debug)]
pub struct OutboundResponse {
    /// HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body, or the beginning of one that is too long.
    pub body: Bytes,
}

/// A request to send. It has no `Debug`, because it contains secrets.
pub struct OutboundRequest<'a> {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub path_and_query: &'a str,
    /// Header fields. `host` and `content-length` are added.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; empty: none.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The DNS lookup found no address in time.
    #[error("{host} does not resolve: {reason}")]
    Dns {
        /// The host.
        host: String,
        /// The likely reason.
        reason: String,
    },
    /// The connection failed, or the response was incomplete or not HTTP.
    #[error("{destination}: {reason}")]
    Transport {
        /// Host and port, or the path of the socket.
        destination: String,
        /// What failed.
        reason: String,
    },
    /// There was no complete response in time.
    #[error("{destination}: no response within {timeout:?}")]
    TimedOut {
        /// Host and port, or the path of the socket.
        destination: String,
        /// The timeout of the client.
        timeout: Duration,
    },
}

impl OutboundClient {
    /// A client whose requests may each take this long.
    pub fn new(timeout: Duration) -> Self {
        Self {
            connector: Connector::new(None),
            timeout,
            read_limit_bytes: DEFAULT_READ_LIMIT_BYTES,
            certificate_authorities: None,
        }
    }

    /// Changes how much of a response body is read: reading stops once it exceeds this many bytes.
    #[must_use]
    pub fn with_read_limit_bytes(self, read_limit_bytes: usize) -> Self {
        Self { read_limit_bytes, ..self }
    }

    /// Certificates have to come from one of these authorities, in place of those of the system.
    #[must_use]
    pub fn with_certificate_authorities(self, authorities: Box<[X509]>) -> Self {
        Self { certificate_authorities: Some(Arc::new(authorities)), ..self }
    }

    /// Sends a request and reads the response.
    ///
    /// # Errors
    /// [`OutboundError`] if there is no complete response.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        request: OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let destination = endpoint.authority();
        let exchange = async {
            let lookup = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
            let addresses = time::timeout(LOOKUP_OR_CONNECT_TIMEOUT, lookup).await;
            let first_address = match addresses {
                Ok(Ok(mut addresses)) => addresses.next().ok_or_else(|| "the name has no address".to_owned()),
                Ok(Err(error)) => Err(system_error::describe_lookup(&error)),
                Err(_) => Err("the DNS server did not answer in time".to_owned()),
            };
            let address =
                first_address.map_err(|reason| OutboundError::Dns { host: endpoint.host.clone(), reason })?;
            let peer = HttpPeer::new(address, endpoint.uses_tls, endpoint.host.clone());
            self.exchange_with_peer(peer, &destination, &destination, &request).await
        };
        self.run_with_timeout(&destination, exchange).await
    }

    /// Sends a request to an address, under the name of this endpoint, for which its certificate is verified.
    ///
    /// # Errors
    /// As [`OutboundClient::send`].
    pub async fn send_to_address(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
        request: OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let destination = address.to_string();
        let peer = HttpPeer::new(address, endpoint.uses_tls, endpoint.host.clone());
        let authority = endpoint.authority();
        let exchange = self.exchange_with_peer(peer, &destination, &authority, &request);
        self.run_with_timeout(&destination, exchange).await
    }

    /// Sends a request to a process on this machine through its Unix socket.
    ///
    /// # Errors
    /// As [`OutboundClient::send`].
    pub async fn send_to_unix_socket(
        &self,
        path: &str,
        request: OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let exchange = async {
            let peer = HttpPeer::new_uds(path, false, String::new());
            let peer = peer.map_err(|error| to_transport_error(path, &error))?;
            self.exchange_with_peer(peer, path, "localhost", &request).await
        };
        self.run_with_timeout(path, exchange).await
    }

    async fn run_with_timeout(
        &self,
        destination: &str,
        exchange: impl Future<Output = Result<OutboundResponse, OutboundError>>,
    ) -> Result<OutboundResponse, OutboundError> {
        let timeout = self.timeout;
        let timed_out = |_| OutboundError::TimedOut { destination: destination.to_owned(), timeout };
        time::timeout(timeout, exchange).await.map_err(timed_out)?
    }

    async fn exchange_with_peer(
        &self,
        mut peer: HttpPeer,
        destination: &str,
        authority: &str,
        request: &OutboundRequest<'_>,
    ) -> Result<OutboundResponse, OutboundError> {
        let transport_error = |error: Box<pingora::Error>| to_transport_error(destination, &error);
        peer.options.total_connection_timeout = Some(LOOKUP_OR_CONNECT_TIMEOUT);
        peer.options.connection_timeout = Some(LOOKUP_OR_CONNECT_TIMEOUT);
        peer.options.idle_timeout = Some(IDLE_TIMEOUT);
        peer.options.ca.clone_from(&self.certificate_authorities);
        let request_head = build_request_head(authority, request).map_err(transport_error)?;
        loop {
            let (mut session, is_reused) =
                self.connector.get_http_session(&peer).await.map_err(transport_error)?;
            session.set_read_timeout(Some(self.timeout));
            let sent = send_and_read_head(&mut session, request_head.clone(), &request.body).await;
            if is_reused && sent.is_err() {
                // The service closed the idle connection. Each of the few idle ones is tried at most once,
                // then a new one is opened.
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
                if body.len() > self.read_limit_bytes {
                    // The rest is unread, so the connection is not reused.
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
        head.insert_header((*name).to_owned(), *value)?;
    }
    Ok(head)
}

/// Sends a request and reads the head of the response.
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

/// The error of a failed connection or exchange.
fn to_transport_error(destination: &str, error: &pingora::Error) -> OutboundError {
    OutboundError::Transport { destination: destination.to_owned(), reason: describe_engine_error(error) }
}

/// An error of the engine's connectors and sessions in plain words: what failed, and the likely reason. It quotes
/// nothing of the response, which may contain a secret.
pub fn describe_engine_error(error: &pingora::Error) -> String {
    let system_error = || error.root_cause().downcast_ref::<io::Error>().map(system_error::describe);
    let context = || error.context.as_ref().map(|context| context.as_str().to_owned()).unwrap_or_default();
    match error.etype() {
        ErrorType::ConnectRefused => "connection refused (nothing listens there)".to_owned(),
        ErrorType::ConnectNoRoute => "no route to the host".to_owned(),
        ErrorType::ConnectTimedout => {
            "the connection was not established in time (a firewall, or a wrong address?)".to_owned()
        }
        ErrorType::TLSHandshakeTimedout => "the TLS handshake was not complete in time".to_owned(),
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => {
            format!("the TLS handshake failed: {}", system_error::describe_tls(&context()))
        }
        ErrorType::ReadTimedout => "no response in time".to_owned(),
        ErrorType::WriteTimedout => "the request was not taken in time".to_owned(),
        ErrorType::InvalidHTTPHeader => "the response is not HTTP".to_owned(),
        ErrorType::ConnectionClosed => "the other side closed the connection".to_owned(),
        ErrorType::H2Error | ErrorType::InvalidH2 | ErrorType::H2Downgrade => {
            "the other side broke the rules of HTTP/2, or does not speak it".to_owned()
        }
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => {
            system_error().unwrap_or_else(|| "the connection failed".to_owned())
        }
        _ => system_error()
            .unwrap_or_else(|| "the connection was lost before the response was complete".to_owned()),
    }
}
