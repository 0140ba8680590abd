//! The traffic of the demo: enough to see requests distributed, and conversations that stay on their resources.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::caller::{Answer, Caller};

/// The prompts of the traffic.
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
const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
/// One in so many requests is for the model with the provisioned deployment, and uses about a third of that.
const PROVISIONED_REQUEST_RATIO: u8 = 5;

/// Sends a request now and then, some of them streams, and sometimes several at once. Some begin conversations. The
/// status page shows what becomes of them.
pub(super) async fn generate_traffic(caller: Caller, key: String) {
    caller.wait_until_ready().await;
    loop {
        match fastrand::u8(..10) {
            0 | 1 => drop(tokio::spawn(hold_conversation(caller.clone(), key.clone()))),
            2 => (0..6).for_each(|_| drop(tokio::spawn(send_chat(caller.clone(), key.clone())))),
            _ if fastrand::u8(..PROVISIONED_REQUEST_RATIO) == 0 => {
                let (caller, key) = (caller.clone(), key.clone());
                tokio::spawn(async move {
                    let body = json!({"model": "gpt-4.1", "input": sample_prompt()});
                    let _ = caller.post(&key, "/openai/v1/responses", &body).await;
                });
            }
            _ => drop(tokio::spawn(send_chat(caller.clone(), key.clone()))),
        }
        sleep(Duration::from_millis(fastrand::u64(400..2_000))).await;
    }
}

async fn send_chat(caller: Caller, key: String) {
    let messages = json!([{"role": "user", "content": sample_prompt()}]);
    let body = json!({"messages": messages, "stream": fastrand::u8(..3) == 0});
    let _ = caller.post(&key, CHAT, &body).await;
}

/// Asks something and comes back to the response a few times.
async fn hold_conversation(caller: Caller, key: String) {
    let (mut prompt, mut previous_id) = (sample_prompt(), None);
    for _ in 0..fastrand::u8(2..6) {
        let Some((_, id)) = take_turn(&caller, &key, prompt, previous_id.as_deref()).await else { return };
        previous_id = Some(id);
        prompt = fastrand::choice(FOLLOW_UPS).unwrap_or_default();
        sleep(Duration::from_millis(fastrand::u64(500..3_000))).await;
    }
}

/// A turn of a conversation: its answer, and the id of the response. `None` if it has none.
pub(super) async fn take_turn(
    caller: &Caller,
    key: &str,
    prompt: &str,
    previous_id: Option<&str>,
) -> Option<(Answer, String)> {
    let body = json!({"model": "gpt-4o", "input": prompt, "previous_response_id": previous_id});
    let answer = caller.post(key, "/openai/v1/responses", &body).await.ok()?;
    let id = answer.body.get("id").and_then(Value::as_str)?.to_owned();
    Some((answer, id))
}

fn sample_prompt() -> &'static str {
    fastrand::choice(SAMPLE_PROMPTS).unwrap_or_default()
}
