//! The connections of a listener. A connection is counted before anything else is done with it; then its TLS
//! handshake and its first request head have one deadline together.
//!
//! Each HTTP/1.1 request head is read here completely before it goes to the runner: with one deadline for the whole
//! head, a limit on its size, an idle timeout, and a refusal in the shape of Azure's errors for a malformed one.
//!
//! Pingora has none of these: its header timeout applies to each read, its size limit is 1 MiB, and its 400
//! has no body.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use log::debug;
use memchr::memchr_iter;
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::Session;
use pingora::server::ShutdownWatch;
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::client_request::new_request_id;
use super::connection_limit::{AddressConnectionLimiter, ConnectionPermit, TotalConnectionLimiter};
use super::head::{self, BodyFraming};
use super::refusal_response;
use super::stream::chunked::ChunkedStream;
use super::stream::collected_writes::CollectedWrites;
use super::stream::http1::Http1Stream;
use super::stream::http2::{Http2Limits, Http2Stream};
use super::stream::poll_read_arrived;
use super::timeouts::{CLIENT_IDLE_TIMEOUT, HANDOVER_LINGER, REFUSE_AND_CLOSE_TIMEOUT, SHUTDOWN_LINGER};
use super::tls::{AcceptError, ServerTls, plain_http_refusal};
use crate::admission::client_ip::is_trusted_proxy;
use crate::config::ListenerConfig;
use crate::names::Caller;
use crate::proxy::ActiveConfig;
use crate::proxy::runner::Runner;
use crate::proxy::timer::Timer;
use crate::refusal::{Refusal, RefusalReason};

/// Handles the connections of one listener and passes their requests to the runner, which all listeners
/// share.
pub struct ConnectionHandler {
    runner: Arc<Runner>,
    /// The listener as it was at the start.
    startup_listener_config: Arc<ListenerConfig>,
    active_config: Arc<ArcSwap<ActiveConfig>>,
    /// Set to the runtime of the first connection, whose liveness the watchdog then checks.
    runtime_for_watchdog: Arc<OnceLock<Handle>>,
    /// `None` for a listener without TLS.
    tls: Option<Arc<ServerTls>>,
    address_limiter: AddressConnectionLimiter,
    /// Shared by all listeners.
    total_limiter: Arc<TotalConnectionLimiter>,
}

/// What a connection counts as until it ends.
struct ConnectionPermits {
    _total: OwnedSemaphorePermit,
    /// `None` for trusted proxies, whose connections are those of many clients.
    _address: Option<ConnectionPermit>,
}

/// A request head, and what was read after it.
pub(crate) struct ReadHead {
    pub(crate) bytes: BytesMut,
    /// The length of the head in `bytes`.
    length: usize,
    body_framing: BodyFraming,
}

/// Why no request head was read.
pub(crate) enum HeadReadError {
    /// The client gets this refusal, then the connection is closed.
    Refused(Refusal),
    /// The client has closed the connection, or has sent nothing for too long.
    Closed,
}

impl ConnectionHandler {
    /// A handler for this listener. It stores the runtime that its connections run on in `runtime_for_watchdog`.
    pub fn new(
        runner: Arc<Runner>,
        startup_listener_config: Arc<ListenerConfig>,
        active_config: Arc<ArcSwap<ActiveConfig>>,
        runtime_for_watchdog: Arc<OnceLock<Handle>>,
        tls: Option<Arc<ServerTls>>,
        total_limiter: Arc<TotalConnectionLimiter>,
    ) -> Self {
        Self {
            runner,
            startup_listener_config,
            active_config,
            runtime_for_watchdog,
            tls,
            address_limiter: AddressConnectionLimiter::new("listeners[].connections_per_client"),
            total_limiter,
        }
    }

    /// Acquires the permits for a connection.
    ///
    /// # Errors
    /// `overloaded` if all clients or the client's address have too many connections.
    fn acquire_permits(&self, stream: &Stream) -> Result<ConnectionPermits, Refusal> {
        // The address first: the connections of a client that has too many do not count for all.
        let address = self.acquire_address_permit(stream)?;
        let total = self.total_limiter.try_acquire().ok_or_else(|| {
            Refusal::new(RefusalReason::Overloaded, "the balancer has all the connections that it may have")
        })?;
        Ok(ConnectionPermits { _total: total, _address: address })
    }

    fn acquire_address_permit(&self, stream: &Stream) -> Result<Option<ConnectionPermit>, Refusal> {
        let Some(ip) = peer_ip(stream) else { return Ok(None) };
        let config = self.active_config.load();
        let listener = config.current_listener_settings(&self.startup_listener_config);
        if is_trusted_proxy(ip, &listener.trusted_proxies) {
            return Ok(None);
        }
        let max_connections =
            listener.max_connections_per_client_address.min(self.total_limiter.max_of_one_address());
        self.address_limiter.try_acquire(ip, max_connections).map(Some).ok_or_else(|| {
            let message =
                format!("this address has {max_connections} connections already, the most that it may have");
            Refusal::new(RefusalReason::Overloaded, message)
        })
    }

    /// Counts malformed requests.
    fn malformed_requests(&self) -> IntCounter {
        self.active_config.load().gateway.process_state.recorder.metrics().malformed_requests.clone()
    }

    /// Waits until this process accepts no further requests on open connections: after the listeners have
    /// closed, long enough for a request that is on its way.
    async fn wait_for_shutdown_and_linger(&self, shutdown: &mut ShutdownWatch) {
        let _ = shutdown.wait_for(|is_shutting_down| *is_shutting_down).await;
        let has_successor =
            !self.active_config.load().gateway.process_state.is_stopping.load(Ordering::Acquire);
        tokio::time::sleep(if has_successor { HANDOVER_LINGER } else { SHUTDOWN_LINGER }).await;
    }

    /// How long a request head may take.
    fn head_limit(&self) -> Duration {
        self.active_config.load().gateway.timeouts.request_head
    }
}

/// Reads until a request head is complete, and checks it.
/// `first_deadline` is that of a new connection's first head; a later one may take `limit` from its first byte.
///
/// # Errors
/// [`HeadReadError`].
pub(crate) async fn read_head(
    stream: &mut Stream,
    first_deadline: Option<Instant>,
    limit: Duration,
    timer: &mut Timer,
) -> Result<ReadHead, HeadReadError> {
    let mut bytes = BytesMut::new();
    // Between two requests a connection may be idle.
    let silence_deadline = first_deadline.unwrap_or_else(|| Instant::now() + CLIENT_IDLE_TIMEOUT);
    while bytes.is_empty() {
        read_more(stream, &mut bytes, timer, silence_deadline, || HeadReadError::Closed).await?;
        // Some clients send an empty line after their last body (RFC 9112, section 2.2).
        let blank_bytes = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        bytes.advance(blank_bytes);
    }
    // For the whole head, so that a client cannot send one byte every now and then.
    let deadline = first_deadline.unwrap_or_else(|| Instant::now() + limit);
    let mut searched_bytes = 0;
    loop {
        let from = searched_bytes.min(bytes.len());
        if let Some(length) = bytes.get(from..).and_then(complete_head_length) {
            let head = bytes.get(..from + length).unwrap_or_default();
            let body_framing = head::check_head(head).map_err(HeadReadError::Refused)?;
            return Ok(ReadHead { bytes, length: from + length, body_framing });
        }
        if bytes.len() > head::MAX_HEAD_BYTES {
            return Err(HeadReadError::Refused(head::too_large_refusal()));
        }
        // The last three bytes may be the beginning of the CR LF CR LF that ends the head.
        searched_bytes = bytes.len().saturating_sub(3);
        read_more(stream, &mut bytes, timer, deadline, || {
            let message = format!("the request head was not complete within {limit:?}");
            HeadReadError::Refused(Refusal::new(RefusalReason::RequestTimeout, message))
        })
        .await?;
    }
}

/// Reads more bytes of a connection before this moment.
///
/// # Errors
/// [`HeadReadError::Closed`], or `on_timeout`.
async fn read_more(
    stream: &mut Stream,
    bytes: &mut BytesMut,
    timer: &mut Timer,
    deadline: Instant,
    on_timeout: impl FnOnce() -> HeadReadError,
) -> Result<(), HeadReadError> {
    tokio::select! {
        biased;
        // The buffer grows as it has to.
        read = poll_fn(|cx| poll_read_arrived(stream, cx, bytes, usize::MAX, 0)) => match read {
            Ok(count) if count > 0 => Ok(()),
            _ => Err(HeadReadError::Closed),
        },
        () = timer.wait_until(Some(deadline)) => Err(on_timeout()),
    }
}

#[async_trait]
impl ServerApp for ConnectionHandler {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        self.runtime_for_watchdog.get_or_init(Handle::current);
        // Held until the connection ends.
        let _permits = match self.acquire_permits(&stream) {
            Ok(permits) => permits,
            Err(refusal) => {
                // With TLS the client could read the refusal only after a handshake, which costs more than all
                // that it may have.
                if self.tls.is_none()
                    && let Some(_permit) = self.total_limiter.refusals.try_acquire()
                {
                    refuse_and_close(&mut stream, &refusal).await;
                }
                return None;
            }
        };
        let first_deadline = Instant::now() + self.head_limit();
        if let Some(tls) = &self.tls {
            // Boxed, as below: a handshake's future is large and soon over.
            stream = match Box::pin(tls.accept(stream, first_deadline)).await {
                Ok(stream) => stream,
                Err(AcceptError::PlainHttp(mut stream)) => {
                    self.malformed_requests().inc();
                    refuse_and_close(&mut stream, &plain_http_refusal()).await;
                    return None;
                }
                Err(AcceptError::Failed) => return None,
            };
            if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
                // Pingora limits its frames and header lists, and `runner.rs` sets its idle timeout.
                let limits = Http2Limits {
                    first_head_deadline: first_deadline,
                    head_limit: self.head_limit(),
                    idle_limit: self.active_config.load().gateway.timeouts.response_idle,
                    memory: self.runner.empty_memory_reservation(Caller::Address(peer_ip(&stream))),
                };
                let stream = Http2Stream::new(stream, limits, self.malformed_requests());
                return self.runner.process_new(Box::new(stream), shutdown).await;
            }
        } else {
            stream = CollectedWrites::wrap(stream);
        }
        stream = Http1Stream::wrap(stream);
        let mut shutdown_watch = shutdown.clone();
        let mut shutdown_over = pin!(self.wait_for_shutdown_and_linger(&mut shutdown_watch));
        let (mut first_deadline, mut timer) = (Some(first_deadline), Timer::default());
        loop {
            Http1Stream::begin_request(&stream);
            // In this order: a request that has arrived is still served.
            let head = tokio::select! {
                biased;
                head = read_head(&mut stream, first_deadline, self.head_limit(), &mut timer) => head,
                () = &mut shutdown_over => return None,
            };
            let ReadHead { mut bytes, length, body_framing } = match head {
                Ok(head) => head,
                Err(HeadReadError::Closed) => return None,
                Err(HeadReadError::Refused(refusal)) => {
                    self.malformed_requests().inc();
                    refuse_and_close(&mut stream, &refusal).await;
                    return None;
                }
            };
            first_deadline = None;
            match body_framing {
                BodyFraming::Chunked => stream = ChunkedStream::wrap(stream, &mut bytes, length),
                BodyFraming::Length => Http1Stream::unread(&stream, &mut bytes, length),
                // What follows belongs to no body: the first bytes of a tunnel, or another request.
                BodyFraming::None => {}
            }
            let mut session = Session::new_h1(stream);
            // Pingora's way to give bytes that have already been read to the next request of a connection.
            session.set_pipelined_prefix(bytes);
            let listener = Some(Arc::clone(&self.startup_listener_config));
            // Boxed, so that a connection that waits for its next request does not hold the memory of a future
            // that serves one.
            stream = Box::pin(self.runner.serve_request(session, listener, &mut timer, shutdown)).await?;
            stream = ChunkedStream::unwrap_if_wrapped(stream)?;
        }
    }
}

/// The address of the other side; `None` if it has none.
fn peer_ip(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    digest.peer_addr()?.as_inet().map(SocketAddr::ip)
}

/// The length of the head in these bytes if it is complete, that is, ends with an empty line. A bare LF
/// counts as a line end: otherwise the head would seem incomplete and time out, and not be refused by
/// `head::check_head`.
fn complete_head_length(bytes: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', bytes).find_map(|at| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Writes a refusal and closes the connection.
pub(crate) async fn refuse_and_close(stream: &mut Stream, refusal: &Refusal) {
    let id = new_request_id(SystemTime::now());
    debug!("request {id} is refused before it is read: {}", refusal.message);
    let response = refusal_response::raw_refusal(refusal, &id);
    let write_and_drain = async {
        stream.write_all(&response).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await?;
        // If a socket is closed while bytes from the client are unread, the kernel sends a reset, at which
        // the client may lose the refusal before it has read it.
        let mut unread = BytesMut::with_capacity(4096);
        while stream.read_buf(&mut unread).await? > 0 {
            unread.clear();
        }
        io::Result::Ok(())
    };
    let _ = timeout(REFUSE_AND_CLOSE_TIMEOUT, write_and_drain).await;
}
