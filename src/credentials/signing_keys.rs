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

use super::token_response::word;
use crate::config::{ClientTokens, Endpoint};
use crate::outbound::{Call, Outbound};

/// How often keys are fetched.
const REFRESH: Duration = Duration::from_secs(12 * 3_600);
/// How long after a failure.
const RETRY: Duration = Duration::from_secs(30);
/// Tokens with made-up keys do not make us ask more often than this.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// The keys of one directory.
pub struct Signers {
    authority: Endpoint,
    target: String,
    outbound: Arc<Outbound>,
    current: ArcSwap<Keys>,
    /// When they were last asked for; held while they are.
    asked: Mutex<Option<Instant>>,
}

/// Keys by their ids, as they were at a moment.
#[derive(Default)]
pub struct Keys {
    by_id: HashMap<String, DecodingKey>,
}

impl Keys {
    /// The key of this id.
    pub fn find(&self, id: &str) -> Option<&DecodingKey> {
        self.by_id.get(id)
    }
}

impl std::fmt::Debug for Signers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signers").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Signers {
    pub(super) fn new(tokens: &ClientTokens, outbound: Arc<Outbound>) -> Self {
        Self {
            authority: tokens.authority.clone(),
            target: format!("/{}/discovery/v2.0/keys", tokens.tenant),
            outbound,
            current: ArcSwap::default(),
            asked: Mutex::const_new(None),
        }
    }

    /// Those of nobody, which are never fetched.
    #[cfg(test)]
    pub(crate) fn for_test(tokens: &ClientTokens) -> Self {
        Self::new(tokens, Arc::new(Outbound::new(Duration::ZERO)))
    }

    /// The keys at hand.
    pub fn now(&self) -> Arc<Keys> {
        self.current.load_full()
    }

    /// Asks for them now, if that was not done just before. Who comes while they are asked for
    /// waits for the same answer.
    pub async fn refresh(&self) {
        let mut asked = self.asked.lock().await;
        if asked.is_none_or(|asked| asked.elapsed() >= AT_MOST_EVERY) {
            *asked = Some(Instant::now());
            if let Err(problem) = self.fetch().await {
                warn!("the signing keys of Entra ID cannot be fetched: {problem}");
            }
        }
    }

    async fn fetch(&self) -> Result<(), String> {
        let call = Call {
            method: Method::GET,
            target: &self.target,
            headers: &[("accept", "application/json")],
            body: Bytes::new(),
        };
        let answer =
            self.outbound.call(&self.authority, call).await.map_err(|problem| problem.to_string())?;
        let host = &self.authority.host;
        if answer.status != 200 {
            return Err(format!("{host} answered {}; is the tenant right?", answer.status));
        }
        let set: JwkSet = serde_json::from_slice(&answer.body)
            .map_err(|_| format!("what {host} answered is no set of keys"))?;
        let by_id: HashMap<_, _> = set.keys.iter().filter_map(usable).collect();
        if by_id.is_empty() {
            return Err(format!("what {host} answered has no RSA key"));
        }
        self.current.store(Arc::new(Keys { by_id }));
        Ok(())
    }
}

/// Keeps them fresh for as long as somebody holds them.
pub(super) async fn keep(signers: Weak<Signers>) {
    let mut failed = false;
    loop {
        let Some(held) = signers.upgrade() else { return };
        let mut asked = held.asked.lock().await;
        *asked = Some(Instant::now());
        let fetched = held.fetch().await;
        drop(asked);
        drop(held);
        match &fetched {
            Err(problem) if !failed => {
                error!("the signing keys of Entra ID cannot be fetched, the last ones stay: {problem}");
            }
            Ok(()) if failed => info!("the signing keys of Entra ID are fetched again"),
            _ => {}
        }
        failed = fetched.is_err();
        let pause = if failed { RETRY } else { REFRESH };
        sleep(pause.mul_f64(0.9 + fastrand::f64() / 5.0)).await;
    }
}

/// An RSA key for signatures, and its id.
fn usable(jwk: &Jwk) -> Option<(String, DecodingKey)> {
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let AlgorithmParameters::RSA(_) = &jwk.algorithm else { return None };
    let id = word(jwk.common.key_id.as_deref()?);
    DecodingKey::from_jwk(jwk).ok().filter(|_| signs).map(|key| (id, key))
}
