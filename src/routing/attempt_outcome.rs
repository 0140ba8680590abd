//! What became of an attempt.

use std::time::Instant;

/// What became of an attempt, as far as the next one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// 429: the backend takes nothing until then.
    Throttled(Instant),
    /// Connect error, reset, time-out or 5xx. The backend may be tried again in a further round, within
    /// the retry budget.
    Failed,
    /// The secret of this id was rejected. The backend may be tried once more with another secret.
    CredentialRejected(u64),
    /// The backend cannot serve this request: permission, missing deployment, unknown id, or a refusal
    /// that the operator wants to be retried elsewhere. A second attempt would end the same way.
    CannotServe,
    /// Its resource does not have what the request refers to. Other backends of the resource do not have it
    /// either; other resources may.
    NotOnThisResource,
    /// No backend of this tier can serve this request. Those of another tier may.
    TierCannotServe,
    /// The backend has not decided about the request: a pooled connection was closed before the request
    /// arrived, or the request has to be sent in another form. It may be tried again once, and the
    /// attempt does not count.
    Uncounted,
}
