//! `aoai-lb demo`: simulated resources with the load balancer in front, and some traffic for the status
//! page.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::cli_error::CliError;
use super::keys::{KeyGenerationError, generate_key, sha256_hex};
use super::logging::init_logging;
use super::runtime::start_background_runtime;
use crate::config::{self, ConfigError, Endpoint};
use crate::demo::{self, Simulator};
use crate::outbound::{OutboundClient, OutboundRequest};
use crate::server::{self, StartError};

/// The arguments of `aoai-lb demo`.
#[derive(Clone, Copy, Args)]
pub(super) struct DemoArguments {
    /// The address of the load balancer
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The address of the status page
    #[arg(long, default_value = "127.0.0.1:9901")]
    admin: SocketAddr,
}

/// The prompts of the generated traffic.
const SAMPLE_PROMPTS: [&str; 6] = [
    "What does a load balancer do?",
    "Summarise the incident of last night in three sentences.",
    "Translate into French: the change window is zero.",
    "Write a haiku about token limits.",
    "List five names for a cat.",
    "Explain round robin to a child.",
];
/// How long a response to the generated traffic may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// The simulated resources cannot listen, or standard output cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The configuration of the demo is invalid, which is a fault of aoai-lb.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The load balancer cannot start; most likely its address is in use.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No key can be generated.
    #[error(transparent)]
    Key(#[from] KeyGenerationError),
}

/// Runs the demo until it is interrupted.
pub(super) fn run(arguments: DemoArguments) -> Result<(), CliError> {
    Ok(run_demo(arguments, &start_background_runtime()?)?)
}

fn run_demo(arguments: DemoArguments, background: &Runtime) -> Result<(), DemoError> {
    init_logging();
    let simulator = background.block_on(Simulator::start(demo::demo_resources()))?;
    let (user_key, traffic_key) = (generate_key()?, generate_key()?);
    let records = std::env::temp_dir().join(format!("aoai-lb-demo-{}.jsonl", std::process::id()));
    let yaml =
        demo_config_yaml(arguments, &simulator, &[("demo", &user_key), ("traffic", &traffic_key)], &records);
    let mut checked = config::parse_and_check_yaml(&yaml, Path::new(""), &|_| None)?;
    checked.config.server.state_directory = None;
    server::check_addresses_are_free(&checked.config, &[])?;
    print_banner(arguments, &simulator, &user_key, &records)?;
    background.spawn(generate_traffic(arguments.listen, traffic_key));
    server::run(checked, None, false, background)?;
    Ok(())
}

/// Sends a request now and then, some of them streams, and sometimes several at once: enough to see
/// requests distributed, quotas run low, and a cooldown.
async fn generate_traffic(listener: SocketAddr, key: String) {
    let Ok(endpoint) = Endpoint::parse(&format!("http://{listener}")) else { return };
    let outbound = std::sync::Arc::new(OutboundClient::new(REQUEST_TIMEOUT));
    loop {
        let concurrent_requests = if fastrand::u8(..10) == 0 { 6 } else { 1 };
        for _ in 0..concurrent_requests {
            let (outbound, endpoint, key) = (std::sync::Arc::clone(&outbound), endpoint.clone(), key.clone());
            tokio::spawn(async move {
                let prompt = fastrand::choice(SAMPLE_PROMPTS).unwrap_or_default();
                let messages = json!([{"role": "user", "content": prompt}]);
                let body = json!({"messages": messages, "stream": fastrand::u8(..3) == 0}).to_string();
                let request = OutboundRequest {
                    method: Method::POST,
                    path_and_query: "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
                    headers: &[("api-key", &key), ("content-type", "application/json")],
                    body: Bytes::from(body),
                };
                // The status page shows the outcome.
                let _ = outbound.send(&endpoint, request).await;
            });
        }
        sleep(Duration::from_millis(fastrand::u64(400..2_000))).await;
    }
}

/// The configuration of the demo: the file that an operator would write for its resources.
fn demo_config_yaml(
    DemoArguments { listen, admin }: DemoArguments,
    simulator: &Simulator,
    keys: &[(&str, &str)],
    records: &Path,
) -> String {
    let mut text = format!("listeners:\n  - address: \"{listen}\"\nbackends:\n");
    for name in simulator.resource_names() {
        let resource = simulator.resource_definition(name);
        let is_provisioned = resource
            .deployments
            .iter()
            .any(|deployment| matches!(deployment.kind, demo::DeploymentKind::Provisioned { .. }));
        let api_key = resource.api_keys.first().map_or("", String::as_str);
        let address = simulator.address(name);
        text += &format!("  - name: {name}\n    endpoint: http://{address}\n");
        text += &format!(
            "    tier: {}\n    credential: {{ api_key: {api_key} }}\n",
            if is_provisioned { 1 } else { 2 }
        );
        text += "    deployments:\n";
        for deployment in &resource.deployments {
            let name = &deployment.name;
            let client_name = name.strip_suffix("-ptu").unwrap_or(name);
            text += &format!("      {client_name}: {name}\n");
        }
    }
    text += "clients:\n";
    for (name, key) in keys {
        text += &format!("  - name: {name}\n    keys:\n      - sha256: \"{}\"\n", sha256_hex(key));
    }
    text += &format!("record:\n  jsonl: {{ path: {} }}\n", records.display());
    text + &format!("admin: {{ address: \"{admin}\" }}\nserver: {{ drain_delay: 0s }}\n")
}

fn print_banner(
    DemoArguments { listen, admin }: DemoArguments,
    simulator: &Simulator,
    key: &str,
    records: &Path,
) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "Simulated Azure OpenAI resources:")?;
    for name in simulator.resource_names() {
        writeln!(out, "  {name:<12} http://{}", simulator.address(name))?;
    }
    writeln!(
        out,
        r#"
Load balancer in front of them: http://{listen}
Status page:                    http://{admin}/  (with some generated traffic)
Record of every request:        {records}

curl "http://{listen}/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21" \
  -H "api-key: {key}" -H "content-type: application/json" \
  -d '{{"messages":[{{"role":"user","content":"Hello"}}]}}'

python3 - <<'PYTHON'      # pip install openai
from openai import AzureOpenAI
client = AzureOpenAI(azure_endpoint="http://{listen}", api_key="{key}", api_version="2024-10-21")
response = client.chat.completions.create(model="gpt-4o", messages=[{{"role": "user", "content": "Hello"}}])
print(response.choices[0].message.content)
PYTHON

Stop it with Ctrl-C."#,
        records = records.display(),
    )
}
