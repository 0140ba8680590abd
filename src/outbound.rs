//! Our own calls to other services (tokens, ingestion): one client, one set of time-outs, the same
//! TLS as towards backends.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::time::timeout;

use crate::config::Endpoint;

/// The most it may take to find and reach the other side.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are looked at.
const ANSWER_MAX: usize = 256 * 1024;

/// Calls other services.
pub struct Outbound {
    connector: Connector,
    /// The most a whole call may take.
    patience: Duration,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, or the beginning of a long one.
    pub body: Bytes,
}

/// A call to be made. It has no `Debug`: secrets are in it.
pub struct Call<'a> {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
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
    #[error("{host}: {problem}")]
    Broken {
        /// The host.
        host: String,
        /// What happened to it.
        problem: String,
    },
    /// It took too long.
    #[error("{host} did not answer within {patience:?}")]
    TimedOut {
        /// The host.
        host: String,
        /// How long it had.
        patience: Duration,
    },
}

impl Outbound {
    /// A client whose calls may take so long.
    pub fn new(patience: Duration) -> Self {
        Self { connector: Connector::new(None), patience }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// [`OutboundError`] where there is no whole answer.
    pub async fn call(&self, endpoint: &Endpoint, call: Call<'_>) -> Result<Answer, OutboundError> {
        let patience = self.patience;
        match timeout(patience, self.make(endpoint, &call)).await {
            Ok(answer) => answer,
            Err(_) => Err(OutboundError::TimedOut { host: endpoint.host.clone(), patience }),
        }
    }

    async fn make(&self, endpoint: &Endpoint, call: &Call<'_>) -> Result<Answer, OutboundError> {
        let host = || endpoint.host.clone();
        let broken = |problem: Box<pingora::Error>| OutboundError::Broken {
            host: host(),
            problem: problem.to_string(),
        };
        let found = timeout(CONNECT, tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))).await;
        let address = found.ok().and_then(Result::ok).and_then(|mut found| found.next());
        let address = address.ok_or_else(|| OutboundError::Dns { host: host() })?;
        let mut peer = HttpPeer::new(address, endpoint.tls, endpoint.host.clone());
        peer.options.total_connection_timeout = Some(CONNECT);
        peer.options.connection_timeout = Some(CONNECT);
        peer.options.idle_timeout = Some(IDLE);
        let request = request(endpoint, call).map_err(broken)?;
        loop {
            let (mut session, is_reused) = self.connector.get_http_session(&peer).await.map_err(broken)?;
            session.set_read_timeout(Some(self.patience));
            let head = send(&mut session, request.clone(), &call.body).await;
            if is_reused && head.is_err() {
                // It had been closed meanwhile; there is not much of them, and then a new one.
                continue;
            }
            head.map_err(broken)?;
            let (status, headers) = session
                .response_header()
                .map(|header| (header.status.as_u16(), header.headers.clone()))
                .unwrap_or_default();
            let mut body = BytesMut::new();
            while let Some(piece) = session.read_response_body().await.map_err(broken)? {
                body.extend_from_slice(&piece);
                if body.len() > ANSWER_MAX {
                    return Ok(Answer { status, headers, body: body.freeze() });
                }
            }
            if session.response_done() {
                self.connector.release_http_session(session, &peer, Some(IDLE)).await;
            }
            return Ok(Answer { status, headers, body: body.freeze() });
        }
    }
}

fn request(endpoint: &Endpoint, call: &Call<'_>) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build(call.method.clone(), call.target.as_bytes(), Some(8))?;
    let (authority, length) = (endpoint.authority(), call.body.len().to_string());
    request.insert_header("host", authority)?;
    if !call.body.is_empty() {
        request.insert_header("content-length", length)?;
    }
    for (name, value) in call.headers {
        request.insert_header(*name, *value)?;
    }
    Ok(request)
}

/// Sends a request and reads the head of its answer.
async fn send(session: &mut HttpSession, request: RequestHeader, body: &Bytes) -> pingora::Result<()> {
    session.write_request_header(Box::new(request)).await?;
    if !body.is_empty() {
        session.write_request_body(body.clone(), true).await?;
    }
    session.finish_request_body().await?;
    session.read_response_header().await
}
