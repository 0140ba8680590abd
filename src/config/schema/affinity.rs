//! `affinity`: how requests find the resource that has what they refer to.

use std::time::Duration;

/// How requests find the resource that has what they refer to: stored responses, files and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityConfig {
    /// How many further resources are asked for an id whose resource is not known.
    pub ask_limit: AskLimit,
    /// The memory for ids and their resources, in bytes.
    pub memory_bytes: u64,
    /// How long Azure may take until a response that it has streamed can be read.
    pub read_lag: Duration,
    /// What happens to a request whose resource is throttled.
    pub unavailable_policy: UnavailableHomePolicy,
    /// Whether a client may refer to what another client made.
    pub owner_policy: OwnerPolicy,
}

/// How many further resources are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskLimit {
    /// Every one that can serve the request.
    All,
    /// At most so many.
    AtMost(u32),
}

/// What happens to a request whose resource is throttled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableHomePolicy {
    /// It waits for the end of the cooldown, if that is before its deadline.
    Wait,
    /// It is refused.
    Refuse,
}

/// Whether a client may refer to what another client made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerPolicy {
    /// It may.
    Off,
    /// Such an id does not exist for it.
    Enforce,
}
