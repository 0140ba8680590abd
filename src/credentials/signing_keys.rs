//! The public keys that Entra ID signs tokens with. They are fetched at the start, twice a day, and when
//! a token names an unknown one. If they cannot be fetched, the old ones stay in use.
//!
//! <https://learn.microsoft.com/entra/identity-platform/signing-key-rollover>

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Method;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use log::{error, warn};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::loggable::loggable_word;
use crate::config::{ClientTokenConfig, Endpoint};
use crate::outbound::{OutboundClient, OutboundRequest};

/// How often the keys are fetched.
const REFRESH_INTERVAL: Duration = Duration::from_secs(12 * 3_600);
/// How long after a failed fetch the next one starts.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Tokens that name invented keys cannot cause fetches more often than this.
const MIN_ON_DEMAND_FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// The signing keys of one directory (tenant).
pub struct SigningKeys {
    authority_host: Endpoint,
    keys_url_path: String,
    outbound_client: Arc<OutboundClient>,
    current_snapshot: ArcSwap<SigningKeySnapshot>,
    /// When the last fetch began. The lock is held during a fetch, so that only one runs at a time.
    last_fetch_start: Mutex<Option<Instant>>,
    /// Whether the last fetch failed, which is logged once.
    is_failing: AtomicBool,
}

/// The keys as one fetch returned them, by their id (`kid`).
#[derive(Default)]
pub struct SigningKeySnapshot {
    keys_by_id: HashMap<String, DecodingKey>,
}

impl SigningKeySnapshot {
    /// The key with this id.
    pub fn key_by_id(&self, id: &str) -> Option<&DecodingKey> {
        self.keys_by_id.get(id)
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys").field("authority", &self.authority_host).finish_non_exhaustive()
    }
}

impl SigningKeys {
    pub(super) fn new(tokens: &ClientTokenConfig, outbound_client: Arc<OutboundClient>) -> Self {
        Self {
            authority_host: tokens.authority_host.clone(),
            keys_url_path: format!("/{}/discovery/v2.0/keys", tokens.tenant_id),
            outbound_client,
            current_snapshot: ArcSwap::default(),
            last_fetch_start: Mutex::const_new(None),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Keys that are never fetched.
    #[cfg(test)]
    pub(crate) fn for_test(tokens: &ClientTokenConfig) -> Self {
        Self::new(tokens, Arc::new(OutboundClient::new(Duration::ZERO)))
    }

    /// The keys of the last successful fetch; empty before it.
    pub fn current_snapshot(&self) -> Arc<SigningKeySnapshot> {
        self.current_snapshot.load_full()
    }

    /// Fetches the keys, unless a fetch began less than `MIN_ON_DEMAND_FETCH_INTERVAL` ago. During a fetch, callers
    /// wait for its end.
    pub async fn refresh_unless_recent(&self) {
        let mut last_start = self.last_fetch_start.lock().await;
        if last_start.is_none_or(|start| start.elapsed() >= MIN_ON_DEMAND_FETCH_INTERVAL) {
            *last_start = Some(Instant::now());
            let _ = self.fetch_and_store().await;
        }
    }

    /// Fetches the keys. The first of several failures is logged, and their end.
    async fn fetch_and_store(&self) -> Result<(), String> {
        let result = self.try_fetch_and_store().await;
        let has_failed = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !has_failed => {
                let has_keys = !self.current_snapshot().keys_by_id.is_empty();
                let until_then = if has_keys { "the old ones stay in use" } else { "tokens are refused" };
                error!("cannot fetch the signing keys of Entra ID; {until_then}: {error}");
            }
            Ok(()) if has_failed => warn!("fetched the signing keys of Entra ID again"),
            _ => {}
        }
        result
    }

    async fn try_fetch_and_store(&self) -> Result<(), String> {
        let request = OutboundRequest {
            method: Method::GET,
            path_and_query: &self.keys_url_path,
            headers: &[("accept", "application/json")],
            body: Bytes::new(),
        };
        let response = self
            .outbound_client
            .send(&self.authority_host, request)
            .await
            .map_err(|error| error.to_string())?;
        let host = &self.authority_host.host;
        if response.status != 200 {
            return Err(format!("{host} responded with {}; is the tenant correct?", response.status));
        }
        let set: JwkSet = serde_json::from_slice(&response.body)
            .map_err(|_| format!("the response of {host} is not a set of keys"))?;
        let by_id: HashMap<_, _> = set.keys.iter().filter_map(rsa_signing_key).collect();
        if by_id.is_empty() {
            return Err(format!("the response of {host} contains no RSA key"));
        }
        self.current_snapshot.store(Arc::new(SigningKeySnapshot { keys_by_id: by_id }));
        Ok(())
    }
}

/// Fetches the keys at an interval until the last user drops them.
pub(super) async fn refresh_until_dropped(signing_keys: Weak<SigningKeys>) {
    loop {
        let Some(keys) = signing_keys.upgrade() else { return };
        let mut last_start = keys.last_fetch_start.lock().await;
        *last_start = Some(Instant::now());
        let result = keys.fetch_and_store().await;
        // Not held while sleeping: the task ends once all others have dropped the keys.
        drop(last_start);
        drop(keys);
        let interval = if result.is_err() { RETRY_INTERVAL } else { REFRESH_INTERVAL };
        // Jitter, so that many balancers do not fetch at the same time.
        sleep(interval.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// The id and key of an entry; `None` if it is not an RSA key for signatures.
fn rsa_signing_key(jwk: &Jwk) -> Option<(String, DecodingKey)> {
    let is_for_signatures =
        jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let AlgorithmParameters::RSA(_) = &jwk.algorithm else { return None };
    let id = loggable_word(jwk.common.key_id.as_deref()?);
    DecodingKey::from_jwk(jwk).ok().filter(|_| is_for_signatures).map(|key| (id, key))
}
