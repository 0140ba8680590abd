//! What the records of a realtime session have in common.

use std::borrow::Cow;
use std::sync::Arc;

use crate::azure::Operation;
use crate::gateway::Gateway;
use crate::names::{BackendName, DeploymentName};
use crate::proxy::attempt::response_state::ResponseState;
use crate::proxy::client::client_request::ClientRequest;
use crate::proxy::context::RequestContext;
use crate::record::exchange::{CapturePolicy, FinishedExchange, WEBSOCKET_METHOD};
use crate::routing::spill::SpillReason;

/// Client, target and backend of a session.
pub(super) struct SessionFacts {
    pub(super) gateway: Arc<Gateway>,
    pub(super) policy: CapturePolicy,
    /// The session's own request, without what only its own record tells.
    request: ClientRequest,
    deployment: Option<DeploymentName>,
    api_version: Option<String>,
    backend: Option<BackendName>,
    upstream_deployment: Option<DeploymentName>,
    region: Option<String>,
    apim_request_id: Option<String>,
    spilled: Option<SpillReason>,
    was_spilled_by_azure: bool,
}

impl SessionFacts {
    /// Those of a request that a backend has answered with 101; `None` if it is no realtime session.
    pub(super) fn of_request(context: &RequestContext) -> Option<Self> {
        let request = &context.request;
        let target = request.target.as_ref().filter(|target| target.operation == Operation::Realtime)?;
        let ResponseState::Relayed(relayed) = &context.response_state else { return None };
        let details = relayed.details();
        let answered_by = context.retry_state.as_ref()?.current_or_last_target()?;
        let gateway = Arc::clone(&context.config.gateway);
        let backend = gateway.backends.get(answered_by.backend_index);
        let own_version = backend.and_then(|backend| backend.config.api_version_override.as_deref());
        let default_version = gateway.request_config.default_api_version.as_deref();
        let api_version = target.upstream_api_version(own_version, default_version).map(Cow::into_owned);
        let deployment = request.deployment.clone().or_else(|| target.deployment.clone());
        let upstream_deployment =
            details.spilled_to.clone().or_else(|| answered_by.upstream_deployment.clone());
        Some(Self {
            spilled: answered_by.spilled.or(details.spilled_to.as_ref().map(|_| SpillReason::Throttled)),
            was_spilled_by_azure: details.spilled_to.is_some(),
            policy: gateway.capture_policy(request.client.as_deref()),
            backend: backend.map(|backend| backend.config.name.clone()),
            upstream_deployment: upstream_deployment.or_else(|| deployment.clone()),
            region: details.region.clone(),
            apim_request_id: details.apim_request_id.clone(),
            request: ClientRequest {
                socket_id: Some(Arc::clone(&request.id)),
                peer_ip: request.peer_ip,
                client_ip: request.client_ip,
                headers_for_record: request.headers_for_record.clone(),
                target: Some(Arc::clone(target)),
                client: request.client.clone(),
                ..ClientRequest::new(request.method.clone())
            },
            deployment,
            api_version,
            gateway,
        })
    }

    /// An exchange of this session, of which nothing else is known yet.
    pub(super) fn new_exchange(&self, request_id: Arc<str>) -> FinishedExchange {
        let request = &self.request;
        FinishedExchange {
            socket_id: request.socket_id.clone(),
            client_headers: request.headers_for_record.clone(),
            client: request.client.clone(),
            client_ip: request.client_ip,
            peer_ip: request.peer_ip,
            target: request.target.clone(),
            api_version: self.api_version.clone(),
            is_deployment_known: self
                .deployment
                .as_ref()
                .is_some_and(|deployment| self.gateway.is_listed_or_learned_deployment(deployment)),
            requested_deployment: self.deployment.clone(),
            answering_backend: self.backend.clone(),
            upstream_deployment: self.upstream_deployment.clone(),
            spilled: self.spilled,
            was_spilled_by_azure: self.was_spilled_by_azure,
            region: self.region.clone(),
            apim_request_id: self.apim_request_id.clone(),
            // Without attempts: the only one is that of the session.
            ..FinishedExchange::answered(request_id, request.received_at, WEBSOCKET_METHOD)
        }
    }
}
