//! Verifies the Entra ID tokens that clients send instead of a key (signature, issuer, audience,
//! validity) and finds the client that a token belongs to.
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

/// Most verified tokens in the cache.
const MAX_CACHED_TOKENS: usize = 10_000;
/// Longer tokens are not parsed. Those of Entra ID have a few KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

const UNSUPPORTED_TOKEN_MESSAGE: &str = "the bearer token is not a JSON Web Token of a supported form";

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It names a signing key that is not known, perhaps because it is new.
    UnknownSigningKey,
    /// For this reason, which the client may read.
    Refused(&'static str),
}

/// Verifies tokens and knows which client an application or role belongs to.
#[derive(Debug)]
pub struct TokenVerifier {
    validation_rules: Validation,
    leeway_seconds: u64,
    signing_keys: Arc<SigningKeys>,
    clients_by_app_id: HashMap<String, Arc<Client>>,
    clients_by_role: HashMap<String, Arc<Client>>,
    verified_tokens: RwLock<HashMap<[u8; 32], VerifiedToken>>,
}

/// A token whose verification succeeded.
#[derive(Debug)]
struct VerifiedToken {
    client: Arc<Client>,
    /// Seconds since 1970, leeway included.
    accepted_until_unix_seconds: u64,
    /// The keys it was verified with. Once they are replaced, the token is verified again, because its
    /// signing key may have been withdrawn.
    verified_with_keys: Weak<SigningKeySnapshot>,
}

/// The claims that are read. Tokens of version 1 name the application in `appid`, those of version 2 in
/// `azp`. <https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>
///
/// Some are here only for their types, and because serde refuses a claim that occurs twice: the
/// `jsonwebtoken` crate accepts a list of issuers, one of which is trusted, and times that are no whole numbers.
#[derive(Deserialize)]
struct TokenClaims {
    exp: u64,
    #[serde(rename = "nbf")]
    _nbf: u64,
    #[serde(rename = "iat", default)]
    _iat: Option<u64>,
    #[serde(rename = "iss")]
    _iss: String,
    #[serde(rename = "aud")]
    _aud: OneOrMoreStrings,
    #[serde(rename = "sub", default)]
    _sub: Option<String>,
    #[serde(rename = "tid", default)]
    _tid: Option<String>,
    azp: Option<String>,
    appid: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

/// RFC 7519, section 4.1.3: an audience is a string or a list of strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMoreStrings {
    One(#[expect(dead_code, reason = "only the type matters")] String),
    More(#[expect(dead_code, reason = "only the type matters")] Vec<String>),
}

impl TokenVerifier {
    /// A verifier of this configuration. `clients` pairs each client with its configuration.
    pub fn new(
        config: &ClientTokenConfig,
        signing_keys: Arc<SigningKeys>,
        clients: &[(&config::ClientConfig, Arc<Client>)],
    ) -> Self {
        // Only RS256: `none` would need no signature, and HS256 would take the public key as the secret.
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
            clients_by_app_id: clients_by(|client| &client.token_app_ids),
            clients_by_role: clients_by(|client| &client.token_app_roles),
            verified_tokens: RwLock::default(),
        }
    }

    /// The keys that tokens are verified with.
    pub fn signing_keys(&self) -> &Arc<SigningKeys> {
        &self.signing_keys
    }

    /// Whether the text has the shape of a JSON Web Token: three parts, the first of which is a JSON
    /// object in base64url (`{"` encodes to `eyJ`).
    pub fn looks_like_token(text: &[u8]) -> bool {
        text.starts_with(b"eyJ")
            && text.len() <= MAX_TOKEN_BYTES
            && memchr::memchr_iter(b'.', text).count() == 2
    }

    /// The client that this token belongs to; `digest` is the SHA-256 of the token.
    ///
    /// # Errors
    /// [`TokenError`] if the token is invalid or belongs to no client.
    pub fn verify_and_find_client(&self, token: &[u8], digest: &[u8; 32]) -> Result<Arc<Client>, TokenError> {
        let keys = self.signing_keys.current_snapshot();
        let now = jsonwebtoken::get_current_timestamp();
        {
            let cache = self.verified_tokens.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(cached) = cache.get(digest)
                && now < cached.accepted_until_unix_seconds
                // The weak pointer keeps the allocation, so an equal address means the same keys.
                && std::ptr::eq(cached.verified_with_keys.as_ptr(), Arc::as_ptr(&keys))
            {
                return Ok(Arc::clone(&cached.client));
            }
        }
        // No lock is held while the signature is checked.
        let claims = self.verified_claims(token, &keys)?;
        let client = self.client_for_claims(&claims)?;
        let expires_at = claims.exp.saturating_add(self.leeway_seconds);
        let mut cache = self.verified_tokens.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED_TOKENS {
            cache.retain(|_, cached| now < cached.accepted_until_unix_seconds);
            if cache.len() >= MAX_CACHED_TOKENS {
                cache.clear();
            }
        }
        let verified_with = Arc::downgrade(&keys);
        cache.insert(
            *digest,
            VerifiedToken {
                client: Arc::clone(&client),
                accepted_until_unix_seconds: expires_at,
                verified_with_keys: verified_with,
            },
        );
        Ok(client)
    }

    fn verified_claims(&self, token: &[u8], keys: &SigningKeySnapshot) -> Result<TokenClaims, TokenError> {
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| TokenError::Refused(UNSUPPORTED_TOKEN_MESSAGE))?;
        if header.alg != Algorithm::RS256 {
            return Err(TokenError::Refused("the bearer token is not signed with RS256"));
        }
        // RFC 7515 section 4.1.11: a token with a critical header that is not understood is invalid.
        if header.crit.is_some() {
            return Err(TokenError::Refused("the bearer token has a critical header that is not supported"));
        }
        let key_id = header
            .kid
            .ok_or(TokenError::Refused("the bearer token does not name its signing key (`kid`)"))?;
        let key = keys.key_by_id(&key_id).ok_or(TokenError::UnknownSigningKey)?;
        let verified =
            jwt::verify_token::<TokenClaims>(token, key, &self.validation_rules).map_err(|error| {
                TokenError::Refused(match error.kind() {
                    ErrorKind::InvalidSignature => "the signature of the bearer token is wrong",
                    ErrorKind::ExpiredSignature => "the bearer token has expired",
                    ErrorKind::ImmatureSignature => "the bearer token is not valid yet",
                    ErrorKind::InvalidAudience => "the bearer token is for another audience",
                    ErrorKind::InvalidIssuer => "the bearer token was issued by another issuer",
                    ErrorKind::MissingRequiredClaim(_)
                    | ErrorKind::InvalidClaimFormat(_)
                    | ErrorKind::Json(_) => "a required claim of the bearer token is missing or malformed",
                    _ => UNSUPPORTED_TOKEN_MESSAGE,
                })
            })?;
        Ok(verified.claims)
    }

    /// Looks up the application first, because its id is more specific than its roles.
    fn client_for_claims(&self, claims: &TokenClaims) -> Result<Arc<Client>, TokenError> {
        let app_id = match (&claims.azp, &claims.appid) {
            (Some(azp), Some(appid)) if azp != appid => {
                return Err(TokenError::Refused("the bearer token names two different applications"));
            }
            (azp, appid) => azp.as_ref().or(appid.as_ref()),
        };
        if let Some(client) = app_id.and_then(|app_id| self.clients_by_app_id.get(app_id)) {
            return Ok(Arc::clone(client));
        }
        let mut clients_of_roles = claims.roles.iter().filter_map(|role| self.clients_by_role.get(role));
        let client = clients_of_roles.next().ok_or(TokenError::Refused(
            "the application and the roles of the bearer token belong to no client",
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

    #[test]
    fn claims_of_another_type_or_twice_are_malformed() {
        let claims_with = |claim: &str| {
            let (name, _) = claim.split_once(':').unwrap();
            let others = [r#""exp":2"#, r#""nbf":1"#, r#""iss":"i""#, r#""aud":"a""#];
            let others = others.iter().filter(|other| !other.starts_with(name)).copied();
            let text = others.chain([claim]).collect::<Vec<_>>().join(",");
            serde_json::from_str::<TokenClaims>(&format!("{{{text}}}"))
        };
        for claim in [
            r#""exp":2"#,
            r#""aud":["a","b"]"#,
            r#""azp":"x","unknown":{"y":[1,2]}"#,
            r#""appid":null,"roles":[]"#,
            r#""roles":["a"]"#,
        ] {
            assert!(claims_with(claim).is_ok(), "{claim}");
        }
        for claim in [
            r#""iss":["i"]"#,
            r#""iss":["i","other"]"#,
            r#""iss":{"i":1}"#,
            r#""iss":null"#,
            r#""aud":["a",1]"#,
            r#""aud":[["a"]]"#,
            r#""aud":{"a":1}"#,
            r#""exp":"2""#,
            r#""exp":2.5"#,
            r#""exp":-2"#,
            r#""exp":1e99"#,
            r#""exp":null"#,
            r#""nbf":"1""#,
            r#""nbf":1.5"#,
            r#""iat":"1""#,
            r#""sub":["s"]"#,
            r#""tid":["t"]"#,
            r#""azp":["x"]"#,
            r#""appid":1"#,
            r#""roles":"a""#,
            r#""roles":null"#,
            r#""roles":["a",1]"#,
            r#""roles":{"a":true}"#,
            r#""exp":2,"exp":3"#,
            r#""iss":"i","iss":"other""#,
            r#""aud":"a","aud":"b""#,
            r#""azp":"x","azp":"y""#,
            r#""roles":["a"],"roles":["b"]"#,
        ] {
            assert!(claims_with(claim).is_err(), "{claim}");
        }
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
            prop_assert!(verifier.verify_and_find_client(&bytes, &digest).is_err());
            let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
            let token = format!("{}.{}.{}", encode(header.as_bytes()), encode(&bytes), encode(&bytes));
            prop_assert!(verifier.verify_and_find_client(token.as_bytes(), &digest).is_err());
        }
    }
}
