//! The models that a client may use: the balancer's own answer to `GET /v1/models`.

use std::collections::HashSet;

use http::Method;

use crate::admission::client::Client;
use crate::azure::{ModelsPath, RequestTarget};
use crate::config::{Config, ModelsSource};
use crate::names::DeploymentName;
use crate::refusal::{Refusal, RefusalReason};

/// The balancer's own answer to a request for models. Names are spelled as in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelsAnswer {
    /// All deployments that the client may use, sorted by name.
    List(Vec<DeploymentName>),
    /// One of them.
    Model(DeploymentName),
}

/// The deployments that backends list.
pub(super) struct ModelList {
    source: ModelsSource,
    listed: HashSet<DeploymentName>,
    /// Whether some backend passes on names that no backend lists.
    passes_unlisted: bool,
}

impl ModelList {
    pub(super) fn new(config: &Config) -> Self {
        let maps = || config.backends.iter().map(|backend| &backend.deployments);
        Self {
            source: config.requests.models_source,
            listed: maps().flat_map(|map| map.listed_entries()).map(|(name, _)| name.clone()).collect(),
            passes_unlisted: maps().any(|map| map.passes_unlisted()),
        }
    }

    /// The answer to this request; `None` if it goes to a backend.
    ///
    /// # Errors
    /// `DeploymentNotFound` for a name that the client may not use.
    pub(super) fn answer(
        &self,
        method: &Method,
        target: &RequestTarget,
        client: &Client,
    ) -> Result<Option<ModelsAnswer>, Refusal> {
        let Some(path) = target.v1_models_path() else { return Ok(None) };
        if self.source == ModelsSource::DefaultBackend || !matches!(*method, Method::GET | Method::HEAD) {
            return Ok(None);
        }
        match path {
            ModelsPath::List => Ok(Some(ModelsAnswer::List(self.usable_by(client)))),
            ModelsPath::Model(name) => {
                let found = DeploymentName::parse(name).ok().and_then(|name| self.find(&name, client));
                // The same for a name that only others may use: a client learns nothing of those.
                found.map(|name| Some(ModelsAnswer::Model(name.clone()))).ok_or_else(model_not_found)
            }
        }
    }

    /// The deployments that this client may use, sorted by name.
    fn usable_by(&self, client: &Client) -> Vec<DeploymentName> {
        let mut names: Vec<_> = match client.allowed_deployments() {
            Some(allowed) => allowed.iter().filter_map(|name| self.find(name, client)).cloned().collect(),
            None => self.listed.iter().cloned().collect(),
        };
        names.sort_by_cached_key(DeploymentName::to_lowercase);
        names
    }

    /// The deployment of this name, if the client may use it. One that only the client's list names counts if
    /// some backend passes it on.
    fn find<'a>(&'a self, name: &DeploymentName, client: &'a Client) -> Option<&'a DeploymentName> {
        let Some(allowed) = client.allowed_deployments() else { return self.listed.get(name) };
        let allowed = allowed.get(name)?;
        self.listed.get(name).or(self.passes_unlisted.then_some(allowed))
    }
}

fn model_not_found() -> Refusal {
    let message = "this client has no deployment of that name; GET /v1/models lists those that it may use";
    Refusal::new(RefusalReason::DeploymentNotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::parse_target;
    use crate::config::{ClientsConfig, parse_and_check_yaml};

    const BACKENDS: &str = "
listeners: [ { address: '127.0.0.1:8080' } ]
backends:
  - { name: a, endpoint: 'https://a.test', credential: { api_key: k }, deployments: { gpt-4o: x, Embed: y } }
  - { name: b, endpoint: 'https://b.test', credential: { api_key: k }, deployments: { GPT-4o: x, o3: y, '*': '*' } }
";

    fn parse(yaml: &str) -> Config {
        parse_and_check_yaml(yaml, std::path::Path::new("."), &|_| None).unwrap().config
    }

    /// A client with this key of the configuration.
    fn client(deployments: &str) -> Client {
        let key = openssl::sha::sha256(b"key").map(|byte| format!("{byte:02x}")).concat();
        let clients = format!("clients: [ {{ name: c, keys: [ {{ sha256: '{key}' }} ], {deployments} }} ]\n");
        match parse(&format!("{BACKENDS}{clients}")).clients {
            ClientsConfig::Listed(clients) => Client::new(&clients[0]),
            ClientsConfig::Anyone => panic!("the file lists a client"),
        }
    }

    fn answer(yaml: &str, method: &Method, path: &str, client: &Client) -> Result<Option<String>, Refusal> {
        let list = ModelList::new(&parse(&format!("{yaml}clients: open\n")));
        let target = parse_target(path.as_bytes(), false).unwrap();
        let answer = list.answer(method, &target, client)?;
        Ok(answer.map(|answer| match answer {
            ModelsAnswer::List(names) => {
                names.iter().map(DeploymentName::as_str).collect::<Vec<_>>().join(" ")
            }
            ModelsAnswer::Model(name) => name.to_string(),
        }))
    }

    #[test]
    fn a_client_sees_the_deployments_that_it_may_use_in_the_spelling_of_the_file() {
        let (all, some) = (client(""), client("deployments: [EMBED, Own-Name]"));
        let listed_only = BACKENDS.replace(", '*': '*'", "");
        for (yaml, path, client, expected) in [
            (BACKENDS, "/v1/models", &all, Some("Embed gpt-4o o3")),
            (BACKENDS, "/openai/v1/models/GPT-4O", &all, Some("gpt-4o")),
            (BACKENDS, "/v1/models/own-name", &all, None),
            (BACKENDS, "/v1/models", &some, Some("Embed Own-Name")),
            (BACKENDS, "/v1/models/embed", &some, Some("Embed")),
            (BACKENDS, "/v1/models/own-name", &some, Some("Own-Name")),
            (BACKENDS, "/v1/models/gpt-4o", &some, None),
            (BACKENDS, "/v1/models/no%20name", &all, None),
            (&listed_only, "/v1/models", &some, Some("Embed")),
            (&listed_only, "/v1/models/own-name", &some, None),
        ] {
            let answer = answer(yaml, &Method::GET, path, client);
            match expected {
                Some(names) => assert_eq!(answer.unwrap().as_deref(), Some(names), "{path}"),
                None => {
                    assert_eq!(answer.unwrap_err().reason, RefusalReason::DeploymentNotFound, "{path}");
                }
            }
        }
    }

    #[test]
    fn other_calls_about_models_go_to_a_backend() {
        let passing_on = format!("{BACKENDS}requests: {{ models: home }}\n");
        for (yaml, method, path, is_answered) in [
            (BACKENDS, Method::HEAD, "/v1/models", true),
            (BACKENDS, Method::DELETE, "/v1/models/gpt-4o", false),
            (BACKENDS, Method::GET, "/openai/models", false),
            (BACKENDS, Method::GET, "/openai/v1/models/gpt-4o/more", false),
            (BACKENDS, Method::GET, "/openai/v1/files", false),
            (&passing_on, Method::GET, "/v1/models", false),
            (&passing_on, Method::GET, "/v1/models/none", false),
        ] {
            let answer = answer(yaml, &method, path, &client("")).unwrap();
            assert_eq!(answer.is_some(), is_answered, "{method} {path}");
        }
    }
}
