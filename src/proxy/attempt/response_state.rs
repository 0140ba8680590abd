//! The state of the current attempt's response.

use super::held_response::HeldResponse;
use super::held_stream::HeldStream;
use super::relayed_response::RelayedResponse;

/// The state of the current attempt's response. It is `Awaited` at first; once it is `Relayed`, no other
/// attempt can follow.
pub(in crate::proxy) enum ResponseState {
    /// There is no final response head yet.
    Awaited,
    /// An error response that may lead to another attempt. It is held until it is complete.
    HeldResponse(Box<HeldResponse>),
    /// A stream in which the request may still be refused. It is held until its first content.
    HeldStream(Box<HeldStream>),
    /// The response goes to the client as it arrives.
    Relayed(Box<RelayedResponse>),
}

impl ResponseState {
    /// Takes the state and leaves `Awaited`.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Awaited)
    }

    /// Whether further parts of the response go to the client.
    pub(super) fn is_relaying(&self) -> bool {
        matches!(self, Self::Relayed(relayed) if relayed.is_relaying())
    }
}
