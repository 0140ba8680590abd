//! A request after admission: what the choice of a backend and the attempts need to know of it.

use std::sync::Arc;

use super::requested_call::BodyKind;
use crate::azure::{PromptParts, RequestTarget};
use crate::names::DeploymentName;
use crate::routing::pool::BackendPool;

/// A request that is allowed and has a pool of backends.
pub struct AdmittedRequest {
    /// Its path and query.
    pub target: Arc<RequestTarget>,
    /// The deployment that it names, if any.
    pub deployment: Option<DeploymentName>,
    /// The backends that can serve it.
    pub pool: Arc<BackendPool>,
    /// Whether it asks for a stream, if its body could be read.
    pub wants_stream: Option<bool>,
    /// Whether it may be sent again after an attempt that the backend may have received: not if it creates
    /// an object each time.
    pub is_repeatable: bool,
    /// Whether it reads or deletes an object by its id, which any resource may have: the default backend is
    /// tried first, and the other resources if that answers 404.
    pub searches_by_id: bool,
    pub(super) body_kind: BodyKind,
    /// Whether no backend lists the deployment and none has answered for it yet.
    pub(super) is_unlisted_deployment: bool,
}

impl AdmittedRequest {
    /// Where the prompt is in the body, if that is known.
    pub fn prompt_parts(&self) -> Option<&PromptParts> {
        match &self.body_kind {
            BodyKind::Json(facts) => Some(&facts.prompt_parts),
            BodyKind::Multipart(_) | BodyKind::Opaque => None,
        }
    }
}
