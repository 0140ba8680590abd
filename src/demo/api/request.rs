//! A request with everything that an operation needs, and its way through the rate limits.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::error_response::{invalid_parameter, invalid_request_error};
use super::response::{ErrorResponse, SimulatedResponse};
use super::route::RequestRoute;
use super::throttling;
use crate::demo::http::multipart::MultipartForm;
use crate::demo::http::request_head::RequestHead;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::definition::SimulatedDeployment;
use crate::demo::resource::rate_limiter::{
    AdmissionDecision, ChargeSettlement, LimitOverride, RateLimitCounters, RequestCost,
};
use crate::demo::resource::state::ResourceState;

/// One request to a simulated resource.
#[derive(Clone, Copy)]
pub(in crate::demo) struct SimulatedRequest<'a> {
    pub(in crate::demo) resource: &'a ResourceState,
    pub(in crate::demo) head: &'a RequestHead,
    pub(in crate::demo) body: &'a Bytes,
    pub(in crate::demo) route: &'a RequestRoute,
    /// How the mood changes the rate limits.
    pub(in crate::demo) limit_override: LimitOverride,
    /// Whether what the request creates is kept: not if the mood makes it fail after all.
    pub(in crate::demo) keeps_responses: bool,
    /// How long a response that is streamed for this request is not found after its stream has ended.
    pub(in crate::demo) read_lag: Duration,
    /// The time by which limits, caches and background responses are judged.
    pub(in crate::demo) received_at: Instant,
}

impl<'a> SimulatedRequest<'a> {
    /// The body as a JSON object.
    ///
    /// # Errors
    /// 400 if it is not one.
    pub(in crate::demo) fn json_body(&self) -> Result<Value, ErrorResponse> {
        let parsed: Option<Value> = serde_json::from_slice(self.body).ok();
        parsed.filter(Value::is_object).ok_or_else(|| {
            let message = "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your \
                           HTTP library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)";
            Box::new(invalid_request_error(400, message, None, None))
        })
    }

    /// The body as a multipart form.
    ///
    /// # Errors
    /// 400 if it is not one.
    pub(in crate::demo) fn multipart_body(&self) -> Result<MultipartForm<'a>, ErrorResponse> {
        MultipartForm::parse(self.head, self.body).ok_or_else(|| {
            let message = "The request body must be multipart/form-data with a boundary, and complete.";
            Box::new(invalid_request_error(400, message, None, None))
        })
    }

    /// The deployment that the request is for. The path takes precedence over the `model` of the body.
    ///
    /// # Errors
    /// 400 if the request names none, 404 if the resource does not have it.
    pub(in crate::demo) fn requested_deployment(
        &self,
        model: Option<&str>,
    ) -> Result<&'a SimulatedDeployment, ErrorResponse> {
        let Some(name) = self.route.deployment.as_deref().or(model) else {
            return Err(invalid_parameter("model", "Missing required parameter: 'model'."));
        };
        self.resource.deployment(name).ok_or_else(|| SimulatedError::DeploymentNotFound.into())
    }

    /// Asks the rate limiter of a deployment to admit the request.
    ///
    /// # Errors
    /// 429 if a limit is exceeded.
    pub(in crate::demo) fn admit_to_deployment(
        &self,
        deployment: &'a SimulatedDeployment,
        cost: RequestCost,
    ) -> Result<DeploymentAdmission<'a>, ErrorResponse> {
        match self.resource.admit_request(deployment, cost, self.limit_override, self.received_at) {
            AdmissionDecision::Admitted { estimated_tokens, counters } => Ok(DeploymentAdmission {
                resource: self.resource,
                deployment,
                estimated_tokens,
                rate_limit_counters: counters,
            }),
            AdmissionDecision::Refused { exceeded_limit, retry_after, counters } => {
                let region = &self.resource.definition.region;
                Err(Box::new(throttling::rate_limited_response(
                    self.route,
                    region,
                    deployment,
                    exceeded_limit,
                    retry_after,
                    &counters,
                )))
            }
        }
    }
}

/// A request that the rate limiter of a deployment has admitted.
pub(in crate::demo) struct DeploymentAdmission<'a> {
    resource: &'a ResourceState,
    deployment: &'a SimulatedDeployment,
    estimated_tokens: u64,
    rate_limit_counters: RateLimitCounters,
}

impl DeploymentAdmission<'_> {
    /// Adds the headers of the deployment, and the tokens that were really used.
    pub(in crate::demo) fn add_headers_and_charge(
        &self,
        response: SimulatedResponse,
        input_tokens: u64,
        output_tokens: u64,
    ) -> SimulatedResponse {
        let name = &self.deployment.name;
        let actual_tokens = self.resource.weighted_tokens(name, input_tokens, output_tokens);
        throttling::with_rate_limit_headers(response, &self.rate_limit_counters)
            .with_header("x-ms-deployment-name", name.clone())
            .with_header("x-ms-rai-invoked", "true")
            .with_header("azureml-model-session", format!("d{:03}-20261101120000", name.len()))
            .with_charge(ChargeSettlement {
                deployment: name.clone(),
                estimated_tokens: self.estimated_tokens,
                actual_tokens,
            })
    }
}
