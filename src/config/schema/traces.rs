//! `traces`: which requests are exported to an OpenTelemetry collector.

use std::path::PathBuf;

use http::HeaderName;

use crate::config::values::{Endpoint, Percentage, Secret};

/// The collector that traces go to, and which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector.
    pub endpoint: Endpoint,
    /// The path that requests to it are sent to, which ends with `/v1/traces`.
    pub path: String,
    /// The share of traces that are exported of those that nothing else decides about.
    pub sample: Percentage,
    /// Header fields of requests to the collector.
    pub headers: Vec<(HeaderName, Secret)>,
    /// Whether backends get the `traceparent` of the attempt, and the client's `tracestate`.
    pub forwards_context: bool,
    /// The PEM file of the certificate authorities that the collector's certificate has to come from; `None` for
    /// those of the system.
    pub ca_file: Option<PathBuf>,
}
