//! The configuration of the demo: the file that an operator would write for its resources.

use super::places::Places;
use crate::cli::keys::{KeyGenerationError, generate_key, sha256_hex};
use crate::demo::{DeploymentKind, Simulator};

/// The client whose key is printed.
const USER: &str = "you";
/// The client of the traffic and of most of the story.
const TRAFFIC: &str = "traffic";
/// The client that reaches its limit in the story.
pub(super) const LIMITED: &str = "batch-job";
/// How many requests that client may send in a minute.
const LIMITED_REQUESTS_PER_MINUTE: u32 = 5;
/// The backend with the provisioned deployment.
pub(super) const PROVISIONED_BACKEND: &str = "eastus-ptu";

/// The keys of the clients.
pub(super) struct ClientKeys {
    pub(super) user: String,
    pub(super) traffic: String,
    pub(super) limited: String,
}

impl ClientKeys {
    /// # Errors
    /// [`KeyGenerationError`].
    pub(super) fn generate() -> Result<Self, KeyGenerationError> {
        Ok(Self { user: generate_key()?, traffic: generate_key()?, limited: generate_key()? })
    }
}

/// The text of the file.
pub(super) fn demo_config_yaml(places: &Places, simulator: &Simulator, keys: &ClientKeys) -> String {
    let mut text = format!(
        "# The configuration of a running `aoai-lb demo`. Its resources exist only as long as that runs.\n\
         listeners:\n  - address: \"{}\"\nbackends:\n",
        places.listen
    );
    for name in simulator.resource_names() {
        let resource = simulator.resource_definition(name);
        let (provisioned, standard): (Vec<_>, Vec<_>) = resource
            .deployments
            .iter()
            .partition(|deployment| matches!(deployment.kind, DeploymentKind::Provisioned { .. }));
        let api_key = resource.api_keys.first().map_or("", String::as_str);
        let address = simulator.address(name);
        for (backend, tier, more, deployments) in [
            (format!("{name}-ptu"), 1, "    provisioned: { units: 15 }\n", provisioned),
            (name.to_owned(), 2, "", standard),
        ] {
            if deployments.is_empty() {
                continue;
            }
            text += &format!("  - name: {backend}\n    endpoint: http://{address}\n    tier: {tier}\n{more}");
            text += &format!("    credential: {{ api_key: {api_key} }}\n    deployments:\n");
            for deployment in deployments {
                let name = &deployment.name;
                let client_name = name.strip_suffix("-ptu").unwrap_or(name);
                text += &format!("      {client_name}: {name}\n");
            }
        }
    }
    text += "clients:\n";
    for (name, key, more) in [
        (USER, &keys.user, String::new()),
        (TRAFFIC, &keys.traffic, String::new()),
        (
            LIMITED,
            &keys.limited,
            format!("    limits: {{ requests_per_minute: {LIMITED_REQUESTS_PER_MINUTE} }}\n"),
        ),
    ] {
        text += &format!("  - name: {name}\n    keys:\n      - sha256: \"{}\"\n{more}", sha256_hex(key));
    }
    text += "# Examples, not anybody's prices.\nprices:\n  currency: USD\n  rows:\n";
    for (deployment, prices) in [
        ("gpt-4o", "input: 2.50, cached: 1.25, output: 10.00"),
        ("gpt-4.1", "input: 2.00, cached: 0.50, output: 8.00"),
        ("text-embedding-3-small", "input: 0.02"),
    ] {
        text += &format!("    - {{ deployment: {deployment}, {prices} }}\n");
    }
    let records = places.record_file();
    let records = records.display();
    text +=
        &format!("record:\n  jsonl: {{ path: \"{records}\" }}\nadmin: {{ address: \"{}\" }}\n", places.admin);
    text + &format!(
        "server: {{ drain_delay: 0s, state_directory: \"{}\" }}\n",
        places.state_directory().display()
    )
}
