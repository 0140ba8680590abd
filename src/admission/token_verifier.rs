//! Tokens of Entra ID that clients show in place of a key: signature, issuer, audience and validity,
//! and whose they are.
//!
//! <https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-tokens>

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;

use super::client::Client;
use crate::config::{self, ClientTokenConfig};
use crate::credentials::jwt;
use crate::credentials::signing_keys::{SigningKeySnapshot, SigningKeys};

/// Most verified tokens that are remembered.
const MAX_CACHED_TOKENS: usize = 10_000;
/// The longest token that is looked at; those of Entra ID have a few KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

const UNSUPPORTED_TOKEN_MESSAGE: &str = "the bearer token is no JSON web token that is understood here";

/// Why a token admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// The key it names is not known, perhaps not yet.
    UnknownSigningKey,
    /// For this reason, which may be told.
    Refused(&'static str),
}

/// Whose tokens are believed, and which client shows them.
#[derive(Debug)]
pub struct TokenVerifier {
    validation_rules: Validation,
    leeway_seconds: u64,
    signing_keys: Arc<SigningKeys>,
    clients_by_app_id: HashMap<String, Arc<Client>>,
    clients_by_role: HashMap<String, Arc<Client>>,
    cache: RwLock<HashMap<[u8; 32], VerifiedToken>>,
}

/// A token that was looked at before.
#[derive(Debug)]
struct VerifiedToken {
    client: Arc<Client>,
    /// Seconds since 1970.
    expires_at: u64,
    /// What it was signed with may be withdrawn.
    verified_with: Weak<SigningKeySnapshot>,
}

/// What is read of a token whose signature is good. Version 1 names the application in `appid`,
/// version 2 in `azp`.
#[derive(Deserialize)]
struct TokenClaims {
    exp: u64,
    azp: Option<String>,
    appid: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

impl TokenVerifier {
    /// The tokens of this configuration; `clients` go with those of it, one by one.
    pub fn new(
        config: &ClientTokenConfig,
        signing_keys: Arc<SigningKeys>,
        clients: &[(&config::ClientConfig, Arc<Client>)],
    ) -> Self {
        // No other algorithm: neither `none` nor one that takes a public key for a secret.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&config.audiences);
        validation.set_issuer(&config.issuers);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss"]);
        let clients_by = |claim_values: fn(&config::ClientConfig) -> &Vec<String>| {
            let entries = clients.iter().flat_map(|(config, client)| {
                claim_values(config).iter().map(move |value| (value.clone(), Arc::clone(client)))
            });
            entries.collect()
        };
        Self {
            leeway_seconds: validation.leeway,
            validation_rules: validation,
            signing_keys,
            clients_by_app_id: clients_by(|client| &client.app_ids),
            clients_by_role: clients_by(|client| &client.app_roles),
            cache: RwLock::default(),
        }
    }

    /// Where its keys come from.
    pub fn signing_keys(&self) -> &Arc<SigningKeys> {
        &self.signing_keys
    }

    /// Whether it is a token at all, as far as one look tells: three parts, of which the first is
    /// an object in base64url.
    pub fn looks_like_token(text: &[u8]) -> bool {
        text.starts_with(b"eyJ")
            && text.len() <= MAX_TOKEN_BYTES
            && memchr::memchr_iter(b'.', text).count() == 2
    }

    /// Whose token this is; `digest` is its SHA-256.
    ///
    /// # Errors
    /// [`TokenError`] for one that admits nobody.
    pub fn client_for_token(&self, token: &[u8], digest: &[u8; 32]) -> Result<Arc<Client>, TokenError> {
        let keys = self.signing_keys.current();
        let now = jsonwebtoken::get_current_timestamp();
        {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(cached) = cache.get(digest)
                && now < cached.expires_at
                && std::ptr::eq(cached.verified_with.as_ptr(), Arc::as_ptr(&keys))
            {
                return Ok(Arc::clone(&cached.client));
            }
        }
        let claims = self.verified_claims(token, &keys)?;
        let client = self.client_for_claims(&claims)?;
        let expires_at = claims.exp.saturating_add(self.leeway_seconds);
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED_TOKENS {
            cache.retain(|_, cached| now < cached.expires_at);
            if cache.len() >= MAX_CACHED_TOKENS {
                cache.clear();
            }
        }
        let verified_with = Arc::downgrade(&keys);
        cache.insert(*digest, VerifiedToken { client: Arc::clone(&client), expires_at, verified_with });
        Ok(client)
    }

    fn verified_claims(&self, token: &[u8], keys: &SigningKeySnapshot) -> Result<TokenClaims, TokenError> {
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| TokenError::Refused(UNSUPPORTED_TOKEN_MESSAGE))?;
        if header.alg != Algorithm::RS256 {
            return Err(TokenError::Refused("the bearer token is not signed with RS256"));
        }
        if header.crit.is_some() {
            return Err(TokenError::Refused(
                "the bearer token has a critical header that is not understood here",
            ));
        }
        let key_id =
            header.kid.ok_or(TokenError::Refused("the bearer token does not name its key (`kid`)"))?;
        let key = keys.key_by_id(&key_id).ok_or(TokenError::UnknownSigningKey)?;
        let verified =
            jwt::verify_token::<TokenClaims>(token, key, &self.validation_rules).map_err(|error| {
                TokenError::Refused(match error.kind() {
                    ErrorKind::InvalidSignature => "the signature of the bearer token is wrong",
                    ErrorKind::ExpiredSignature => "the bearer token has expired",
                    ErrorKind::ImmatureSignature => "the bearer token is not valid yet",
                    ErrorKind::InvalidAudience => "the bearer token is for another audience",
                    ErrorKind::InvalidIssuer => "the bearer token is of another issuer",
                    ErrorKind::MissingRequiredClaim(_)
                    | ErrorKind::InvalidClaimFormat(_)
                    | ErrorKind::Json(_) => "the bearer token has not the claims that it needs",
                    _ => UNSUPPORTED_TOKEN_MESSAGE,
                })
            })?;
        Ok(verified.claims)
    }

    /// The application's id says more than its roles.
    fn client_for_claims(&self, claims: &TokenClaims) -> Result<Arc<Client>, TokenError> {
        let app_id = claims.azp.as_ref().or(claims.appid.as_ref());
        if let Some(client) = app_id.and_then(|app_id| self.clients_by_app_id.get(app_id)) {
            return Ok(Arc::clone(client));
        }
        let mut clients_of_roles = claims.roles.iter().filter_map(|role| self.clients_by_role.get(role));
        let client = clients_of_roles.next().ok_or(TokenError::Refused(
            "the bearer token is of an application, and has roles, that belong to no client here",
        ))?;
        match clients_of_roles.all(|other| Arc::ptr_eq(other, client)) {
            true => Ok(Arc::clone(client)),
            false => Err(TokenError::Refused("the roles of the bearer token belong to different clients")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Endpoint;

    fn token_verifier() -> TokenVerifier {
        let config = ClientTokenConfig {
            authority_host: Endpoint { uses_tls: true, host: "login.example".to_owned(), port: 443 },
            tenant_id: "t".to_owned(),
            audiences: vec!["a".to_owned()],
            issuers: vec!["i".to_owned()],
            leeway: Duration::ZERO,
        };
        TokenVerifier::new(&config, Arc::new(SigningKeys::for_test(&config)), &[])
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            header in "\\{(\"(alg|kid|typ|crit|zip)\":(\"[a-zA-Z0-9]{0,9}\"|\\[\\]|null),?){0,4}\\}",
        ) {
            use base64::Engine as _;
            let verifier = token_verifier();
            let digest = openssl::sha::sha256(&bytes);
            prop_assert!(verifier.client_for_token(&bytes, &digest).is_err());
            let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
            let token = format!("{}.{}.{}", encode(header.as_bytes()), encode(&bytes), encode(&bytes));
            prop_assert!(verifier.client_for_token(token.as_bytes(), &digest).is_err());
        }
    }
}
