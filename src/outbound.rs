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
    /// Most bytes of an answer that are looked at.
    answer_max: usize,
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
        Self { connector: Connector::new(None), patience, answer_max: ANSWER_MAX }
    }

    /// The same for answers of so many bytes.
    #[must_use]
    pub fn with_answers_up_to(self, answer_max: usize) -> Self {
        Self { answer_max, ..self }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// [`OutboundError`] where there is no whole answer.
    pub async fn call(&self, endpoint: &Endpoint, call: Call<'_>) -> Result<Answer, OutboundError> {
        let make = async {
            let found = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
            let found = timeout(CONNECT, found).await.ok().and_then(Result::ok);
            let address = found.and_then(|mut found| found.next());
            let address = address.ok_or_else(|| OutboundError::Dns { host: endpoint.host.clone() })?;
            let peer = HttpPeer::new(address, endpoint.tls, endpoint.host.clone());
            self.make(peer, &endpoint.host, &endpoint.authority(), &call).await
        };
        self.in_time(&endpoint.host, make).await
    }

    /// Makes a call to a process of this machine, by its Unix socket.
    ///
    /// # Errors
    /// As [`Outbound::call`].
    pub async fn call_socket(&self, path: &str, call: Call<'_>) -> Result<Answer, OutboundError> {
        let make = async {
            let peer = HttpPeer::new_uds(path, false, String::new());
            let broken = |problem: Box<pingora::Error>| OutboundError::Broken {
                host: path.to_owned(),
                problem: problem.to_string(),
            };
            self.make(peer.map_err(broken)?, path, "localhost", &call).await
        };
        self.in_time(path, make).await
    }

    async fn in_time(
        &self,
        host: &str,
        make: impl Future<Output = Result<Answer, OutboundError>>,
    ) -> Result<Answer, OutboundError> {
        let patience = self.patience;
        let late = |_| OutboundError::TimedOut { host: host.to_owned(), patience };
        timeout(patience, make).await.map_err(late)?
    }

    async fn make(
        &self,
        mut peer: HttpPeer,
        host: &str,
        authority: &str,
        call: &Call<'_>,
    ) -> Result<Answer, OutboundError> {
        let broken = |problem: Box<pingora::Error>| OutboundError::Broken {
            host: host.to_owned(),
            problem: match problem.etype() {
                // The engine quotes what it could not read, which may be a secret.
                ErrorType::InvalidHTTPHeader => "its answer is not HTTP".to_owned(),
                _ => problem.to_string(),
            },
        };
        peer.options.total_connection_timeout = Some(CONNECT);
        peer.options.connection_timeout = Some(CONNECT);
        peer.options.idle_timeout = Some(IDLE);
        let request = request(authority, call).map_err(broken)?;
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
                if body.len() > self.answer_max {
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

fn request(authority: &str, call: &Call<'_>) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build(call.method.clone(), call.target.as_bytes(), Some(8))?;
    let length = call.body.len().to_string();
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
