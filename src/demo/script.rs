//! Moods: how a simulated resource misbehaves, and which mood a request meets.
//!
//! A mood is chosen when the head of a request has been read, or, where it depends on a deployment that
//! only the body names, when the body has. What a mood does to an answer is in [`super::faults`].

use std::collections::HashMap;
use std::time::Duration;

use super::refusal::Refusal;

/// How a simulated resource behaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Mood {
    /// As documented.
    Calm,
    /// 429 for everything, with these headers where given; the second is sent verbatim.
    Throttled {
        /// `retry-after-ms`.
        retry_after_ms: Option<u64>,
        /// `retry-after`: seconds, or an HTTP date.
        retry_after: Option<String>,
    },
    /// 429 for want of shared capacity, which names no time to wait.
    HighDemand,
    /// One of Azure's errors for everything.
    Refuses(Refusal),
    /// Accepts, reads the request, never answers.
    Mute,
    /// Answers well, but starts only after this time.
    SlowFirstByte(Duration),
    /// Waits, then behaves as the other mood. A sequence or a choice by deployment belongs around it; within
    /// it, those are [`Mood::Calm`].
    After(Duration, Box<Mood>),
    /// Answers well, waiting before each piece of the body.
    Drip(Duration),
    /// Resets every new connection at once; requests on open ones are answered. Within a sequence or a
    /// choice by deployment, which need a request to go by, it is [`Mood::Calm`].
    ResetOnAccept,
    /// Resets the connection once the request was read.
    ResetBeforeHead,
    /// Ends the connection in order once the request was read.
    CloseBeforeHead,
    /// Resets the connection within the body of the answer.
    ResetMidBody {
        /// How much of it is sent before.
        after: Extent,
    },
    /// Ends the connection within the body: no last chunk, no `[DONE]`.
    CloseMidStream {
        /// How much of it is sent before.
        after: Extent,
    },
    /// Promises this many bytes more than it sends, and ends the connection.
    TruncatedLength {
        /// Bytes promised in vain.
        missing: usize,
    },
    /// Ends streams in order, but without `[DONE]` or `response.completed`.
    CleanEndWithoutTerminal,
    /// Streams begin with 200 and turn out to be a refusal; other requests get a plain 429.
    ErrorFirst {
        /// Which events say so, and in which order.
        order: ErrorOrder,
        /// `retry-after` on the 200.
        retry_after: Option<String>,
    },
    /// Streams turn into an error after some output.
    MidStreamError {
        /// Events with output sent before.
        after: usize,
    },
    /// Streams fall silent.
    Silence {
        /// Events sent before; with 0 only the response head is.
        after: usize,
        /// For how long.
        lasting: Duration,
    },
    /// The body in writes of one to seven bytes.
    TinyWrites,
    /// `response.created` (or the first chunk of a chat) is padded to at least this many bytes.
    BigCreated {
        /// Size of the padding.
        bytes: usize,
    },
    /// Annotations of the asynchronous content filter after the text, also after `stop`.
    AsyncFilter {
        /// The filter blocks late: a last chunk with `finish_reason: content_filter`.
        blocks: bool,
    },
    /// Counters in `x-ratelimit-*` are all -1.
    CountersMinusOne,
    /// The effective limits are this percentage of the configured ones.
    ReducedLimits {
        /// 0 to 100.
        percent: u64,
    },
    /// `101 Switching Protocols` to a request that did not ask for it.
    Unsolicited101,
    /// This many interim 1xx answers, then the real one.
    InfoFlood(usize),
    /// HTTP/1.0, delimited by the end of the connection.
    Http10Close,
    /// Refuses as soon as the head was read, or, where the mood depends on a deployment that only the body
    /// names, after that.
    EarlyAnswer {
        /// With what.
        refusal: Refusal,
        /// Ends the connection without reading the body; otherwise the body is read and dropped.
        close: bool,
    },
    /// One mood per request; the last one stays.
    Sequence(Vec<Mood>),
    /// A mood per deployment name.
    PerDeployment {
        /// By deployment.
        moods: HashMap<String, Mood>,
        /// For all others.
        otherwise: Box<Mood>,
    },
}

/// How far an answer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Events of a stream, or eighths of any other body.
    Events(usize),
    /// Bytes of the body, chunk framing not counted.
    Bytes(usize),
}

/// The orders in which a refusal was seen inside a 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorOrder {
    /// `response.created`, `error`, `response.failed`.
    CreatedErrorFailed,
    /// `error` and nothing else.
    ErrorAlone,
    /// `response.created`, `response.failed` with `error: null`, `error`.
    FailedThenError,
}

/// A mood with its place in it.
#[derive(Debug)]
pub(super) enum Script {
    One(Mood),
    Sequence { steps: Vec<Script>, at: usize },
    PerDeployment { scripts: HashMap<String, Script>, otherwise: Box<Script> },
}

impl Script {
    pub(super) fn new(mood: Mood) -> Self {
        match mood {
            Mood::Sequence(moods) => {
                Self::Sequence { steps: moods.into_iter().map(Self::new).collect(), at: 0 }
            }
            Mood::PerDeployment { moods, otherwise } => Self::PerDeployment {
                scripts: moods.into_iter().map(|(name, mood)| (name, Self::new(mood))).collect(),
                otherwise: Box::new(Self::new(*otherwise)),
            },
            mood => Self::One(mood),
        }
    }

    /// Whether the mood of a request depends on its deployment.
    pub(super) fn needs_deployment(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Sequence { steps, .. } => steps.iter().any(Self::needs_deployment),
            Self::PerDeployment { .. } => true,
        }
    }

    /// The mood of the next request.
    pub(super) fn step(&mut self, deployment: Option<&str>) -> Mood {
        match self {
            Self::One(mood) => mood.clone(),
            Self::Sequence { steps, at } => {
                let last = steps.len().saturating_sub(1);
                let now = (*at).min(last);
                *at += 1;
                steps.get_mut(now).map_or(Mood::Calm, |script| script.step(deployment))
            }
            Self::PerDeployment { scripts, otherwise } => {
                deployment.and_then(|name| scripts.get_mut(name)).unwrap_or(otherwise).step(deployment)
            }
        }
    }

    /// Whether a connection accepted now is to be reset at once.
    pub(super) fn resets_on_accept(&self) -> bool {
        matches!(self, Self::One(Mood::ResetOnAccept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_ends_in_its_last_mood_and_deployments_have_their_own() {
        let inner = Mood::Sequence(vec![Mood::Mute, Mood::HighDemand]);
        let moods = HashMap::from([("a".to_owned(), inner)]);
        let mut script = Script::new(Mood::PerDeployment { moods, otherwise: Box::new(Mood::Calm) });
        assert!(script.needs_deployment());
        let seen: Vec<Mood> =
            [Some("a"), None, Some("b"), Some("a"), Some("a")].map(|name| script.step(name)).into();
        assert_eq!(seen, [Mood::Mute, Mood::Calm, Mood::Calm, Mood::HighDemand, Mood::HighDemand]);
        assert_eq!(Script::new(Mood::Sequence(Vec::new())).step(None), Mood::Calm);
    }
}
