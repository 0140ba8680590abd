//! A connection of a client, until each of its request heads is complete: one deadline for the whole
//! head, a limit on its size, a refusal in Azure's shape for a malformed one, an idle timeout.
//!
//! The engine has none of these: its header timeout is per read, its limit 1 MiB, its 400 has no body.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::BytesMut;
use log::debug;
use memchr::memchr_iter;
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::Session;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::client_request::new_request_id;
use super::connection_limit::{ConnectionLimit, ConnectionPermit};
use super::timeouts::{HANDOVER_LINGER, IDLE_TIMEOUT, REFUSAL_READ_TIMEOUT, STOP_LINGER};
use super::{head, refusal_response};
use crate::admission::client_ip::is_trusted_proxy;
use crate::config::ListenerConfig;
use crate::proxy::ActiveConfig;
use crate::proxy::runner::Runner;
use crate::proxy::timer::Timer;
use crate::refusal::{Refusal, RefusalReason};

/// Most bytes of a request head. The largest that SDKs send have 2 KiB; an access token of Entra ID
/// may have 8 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Handles the connections of one listener, in front of the runner that all listeners share.
pub struct ConnectionHandler {
    runner: Arc<Runner>,
    listener: Arc<ListenerConfig>,
    config: Arc<ArcSwap<ActiveConfig>>,
    /// The runtime that polls the connections; the watchdog checks that it is alive.
    runtime: Arc<OnceLock<Handle>>,
    connection_limit: ConnectionLimit,
}

/// Why no request head was read.
enum HeadReadError {
    /// The client gets this refusal.
    Refused(Refusal),
    /// The client has closed the connection, or was idle for too long.
    Closed,
}

impl ConnectionHandler {
    /// A handler for this listener.
    pub fn new(
        runner: Arc<Runner>,
        listener: Arc<ListenerConfig>,
        config: Arc<ArcSwap<ActiveConfig>>,
        runtime: Arc<OnceLock<Handle>>,
    ) -> Self {
        Self { runner, listener, config, runtime, connection_limit: ConnectionLimit::default() }
    }

    /// The permit of a connection; `None` for a trusted proxy, which is not limited.
    ///
    /// # Errors
    /// `overloaded` when its address has too many connections.
    fn acquire_permit(&self, stream: &Stream) -> Result<Option<ConnectionPermit>, Refusal> {
        let address = stream.get_socket_digest().and_then(|digest| digest.peer_addr().cloned());
        let Some(ip) = address.and_then(|address| address.as_inet().map(SocketAddr::ip)) else {
            return Ok(None);
        };
        let config = self.config.load();
        let listener = config.listener(&self.listener);
        // A proxy has the connections of many clients.
        if is_trusted_proxy(ip, &listener.trusted_proxies) {
            return Ok(None);
        }
        let max_connections = listener.max_connections_per_client;
        self.connection_limit.try_acquire(ip, max_connections).map(Some).ok_or_else(|| {
            let message =
                format!("this address has {max_connections} connections already, the most that it may have");
            Refusal::new(RefusalReason::Overloaded, message)
        })
    }

    /// Waits until this process takes no further requests on open connections.
    async fn until_shutdown(&self, stopping: &mut ShutdownWatch) {
        let _ = stopping.wait_for(|stopping| *stopping).await;
        let has_successor = !self.config.load().gateway.process.is_stopping.load(Ordering::Acquire);
        tokio::time::sleep(if has_successor { HANDOVER_LINGER } else { STOP_LINGER }).await;
    }

    /// Reads until a head is complete; the bytes may go beyond it.
    async fn read_head(
        &self,
        stream: &mut Stream,
        is_first: bool,
        timer: &mut Timer,
    ) -> Result<BytesMut, HeadReadError> {
        let limit = self.config.load().gateway.timeouts.request_head;
        let mut bytes = BytesMut::with_capacity(2048);
        // On a new connection silence is slowness; between two requests it is idleness.
        let silence_limit = if is_first { limit } else { IDLE_TIMEOUT };
        tokio::select! {
            biased;
            read = stream.read_buf(&mut bytes) => match read {
                Ok(read) if read > 0 => {}
                _ => return Err(HeadReadError::Closed),
            },
            () = timer.until(Some(Instant::now() + silence_limit)) => return Err(HeadReadError::Closed),
        }
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        loop {
            // A client may end its last body with an extra line end (RFC 9112, section 2.2).
            let blank_bytes = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if searched == 0 && blank_bytes > 0 {
                let _ = bytes.split_to(blank_bytes);
            }
            let from = searched.min(bytes.len());
            if let Some(at) = bytes.get(from..).and_then(find_head_end) {
                let head = bytes.get(..from + at).unwrap_or_default();
                return match head::check_head(head) {
                    Ok(()) => Ok(bytes),
                    Err(refusal) => Err(HeadReadError::Refused(refusal)),
                };
            }
            if bytes.len() > MAX_HEAD_BYTES {
                let message = format!("a request head may have at most {MAX_HEAD_BYTES} bytes");
                return Err(HeadReadError::Refused(Refusal::new(RefusalReason::HeadersTooLarge, message)));
            }
            searched = bytes.len().saturating_sub(3);
            tokio::select! {
                biased;
                read = stream.read_buf(&mut bytes) => match read {
                    Ok(read) if read > 0 => {}
                    _ => return Err(HeadReadError::Closed),
                },
                () = timer.until(Some(deadline)) => {
                    let message = format!("the request head was not complete within {limit:?}");
                    return Err(HeadReadError::Refused(Refusal::new(RefusalReason::RequestTimeout, message)));
                }
            }
        }
    }
}

#[async_trait]
impl ServerApp for ConnectionHandler {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        self.runtime.get_or_init(Handle::current);
        let speaks_http2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        // Held until the connection ends.
        let _permit = match self.acquire_permit(&stream) {
            Ok(permit) => permit,
            Err(refusal) => {
                if !speaks_http2 {
                    refuse_and_close(&mut stream, &refusal).await;
                }
                return None;
            }
        };
        if speaks_http2 {
            // The engine limits its frames and header lists, and `runner.rs` sets its idle timeout.
            return self.runner.process_new(stream, shutdown).await;
        }
        let mut stopping = shutdown.clone();
        // Lingers long enough for a request that is on its way.
        let mut shutdown_over = pin!(self.until_shutdown(&mut stopping));
        let (mut is_first, mut timer) = (true, Timer::default());
        loop {
            let head = tokio::select! {
                biased;
                head = self.read_head(&mut stream, is_first, &mut timer) => head,
                () = &mut shutdown_over => return None,
            };
            let bytes = match head {
                Ok(bytes) => bytes,
                Err(HeadReadError::Closed) => return None,
                Err(HeadReadError::Refused(refusal)) => {
                    self.config.load().gateway.process.recorder.metrics().malformed_requests.inc();
                    refuse_and_close(&mut stream, &refusal).await;
                    return None;
                }
            };
            is_first = false;
            let mut session = Session::new_h1(stream);
            session.set_keepalive(Some(IDLE_TIMEOUT.as_secs()));
            session.set_pipelined_prefix(bytes);
            let listener = Some(Arc::clone(&self.listener));
            // Boxed: a connection that waits for its next request does not hold the memory of this one.
            stream = Box::pin(self.runner.serve_request(session, listener, &mut timer, shutdown)).await?;
        }
    }
}

/// The length of a head that is complete in these bytes: it ends with an empty line. Bare LF counts as
/// a line end here, so that `head::check_head` sees it and refuses it; waiting for more would only hide it.
fn find_head_end(bytes: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', bytes).find_map(|at| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Writes a refusal and closes the connection. What the client still sends is read for a moment: a reset
/// would take the refusal away before the client has read it.
async fn refuse_and_close(stream: &mut Stream, refusal: &Refusal) {
    let id = new_request_id(SystemTime::now());
    debug!("request {id} is malformed: {}", refusal.message);
    let response = refusal_response::raw_refusal(refusal, &id);
    let exchange = async {
        stream.write_all(&response).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await?;
        let mut rest = BytesMut::with_capacity(4096);
        while stream.read_buf(&mut rest).await? > 0 {
            rest.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(REFUSAL_READ_TIMEOUT, exchange).await;
}
