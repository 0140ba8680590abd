//! Finds the client that a key, token or certificate belongs to.
//!
//! The configuration knows keys only by their SHA-256. A presented key is hashed and looked up, and
//! the hash is compared once more in constant time. Tokens are verified by `token_verifier.rs`.

use std::collections::HashMap;
use std::sync::Arc;

use super::client::Client;
use super::limits::LimitBooks;
use super::token_verifier::{TokenError, TokenVerifier};
use crate::config;
use crate::credentials::signing_keys::SigningKeys;
use crate::names::CertificateSubject;
use crate::refusal::Refusal;

/// All clients of the configuration.
#[derive(Debug)]
pub enum ClientRegistry {
    /// Anyone may call; keys are ignored.
    Anyone(Arc<Client>),
    /// Only these clients may call.
    Listed(Box<ListedClients>),
}

/// The listed clients by their credentials.
#[derive(Debug)]
pub struct ListedClients {
    clients_by_key_hash: HashMap<[u8; 32], ([u8; 32], Arc<Client>)>,
    clients_by_certificate_subject: HashMap<CertificateSubject, Arc<Client>>,
    token_verifier: Option<TokenVerifier>,
    clients: Vec<Arc<Client>>,
}

/// Why a request is not authenticated.
#[derive(Debug)]
pub enum AuthError {
    /// A token names a signing key that is not known. It may be known after the keys are fetched again.
    UnknownSigningKey(Arc<SigningKeys>),
    /// The credentials are missing or invalid.
    Refused(Refusal),
}

impl ClientRegistry {
    /// The clients of a configuration, with their accounts. `signing_keys` are the keys of the directory whose tokens
    /// are accepted.
    pub fn new(
        config: &config::ClientsConfig,
        limits: &config::LimitsConfig,
        books: LimitBooks<'_>,
        tokens: Option<&config::ClientTokenConfig>,
        signing_keys: Option<Arc<SigningKeys>>,
    ) -> Self {
        let listed = match config {
            config::ClientsConfig::Anyone => {
                return Self::Anyone(Arc::new(Client::unrestricted().with_limits(None, limits, books)));
            }
            config::ClientsConfig::Listed(listed) => listed,
        };
        let new_client = |client| Client::new(client).with_limits(client.limits.as_ref(), limits, books);
        let clients: Vec<(&config::ClientConfig, Arc<Client>)> =
            listed.iter().map(|client| (client, Arc::new(new_client(client)))).collect();
        let mut clients_by_key_hash = HashMap::new();
        let mut clients_by_certificate_subject = HashMap::new();
        for (config, client) in &clients {
            for key in &config.key_hashes {
                clients_by_key_hash.insert(*key, (*key, Arc::clone(client)));
            }
            for subject in &config.certificate_subjects {
                clients_by_certificate_subject.insert(subject.clone(), Arc::clone(client));
            }
        }
        let token_verifier =
            tokens.zip(signing_keys).map(|(config, keys)| TokenVerifier::new(config, keys, &clients));
        let clients = clients.into_iter().map(|(_, client)| client).collect();
        Self::Listed(Box::new(ListedClients {
            clients_by_key_hash,
            clients_by_certificate_subject,
            token_verifier,
            clients,
        }))
    }

    /// The client of this name; `None` if there is none or anyone may call.
    pub fn find_by_name(&self, name: &str) -> Option<&Arc<Client>> {
        let Self::Listed(listed) = self else { return None };
        listed.clients.iter().find(|client| client.name.as_ref().is_some_and(|known| known.as_str() == name))
    }

    /// Whether there is one client, or anyone may call, so that clients cannot be told apart.
    pub fn has_only_one_client(&self) -> bool {
        self.listed_clients().len() <= 1
    }

    /// The listed clients; empty if anyone may call.
    pub fn listed_clients(&self) -> &[Arc<Client>] {
        match self {
            Self::Anyone(_) => &[],
            Self::Listed(listed) => &listed.clients,
        }
    }

    /// The listed clients, or the one that stands for all if anyone may call.
    pub fn all_clients(&self) -> &[Arc<Client>] {
        match self {
            Self::Anyone(client) => std::slice::from_ref(client),
            Self::Listed(listed) => &listed.clients,
        }
    }

    /// The client that the presented keys, tokens and certificate subject belong to. One valid credential
    /// is enough; invalid ones beside it are ignored.
    ///
    /// # Errors
    /// `invalid_api_key` if no credential is valid, or if two belong to different clients.
    pub fn authenticate<'k>(
        &self,
        presented_keys: impl Iterator<Item = &'k [u8]>,
        certificate_subject: Option<&CertificateSubject>,
    ) -> Result<Arc<Client>, AuthError> {
        match self {
            Self::Anyone(client) => Ok(Arc::clone(client)),
            Self::Listed(listed) => listed.authenticate(presented_keys, certificate_subject),
        }
    }
}

impl ListedClients {
    fn authenticate<'k>(
        &self,
        presented_keys: impl Iterator<Item = &'k [u8]>,
        certificate_subject: Option<&CertificateSubject>,
    ) -> Result<Arc<Client>, AuthError> {
        let mut found = certificate_subject
            .and_then(|subject| self.clients_by_certificate_subject.get(subject))
            .map(Arc::clone);
        let (mut has_key, mut keys_to_refresh, mut token_problem) = (false, None, None);
        for key in presented_keys {
            has_key = true;
            let client = match self.client_for_key_or_token(key) {
                Ok(Some(client)) => client,
                Ok(None) => continue,
                Err((TokenError::UnknownSigningKey, verifier)) => {
                    keys_to_refresh = Some(Arc::clone(verifier.signing_keys()));
                    continue;
                }
                Err((TokenError::Refused(problem), _)) => {
                    token_problem = Some(problem);
                    continue;
                }
            };
            match &found {
                Some(other) if !Arc::ptr_eq(other, &client) => {
                    let message =
                        "the request carries valid credentials of two different clients; send only one";
                    return Err(AuthError::Refused(Refusal::invalid_api_key(message)));
                }
                _ => found = Some(client),
            }
        }
        match found {
            Some(client) => Ok(client),
            None => Err(match keys_to_refresh {
                Some(signing_keys) => AuthError::UnknownSigningKey(signing_keys),
                None => AuthError::Refused(Refusal::invalid_api_key(token_problem.unwrap_or(if has_key {
                    INVALID_KEY_MESSAGE
                } else {
                    MISSING_KEY_MESSAGE
                }))),
            }),
        }
    }

    /// The client of this key or token; `None` if it is unknown.
    fn client_for_key_or_token(
        &self,
        key: &[u8],
    ) -> Result<Option<Arc<Client>>, (TokenError, &TokenVerifier)> {
        // OpenSSL's one-shot function looks up the algorithm each time, which takes longer than the hash.
        let mut hash = openssl::sha::Sha256::new();
        hash.update(key);
        let digest = hash.finish();
        if let Some((known, client)) = self.clients_by_key_hash.get(&digest) {
            // The map compares hashes in variable time, so the hit is compared again in constant time.
            return Ok(openssl::memcmp::eq(known, &digest).then(|| Arc::clone(client)));
        }
        match &self.token_verifier {
            Some(verifier) if TokenVerifier::looks_like_token(key) => {
                verifier.verify_and_find_client(key, &digest).map(Some).map_err(|error| (error, verifier))
            }
            _ => Ok(None),
        }
    }
}

const INVALID_KEY_MESSAGE: &str =
    "Access denied due to an invalid key. Make sure to use a key that was issued for this endpoint.";
const MISSING_KEY_MESSAGE: &str = "Access denied due to a missing key. Send it as the header 'api-key', \
                       'Ocp-Apim-Subscription-Key' or 'Authorization: Bearer', \
                       as the query parameter 'api-key' or 'subscription-key', \
                       or for a WebSocket as the subprotocol 'openai-insecure-api-key.KEY'.";
/// The message for a token whose signing key is unknown even after the keys were fetched again.
pub const UNKNOWN_SIGNING_KEY_MESSAGE: &str =
    "the key that the bearer token is signed with is not one of Entra ID's";

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::admission::limits::ClientAccounts;
    use crate::names::{ClientName, DeploymentName};
    use crate::refusal::RefusalReason;

    fn client_config(name: &str, keys: &[&str], deployments: Option<&[&str]>) -> config::ClientConfig {
        config::ClientConfig {
            name: ClientName::new(name),
            key_hashes: keys.iter().map(|key| openssl::sha::sha256(key.as_bytes())).collect(),
            token_app_ids: Vec::new(),
            token_app_roles: Vec::new(),
            certificate_subjects: vec![CertificateSubject::new(&format!("CN={name}"))],
            allowed_deployments: deployments
                .map(|names| names.iter().map(|name| DeploymentName::parse(name).unwrap()).collect()),
            allows_stateful_calls: deployments.is_none(),
            recorded_content_override: None,
            class: config::RequestClass::default(),
            limits: None,
        }
    }

    fn registry(clients: Vec<config::ClientConfig>) -> ClientRegistry {
        let (limits, accounts) = (config::LimitsConfig::default(), ClientAccounts::new(Instant::now()));
        let books =
            LimitBooks { accounts: &accounts, open_budget: &|_, _| unreachable!("nobody has limits") };
        ClientRegistry::new(&config::ClientsConfig::Listed(clients), &limits, books, None, None)
    }

    #[test]
    fn a_key_or_certificate_authenticates_its_client_and_no_other() {
        let clients = registry(vec![
            client_config("a", &["a1", "a2"], None),
            client_config("b", &["b1"], Some(&["gpt-4o"])),
        ]);
        let table: [(&[&str], Option<&str>); 7] = [
            (&["a1"], Some("a")),
            (&["a2", "a1"], Some("a")),
            (&["wrong", "b1"], Some("b")),
            (&["a1", "b1"], None),
            (&["A1"], None),
            (&[""], None),
            (&[], None),
        ];
        for (keys, expected) in table {
            let admitted = clients.authenticate(keys.iter().map(|key| key.as_bytes()), None);
            let name = admitted.as_ref().ok().and_then(|client| client.name.as_ref());
            assert_eq!(name.map(ClientName::as_str), expected, "{keys:?}");
            if let Err(AuthError::Refused(refusal)) = admitted {
                assert_eq!(refusal.reason, RefusalReason::InvalidApiKey);
            }
        }
        let name_for = |subject: &str, keys: &[&str]| {
            let admitted = clients
                .authenticate(keys.iter().map(|key| key.as_bytes()), Some(&CertificateSubject::new(subject)));
            admitted.ok().and_then(|client| client.name.clone()).map(|name| name.to_string())
        };
        assert_eq!(name_for("CN=a", &[]).as_deref(), Some("a"));
        assert_eq!(name_for("CN=a", &["a1", "wrong"]).as_deref(), Some("a"));
        assert_eq!(name_for("CN=a", &["b1"]), None, "two clients");
        assert_eq!(name_for("CN=unknown", &["b1"]).as_deref(), Some("b"));
        assert_eq!(name_for("CN=unknown", &[]), None);
    }

    #[test]
    fn a_client_may_use_only_the_deployments_on_its_list() {
        let clients = registry(vec![client_config("b", &["b1"], Some(&["gpt-4o"]))]);
        let client = clients.authenticate([b"b1".as_slice()].into_iter(), None).unwrap();
        assert!(client.authorize_deployment(&DeploymentName::parse("GPT-4o").unwrap()).is_ok());
        assert!(client.authorize_deployment(&DeploymentName::parse("gpt-4o-mini").unwrap()).is_err());
        assert!(client.authorize_call_without_deployment().is_err());
    }
}
