//! The state that the tasks of one Responses socket share: its handshake and client, the connection to the client, and
//! its idle upstream sockets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Method;
use pingora::http::RequestHeader;

use super::client_link::ClientLink;
use super::idle_limit::IdleSocketLimit;
use super::idle_upstreams::IdleUpstreams;
use crate::admission::client::Client;
use crate::admission::client_registry::{AuthError, UNKNOWN_SIGNING_KEY_MESSAGE};
use crate::azure::RequestTarget;
use crate::names::{Caller, CertificateSubject};
use crate::proxy::ActiveConfig;
use crate::proxy::client::body_memory::{BodyMemory, MemoryReservation};
use crate::proxy::client::client_request::ClientRequest;
use crate::proxy::context::RequestContext;
use crate::proxy::upstream::connection::UpstreamConnector;
use crate::refusal::Refusal;

/// Maximum number of unstored responses whose ids are remembered for one client socket.
const MAX_UNSTORED_RESPONSES: usize = 1024;

/// The state that the tasks of one Responses socket share.
pub(super) struct SocketShared {
    pub(super) services: SocketServices,
    /// The head of the client's handshake.
    pub(super) handshake_head: RequestHeader,
    pub(super) certificate_subject: Option<CertificateSubject>,
    /// The subprotocol that was selected for the client.
    pub(super) subprotocol: Option<String>,
    /// Who opened the socket, as its own record says.
    pub(super) opener: SocketOpener,
    pub(super) client: ClientLink,
    pub(super) idle_upstreams: IdleUpstreams,
    /// The ids of responses that only one of the upstream sockets has or had, latest last.
    unstored_responses: Mutex<VecDeque<Box<str>>>,
}

/// What a socket needs of the process.
#[derive(Clone)]
pub(in crate::proxy) struct SocketServices {
    pub(in crate::proxy) connector: Arc<UpstreamConnector>,
    pub(in crate::proxy) active_config: Arc<ArcSwap<ActiveConfig>>,
    pub(in crate::proxy) body_memory: Arc<BodyMemory>,
    pub(in crate::proxy) idle_socket_limit: Arc<IdleSocketLimit>,
}

/// A message of the client, with its memory.
pub(super) struct HeldMessage {
    pub(super) bytes: Bytes,
    pub(super) memory: MemoryReservation,
}

impl HeldMessage {
    /// Holds a message until its turn has it. `memory` is what has been charged for it so far.
    ///
    /// # Errors
    /// `overloaded` if there is no memory for it.
    pub(super) fn new(bytes: Bytes, mut memory: MemoryReservation) -> Result<Self, Refusal> {
        memory.grow_to(bytes.len() as u64)?;
        Ok(Self { bytes, memory })
    }
}

/// Who opened a socket.
pub(super) struct SocketOpener {
    /// The handshake's request. Each turn's record takes the client's details from it.
    pub(super) request: ClientRequest,
    /// The target of a POST to the same path.
    pub(super) turn_target: Arc<RequestTarget>,
    /// The configuration that the client was authenticated with.
    pub(super) config: Arc<ActiveConfig>,
    pub(super) client: Arc<Client>,
}

impl SocketShared {
    pub(super) fn new(
        services: SocketServices,
        handshake_head: RequestHeader,
        certificate_subject: Option<CertificateSubject>,
        subprotocol: Option<String>,
        opener: SocketOpener,
        client: ClientLink,
    ) -> Self {
        let holder = Caller::of(opener.client.name.as_ref(), opener.request.client_ip);
        let idle_upstreams = IdleUpstreams::new(Arc::clone(&services.idle_socket_limit), holder);
        Self {
            services,
            handshake_head,
            certificate_subject,
            subprotocol,
            opener,
            client,
            idle_upstreams,
            unstored_responses: Mutex::default(),
        }
    }

    /// The context of a turn that begins now, with the active configuration.
    pub(super) fn new_turn_context(&self) -> Box<RequestContext> {
        let config = self.services.active_config.load_full();
        let body_memory = Arc::clone(&self.services.body_memory);
        let mut context = Box::new(RequestContext::new(config, body_memory, Method::POST));
        let (turn, opened) = (&mut context.request, &self.opener.request);
        turn.socket_id = Some(Arc::clone(&opened.id));
        turn.peer_ip = opened.peer_ip;
        turn.client_ip = opened.client_ip;
        turn.headers_for_record = opened.headers_for_record.clone();
        turn.target = Some(Arc::clone(&self.opener.turn_target));
        turn.client = Some(Arc::clone(&self.opener.client));
        turn.class = opened.class;
        "application/json".clone_into(&mut turn.content_type);
        context
    }

    /// The client, authenticated again if the configuration has changed since the socket was opened.
    ///
    /// # Errors
    /// `invalid_api_key`.
    pub(super) fn authenticate(&self, config: &Arc<ActiveConfig>) -> Result<Arc<Client>, Refusal> {
        if Arc::ptr_eq(config, &self.opener.config) {
            return Ok(Arc::clone(&self.opener.client));
        }
        let gateway = &config.gateway;
        let target = self.opener.request.target.as_ref().unwrap_or(&self.opener.turn_target);
        gateway.check_method_and_path_allowed(&Method::GET, target)?;
        gateway.authenticate(&self.handshake_head.headers, target, self.certificate_subject.as_ref()).map_err(
            |error| match error {
                AuthError::Refused(refusal) => refusal,
                AuthError::UnknownSigningKey(_) => Refusal::invalid_api_key(UNKNOWN_SIGNING_KEY_MESSAGE),
            },
        )
    }

    /// Remembers a response that is not stored.
    pub(super) fn note_unstored_response(&self, id: &str) {
        let mut responses = self.lock_unstored();
        if responses.len() == MAX_UNSTORED_RESPONSES {
            responses.pop_front();
        }
        responses.push_back(Box::from(id));
    }

    /// Whether this response was made on this client socket with `"store": false`.
    pub(super) fn is_unstored_response(&self, id: &str) -> bool {
        self.lock_unstored().iter().any(|own| **own == *id)
    }

    fn lock_unstored(&self) -> MutexGuard<'_, VecDeque<Box<str>>> {
        self.unstored_responses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
