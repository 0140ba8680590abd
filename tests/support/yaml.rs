//! Simulated resources, and the pieces of YAML that make a configuration for them.

use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, ResponseTiming, SimulatedResource, Simulator};

use super::CLIENT_KEY;

/// The line of an entry without which a deployment that nobody lists has no rests of its own
/// before its first answer.
pub const LISTED_DEPLOYMENTS: &str = "deployments: { gpt-4o: gpt-4o, other: other }";

/// A simulated resource with the deployments `gpt-4o` and `other`, without limits.
pub fn unlimited_resource(name: &str) -> SimulatedResource {
    SimulatedResource::new(name)
        .with_api_key(format!("{name}-key"))
        .with_deployment("gpt-4o", "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
        .with_deployment("other", "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
        .with_deployment("whisper", "whisper-1", DeploymentKind::Unlimited)
        .with_recorded_request_bodies()
}

/// Simulated resources with these names.
pub async fn start_simulator(names: &[&str]) -> Simulator {
    let resources = names
        .iter()
        .map(|name| SimulatedResource { timing: instant_timing(), ..unlimited_resource(name) })
        .collect();
    Simulator::start(resources).await.unwrap()
}

/// Answers without the pauses that a model makes.
pub fn instant_timing() -> ResponseTiming {
    ResponseTiming { first_byte_delay: Duration::ZERO, event_interval: Duration::ZERO }
}

/// The entry of a configuration for a simulated resource; `extra_yaml` are further lines of it.
pub fn simulated_backend_yaml(azure: &Simulator, name: &str, extra_yaml: &str) -> String {
    backend_yaml(name, &format!("http://{}", azure.address(name)), extra_yaml)
}

/// The entry of a configuration for an endpoint; `extra_yaml` are further lines of it.
pub fn backend_yaml(name: &str, endpoint: &str, extra_yaml: &str) -> String {
    let extra_yaml: String = extra_yaml.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "  - name: {name}\n    endpoint: {endpoint}\n    credential: {{ api_key: {name}-key }}\n{extra_yaml}"
    )
}

/// All resources of the simulator as backends of one tier that list their deployments.
pub fn listed_backends_yaml(azure: &Simulator) -> String {
    azure
        .resource_names()
        .iter()
        .map(|name| simulated_backend_yaml(azure, name, LISTED_DEPLOYMENTS))
        .collect()
}

/// All resources of the simulator as backends of one tier.
pub fn all_backends_yaml(azure: &Simulator) -> String {
    azure.resource_names().iter().map(|name| simulated_backend_yaml(azure, name, "")).collect()
}

pub fn sha256_hex(key: &str) -> String {
    openssl::sha::sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `clients` block with `team-a`.
pub fn clients_yaml() -> String {
    format!("clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(CLIENT_KEY))
}
