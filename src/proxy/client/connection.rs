//! What stands between a connection and the engine: one deadline for a whole request head, a
//! cap on its size, an answer in Azure's shape to what is malformed, a limit on idleness.
//!
//! The engine has none of these (its header time-out is per read, its cap 1 MiB, its 400 has
//! no body).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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

use super::connection_limit::{Crowd, Place};
use super::{head, refusal_response};
use crate::admission::address::is_trusted;
use crate::config::Listener;
use crate::proxy::context::{Serving, request_id};
use crate::proxy::runner::Runner;
use crate::proxy::timer::Timer;
use crate::refusal::{Reason, Refusal};

/// Most bytes of a request head. The largest that SDKs send have two KiB; an Entra token
/// may have eight.
const HEAD_MAX: usize = 64 * 1024;
/// How long a connection may be silent between two requests.
pub const IDLE: Duration = Duration::from_secs(75);
/// How long a connection is kept after the listeners have closed: a client may have sent its
/// next request before it was told to go elsewhere.
pub const STOPPING: Duration = Duration::from_millis(250);
/// The same where another process has taken over: long enough for clients far away.
pub const MOVING: Duration = Duration::from_secs(4);
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The guard of one listener, in front of the balancer that all listeners share.
pub struct ConnectionHandler {
    drive: Arc<Runner>,
    listener: Arc<Listener>,
    serving: Arc<ArcSwap<Serving>>,
    /// The runtime that it is polled on, for those who want to know whether that is alive.
    runtime: Arc<OnceLock<Handle>>,
    crowd: Crowd,
}

/// Why no request came.
enum NoHead {
    /// The client is told.
    Refused(Refusal),
    /// The connection is closed, ended or idle.
    Over,
}

impl ConnectionHandler {
    /// A guard for this listener.
    pub fn new(
        drive: Arc<Runner>,
        listener: Arc<Listener>,
        serving: Arc<ArcSwap<Serving>>,
        runtime: Arc<OnceLock<Handle>>,
    ) -> Self {
        Self { drive, listener, serving, runtime, crowd: Crowd::default() }
    }

    /// A place for a connection, unless its address has too many already.
    fn place(&self, stream: &Stream) -> Result<Option<Place>, Refusal> {
        let address = stream.get_socket_digest().and_then(|digest| digest.peer_addr().cloned());
        let Some(ip) = address.and_then(|address| address.as_inet().map(SocketAddr::ip)) else {
            return Ok(None);
        };
        let serving = self.serving.load();
        let listener = serving.listener(&self.listener);
        // Who stands for many is one of ours.
        if is_trusted(ip, &listener.trusted_proxies) {
            return Ok(None);
        }
        let most = listener.connections_per_client;
        self.crowd.place(ip, most).map(Some).ok_or_else(|| {
            let message = format!("this address has {most} connections already, the most that it may have");
            Refusal::new(Reason::Overloaded, message)
        })
    }

    /// Until this process takes no further requests.
    async fn stopped(&self, stopping: &mut ShutdownWatch) {
        let _ = stopping.wait_for(|stopping| *stopping).await;
        let is_moving = !self.serving.load().gateway.process.stopping.load(Ordering::Acquire);
        tokio::time::sleep(if is_moving { MOVING } else { STOPPING }).await;
    }

    /// Reads until a head is complete; what follows it has come along.
    async fn read_head(
        &self,
        stream: &mut Stream,
        first: bool,
        timer: &mut Timer,
    ) -> Result<BytesMut, NoHead> {
        let limit = self.serving.load().gateway.timeouts.request_header;
        let mut bytes = BytesMut::with_capacity(2048);
        // Between requests silence is idleness; on a new connection it is slowness.
        let silence = if first { limit } else { IDLE };
        tokio::select! {
            biased;
            read = stream.read_buf(&mut bytes) => match read {
                Ok(read) if read > 0 => {}
                _ => return Err(NoHead::Over),
            },
            () = timer.until(Some(Instant::now() + silence)) => return Err(NoHead::Over),
        }
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        loop {
            // A client may end its last body with an extra line end (RFC 9112, section 2.2).
            let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if searched == 0 && blank > 0 {
                let _ = bytes.split_to(blank);
            }
            let from = searched.min(bytes.len());
            if let Some(at) = bytes.get(from..).and_then(end_of_head) {
                let head = bytes.get(..from + at).unwrap_or_default();
                return match head::check(head) {
                    Ok(()) => Ok(bytes),
                    Err(refusal) => Err(NoHead::Refused(refusal)),
                };
            }
            if bytes.len() > HEAD_MAX {
                let message = format!("a request head may have at most {HEAD_MAX} bytes");
                return Err(NoHead::Refused(Refusal::new(Reason::HeadersTooLarge, message)));
            }
            searched = bytes.len().saturating_sub(3);
            tokio::select! {
                biased;
                read = stream.read_buf(&mut bytes) => match read {
                    Ok(read) if read > 0 => {}
                    _ => return Err(NoHead::Over),
                },
                () = timer.until(Some(deadline)) => {
                    let message = format!("the request head was not complete within {limit:?}");
                    return Err(NoHead::Refused(Refusal::new(Reason::RequestTimeout, message)));
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
        // Held for as long as the connection is.
        let _place = match self.place(&stream) {
            Ok(place) => place,
            Err(refusal) => {
                if !speaks_http2 {
                    turn_away(&mut stream, &refusal).await;
                }
                return None;
            }
        };
        if speaks_http2 {
            // Its frames have lengths and limits of their own.
            return self.drive.process_new(stream, shutdown).await;
        }
        let mut stopping = shutdown.clone();
        // Long enough for a request that is on its way.
        let mut stopped = pin!(self.stopped(&mut stopping));
        let (mut first, mut timer) = (true, Timer::default());
        loop {
            let head = tokio::select! {
                biased;
                head = self.read_head(&mut stream, first, &mut timer) => head,
                () = &mut stopped => return None,
            };
            let bytes = match head {
                Ok(bytes) => bytes,
                Err(NoHead::Over) => return None,
                Err(NoHead::Refused(refusal)) => {
                    self.serving.load().gateway.process.recorder.metrics().malformed.inc();
                    turn_away(&mut stream, &refusal).await;
                    return None;
                }
            };
            first = false;
            let mut session = Session::new_h1(stream);
            session.set_keepalive(Some(IDLE.as_secs()));
            session.set_pipelined_prefix(bytes);
            let listener = Some(Arc::clone(&self.listener));
            // In memory of its own, which a connection that waits for its next request does not hold.
            stream = Box::pin(self.drive.serve(session, listener, &mut timer, shutdown)).await?;
        }
    }
}

/// The length of a head that is complete in these bytes: a line end that follows another. A bare one
/// is found by the check, and waiting for more would only hide it.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', bytes).find_map(|at| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Answers and closes, in this order as the client sees it: what it still sends is read for a
/// moment, since a reset would take the answer away from it.
async fn turn_away(stream: &mut Stream, refusal: &Refusal) {
    let id = request_id(std::time::SystemTime::now());
    debug!("request {id} is malformed: {}", refusal.message);
    let answer = refusal_response::raw(refusal, &id);
    let told = async {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(stream).await?;
        let mut rest = BytesMut::with_capacity(4096);
        while stream.read_buf(&mut rest).await? > 0 {
            rest.clear();
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, told).await;
}
