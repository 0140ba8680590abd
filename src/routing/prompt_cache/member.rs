//! A backend that a request may be sent to, with what its choice depends on.

use super::rendezvous::RankedBackend;

/// A backend that a request may be sent to.
#[derive(Clone, Copy, Debug)]
pub(in crate::routing) struct LoadedMember {
    /// What it is known by to the caller.
    pub(super) index: usize,
    pub(super) ranked: RankedBackend,
    /// Its score for the key that it was sorted by last.
    pub(super) score: f64,
    /// What it holds already.
    pub(super) tokens: u64,
    pub(super) requests: u64,
}

impl LoadedMember {
    /// A member that holds nothing.
    pub(in crate::routing) fn idle(index: usize, ranked: RankedBackend) -> Self {
        Self { index, ranked, score: 0.0, tokens: 0, requests: 0 }
    }

    /// The same member, which holds so much.
    pub(in crate::routing) fn holding(self, tokens: u64, requests: u64) -> Self {
        Self { tokens, requests, ..self }
    }
}
