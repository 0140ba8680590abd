//! Secrets in Azure Key Vault.
//!
//! <https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret/get-secret>

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::Value as Json;

use super::Kept;
use super::refreshed::{Failed, Fetched, header};
use super::token_response::word;
use crate::azure::response::hints;
use crate::config::{Secret, VaultSecret};
use crate::outbound::{Answer, Call, Outbound};

/// What a token for the vault of this secret is for.
pub(super) fn scope(secret: &VaultSecret) -> String {
    format!("https://{}/.default", secret.domain().unwrap_or("vault.azure.net"))
}

/// Where a secret is read.
pub(super) struct Fetch {
    secret: VaultSecret,
    token: Kept,
    refresh: Duration,
}

impl Fetch {
    pub(super) fn new(secret: VaultSecret, token: Kept, refresh: Duration) -> Self {
        Self { secret, token, refresh }
    }

    pub(super) fn what(&self) -> String {
        format!("secret {}", self.secret)
    }

    pub(super) async fn fetch(&self, outbound: &Outbound) -> Result<Fetched, Failed> {
        #[derive(Deserialize)]
        struct Bundle {
            value: String,
        }
        let (mut answer, number) = self.ask(outbound).await?;
        if answer.status == 401 {
            // Tokens can be revoked: a new one is tried, once.
            self.token.refuse(number);
            self.token.settled().await;
            if self.token.number() != number {
                answer = self.ask(outbound).await?.0;
            }
        }
        if answer.status != 200 {
            return Err(self.refused(&answer));
        }
        let host = &self.secret.vault.host;
        let strange = |what| Failed::from(format!("what {host} answered is {what}"));
        let bundle: Bundle = serde_json::from_slice(&answer.body).map_err(|_| strange("no secret"))?;
        // Whoever puts a file into a vault puts its last line break there, too.
        let value = bundle.value.trim();
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(strange("no key: it is empty, or has blanks, line breaks or non-ASCII characters"));
        }
        let renew = self.refresh.mul_f64(0.8 + fastrand::f64() * 0.4);
        let header = header(value).ok_or_else(|| strange("no key"))?;
        Ok(Fetched { secret: Secret::new(value), header, renew, ends: None })
    }

    async fn ask(&self, outbound: &Outbound) -> Result<(Answer, u64), Failed> {
        let token = self.token.value().await.map_err(|problem| problem.to_string())?;
        let VaultSecret { vault, name, version } = &self.secret;
        let version = version.as_ref().map_or(String::new(), |version| format!("/{version}"));
        let authorization = format!("Bearer {}", token.secret.expose());
        let call = Call {
            method: Method::GET,
            target: &format!("/secrets/{name}{version}?api-version=7.4"),
            headers: &[("authorization", &authorization), ("accept", "application/json")],
            body: Bytes::new(),
        };
        let answer = outbound.call(vault, call).await.map_err(|problem| problem.to_string())?;
        Ok((answer, token.number))
    }

    /// What a refusal says, without what it quotes.
    fn refused(&self, answer: &Answer) -> Failed {
        let body: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = |pointer: &str| body.pointer(pointer).and_then(Json::as_str).map(word);
        let said = [code("/error/code"), code("/error/innererror/code")];
        let said: Vec<String> = said.into_iter().flatten().collect();
        let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
        let hint = match answer.status {
            401 | 403 => {
                "; the identity needs the role Key Vault Secrets User, and the network has to be let in"
            }
            404 => "; is the name right?",
            _ => "",
        };
        let host = &self.secret.vault.host;
        let after = hints::cooldown_hint(&answer.headers, SystemTime::now());
        Failed { why: format!("{host} answered {}{said}{hint}", answer.status), after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    #[test]
    fn a_token_is_for_the_vaults_of_one_cloud() {
        for (host, expected) in [
            ("contoso.vault.azure.net", "https://vault.azure.net/.default"),
            ("contoso.vault.azure.cn", "https://vault.azure.cn/.default"),
            ("contoso.vault.usgovcloudapi.net", "https://vault.usgovcloudapi.net/.default"),
            ("evilvault.azure.cn", "https://vault.azure.net/.default"),
            ("localhost", "https://vault.azure.net/.default"),
        ] {
            let vault = Endpoint { tls: true, host: host.to_owned(), port: 443 };
            assert_eq!(scope(&VaultSecret { vault, name: "k".to_owned(), version: None }), expected);
        }
    }
}
