//! What the path and the query of a request say: the dialect, the deployment, the operation.

use bytes::Bytes;
use serde_json::Value;

use crate::demo::http::multipart::MultipartForm;
use crate::demo::http::request_head::RequestHead;
use crate::demo::util::encoding::percent_decode;

/// The two forms of URL by which Azure OpenAI is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) enum ApiDialect {
    /// `/openai/...?api-version=2024-10-21`
    Classic { api_version: String },
    /// `/openai/v1/...`
    V1,
}

/// The parts of a request target.
#[derive(Debug, Clone)]
pub(in crate::demo) struct RequestRoute {
    pub(in crate::demo) dialect: ApiDialect,
    /// The deployment that the path names, or the query of a WebSocket.
    pub(in crate::demo) deployment: Option<String>,
    /// Whether the path begins with `/openai/deployments/{name}/`.
    pub(in crate::demo) has_deployment_in_path: bool,
    /// The path after `/openai`, `/openai/v1` or the deployment, percent-decoded.
    pub(in crate::demo) operation_segments: Vec<String>,
}

impl RequestRoute {
    /// `None` for a path that is not under `/openai/`.
    pub(in crate::demo) fn from_head(head: &RequestHead) -> Option<Self> {
        let path = head.path().strip_prefix("/openai/")?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments: Vec<String> =
            path.split('/').map(|segment| percent_decode(segment, false)).collect();
        let is_v1 = segments.first().is_some_and(|first| first == "v1");
        let dialect = if is_v1 {
            segments.remove(0);
            ApiDialect::V1
        } else {
            ApiDialect::Classic { api_version: head.query_parameter("api-version").unwrap_or_default() }
        };
        let has_deployment_in_path =
            !is_v1 && segments.len() > 2 && segments.first().is_some_and(|first| first == "deployments");
        let mut deployment = has_deployment_in_path.then(|| segments.drain(..2).nth(1)).flatten();
        if segments.first().is_some_and(|first| first == "realtime") {
            deployment = head.query_parameter(if is_v1 { "model" } else { "deployment" });
        }
        Some(Self { dialect, deployment, has_deployment_in_path, operation_segments: segments })
    }

    /// The deployment that the route names, or else the body as its `model`.
    pub(in crate::demo) fn deployment_from_route_or_body(
        &self,
        head: &RequestHead,
        body: &Bytes,
    ) -> Option<String> {
        self.deployment.clone().or_else(|| {
            if let Some(form) = MultipartForm::parse(head, body) {
                return form.text("model");
            }
            let value: Value = serde_json::from_slice(body).ok()?;
            value.get("model")?.as_str().map(str::to_owned)
        })
    }

    /// The path of the operation, for slice patterns.
    pub(in crate::demo) fn operation_path_segments(&self) -> Vec<&str> {
        self.operation_segments.iter().map(String::as_str).collect()
    }
}
