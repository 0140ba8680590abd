//! `balance: prompt_cache`: requests that can use the same prompt cache go to the same backend.
//!
//! A request has a key (`key.rs`), and each key has an order of backends (`rendezvous.rs`), which is the same on every
//! instance and after every restart. A request goes to the first backend of the order that is available and does not
//! hold much more than its share of the tokens in flight (`load.rs`). A key that is asked very often (`hot_keys.rs`) is
//! spread over several backends (`spread.rs`). Where a request did not go to the first backend of its key, the record says why (`moves.rs`).

mod hot_keys;
mod key;
mod load;
mod member;
mod moves;
mod rendezvous;
mod spread;

pub use self::hot_keys::{HotKeys, KeyRate};
pub use self::key::{KeyHasher, KeySource};
pub(super) use self::load::choose_member;
pub use self::load::{LoadTicket, TokenLoad};
pub(super) use self::member::LoadedMember;
pub use self::moves::MoveReason;
pub(super) use self::rendezvous::RankedBackend;
pub use self::spread::spread_key;
use crate::names::{CacheKey, KeySpread, RoutedKey};

/// A shorter prompt takes turns: Azure caches prompts from 1,024 tokens on, which are about 4 KiB of text
/// (<https://learn.microsoft.com/azure/ai-foundry/openai/how-to/prompt-caching>).
pub const MIN_PROMPT_BYTES: usize = 4096;

/// How a request is routed by its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptRoute {
    /// The key of the prompt.
    pub key: CacheKey,
    /// How the key is spread; `None` unless it is asked very often.
    pub spread: Option<KeySpread>,
    /// Where the key is from.
    pub source: KeySource,
    /// About how many tokens the request takes at its backend.
    pub tokens: u64,
}

impl PromptRoute {
    /// By what the request is routed.
    pub fn routed_key(&self) -> RoutedKey {
        RoutedKey { key: self.key, spread: self.spread }
    }
}
