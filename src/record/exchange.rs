//! Everything known of a request once it is over. Metrics, statistics and the record are made of it
//! elsewhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::admission::client::Client;
use crate::azure::PromptParts;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::collected_body::CollectedBody;
use crate::azure::{Operation, RequestTarget};
use crate::names::{BackendName, DeploymentName};

/// About what a stream's account takes beside its text.
const STREAM_CAPTURE_OVERHEAD_BYTES: usize = 4 * 1024;
/// A body from this size on takes a while to be made a prompt of.
pub(super) const LARGE_BODY_BYTES: usize = 128 * 1024;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeOutcome {
    /// A backend's answer reached the client whole.
    Answered,
    /// The balancer refused the request.
    Refused,
    /// No answer, or one that broke off.
    Failed,
    /// The client left first.
    ClientGone,
}

impl ExchangeOutcome {
    /// What records call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
        }
    }
}

/// One attempt on one backend.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// The backend's name.
    pub backend: BackendName,
    /// The status of its reply.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<&'static str>,
    /// From the choice of the backend until its verdict, in milliseconds.
    pub duration_ms: u64,
    /// How long it asked to wait, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl AttemptRecord {
    /// The attempt's outcome as metrics and statistics name it.
    pub fn outcome_label(&self) -> &'static str {
        match (self.error, self.status) {
            (Some("client_gone"), _) => "client_gone",
            (Some(_), _) | (_, Some(408 | 500..)) => "failed",
            (_, Some(429)) => "throttled",
            (_, Some(400..)) => "refused",
            (_, Some(_)) => "answered",
            (None, None) => "other",
        }
    }
}

/// What is known of the request's body, kept for the prompt. It and what holds it have no `Debug`:
/// prompts reach no log.
pub struct CapturedRequest {
    /// The body as the client sent it.
    pub body: Bytes,
    /// Its content type.
    pub content_type: String,
    /// Where its prompt lies, if that is known.
    pub prompt_parts: Option<PromptParts>,
}

/// What is known of the reply's body.
#[derive(Default)]
pub enum CapturedResponse {
    /// Nothing to read tokens or text from.
    #[default]
    NotCaptured,
    /// A reply that is no stream.
    Buffered {
        /// What was kept of it.
        body: CollectedBody,
        /// Whether it called itself JSON.
        is_json: bool,
    },
    /// Sound or pictures: how much, and its SHA-256.
    Binary {
        /// Bytes of it.
        byte_count: u64,
        /// Of those bytes.
        sha256: [u8; 32],
    },
    /// A stream, read as it passed.
    Streamed(Box<ResponseCapture>),
}

/// The prompt as the record shows it.
pub struct ExtractedPrompt {
    /// Its text, within the policy's limit.
    pub text: String,
    /// Whether text beyond the limit was left out.
    pub is_truncated: bool,
}

/// How much of prompt and completion to keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapturePolicy {
    /// Keep the prompt.
    pub captures_prompt: bool,
    /// Keep the completion.
    pub captures_completion: bool,
    /// Bytes of each; what is cut is marked as cut.
    pub max_text_bytes: usize,
    /// Bytes of the completion that are gathered: more than the limit where patterns are taken out
    /// before it is cut.
    pub max_buffered_completion_bytes: usize,
    /// Tokens of streams that break off are estimated.
    pub estimates_tokens: bool,
}

/// Everything known of a request once it is over.
pub struct FinishedExchange {
    /// When its head was complete.
    pub received_at: SystemTime,
    /// Ours, a UUIDv7.
    pub request_id: Arc<str>,
    /// Who asked; `None` when it was refused before that was known.
    pub client: Option<Arc<Client>>,
    /// The client's address, told by a trusted proxy or the connection.
    pub client_ip: Option<IpAddr>,
    /// The connection's address.
    pub peer_ip: Option<IpAddr>,
    /// HTTP method.
    pub method: String,
    /// Where it went; `None` when the target could not be read.
    pub target: Option<Arc<RequestTarget>>,
    /// The path as sent, escaped and cut, where `target` is `None`.
    pub raw_path: Option<String>,
    /// The api-version that went upstream, or the client's.
    pub api_version: Option<String>,
    /// The deployment asked for.
    pub deployment: Option<DeploymentName>,
    /// Whether that is one of the configuration's, or one that a backend has answered for.
    pub is_known_deployment: bool,
    /// What the balancer itself took.
    pub balancer_overhead: Duration,
    /// Whether a stream was asked for; `None` when the body was not read.
    pub is_stream_requested: Option<bool>,
    /// The status the client saw; `None` if it saw none.
    pub client_status: Option<u16>,
    /// How it ended.
    pub outcome: ExchangeOutcome,
    /// The code of our refusal.
    pub refusal_code: Option<&'static str>,
    /// Whose answer the client saw.
    pub backend: Option<BackendName>,
    /// The name of the deployment there.
    pub upstream_deployment: Option<DeploymentName>,
    /// `x-ms-region` of the answer.
    pub region: Option<String>,
    /// `apim-request-id` of the answer.
    pub apim_request_id: Option<String>,
    /// Every attempt, in order.
    pub attempts: Vec<AttemptRecord>,
    /// From the complete head to the end.
    pub duration: Duration,
    /// From the complete head to the first byte of the answer's body.
    pub time_to_first_byte: Option<Duration>,
    /// Bytes of the request's body; `None` when it was not read to its end.
    pub request_bytes: Option<u64>,
    /// Bytes of the body the client was sent.
    pub response_bytes: u64,
    /// The request's body.
    pub captured_request: Option<CapturedRequest>,
    /// The prompt, where it was made beforehand, and whether it was cut.
    pub extracted_prompt: Option<ExtractedPrompt>,
    /// The reply's body.
    pub captured_response: CapturedResponse,
    /// Prompt and answer were let go of, since records could not be written fast enough.
    pub is_content_dropped: bool,
}

impl FinishedExchange {
    /// About how much memory it takes until it is written.
    pub fn memory_bytes(&self) -> usize {
        let request = self.captured_request.as_ref().map_or(0, |request| request.body.len());
        let response = match &self.captured_response {
            CapturedResponse::NotCaptured | CapturedResponse::Binary { .. } => 0,
            CapturedResponse::Buffered { body, .. } => body.collected_bytes(),
            CapturedResponse::Streamed(capture) => STREAM_CAPTURE_OVERHEAD_BYTES + capture.captured_bytes(),
        };
        size_of::<Self>() + request + response
    }

    pub(super) fn operation(&self) -> Operation {
        self.target.as_ref().map_or(Operation::Other, |target| target.operation)
    }

    /// Lets go of prompt and answer, which is then said in the record; tokens stay.
    pub fn drop_content(&mut self) {
        self.captured_request = None;
        self.extracted_prompt = None;
        match &mut self.captured_response {
            CapturedResponse::Streamed(capture) => capture.discard_text(),
            // The end of a reply tells its tokens.
            CapturedResponse::Buffered { body, .. } if body.collected_bytes() <= LARGE_BODY_BYTES => {}
            response => *response = CapturedResponse::NotCaptured,
        }
        self.is_content_dropped = true;
    }
}
