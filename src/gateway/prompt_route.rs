//! The key by which a request is routed by its prompt (`balance: prompt_cache`).

use std::time::Instant;

use http::{HeaderMap, HeaderName, Method};

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::limits::demand_of;
use super::requested_call::ParsedBody;
use crate::azure::Operation;
use crate::azure::request::embedded_data::{MIN_DATA_BYTES, bytes_without_embedded_data};
use crate::azure::request::json_body::BodyFacts;
use crate::config::BalancePolicy;
use crate::names::{CacheKey, DeploymentName};
use crate::routing::prompt_cache::{KeyHasher, KeySource, MIN_PROMPT_BYTES, PromptRoute, spread_key};

/// The headers in which clients name the session of a request, the first one that is set counts.
pub const SESSION_HEADERS: [&str; 4] =
    ["x-session-id", "session_id", "x-claude-code-session-id", "x-session-affinity"];

static SESSION_HEADER_NAMES: [HeaderName; SESSION_HEADERS.len()] = {
    let [session_id, plain_session_id, claude_code, affinity] = SESSION_HEADERS;
    [
        HeaderName::from_static(session_id),
        HeaderName::from_static(plain_session_id),
        HeaderName::from_static(claude_code),
        HeaderName::from_static(affinity),
    ]
};

impl Gateway {
    /// How an admitted request is routed by its prompt, and counts it as a request of its key. `None` if its deployment is
    /// balanced in another way, if no model reads a prompt, or if the prompt is too short for a cache. `body` and `headers`
    /// are those of the request; of a turn of a Responses socket, the headers of its handshake.
    pub fn prompt_route(
        &self,
        admitted: &AdmittedRequest,
        headers: &HeaderMap,
        body: &[u8],
        now: Instant,
    ) -> Option<PromptRoute> {
        if admitted.pool.balance_policy() != BalancePolicy::PromptCache {
            return None;
        }
        let (Some(deployment), ParsedBody::Json(facts)) = (&admitted.deployment, &admitted.parsed_body)
        else {
            return None;
        };
        let reads_prompt = matches!(
            admitted.target.operation,
            Operation::Chat | Operation::Completions | Operation::Responses
        );
        if !reads_prompt || !facts.has_prompt_text(body, MIN_PROMPT_BYTES) {
            return None;
        }
        let key_of_opening = || {
            let mut hasher = key_hasher(admitted, deployment, KeySource::Prefix);
            facts.visit_opening(body, &mut |text| hasher.write(text));
            hasher.finish()
        };
        let (key, source) = match sent_key(admitted, deployment, facts, headers, body) {
            Some(sent) => sent,
            None => (key_of_opening(), KeySource::Prefix),
        };
        let keys = &self.process_state.hot_keys;
        let rate = keys.count(key, now);
        let spread = match rate.backends() {
            1 => None,
            // Each backend would write the cache again, and be billed for it.
            _ if self.process_state.recorder.metrics().prompt_tokens.bills_cache_writes(deployment) => None,
            _ if source == KeySource::Prefix => spread_key(rate, key, rate),
            _ => {
                let conversation = key_of_opening();
                spread_key(rate, conversation, keys.count(conversation, now))
            }
        };
        Some(PromptRoute { key, spread, source, tokens: estimated_tokens(admitted, body) })
    }

    /// How a request with this `prompt_cache_key` is routed if its prompt is long enough for a cache: for `explain`.
    pub fn prompt_route_of_key(&self, admitted: &AdmittedRequest, key: &str) -> Option<PromptRoute> {
        let deployment = admitted.deployment.as_ref()?;
        let mut hasher = key_hasher(admitted, deployment, KeySource::PromptCacheKey);
        hasher.write(key.as_bytes());
        let (key, source) = (hasher.finish(), KeySource::PromptCacheKey);
        let is_by_prompt = admitted.pool.balance_policy() == BalancePolicy::PromptCache;
        is_by_prompt.then_some(PromptRoute { key, spread: None, source, tokens: 0 })
    }
}

/// The key that the client sends with a request: in the body, or else in a header.
fn sent_key(
    admitted: &AdmittedRequest,
    deployment: &DeploymentName,
    facts: &BodyFacts,
    headers: &HeaderMap,
    body: &[u8],
) -> Option<(CacheKey, KeySource)> {
    let hash = |bytes: &[u8], source| {
        let mut hasher = key_hasher(admitted, deployment, source);
        hasher.write(bytes);
        (hasher.finish(), source)
    };
    if let Some(key) = facts.prompt_cache_key(body) {
        return Some(hash(key.as_bytes(), KeySource::PromptCacheKey));
    }
    let mut sessions = SESSION_HEADER_NAMES.iter().filter_map(|name| headers.get(name));
    let session = sessions.find(|value| !value.as_bytes().trim_ascii().is_empty())?;
    Some(hash(session.as_bytes().trim_ascii(), KeySource::Session))
}

fn key_hasher(admitted: &AdmittedRequest, deployment: &DeploymentName, source: KeySource) -> KeyHasher {
    KeyHasher::new(admitted.client_name.as_ref(), deployment, source)
}

/// About how many tokens a request takes at its backend.
fn estimated_tokens(admitted: &AdmittedRequest, body: &[u8]) -> u64 {
    // Images and files have fewer tokens than text of that length.
    let bytes =
        if body.len() >= MIN_DATA_BYTES { bytes_without_embedded_data(body) } else { body.len() as u64 };
    demand_of(admitted, &Method::POST, bytes).tokens_of_unknown_client()
}
