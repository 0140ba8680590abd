//! An answer before it is spoken: status, headers, and a body that is whole, a stream of pieces, or a
//! WebSocket. How it is framed, delayed or broken is decided in [`super::faults`].

use bytes::Bytes;
use serde_json::Value;

use super::limits::Charge;

/// What the simulated service has to say.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
    /// What to put right in the deployment's meter once the answer is out.
    pub(super) charge: Option<Box<Charge>>,
}

/// A reply, or a refusal on the way to it; boxed, since both are the same large thing.
pub(super) type Reply = Result<Answer, Box<Answer>>;

#[derive(Debug, Clone)]
pub(super) enum Body {
    Whole(Bytes),
    Stream(Flavour, Vec<Piece>),
    Socket(Protocol),
}

/// Whose error events fit into a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    Chat,
    Responses,
    Binary,
}

/// One event of a stream.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) role: Role,
    pub(super) bytes: Bytes,
}

/// What an event is to a reader who waits for content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Sent before anything was generated.
    Preamble,
    /// Carries generated output, or says that it ended.
    Content,
    /// Without it the stream is incomplete.
    Terminal,
}

/// What is spoken after `101 Switching Protocols`.
#[derive(Debug, Clone)]
pub(super) enum Protocol {
    /// The Realtime API, for this deployment.
    Realtime(String),
    /// The Responses API, one `response.create` after the other.
    Responses,
}

impl Answer {
    pub(super) fn json(status: u16, value: &Value) -> Self {
        Self::whole(status, "application/json", value.to_string())
    }

    pub(super) fn whole(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self { status, headers, body: Body::Whole(body.into()), charge: None }
    }

    pub(super) fn stream(flavour: Flavour, content_type: &str, pieces: Vec<Piece>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self { status: 200, headers, body: Body::Stream(flavour, pieces), charge: None }
    }

    pub(super) fn socket(protocol: Protocol) -> Self {
        Self { status: 101, headers: Vec::new(), body: Body::Socket(protocol), charge: None }
    }

    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub(super) fn charged(mut self, charge: Charge) -> Self {
        self.charge = Some(Box::new(charge));
        self
    }
}
