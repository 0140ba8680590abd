//! Whose key, token or certificate it is, and what that client may use.
//!
//! Keys are known only by their SHA-256. A presented key is hashed, looked up, and the
//! digest compared once more in constant time. Tokens are `tokens.rs`'s.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::tokens::{NoEntry, Tokens};
use crate::config;
use crate::credentials::signing_keys::Signers;
use crate::names::{ClientName, Deployment, Subject};
use crate::refusal::{Reason, Refusal};

/// What a client may use and how it is recorded.
#[derive(Debug)]
pub struct Client {
    /// Its name in records and metrics; `None` when the balancer is open to everyone.
    pub name: Option<ClientName>,
    /// The deployments it may use; `None`: all.
    deployments: Option<HashSet<Deployment>>,
    /// Whether it may make calls that name no deployment.
    pub stateful: bool,
    /// What of its prompts and answers is kept, where it differs from the rest.
    pub content: Option<config::Content>,
}

impl Client {
    fn new(config: &config::Client) -> Self {
        Self {
            name: Some(config.name.clone()),
            deployments: config.deployments.as_ref().map(|names| names.iter().cloned().collect()),
            stateful: config.stateful,
            content: config.content,
        }
    }

    /// One that may use everything.
    pub fn unrestricted() -> Self {
        Self { name: None, deployments: None, stateful: true, content: None }
    }

    /// Whether it may use this deployment.
    ///
    /// # Errors
    /// `deployment_not_allowed`.
    pub fn may_use(&self, deployment: &Deployment) -> Result<(), Refusal> {
        if self.deployments.as_ref().is_none_or(|listed| listed.contains(deployment)) {
            return Ok(());
        }
        let message = format!("this key may not use the deployment '{deployment}'");
        Err(Refusal::new(Reason::DeploymentNotAllowed, message))
    }

    /// Whether it may make calls that name no deployment: files, stored responses, models, …
    ///
    /// # Errors
    /// `deployment_not_allowed`.
    pub fn may_keep_state(&self) -> Result<(), Refusal> {
        if self.stateful {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::DeploymentNotAllowed,
            "this key may only make calls that name a deployment; \
             calls such as files, models or stored responses need `stateful: true` for its client",
        ))
    }
}

/// All clients, found by what they show.
#[derive(Debug)]
pub enum Clients {
    /// Everyone may call; keys are not looked at.
    Open(Arc<Client>),
    /// Only these.
    Listed(Box<Listed>),
}

/// Clients by what they show.
#[derive(Debug)]
pub struct Listed {
    by_key: HashMap<[u8; 32], ([u8; 32], Arc<Client>)>,
    by_certificate: HashMap<Subject, Arc<Client>>,
    tokens: Option<Tokens>,
    all: Vec<Arc<Client>>,
}

/// Why nobody is admitted.
#[derive(Debug)]
pub enum Stranger {
    /// The key that a token was signed with is not known; fresh ones may have it.
    UnknownKey(Arc<Signers>),
    /// For good.
    Refused(Refusal),
}

impl Clients {
    /// The clients of a configuration; `signers` are those whose tokens it believes.
    pub fn new(
        config: &config::Clients,
        tokens: Option<&config::ClientTokens>,
        signers: Option<Arc<Signers>>,
    ) -> Self {
        let listed = match config {
            config::Clients::Open => {
                return Self::Open(Arc::new(Client::unrestricted()));
            }
            config::Clients::Listed(listed) => listed,
        };
        let clients: Vec<(&config::Client, Arc<Client>)> =
            listed.iter().map(|client| (client, Arc::new(Client::new(client)))).collect();
        let mut by_key = HashMap::new();
        let mut by_certificate = HashMap::new();
        for (config, client) in &clients {
            for key in &config.keys {
                by_key.insert(*key, (*key, Arc::clone(client)));
            }
            for subject in &config.certificates {
                by_certificate.insert(subject.clone(), Arc::clone(client));
            }
        }
        let tokens = tokens.zip(signers).map(|(config, signers)| Tokens::new(config, signers, &clients));
        let all = clients.into_iter().map(|(_, client)| client).collect();
        Self::Listed(Box::new(Listed { by_key, by_certificate, tokens, all }))
    }

    /// The client of this name; `None` where there is none, or everyone may call.
    pub fn named(&self, name: &str) -> Option<&Arc<Client>> {
        let Self::Listed(listed) = self else { return None };
        listed.all.iter().find(|client| client.name.as_ref().is_some_and(|known| known.as_str() == name))
    }

    /// All that are listed; none where everyone may call.
    pub fn all(&self) -> &[Arc<Client>] {
        match self {
            Self::Open(_) => &[],
            Self::Listed(listed) => &listed.all,
        }
    }

    /// Whose these are. Everything that is presented is looked at: keys and tokens, and the
    /// subject of a certificate; one that is known admits.
    ///
    /// # Errors
    /// `invalid_api_key` when none is known, or when two belong to different clients.
    pub fn admit<'k>(
        &self,
        presented: impl Iterator<Item = &'k [u8]>,
        subject: Option<&Subject>,
    ) -> Result<Arc<Client>, Stranger> {
        match self {
            Self::Open(client) => Ok(Arc::clone(client)),
            Self::Listed(listed) => listed.admit(presented, subject),
        }
    }
}

impl Listed {
    fn admit<'k>(
        &self,
        presented: impl Iterator<Item = &'k [u8]>,
        subject: Option<&Subject>,
    ) -> Result<Arc<Client>, Stranger> {
        let mut found = subject.and_then(|subject| self.by_certificate.get(subject)).map(Arc::clone);
        let (mut any, mut unknown, mut why) = (false, None, None);
        for key in presented {
            any = true;
            let client = match self.client_of(key) {
                Ok(Some(client)) => client,
                Ok(None) => continue,
                Err((NoEntry::UnknownKey, tokens)) => {
                    unknown = Some(Arc::clone(tokens.signers()));
                    continue;
                }
                Err((NoEntry::Refused(problem), _)) => {
                    why = Some(problem);
                    continue;
                }
            };
            match &found {
                Some(other) if !Arc::ptr_eq(other, &client) => {
                    let message = "the request carries valid credentials of two different clients; send one";
                    return Err(Stranger::Refused(refused(message)));
                }
                _ => found = Some(client),
            }
        }
        match found {
            Some(client) => Ok(client),
            None => Err(match unknown {
                Some(signers) => Stranger::UnknownKey(signers),
                None => Stranger::Refused(refused(why.unwrap_or(if any { INVALID } else { MISSING }))),
            }),
        }
    }

    /// Whose key or token this is.
    fn client_of(&self, key: &[u8]) -> Result<Option<Arc<Client>>, (NoEntry, &Tokens)> {
        // The one-shot function looks its algorithm up each time, which takes longer than the hash.
        let mut hash = openssl::sha::Sha256::new();
        hash.update(key);
        let digest = hash.finish();
        if let Some((known, client)) = self.by_key.get(&digest) {
            return Ok(openssl::memcmp::eq(known, &digest).then(|| Arc::clone(client)));
        }
        match &self.tokens {
            Some(tokens) if Tokens::is_one(key) => {
                tokens.client_of(key, &digest).map(Some).map_err(|problem| (problem, tokens))
            }
            _ => Ok(None),
        }
    }
}

const INVALID: &str =
    "Access denied due to an invalid key. Make sure to use a key that was issued for this endpoint.";
const MISSING: &str = "Access denied due to a missing key. Send it as the header 'api-key', \
                       'Ocp-Apim-Subscription-Key' or 'Authorization: Bearer', \
                       or as the query parameter 'api-key' or 'subscription-key'.";
/// What a token is told whose key is not known, fresh keys or not.
pub const UNKNOWN_KEY: &str = "the key that the bearer token was signed with is not one of Entra ID's";

/// A refusal of whoever calls.
pub fn refused(message: &'static str) -> Refusal {
    Refusal::new(Reason::InvalidApiKey, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, keys: &[&str], deployments: Option<&[&str]>) -> config::Client {
        config::Client {
            name: ClientName::new(name),
            keys: keys.iter().map(|key| openssl::sha::sha256(key.as_bytes())).collect(),
            app_ids: Vec::new(),
            roles: Vec::new(),
            certificates: vec![Subject::new(&format!("CN={name}"))],
            deployments: deployments
                .map(|names| names.iter().map(|name| Deployment::parse(name).unwrap()).collect()),
            stateful: deployments.is_none(),
            content: None,
        }
    }

    fn listed(clients: Vec<config::Client>) -> Clients {
        Clients::new(&config::Clients::Listed(clients), None, None)
    }

    #[test]
    fn keys_admit_their_client_and_no_other() {
        let clients = listed(vec![client("a", &["a1", "a2"], None), client("b", &["b1"], Some(&["gpt-4o"]))]);
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
            let admitted = clients.admit(keys.iter().map(|key| key.as_bytes()), None);
            let name = admitted.as_ref().ok().and_then(|client| client.name.as_ref());
            assert_eq!(name.map(ClientName::as_str), expected, "{keys:?}");
            if let Err(Stranger::Refused(refusal)) = admitted {
                assert_eq!(refusal.reason, Reason::InvalidApiKey);
            }
        }
        let with = |subject: &str, keys: &[&str]| {
            let admitted = clients.admit(keys.iter().map(|key| key.as_bytes()), Some(&Subject::new(subject)));
            admitted.ok().and_then(|client| client.name.clone()).map(|name| name.to_string())
        };
        assert_eq!(with("CN=a", &[]).as_deref(), Some("a"));
        assert_eq!(with("CN=a", &["a1", "wrong"]).as_deref(), Some("a"));
        assert_eq!(with("CN=a", &["b1"]), None, "two clients");
        assert_eq!(with("CN=stranger", &["b1"]).as_deref(), Some("b"));
        assert_eq!(with("CN=stranger", &[]), None);
    }

    #[test]
    fn a_list_of_deployments_is_a_list() {
        let clients = listed(vec![client("b", &["b1"], Some(&["gpt-4o"]))]);
        let client = clients.admit([b"b1".as_slice()].into_iter(), None).unwrap();
        assert!(client.may_use(&Deployment::parse("GPT-4o").unwrap()).is_ok());
        assert!(client.may_use(&Deployment::parse("gpt-4o-mini").unwrap()).is_err());
        assert!(client.may_keep_state().is_err());
    }
}
