//! Whose key it is, and what that client may use.
//!
//! Keys are known only by their SHA-256. A presented key is hashed, looked up, and the
//! digest compared once more in constant time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config;
use crate::names::{ClientName, Deployment};
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

/// All clients, found by key.
#[derive(Debug)]
pub enum Clients {
    /// Everyone may call; keys are not looked at.
    Open(Arc<Client>),
    /// Only these.
    Listed(HashMap<[u8; 32], ([u8; 32], Arc<Client>)>),
}

impl Clients {
    /// The clients of a configuration.
    pub fn new(config: &config::Clients) -> Self {
        let listed = match config {
            config::Clients::Open => {
                return Self::Open(Arc::new(Client {
                    name: None,
                    deployments: None,
                    stateful: true,
                    content: None,
                }));
            }
            config::Clients::Listed(listed) => listed,
        };
        let mut by_key = HashMap::new();
        for client in listed {
            let shared = Arc::new(Client {
                name: Some(client.name.clone()),
                deployments: client.deployments.as_ref().map(|names| names.iter().cloned().collect()),
                stateful: client.stateful,
                content: client.content,
            });
            for key in &client.keys {
                by_key.insert(*key, (*key, Arc::clone(&shared)));
            }
        }
        Self::Listed(by_key)
    }

    /// Whose keys these are. Every key presented is looked at; one that is known admits.
    ///
    /// # Errors
    /// `invalid_api_key` when none is known, or when two belong to different clients.
    pub fn admit<'k>(&self, presented: impl Iterator<Item = &'k [u8]>) -> Result<Arc<Client>, Refusal> {
        let by_key = match self {
            Self::Open(client) => return Ok(Arc::clone(client)),
            Self::Listed(by_key) => by_key,
        };
        let (mut found, mut any): (Option<&Arc<Client>>, bool) = (None, false);
        for key in presented {
            any = true;
            let digest = openssl::sha::sha256(key);
            let Some((known, client)) = by_key.get(&digest) else { continue };
            if !openssl::memcmp::eq(known, &digest) {
                continue;
            }
            match found {
                Some(other) if !Arc::ptr_eq(other, client) => {
                    return Err(refused("the request carries valid keys of two different clients; send one"));
                }
                _ => found = Some(client),
            }
        }
        match found {
            Some(client) => Ok(Arc::clone(client)),
            None if any => Err(refused(
                "Access denied due to an invalid key. Make sure to use a key that was issued for this endpoint.",
            )),
            None => Err(refused(
                "Access denied due to a missing key. Send it as the header 'api-key', \
                 'Ocp-Apim-Subscription-Key' or 'Authorization: Bearer', \
                 or as the query parameter 'api-key' or 'subscription-key'.",
            )),
        }
    }
}

fn refused(message: &'static str) -> Refusal {
    Refusal::new(Reason::InvalidApiKey, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, keys: &[&str], deployments: Option<&[&str]>) -> config::Client {
        config::Client {
            name: ClientName::new(name),
            keys: keys.iter().map(|key| openssl::sha::sha256(key.as_bytes())).collect(),
            deployments: deployments
                .map(|names| names.iter().map(|name| Deployment::parse(name).unwrap()).collect()),
            stateful: deployments.is_none(),
            content: None,
        }
    }

    #[test]
    fn keys_admit_their_client_and_no_other() {
        let clients = Clients::new(&config::Clients::Listed(vec![
            client("a", &["a1", "a2"], None),
            client("b", &["b1"], Some(&["gpt-4o"])),
        ]));
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
            let admitted = clients.admit(keys.iter().map(|key| key.as_bytes()));
            let name = admitted.as_ref().ok().and_then(|client| client.name.as_ref());
            assert_eq!(name.map(ClientName::as_str), expected, "{keys:?}");
            if let Err(refusal) = admitted {
                assert_eq!(refusal.reason, Reason::InvalidApiKey);
            }
        }
    }

    #[test]
    fn a_list_of_deployments_is_a_list() {
        let clients = Clients::new(&config::Clients::Listed(vec![client("b", &["b1"], Some(&["gpt-4o"]))]));
        let client = clients.admit([b"b1".as_slice()].into_iter()).unwrap();
        assert!(client.may_use(&Deployment::parse("GPT-4o").unwrap()).is_ok());
        assert!(client.may_use(&Deployment::parse("gpt-4o-mini").unwrap()).is_err());
        assert!(client.may_keep_state().is_err());
    }
}
