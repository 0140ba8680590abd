//! Connections to backends, and the exchange of one request and its response on a connection.

use std::future::{pending, poll_fn};
use std::io::Cursor;
use std::os::fd::RawFd;
use std::pin::pin;
use std::task::Poll;
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
use pingora::protocols::Stream;
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

/// Makes connections to backends and keeps idle ones for reuse.
pub(in crate::proxy) struct UpstreamConnector {
    /// For peers that get HTTP/1.1 only.
    http1_connector: TransportConnector,
    /// Idle connections that `http1_connector` made.
    http1_pool: ConnectionPool,
    /// For peers that are offered HTTP/2; has pools of its own.
    http2_connector: Connector,
}

/// A connection, or a stream of an HTTP/2 connection, that is used for one request.
pub(in crate::proxy) struct UpstreamConnection {
    protocol: Protocol,
    /// It comes from a pool, so the backend may have closed it meanwhile.
    pub(in crate::proxy) is_reused: bool,
    /// The request has been sent completely.
    is_request_sent: bool,
    /// Reading the response failed.
    has_read_failed: bool,
    /// The piece that was sent last, or is being sent, ends the body.
    latest_piece_ends_body: bool,
    write_timeout: Option<Duration>,
    /// HTTP/1.1: the latest piece is still being written, which reads of the response do.
    is_http1_write_blocked: bool,
}

enum Protocol {
    /// From [`UpstreamConnector::http1_connector`], to whose pool it returns.
    Http1(Box<Http1Session>),
    /// From [`UpstreamConnector::http2_connector`], to whose pool it returns: the backend was offered HTTP/2
    /// and chose HTTP/1.1.
    Http1Fallback(Box<Http1Session>),
    Http2(Box<Http2Stream>),
}

/// An HTTP/2 stream.
struct Http2Stream {
    session: Http2Session,
    /// `None` before the head is sent, and while a piece of the body is being written.
    body_writer: Option<SendStream<Bytes>>,
    /// Writes a piece of the body, then returns the writer. It waits for flow control, so it has to be polled
    /// while the response is read.
    pending_write: Option<BoxFuture<'static, (SendStream<Bytes>, Result<()>)>>,
    /// An error that came together with the head, to be returned by the next read.
    deferred_error: Option<Box<Error>>,
    read_stage: ReadStage,
}

/// What is read next of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadStage {
    Head,
    Body,
    Trailers,
    Finished,
}

/// What happened on a connection.
pub(in crate::proxy) enum UpstreamEvent {
    /// A part of the response was read, or reading failed.
    Read(Result<HttpTask>),
    /// The piece of the body that was being sent has been sent, or sending failed.
    BodyPieceSent(Result<()>),
}

impl UpstreamConnector {
    pub(in crate::proxy) fn new(server: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(server);
        Self {
            http1_pool: ConnectionPool::new(options.keepalive_pool_size),
            http1_connector: TransportConnector::new(Some(options.clone())),
            http2_connector: Connector::new(Some(options)),
        }
    }

    /// Takes an idle connection to this peer, or makes a new one.
    ///
    /// # Errors
    /// Pingora's error if the connection fails.
    pub(in crate::proxy) async fn reuse_or_connect(&self, peer: &HttpPeer) -> Result<UpstreamConnection> {
        let write_timeout = peer.options.write_timeout;
        let connection = |protocol, is_reused| UpstreamConnection {
            protocol,
            is_reused,
            is_request_sent: false,
            has_read_failed: false,
            latest_piece_ends_body: false,
            write_timeout,
            is_http1_write_blocked: false,
        };
        if peer.options.alpn.get_max_http_version() == 1 {
            let (stream, is_reused) =
                match connection_key(peer).and_then(|key| self.http1_pool.take_idle(key)) {
                    Some(stream) => (stream, true),
                    None => {
                        // Boxed, so that a request does not keep room for it: most find a connection in the pool.
                        let stream = Box::pin(self.http1_connector.new_stream(peer)).await?;
                        (CoalescedStream::wrap(stream), false)
                    }
                };
            let mut session = Box::new(Http1Session::new_with_options(stream, peer));
            session.write_timeout = write_timeout;
            return Ok(connection(Protocol::Http1(session), is_reused));
        }
        // Boxed, so that requests over HTTP/1.1 do not keep room for it; the same below.
        match Box::pin(self.http2_connector.get_http_session(peer)).await? {
            (HttpSession::H1(session), is_reused) => {
                let stream = CoalescedStream::wrap(session.into_inner());
                let mut session = Http1Session::new_with_options(stream, peer);
                session.write_timeout = write_timeout;
                Ok(connection(Protocol::Http1Fallback(Box::new(session)), is_reused))
            }
            (HttpSession::H2(session), is_reused) => {
                let stream = Http2Stream {
                    session,
                    body_writer: None,
                    pending_write: None,
                    deferred_error: None,
                    read_stage: ReadStage::Head,
                };
                Ok(connection(Protocol::Http2(Box::new(stream)), is_reused))
            }
            (HttpSession::Custom(()), _) => {
                Error::e_explain(ErrorType::InternalError, "a custom protocol was negotiated")
            }
        }
    }

    /// Returns a connection to its pool if another request can follow on it, and closes it otherwise.
    pub(in crate::proxy) async fn release(&self, mut upstream: UpstreamConnection, peer: &HttpPeer) {
        let is_reusable = upstream.is_reusable();
        match upstream.protocol {
            Protocol::Http1(mut session) if is_reusable => {
                // A session is not reused unless this has read the `connection` field of its response.
                session.respect_keepalive();
                if let (Some(stream), Some(key), Some(time)) =
                    (session.reuse().await, connection_key(peer), peer.options.idle_timeout)
                {
                    self.http1_pool.insert_idle(key, stream, time);
                }
            }
            Protocol::Http1Fallback(session) if is_reusable => {
                self.release_http2_connector_session(HttpSession::H1(*session), peer).await;
            }
            Protocol::Http1(_) | Protocol::Http1Fallback(_) => {}
            // In any case: this ends the stream and frees its place on the connection, which other requests
            // share.
            Protocol::Http2(stream) => {
                self.release_http2_connector_session(HttpSession::H2(stream.session), peer).await;
            }
        }
    }

    async fn release_http2_connector_session(&self, session: HttpSession, peer: &HttpPeer) {
        Box::pin(self.http2_connector.release_http_session(session, peer, peer.idle_timeout())).await;
    }

    /// After an error that shows that the peer does not speak HTTP/2 correctly, offers it HTTP/1.1 only.
    pub(in crate::proxy) fn downgrade_if_http2_error(&self, error: &Error, peer: &HttpPeer) {
        if matches!(error.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2) {
            self.http2_connector.prefer_h1(peer);
        }
    }
}

impl UpstreamConnection {
    /// The HTTP version of the connection.
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
            Protocol::Http2(stream) => stream.session.fd(),
        }
    }

    /// Sends the request head. With [`RequestBodyAvailability::Ready`] it is sent together with the first piece of
    /// the body, which has to follow at once.
    ///
    /// # Errors
    /// Pingora's error if sending fails.
    pub(in crate::proxy) async fn send_head(
        &mut self,
        head: Box<RequestHeader>,
        body: RequestBodyAvailability,
    ) -> Result<()> {
        self.is_request_sent = body == RequestBodyAvailability::None;
        match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                CoalescedStream::begin_request(session.stream());
                if body == RequestBodyAvailability::Ready {
                    CoalescedStream::coalesce_next_flush(session.stream());
                }
                session.write_request_header(head).await.map(|_| ())
            }
            Protocol::Http2(stream) => {
                stream.session.write_request_header(head, body == RequestBodyAvailability::None)?;
                stream.body_writer = stream.session.take_request_body_writer();
                Ok(())
            }
        }
    }

    /// Sends a piece of the body, or starts to send it; returns whether it has been sent. If not,
    /// [`UpstreamEvent::BodyPieceSent`] follows. `is_last` says that this piece, which may be empty, ends the body.
    ///
    /// # Errors
    /// Pingora's error if sending fails.
    pub(in crate::proxy) async fn start_sending_body_piece(
        &mut self,
        piece: Bytes,
        is_last: bool,
    ) -> Result<bool> {
        let sent = match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                if !piece.is_empty() {
                    session.write_body(&piece).await?;
                }
                if is_last {
                    session.finish_body().await?;
                }
                let write_state = CoalescedStream::write_state(session.stream());
                self.is_http1_write_blocked = write_state.is_some_and(|state| state.is_blocked());
                !self.is_http1_write_blocked
            }
            // Not awaited here: the backend may stop reading until its response is read.
            Protocol::Http2(stream) => {
                let timeout = self.write_timeout;
                if let Some(mut writer) = stream.body_writer.take() {
                    stream.pending_write = Some(Box::pin(async move {
                        let sent = write_body(&mut writer, piece, is_last, timeout).await;
                        (writer, sent)
                    }));
                }
                false
            }
        };
        self.latest_piece_ends_body = is_last;
        self.is_request_sent |= is_last && sent;
        Ok(sent)
    }

    /// Takes the stream of a connection that has become a tunnel; `None` for HTTP/2. What has already been read
    /// of it has to be taken with [`Self::next_event`] before.
    pub(in crate::proxy) fn take_tunnel_stream(&mut self) -> Option<Stream> {
        let (Protocol::Http1(session) | Protocol::Http1Fallback(session)) = &mut self.protocol else {
            return None;
        };
        // A session without a response is not reused.
        let unused = Http1Session::new(Box::new(Cursor::new(Vec::new())));
        Some(CoalescedStream::unwrap(std::mem::replace(&mut **session, unused).into_inner()))
    }

    /// Whether a piece of the body is being sent.
    pub(in crate::proxy) fn has_pending_body_write(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(_) | Protocol::Http1Fallback(_) => self.is_http1_write_blocked,
            Protocol::Http2(stream) => stream.pending_write.is_some(),
        }
    }

    /// Waits for the next event. Cancel-safe: nothing is lost if the future is dropped.
    pub(in crate::proxy) async fn next_event(&mut self) -> UpstreamEvent {
        match &mut self.protocol {
            Protocol::Http1(session) | Protocol::Http1Fallback(session) if self.is_http1_write_blocked => {
                let event = next_event_while_writing(session).await;
                self.is_http1_write_blocked = matches!(event, UpstreamEvent::Read(_));
                self.has_read_failed |= matches!(event, UpstreamEvent::Read(Err(_)));
                self.note_request_sent(&event);
                event
            }
            Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                let read = session.read_response_task().await;
                self.has_read_failed |= read.is_err();
                UpstreamEvent::Read(read)
            }
            Protocol::Http2(stream) => {
                let event = stream.next_event().await;
                self.note_request_sent(&event);
                event
            }
        }
    }

    fn note_request_sent(&mut self, event: &UpstreamEvent) {
        self.is_request_sent |=
            self.latest_piece_ends_body && matches!(event, UpstreamEvent::BodyPieceSent(Ok(())));
    }

    /// Whether another request can follow: request and response are complete. A tunnel's connection, whose
    /// response is a 101, is never reused.
    fn is_reusable(&mut self) -> bool {
        self.is_request_sent
            && !self.has_read_failed
            && match &mut self.protocol {
                // In this order: Pingora's `is_body_done` panics if no response head has been read, or a
                // malformed one.
                Protocol::Http1(session) | Protocol::Http1Fallback(session) => {
                    session.resp_header().is_some_and(|head| !head.status.is_informational())
                        && session.is_body_done()
                }
                Protocol::Http2(_) => true,
            }
    }
}

/// How much of the request's body is available when its head is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum RequestBodyAvailability {
    /// The request has no body.
    None,
    /// At least the first piece.
    Ready,
    /// Nothing yet: the client still has to upload it.
    Later,
}

impl Http2Stream {
    async fn next_event(&mut self) -> UpstreamEvent {
        let Self { session, body_writer, pending_write, deferred_error, read_stage } = self;
        let sent = async {
            match pending_write.as_mut() {
                Some(write) => write.await,
                None => pending().await,
            }
        };
        let (writer, sent) = tokio::select! {
            biased;
            sent = sent => sent,
            read = read_http2_task(session, deferred_error, read_stage), if *read_stage != ReadStage::Finished => {
                return UpstreamEvent::Read(read);
            }
        };
        *pending_write = None;
        *body_writer = Some(writer);
        UpstreamEvent::BodyPieceSent(sent)
    }
}

/// Reads the next part of an HTTP/1.1 response, which also writes the rest of the request, until one of the two
/// is done. Cancel-safe.
async fn next_event_while_writing(session: &mut Http1Session) -> UpstreamEvent {
    let Some(state) = CoalescedStream::write_state(session.stream()).cloned() else {
        return UpstreamEvent::Read(session.read_response_task().await);
    };
    let mut read = pin!(session.read_response_task());
    let read = poll_fn(|cx| match read.as_mut().poll(cx) {
        Poll::Ready(read) => Poll::Ready(Some(read)),
        Poll::Pending if state.is_blocked() => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    });
    match read.await {
        Some(read) => UpstreamEvent::Read(read),
        None => UpstreamEvent::BodyPieceSent(match state.take_error() {
            Some(error) => Error::e_because(ErrorType::WriteError, "while writing the request body", error),
            None => Ok(()),
        }),
    }
}

/// The key in [`UpstreamConnector::http1_pool`].
fn connection_key(peer: &HttpPeer) -> Option<ConnectionKey> {
    Some(ConnectionKey { peer_key: peer.group_key, address: *peer.address().as_inet()? })
}

/// Reads the next part of an HTTP/2 response. Cancel-safe: what has been read is returned, or recorded in
/// `read_stage`, before the next wait.
async fn read_http2_task(
    session: &mut Http2Session,
    deferred_error: &mut Option<Box<Error>>,
    read_stage: &mut ReadStage,
) -> Result<HttpTask> {
    if let Some(error) = deferred_error.take() {
        return Err(error);
    }
    if *read_stage == ReadStage::Head {
        return read_http2_head(session, deferred_error, read_stage).await;
    }
    while *read_stage == ReadStage::Body {
        let Some(data) = session.read_response_body().await? else {
            *read_stage = ReadStage::Trailers;
            break;
        };
        let is_end = session.check_response_end_or_error()?;
        if is_end {
            *read_stage = ReadStage::Finished;
        } else if data.is_empty() {
            continue;
        }
        return Ok(HttpTask::Body(Some(data), is_end));
    }
    let trailers = session.read_trailers().await?;
    *read_stage = ReadStage::Finished;
    Ok(match trailers {
        Some(trailers) => HttpTask::Trailer(Some(Box::new(trailers))),
        None => HttpTask::Done,
    })
}

async fn read_http2_head(
    session: &mut Http2Session,
    deferred_error: &mut Option<Box<Error>>,
    read_stage: &mut ReadStage,
) -> Result<HttpTask> {
    session.read_response_header().await?;
    // At once, because Pingora panics if the head is read a second time.
    *read_stage = ReadStage::Body;
    let Some(header) = session.response_header().cloned() else {
        return Error::e_explain(ErrorType::H2Error, "no response head");
    };
    let is_end = match session.check_response_end_or_error() {
        Ok(is_end) => is_end,
        // The head is returned first: it may be all that is needed, such as that of a 429.
        Err(error) => {
            *deferred_error = Some(error);
            false
        }
    };
    let is_head_request = session.request_header().is_some_and(|request| request.method == Method::HEAD);
    let may_lack_body =
        is_head_request || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = header.headers.get(CONTENT_LENGTH);
    // Malformed (RFC 9113, section 8.1.1): a truncated response must not look complete. h2 0.4.20 refuses it
    // as well.
    if is_end
        && !may_lack_body
        && length.is_some_and(|length| length.as_bytes().iter().any(|byte| *byte != b'0'))
    {
        return Error::e_explain(ErrorType::H2Error, "the response has a content-length but no body");
    }
    if is_end {
        *read_stage = ReadStage::Finished;
    }
    Ok(HttpTask::Header(Box::new(header), is_end))
}

/// Moves `Host` into the request URI, from which h2 takes the pseudo-header fields `:authority` and
/// `:scheme`.
///
/// # Errors
/// If the host is invalid.
pub(in crate::proxy) fn move_host_to_http2_authority(head: &mut RequestHeader, uses_tls: bool) -> Result<()> {
    let Some(host) = head.remove_header(&http::header::HOST) else { return Ok(()) };
    let scheme = if uses_tls { Scheme::HTTPS } else { Scheme::HTTP };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path).build();
    match uri {
        Ok(uri) => {
            head.set_uri(uri);
            Ok(())
        }
        Err(error) => Error::e_because(ErrorType::InvalidHTTPHeader, "the host of a backend", error),
    }
}
