//! A response that is held until the next step is known: all of it, or what has arrived of it.

use bytes::Bytes;
use pingora::http::ResponseHeader;

use crate::credentials::CredentialRedactor;
use crate::names::DeploymentName;
use crate::routing::spill::SpillReason;

/// The backend of an attempt, the name of the deployment there, and why it is of no higher tier.
#[derive(Clone)]
pub(in crate::proxy) struct AttemptTarget {
    /// The index of the backend in the configuration.
    pub(in crate::proxy) backend_index: usize,
    pub(in crate::proxy) upstream_deployment: Option<DeploymentName>,
    pub(in crate::proxy) spilled: Option<SpillReason>,
}

/// A response that is held until the next step is known.
pub(in crate::proxy) struct HeldResponse {
    pub(super) header: Box<ResponseHeader>,
    pub(super) body_pieces: Vec<Bytes>,
    /// Bytes in `body_pieces`.
    pub(super) body_size: usize,
    /// The backend that sent it, once the attempt has ended.
    pub(super) sent_by: Option<AttemptTarget>,
    /// It says that this backend does not support the request. It is relayed only if no backend sent any
    /// other response.
    pub(super) says_request_is_unsupported: bool,
}

impl HeldResponse {
    pub(super) fn new(header: Box<ResponseHeader>) -> Self {
        Self {
            header,
            body_pieces: Vec::new(),
            body_size: 0,
            sent_by: None,
            says_request_is_unsupported: false,
        }
    }

    pub(super) fn push(&mut self, data: Bytes) {
        self.body_size += data.len();
        self.body_pieces.push(data);
    }

    /// Removes the credential that it was asked with from a complete body.
    pub(super) fn redact_body(&mut self, redactor: &CredentialRedactor) {
        if let Some(redacted) = redactor.redact_if_found(&self.body_received_so_far()) {
            self.body_pieces = vec![redacted.into()];
        }
    }

    /// The body as far as it has arrived, in one piece.
    pub(super) fn body_received_so_far(&self) -> Bytes {
        match self.body_pieces.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => Bytes::from(many.concat()),
        }
    }

    /// How useful it is to the client; 0 is best. A response about the request itself comes before a 429, a
    /// 5xx and a 408, and all of them before one that says that the backend does not support the request.
    pub(super) fn usefulness_rank(&self) -> u8 {
        match self.header.status.as_u16() {
            _ if self.says_request_is_unsupported => 4,
            429 => 1,
            500.. => 2,
            408 => 3,
            _ => 0,
        }
    }
}
