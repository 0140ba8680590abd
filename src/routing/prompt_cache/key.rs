//! The keys of prompts.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::Xxh3;

use crate::names::{CacheKey, ClientName, DeploymentName};

/// The same on every instance, so that all choose alike. It is no secret: a record shows only the hash, and a client
/// that looks for collisions finds them among its own keys.
const HASH_KEY: [u8; 16] = *b"aoai-lb caches 1";
/// The same for the hashes of prompts.
const HASH_SEED: u64 = u64::from_le_bytes(*b"caches 2");

/// Where the key of a prompt is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `prompt_cache_key` in the body.
    PromptCacheKey,
    /// A header that names the session.
    Session,
    /// What the prompt opens with.
    Prefix,
}

impl KeySource {
    /// Its name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PromptCacheKey => "prompt_cache_key",
            Self::Session => "session",
            Self::Prefix => "prefix",
        }
    }
}

/// Makes the key of a prompt from what it is given. Keys of different clients, deployments or sources are different.
pub struct KeyHasher(Xxh3);

impl KeyHasher {
    /// A hasher for the keys of a client and a deployment.
    pub fn new(client: Option<&ClientName>, deployment: &DeploymentName, source: KeySource) -> Self {
        let mut hasher = Xxh3::with_seed(HASH_SEED);
        let client = client.map_or("", |client| client.as_str());
        hasher.write(&(client.len() as u64).to_le_bytes());
        hasher.write(client.as_bytes());
        // Without regard to case, as names are compared.
        std::hash::Hash::hash(deployment, &mut hasher);
        hasher.write(&[source as u8]);
        Self(hasher)
    }

    /// Adds a part of what the key is made from.
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The key.
    pub fn finish(&self) -> CacheKey {
        CacheKey::from_hash(self.0.finish())
    }
}

/// The hash of a name.
pub(super) fn hash_name(name: &str) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&HASH_KEY);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// Mixes two hashes into one, of which every bit depends on all of theirs (the finalizer of MurmurHash3, twice).
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let finalize = |mut hash: u64| {
        hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ hash >> 33
    };
    finalize(finalize(a).wrapping_add(b).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: Option<&str>, deployment: &str, source: KeySource, text: &str) -> CacheKey {
        let client = client.map(ClientName::new);
        let deployment = DeploymentName::parse(deployment).unwrap();
        let mut hasher = KeyHasher::new(client.as_ref(), &deployment, source);
        hasher.write(text.as_bytes());
        hasher.finish()
    }

    #[test]
    fn keys_are_those_of_one_client_deployment_and_source() {
        use KeySource::{Prefix, PromptCacheKey, Session};
        let all = [
            key(Some("a"), "gpt-4o", Prefix, "x"),
            key(Some("b"), "gpt-4o", Prefix, "x"),
            key(None, "gpt-4o", Prefix, "x"),
            key(Some("a"), "o3", Prefix, "x"),
            key(Some("a"), "gpt-4o", Session, "x"),
            key(Some("a"), "gpt-4o", PromptCacheKey, "x"),
            key(Some("a"), "gpt-4o", Prefix, "y"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one), "{index}");
        }
        assert_eq!(all[0], key(Some("a"), "GPT-4O", Prefix, "x"));
        // Records have it, and other instances make the same one.
        assert_eq!(all[0].to_string(), "44d711a2e83b97de");
        let long = "x".repeat(10_000);
        let mut pieces =
            KeyHasher::new(Some(&ClientName::new("a")), &DeploymentName::parse("gpt-4o").unwrap(), Prefix);
        for piece in long.as_bytes().chunks(7) {
            pieces.write(piece);
        }
        assert_eq!(pieces.finish(), key(Some("a"), "gpt-4o", Prefix, &long));
    }
}
