//! The configuration that is written, before it is text.

use std::collections::{BTreeMap, BTreeSet};

/// A part of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it is.
    Literal(String),
    /// The name of a variable.
    Variable(String),
}

/// A value: literal text and variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value(pub(super) Vec<Part>);

impl Value {
    pub(super) fn literal(text: impl Into<String>) -> Self {
        Self(vec![Part::Literal(text.into())])
    }

    pub(super) fn variable(name: impl Into<String>) -> Self {
        Self(vec![Part::Variable(name.into())])
    }

    /// The text, if there is no variable in it.
    pub(super) fn as_literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

/// How a backend is authenticated to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    ApiKey(Value),
    ManagedIdentity { client_id: Option<Value>, scope: Option<String> },
}

/// A backend.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// Unique, and a valid name.
    pub(super) name: String,
    pub(super) endpoint: Value,
    pub(super) tier: u16,
    pub(super) weight: u16,
    pub(super) credential: Credential,
    pub(super) enabled: bool,
    /// The deployments that it serves; all if empty.
    pub(super) deployments: BTreeSet<String>,
    pub(super) comments: Vec<String>,
}

/// Limits, by their key.
pub(super) type Limits = BTreeMap<&'static str, Value>;

/// The limits of a client, or of each that has none of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientLimits {
    pub(super) all: Limits,
    /// In addition, those of single deployments: by the name in lower case, the name and its limits.
    pub(super) of_deployments: BTreeMap<String, (String, Limits)>,
}

impl ClientLimits {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.of_deployments.is_empty()
    }
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) key_hash: Option<Value>,
    pub(super) app_ids: Vec<Value>,
    pub(super) roles: Vec<Value>,
    pub(super) deployments: BTreeSet<String>,
    pub(super) limits: ClientLimits,
    pub(super) comments: Vec<String>,
}

/// The block `entra`.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    pub(super) tenant: Value,
    pub(super) audiences: Vec<Value>,
    pub(super) issuers: Vec<Value>,
    pub(super) authority: Option<String>,
    pub(super) comments: Vec<String>,
}

/// The block `retry`.
#[derive(Clone, Debug, Default)]
pub(super) struct Retry {
    pub(super) attempts: Option<u64>,
    pub(super) statuses: Vec<(u16, u16)>,
    pub(super) comments: Vec<String>,
}

/// The blocks `breaker` and `cooldown`, from the rule of a circuit breaker. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    /// Of failures that are not throttling; `None` if the rule is about throttling only.
    pub(super) rule: Option<BreakerRule>,
    /// How long a throttled deployment rests that does not say for how long.
    pub(super) cooldown: Option<u64>,
    pub(super) comments: Vec<String>,
}

/// When a circuit breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BreakerRule {
    pub(super) failures: u64,
    pub(super) ratio: u64,
    pub(super) window: u64,
    pub(super) open: u64,
}

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Recorded {
    Tokens,
    Content,
}

/// The whole configuration.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) backends: Vec<Backend>,
    pub(super) clients: Vec<Client>,
    pub(super) tokens: Option<Tokens>,
    pub(super) default_limits: ClientLimits,
    pub(super) limit_comments: Vec<String>,
    pub(super) api_version: Option<Value>,
    /// Replaces the client's `api-version`.
    pub(super) api_version_override: Option<Value>,
    pub(super) set_headers: BTreeMap<String, Value>,
    pub(super) request_comments: Vec<String>,
    pub(super) retry: Option<Retry>,
    pub(super) breaker: Option<Breaker>,
    /// In seconds.
    pub(super) first_byte: Option<u64>,
    pub(super) recorded: Option<Recorded>,
}
