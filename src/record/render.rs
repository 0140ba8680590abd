//! Makes the record of a finished exchange: extracts the text of prompt and completion, redacts it, and writes the
//! line of the access log.
//!
//! What takes long runs on the threads of the writer, not on those that serve requests.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use log::{Level, info, log_enabled};

use super::cost::{Pricing, ResponseCost};
use super::exchange::{
    CapturePolicy, CapturedRequest, CapturedResponse, ExtractedPrompt, FinishedExchange, RecordedText,
    SLOW_TO_PARSE_BODY_BYTES,
};
use super::line::{RecordLine, to_millis};
use super::metrics::Metrics;
use super::redact::Redactor;
use super::shown_end::ShownEnd;
use super::stored_objects::StoredObjects;
use super::token_estimate::TokenEstimator;
use crate::azure::Operation;
use crate::azure::request::prompt::PromptBeginning;
use crate::azure::request::{multipart, prompt};
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::captured_text::CompletionText;
use crate::azure::response::usage::TokenUsage;
use crate::azure::usage_missing::UsageMissing;
use crate::config::RequestClass;
use crate::names::{BackendName, DeploymentName};
use crate::routing::spill::SpillReason;

/// The log target of the access log. The default filter leaves it out; `RUST_LOG=access=info` enables it.
const ACCESS_LOG_TARGET: &str = "access";

/// How far beyond the limit a text is redacted before it is truncated. A match that crosses the limit is then
/// found as a whole.
const REDACTION_MARGIN_BYTES: usize = 16 * 1024;

/// How much is hidden of a text that was cut while another one, such as that of the next choice, went on.
const HIDDEN_BEFORE_CUT_BYTES: usize = 4 * 1024;

/// Whether each exchange has a line in the access log.
pub fn is_access_logged() -> bool {
    log_enabled!(target: ACCESS_LOG_TARGET, Level::Info)
}

impl FinishedExchange {
    /// The record of this exchange. Also counts the exchange in `metrics` and logs its line of the access
    /// log, since only here its token counts are known.
    pub fn count_and_render_record(
        &mut self,
        policy: CapturePolicy,
        redactor: &Redactor,
        metrics: &Metrics,
        stored_objects: &StoredObjects,
        pricing: Option<&Arc<Pricing>>,
    ) -> RecordLine<'_> {
        let operation = self.operation();
        // What the record shows as it is in the body is not copied.
        if self.extracted_prompt.is_some() || !redactor.is_empty() {
            self.prepare_prompt(policy, redactor);
        }
        let text_limit = policy.max_completion_bytes();
        let mut capture = std::mem::take(&mut self.captured_response).into_capture(operation, text_limit);
        let shown_end = self.shown_end.take().or_else(|| stored_objects.on_response(self, &capture, pricing));
        if shown_end == Some(ShownEnd::NotCounted) {
            capture.usage = None;
        }
        let completion = capture
            .completion_text_with_cuts()
            .filter(|_| policy.captures_completion && !self.is_content_dropped);
        let completion = completion.map(|CompletionText { text, cut_ends }| {
            redact_and_truncate(text, &cut_ends, capture.is_text_truncated(), policy, redactor)
        });
        let exceeds_limit = completion.as_ref().is_some_and(|completion| completion.is_truncated);
        let is_completion_truncated =
            exceeds_limit || (policy.captures_completion && capture.is_text_truncated());
        let cost = pricing.map(|pricing| match &shown_end {
            Some(ShownEnd::First(deployment)) => {
                pricing.cost_of_stored(&pricing.stored_response(self, &capture), deployment.as_ref())
            }
            Some(ShownEnd::NotCounted) | None => pricing.cost_of(self, &capture),
        });
        let settled = self.settle_limits(capture.usage.as_ref(), capture.is_usage_estimated, cost);
        stored_objects.on_settled(self, &capture, settled.as_deref());
        metrics.record_exchange(self, capture.usage.as_ref(), cost);
        if is_access_logged() {
            info!(target: ACCESS_LOG_TARGET, "{}", self.access_log_line(capture.usage.as_ref()));
        }
        let is_counted_later = self.makes_unfinished_object(&capture);
        let usage_missing = self.why_usage_is_missing(capture.usage.as_ref()).filter(|_| !is_counted_later);
        let usage = capture.usage.unwrap_or_default();
        let (prompt, is_prompt_truncated) = self.recorded_prompt(policy, redactor).unzip();
        let content_cut =
            self.is_content_dropped || is_prompt_truncated == Some(true) || is_completion_truncated;
        RecordLine {
            time: rfc3339_micros(self.received_at),
            request_id: &self.request_id,
            client_request_id: self.client_headers.request_id.as_deref(),
            trace_id: self.trace_id(),
            socket_id: self.socket_id.as_deref(),
            client: self.client.as_ref().and_then(|client| client.name.as_ref()).map(|name| name.as_str()),
            class: self.class.map(RequestClass::as_str),
            client_ip: self.client_ip,
            peer_ip: self.peer_ip,
            user_agent: self.client_headers.user_agent.as_deref(),
            method: &self.method,
            path: self.target.as_ref().map(|target| target.path.as_str()).or(self.unparsed_path.as_deref()),
            operation: self.target.as_ref().map(|target| target.operation.name()),
            api: self.target.as_ref().map(|target| target.api_style.name()),
            api_version: self.api_version.as_deref(),
            deployment: self.requested_deployment.as_ref().map(DeploymentName::as_str),
            stream: self.is_stream_requested,
            status: self.client_status,
            outcome: self.outcome,
            refusal: self.refusal_code,
            limited_by: self.limited_by.as_ref(),
            reserved_tokens: self.reserved_tokens,
            backend: self.answering_backend.as_ref().map(BackendName::as_str),
            upstream_deployment: self.upstream_deployment.as_ref().map(DeploymentName::as_str),
            region: self.region.as_deref(),
            model: capture.model,
            service_tier: capture.service_tier,
            affinity: self.affinity.as_deref(),
            cache: self.cache,
            attempts: &self.attempts,
            duration_ms: to_millis(self.duration),
            waited_ms: to_millis(self.waited),
            queued_ms: to_millis(self.queued),
            first_byte_ms: self.time_to_first_body_byte.map(to_millis),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            usage,
            usage_source: match capture.usage {
                Some(_) if capture.is_usage_estimated => "estimated",
                Some(_) => "reported",
                None => "none",
            },
            usage_missing: usage_missing.map(UsageMissing::as_str),
            cost: cost.and_then(ResponseCost::amount),
            spilled: self.spilled.map(SpillReason::as_str),
            finish_reason: capture.finish_reason,
            apim_request_id: self.apim_request_id.as_deref(),
            prompt,
            completion: completion.map(|completion| completion.text),
            content_cut,
        }
    }

    /// Whether rendering the record takes so long that other records should not wait for it.
    pub fn is_slow_to_render(&self, policy: CapturePolicy) -> bool {
        let has_large_response = match &self.captured_response {
            CapturedResponse::Buffered { body, .. } => body.kept_byte_count() > 8 * SLOW_TO_PARSE_BODY_BYTES,
            _ => false,
        };
        self.needs_token_estimate(policy)
            || has_large_response
            || (policy.captures_prompt
                && self
                    .captured_request
                    .as_ref()
                    .is_some_and(|request| request.body.len() > SLOW_TO_PARSE_BODY_BYTES))
    }

    /// Shortens prompt and completion to about what the record needs, so that the exchange can be queued. Called by
    /// the thread that serves the request, so it takes time in proportion to the limits. The digest of binary
    /// data takes longer: a body with such data stays for [`FinishedExchange::prepare_content`]. If tokens have to
    /// be estimated, the body stays as well, unless `max_sample_bytes` returns a limit for a body of its length: then
    /// a sample of the prompt is kept instead.
    pub fn shorten_content(
        &mut self,
        policy: CapturePolicy,
        max_sample_bytes: impl Fn(usize) -> Option<usize>,
    ) {
        if self.needs_token_estimate(policy) {
            match self.captured_request.as_ref().and_then(|request| max_sample_bytes(request.body.len())) {
                Some(max_bytes) => self.sample_prompt_at_once(max_bytes),
                None => return,
            }
        } else if let CapturedResponse::Parsed(capture) = &mut self.captured_response {
            capture.shorten_text(policy.max_completion_bytes());
        }
        let Some(request) = self.captured_request.take().filter(|_| policy.captures_prompt) else { return };
        let limit = policy.max_buffered_text_bytes;
        // A body is kept whole, without a copy, if it is at most twice as long as the part of its prompt within the limit.
        let prompt_bytes = request.prompt_bytes().min(limit);
        let max_uncut_bytes = prompt_bytes.saturating_mul(2).min(SLOW_TO_PARSE_BODY_BYTES).max(limit);
        let beginning =
            (request.body.len() > max_uncut_bytes).then(|| request.prompt_beginning(limit)).flatten();
        match beginning {
            Some(PromptBeginning { text, is_truncated }) => {
                let text = text.into_owned();
                self.extracted_prompt = Some(ExtractedPrompt { text, is_truncated, is_redacted: false });
            }
            None => self.captured_request = Some(request),
        }
    }

    /// Does the slow part of [`FinishedExchange::count_and_render_record`] ahead of it: estimates tokens from
    /// at most `max_tokenized_bytes` of each text, extracts the prompt, parses the response.
    pub fn prepare_content(
        &mut self,
        policy: CapturePolicy,
        redactor: &Redactor,
        estimator: &mut TokenEstimator,
        max_tokenized_bytes: usize,
    ) {
        let needs_token_estimate = self.needs_token_estimate(policy);
        if matches!(self.captured_response, CapturedResponse::Buffered { .. }) {
            let operation = self.operation();
            let text_limit = if needs_token_estimate { usize::MAX } else { policy.max_completion_bytes() };
            let capture = std::mem::take(&mut self.captured_response).into_capture(operation, text_limit);
            self.captured_response = CapturedResponse::Parsed(Box::new(capture));
        }
        if needs_token_estimate {
            self.estimate_tokens(estimator, max_tokenized_bytes);
        }
        self.prepare_prompt(policy, redactor);
        if let CapturedResponse::Parsed(capture) = &mut self.captured_response {
            capture.shorten_text(policy.max_completion_bytes());
        }
    }

    /// Extracts the prompt from the request body, and redacts it.
    fn prepare_prompt(&mut self, policy: CapturePolicy, redactor: &Redactor) {
        let request = self.captured_request.take().filter(|_| policy.captures_prompt);
        if let Some(prompt) = request.and_then(|request| request.extract_prompt()) {
            self.extracted_prompt = Some(prompt);
        }
        if let Some(prompt) = &mut self.extracted_prompt {
            prompt.redact(policy, redactor);
        }
    }

    /// The prompt as the record shows it, and whether a part of it was left out. One that has to be redacted is
    /// prepared before.
    fn recorded_prompt(&self, policy: CapturePolicy, redactor: &Redactor) -> Option<(Cow<'_, str>, bool)> {
        if !policy.captures_prompt {
            return None;
        }
        if let Some(prompt) = &self.extracted_prompt {
            return Some((Cow::Borrowed(&prompt.text), prompt.is_truncated));
        }
        let request = self.captured_request.as_ref().filter(|_| redactor.is_empty())?;
        let limit = policy.max_text_bytes;
        let PromptBeginning { text, is_truncated } = match request.prompt_beginning(limit) {
            Some(beginning) => beginning,
            None => PromptBeginning { text: request.extract_prompt()?.text.into(), is_truncated: false },
        };
        // What replaces binary data may be longer than that.
        if text.len() <= limit {
            return Some((text, is_truncated));
        }
        let mut text = text.into_owned();
        truncate_text(&mut text, limit);
        Some((Cow::Owned(text), true))
    }

    /// A line for the access log, without query and prompt.
    fn access_log_line(&self, usage: Option<&TokenUsage>) -> String {
        let absent = "-";
        let or_absent = |value: Option<String>| value.unwrap_or_else(|| absent.to_owned());
        let path = self.target.as_ref().map(|target| target.path.as_str()).or(self.unparsed_path.as_deref());
        let backends: Vec<&str> = self.attempts.iter().map(|attempt| attempt.backend.as_str()).collect();
        format!(
            "{} {} {} {} {} {} by {} in {} ms, tokens {}/{}",
            self.request_id,
            or_absent(self.client_ip.map(|ip| ip.to_canonical().to_string())),
            self.client.as_ref().and_then(|client| client.name.as_ref()).map_or(absent, |name| name.as_str()),
            self.method.escape_debug(),
            path.unwrap_or(absent),
            or_absent(self.client_status.map(|status| status.to_string())),
            if backends.is_empty() { absent.to_owned() } else { backends.join(",") },
            to_millis(self.duration),
            or_absent(usage.and_then(|usage| usage.input).map(|count| count.to_string())),
            or_absent(usage.and_then(|usage| usage.output).map(|count| count.to_string())),
        )
    }
}

impl CapturedRequest {
    /// The length of the prompt in the body, as far as it is known.
    fn prompt_bytes(&self) -> usize {
        self.prompt_parts.iter().flatten().flatten().map(Range::len).sum()
    }

    /// The beginning of the prompt; `None` if it is known only when all of the body has been read.
    fn prompt_beginning(&self, limit: usize) -> Option<PromptBeginning<'_>> {
        prompt::prompt_beginning(&self.body, self.prompt_parts.as_ref()?, limit)
    }

    /// The text of the prompt.
    fn extract_prompt(&self) -> Option<ExtractedPrompt> {
        let text = match multipart::boundary_parameter(&self.content_type) {
            None => prompt::prompt_text(&self.body, self.prompt_parts.as_ref())?,
            Some(boundary) => {
                let form = multipart::FormFacts::parse(&self.body, &boundary).ok()?;
                prompt::form_text_as_json(&self.body, &form)?
            }
        };
        Some(ExtractedPrompt { text, is_truncated: false, is_redacted: false })
    }
}

impl ExtractedPrompt {
    /// Redacts the text first and then truncates it, unless that has been done.
    fn redact(&mut self, policy: CapturePolicy, redactor: &Redactor) {
        if std::mem::replace(&mut self.is_redacted, true) {
            return;
        }
        let text = std::mem::take(&mut self.text);
        let RecordedText { text, is_truncated } =
            redact_and_truncate(text, &[], self.is_truncated, policy, redactor);
        self.text = text;
        self.text.shrink_to_fit();
        self.is_truncated |= is_truncated;
    }
}

impl CapturedResponse {
    /// Text and usage: parsed from a buffered body, as they are from a stream.
    fn into_capture(self, operation: Operation, text_limit: usize) -> ResponseCapture {
        let mut capture = ResponseCapture::new(operation, text_limit);
        match self {
            Self::NotCaptured => {}
            Self::Binary { byte_count, sha256 } => {
                let digest: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
                capture.capture_text_body(&format!("{{\"bytes\":{byte_count},\"sha256\":\"{digest}\"}}"));
            }
            Self::Buffered { body, is_json, .. } => body.capture_into(is_json, &mut capture),
            Self::Parsed(capture) => return *capture,
        }
        capture
    }
}

/// A text as the record shows it: redacted first, then truncated. `is_cut` tells that it is only the beginning
/// of a text, and `cut_ends` where in it such a beginning ends.
fn redact_and_truncate(
    mut text: String,
    cut_ends: &[usize],
    is_cut: bool,
    policy: CapturePolicy,
    redactor: &Redactor,
) -> RecordedText {
    if redactor.is_empty() {
        let is_truncated = truncate_text(&mut text, policy.max_text_bytes);
        return RecordedText { text, is_truncated };
    }
    // Redaction can shorten the text, so more than the limit is kept for it. Redacting all of a very long text
    // would take too long.
    let max_redacted_bytes =
        policy.max_text_bytes.saturating_mul(2).saturating_add(2 * REDACTION_MARGIN_BYTES);
    let is_shortened = truncate_text(&mut text, max_redacted_bytes);
    // A cut may have split a match, which no pattern finds then: what is before it is hidden or removed.
    let hidden: Vec<_> = cut_ends
        .iter()
        .filter(|end| **end <= text.len())
        .map(|end| text.floor_char_boundary(end.saturating_sub(HIDDEN_BEFORE_CUT_BYTES))..*end)
        .collect();
    let mut text = redactor.redact(text, &hidden);
    if is_shortened || is_cut {
        text.truncate(text.floor_char_boundary(text.len().saturating_sub(REDACTION_MARGIN_BYTES)));
    }
    let is_truncated = truncate_text(&mut text, policy.max_text_bytes) || is_shortened;
    RecordedText { text, is_truncated }
}

/// Truncates a text to at most `limit` bytes, at a character boundary. Returns whether it was longer.
fn truncate_text(text: &mut String, limit: usize) -> bool {
    if text.len() <= limit {
        return false;
    }
    text.truncate(text.floor_char_boundary(limit));
    true
}

fn rfc3339_micros(time: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
