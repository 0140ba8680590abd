//! A finished exchange: everything that is known of a request once it is over.
//!
//! Plain data. Other files make the record, the metrics and the statistics from it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::affinity::AffinityRecord;
use super::client_headers::ClientHeaders;
use super::shown_end::ShownEnd;
use super::trace_context::{SpanId, TraceId};
use crate::admission::client::Client;
use crate::admission::limits::{LimitKey, Reservation};
use crate::admission::queue::QueueCharge;
use crate::azure::PromptPartRanges;
use crate::azure::request::prompt_sample::PromptSample;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::collected_body::CollectedBody;
use crate::azure::response::usage::TokenUsage;
use crate::azure::response::verdict::Verdict;
use crate::azure::usage_missing::UsageMissing;
use crate::azure::{Operation, RequestTarget};
use crate::config::RequestClass;
use crate::names::{BackendName, CacheKey, DeploymentName};
use crate::routing::spill::SpillReason;

/// How much of a prompt, and of a completion, is kept to estimate their tokens once the content is dropped.
const MAX_LIGHT_SAMPLE_BYTES: usize = 1024;
/// Extracting text from a body larger than this takes noticeable time.
pub(super) const SLOW_TO_PARSE_BODY_BYTES: usize = 128 * 1024;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeOutcome {
    /// The client received the whole response of a backend.
    Answered,
    /// The load balancer refused the request.
    Refused,
    /// No backend responded, or the response broke off.
    Failed,
    /// The client disconnected before the end of the response.
    ClientGone,
}

impl ExchangeOutcome {
    /// All outcomes.
    pub(super) const ALL: [Self; 4] = [Self::Answered, Self::Refused, Self::Failed, Self::ClientGone];

    /// The value of the record's field `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
        }
    }
}

/// One attempt at one backend, as the record lists it.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// The backend's name.
    pub backend: BackendName,
    /// The HTTP status of the response; `None` if there was none.
    pub status: Option<u16>,
    /// The code of the error that ended the attempt, such as `client_gone`.
    pub error_code: Option<&'static str>,
    /// From the arrival of the request to the choice of the backend.
    pub start: Duration,
    /// From the choice of the backend to the head of its response; `None` if none came.
    pub time_to_response_head: Option<Duration>,
    /// Milliseconds from the choice of the backend to the verdict on its response, or to the end of a response
    /// that was relayed.
    pub duration_ms: u64,
    /// `retry-after` of the backend, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// What the response means; `None` if there was none.
    pub verdict: Option<Verdict>,
    /// The id of its span, if the backend got it; `None` if it has none yet.
    pub span_id: Option<SpanId>,
}

impl AttemptRecord {
    /// The attempt's outcome as metrics and statistics name it.
    pub fn outcome_label(&self) -> &'static str {
        match (self.error_code, self.status) {
            (Some("client_gone"), _) => "client_gone",
            (Some(_), _) | (_, Some(408 | 500..)) => "failed",
            (_, Some(429)) => "throttled",
            (_, Some(400..)) => "refused",
            (_, Some(_)) => "answered",
            (None, None) => "other",
        }
    }
}

/// How a request was routed by its prompt, as the record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// The key of the prompt.
    pub key: CacheKey,
    /// Where the key is from: `prompt_cache_key`, `session` or `prefix`.
    pub by: &'static str,
    /// Why the last attempt did not go to the first backend of the key; `None` if it did.
    pub moved: Option<&'static str>,
}

/// The request body, kept for its prompt. Neither this type nor one that contains it implements `Debug`, so
/// that no prompt reaches the log.
pub struct CapturedRequest {
    /// The body as the client sent it.
    pub body: Bytes,
    /// Its content type.
    pub content_type: String,
    /// Where the prompt is in the body, if that was already found out.
    pub prompt_parts: Option<PromptPartRanges>,
}

/// What was captured of the response body.
#[derive(Default)]
pub enum CapturedResponse {
    /// Nothing: there are no tokens or text to read.
    #[default]
    NotCaptured,
    /// The body of a response that is not a stream, still to be parsed.
    Buffered {
        /// The part of the body that was collected.
        body: CollectedBody,
        /// Whether its content type is JSON.
        is_json: bool,
        /// Whether it seems to contain usage; see [`CollectedBody::has_usage`].
        has_usage: bool,
    },
    /// The length and hash of audio or an image.
    Binary {
        /// The length of the body.
        byte_count: u64,
        /// The SHA-256 hash of the body.
        sha256: [u8; 32],
    },
    /// Text and usage: of a stream, captured as it passed, or of a buffered body that has been parsed.
    Parsed(Box<ResponseCapture>),
}

/// A prompt or completion as the record shows it.
pub struct RecordedText {
    /// The text, within the limit of the policy.
    pub text: String,
    /// Whether text beyond the limit was left out.
    pub is_truncated: bool,
}

/// The text of the prompt.
pub struct ExtractedPrompt {
    /// The text: once redacted, within the limit for records, otherwise within that for buffered text.
    pub text: String,
    /// Whether text beyond the limit was left out.
    pub is_truncated: bool,
    /// Whether the text is as the record shows it.
    pub is_redacted: bool,
}

/// How much of an exchange is captured for its record.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapturePolicy {
    /// Whether the record contains the prompt.
    pub captures_prompt: bool,
    /// Whether the record contains the completion.
    pub captures_completion: bool,
    /// The most bytes of either text; longer text is truncated and marked so.
    pub max_text_bytes: usize,
    /// The most bytes of either text that are buffered: more than `max_text_bytes` if text is redacted before
    /// it is truncated.
    pub max_buffered_text_bytes: usize,
    /// Whether tokens are counted with a tokenizer if the backend reports no usage.
    pub estimates_tokens: bool,
}

impl CapturePolicy {
    /// The most bytes of a completion that are buffered for its record.
    pub(super) fn max_completion_bytes(self) -> usize {
        if self.captures_completion { self.max_buffered_text_bytes } else { 0 }
    }
}

/// In place of an HTTP method for what came over an open WebSocket.
pub const WEBSOCKET_METHOD: &str = "WEBSOCKET";

/// Everything known of a request once it is over.
pub struct FinishedExchange {
    /// When the request head was complete.
    pub received_at: SystemTime,
    /// The load balancer's own id for the request, a UUIDv7.
    pub request_id: Arc<str>,
    /// The id of the record of the WebSocket that it came over; `None` for an HTTP request, which may have opened one.
    pub socket_id: Option<Arc<str>>,
    /// What the request's header fields tell the record; without a `record` block at most its trace.
    pub client_headers: ClientHeaders,
    /// The id of the trace that begins with it; `None` if it continues one of its client, or if there are no traces.
    pub own_trace_id: Option<TraceId>,
    /// The client; `None` if the request was refused before the client was authenticated.
    pub client: Option<Arc<Client>>,
    /// How urgent it was; `None` if the client was not authenticated.
    pub class: Option<RequestClass>,
    /// The limit of the client that the request exceeded: it was refused, or would have been if limits were enforced.
    pub limited_by: Option<LimitKey>,
    /// The tokens that it reserved of its client's limits; `None` for a client without limits.
    pub reserved_tokens: Option<u64>,
    /// What it has reserved, until its tokens are known.
    pub reservation: Option<Box<Reservation>>,
    /// The client's address, from a trusted proxy's header or else from the connection.
    pub client_ip: Option<IpAddr>,
    /// The address at the other end of the connection.
    pub peer_ip: Option<IpAddr>,
    /// The HTTP method, or [`WEBSOCKET_METHOD`].
    pub method: String,
    /// The request target; `None` if it could not be parsed.
    pub target: Option<Arc<RequestTarget>>,
    /// The path as it was sent, escaped and truncated, if `target` is `None`.
    pub unparsed_path: Option<String>,
    /// The api-version sent upstream, or else the client's.
    pub api_version: Option<String>,
    /// The deployment that the client asked for.
    pub requested_deployment: Option<DeploymentName>,
    /// Whether that deployment is configured, or a backend has already answered for it.
    pub is_deployment_known: bool,
    /// The time that was spent in the load balancer itself.
    pub balancer_overhead: Duration,
    /// Whether the client asked for a stream; `None` if the request body was not read.
    pub is_stream_requested: Option<bool>,
    /// The HTTP status sent to the client; `None` if none was sent.
    pub client_status: Option<u16>,
    /// How the exchange ended.
    pub outcome: ExchangeOutcome,
    /// The code of the load balancer's own refusal.
    pub refusal_code: Option<&'static str>,
    /// The backend whose response the client received.
    pub answering_backend: Option<BackendName>,
    /// The name of the deployment at that backend.
    pub upstream_deployment: Option<DeploymentName>,
    /// Why a higher tier has not answered; `None` if it has, or there is none.
    pub spilled: Option<SpillReason>,
    /// Whether Azure has passed the request on from a provisioned deployment to one that is paid for by the token.
    pub was_spilled_by_azure: bool,
    /// The response header `x-ms-region`.
    pub region: Option<String>,
    /// The response header `apim-request-id`.
    pub apim_request_id: Option<String>,
    /// How it found the resource that has what it refers to; `None` if it refers to nothing and names a deployment.
    pub affinity: Option<Box<AffinityRecord>>,
    /// How it was routed by its prompt; `None` if it was not.
    pub cache: Option<CacheRecord>,
    /// All attempts, in order.
    pub attempts: Vec<AttemptRecord>,
    /// The time from the complete request head to the end of the exchange.
    pub duration: Duration,
    /// How long the request waited before attempts: for the end of a cooldown, for another round over backends
    /// that had failed, or for a credential.
    pub waited: Duration,
    /// How long it waited in the queue, which `waited` does not contain; zero if it did not.
    pub queued: Duration,
    /// What its client was charged for its turn in the queue, until its tokens are known.
    pub queue_charge: Option<QueueCharge>,
    /// The time from the complete request head to the first byte of the response body.
    pub time_to_first_body_byte: Option<Duration>,
    /// The length of the request body; `None` if it was not read to its end.
    pub request_bytes: Option<u64>,
    /// Bytes of the response body that were sent to the client.
    pub response_bytes: u64,
    /// The request body, if it was captured.
    pub captured_request: Option<CapturedRequest>,
    /// The prompt, once [`FinishedExchange::shorten_content`] or [`FinishedExchange::prepare_content`] has
    /// extracted it.
    pub extracted_prompt: Option<ExtractedPrompt>,
    /// Text of the prompt from which its tokens are estimated, or why they cannot be; set by
    /// [`FinishedExchange::shorten_content`] if the request body is not kept for that.
    pub prompt_sample: Option<Result<PromptSample, UsageMissing>>,
    /// Why its tokens could not be estimated.
    pub usage_missing: Option<UsageMissing>,
    /// Whether it is the first one that shows the end of an object, if that was found out ahead of the record.
    pub shown_end: Option<ShownEnd>,
    /// The response body.
    pub captured_response: CapturedResponse,
    /// Whether prompt and completion were dropped because records could not be written fast enough.
    pub is_content_dropped: bool,
}

impl FinishedExchange {
    /// An exchange that was answered with 200, and of which nothing else is known.
    pub fn answered(request_id: Arc<str>, received_at: SystemTime, method: &str) -> Self {
        Self {
            received_at,
            request_id,
            socket_id: None,
            client_headers: ClientHeaders::default(),
            own_trace_id: None,
            client: None,
            class: None,
            limited_by: None,
            reserved_tokens: None,
            reservation: None,
            client_ip: None,
            peer_ip: None,
            method: method.to_owned(),
            target: None,
            unparsed_path: None,
            api_version: None,
            requested_deployment: None,
            is_deployment_known: false,
            balancer_overhead: Duration::ZERO,
            is_stream_requested: None,
            client_status: Some(200),
            outcome: ExchangeOutcome::Answered,
            refusal_code: None,
            answering_backend: None,
            upstream_deployment: None,
            spilled: None,
            was_spilled_by_azure: false,
            region: None,
            apim_request_id: None,
            affinity: None,
            cache: None,
            attempts: Vec::new(),
            duration: Duration::ZERO,
            queued: Duration::ZERO,
            queue_charge: None,
            waited: Duration::ZERO,
            time_to_first_body_byte: None,
            request_bytes: None,
            response_bytes: 0,
            captured_request: None,
            extracted_prompt: None,
            prompt_sample: None,
            usage_missing: None,
            shown_end: None,
            captured_response: CapturedResponse::NotCaptured,
            is_content_dropped: false,
        }
    }

    /// The id of its trace; `None` if it belongs to none.
    pub(super) fn trace_id(&self) -> Option<TraceId> {
        self.client_headers.trace_context.map(|parent| parent.trace_id).or(self.own_trace_id)
    }

    /// When the exchange ended.
    pub(super) fn ended_at(&self) -> SystemTime {
        self.received_at + self.duration
    }

    /// Whether the client got no complete response, or a status of 500 or above.
    pub(super) fn has_failed(&self) -> bool {
        self.outcome == ExchangeOutcome::Failed || self.client_status.is_some_and(|status| status >= 500)
    }

    /// Discards prompt and response, once nothing else is made of them.
    pub(super) fn discard_content(&mut self) {
        self.captured_request = None;
        self.extracted_prompt = None;
        self.prompt_sample = None;
        self.captured_response = CapturedResponse::NotCaptured;
    }

    /// The memory that it holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
        size_of::<Self>()
            + self.method.capacity()
            + self.client_headers.memory_bytes()
            + self.target.as_ref().map_or(0, |target| target.path.len())
            + optional(&self.unparsed_path)
            + optional(&self.api_version)
            + optional(&self.region)
            + optional(&self.apim_request_id)
            + self
                .affinity
                .as_ref()
                .map_or(0, |affinity| size_of::<AffinityRecord>() + affinity.memory_bytes())
            + self.attempts.capacity() * size_of::<AttemptRecord>()
            + self.content_bytes()
    }

    /// The part of [`FinishedExchange::memory_bytes`] that prompt and response take.
    pub fn content_bytes(&self) -> usize {
        let request = self.captured_request.as_ref().map_or(0, |request| request.body.len());
        let prompt = self.extracted_prompt.as_ref().map_or(0, |prompt| prompt.text.capacity());
        let sample = self.prompt_sample.as_ref().and_then(|sample| sample.as_ref().ok());
        let sample = sample.map_or(0, PromptSample::memory_bytes);
        let response = match &self.captured_response {
            CapturedResponse::NotCaptured | CapturedResponse::Binary { .. } => 0,
            CapturedResponse::Buffered { body, .. } => body.memory_bytes(),
            CapturedResponse::Parsed(capture) => size_of::<ResponseCapture>() + capture.memory_bytes(),
        };
        request + prompt + sample + response
    }

    /// The operation; [`Operation::Other`] if the target could not be parsed.
    pub(super) fn operation(&self) -> Operation {
        self.target.as_ref().map_or(Operation::Other, |target| target.operation)
    }

    /// Whether it is a WebSocket that was opened. What came over it has exchanges of its own.
    pub(super) fn is_opened_websocket(&self) -> bool {
        self.client_status == Some(101) && self.socket_id.is_none()
    }

    /// The tokens of the response, as far as they are known before its body is parsed, and whether they are estimated.
    pub(super) fn known_usage(&self) -> Option<(TokenUsage, bool)> {
        match &self.captured_response {
            _ if self.fetches_stored_object() => None,
            CapturedResponse::Parsed(capture) => Some((capture.usage?, capture.is_usage_estimated)),
            _ => None,
        }
    }

    /// Drops prompt and completion to save memory. The record is marked as truncated. Token counts are kept,
    /// except those of a large buffered body, and as much text as their estimate needs.
    pub fn drop_content(&mut self, policy: CapturePolicy) {
        let needs_estimate = self.needs_token_estimate(policy);
        let has_short_body = self
            .captured_request
            .as_ref()
            .is_some_and(|request| request.body.len() <= SLOW_TO_PARSE_BODY_BYTES);
        match &mut self.prompt_sample {
            Some(Ok(sample)) => sample.shorten(MAX_LIGHT_SAMPLE_BYTES),
            None if needs_estimate && has_short_body => self.sample_prompt_at_once(MAX_LIGHT_SAMPLE_BYTES),
            _ => {}
        }
        self.captured_request = None;
        self.extracted_prompt = None;
        match &mut self.captured_response {
            CapturedResponse::Parsed(capture) if needs_estimate => {
                capture.shorten_text(MAX_LIGHT_SAMPLE_BYTES);
            }
            CapturedResponse::Parsed(capture) => capture.discard_text(),
            // The token counts are still to be read from this body.
            CapturedResponse::Buffered { body, .. } if body.kept_byte_count() <= SLOW_TO_PARSE_BODY_BYTES => {
                body.reduce_to_outline();
            }
            response => *response = CapturedResponse::NotCaptured,
        }
        self.is_content_dropped = true;
    }
}
