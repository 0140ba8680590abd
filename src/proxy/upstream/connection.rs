//! Connections to backends, and one request with its reply on one of them.

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

use super::coalesced_stream::Joint;
use super::connection_pool::{Key, Pool};

/// All connections to backends.
pub(in crate::proxy) struct Upstreams {
    /// To those that speak HTTP/1.1 only, one request at a time.
    single: TransportConnector,
    idle: Pool,
    /// To those that are offered HTTP/2.
    shared: Connector,
}

/// A connection with the request that it was taken for.
pub(in crate::proxy) struct Upstream {
    line: Line,
    /// It was idle before, and may have ended meanwhile.
    pub(in crate::proxy) reused: bool,
    /// The request has been sent whole.
    is_sent: bool,
    /// The piece that is on its way is the last of it.
    is_last: bool,
    write_timeout: Option<Duration>,
}

enum Line {
    Single(Box<Http1Session>),
    /// Of one that was offered HTTP/2 and declined.
    Declined(Box<Http1Session>),
    Shared(Box<Shared>),
}

/// A stream of HTTP/2.
struct Shared {
    session: Http2Session,
    /// Where the body goes, while nothing is on its way there.
    body: Option<SendStream<Bytes>>,
    /// A piece of the body on its way.
    sending: Option<BoxFuture<'static, (SendStream<Bytes>, Result<()>)>>,
    /// What follows the head that was read.
    failure: Option<Box<Error>>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Trailers,
    Over,
}

/// What has come about.
pub(in crate::proxy) enum Progress {
    /// This was read.
    Read(Result<HttpTask>),
    /// The piece that was on its way has been sent.
    Sent(Result<()>),
}

impl Upstreams {
    pub(in crate::proxy) fn new(server: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(server);
        Self {
            idle: Pool::new(options.keepalive_pool_size),
            single: TransportConnector::new(Some(options.clone())),
            shared: Connector::new(Some(options)),
        }
    }

    /// An idle connection to this peer, or a new one.
    ///
    /// # Errors
    /// The engine's, when none can be made.
    pub(in crate::proxy) async fn connect(&self, peer: &HttpPeer) -> Result<Upstream> {
        let write_timeout = peer.options.write_timeout;
        let of = |line, reused| Upstream { line, reused, is_sent: false, is_last: false, write_timeout };
        if peer.options.alpn.get_max_http_version() == 1 {
            let (stream, reused) = match key(peer).and_then(|key| self.idle.take(key)) {
                Some(stream) => (stream, true),
                None => {
                    let stream = self.single.new_stream(peer).await?;
                    (Box::new(Joint::new(stream)) as _, false)
                }
            };
            let mut session = Box::new(Http1Session::new_with_options(stream, peer));
            session.write_timeout = write_timeout;
            return Ok(of(Line::Single(session), reused));
        }
        match self.shared.get_http_session(peer).await? {
            (HttpSession::H1(mut session), reused) => {
                session.write_timeout = write_timeout;
                Ok(of(Line::Declined(Box::new(session)), reused))
            }
            (HttpSession::H2(session), reused) => {
                let shared = Shared { session, body: None, sending: None, failure: None, stage: Stage::Head };
                Ok(of(Line::Shared(Box::new(shared)), reused))
            }
            (HttpSession::Custom(()), _) => Error::e_explain(ErrorType::InternalError, "no such protocol"),
        }
    }

    /// Takes a connection back, for another request if it is fit for one.
    pub(in crate::proxy) async fn release(&self, mut upstream: Upstream, peer: &HttpPeer) {
        let is_fit = upstream.is_fit();
        match upstream.line {
            Line::Single(mut session) if is_fit => {
                session.respect_keepalive();
                if let (Some(stream), Some(key), Some(time)) =
                    (session.reuse().await, key(peer), peer.options.idle_timeout)
                {
                    self.idle.put(key, stream, time);
                }
            }
            Line::Declined(session) if is_fit => {
                let session = HttpSession::H1(*session);
                self.shared.release_http_session(session, peer, peer.idle_timeout()).await;
            }
            Line::Single(_) | Line::Declined(_) => {}
            Line::Shared(shared) => {
                let session = HttpSession::H2(shared.session);
                self.shared.release_http_session(session, peer, peer.idle_timeout()).await;
            }
        }
    }

    /// Takes note of an error that says that a peer does not really speak HTTP/2.
    pub(in crate::proxy) fn learn(&self, error: &Error, peer: &HttpPeer) {
        if matches!(error.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2) {
            self.shared.prefer_h1(peer);
        }
    }
}

impl Upstream {
    /// The protocol that is spoken.
    pub(in crate::proxy) fn version(&self) -> Version {
        match self.line {
            Line::Single(_) | Line::Declined(_) => Version::HTTP_11,
            Line::Shared(_) => Version::HTTP_2,
        }
    }

    /// The number of its socket.
    pub(in crate::proxy) fn fd(&self) -> RawFd {
        match &self.line {
            Line::Single(session) | Line::Declined(session) => session.stream().id(),
            Line::Shared(shared) => shared.session.fd(),
        }
    }

    /// Sends the head of a request, or has it wait for the beginning of the body, which has to follow
    /// at once then.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::proxy) async fn send_head(&mut self, head: Box<RequestHeader>, body: BodyOf) -> Result<()> {
        self.is_sent = body == BodyOf::None;
        match &mut self.line {
            Line::Single(session) | Line::Declined(session) => {
                if body == BodyOf::Ready {
                    Joint::wait_for_more(session.stream());
                }
                session.write_request_header(head).await.map(|_| ())
            }
            Line::Shared(shared) => {
                shared.session.write_request_header(head, body == BodyOf::None)?;
                shared.body = shared.session.take_request_body_writer();
                Ok(())
            }
        }
    }

    /// Sends a piece of the body, or begins to. Says whether it has been sent; if not,
    /// [`Progress::Sent`] will.
    ///
    /// # Errors
    /// The engine's.
    pub(in crate::proxy) async fn send(&mut self, piece: Bytes, last: bool) -> Result<bool> {
        let sent = match &mut self.line {
            Line::Single(session) | Line::Declined(session) => {
                if !piece.is_empty() {
                    session.write_body(&piece).await?;
                }
                if last {
                    session.finish_body().await?;
                }
                true
            }
            Line::Shared(shared) => {
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
    pub(in crate::proxy) async fn send_through(&mut self, bytes: &Bytes) -> Result<()> {
        if let Line::Single(session) | Line::Declined(session) = &mut self.line {
            session.maybe_upgrade_body_writer();
            session.write_body(bytes).await?;
        }
        Ok(())
    }

    /// Whether a piece of the body is on its way.
    pub(in crate::proxy) fn is_sending(&self) -> bool {
        matches!(&self.line, Line::Shared(shared) if shared.sending.is_some())
    }

    /// What comes about next. Nothing is lost when this is dropped before it is done.
    pub(in crate::proxy) async fn next(&mut self) -> Progress {
        match &mut self.line {
            Line::Single(session) | Line::Declined(session) => {
                Progress::Read(session.read_response_task().await)
            }
            Line::Shared(shared) => {
                let progress = shared.next().await;
                self.is_sent |= self.is_last && matches!(progress, Progress::Sent(Ok(())));
                progress
            }
        }
    }

    /// Whether another request may follow on this connection.
    fn is_fit(&mut self) -> bool {
        self.is_sent
            && match &mut self.line {
                // Before there is a final head the engine must not be asked.
                Line::Single(session) | Line::Declined(session) => {
                    session.resp_header().is_some_and(|head| !head.status.is_informational())
                        && session.is_body_done()
                }
                Line::Shared(_) => true,
            }
    }
}

/// What is known of a request's body when its head is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum BodyOf {
    /// There is none.
    None,
    /// Its beginning is here.
    Ready,
    /// It is to come, or another protocol.
    Later,
}

impl Shared {
    async fn next(&mut self) -> Progress {
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
            read = read(session, failure, stage), if *stage != Stage::Over => return Progress::Read(read),
        };
        *sending = None;
        *body = Some(writer);
        Progress::Sent(sent)
    }
}

fn key(peer: &HttpPeer) -> Option<Key> {
    Some(Key { peer: peer.group_key, address: *peer.address().as_inet()? })
}

/// Reads on from a stream of HTTP/2.
async fn read(
    session: &mut Http2Session,
    failure: &mut Option<Box<Error>>,
    stage: &mut Stage,
) -> Result<HttpTask> {
    if let Some(failure) = failure.take() {
        return Err(failure);
    }
    if *stage == Stage::Head {
        session.read_response_header().await?;
        *stage = Stage::Body;
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
        // The h2 crate does not look: RFC 9113, section 8.1.1.
        let is_head = session.request_header().is_some_and(|request| request.method == Method::HEAD);
        let may_lack = is_head || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = header.headers.get(CONTENT_LENGTH);
        if ends
            && !may_lack
            && length.is_some_and(|length| length.as_bytes().iter().any(|byte| *byte != b'0'))
        {
            return Error::e_explain(ErrorType::H2Error, "the reply ends before its length");
        }
        if ends {
            *stage = Stage::Over;
        }
        return Ok(HttpTask::Header(Box::new(header), ends));
    }
    while *stage == Stage::Body {
        let Some(data) = session.read_response_body().await? else {
            *stage = Stage::Trailers;
            break;
        };
        let ends = session.check_response_end_or_error()?;
        if ends {
            *stage = Stage::Over;
        } else if data.is_empty() {
            continue;
        }
        return Ok(HttpTask::Body(Some(data), ends));
    }
    let trailers = session.read_trailers().await?;
    *stage = Stage::Over;
    Ok(match trailers {
        Some(trailers) => HttpTask::Trailer(Some(Box::new(trailers))),
        None => HttpTask::Done,
    })
}

/// Makes the head of a request one of HTTP/2, which has its host in the target.
///
/// # Errors
/// Pingora's, for a host that is none.
pub(in crate::proxy) fn address_http2(head: &mut RequestHeader, tls: bool) -> Result<()> {
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
