//! How an admitted request is sent to one backend: its path, and the changes to its body.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::Method;

use super::admitted_request::AdmittedRequest;
use super::requested_call::ParsedBody;
use crate::azure::request::json_body::{BodyFacts, may_add_include_usage};
use crate::azure::{BodyEdit, DeploymentSource};
use crate::routing::health::backend_health::DeploymentHealth;
use crate::routing::pool::Candidate;

/// What is sent to one backend for an admitted request.
pub struct UpstreamRequest {
    /// Path and query.
    pub path_and_query: String,
    /// Changes to the body of the client.
    pub body_edits: Vec<BodyEdit>,
    /// Whether the stream is asked for its token usage though the client did not ask: the usage has to be
    /// removed from the response.
    pub asks_for_unrequested_usage: bool,
}

/// The api-versions to choose from for one backend.
#[derive(Clone, Copy)]
pub(super) struct ApiVersions<'c> {
    /// The backend's own, which replaces the client's.
    pub(super) backend_override: Option<&'c str>,
    /// For requests without one.
    pub(super) default: Option<&'c str>,
}

impl UpstreamRequest {
    /// The request for a candidate of its pool. `may_add_usage` allows to ask a stream for its usage.
    pub(super) fn new(
        admitted: &AdmittedRequest,
        candidate: &Candidate,
        api_versions: ApiVersions<'_>,
        may_add_usage: bool,
    ) -> Self {
        let target = &admitted.target;
        let deployment = candidate.upstream_deployment_override.as_ref();
        let ApiVersions { backend_override, default } = api_versions;
        let path_and_query = target.upstream_target(deployment, backend_override, default);
        let model_is_deployment = match target.deployment_source(&Method::POST) {
            DeploymentSource::Body | DeploymentSource::OptionalBody => true,
            // A call over WebRTC can name it in its query and in its body.
            DeploymentSource::Target => target.has_session_in_body(),
            DeploymentSource::Unspecified => false,
        };
        let new_model = deployment.filter(|_| model_is_deployment);
        let mut body_edits = Vec::new();
        let mut asks_for_unrequested_usage = false;
        match &admitted.parsed_body {
            ParsedBody::Opaque => {}
            ParsedBody::Json(facts) => {
                body_edits.extend(new_model.and_then(|model| facts.rename_model_edit(model)));
                if may_add_usage && can_add_usage(admitted, candidate, api_versions, facts) {
                    let edit = facts.include_usage_edit();
                    asks_for_unrequested_usage = edit.is_some();
                    body_edits.extend(edit);
                }
            }
            ParsedBody::Multipart(facts) => {
                body_edits.extend(new_model.and_then(|model| facts.rename_model_edit(model)));
            }
        }
        Self { path_and_query, body_edits, asks_for_unrequested_usage }
    }
}

/// Whether the request is for a stream that can be asked for its usage, and the deployment has not
/// rejected that.
fn can_add_usage(
    admitted: &AdmittedRequest,
    candidate: &Candidate,
    api_versions: ApiVersions<'_>,
    facts: &BodyFacts,
) -> bool {
    let target = &admitted.target;
    let api_version = || target.upstream_api_version(api_versions.backend_override, api_versions.default);
    let is_rejected =
        |deployment: &Arc<DeploymentHealth>| deployment.rejects_stream_options.load(Ordering::Relaxed);
    facts.wants_stream
        && may_add_include_usage(target.operation, target.api_style, api_version().as_deref(), facts)
        && !candidate.deployment_health.as_ref().is_some_and(is_rejected)
}
