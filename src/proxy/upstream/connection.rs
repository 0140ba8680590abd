//! Connections to backends, and one request with its response on one of them.

use std::future::pending;
use std::os::fd::RawFd;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::SendStream;
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use http::{Method, StatusCode, Uri, Version};
use pingora::connectors::http::Connector;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::http::RequestHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1Session;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::http::v2::write_body;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, Result};

use super::coalesced_stream::CoalescedStream;
use super::connection_pool::{ConnectionKey, ConnectionPool};

/// Makes and keeps all connections to backends.
pub(in crate::proxy) struct UpstreamConnector {
    /// For backends without HTTP/2.
    http1: TransportConnector,
    idle: ConnectionPool,
    /// For backends that are offered HTTP/2.
    http2: Connector,
}

/// A connection with one request on it.
pub(in crate::proxy) struct UpstreamConnection {
    protocol: Protocol,
    /// It comes from the pool, and may have ended meanwhile.
    pub(in crate::proxy) reused: bool,
    /// The request has been sent whole.
    is_sent: bool,
    /// The piece that is being sent is the last of the body.
    is_last: bool,
    write_timeout: Option<Duration>,
}

enum Protocol {
    Http1(Box<Http1Session>),
    /// The backend was offered HTTP/2 and chose HTTP/1.1.
    Http1Fallback(Box<Http1Session>),
    Http2(Box<Http2Stream>),
}

/// An HTTP/2 stream.
struct Http2Stream {
    session: Http2Session,
    /// Where the body is written; `None` while a piece of it is being sent.
    body: Option<SendStream<Bytes>>,
    /// The piece of the body that is being sent.
    sending: Option<BoxFuture<'static, (SendStream<Bytes>, Result<()>)>>,
    /// An error that was found with the head and is returned after it.
    failure: Option<Box<Error>>,
    stage: ReadStage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadStage {
    Head,
    Body,
    Trailers,
    Over,
}

/// What happened on a connection.
pub(in crate::proxy) enum UpstreamEvent {
    /// A part of the response was read.
    Read(Result<HttpTask>),
    /// The piece of the body that was being sent has been sent.
    Sent(Result<()>),
}

impl UpstreamConnector {
    pub(in crate::proxy) fn new(server: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(server);
        Self {
            idle: ConnectionPool::new(options.keepalive_pool_size),
            http1: TransportConnector::new(Some(options.clone())),
            http2: Connector::new(Some(options)),
        }
    }

    /// An idle connection to this peer, or a new one.
    ///
    /// # Errors
    /// The engine's, when none can be made.
    pub(in crate::proxy) async fn connect(&self, peer: &HttpPeer) -> Result<UpstreamConnection> {
        let write_timeout = peer.options.write_timeout;
        let of = |protocol, reused| UpstreamConnection {
            protocol,
            reused,
            is_sent: false,
            is_last: false,
            write_timeout,
        };
        if peer.options.alpn.get_max_http_version() == 1 {
            let (stream, reused) = match key(peer).and_then(|key| self.idle.take_idle(key)) {
                Some(stream) => (stream, true),
                None => {
                    let stream = self.http1.new_stream(peer).await?;
                    (Box::new(CoalescedStream::new(stream)) as _, false)
                }
            };
            let mut session = Box::new(Http1Session::new_with_options(stream, peer));
            session.write_timeout = write_timeout;
            return Ok(of(Protocol::Http1(session), reused));
        }
        match self.http2.get_http_session(peer).await? {
            (HttpSession::H1(mut session), reused) => {
                session.write_timeout = write_timeout;
                Ok(of(Protocol::Http1Fallback(Box::new(session)), reused))
            }
            (HttpSession::H2(session), reused) => {
                let shared =
                    Http2Stream { session, body: None, sending: None, failure: None, stage: ReadStage::Head };
                Ok(of(Protocol::Http2(Box::new(shared)), reused))
            }
            (HttpSession::Custom(()), _) => Error::e_explain(ErrorType::InternalError, "no such protocol"),
        }
    }

    /// Takes a connection back and keeps it if another request can follow on it.
    pub(in crate::proxy) async fn release(&self, mut upstream: UpstreamConnection, peer: &HttpPeer) {
        let is_reusable = upstream.is_reusable();
        match upstream.protocol {
            Protocol::Http1(mut session) if is_reusable => {
                session.respect_keepalive();
                if let (Some(stream), Some(key), Some(time)) =
                    (session.reuse().await, key(peer), peer.options.idle_timeout)
                {
                    self.idle.insert_idle(key, stream, time);
                }
            }
            Protocol::Http1Fallback(session) if is_reusable => {
                let session = HttpSession::H1(*session);
                self.http2.release_http_session(session, peer, peer.idle_timeout()).await;
            }
            Protocol::Http1(_) | Protocol::Http1Fallback(_) => {}
            Protocol::Http2(shared) => {
                let session = HttpSession::H2(shared.session);
                self.http2.release_http_session(session, peer, peer.idle_timeout()).await;
            }
        }
    }

    /// Remembers a peer that does not really speak HTTP/2.
    pub(in crate::proxy) fn note_protocol_error(&self, error: &Error, peer: &HttpPeer) {
        if matches!(error.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2) {
            self.http2.prefer_h1(peer);
        }
    }
}

impl UpstreamConnection {
    /// The protocol that is spoken.
    pub(in crate::proxy) fn version(&self) -> Version {
        match self.protocol {
            Protocol::Http1(_) | Protocol::Http1Fallback(_) => Version::HTTP_11,
            Protocol::Http2(_) => Version::HTTP_2,
        }
    }

    /// Its file descriptor.
    pub(in crate::proxy) fn fd(&self) -> RawFd {
        match &self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => session.stream().id(),
            Protocol::Http2(shared) => shared.session.fd(),
        }
    }

    /// Sends the head of a request; if the beginning of the body is ready, together with that, which has
    /// to follow at once.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::proxy) async fn send_head(
        &mut self,
        head: Box<RequestHeader>,
        body: BodyAvailability,
    ) -> Result<()> {
        self.is_sent = body == BodyAvailability::None;
        match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                if body == BodyAvailability::Ready {
                    CoalescedStream::coalesce_next_flush(session.stream());
                }
                session.write_request_header(head).await.map(|_| ())
            }
            Protocol::Http2(shared) => {
                shared.session.write_request_header(head, body == BodyAvailability::None)?;
                shared.body = shared.session.take_request_body_writer();
                Ok(())
            }
        }
    }

    /// Sends a piece of the body, or begins to; returns whether it has been sent. If not,
    /// [`UpstreamEvent::Sent`] tells when.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::proxy) async fn send(&mut self, piece: Bytes, last: bool) -> Result<bool> {
        let sent = match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                if !piece.is_empty() {
                    session.write_body(&piece).await?;
                }
                if last {
                    session.finish_body().await?;
                }
                true
            }
            Protocol::Http2(shared) => {
                let timeout = self.write_timeout;
                if let Some(mut body) = shared.body.take() {
                    shared.sending = Some(Box::pin(async move {
                        let sent = write_body(&mut body, piece, last, timeout).await;
                        (body, sent)
                    }));
                }
                false
            }
        };
        self.is_last = last;
        self.is_sent |= last && sent;
        Ok(sent)
    }

    /// Sends bytes of a tunnel.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::proxy) async fn send_tunnel_bytes(&mut self, bytes: &Bytes) -> Result<()> {
        if let Protocol::Http1(session) | Protocol::Http1Fallback(session) = &mut self.protocol {
            session.maybe_upgrade_body_writer();
            session.write_body(bytes).await?;
        }
        Ok(())
    }

    /// Whether a piece of the body is being sent.
    pub(in crate::proxy) fn is_sending(&self) -> bool {
        matches!(&self.protocol, Protocol::Http2(shared) if shared.sending.is_some())
    }

    /// The next event. Cancel-safe: nothing is lost when the future is dropped.
    pub(in crate::proxy) async fn next(&mut self) -> UpstreamEvent {
        match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                UpstreamEvent::Read(session.read_response_task().await)
            }
            Protocol::Http2(shared) => {
                let progress = shared.next().await;
                self.is_sent |= self.is_last && matches!(progress, UpstreamEvent::Sent(Ok(())));
                progress
            }
        }
    }

    /// Whether another request may follow on this connection.
    fn is_reusable(&mut self) -> bool {
        self.is_sent
            && match &mut self.protocol {
                // `is_body_done` panics in the engine where no head has been read.
                Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                    session.resp_header().is_some_and(|head| !head.status.is_informational())
                        && session.is_body_done()
                }
                Protocol::Http2(_) => true,
            }
    }
}

/// How much of a request's body there is when its head is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum BodyAvailability {
    /// It has none.
    None,
    /// Its beginning.
    Ready,
    /// Nothing yet: an upload, or a tunnel.
    Later,
}

impl Http2Stream {
    async fn next(&mut self) -> UpstreamEvent {
        let Self { session, body, sending, failure, stage } = self;
        let sent = async {
            match sending.as_mut() {
                Some(sending) => sending.await,
                None => pending().await,
            }
        };
        let (writer, sent) = tokio::select! {
            biased;
            sent = sent => sent,
            read = read(session, failure, stage), if *stage != ReadStage::Over => return UpstreamEvent::Read(read),
        };
        *sending = None;
        *body = Some(writer);
        UpstreamEvent::Sent(sent)
    }
}

fn key(peer: &HttpPeer) -> Option<ConnectionKey> {
    Some(ConnectionKey { peer: peer.group_key, address: *peer.address().as_inet()? })
}

/// Reads the next part of an HTTP/2 response.
async fn read(
    session: &mut Http2Session,
    failure: &mut Option<Box<Error>>,
    stage: &mut ReadStage,
) -> Result<HttpTask> {
    if let Some(failure) = failure.take() {
        return Err(failure);
    }
    if *stage == ReadStage::Head {
        session.read_response_header().await?;
        *stage = ReadStage::Body;
        let Some(header) = session.response_header().cloned() else {
            return Error::e_explain(ErrorType::H2Error, "no response head");
        };
        let ends = match session.check_response_end_or_error() {
            Ok(ends) => ends,
            Err(problem) => {
                *failure = Some(problem);
                false
            }
        };
        // A body that is shorter than its Content-Length is malformed (RFC 9113, section 8.1.1); the h2
        // crate does not check that where there is no body at all.
        let is_head = session.request_header().is_some_and(|request| request.method == Method::HEAD);
        let may_lack_body =
            is_head || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = header.headers.get(CONTENT_LENGTH);
        if ends
            && !may_lack_body
            && length.is_some_and(|length| length.as_bytes().iter().any(|byte| *byte != b'0'))
        {
            return Error::e_explain(
                ErrorType::H2Error,
                "the response has no body although its length says so",
            );
        }
        if ends {
            *stage = ReadStage::Over;
        }
        return Ok(HttpTask::Header(Box::new(header), ends));
    }
    while *stage == ReadStage::Body {
        let Some(data) = session.read_response_body().await? else {
            *stage = ReadStage::Trailers;
            break;
        };
        let ends = session.check_response_end_or_error()?;
        if ends {
            *stage = ReadStage::Over;
        } else if data.is_empty() {
            continue;
        }
        return Ok(HttpTask::Body(Some(data), ends));
    }
    let trailers = session.read_trailers().await?;
    *stage = ReadStage::Over;
    Ok(match trailers {
        Some(trailers) => HttpTask::Trailer(Some(Box::new(trailers))),
        None => HttpTask::Done,
    })
}

/// Moves the host into the target, where HTTP/2 has it.
///
/// # Errors
/// Pingora's, for an invalid host.
pub(in crate::proxy) fn set_http2_authority(head: &mut RequestHeader, tls: bool) -> Result<()> {
    let Some(host) = head.remove_header(&http::header::HOST) else { return Ok(()) };
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path).build();
    match uri {
        Ok(uri) => {
            head.set_uri(uri);
            Ok(())
        }
        Err(problem) => Error::e_because(ErrorType::InvalidHTTPHeader, "the host of a backend", problem),
    }
}
