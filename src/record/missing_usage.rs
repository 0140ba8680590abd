//! The tokens of responses without reported usage: whether and from what they are estimated, and why they are missing
//! from the record if they cannot be.

use super::exchange::{CapturePolicy, CapturedResponse, ExchangeOutcome, FinishedExchange};
use super::token_estimate::TokenEstimator;
use crate::admission::limits::Settlement;
use crate::azure::Operation;
use crate::azure::request::prompt_sample::PromptSample;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::usage::TokenUsage;
use crate::azure::token_encoding::TokenEncoding;
use crate::azure::usage_missing::UsageMissing;
use crate::names::DeploymentName;

/// The longest request body of which a sample is taken by the thread that serves the request.
const MAX_BODY_SAMPLED_AT_ONCE_BYTES: usize = 4 * 1024 * 1024;
/// The finish reasons of a response that may have no text at all.
const REASONS_WITHOUT_TEXT: [&str; 5] =
    ["stop", "tool_calls", "function_call", "completed", "content_filter"];

impl FinishedExchange {
    /// Whether the tokens have to be estimated: a backend has answered, or began to, without usage.
    pub fn needs_token_estimate(&self, policy: CapturePolicy) -> bool {
        let lacks_usage = match &self.captured_response {
            CapturedResponse::Parsed(capture) => capture.usage.is_none(),
            // A body that broke off is not counted: the backend has generated the whole response, and bills it.
            CapturedResponse::Buffered { is_json, has_usage, .. } => {
                *is_json && !has_usage && self.outcome == ExchangeOutcome::Answered
            }
            CapturedResponse::NotCaptured | CapturedResponse::Binary { .. } => false,
        };
        lacks_usage
            && policy.estimates_tokens
            && self.usage_missing.is_none()
            && self.client_status == Some(200)
            && has_text_tokens(self.operation())
            && !self.fetches_stored_object()
    }

    /// Takes a sample of the prompt from the request body, of at most `max_bytes`. Called by the thread that serves
    /// the request.
    pub(super) fn sample_prompt_at_once(&mut self, max_bytes: usize) {
        let operation = self.operation();
        let body = self.captured_request.as_ref().map(|request| &request.body[..]);
        let body = body.filter(|body| body.len() <= MAX_BODY_SAMPLED_AT_ONCE_BYTES);
        self.prompt_sample = Some(sample_of(body, operation, max_bytes));
    }

    /// Estimates the tokens, unless the parsed response has usage.
    pub(super) fn estimate_tokens(&mut self, estimator: &mut TokenEstimator, max_tokenized_bytes: usize) {
        let sample = self.prompt_sample.take().unwrap_or_else(|| {
            let body = self.captured_request.as_ref().map(|request| &request.body[..]);
            sample_of(body, self.operation(), max_tokenized_bytes)
        });
        let CapturedResponse::Parsed(mut capture) = std::mem::take(&mut self.captured_response) else {
            return;
        };
        if capture.usage.is_none() {
            match self.estimated_usage(&capture, sample, estimator, max_tokenized_bytes) {
                Ok(usage) => {
                    capture.usage = Some(usage);
                    capture.is_usage_estimated = true;
                }
                Err(missing) => self.usage_missing = Some(missing),
            }
        }
        self.captured_response = CapturedResponse::Parsed(capture);
    }

    fn estimated_usage(
        &self,
        capture: &ResponseCapture,
        sample: Result<PromptSample, UsageMissing>,
        estimator: &mut TokenEstimator,
        max_tokenized_bytes: usize,
    ) -> Result<TokenUsage, UsageMissing> {
        let has_ended_well = self.outcome == ExchangeOutcome::Answered;
        let has_output = self.operation() != Operation::Embeddings;
        let output = capture.output_sample().ok_or(UsageMissing::NotTold)?;
        if !has_ended_well && output.text.is_empty() {
            return Err(UsageMissing::BrokenOff);
        }
        let will_be_reported = capture.stored_object.as_ref().is_some_and(|object| !object.has_ended);
        let is_known = if has_output {
            let reason = capture.finish_reason.as_deref();
            !output.text.is_empty() || reason.is_some_and(|reason| REASONS_WITHOUT_TEXT.contains(&reason))
        } else {
            capture.model.is_some()
        };
        if has_ended_well && (will_be_reported || !is_known) {
            return Err(UsageMissing::NotTold);
        }
        let (sample, output) = (sample?, has_output.then_some(&output));
        estimator.estimate_usage(&self.model_name(capture), &sample, output, max_tokenized_bytes)
    }

    /// The name by which the encoding is chosen: that of the model, or that of a deployment if the response names no
    /// model or repeats the deployment's name.
    fn model_name(&self, capture: &ResponseCapture) -> String {
        let deployments = [&self.upstream_deployment, &self.requested_deployment];
        let deployments = deployments.map(|name| name.as_ref().map(DeploymentName::to_lowercase));
        let model = capture.model.as_ref().map(|model| model.to_lowercase());
        if let Some(model) = &model
            && !deployments.contains(&Some(model.clone()))
        {
            return model.clone();
        }
        let mut names = deployments.into_iter().flatten();
        names.find(|name| TokenEncoding::of_model(name).is_some()).or(model).unwrap_or_default()
    }

    /// Why the record has no tokens. `None` if it has some, or if none are expected, such as for a refused request or
    /// one about a file.
    pub(super) fn why_usage_is_missing(&self, usage: Option<&TokenUsage>) -> Option<UsageMissing> {
        if usage.is_some_and(|usage| usage.input.or(usage.output).or(usage.total).is_some()) {
            return None;
        }
        let counts = matches!(self.settlement_without_usage(), Settlement::Unknown);
        if self.usage_missing.is_some() || !counts || self.is_opened_websocket() {
            return self.usage_missing;
        }
        let operation = self.operation();
        match operation {
            Operation::Images => Some(UsageMissing::Image),
            Operation::Audio => Some(UsageMissing::Audio),
            _ if !has_text_tokens(operation) && operation != Operation::Realtime => None,
            _ if self.outcome != ExchangeOutcome::Answered => Some(UsageMissing::BrokenOff),
            Operation::Realtime => Some(UsageMissing::Audio),
            _ => Some(UsageMissing::NotTold),
        }
    }
}

/// Whether the tokens of an operation can be counted from text.
fn has_text_tokens(operation: Operation) -> bool {
    use Operation::{Chat, Completions, Embeddings, Responses};
    matches!(operation, Chat | Completions | Embeddings | Responses)
}

fn sample_of(
    body: Option<&[u8]>,
    operation: Operation,
    max_bytes: usize,
) -> Result<PromptSample, UsageMissing> {
    PromptSample::from_body(body.ok_or(UsageMissing::NotTold)?, operation, max_bytes)
}

#[cfg(test)]
#[path = "missing_usage_tests.rs"]
mod tests;
