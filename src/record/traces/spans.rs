//! The spans of a finished request: one of kind server for the request, and one of kind client for each attempt.
//!
//! Names and attributes are those of OpenTelemetry's conventions for HTTP, version 1.44.0, and for generative AI, which
//! have no release yet: those of commit ac48b1f of <https://github.com/open-telemetry/semantic-conventions-genai>. What
//! they have no name for is below `aoai_lb`. `docs/traces.md` lists all.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::otlp::{
    AnyValue, ArrayValue, Attributes, FLAG_HAS_IS_REMOTE, FLAG_IS_REMOTE, KIND_CLIENT, KIND_SERVER,
    STATUS_ERROR, Span, Status, Value,
};
use crate::azure::Operation;
use crate::azure::request::route::route_of;
use crate::azure::response::usage::TokenUsage;
use crate::config::{Config, Endpoint, RequestClass};
use crate::names::{BackendName, DeploymentName, Tier};
use crate::record::exchange::{AttemptRecord, FinishedExchange, WEBSOCKET_METHOD};
use crate::record::line::to_millis;
use crate::record::trace_context::{SpanId, TraceId};

/// The conventions that most attributes are from.
pub(super) const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
const PROVIDER: &str = "azure.ai.openai";
/// A longer path is cut.
const MAX_PATH_BYTES: usize = 1024;
/// The methods that HTTP's conventions have a name for; others are `_OTHER`, since clients can invent them.
const KNOWN_METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A request that is exported.
pub(super) struct TracedRequest {
    pub(super) exchange: Box<FinishedExchange>,
    pub(super) trace_id: TraceId,
    pub(super) answer: AnswerFacts,
}

/// What is known of the response that the client got, once it was parsed.
#[derive(Default)]
pub(in crate::record) struct AnswerFacts {
    /// The model that the response names.
    pub(in crate::record) model: Option<String>,
    /// The service tier that it names.
    pub(in crate::record) service_tier: Option<String>,
    /// Why the response ended.
    pub(in crate::record) finish_reason: Option<String>,
    /// Its tokens.
    pub(in crate::record) usage: TokenUsage,
    /// `reported`, `estimated` or `none`.
    pub(in crate::record) usage_source: &'static str,
}

/// Where backends are, by name.
#[derive(Debug, Default)]
pub(super) struct BackendPlaces(HashMap<BackendName, (Tier, Endpoint)>);

impl BackendPlaces {
    /// The backends of these configurations; the last one that has a name counts.
    pub(super) fn of(configs: &[&Config]) -> Self {
        let backends = configs.iter().flat_map(|config| &config.backends);
        let places = backends.map(|backend| (backend.name.clone(), (backend.tier, backend.endpoint.clone())));
        Self(places.collect())
    }
}

impl TracedRequest {
    /// How many spans it has.
    pub(super) fn span_count(&self) -> usize {
        1 + self.exchange.attempts.len()
    }

    /// The memory that it holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.exchange.memory_bytes()
    }

    /// Its spans, that of the request first.
    pub(super) fn to_spans(&self, places: &BackendPlaces) -> Vec<Span> {
        let server = self.server_span();
        let attempts = self.exchange.attempts.iter().enumerate();
        let attempts: Vec<Span> =
            attempts.map(|(index, attempt)| self.attempt_span(index, attempt, &server, places)).collect();
        std::iter::once(server).chain(attempts).collect()
    }

    fn server_span(&self) -> Span {
        let exchange = &self.exchange;
        let parent = exchange.client_headers.trace_context;
        let is_turn = exchange.method == WEBSOCKET_METHOD;
        let is_known = KNOWN_METHODS.contains(&exchange.method.as_str());
        let route = exchange.target.as_deref().and_then(route_of);
        let method = if is_known || is_turn { exchange.method.as_str() } else { "HTTP" };
        let name = match &route {
            Some(route) => format!("{method} {route}"),
            None => method.to_owned(),
        };
        let mut attributes = Attributes::default();
        if is_turn {
            attributes.add("network.protocol.name", "websocket");
        } else {
            attributes.add("http.request.method", if is_known { method } else { "_OTHER" });
        }
        attributes.add_known("http.route", route);
        let path = exchange.target.as_ref().map(|target| target.path.as_str());
        let path = path.or(exchange.unparsed_path.as_deref());
        attributes.add_known(
            "url.path",
            path.and_then(|path| path.get(..path.floor_char_boundary(MAX_PATH_BYTES))),
        );
        attributes.add_known("http.response.status_code", exchange.client_status);
        attributes.add_known("client.address", exchange.client_ip.map(|ip| ip.to_canonical().to_string()));
        attributes
            .add_known("network.peer.address", exchange.peer_ip.map(|ip| ip.to_canonical().to_string()));
        attributes.add_known("user_agent.original", exchange.client_headers.user_agent.as_deref());
        attributes.add("aoai_lb.request_id", &*exchange.request_id);
        let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        attributes.add_known("aoai_lb.client", client.map(|name| name.as_str()));
        attributes.add_known("aoai_lb.class", exchange.class.map(RequestClass::as_str));
        attributes.add("aoai_lb.outcome", exchange.outcome.as_str());
        attributes.add_known("aoai_lb.refusal", exchange.refusal_code);
        attributes.add_known("aoai_lb.waited_ms", known_millis(exchange.waited));
        attributes.add_known("aoai_lb.queued_ms", known_millis(exchange.queued));
        if exchange.has_failed() {
            attributes.add("error.type", self.failure());
        }
        Span {
            trace_id: self.trace_id.to_bytes().into(),
            span_id: SpanId::of_request(&exchange.request_id).to_bytes().into(),
            parent_span_id: parent.map(|parent| parent.span_id.to_bytes().into()).unwrap_or_default(),
            name,
            kind: KIND_SERVER,
            start_time_unix_nano: unix_nanos(exchange.received_at),
            end_time_unix_nano: unix_nanos(exchange.received_at + exchange.duration),
            attributes: attributes.0,
            status: exchange.has_failed().then_some(Status { code: STATUS_ERROR }),
            flags: self.flags(parent.is_some()),
        }
    }

    fn attempt_span(
        &self,
        index: usize,
        attempt: &AttemptRecord,
        server: &Span,
        places: &BackendPlaces,
    ) -> Span {
        let exchange = &self.exchange;
        let operation = operation_name(exchange);
        let deployment = exchange.requested_deployment.as_ref().map(DeploymentName::as_str);
        let name = match deployment {
            Some(deployment) => format!("{operation} {deployment}"),
            None => operation.to_owned(),
        };
        let place = places.0.get(&attempt.backend);
        let mut attributes = Attributes::default();
        attributes.add("gen_ai.operation.name", operation);
        attributes.add("gen_ai.provider.name", PROVIDER);
        attributes.add_known("gen_ai.request.model", deployment);
        attributes
            .add_known("gen_ai.request.stream", exchange.is_stream_requested.filter(|is_stream| *is_stream));
        attributes.add_known("openai.api.type", api_type(exchange.operation()));
        attributes.add_known("server.address", place.map(|(_, endpoint)| endpoint.host.as_str()));
        attributes.add_known("server.port", place.map(|(_, endpoint)| endpoint.port));
        attributes.add_known("http.response.status_code", attempt.status);
        attributes.add_known("http.request.resend_count", (index > 0).then_some(index as u64));
        attributes.add("aoai_lb.backend", attempt.backend.as_str());
        attributes.add_known("aoai_lb.tier", place.map(|(tier, _)| tier.get()));
        attributes.add("aoai_lb.attempt", index as u64 + 1);
        attributes.add("aoai_lb.outcome", attempt.outcome_label());
        attributes.add_known("aoai_lb.verdict", attempt.verdict.map(|verdict| verdict.as_str()));
        attributes.add_known("aoai_lb.retry_after_ms", attempt.retry_after_ms);
        attributes.add_known("aoai_lb.response_head_ms", attempt.time_to_response_head.map(to_millis));
        if self.is_answering(index) {
            self.add_answer(attempt, &mut attributes);
        }
        let error = attempt_error(attempt);
        let is_error = error.is_some();
        attributes.add_known("error.type", error);
        let start = exchange.received_at + attempt.start;
        // In whole milliseconds, so the sum may be beyond the end of the request.
        let end = unix_nanos(start + Duration::from_millis(attempt.duration_ms));
        Span {
            trace_id: server.trace_id.clone(),
            span_id: attempt.span_id.unwrap_or_else(SpanId::random).to_bytes().into(),
            parent_span_id: server.span_id.clone(),
            name,
            kind: KIND_CLIENT,
            start_time_unix_nano: unix_nanos(start),
            end_time_unix_nano: end.min(server.end_time_unix_nano.max(unix_nanos(start))),
            attributes: attributes.0,
            status: is_error.then_some(Status { code: STATUS_ERROR }),
            flags: self.flags(false),
        }
    }

    /// Whether the client got the response of this attempt, and it is no error.
    fn is_answering(&self, index: usize) -> bool {
        let exchange = &self.exchange;
        let is_last = index + 1 == exchange.attempts.len();
        let is_success = |attempt: &AttemptRecord| attempt.status.is_some_and(|status| status < 400);
        is_last && exchange.answering_backend.is_some() && exchange.attempts.last().is_some_and(is_success)
    }

    /// Adds what is known of the response of an attempt.
    fn add_answer(&self, attempt: &AttemptRecord, attributes: &mut Attributes) {
        let (exchange, answer) = (&self.exchange, &self.answer);
        let upstream = exchange.upstream_deployment.as_ref().map(DeploymentName::as_str);
        attributes.add_known("aoai_lb.upstream_deployment", upstream);
        attributes.add_known("aoai_lb.region", exchange.region.as_deref());
        attributes.add_known("aoai_lb.apim_request_id", exchange.apim_request_id.as_deref());
        attributes.add_known("gen_ai.response.model", answer.model.as_deref());
        attributes.add_known("openai.response.service_tier", answer.service_tier.as_deref());
        if let Some(reason) = answer.finish_reason.as_deref() {
            let values = vec![AnyValue::from(Value::from(reason))];
            attributes.add("gen_ai.response.finish_reasons", Value::Array(ArrayValue { values }));
        }
        if exchange.is_stream_requested == Some(true)
            && let Some(first) = exchange.time_to_first_body_byte
        {
            let since_attempt = first.saturating_sub(attempt.start);
            attributes.add("gen_ai.response.time_to_first_chunk", since_attempt.as_secs_f64());
        }
        // Those of an object that is only fetched belong to the request that has made it.
        if exchange.fetches_stored_object() || answer.usage == TokenUsage::default() {
            return;
        }
        let usage = answer.usage;
        let TokenUsage { input, output, cached, cache_write, reasoning, .. } = usage;
        let TokenUsage { input_audio, output_audio, cached_audio, .. } = usage;
        attributes.add_known("gen_ai.usage.input_tokens", input);
        attributes.add_known("gen_ai.usage.output_tokens", output);
        attributes.add_known("gen_ai.usage.cache_read.input_tokens", cached);
        attributes.add_known("gen_ai.usage.cache_write.input_tokens", cache_write);
        attributes.add_known("gen_ai.usage.reasoning.output_tokens", reasoning);
        attributes.add_known("gen_ai.usage.audio.input_tokens", input_audio);
        attributes.add_known("gen_ai.usage.audio.output_tokens", output_audio);
        attributes.add_known("gen_ai.usage.audio.cache_read.input_tokens", cached_audio);
        attributes.add("aoai_lb.usage_source", answer.usage_source);
    }

    /// Why the request has failed, in a word of the record.
    fn failure(&self) -> String {
        let exchange = &self.exchange;
        let error_status = exchange.client_status.filter(|status| *status >= 500);
        let last_error = exchange.attempts.last().and_then(attempt_error);
        let refusal = exchange.refusal_code.map(str::to_owned);
        refusal
            .or_else(|| error_status.map(|status| status.to_string()))
            .or(last_error)
            .unwrap_or_else(|| "_OTHER".to_owned())
    }

    /// The flags of a span. All that are exported count as sampled: a parent that was not is none of them.
    fn flags(&self, is_parent_remote: bool) -> u32 {
        let flags = self.exchange.client_headers.trace_context.map_or(1, |parent| u32::from(parent.flags()));
        flags | FLAG_HAS_IS_REMOTE | if is_parent_remote { FLAG_IS_REMOTE } else { 0 }
    }
}

/// Why an attempt has failed: the error of the record, or the status; `None` if it has not, or if its client has gone.
fn attempt_error(attempt: &AttemptRecord) -> Option<String> {
    match (attempt.error_code, attempt.status) {
        (Some("client_gone"), _) => None,
        (Some(code), _) => Some(code.to_owned()),
        (None, Some(status @ 400..)) => Some(status.to_string()),
        (None, _) => None,
    }
}

/// The value of `gen_ai.operation.name`: one of the conventions, or else the `operation` of the record.
fn operation_name(exchange: &FinishedExchange) -> &'static str {
    match exchange.operation() {
        Operation::Responses if exchange.method == "GET" => "fetch_response",
        Operation::Responses if exchange.fetches_stored_object() => "responses",
        Operation::Chat | Operation::Responses => "chat",
        Operation::Completions => "text_completion",
        operation => operation.name(),
    }
}

fn api_type(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::Chat => Some("chat_completions"),
        Operation::Responses => Some("responses"),
        _ => None,
    }
}

fn known_millis(duration: Duration) -> Option<u64> {
    Some(to_millis(duration)).filter(|millis| *millis > 0)
}

fn unix_nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
