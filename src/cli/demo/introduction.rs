//! The first and the last words of the demo.

use std::time::Duration;

use super::places::Places;
use super::scenes::Scenes;

/// What there is, how to use it, and what comes.
pub(super) fn introduction(places: &Places, key: &str, step: Duration) -> String {
    let Places { listen, admin, .. } = places;
    let (config_file, record_file) = (places.config_file(), places.record_file());
    let story_duration = humantime::format_duration(step.saturating_mul(Scenes::COUNT as u32));
    format!(
        r#"A load balancer in front of three simulated Azure OpenAI resources. Nothing leaves this machine.

Status page     http://{admin}/
Base URL        http://{listen}/openai/v1/   (AzureOpenAI: azure_endpoint http://{listen})
API key         {key}
Models          gpt-4o and text-embedding-3-small have room for your own programs and agents;
                gpt-4.1 has a small provisioned deployment, which the story fills
Configuration   {config}
Records         {records}

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

Open the status page now. A story of {steps} steps follows, within {story_duration}: each sends requests and says
what became of them, where to look, and how to repeat it.
Stop it with Ctrl-C.
"#,
        config = config_file.display(),
        records = record_file.display(),
        steps = Scenes::COUNT,
    )
}

/// What is left when the demo has ended.
pub(super) fn closing_words(places: &Places) -> String {
    let directory = places.directory.display();
    format!(
        "\nThe demo has ended, and its resources with it. Its records are in {}.\nTo remove all that is left: rm -r {directory}\n",
        places.record_file().display()
    )
}
