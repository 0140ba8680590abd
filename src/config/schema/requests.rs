//! `requests`: which requests are allowed, how large they may be, and what is changed in them.

use crate::config::values::AllowRule;

/// Who answers `GET /v1/models`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelsSource {
    /// The balancer: with the deployments that the client may use.
    Deployments,
    /// The default backend.
    DefaultBackend,
}

/// Which requests are allowed, how large they may be, and what is changed in them.
#[derive(Clone, Debug)]
pub struct RequestsConfig {
    /// A request is allowed if one of these rules permits it; at least one.
    pub allow_rules: Vec<AllowRule>,
    /// The `api-version` that is added to a request on a classic path without one.
    pub default_api_version: Option<String>,
    /// The backend for calls that name no deployment, as an index into
    /// [`Config::backends`](super::Config::backends); `None` if it is disabled: such calls are refused.
    pub default_backend_index: Option<usize>,
    /// Who answers `GET /v1/models`.
    pub models_source: ModelsSource,
    /// The largest request body, in bytes, that is held in memory so that it can be sent again.
    pub max_buffered_body_bytes: u64,
    /// The largest file upload, in bytes. One above `max_buffered_body_bytes` is streamed and cannot be
    /// sent again. At least `max_buffered_body_bytes`.
    pub max_streamed_body_bytes: u64,
    /// The most bytes that all held bodies take together; at least `max_buffered_body_bytes`.
    pub max_total_buffered_bytes: u64,
    /// Headers to set on every upstream request, each name once. Values that came from an expansion are
    /// marked sensitive.
    pub set_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Headers to remove from every upstream request; none of them is in `set_headers`.
    pub remove_headers: Vec<http::HeaderName>,
}
