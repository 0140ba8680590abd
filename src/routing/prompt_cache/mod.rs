//! `balance: prompt_cache`: requests that can use the same prompt cache go to the same backend.
//!
//! A request has a key (`key.rs`), and each key has an order of backends (`rendezvous.rs`), which is the same on every
//! instance and after every restart. A request goes to the first backend of the order that is available and does not
//! hold much more than its share of the tokens in flight (`load.rs`). A key that is asked very often is spread
//! (`hot_keys.rs`). Where a request did not go to the first backend of its key, the record says why (`moves.rs`).

mod hot_keys;
mod key;
mod load;
mod moves;
mod rendezvous;

pub use self::hot_keys::{HotKeys, KeyRate, spread_key};
pub use self::key::{KeyHasher, KeySource};
pub use self::load::{LoadTicket, TokenLoad};
pub(super) use self::load::{LoadedMember, choose_member};
pub use self::moves::MoveReason;
pub(super) use self::rendezvous::RankedBackend;
use crate::names::CacheKey;

/// A shorter prompt takes turns: Azure caches prompts from 1,024 tokens on, which are about 4 KiB of text
/// (<https://learn.microsoft.com/azure/ai-foundry/openai/how-to/prompt-caching>).
pub const MIN_PROMPT_BYTES: usize = 4096;

/// How a request is routed by its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptRoute {
    /// The key of the prompt.
    pub key: CacheKey,
    /// The key that the order of backends is made from: `key`, or one of those that it is spread over.
    pub routed_key: CacheKey,
    /// Where the key is from.
    pub source: KeySource,
    /// About how many tokens the request takes at its backend.
    pub tokens: u64,
}
