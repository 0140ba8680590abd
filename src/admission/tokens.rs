//! Tokens of Entra ID that clients show in place of a key: signature, issuer, audience and validity,
//! and whose they are.
//!
//! <https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-tokens>

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;

use super::clients::Client;
use crate::config::{self, ClientTokens};
use crate::credentials::jwt;
use crate::credentials::signing_keys::{Keys, Signers};

/// Most verified tokens that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// The longest token that is looked at; those of Entra ID have a few KiB.
const TOKEN_MAX: usize = 16 * 1024;

const NOT_UNDERSTOOD: &str = "the bearer token is no JSON web token that is understood here";

/// Why a token admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// The key it names is not known, perhaps not yet.
    UnknownKey,
    /// For this reason, which may be told.
    Refused(&'static str),
}

/// Whose tokens are believed, and which client shows them.
#[derive(Debug)]
pub struct Tokens {
    validation: Validation,
    leeway: u64,
    signers: Arc<Signers>,
    by_app: HashMap<String, Arc<Client>>,
    by_role: HashMap<String, Arc<Client>>,
    verified: RwLock<HashMap<[u8; 32], Verified>>,
}

/// A token that was looked at before.
#[derive(Debug)]
struct Verified {
    client: Arc<Client>,
    /// Seconds since 1970.
    ends: u64,
    /// What it was signed with may be withdrawn.
    keys: std::sync::Weak<Keys>,
}

/// What is read of a token whose signature is good. Version 1 names the application in `appid`,
/// version 2 in `azp`.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
    azp: Option<String>,
    appid: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

impl Tokens {
    /// The tokens of this configuration; `clients` go with those of it, one by one.
    pub fn new(
        config: &ClientTokens,
        signers: Arc<Signers>,
        clients: &[(&config::Client, Arc<Client>)],
    ) -> Self {
        // No other algorithm: neither `none` nor one that takes a public key for a secret.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = config.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&config.audiences);
        validation.set_issuer(&config.issuers);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss"]);
        let by = |words: fn(&config::Client) -> &Vec<String>| {
            let clients = clients.iter();
            let each = clients.flat_map(|(config, client)| {
                words(config).iter().map(move |word| (word.clone(), Arc::clone(client)))
            });
            each.collect()
        };
        Self {
            leeway: validation.leeway,
            validation,
            signers,
            by_app: by(|client| &client.app_ids),
            by_role: by(|client| &client.roles),
            verified: RwLock::default(),
        }
    }

    /// Where its keys come from.
    pub fn signers(&self) -> &Arc<Signers> {
        &self.signers
    }

    /// Whether it is a token at all, as far as one look tells: three parts, of which the first is
    /// an object in base64url.
    pub fn is_one(text: &[u8]) -> bool {
        text.starts_with(b"eyJ") && text.len() <= TOKEN_MAX && memchr::memchr_iter(b'.', text).count() == 2
    }

    /// Whose token this is; `digest` is its SHA-256.
    ///
    /// # Errors
    /// [`NoEntry`] for one that admits nobody.
    pub fn client_of(&self, token: &[u8], digest: &[u8; 32]) -> Result<Arc<Client>, NoEntry> {
        let keys = self.signers.now();
        let now = jsonwebtoken::get_current_timestamp();
        {
            let verified = self.verified.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = verified.get(digest)
                && now < known.ends
                && std::ptr::eq(known.keys.as_ptr(), Arc::as_ptr(&keys))
            {
                return Ok(Arc::clone(&known.client));
            }
        }
        let claims = self.verify(token, &keys)?;
        let client = self.owner(&claims)?;
        let ends = claims.exp.saturating_add(self.leeway);
        let mut verified = self.verified.write().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED_MAX {
            verified.retain(|_, known| now < known.ends);
            if verified.len() >= REMEMBERED_MAX {
                verified.clear();
            }
        }
        let known = Verified { client: Arc::clone(&client), ends, keys: Arc::downgrade(&keys) };
        verified.insert(*digest, known);
        Ok(client)
    }

    fn verify(&self, token: &[u8], keys: &Keys) -> Result<Claims, NoEntry> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| NoEntry::Refused(NOT_UNDERSTOOD))?;
        if header.alg != Algorithm::RS256 {
            return Err(NoEntry::Refused("the bearer token is not signed with RS256"));
        }
        if header.crit.is_some() {
            return Err(NoEntry::Refused(
                "the bearer token has a critical header that is not understood here",
            ));
        }
        let id = header.kid.ok_or(NoEntry::Refused("the bearer token does not name its key (`kid`)"))?;
        let key = keys.find(&id).ok_or(NoEntry::UnknownKey)?;
        let data = jwt::verify::<Claims>(token, key, &self.validation).map_err(|problem| {
            NoEntry::Refused(match problem.kind() {
                ErrorKind::InvalidSignature => "the signature of the bearer token is wrong",
                ErrorKind::ExpiredSignature => "the bearer token has expired",
                ErrorKind::ImmatureSignature => "the bearer token is not valid yet",
                ErrorKind::InvalidAudience => "the bearer token is for another audience",
                ErrorKind::InvalidIssuer => "the bearer token is of another issuer",
                ErrorKind::MissingRequiredClaim(_)
                | ErrorKind::InvalidClaimFormat(_)
                | ErrorKind::Json(_) => "the bearer token has not the claims that it needs",
                _ => NOT_UNDERSTOOD,
            })
        })?;
        Ok(data.claims)
    }

    /// The application's id says more than its roles.
    fn owner(&self, claims: &Claims) -> Result<Arc<Client>, NoEntry> {
        let app = claims.azp.as_ref().or(claims.appid.as_ref());
        if let Some(client) = app.and_then(|app| self.by_app.get(app)) {
            return Ok(Arc::clone(client));
        }
        let mut by_role = claims.roles.iter().filter_map(|role| self.by_role.get(role));
        let client = by_role.next().ok_or(NoEntry::Refused(
            "the bearer token is of an application, and has roles, that belong to no client here",
        ))?;
        match by_role.all(|other| Arc::ptr_eq(other, client)) {
            true => Ok(Arc::clone(client)),
            false => Err(NoEntry::Refused("the roles of the bearer token belong to different clients")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Endpoint;

    fn tokens() -> Tokens {
        let config = ClientTokens {
            authority: Endpoint { tls: true, host: "login.example".to_owned(), port: 443 },
            tenant: "t".to_owned(),
            audiences: vec!["a".to_owned()],
            issuers: vec!["i".to_owned()],
            leeway: Duration::ZERO,
        };
        Tokens::new(&config, Arc::new(Signers::for_test(&config)), &[])
    }

    proptest! {
        #[test]
        fn whatever_is_shown_admits_nobody_and_breaks_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            header in "\\{(\"(alg|kid|typ|crit|zip)\":(\"[a-zA-Z0-9]{0,9}\"|\\[\\]|null),?){0,4}\\}",
        ) {
            use base64::Engine as _;
            let tokens = tokens();
            let digest = openssl::sha::sha256(&bytes);
            prop_assert!(tokens.client_of(&bytes, &digest).is_err());
            let part = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
            let token = format!("{}.{}.{}", part(header.as_bytes()), part(&bytes), part(&bytes));
            prop_assert!(tokens.client_of(token.as_bytes(), &digest).is_err());
        }
    }
}
