//! The moods as data. What a mood does to a response is in `faults`.
//!
//! The variants have the names by which files and `x-simulate` call the moods.

use std::collections::HashMap;
use std::time::Duration;

use super::simulated_error::SimulatedError;

/// How a simulated resource behaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Mood {
    /// Behaves as Azure documents it.
    Calm,
    /// Every request gets a 429, with these headers.
    Throttled {
        /// Value of `retry-after-ms`, if that header is sent.
        retry_after_ms: Option<u64>,
        /// Value of `retry-after` (seconds, or an HTTP date), if that header is sent. It is sent verbatim.
        retry_after: Option<String>,
    },
    /// Requests for flex processing (`"service_tier": "flex"`) get a 429, others a response.
    FlexThrottled {
        /// Value of `retry-after-ms`, if that header is sent.
        retry_after_ms: Option<u64>,
    },
    /// Every request gets a 429 for lack of shared capacity, which names no time to wait.
    HighDemand,
    /// Every request gets this error.
    Refuses(SimulatedError),
    /// Accepts the connection, reads the request and never responds.
    Mute,
    /// Responds correctly, but waits for this long before the first byte.
    SlowFirstByte(Duration),
    /// Waits, then behaves as the other mood.
    ///
    /// [`Mood::Sequence`] and [`Mood::PerDeployment`] belong around it; within it they act as [`Mood::Calm`].
    After(Duration, Box<Mood>),
    /// Responds correctly, but waits for this long before each piece of the body.
    Drip(Duration),
    /// A response that is streamed now is not found, nor are its items, until this long after its stream has
    /// ended. Otherwise the `read_lag` of the resource applies.
    ReadLag(Duration),
    /// Streams of the Responses API have `encrypted_content` only in their last event.
    LateEncryptedContent,
    /// Resets every new connection at once; requests on open connections get a response.
    ///
    /// Within [`Mood::Sequence`] or [`Mood::PerDeployment`] it acts as [`Mood::Calm`], because those need a
    /// request to choose by.
    ResetOnAccept,
    /// Resets the connection after reading the request.
    ResetBeforeHead,
    /// Closes the connection in order after reading the request.
    CloseBeforeHead,
    /// Resets the connection within the response body.
    ResetMidBody {
        /// How much of the body is sent before the reset.
        after: BodyPosition,
    },
    /// Closes the connection within the response body: no last chunk, no `[DONE]`.
    CloseMidStream {
        /// How much of the body is sent before the close.
        after: BodyPosition,
    },
    /// Announces a longer body than it sends, then closes the connection.
    TruncatedLength {
        /// By how many bytes `content-length` exceeds the body.
        missing_bytes: usize,
    },
    /// Ends streams correctly as far as HTTP goes, but without `[DONE]` or `response.completed`.
    CleanEndWithoutTerminal,
    /// Streams begin with status 200 and contain an error in place of output; other requests get a 429.
    ErrorFirst {
        /// Which events report the error, and in which order.
        event_order: ErrorEventOrder,
        /// Value of `retry-after` on the 200, if that header is sent.
        retry_after: Option<String>,
    },
    /// Streams end in an error after some output.
    MidStreamError {
        /// How many events with output are sent before the error.
        after_events: usize,
    },
    /// Streams pause.
    Silence {
        /// How many events are sent before the pause; with 0, only the response head is.
        after_events: usize,
        /// How long the pause lasts.
        duration: Duration,
    },
    /// Sends the body in writes of one to seven bytes.
    TinyWrites,
    /// Pads `response.created` (or the first chunk of a chat).
    BigCreated {
        /// Size of the padding.
        padding_bytes: usize,
    },
    /// Adds annotations of the asynchronous content filter after the text, also after `stop`.
    AsyncFilter {
        /// Whether the filter blocks at last: a final chunk with `finish_reason: content_filter`.
        blocks_content: bool,
    },
    /// All counters in `x-ratelimit-*` are -1.
    CountersMinusOne,
    /// The rate limits are lower than configured.
    ReducedLimits {
        /// Percentage of the configured limits, 0 to 100.
        limit_percent: u64,
    },
    /// Sends `101 Switching Protocols` to a request that did not ask for an upgrade.
    Unsolicited101,
    /// Sends this many interim (1xx) responses before the final one.
    InfoFlood(usize),
    /// Responds in HTTP/1.0; the body ends with the connection.
    Http10Close,
    /// Sends an error as soon as the request head was read, before the body.
    ///
    /// Where the mood depends on a deployment that only the body names, the error follows the body.
    EarlyAnswer {
        /// The error to send.
        error: SimulatedError,
        /// Closes the connection without reading the body; otherwise the body is read and dropped.
        closes_connection: bool,
    },
    /// One mood per request; the last one stays.
    Sequence(Vec<Mood>),
    /// A mood for each deployment.
    PerDeployment {
        /// Moods by deployment name.
        moods_by_deployment: HashMap<String, Mood>,
        /// The mood of all other requests.
        default_mood: Box<Mood>,
    },
}

impl Mood {
    /// Whether the mood is for the handshake of a WebSocket that names no deployment, rather than for its turns.
    pub(in crate::demo) fn is_about_connections(&self) -> bool {
        match self {
            Self::Mute
            | Self::ResetBeforeHead
            | Self::CloseBeforeHead
            | Self::EarlyAnswer { .. }
            | Self::Unsolicited101 => true,
            Self::Refuses(error) => error.is_about_connections(),
            Self::After(_, mood) => mood.is_about_connections(),
            _ => false,
        }
    }
}

/// A position in a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyPosition {
    /// After this many events of a stream, or eighths of any other body.
    Events(usize),
    /// After this many bytes, not counting chunk framing.
    Bytes(usize),
}

/// The orders in which Azure was seen to report an error inside a 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorEventOrder {
    /// `response.created`, `error`, `response.failed`.
    CreatedErrorFailed,
    /// `error` and nothing else.
    ErrorAlone,
    /// `response.created`, `response.failed` with `error: null`, `error`.
    FailedThenError,
}
