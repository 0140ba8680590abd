//! Tokens of a registered application, which proves itself by a secret, a certificate, or the token
//! of somebody whom Entra ID trusts.
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Method;
use jsonwebtoken::{Algorithm, Header};
use serde::Serialize;

use super::refreshed::{Failed, Fetched};
use super::token_response::{escaped, granted};
use super::{Kept, jwt};
use crate::config::{Application, Endpoint, KeyPair, PairFiles};
use crate::outbound::{Call, Outbound};

/// An assertion of ours is good for so long, in seconds; Entra ID takes five to ten minutes.
const ASSERTION_LIFE: u64 = 300;
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What proves who the application is.
pub(super) enum Assertion {
    Secret(Kept),
    Certificate(PairFiles),
    File(PathBuf),
}

/// Where the token of an application is asked for.
pub(super) struct Fetch {
    authority: Endpoint,
    target: String,
    client_id: String,
    assertion: Assertion,
    scope: String,
}

impl Fetch {
    pub(super) fn new(application: &Application, assertion: Assertion, scope: &str) -> Self {
        Self {
            authority: application.authority.clone(),
            target: format!("/{}/oauth2/v2.0/token", application.tenant),
            client_id: application.client_id.clone(),
            assertion,
            scope: scope.to_owned(),
        }
    }

    pub(super) fn what(&self) -> String {
        format!("token of the application {} for {}", self.client_id, self.scope)
    }

    pub(super) async fn fetch(&self, outbound: &Outbound) -> Result<Fetched, Failed> {
        let (proof, number) = self.proof().await?;
        let fields =
            [("grant_type", "client_credentials"), ("client_id", &self.client_id), ("scope", &self.scope)];
        let fields = fields.into_iter().chain(proof.iter().map(|(name, value)| (*name, value.as_str())));
        let body: Vec<String> = fields.map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let call = Call {
            method: Method::POST,
            target: &self.target,
            headers: &[("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")],
            body: Bytes::from(body.join("&")),
        };
        let answer = outbound.call(&self.authority, call).await.map_err(|problem| problem.to_string())?;
        let hint = match &self.assertion {
            Assertion::Secret(_) => "; check tenant, client_id and secret of the app registration",
            Assertion::Certificate(_) => "; check tenant, client_id and certificate of the app registration",
            Assertion::File(_) => {
                "; check tenant, client_id and federated credential of the app registration"
            }
        };
        if let Assertion::Secret(secret) = &self.assertion
            && matches!(answer.status, 400 | 401)
        {
            // There may be a newer one in its vault.
            secret.refuse(number);
        }
        granted(&self.authority.host, &answer, hint)
    }

    /// The fields of the form that prove who asks, and which secret that was.
    async fn proof(&self) -> Result<(Vec<(&'static str, String)>, u64), Failed> {
        let asserted =
            |token| vec![("client_assertion_type", ASSERTION_TYPE.to_owned()), ("client_assertion", token)];
        match &self.assertion {
            Assertion::Secret(secret) => {
                let value = secret.value().await.map_err(|problem| problem.to_string())?;
                Ok((vec![("client_secret", value.secret.expose().to_owned())], value.number))
            }
            Assertion::Certificate(files) => Ok((asserted(self.assert(files)?), 0)),
            Assertion::File(path) => {
                // Whoever fills it replaces it every hour or so.
                let token = tokio::fs::read_to_string(path).await;
                let token = token.map_err(|problem| format!("cannot read {}: {problem}", path.display()))?;
                let token = token.trim();
                if token.is_empty() {
                    return Err(format!("{} is empty", path.display()).into());
                }
                Ok((asserted(token.to_owned()), 0))
            }
        }
    }

    /// <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>
    fn assert(&self, files: &PairFiles) -> Result<String, Failed> {
        #[derive(Serialize)]
        struct Claims<'a> {
            aud: String,
            iss: &'a str,
            sub: &'a str,
            jti: String,
            nbf: u64,
            exp: u64,
        }
        let pair = KeyPair::read(files).map_err(|problem| problem.to_string())?;
        let der = pair.leaf.to_der().map_err(|problem| problem.to_string())?;
        let mut header = Header::new(Algorithm::PS256);
        header.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(openssl::sha::sha256(&der)));
        let now = jsonwebtoken::get_current_timestamp();
        let claims = Claims {
            aud: format!("https://{}{}", self.authority.authority(), self.target),
            iss: &self.client_id,
            sub: &self.client_id,
            jti: uuid::Uuid::from_u128(fastrand::u128(..)).to_string(),
            nbf: now,
            exp: now + ASSERTION_LIFE,
        };
        jwt::sign(&header, &claims, &pair.key)
            .map_err(|problem| format!("{} cannot sign: {problem}", files.private_key.display()).into())
    }
}
