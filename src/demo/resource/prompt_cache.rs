//! The prompt cache of a resource: which beginnings of prompts its deployments have seen lately.
//!
//! As on Azure, tokens are cached from 1 024 tokens on, in blocks of 128. A token is taken as three quarters
//! of a word.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::demo::util::hash::fnv1a_hash;

const TOKENS_PER_BLOCK: u64 = 128;
/// Words that make up one block.
const WORDS_PER_BLOCK: usize = 96;
/// Blocks below which nothing counts as cached: 1 024 tokens.
const MIN_CACHED_BLOCKS: usize = 8;
/// Blocks of one prompt that are looked at.
const MAX_BLOCKS_PER_PROMPT: usize = 4096;
/// How long a prefix stays cached without being used.
const CACHED_PREFIX_TTL: Duration = Duration::from_secs(600);
const MAX_CACHED_PREFIXES: usize = 200_000;

/// What the prompt cache has of a prompt, and what it has newly stored of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::demo) struct CachedPrompt {
    pub(in crate::demo) cached_tokens: u64,
    /// The tokens that were written; `None` if the deployment does not bill them.
    pub(in crate::demo) billed_write_tokens: Option<u64>,
}

impl CachedPrompt {
    /// For a deployment that does not bill what is written.
    pub(in crate::demo) fn without_billed_writes(self) -> Self {
        Self { billed_write_tokens: None, ..self }
    }

    /// As parts of so many input tokens.
    pub(in crate::demo) fn within(self, input_tokens: u64) -> Self {
        let cached_tokens = self.cached_tokens.min(input_tokens);
        let billed_write_tokens =
            self.billed_write_tokens.map(|tokens| tokens.min(input_tokens - cached_tokens));
        Self { cached_tokens, billed_write_tokens }
    }
}

/// The hashes of all cached prefixes, and when each was last used.
#[derive(Debug, Default)]
pub(in crate::demo) struct PromptCache {
    last_use_by_prefix_hash: HashMap<u64, Instant>,
}

impl PromptCache {
    /// Returns what is cached of a prompt, then caches the whole prompt.
    ///
    /// `cache_key` is the `prompt_cache_key` of the request.
    pub(in crate::demo) fn look_up_and_insert(
        &mut self,
        deployment: &str,
        cache_key: &str,
        prompt: &str,
        now: Instant,
    ) -> CachedPrompt {
        let prefix_hashes = prefix_hashes(deployment, cache_key, prompt);
        if prefix_hashes.len() < MIN_CACHED_BLOCKS {
            return CachedPrompt { cached_tokens: 0, billed_write_tokens: Some(0) };
        }
        self.evict_prefixes_if_too_many(now);
        let is_cached =
            |hash: &u64| self.last_use_by_prefix_hash.get(hash).is_some_and(|used| is_fresh(*used, now));
        let cached_blocks = prefix_hashes.iter().take_while(|hash| is_cached(hash)).count();
        self.last_use_by_prefix_hash.extend(prefix_hashes.iter().map(|hash| (*hash, now)));
        let cached_blocks = if cached_blocks < MIN_CACHED_BLOCKS { 0 } else { cached_blocks };
        CachedPrompt {
            cached_tokens: cached_blocks as u64 * TOKENS_PER_BLOCK,
            billed_write_tokens: Some((prefix_hashes.len() - cached_blocks) as u64 * TOKENS_PER_BLOCK),
        }
    }

    /// Keeps the number of prefixes bounded.
    fn evict_prefixes_if_too_many(&mut self, now: Instant) {
        if self.last_use_by_prefix_hash.len() > MAX_CACHED_PREFIXES {
            self.last_use_by_prefix_hash.retain(|_, used| is_fresh(*used, now));
            if self.last_use_by_prefix_hash.len() > MAX_CACHED_PREFIXES {
                self.last_use_by_prefix_hash.clear();
            }
        }
    }
}

/// For each whole block, the hash of the prompt up to its end.
fn prefix_hashes(deployment: &str, cache_key: &str, prompt: &str) -> Vec<u64> {
    let mut hash = fnv1a_hash(fnv1a_hash(0, deployment.as_bytes()), cache_key.as_bytes());
    let mut hashes = Vec::new();
    for (index, word) in prompt.split_ascii_whitespace().enumerate() {
        hash = fnv1a_hash(hash, word.as_bytes());
        if (index + 1) % WORDS_PER_BLOCK == 0 {
            hashes.push(hash);
            if hashes.len() == MAX_BLOCKS_PER_PROMPT {
                break;
            }
        }
    }
    hashes
}

fn is_fresh(last_use: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last_use) < CACHED_PREFIX_TTL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_cached_from_1024_tokens_on_in_blocks_of_128() {
        let mut cache = PromptCache::default();
        let now = Instant::now();
        let prompt = |words: usize| (0..words).map(|index| format!("w{index} ")).collect::<String>();
        let cases = [
            ("d", "", 700, (0, 0), "too short"),
            ("d", "", 800, (0, 1024), "first time"),
            ("d", "", 800, (1024, 0), "again"),
            ("d", "", 1000, (1024, 256), "longer, with the same beginning"),
            ("d", "", 1000, (1280, 0), "the longer one again"),
            ("e", "", 1000, (0, 1280), "another deployment"),
            ("d", "k", 1000, (0, 1280), "another cache key"),
        ];
        for (deployment, cache_key, words, (cached_tokens, written), description) in cases {
            let expected = CachedPrompt { cached_tokens, billed_write_tokens: Some(written) };
            let found = cache.look_up_and_insert(deployment, cache_key, &prompt(words), now);
            assert_eq!(found, expected, "{description}");
        }
        let later = now + CACHED_PREFIX_TTL;
        assert_eq!(cache.look_up_and_insert("d", "", &prompt(1000), later).cached_tokens, 0, "expired");
    }
}
