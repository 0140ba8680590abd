//! `requests`: what may be asked.

use crate::config::values::AllowRule;

/// What may be asked, how much of it, and what is changed on the way.
#[derive(Clone, Debug)]
pub struct RequestsConfig {
    /// One of these has to permit a request; at least one.
    pub allow_rules: Vec<AllowRule>,
    /// Added to a classic path that has no `api-version`.
    pub default_api_version: Option<String>,
    /// The backend for calls that name no deployment: an index into [`Config::backends`].
    pub default_backend_index: usize,
    /// Most bytes of a body that is held and replayed.
    pub max_buffered_body_bytes: u64,
    /// Most bytes of a body that passes through without replay; at least `max_buffered_body_bytes`.
    pub max_streamed_body_bytes: u64,
    /// Most bytes of all held bodies together; at least `max_buffered_body_bytes`.
    pub max_total_buffered_bytes: u64,
    /// Set on every request upstream; no name twice. Values that were expanded are marked sensitive.
    pub set_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Removed from every request upstream; none of them is also set.
    pub remove_headers: Vec<http::HeaderName>,
}
