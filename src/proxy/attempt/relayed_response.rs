//! A response that is relayed to the client while its usage and text are captured for the record.
//!
//! Its bytes stay unchanged, except that the usage event of a stream is removed if only the balancer asked
//! for it, and the backend's credential if an error response quotes it.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use openssl::sha::Sha256;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::redaction::redact_task;
use crate::azure::Operation;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::collected_body::CollectedBody;
use crate::azure::response::sse::{EventScanner, SseEvent, UsageEventRemover};
use crate::credentials::CredentialRedactor;
use crate::gateway::ObjectLearner;
use crate::names::DeploymentName;
use crate::record::exchange::{CapturePolicy, CapturedResponse};

/// Largest body that is captured completely. Of a larger one, such as a few thousand embeddings, the model and
/// usage are.
const MAX_CAPTURED_BODY_BYTES: usize = 1024 * 1024;
/// The same for a response with images, whose sizes and digests are recorded.
const MAX_CAPTURED_IMAGES_BYTES: usize = 16 * 1024 * 1024;
/// Largest event that is captured completely, likewise; `response.created` repeats the whole request.
const MAX_PARSED_EVENT_BYTES: usize = 1024 * 1024;
/// Maximum text of a stream that is kept in order to estimate its tokens, should the usage be missing.
const MAX_TEXT_FOR_ESTIMATE_BYTES: usize = 64 * 1024;
/// Largest event that is held to see whether it is the usage event, which has a few hundred bytes.
const MAX_USAGE_EVENT_BYTES: usize = 64 * 1024;

static APIM_REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("apim-request-id");
static X_MS_DEPLOYMENT_NAME: HeaderName = HeaderName::from_static("x-ms-deployment-name");
static X_MS_REGION: HeaderName = HeaderName::from_static("x-ms-region");
static X_MS_SPILLOVER_FROM_DEPLOYMENT: HeaderName = HeaderName::from_static("x-ms-spillover-from-deployment");

/// A response that is being relayed to the client.
pub(in crate::proxy) struct RelayedResponse {
    capture: Capture,
    /// Learns which objects the resource has; `None` if the response tells of none.
    learner: Option<Box<ObjectLearner>>,
    /// Removes the attempt's credential; `None` unless the response may quote it.
    credential_redactor: Option<Box<CredentialRedactor>>,
    /// Removes the usage event; `None` if the stream stays unchanged.
    usage_event_remover: Option<UsageEventRemover>,
    details: ResponseDetails,
    /// Its end has been relayed.
    has_ended: bool,
    /// The client has already got all of its response; what the backend still sends is dropped.
    drops_rest: bool,
    /// Streams of this operation end with a terminal event.
    expects_terminal_event: bool,
}

/// What is captured of a response for the record.
enum Capture {
    Nothing,
    /// The digest and length of audio, images or other binary data.
    Binary {
        sha256: Box<Sha256>,
        byte_count: u64,
    },
    /// JSON or text.
    Body {
        body: CollectedBody,
        is_json: bool,
    },
    /// Server-sent events.
    Stream {
        scanner: EventScanner,
        response: Box<ResponseCapture>,
    },
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ResponseEnd {
    /// With its terminal event.
    TerminalEvent,
    /// At the end of its body, for a response without terminal event.
    EndOfBody,
    /// Incomplete, without its terminal event, or with an error event.
    Broken,
}

/// What the record needs from a response.
#[derive(Default)]
pub(in crate::proxy) struct ResponseDetails {
    pub(in crate::proxy) region: Option<String>,
    pub(in crate::proxy) apim_request_id: Option<String>,
    /// The deployment that answered, if Azure spilled the request over from a full provisioned deployment.
    pub(in crate::proxy) spilled_to: Option<DeploymentName>,
    pub(in crate::proxy) captured_response: CapturedResponse,
}

impl RelayedResponse {
    /// A response with this head. `operation` is `None` for a request that was not admitted.
    /// `removes_usage` says that only the balancer asked for the usage event, and `credential_redactor` is
    /// set if the response may quote the attempt's credential.
    pub(super) fn new(
        header: &ResponseHeader,
        operation: Option<Operation>,
        policy: CapturePolicy,
        removes_usage: bool,
        credential_redactor: Option<Box<CredentialRedactor>>,
        learner: Option<Box<ObjectLearner>>,
    ) -> Self {
        let removes_usage = removes_usage && is_event_stream(header);
        Self {
            capture: operation
                .map_or(Capture::Nothing, |operation| Capture::for_response(header, operation, policy)),
            learner,
            credential_redactor,
            usage_event_remover: removes_usage.then(|| UsageEventRemover::new(MAX_USAGE_EVENT_BYTES)),
            details: ResponseDetails::from_headers(&header.headers),
            // A tunnel has no end of its own: however it is closed, it is not incomplete.
            has_ended: header.status == http::StatusCode::SWITCHING_PROTOCOLS,
            drops_rest: false,
            expects_terminal_event: matches!(
                operation,
                Some(Operation::Chat | Operation::Completions | Operation::Responses)
            ),
        }
    }

    /// For a response that goes to the client as a whole, so that nothing is left to be relayed. Nothing is
    /// captured of it.
    pub(super) fn for_held_response(header: &ResponseHeader) -> Self {
        Self {
            capture: Capture::Nothing,
            learner: None,
            credential_redactor: None,
            usage_event_remover: None,
            details: ResponseDetails::from_headers(&header.headers),
            has_ended: true,
            drops_rest: true,
            expects_terminal_event: false,
        }
    }

    /// Whether the usage event is removed, which changes the length of the body.
    pub(super) fn removes_usage_event(&self) -> bool {
        self.usage_event_remover.is_some()
    }

    /// Whether nothing that the record needs is still to come: it has ended, or its terminal event has been
    /// relayed, at which SDKs disconnect.
    pub(in crate::proxy) fn is_complete_for_record(&self) -> bool {
        self.has_ended
            || matches!(&self.capture, Capture::Stream { response, .. } if response.is_response_complete)
    }

    /// Whether further parts of it go to the client.
    pub(super) fn is_relaying(&self) -> bool {
        !self.drops_rest
    }

    /// Records that its head is all of it.
    pub(super) fn note_ended_with_head(&mut self) {
        self.has_ended = true;
    }

    /// Captures a part of the response and appends to `output` what goes to the client.
    pub(super) fn relay_task(&mut self, task: HttpTask, output: &mut Vec<HttpTask>, now: Instant) {
        if self.drops_rest {
            return;
        }
        let Some(redactor) = &mut self.credential_redactor else {
            return self.relay_redacted_task(task, output, now);
        };
        let mut redacted = Vec::new();
        redact_task(redactor, task, &mut redacted);
        for task in redacted {
            self.relay_redacted_task(task, output, now);
        }
    }

    fn relay_redacted_task(&mut self, task: HttpTask, output: &mut Vec<HttpTask>, now: Instant) {
        // Pingora counts a failure as an end as well.
        let is_end = task.is_end() && !matches!(task, HttpTask::Failed(_));
        if let HttpTask::Body(Some(data), _) = &task {
            // Before the client has it, and may refer to what it tells of.
            self.capture.feed(data, self.learner.as_deref_mut(), now);
        }
        if let HttpTask::UpgradedBody(Some(message), _) = &task {
            self.capture.feed_message(message, self.learner.as_deref_mut(), now);
        }
        self.has_ended |= is_end;
        match (&mut self.usage_event_remover, task) {
            (Some(filter), HttpTask::Body(data, _)) => {
                let mut send = |piece| output.push(HttpTask::Body(Some(piece), false));
                if let Some(data) = &data {
                    filter.feed(data, &mut send);
                }
                if is_end {
                    filter.finish(&mut send);
                    output.push(HttpTask::Body(None, true));
                }
            }
            (Some(filter), task @ (HttpTask::Trailer(_) | HttpTask::Done)) => {
                filter.finish(&mut |piece| output.push(HttpTask::Body(Some(piece), false)));
                output.push(task);
            }
            (_, task) => output.push(task),
        }
    }

    /// What the record needs, as far as the head tells it.
    pub(in crate::proxy) fn details(&self) -> &ResponseDetails {
        &self.details
    }

    /// Takes what the record needs, and says how the response ended. Nothing is captured any more.
    pub(in crate::proxy) fn take_details_and_end(&mut self, now: Instant) -> (ResponseDetails, ResponseEnd) {
        let mut details = std::mem::take(&mut self.details);
        let mut end = if self.has_ended { ResponseEnd::EndOfBody } else { ResponseEnd::Broken };
        details.captured_response = match std::mem::replace(&mut self.capture, Capture::Nothing) {
            Capture::Nothing => details.captured_response,
            Capture::Binary { sha256, byte_count } => {
                CapturedResponse::Binary { byte_count, sha256: sha256.finish() }
            }
            Capture::Body { body, is_json } => {
                let has_usage = is_json && body.has_usage();
                CapturedResponse::Buffered { body, is_json, has_usage }
            }
            Capture::Stream { mut scanner, response: mut answer } => {
                let mut learner = self.learner.take();
                scanner
                    .finish(&mut |event| capture_and_learn(&event, &mut answer, learner.as_deref_mut(), now));
                if answer.is_response_complete && answer.error_code.is_none() {
                    end = ResponseEnd::TerminalEvent;
                } else if self.expects_terminal_event || answer.is_response_complete {
                    end = ResponseEnd::Broken;
                }
                CapturedResponse::Parsed(answer)
            }
        };
        (details, end)
    }
}

impl ResponseDetails {
    fn from_headers(headers: &HeaderMap) -> Self {
        let text =
            |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Azure OpenAI, "Manage traffic with spillover": such a response has both fields. Others may have
        // `x-ms-deployment-name` alone.
        let is_spilled = headers.contains_key(&X_MS_SPILLOVER_FROM_DEPLOYMENT);
        let served_by = if is_spilled { text(&X_MS_DEPLOYMENT_NAME) } else { None };
        Self {
            spilled_to: served_by.and_then(|name| DeploymentName::parse(&name).ok()),
            region: text(&X_MS_REGION),
            apim_request_id: text(&APIM_REQUEST_ID_HEADER),
            captured_response: CapturedResponse::NotCaptured,
        }
    }
}

impl Capture {
    fn for_response(header: &ResponseHeader, operation: Operation, policy: CapturePolicy) -> Self {
        // The tokens of a stream that tells none are counted in its text, whether or not text is recorded.
        let max_text = if policy.estimates_tokens {
            policy.max_buffered_text_bytes.max(MAX_TEXT_FOR_ESTIMATE_BYTES)
        } else {
            0
        };
        let is_encoded =
            header.headers.get(http::header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        match () {
            () if is_encoded || !header.status.is_success() => Self::Nothing,
            () if is_event_stream(header) => Self::Stream {
                scanner: EventScanner::new(MAX_PARSED_EVENT_BYTES),
                response: Box::new(ResponseCapture::new(operation, max_text)),
            },
            () if has_content_type(header, &[b"application/json"]) => {
                let has_images = operation == Operation::Images && policy.captures_completion;
                let max_bytes = if has_images { MAX_CAPTURED_IMAGES_BYTES } else { MAX_CAPTURED_BODY_BYTES };
                Self::Body { body: CollectedBody::new(max_bytes), is_json: true }
            }
            () if policy.captures_completion && is_binary(header) => {
                Self::Binary { sha256: Box::new(Sha256::new()), byte_count: 0 }
            }
            () if has_content_type(header, &[b"text/"]) => {
                Self::Body { body: CollectedBody::new(MAX_CAPTURED_BODY_BYTES), is_json: false }
            }
            () => Self::Nothing,
        }
    }

    /// Takes a message of a WebSocket, which is an event.
    fn feed_message(&mut self, message: &Bytes, learner: Option<&mut ObjectLearner>, now: Instant) {
        if let Self::Stream { response, .. } = self {
            capture_and_learn(&SseEvent::from_message(message), response, learner, now);
        }
    }

    fn feed(&mut self, data: &Bytes, mut learner: Option<&mut ObjectLearner>, now: Instant) {
        match self {
            Self::Nothing => {}
            Self::Binary { sha256, byte_count } => {
                sha256.update(data);
                *byte_count += data.len() as u64;
            }
            Self::Body { body, is_json } => {
                if let Some(learner) = learner.filter(|_| *is_json) {
                    learner.on_body_bytes(data, now);
                }
                body.append(data);
            }
            Self::Stream { scanner, response: answer } => {
                scanner.feed(data, &mut |event| {
                    capture_and_learn(&event, answer, learner.as_deref_mut(), now);
                });
            }
        }
    }
}

fn capture_and_learn(
    event: &SseEvent<'_>,
    capture: &mut ResponseCapture,
    learner: Option<&mut ObjectLearner>,
    now: Instant,
) {
    if let Some(learner) = learner {
        learner.on_event(event, now);
    }
    capture.capture_event(event);
}

/// Whether a response is a stream of server-sent events.
pub(super) fn is_event_stream(header: &ResponseHeader) -> bool {
    has_content_type(header, &[b"text/event-stream"])
}

fn is_binary(header: &ResponseHeader) -> bool {
    has_content_type(header, &[b"audio/", b"image/", b"video/", b"application/octet-stream"])
}

fn has_content_type(header: &ResponseHeader, prefixes: &[&[u8]]) -> bool {
    let value = header.headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    prefixes.iter().any(|prefix| value.starts_with(prefix))
}
