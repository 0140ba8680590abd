//! Tokens of Entra ID for an application with a secret.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;

use crate::config::{Entra, Secret};
use crate::outbound::{Call, Outbound, OutboundError};

/// A token is renewed so long before it ends.
const EARLY: Duration = Duration::from_secs(300);
/// How long a token lives that does not say so.
const USUAL: Duration = Duration::from_secs(3_600);

/// Why there is no token. Nothing of what was sent is in it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token endpoint could not be asked.
    #[error("no token: {0}")]
    Unreachable(#[from] OutboundError),
    /// It said no.
    #[error(
        "no token: {host} answered {status} ({code}); check tenant, client_id and secret of the app registration"
    )]
    Refused {
        /// The token endpoint.
        host: String,
        /// Its status.
        status: u16,
        /// Entra's word for the error.
        code: String,
    },
    /// It said something else.
    #[error("no token: what {host} answered is none")]
    Strange {
        /// The token endpoint.
        host: String,
    },
}

/// The token of one application, renewed before it ends.
pub struct Token {
    entra: Entra,
    current: Option<(Secret, Instant)>,
}

impl Token {
    /// No token yet.
    pub fn new(entra: Entra) -> Self {
        Self { entra, current: None }
    }

    /// A token that is good for a while; the one at hand as long as it is.
    ///
    /// # Errors
    /// [`TokenError`] when there is none at hand and none to be had.
    pub async fn get(&mut self, outbound: &Outbound) -> Result<Secret, TokenError> {
        let now = Instant::now();
        if let Some((token, until)) = &self.current
            && now + EARLY < *until
        {
            return Ok(token.clone());
        }
        match self.fetch(outbound, now).await {
            Ok((token, until)) => {
                self.current = Some((token.clone(), until));
                Ok(token)
            }
            // The one at hand is good until its end.
            Err(problem) => match &self.current {
                Some((token, until)) if now < *until => Ok(token.clone()),
                _ => Err(problem),
            },
        }
    }

    /// The token was refused: the next is a new one.
    pub fn forget(&mut self) {
        self.current = None;
    }

    async fn fetch(&self, outbound: &Outbound, now: Instant) -> Result<(Secret, Instant), TokenError> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: Option<u64>,
        }
        #[derive(Deserialize)]
        struct Refused {
            error: String,
        }
        let Entra { authority, tenant, client_id, secret, scope } = &self.entra;
        let field = |name: &str, value: &str| format!("{name}={}", escaped(value));
        let body = [
            field("grant_type", "client_credentials"),
            field("client_id", client_id),
            field("client_secret", secret.expose()),
            field("scope", scope),
        ];
        let call = Call {
            method: Method::POST,
            target: &format!("/{tenant}/oauth2/v2.0/token"),
            headers: &[("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")],
            body: Bytes::from(body.join("&")),
        };
        let answer = outbound.call(authority, call).await?;
        let host = authority.host.clone();
        if answer.status != 200 {
            let code = serde_json::from_slice::<Refused>(&answer.body).map(|refused| refused.error);
            let code = code.unwrap_or_default().chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
            return Err(TokenError::Refused { host, status: answer.status, code });
        }
        let granted: Granted =
            serde_json::from_slice(&answer.body).map_err(|_| TokenError::Strange { host: host.clone() })?;
        if !granted.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Strange { host });
        }
        let life = granted.expires_in.map_or(USUAL, Duration::from_secs).min(Duration::from_secs(86_400));
        Ok((Secret::new(&granted.access_token), now + life))
    }
}

/// Text as a form's value.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_survive_their_form() {
        assert_eq!(escaped("aZ0-._~"), "aZ0-._~");
        assert_eq!(escaped("a+b/c= &é"), "a%2Bb%2Fc%3D%20%26%C3%A9");
    }
}
