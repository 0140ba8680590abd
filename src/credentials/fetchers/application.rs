//! Fetches tokens as a registered application (client credentials flow). The application authenticates
//! with a secret, a certificate, or a token of a federated identity provider.
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Method;
use jsonwebtoken::{Algorithm, Header};
use serde::Serialize;

use super::super::expiry::{ExpiringPart, Expiry};
use super::super::fetched_secret::{FetchError, FetchedSecret};
use super::super::jwt;
use super::super::refreshed_secret::RefreshedSecret;
use super::token_response::{parse_token_response, percent_encode};
use crate::config::{AppRegistration, CertifiedKey, CertifiedKeyFiles, Endpoint, certificate_expires_at};
use crate::files::read_text_file;
use crate::outbound::{OutboundClient, OutboundRequest};

/// How long an assertion is valid. Entra ID accepts five to ten minutes.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(300);
/// The largest token file; tokens have a few kilobytes.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;
const CLIENT_ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What the application authenticates with.
pub(in crate::credentials) enum ApplicationProof {
    ClientSecret(RefreshedSecret),
    ClientCertificate(CertifiedKeyFiles),
    FederatedTokenFile(PathBuf),
}

/// Fetches the token of an application for one scope.
pub(in crate::credentials) struct ApplicationTokenFetcher {
    authority_host: Endpoint,
    token_url_path: String,
    client_id: String,
    proof: ApplicationProof,
    scope: String,
}

impl ApplicationTokenFetcher {
    pub(in crate::credentials) fn new(
        application: &AppRegistration,
        proof: ApplicationProof,
        scope: &str,
    ) -> Self {
        Self {
            authority_host: application.authority_host.clone(),
            token_url_path: format!("/{}/oauth2/v2.0/token", application.tenant_id),
            client_id: application.client_id.clone(),
            proof,
            scope: scope.to_owned(),
        }
    }

    pub(in crate::credentials) fn description(&self) -> String {
        format!("token of the application {} for {}", self.client_id, self.scope)
    }

    pub(in crate::credentials) async fn fetch(
        &self,
        client: &OutboundClient,
    ) -> Result<FetchedSecret, FetchError> {
        let (proof_fields, secret_id) = self.build_proof_fields().await?;
        let fixed_fields =
            [("grant_type", "client_credentials"), ("client_id", &self.client_id), ("scope", &self.scope)];
        let proof_fields = proof_fields.iter().map(|(name, value)| (*name, value.as_str()));
        let fields = fixed_fields.into_iter().chain(proof_fields);
        let form: Vec<String> =
            fields.map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
        let request = OutboundRequest {
            method: Method::POST,
            path_and_query: &self.token_url_path,
            headers: &[("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")],
            body: Bytes::from(form.join("&")),
        };
        let response = client.send(&self.authority_host, request).await.map_err(|error| error.to_string())?;
        let hint = match &self.proof {
            ApplicationProof::ClientSecret(_) => {
                "; check tenant, client_id and secret of the app registration"
            }
            ApplicationProof::ClientCertificate(_) => {
                "; check tenant, client_id and certificate of the app registration"
            }
            ApplicationProof::FederatedTokenFile(_) => {
                "; check tenant, client_id and federated credential of the app registration"
            }
        };
        if let ApplicationProof::ClientSecret(secret) = &self.proof
            && matches!(response.status, 400 | 401)
        {
            // If the secret is in a key vault, there may be a newer one: it is fetched again.
            secret.on_value_rejected(secret_id);
        }
        parse_token_response(&self.authority_host.host, &response, hint)
    }

    /// When the secret or certificate of the application ends.
    pub(in crate::credentials) async fn proof_expiry(&self) -> Option<Expiry> {
        match &self.proof {
            ApplicationProof::ClientSecret(secret) => secret.source_expiry(),
            ApplicationProof::ClientCertificate(files) => {
                let files = files.clone();
                let pair = read_blocking(move || CertifiedKey::from_files(&files)).await.ok()?;
                Some(Expiry {
                    part: ExpiringPart::ClientCertificate,
                    at: certificate_expires_at(&pair.ok()?.leaf)?,
                })
            }
            // The platform replaces the file.
            ApplicationProof::FederatedTokenFile(_) => None,
        }
    }

    /// The form fields that authenticate the application, and the id of the secret in them; 0 if they
    /// contain none.
    async fn build_proof_fields(&self) -> Result<(Vec<(&'static str, String)>, u64), FetchError> {
        let assertion_fields = |token| {
            vec![("client_assertion_type", CLIENT_ASSERTION_TYPE.to_owned()), ("client_assertion", token)]
        };
        match &self.proof {
            ApplicationProof::ClientSecret(secret) => {
                let value = secret.wait_for_value().await.map_err(|error| error.to_string())?;
                Ok((vec![("client_secret", value.secret.expose_secret().to_owned())], value.id))
            }
            ApplicationProof::ClientCertificate(files) => {
                let files_to_read = files.clone();
                let pair = read_blocking(move || CertifiedKey::from_files(&files_to_read)).await?;
                let pair = pair.map_err(|error| error.to_string())?;
                let assertion = self.sign_assertion(&pair).map_err(|error| {
                    format!("cannot sign with {}: {error}", files.private_key_path.display())
                })?;
                Ok((assertion_fields(assertion), 0))
            }
            ApplicationProof::FederatedTokenFile(path) => {
                // Read for each token: the platform replaces the file about every hour.
                let file = path.clone();
                let token = read_blocking(move || read_text_file(&file, MAX_TOKEN_FILE_BYTES)).await?;
                let token = token
                    .map_err(|error| format!("cannot read the token file {}: {error}", path.display()))?;
                let token = token.trim();
                if token.is_empty() {
                    return Err(format!("the token file {} is empty", path.display()).into());
                }
                Ok((assertion_fields(token.to_owned()), 0))
            }
        }
    }

    /// Signs an assertion with the key of the certificate.
    ///
    /// <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>
    fn sign_assertion(&self, pair: &CertifiedKey) -> Result<String, String> {
        #[derive(Serialize)]
        struct AssertionClaims<'a> {
            aud: String,
            iss: &'a str,
            sub: &'a str,
            jti: String,
            nbf: u64,
            exp: u64,
        }
        let certificate_der = pair.leaf.to_der().map_err(|error| error.to_string())?;
        let mut header = Header::new(Algorithm::PS256);
        header.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(openssl::sha::sha256(&certificate_der)));
        let now = jsonwebtoken::get_current_timestamp();
        let claims = AssertionClaims {
            aud: format!("https://{}{}", self.authority_host.authority(), self.token_url_path),
            iss: &self.client_id,
            sub: &self.client_id,
            jti: uuid::Uuid::from_u128(fastrand::u128(..)).to_string(),
            nbf: now,
            exp: now + ASSERTION_LIFETIME.as_secs(),
        };
        jwt::sign_token(&header, &claims, &pair.private_key).map_err(|error| error.to_string())
    }
}

/// Reads files, which are read anew for each token, without blocking the runtime.
async fn read_blocking<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FetchError> {
    let result = tokio::task::spawn_blocking(read).await;
    result.map_err(|_| FetchError::from("an internal error: reading a file did not complete".to_owned()))
}
