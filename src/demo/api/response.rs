//! A response as data: status, headers, and a body that is complete, a stream of events, or a WebSocket.
//!
//! How a response is framed, delayed or cut off is decided in `faults`.

use bytes::Bytes;
use serde_json::Value;

use crate::demo::resource::rate_limiter::ChargeSettlement;
use crate::demo::resource::stream_end::StreamedResponse;

/// A response of the simulated API that is not yet sent.
#[derive(Debug, Clone)]
pub(in crate::demo) struct SimulatedResponse {
    pub(in crate::demo) status: u16,
    pub(in crate::demo) headers: Vec<(&'static str, String)>,
    pub(in crate::demo) body: ResponseBody,
    /// What the rate limiter of the deployment is to be corrected by once the response is sent.
    pub(in crate::demo) charge_to_settle: Option<Box<ChargeSettlement>>,
    /// The stored response whose stream this is.
    pub(in crate::demo) streamed_response: Option<Box<StreamedResponse>>,
}

/// A response with an error status. It is boxed to keep [`OperationResult`] small.
pub(in crate::demo) type ErrorResponse = Box<SimulatedResponse>;

/// The outcome of an operation.
pub(in crate::demo) type OperationResult = Result<SimulatedResponse, ErrorResponse>;

#[derive(Debug, Clone)]
pub(in crate::demo) enum ResponseBody {
    Complete(Bytes),
    Stream(StreamFormat, Vec<StreamEvent>),
    WebSocket(WebSocketApi),
}

/// The API whose error events fit into a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum StreamFormat {
    Chat,
    Responses,
    /// Audio; it has no error events.
    Binary,
}

/// One event of a stream, as sent.
#[derive(Debug, Clone)]
pub(in crate::demo) struct StreamEvent {
    pub(in crate::demo) role: EventRole,
    pub(in crate::demo) bytes: Bytes,
}

/// What an event means to a client that waits for output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum EventRole {
    /// Sent before any output.
    Preamble,
    /// Carries output, or says that the output has ended.
    Content,
    /// The last event; without it the stream is incomplete.
    Terminal,
}

/// The API that is spoken after `101 Switching Protocols`.
#[derive(Debug, Clone)]
pub(in crate::demo) enum WebSocketApi {
    /// The Realtime API, for the deployment of this name.
    Realtime(String),
    /// The Responses API, one `response.create` after the other.
    Responses,
}

impl SimulatedResponse {
    pub(in crate::demo) fn from_json(status: u16, value: &Value) -> Self {
        Self::from_body(status, "application/json", value.to_string())
    }

    pub(in crate::demo) fn from_body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self::new(status, headers, ResponseBody::Complete(body.into()))
    }

    pub(in crate::demo) fn from_events(
        format: StreamFormat,
        content_type: &str,
        events: Vec<StreamEvent>,
    ) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self::new(200, headers, ResponseBody::Stream(format, events))
    }

    pub(in crate::demo) fn websocket_upgrade(api: WebSocketApi) -> Self {
        Self::new(101, Vec::new(), ResponseBody::WebSocket(api))
    }

    fn new(status: u16, headers: Vec<(&'static str, String)>, body: ResponseBody) -> Self {
        Self { status, headers, body, charge_to_settle: None, streamed_response: None }
    }

    #[must_use]
    pub(in crate::demo) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub(in crate::demo) fn with_charge(mut self, charge: ChargeSettlement) -> Self {
        self.charge_to_settle = Some(Box::new(charge));
        self
    }

    #[must_use]
    pub(in crate::demo) fn with_streamed_response(mut self, streamed: Option<StreamedResponse>) -> Self {
        self.streamed_response = streamed.map(Box::new);
        self
    }

    /// The body as JSON; `null` for anything else.
    pub(in crate::demo) fn json_body_or_null(&self) -> Value {
        match &self.body {
            ResponseBody::Complete(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
            _ => Value::Null,
        }
    }
}
