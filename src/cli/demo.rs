//! `aoai-lb demo`: simulated resources with the load balancer in front, and some traffic for the status
//! page.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::cli_error::CliError;
use super::keys::{KeyGenerationError, generate_key, sha256_hex};
use super::logging::init_logging;
use super::runtime::start_background_runtime;
use crate::config::{self, ConfigError, Endpoint};
use crate::demo::{self, DeploymentKind, Simulator};
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
/// What is asked after the first prompt of a conversation.
const FOLLOW_UPS: [&str; 4] = ["Go on.", "And in one sentence?", "Why?", "What did I say?"];
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
/// requests distributed, quotas run low, and a cooldown. Some begin conversations.
async fn generate_traffic(listener: SocketAddr, key: String) {
    let Ok(endpoint) = Endpoint::parse(&format!("http://{listener}")) else { return };
    let traffic = Arc::new(Traffic { outbound: OutboundClient::new(REQUEST_TIMEOUT), endpoint, key });
    loop {
        if fastrand::u8(..4) == 0 {
            tokio::spawn(hold_conversation(Arc::clone(&traffic)));
        }
        let concurrent_requests = if fastrand::u8(..10) == 0 { 6 } else { 1 };
        for _ in 0..concurrent_requests {
            let traffic = Arc::clone(&traffic);
            tokio::spawn(async move {
                let messages = json!([{"role": "user", "content": sample_prompt()}]);
                let body = json!({"messages": messages, "stream": fastrand::u8(..3) == 0});
                let path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
                // The status page shows the outcome.
                let _ = traffic.post(path, &body).await;
            });
        }
        sleep(Duration::from_millis(fastrand::u64(400..2_000))).await;
    }
}

/// Asks something and comes back to the response a few times.
async fn hold_conversation(traffic: Arc<Traffic>) {
    let (mut prompt, mut previous_id) = (sample_prompt(), None);
    for _ in 0..fastrand::u8(2..6) {
        let body = json!({"model": "gpt-4o", "input": prompt, "previous_response_id": previous_id});
        let Some(response) = traffic.post("/openai/v1/responses", &body).await else { return };
        let Some(id) = response.get("id").and_then(Value::as_str) else { return };
        previous_id = Some(id.to_owned());
        prompt = fastrand::choice(FOLLOW_UPS).unwrap_or_default();
        sleep(Duration::from_millis(fastrand::u64(500..3_000))).await;
    }
}

fn sample_prompt() -> &'static str {
    fastrand::choice(SAMPLE_PROMPTS).unwrap_or_default()
}

/// Sends the generated traffic.
struct Traffic {
    outbound: OutboundClient,
    endpoint: Endpoint,
    key: String,
}

impl Traffic {
    /// The body of the response if that is JSON.
    async fn post(&self, path_and_query: &str, body: &Value) -> Option<Value> {
        let request = OutboundRequest {
            method: Method::POST,
            path_and_query,
            headers: &[("api-key", &self.key), ("content-type", "application/json")],
            body: Bytes::from(body.to_string()),
        };
        let response = self.outbound.send(&self.endpoint, request).await.ok()?;
        serde_json::from_slice(&response.body).ok()
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
        let (provisioned, standard): (Vec<_>, Vec<_>) = resource
            .deployments
            .iter()
            .partition(|deployment| matches!(deployment.kind, DeploymentKind::Provisioned { .. }));
        let api_key = resource.api_keys.first().map_or("", String::as_str);
        let address = simulator.address(name);
        for (backend, tier, deployments) in
            [(format!("{name}-ptu"), 1, provisioned), (name.to_owned(), 2, standard)]
        {
            if deployments.is_empty() {
                continue;
            }
            text += &format!("  - name: {backend}\n    endpoint: http://{address}\n    tier: {tier}\n");
            text += &format!("    credential: {{ api_key: {api_key} }}\n    deployments:\n");
            for deployment in deployments {
                let name = &deployment.name;
                let client_name = name.strip_suffix("-ptu").unwrap_or(name);
                text += &format!("      {client_name}: {name}\n");
            }
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

python3 - <<'PYTHON'      # pip install openai; a conversation stays on the resource that it began on
from openai import OpenAI
client, previous = OpenAI(base_url="http://{listen}/openai/v1/", api_key="{key}"), None
for text in ["My name is Ada", "What does a load balancer do?", "What did I say?"]:
    raw = client.responses.with_raw_response.create(model="gpt-4o", input=text, previous_response_id=previous)
    response = raw.parse()
    previous = response.id
    print(raw.headers["x-aoai-lb-backend"] + ":", response.output_text)
PYTHON

Stop it with Ctrl-C."#,
        records = records.display(),
    )
}
