//! A response that is held back from the client: whole, or as far as it came.

use bytes::Bytes;
use pingora::http::ResponseHeader;

use crate::names::DeploymentName;

/// The backend of an attempt, and what it calls the deployment.
#[derive(Clone)]
pub(in crate::proxy) struct AttemptTarget {
    /// The index of the backend in the configuration.
    pub(in crate::proxy) backend: usize,
    pub(in crate::proxy) upstream_deployment: Option<DeploymentName>,
}

/// A response that is held back until the next step is known.
pub(in crate::proxy) struct HeldResponse {
    pub(in crate::proxy) header: Box<ResponseHeader>,
    pub(in crate::proxy) body: Vec<Bytes>,
    /// Bytes of the body.
    pub(super) size: usize,
    /// Which backend sent it.
    pub(super) sent_by: Option<AttemptTarget>,
    /// It says that the backend cannot serve this request: relayed only if no backend says more.
    pub(super) is_last_resort: bool,
}

impl HeldResponse {
    pub(in crate::proxy) fn new(header: Box<ResponseHeader>) -> Self {
        Self { header, body: Vec::new(), size: 0, sent_by: None, is_last_resort: false }
    }

    pub(in crate::proxy) fn push(&mut self, data: Bytes) {
        self.size += data.len();
        self.body.push(data);
    }

    /// The body as far as it came.
    pub(super) fn whole_body(&self) -> Bytes {
        match self.body.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => Bytes::from(many.concat()),
        }
    }

    /// How useful it is to the client, best first: about the request, a 429, a 5xx, a 408.
    pub(super) fn rank(&self) -> u8 {
        match self.header.status.as_u16() {
            _ if self.is_last_resort => 4,
            429 => 1,
            500.. => 2,
            408 => 3,
            _ => 0,
        }
    }
}
