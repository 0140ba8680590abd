//! Simulated resources, and pieces of YAML for a configuration that uses them.

use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, ResponseTiming, SimulatedResource, Simulator};

use super::CLIENT_KEY;

/// Further YAML of a backend: its list of deployments. Without it, the balancer keeps no health of a
/// single deployment until the first successful response for it.
pub const LISTED_DEPLOYMENTS: &str = "deployments: { gpt-4o: gpt-4o, other: other }";

/// A simulated resource with the deployments `gpt-4o`, `other` and `whisper`, without rate limits.
pub fn unlimited_resource(name: &str) -> SimulatedResource {
    SimulatedResource::new(name)
        .with_api_key(format!("{name}-key"))
        .with_deployment("gpt-4o", "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
        .with_deployment("other", "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
        .with_deployment("whisper", "whisper-1", DeploymentKind::Unlimited)
        .with_recorded_request_bodies()
}

/// A simulated resource with the deployment `gpt-4o` of this kind, which responds without delays.
pub fn instant_resource(name: &str, kind: DeploymentKind) -> SimulatedResource {
    let resource = SimulatedResource::new(name).with_api_key(format!("{name}-key"));
    let resource = resource.with_deployment("gpt-4o", "gpt-4o-2024-11-20", kind);
    SimulatedResource { timing: instant_timing(), ..resource }
}

/// Starts simulated resources with these names, which respond without delays.
pub async fn start_simulator(names: &[&str]) -> Simulator {
    let resources = names
        .iter()
        .map(|name| SimulatedResource { timing: instant_timing(), ..unlimited_resource(name) })
        .collect();
    Simulator::start(resources).await.unwrap()
}

/// Responses without the delays of a model.
fn instant_timing() -> ResponseTiming {
    ResponseTiming { first_byte_delay: Duration::ZERO, event_interval: Duration::ZERO }
}

/// The YAML entry of `backends` for a simulated resource; `extra_yaml` are further lines of it.
pub fn simulated_backend_yaml(azure: &Simulator, name: &str, extra_yaml: &str) -> String {
    backend_yaml(name, &format!("http://{}", azure.address(name)), extra_yaml)
}

/// The YAML entry of `backends` for an endpoint; `extra_yaml` are further lines of it.
pub fn backend_yaml(name: &str, endpoint: &str, extra_yaml: &str) -> String {
    let extra_yaml: String = extra_yaml.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "  - name: {name}\n    endpoint: {endpoint}\n    credential: {{ api_key: {name}-key }}\n{extra_yaml}"
    )
}

/// The YAML entries for all simulated resources, as backends of one tier that list their deployments.
pub fn listed_backends_yaml(azure: &Simulator) -> String {
    azure
        .resource_names()
        .iter()
        .map(|name| simulated_backend_yaml(azure, name, LISTED_DEPLOYMENTS))
        .collect()
}

/// The YAML entries for all simulated resources, as backends of one tier.
pub fn all_backends_yaml(azure: &Simulator) -> String {
    azure.resource_names().iter().map(|name| simulated_backend_yaml(azure, name, "")).collect()
}

pub fn sha256_hex(key: &str) -> String {
    openssl::sha::sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `clients` block of the configuration, with `team-a`.
pub fn clients_yaml() -> String {
    format!("clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(CLIENT_KEY))
}
