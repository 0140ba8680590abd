//! How far the response of the current attempt has come.

use super::held_response::HeldResponse;
use super::held_stream::HeldStream;
use super::relayed_response::RelayedResponse;

/// The response of the current attempt. It begins as `Awaited`, and once it is `Relayed` no other
/// backend can be tried.
pub(in crate::proxy) enum ResponseState {
    /// No final response head yet.
    Awaited,
    /// A response that may lead to another attempt; held until it is complete.
    HeldResponse(Box<HeldResponse>),
    /// A stream before its first content, which may turn out to be refused.
    HeldStream(Box<HeldStream>),
    /// It goes to the client as it comes.
    Relayed(Box<RelayedResponse>),
}

impl ResponseState {
    /// Takes the state and leaves `Awaited`.
    pub(in crate::proxy) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Awaited)
    }

    /// Whether a response is passed on, of which the client still gets parts.
    pub(super) fn is_passed_on(&self) -> bool {
        matches!(self, Self::Relayed(relayed) if relayed.is_passed_on())
    }
}
