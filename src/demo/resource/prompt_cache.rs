//! The prompt cache of a resource: which beginnings of prompts its deployments have seen lately.
//!
//! As on Azure, tokens are cached from 1 024 tokens on, in blocks of 128, until they have not been used for a while (5 to
//! 10 minutes there; here always 10). Requests that begin with the same 256 tokens and have the same `prompt_cache_key`
//! go to the same machine, but only 15 of them in a minute: the next ones go to further machines, each with a cache of its
//! own, which is cold at first. A token is taken as three quarters of a word.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::demo::util::hash::fnv1a_hash;

const TOKENS_PER_BLOCK: u64 = 128;
/// Words that make up one block.
const WORDS_PER_BLOCK: usize = 96;
/// Blocks below which nothing counts as cached: 1 024 tokens.
const MIN_CACHED_BLOCKS: usize = 8;
/// Blocks at the beginning of a prompt that decide, with the cache key, which machine gets it.
const BLOCKS_THAT_ROUTE: usize = 2;
/// Requests with the same beginning and key that one machine gets in a minute.
const REQUESTS_PER_MACHINE: u64 = 15;
const MINUTE: Duration = Duration::from_secs(60);
/// Blocks of one prompt that are looked at.
const MAX_BLOCKS_PER_PROMPT: usize = 4096;
/// How long a prefix stays cached without being used.
const CACHED_PREFIX_TTL: Duration = Duration::from_secs(600);
const MAX_CACHED_PREFIXES: usize = 200_000;
const MAX_ROUTES: usize = 50_000;

/// What the prompt cache has of a prompt, and what it has newly stored of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CachedPrompt {
    /// The tokens at its beginning that were cached.
    pub cached_tokens: u64,
    /// The tokens that were written; `None` if the deployment does not bill them.
    pub billed_write_tokens: Option<u64>,
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
pub struct PromptCache {
    last_use_by_prefix_hash: HashMap<u64, Instant>,
    /// By the hash of what decides about the machine.
    routes: HashMap<u64, Route>,
}

/// The requests of this minute with the same beginning and key. The minute begins with the first of them.
#[derive(Debug)]
struct Route {
    minute_began_at: Instant,
    requests: u64,
}

impl PromptCache {
    /// Returns what is cached of a prompt, then caches the whole prompt.
    ///
    /// `cache_key` is the `prompt_cache_key` of the request. No later call may pass an earlier `now`.
    pub fn look_up_and_insert(
        &mut self,
        deployment: &str,
        cache_key: &str,
        prompt: &str,
        now: Instant,
    ) -> CachedPrompt {
        let mut prefix_hashes = prefix_hashes(deployment, cache_key, prompt);
        if prefix_hashes.len() < MIN_CACHED_BLOCKS {
            return CachedPrompt { cached_tokens: 0, billed_write_tokens: Some(0) };
        }
        self.evict_if_too_many(now);
        let route = prefix_hashes.get(BLOCKS_THAT_ROUTE - 1).copied().unwrap_or_default();
        let machine = self.next_machine(route, now);
        for hash in &mut prefix_hashes {
            *hash = fnv1a_hash(*hash, &machine.to_le_bytes());
        }
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

    /// The number of the machine that gets the next request of a route.
    fn next_machine(&mut self, route: u64, now: Instant) -> u64 {
        let route = self.routes.entry(route).or_insert(Route { minute_began_at: now, requests: 0 });
        if now.saturating_duration_since(route.minute_began_at) >= MINUTE {
            *route = Route { minute_began_at: now, requests: 0 };
        }
        let machine = route.requests / REQUESTS_PER_MACHINE;
        route.requests += 1;
        machine
    }

    /// Keeps the numbers of prefixes and routes bounded.
    fn evict_if_too_many(&mut self, now: Instant) {
        if self.last_use_by_prefix_hash.len() > MAX_CACHED_PREFIXES {
            self.last_use_by_prefix_hash.retain(|_, used| is_fresh(*used, now));
            if self.last_use_by_prefix_hash.len() > MAX_CACHED_PREFIXES {
                self.last_use_by_prefix_hash.clear();
            }
        }
        if self.routes.len() > MAX_ROUTES {
            self.routes.retain(|_, route| now.saturating_duration_since(route.minute_began_at) < MINUTE);
            if self.routes.len() > MAX_ROUTES {
                self.routes.clear();
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

    const S: Duration = Duration::from_secs(1);

    /// So many words, all of them after the first 200 with this suffix.
    fn prompt(words: usize, suffix: &str) -> String {
        (0..words).map(|index| format!("w{index}{} ", if index < 200 { "" } else { suffix })).collect()
    }

    #[test]
    fn prompts_are_cached_from_1024_tokens_on_in_blocks_of_128() {
        let mut cache = PromptCache::default();
        let start = Instant::now();
        for (at, deployment, cache_key, words, suffix, (cached_tokens, written), description) in [
            (0, "d", "", 700, "", (0, 0), "too short"),
            (0, "d", "", 767, "", (0, 0), "one word less than 1,024 tokens"),
            (0, "d", "", 800, "", (0, 1024), "first time"),
            (0, "d", "", 800, "", (1024, 0), "again"),
            (0, "d", "", 1000, "", (1024, 256), "longer, with the same beginning"),
            (0, "d", "", 1000, "", (1280, 0), "the longer one again"),
            (0, "d", "", 1000, "x", (0, 1280), "the same 256 tokens at the beginning are too few"),
            (0, "e", "", 1000, "", (0, 1280), "another deployment"),
            (0, "d", "k", 1000, "", (0, 1280), "another cache key"),
            (599, "d", "", 800, "", (1024, 0), "used within ten minutes"),
            (1198, "d", "", 1000, "", (1024, 256), "only the part that was used is kept"),
            (1798, "d", "", 800, "", (0, 1024), "not used for ten minutes"),
        ] {
            let found =
                cache.look_up_and_insert(deployment, cache_key, &prompt(words, suffix), start + at * S);
            let expected = CachedPrompt { cached_tokens, billed_write_tokens: Some(written) };
            assert_eq!(found, expected, "{description}");
        }
    }

    #[test]
    fn more_than_15_requests_of_a_minute_overflow_to_cold_machines() {
        let mut cache = PromptCache::default();
        let start = Instant::now();
        // For each request its second, key and suffix, and whether it is found in the cache.
        let mut steps = vec![(0, "", "", false)];
        steps.extend([(1, "", "", true); 14]);
        // The 16th goes to the second machine, which is warm from then on.
        steps.push((2, "", "", false));
        steps.extend([(3, "", "", true); 13]);
        // The same beginning counts, whatever follows; another key counts by itself.
        steps.push((4, "", "other", false));
        steps.push((5, "key", "", false));
        steps.push((5, "", "", false));
        // The next minute begins with the first machine.
        steps.extend([(60, "", "", true); 15]);
        steps.push((61, "", "", true));
        for (number, (at, cache_key, suffix, is_found)) in steps.into_iter().enumerate() {
            let found = cache.look_up_and_insert("d", cache_key, &prompt(800, suffix), start + at * S);
            let cached_tokens = if is_found { 1024 } else { 0 };
            let expected = CachedPrompt { cached_tokens, billed_write_tokens: Some(1024 - cached_tokens) };
            assert_eq!(found, expected, "request {number} at {at} s");
        }
    }
}
