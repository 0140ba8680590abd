//! The keys that Entra ID signs tokens with: fetched before anybody asks, twice a day, and when a
//! token names one that is not known. While they cannot be fetched the last ones stay.
//!
//! <https://learn.microsoft.com/entra/identity-platform/signing-key-rollover>

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Method;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use log::{error, info, warn};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::loggable::loggable_word;
use crate::config::{ClientTokenConfig, Endpoint};
use crate::outbound::{OutboundClient, OutboundRequest};

/// How often keys are fetched.
const REFRESH_INTERVAL: Duration = Duration::from_secs(12 * 3_600);
/// How long after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Tokens with made-up keys do not make us ask more often than this.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// The keys of one directory.
pub struct SigningKeys {
    authority: Endpoint,
    keys_path: String,
    client: Arc<OutboundClient>,
    current: ArcSwap<SigningKeySnapshot>,
    /// When they were last asked for; held while they are.
    last_fetch_start: Mutex<Option<Instant>>,
}

/// Keys by their ids, as they were at a moment.
#[derive(Default)]
pub struct SigningKeySnapshot {
    by_id: HashMap<String, DecodingKey>,
}

impl SigningKeySnapshot {
    /// The key of this id.
    pub fn key_by_id(&self, id: &str) -> Option<&DecodingKey> {
        self.by_id.get(id)
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl SigningKeys {
    pub(super) fn new(tokens: &ClientTokenConfig, client: Arc<OutboundClient>) -> Self {
        Self {
            authority: tokens.authority_host.clone(),
            keys_path: format!("/{}/discovery/v2.0/keys", tokens.tenant_id),
            client,
            current: ArcSwap::default(),
            last_fetch_start: Mutex::const_new(None),
        }
    }

    /// Those of nobody, which are never fetched.
    #[cfg(test)]
    pub(crate) fn for_test(tokens: &ClientTokenConfig) -> Self {
        Self::new(tokens, Arc::new(OutboundClient::new(Duration::ZERO)))
    }

    /// The keys at hand.
    pub fn current(&self) -> Arc<SigningKeySnapshot> {
        self.current.load_full()
    }

    /// Asks for them now, if that was not done just before. Who comes while they are asked for
    /// waits for the same answer.
    pub async fn refresh_unless_recent(&self) {
        let mut last_start = self.last_fetch_start.lock().await;
        if last_start.is_none_or(|start| start.elapsed() >= MIN_FETCH_INTERVAL) {
            *last_start = Some(Instant::now());
            if let Err(error) = self.fetch().await {
                warn!("the signing keys of Entra ID cannot be fetched: {error}");
            }
        }
    }

    async fn fetch(&self) -> Result<(), String> {
        let request = OutboundRequest {
            method: Method::GET,
            path_and_query: &self.keys_path,
            headers: &[("accept", "application/json")],
            body: Bytes::new(),
        };
        let response = self.client.send(&self.authority, request).await.map_err(|error| error.to_string())?;
        let host = &self.authority.host;
        if response.status != 200 {
            return Err(format!("{host} answered {}; is the tenant right?", response.status));
        }
        let set: JwkSet = serde_json::from_slice(&response.body)
            .map_err(|_| format!("what {host} answered is no set of keys"))?;
        let by_id: HashMap<_, _> = set.keys.iter().filter_map(rsa_signing_key).collect();
        if by_id.is_empty() {
            return Err(format!("what {host} answered has no RSA key"));
        }
        self.current.store(Arc::new(SigningKeySnapshot { by_id }));
        Ok(())
    }
}

/// Keeps them fresh for as long as somebody holds them.
pub(super) async fn refresh_until_dropped(signing_keys: Weak<SigningKeys>) {
    let mut has_failed = false;
    loop {
        let Some(keys) = signing_keys.upgrade() else { return };
        let mut last_start = keys.last_fetch_start.lock().await;
        *last_start = Some(Instant::now());
        let result = keys.fetch().await;
        drop(last_start);
        drop(keys);
        match &result {
            Err(error) if !has_failed => {
                error!("the signing keys of Entra ID cannot be fetched, the last ones stay: {error}");
            }
            Ok(()) if has_failed => info!("the signing keys of Entra ID are fetched again"),
            _ => {}
        }
        has_failed = result.is_err();
        let interval = if has_failed { RETRY_INTERVAL } else { REFRESH_INTERVAL };
        sleep(interval.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// An RSA key for signatures, and its id.
fn rsa_signing_key(jwk: &Jwk) -> Option<(String, DecodingKey)> {
    let is_for_signatures =
        jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let AlgorithmParameters::RSA(_) = &jwk.algorithm else { return None };
    let id = loggable_word(jwk.common.key_id.as_deref()?);
    DecodingKey::from_jwk(jwk).ok().filter(|_| is_for_signatures).map(|key| (id, key))
}
