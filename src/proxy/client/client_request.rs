//! Who sent a request, and what it asks for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::Method;

use crate::admission::client::Client;
use crate::azure::RequestTarget;
use crate::config::RequestClass;
use crate::names::{CertificateSubject, DeploymentName};
use crate::record::client_headers::ClientHeaders;

/// Who sent a request and what it asks for. It is filled in while head and body are read, and fixed
/// once the request is admitted.
pub(in crate::proxy) struct ClientRequest {
    /// A UUIDv7.
    pub(in crate::proxy) id: Arc<str>,
    /// The id of the record of the WebSocket that it came over; `None` for an HTTP request.
    pub(in crate::proxy) socket_id: Option<Arc<str>>,
    /// When the head was complete, for the record.
    pub(in crate::proxy) received_at: SystemTime,
    /// The same moment, to measure durations.
    pub(in crate::proxy) received_instant: Instant,
    pub(in crate::proxy) method: Method,
    /// The address of the TCP peer.
    pub(in crate::proxy) peer_ip: Option<IpAddr>,
    /// The address of the client, which is another one if the peer is a trusted proxy.
    pub(in crate::proxy) client_ip: Option<IpAddr>,
    /// What the header fields tell the record; without a `record` block at most the trace, if there are traces.
    pub(in crate::proxy) headers_for_record: ClientHeaders,
    /// The subject of the client certificate, until it is used to authenticate.
    pub(in crate::proxy) certificate_subject: Option<CertificateSubject>,
    /// `None` if it could not be parsed.
    pub(in crate::proxy) target: Option<Arc<RequestTarget>>,
    /// The path as it was sent, if the target could not be parsed.
    pub(in crate::proxy) unparsable_path: Option<String>,
    /// `None` until the client is authenticated.
    pub(in crate::proxy) client: Option<Arc<Client>>,
    /// How urgent it is; `None` until the client is authenticated.
    pub(in crate::proxy) class: Option<RequestClass>,
    pub(in crate::proxy) content_type: String,
    /// The deployment that the request names; `None` before the body has been read.
    pub(in crate::proxy) deployment: Option<DeploymentName>,
    /// `None` if the body was not read, or does not say.
    pub(in crate::proxy) wants_stream: Option<bool>,
    /// The client understands chunked encoding: true except for HTTP/1.0.
    pub(in crate::proxy) accepts_chunked_response: bool,
    /// It opens a Responses socket, which is answered here.
    pub(in crate::proxy) is_responses_socket: bool,
    /// The client asks to switch to the WebSocket protocol.
    pub(in crate::proxy) is_websocket_upgrade: bool,
    /// The subprotocol that is selected for it if the backend selects none.
    pub(in crate::proxy) offered_subprotocol: Option<String>,
}

impl ClientRequest {
    pub(in crate::proxy) fn new(method: Method) -> Self {
        let received_at = SystemTime::now();
        Self {
            id: new_request_id(received_at),
            socket_id: None,
            received_at,
            received_instant: Instant::now(),
            method,
            peer_ip: None,
            client_ip: None,
            headers_for_record: ClientHeaders::default(),
            certificate_subject: None,
            target: None,
            unparsable_path: None,
            client: None,
            class: None,
            content_type: String::new(),
            deployment: None,
            wants_stream: None,
            accepts_chunked_response: true,
            is_responses_socket: false,
            is_websocket_upgrade: false,
            offered_subprotocol: None,
        }
    }

    /// Takes the deployment that the request names; before the body has been read, that in the target.
    pub(in crate::proxy) fn take_deployment(&mut self) -> Option<DeploymentName> {
        let in_target = || self.target.as_ref().and_then(|target| target.deployment.clone());
        self.deployment.take().or_else(in_target)
    }
}

/// A UUIDv7, which sorts by time and is unique without coordination (RFC 9562, section 5.7).
pub(in crate::proxy) fn new_request_id(time: SystemTime) -> Arc<str> {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut random = [0_u8; 10];
    fastrand::fill(&mut random);
    let id =
        uuid::Builder::from_unix_timestamp_millis(u64::try_from(millis).unwrap_or(0), &random).into_uuid();
    let mut buffer = uuid::Uuid::encode_buffer();
    Arc::from(&*id.hyphenated().encode_lower(&mut buffer))
}
