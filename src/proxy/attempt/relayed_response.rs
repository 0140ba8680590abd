//! A response that is passed on to the client while tokens and text are read from it.
//!
//! Bytes pass unchanged, except for the usage event of a stream that only the balancer asked for.

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use openssl::sha::Sha256;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use crate::azure::Operation;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::collected_body::CollectedBody;
use crate::azure::response::sse::{EventScanner, UsageEventFilter};
use crate::names::DeploymentName;
use crate::record::exchange::{CapturePolicy, CapturedResponse};

/// Most bytes of a response that are kept whole; of a longer one, such as a few thousand
/// embeddings, the end is kept, which has the usage.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The same for a response with pictures, whose size and digest are recorded.
const MAX_PICTURES_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes of an event that is parsed; `response.created` repeats the whole request.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Most bytes of a stream's text that are kept until its usage is known.
const MAX_ESTIMATED_TEXT_BYTES: usize = 1024 * 1024;
/// Most bytes of an event that is held back to see whether it is the usage event, which has a few
/// hundred.
const MAX_USAGE_EVENT_BYTES: usize = 64 * 1024;

static APIM_REQUEST_ID: HeaderName = HeaderName::from_static("apim-request-id");
static X_MS_DEPLOYMENT_NAME: HeaderName = HeaderName::from_static("x-ms-deployment-name");
static X_MS_REGION: HeaderName = HeaderName::from_static("x-ms-region");
static X_MS_SPILLOVER_FROM_DEPLOYMENT: HeaderName = HeaderName::from_static("x-ms-spillover-from-deployment");

/// A response on its way to the client.
pub(in crate::proxy) struct RelayedResponse {
    capture: Capture,
    usage_filter: Option<UsageEventFilter>,
    details: ResponseDetails,
    has_ended: bool,
    /// The client gets another response, which is complete; what still comes of this one is dropped.
    is_discarded: bool,
    /// Whether streams of this operation end with a terminal event.
    expects_terminal_event: bool,
}

/// How a response is read for the record.
enum Capture {
    /// Not at all.
    Nothing,
    /// Sound or pictures.
    Binary {
        sha256: Box<Sha256>,
        bytes: u64,
    },
    Body {
        body: CollectedBody,
        is_json: bool,
    },
    Stream {
        scanner: EventScanner,
        answer: Box<ResponseCapture>,
    },
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ResponseEnd {
    /// By its terminal event.
    TerminalEvent,
    /// By its framing.
    Framing,
    /// It broke off, ended without its terminal event, or in an error.
    Broken,
}

/// What the record needs of a response.
#[derive(Default)]
pub(in crate::proxy) struct ResponseDetails {
    pub(in crate::proxy) region: Option<String>,
    pub(in crate::proxy) apim_request_id: Option<String>,
    /// The deployment that answered in place of a provisioned one that was full.
    pub(in crate::proxy) spilled_to: Option<DeploymentName>,
    pub(in crate::proxy) captured: CapturedResponse,
}

impl RelayedResponse {
    /// A response with this head. `operation` is `None` for a request that was not admitted;
    /// `removes_usage` says that the balancer asked for the usage event, which the client must not see.
    pub(in crate::proxy) fn new(
        header: &ResponseHeader,
        operation: Option<Operation>,
        policy: CapturePolicy,
        removes_usage: bool,
    ) -> Self {
        let removes_usage = removes_usage && is_event_stream(header);
        Self {
            capture: operation
                .map_or(Capture::Nothing, |operation| Capture::for_response(header, operation, policy)),
            usage_filter: removes_usage.then(|| UsageEventFilter::new(MAX_USAGE_EVENT_BYTES)),
            details: ResponseDetails::from_headers(&header.headers),
            // A tunnel has no end but that one side disconnects.
            has_ended: header.status == http::StatusCode::SWITCHING_PROTOCOLS,
            is_discarded: false,
            expects_terminal_event: matches!(
                operation,
                Some(Operation::Chat | Operation::Completions | Operation::Responses)
            ),
        }
    }

    /// A response that was held back and goes to the client whole, without being read here.
    pub(super) fn already_sent(header: &ResponseHeader) -> Self {
        Self {
            capture: Capture::Nothing,
            usage_filter: None,
            details: ResponseDetails::from_headers(&header.headers),
            has_ended: true,
            is_discarded: true,
            expects_terminal_event: false,
        }
    }

    /// Whether the usage event is taken out, so that the length of the body changes.
    pub(super) fn removes_usage_event(&self) -> bool {
        self.usage_filter.is_some()
    }

    /// Whether it has ended or sent its terminal event: SDKs disconnect on that one.
    pub(in crate::proxy) fn is_complete(&self) -> bool {
        self.has_ended || matches!(&self.capture, Capture::Stream { answer, .. } if answer.has_ended)
    }

    /// Whether the client still gets parts of it.
    pub(super) fn is_passed_on(&self) -> bool {
        !self.is_discarded
    }

    pub(in crate::proxy) fn note_end(&mut self) {
        self.has_ended = true;
    }

    /// Reads a part of the response and appends what goes to the client.
    pub(super) fn pass(&mut self, task: HttpTask, out: &mut Vec<HttpTask>) {
        if self.is_discarded {
            return;
        }
        let is_end = task.is_end() && !matches!(task, HttpTask::Failed(_));
        if let HttpTask::Body(Some(data), _) = &task {
            self.capture.feed(data);
        }
        self.has_ended |= is_end;
        match (&mut self.usage_filter, task) {
            (Some(filter), HttpTask::Body(data, _)) => {
                let mut send = |piece| out.push(HttpTask::Body(Some(piece), false));
                if let Some(data) = &data {
                    filter.feed(data, &mut send);
                }
                if is_end {
                    filter.finish(&mut send);
                    out.push(HttpTask::Body(None, true));
                }
            }
            (Some(filter), task @ (HttpTask::Trailer(_) | HttpTask::Done)) => {
                filter.finish(&mut |piece| out.push(HttpTask::Body(Some(piece), false)));
                out.push(task);
            }
            (_, task) => out.push(task),
        }
    }

    /// What the record needs of it, and how it ended. What still comes is passed on unread.
    pub(in crate::proxy) fn take_details(&mut self) -> (ResponseDetails, ResponseEnd) {
        let mut details = std::mem::take(&mut self.details);
        let mut end = if self.has_ended { ResponseEnd::Framing } else { ResponseEnd::Broken };
        details.captured = match std::mem::replace(&mut self.capture, Capture::Nothing) {
            Capture::Nothing => details.captured,
            Capture::Binary { sha256, bytes } => {
                CapturedResponse::Binary { byte_count: bytes, sha256: sha256.finish() }
            }
            Capture::Body { body, is_json } => CapturedResponse::Buffered { body, is_json },
            Capture::Stream { mut scanner, mut answer } => {
                scanner.finish(&mut |event| answer.capture_event(&event));
                if answer.has_ended && answer.error_code.is_none() {
                    end = ResponseEnd::TerminalEvent;
                } else if self.expects_terminal_event || answer.has_ended {
                    end = ResponseEnd::Broken;
                }
                CapturedResponse::Streamed(answer)
            }
        };
        (details, end)
    }
}

impl ResponseDetails {
    fn from_headers(headers: &HeaderMap) -> Self {
        let text =
            |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Azure OpenAI, "Manage traffic with spillover": both headers come with such a response.
        let is_spilled = headers.contains_key(&X_MS_SPILLOVER_FROM_DEPLOYMENT);
        let served_by = if is_spilled { text(&X_MS_DEPLOYMENT_NAME) } else { None };
        Self {
            spilled_to: served_by.and_then(|name| DeploymentName::parse(&name).ok()),
            region: text(&X_MS_REGION),
            apim_request_id: text(&APIM_REQUEST_ID),
            captured: CapturedResponse::NotCaptured,
        }
    }
}

impl Capture {
    fn for_response(header: &ResponseHeader, operation: Operation, policy: CapturePolicy) -> Self {
        // Tokens are estimated from the text of a stream that breaks off, whether or not it is recorded.
        let max_text = if policy.estimates_tokens {
            policy.max_buffered_completion_bytes.max(MAX_ESTIMATED_TEXT_BYTES)
        } else {
            0
        };
        let is_encoded =
            header.headers.get(http::header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        match () {
            () if is_encoded || !header.status.is_success() => Self::Nothing,
            () if is_event_stream(header) => Self::Stream {
                scanner: EventScanner::new(MAX_EVENT_BYTES),
                answer: Box::new(ResponseCapture::new(operation, max_text)),
            },
            () if has_content_type(header, &[b"application/json"]) => {
                let has_pictures = operation == Operation::Images && policy.captures_completion;
                let max_bytes = if has_pictures { MAX_PICTURES_BYTES } else { MAX_BODY_BYTES };
                Self::Body { body: CollectedBody::new(max_bytes), is_json: true }
            }
            () if policy.captures_completion && is_binary(header) => {
                Self::Binary { sha256: Box::new(Sha256::new()), bytes: 0 }
            }
            () if has_content_type(header, &[b"text/"]) => {
                Self::Body { body: CollectedBody::new(MAX_BODY_BYTES), is_json: false }
            }
            () => Self::Nothing,
        }
    }

    fn feed(&mut self, data: &Bytes) {
        match self {
            Self::Nothing => {}
            Self::Binary { sha256, bytes } => {
                sha256.update(data);
                *bytes += data.len() as u64;
            }
            Self::Body { body, .. } => body.append(data),
            Self::Stream { scanner, answer } => scanner.feed(data, &mut |event| answer.capture_event(&event)),
        }
    }
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
