//! The requests that the demo sends, to the load balancer and to its admin API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::time::sleep;

use crate::admin::status::StatusReport;
use crate::config::Endpoint;
use crate::outbound::{OutboundClient, OutboundError, OutboundRequest, OutboundResponse};

/// How long a response may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is tried whether the load balancer has started.
const START_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a response is read: enough for the status.
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Sends requests as a client, and reads the status.
#[derive(Clone)]
pub(super) struct Caller {
    outbound: Arc<OutboundClient>,
    listener: Endpoint,
    admin: Endpoint,
}

/// A response of the load balancer, as a client gets it.
pub(super) struct Answer {
    pub(super) status: u16,
    /// `x-aoai-lb-backend`; empty if no backend has answered.
    pub(super) backend: String,
    /// `x-aoai-lb-attempts`; 0 if no backend was tried.
    pub(super) attempts: u32,
    /// `x-aoai-lb-request-id`.
    pub(super) request_id: String,
    /// `null` if it is not JSON, such as a stream.
    pub(super) body: Value,
}

impl Caller {
    pub(super) fn new(listen: SocketAddr, admin: SocketAddr) -> Self {
        let endpoint = |address: SocketAddr| Endpoint {
            uses_tls: false,
            host: address.ip().to_string(),
            port: address.port(),
        };
        let outbound = OutboundClient::new(REQUEST_TIMEOUT).with_read_limit_bytes(MAX_RESPONSE_BYTES);
        Self { outbound: Arc::new(outbound), listener: endpoint(listen), admin: endpoint(admin) }
    }

    /// Waits until the load balancer serves, and its admin API.
    pub(super) async fn wait_until_ready(&self) {
        for endpoint in [&self.listener, &self.admin] {
            while !self.get(endpoint, "/readyz").await.is_ok_and(|response| response.status == 200) {
                sleep(START_POLL_INTERVAL).await;
            }
        }
    }

    /// Sends a JSON body with this key.
    ///
    /// # Errors
    /// [`OutboundError`] if there is no complete response.
    pub(super) async fn post(&self, key: &str, path: &str, body: &Value) -> Result<Answer, OutboundError> {
        let request = OutboundRequest {
            method: Method::POST,
            path_and_query: path,
            headers: &[("api-key", key), ("content-type", "application/json")],
            body: Bytes::from(body.to_string()),
        };
        let response = self.outbound.send(&self.listener, request).await?;
        let header = |name| {
            let value = response.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        Ok(Answer {
            status: response.status,
            backend: header("x-aoai-lb-backend"),
            attempts: header("x-aoai-lb-attempts").parse().unwrap_or_default(),
            request_id: header("x-aoai-lb-request-id"),
            body: serde_json::from_slice(&response.body).unwrap_or_default(),
        })
    }

    /// The response of `GET /api/status`; `None` if the admin API does not answer.
    pub(super) async fn status(&self) -> Option<StatusReport> {
        let response = self.get(&self.admin, "/api/status").await.ok()?;
        serde_json::from_slice(&response.body).ok()
    }

    async fn get(&self, endpoint: &Endpoint, path: &str) -> Result<OutboundResponse, OutboundError> {
        let request =
            OutboundRequest { method: Method::GET, path_and_query: path, headers: &[], body: Bytes::new() };
        self.outbound.send(endpoint, request).await
    }
}
