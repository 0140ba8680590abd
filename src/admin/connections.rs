//! The connections of the admin API: how many there may be, and how long a client may take for its TLS
//! handshake, its request heads, and reading the responses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AdminApi;
use crate::proxy::client::connection::{HeadReadError, read_head, refuse_and_close};
use crate::proxy::client::connection_limit::{AddressConnectionLimiter, ConnectionPermit, RefusalLimiter};
use crate::proxy::client::tls::{AcceptError, ServerTls, plain_http_refusal};
use crate::proxy::timer::Timer;
use crate::refusal::{Refusal, RefusalReason};

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// The most of one address, so that others are left for the operator. A Unix socket has no addresses.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 128;

/// Handles the connections of the admin API and passes their requests to it.
pub struct AdminConnections {
    api: AdminApi,
    /// `None` without TLS.
    tls: Option<Arc<ServerTls>>,
    address_limiter: AddressConnectionLimiter,
    permits: Arc<Semaphore>,
    refusals: RefusalLimiter,
}

impl AdminConnections {
    /// A handler for this API.
    pub fn new(api: AdminApi, tls: Option<Arc<ServerTls>>) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let address_limiter = AddressConnectionLimiter::new("the admin API");
        Self { api, tls, address_limiter, permits, refusals: RefusalLimiter::beside(MAX_CONNECTIONS) }
    }

    /// Acquires the permits for a connection; `None` if there are too many.
    fn acquire_permits(&self, stream: &Stream) -> Option<(OwnedSemaphorePermit, Option<ConnectionPermit>)> {
        let address = stream.get_socket_digest().and_then(|digest| digest.peer_addr().cloned());
        let ip = address.and_then(|address| address.as_inet().map(SocketAddr::ip));
        let address_permit = match ip {
            Some(ip) => Some(self.address_limiter.try_acquire(ip, MAX_CONNECTIONS_PER_ADDRESS)?),
            None => None,
        };
        Some((Arc::clone(&self.permits).try_acquire_owned().ok()?, address_permit))
    }
}

#[async_trait]
impl ServerApp for AdminConnections {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        // Held until the connection ends.
        let Some(_permits) = self.acquire_permits(&stream) else {
            if self.tls.is_none()
                && let Some(_permit) = self.refusals.try_acquire()
            {
                let message = "the admin API has all the connections that it may have";
                refuse_and_close(&mut stream, &Refusal::new(RefusalReason::Overloaded, message)).await;
            }
            return None;
        };
        let head_limit = || self.api.timeouts().request_head;
        let mut first_deadline = Some(Instant::now() + head_limit());
        if let (Some(tls), Some(deadline)) = (&self.tls, first_deadline) {
            stream = match Box::pin(tls.accept(stream, deadline)).await {
                Ok(stream) => stream,
                Err(AcceptError::PlainHttp(mut stream)) => {
                    refuse_and_close(&mut stream, &plain_http_refusal()).await;
                    return None;
                }
                Err(AcceptError::Failed) => return None,
            };
        }
        let mut timer = Timer::default();
        loop {
            let bytes = match read_head(&mut stream, first_deadline, head_limit(), &mut timer).await {
                Ok(head) => head.bytes,
                Err(HeadReadError::Closed) => return None,
                Err(HeadReadError::Refused(refusal)) => {
                    refuse_and_close(&mut stream, &refusal).await;
                    return None;
                }
            };
            first_deadline = None;
            let mut session = ServerSession::new_http1(stream);
            session.set_pipelined_prefix(bytes);
            stream = Box::pin(self.api.serve_request(session, shutdown)).await?;
        }
    }
}
