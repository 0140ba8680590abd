//! Fetches secrets from Azure Key Vault.
//!
//! <https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret/get-secret>

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::Value as Json;

use super::super::expiry::{ExpiringPart, Expiry};
use super::super::fetched_secret::{FetchError, FetchedSecret, sensitive_header_value};
use super::super::loggable::loggable_word;
use super::super::refreshed_secret::RefreshedSecret;
use crate::azure::response::hints;
use crate::config::{Secret, VaultSecretRef};
use crate::outbound::{OutboundClient, OutboundRequest, OutboundResponse};

/// The scope of a token for this secret's vault. Each cloud has its own; an unknown host counts as the
/// public cloud.
pub(in crate::credentials) fn vault_token_scope(secret: &VaultSecretRef) -> String {
    format!("https://{}/.default", secret.azure_vault_domain().unwrap_or("vault.azure.net"))
}

/// Fetches one secret, at its newest or at a fixed version.
pub(in crate::credentials) struct KeyVaultFetcher {
    secret_ref: VaultSecretRef,
    access_token: RefreshedSecret,
    refresh_interval: Duration,
}

impl KeyVaultFetcher {
    pub(in crate::credentials) fn new(
        secret_ref: VaultSecretRef,
        access_token: RefreshedSecret,
        refresh_interval: Duration,
    ) -> Self {
        Self { secret_ref, access_token, refresh_interval }
    }

    pub(in crate::credentials) fn description(&self) -> String {
        format!("secret {}", self.secret_ref)
    }

    pub(in crate::credentials) async fn fetch(
        &self,
        client: &OutboundClient,
    ) -> Result<FetchedSecret, FetchError> {
        #[derive(Deserialize)]
        struct SecretBundle {
            value: String,
            #[serde(default)]
            attributes: SecretAttributes,
        }
        #[derive(Default, Deserialize)]
        struct SecretAttributes {
            /// The expiry date, if the secret has one, in seconds since 1970.
            exp: Option<u64>,
        }
        let (mut response, token_id) = self.request_secret(client).await?;
        if response.status == 401 {
            // The token may have been revoked: try once more with a new one.
            self.access_token.on_value_rejected(token_id);
            self.access_token.wait_for_pending_fetch().await;
            if self.access_token.current_value_id() != token_id {
                response = self.request_secret(client).await?.0;
            }
        }
        if response.status != 200 {
            return Err(self.error_from_response(&response));
        }
        let host = &self.secret_ref.vault.host;
        let unusable = |what| FetchError::from(format!("the response of {host} contains {what}"));
        let bundle: SecretBundle =
            serde_json::from_slice(&response.body).map_err(|_| unusable("no secret"))?;
        // A secret that was set from a file usually ends with a line break.
        let value = bundle.value.trim();
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable(
                "a secret that cannot be a key: it is empty or has blanks, line breaks or non-ASCII characters",
            ));
        }
        // Jitter, so that many balancers do not read the vault at the same time.
        let renew_after = self.refresh_interval.mul_f64(0.8 + fastrand::f64() * 0.4);
        let header_value =
            sensitive_header_value(value).ok_or_else(|| unusable("a secret that cannot be a key"))?;
        let expires_at =
            bundle.attributes.exp.and_then(|exp| UNIX_EPOCH.checked_add(Duration::from_secs(exp)));
        Ok(FetchedSecret {
            secret: Secret::new(value),
            header_value,
            renew_after,
            expires_in: None,
            source_expiry: expires_at.map(|at| Expiry { part: ExpiringPart::VaultSecret, at }),
        })
    }

    /// When the identity ends that reads the vault.
    pub(in crate::credentials) fn proof_expiry(&self) -> Option<Expiry> {
        self.access_token.source_expiry()
    }

    /// Requests the secret; returns the response and the id of the token that the request carried.
    async fn request_secret(&self, client: &OutboundClient) -> Result<(OutboundResponse, u64), FetchError> {
        let token = self.access_token.wait_for_value().await.map_err(|error| error.to_string())?;
        let VaultSecretRef { vault, name, version } = &self.secret_ref;
        let version_segment = version.as_ref().map_or(String::new(), |version| format!("/{version}"));
        let authorization = format!("Bearer {}", token.secret.expose_secret());
        let request = OutboundRequest {
            method: Method::GET,
            path_and_query: &format!("/secrets/{name}{version_segment}?api-version=7.4"),
            headers: &[("authorization", &authorization), ("accept", "application/json")],
            body: Bytes::new(),
        };
        let response = client.send(vault, request).await.map_err(|error| error.to_string())?;
        Ok((response, token.id))
    }

    /// The status and error codes of a response, but not its message, which may quote secrets.
    ///
    /// <https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>
    fn error_from_response(&self, response: &OutboundResponse) -> FetchError {
        let body: Json = serde_json::from_slice(&response.body).unwrap_or_default();
        let code = |pointer: &str| body.pointer(pointer).and_then(Json::as_str).map(loggable_word);
        let codes = [code("/error/code"), code("/error/innererror/code")];
        let codes: Vec<String> = codes.into_iter().flatten().collect();
        let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        let hint = match response.status {
            401 | 403 => {
                "; does the identity have the role Key Vault Secrets User, and does the vault's firewall allow \
                 this network?"
            }
            404 => "; does the secret exist?",
            _ => "",
        };
        let host = &self.secret_ref.vault.host;
        let retry_after = hints::cooldown_hint(&response.headers, SystemTime::now());
        FetchError { message: format!("{host} responded with {}{codes}{hint}", response.status), retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    #[test]
    fn the_token_scope_follows_the_cloud_of_the_vault() {
        for (host, expected) in [
            ("contoso.vault.azure.net", "https://vault.azure.net/.default"),
            ("contoso.vault.azure.cn", "https://vault.azure.cn/.default"),
            ("contoso.vault.usgovcloudapi.net", "https://vault.usgovcloudapi.net/.default"),
            ("evilvault.azure.cn", "https://vault.azure.net/.default"),
            ("localhost", "https://vault.azure.net/.default"),
        ] {
            let vault = Endpoint { uses_tls: true, host: host.to_owned(), port: 443 };
            assert_eq!(
                vault_token_scope(&VaultSecretRef { vault, name: "k".to_owned(), version: None }),
                expected
            );
        }
    }
}
