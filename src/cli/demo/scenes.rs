//! The steps of the story: each sends requests and reports what the load balancer did with them, where to see it,
//! and how to repeat it. What is reported is read from responses and the status, never assumed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::caller::{Answer, Caller};
use super::configuration::{ClientKeys, LIMITED, PROVISIONED_BACKEND};
use super::places::Places;
use super::traffic::take_turn;

const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
const RESPONSES: &str = "/openai/v1/responses";
/// How many requests show how they are distributed.
const DISTRIBUTED_REQUESTS: usize = 6;
/// Who begins a conversation, and what is said afterwards.
const NAMES: [&str; 3] = ["Ada", "Grace", "Edsger"];
const FOLLOW_UPS: [&str; 2] = ["What does a load balancer do?", "What did I say first?"];
/// Two prompts of so many words are more than the provisioned deployment can take: it refuses the third, for some 20 s.
const LONG_PROMPT_WORDS: usize = 1_300;
/// How many such requests are sent at most, and how many after the first one that another backend answers.
const MAX_LONG_REQUESTS: usize = 12;
const REQUESTS_AFTER_SPILL: usize = 2;
/// How many requests the limited client sends.
const LIMITED_REQUESTS: usize = 8;

/// A step, as it has happened.
pub(super) struct Scene {
    pub(super) title: &'static str,
    pub(super) facts: Vec<String>,
    pub(super) look_at: &'static str,
    pub(super) commands: Vec<String>,
}

/// What the steps need.
pub(super) struct Scenes {
    pub(super) caller: Caller,
    pub(super) keys: ClientKeys,
    pub(super) places: Places,
}

impl Scenes {
    pub(super) const COUNT: usize = 5;

    /// Plays a step, by its number from 0.
    pub(super) async fn play(&self, number: usize) -> Scene {
        match number {
            0 => self.distribution().await,
            1 => self.conversations().await,
            2 => self.spill_over().await,
            3 => self.limit().await,
            _ => self.cost().await,
        }
    }

    async fn distribution(&self) -> Scene {
        let body = json!({"messages": [{"role": "user", "content": "Hello"}]});
        let mut answers = Vec::new();
        for _ in 0..DISTRIBUTED_REQUESTS {
            answers.push(self.post(&self.keys.traffic, CHAT, &body).await);
        }
        Scene {
            title: "Three resources look like one",
            facts: vec![format!("{DISTRIBUTED_REQUESTS} requests for gpt-4o: {}.", counted(&answers))],
            look_at: "Backends: the shares and attempts of eastus, westus and sweden grow together.",
            commands: vec![format!("{} | grep -i x-aoai-lb", self.curl(CHAT, &self.keys.user, &body))],
        }
    }

    async fn conversations(&self) -> Scene {
        let mut last_turns: [Option<(Answer, String)>; NAMES.len()] = [const { None }; NAMES.len()];
        let mut backends: [Vec<String>; NAMES.len()] = Default::default();
        // One turn of each at a time, so that they are under way together.
        for turn in 0..=FOLLOW_UPS.len() {
            for ((name, last_turn), backends) in NAMES.iter().zip(&mut last_turns).zip(&mut backends) {
                let introduction = format!("My name is {name}.");
                let prompt = match turn.checked_sub(1) {
                    None => introduction.as_str(),
                    Some(index) => FOLLOW_UPS.get(index).copied().unwrap_or_default(),
                };
                let previous_id = last_turn.as_ref().map(|(_, id)| id.as_str());
                *last_turn = take_turn(&self.caller, &self.keys.traffic, prompt, previous_id).await;
                let backend = last_turn.as_ref().map(|(answer, _)| answer.backend.clone());
                backends.push(backend.unwrap_or_else(|| "not answered".to_owned()));
            }
        }
        let mut facts: Vec<String> = NAMES
            .iter()
            .zip(&backends)
            .map(|(name, backends)| format!("{name}'s conversation: {}.", backends.join(", ")))
            .collect();
        let last = last_turns.iter().rev().flatten().next();
        if let Some(text) = last.and_then(|(answer, _)| output_text(&answer.body)) {
            facts.push(format!("The last answer: \"{text}\""));
        }
        let continued = json!({
            "model": "gpt-4o", "input": "What did I say first?",
            "previous_response_id": last.map(|(_, id)| id.as_str()),
        });
        Scene {
            title: "A conversation stays on the resource that stores it",
            facts,
            look_at: "Stored objects: responses of each resource, and the requests about them that went there.",
            commands: vec![self.curl(RESPONSES, &self.keys.user, &continued)],
        }
    }

    async fn spill_over(&self) -> Scene {
        let mut answers: Vec<Option<Answer>> = Vec::new();
        let (mut spilled, mut sent_again) = (0, None);
        while answers.len() < MAX_LONG_REQUESTS && spilled <= REQUESTS_AFTER_SPILL {
            let body = json!({"model": "gpt-4.1", "input": long_prompt()});
            let answer = self.post(&self.keys.traffic, RESPONSES, &body).await;
            if let Some(answer) = answer.as_ref().filter(|answer| answer.backend != PROVISIONED_BACKEND) {
                spilled += 1;
                if answer.attempts > 1 && sent_again.is_none() {
                    sent_again = Some((answers.len() + 1, answer.backend.clone(), answer.request_id.clone()));
                }
            }
            answers.push(answer);
        }
        let mut facts = vec![format!("{} long requests for gpt-4.1: {}.", answers.len(), counted(&answers))];
        if let Some((number, backend, _)) = &sent_again {
            facts.push(format!(
                "{PROVISIONED_BACKEND} refused number {number} with 429. The same bytes went to {backend}; the client \
                 saw a 200."
            ));
        }
        facts.extend(self.cooldown().await);
        let body = json!({"model": "gpt-4.1", "input": "Hello"});
        let mut commands =
            vec![format!("{} | grep -i x-aoai-lb", self.curl(RESPONSES, &self.keys.user, &body))];
        commands.extend(sent_again.map(|(_, _, id)| self.command(&format!("find {id}"))));
        Scene {
            title: "A full provisioned deployment spills over",
            facts,
            look_at: "Backends: eastus-ptu is cooling. Within ten seconds the line at the top says \"spilling\".",
            commands,
        }
    }

    /// What the status says about the provisioned backend.
    async fn cooldown(&self) -> Option<String> {
        let status = self.caller.status().await?;
        let backend = status.backends.into_iter().find(|backend| backend.name == PROVISIONED_BACKEND)?;
        let part = backend.unavailable_parts.into_iter().next()?;
        let seconds = part.remaining_ms?.div_ceil(1000);
        let deployment = part.deployment.unwrap_or_default();
        Some(format!(
            "The status: {PROVISIONED_BACKEND}, {deployment}: {}, for {seconds} s more.",
            part.reason
        ))
    }

    async fn limit(&self) -> Scene {
        let body = json!({"model": "gpt-4o", "input": "Hello"});
        let mut answers = Vec::new();
        for _ in 0..LIMITED_REQUESTS {
            answers.push(self.post(&self.keys.limited, RESPONSES, &body).await);
        }
        let mut facts =
            vec![format!("{LIMITED_REQUESTS} requests of the client {LIMITED}: {}.", counted(&answers))];
        let refused = answers.iter().flatten().find(|answer| answer.status == 429);
        let message = refused.and_then(|answer| answer.body.pointer("/error/message")?.as_str());
        facts.extend(message.map(|message| format!("Its client reads: \"{message}\"")));
        Scene {
            title: "A client at its limit is refused, and nobody else",
            facts,
            look_at: "Recent trouble, \"Who is refused\", and the limits below Clients.",
            commands: vec![self.curl(RESPONSES, &self.keys.limited, &body)],
        }
    }

    async fn cost(&self) -> Scene {
        let mut facts = Vec::new();
        if let Some(costs) = self.caller.status().await.and_then(|status| status.costs) {
            for client in costs.clients {
                let name = client.client.as_deref().unwrap_or("unknown clients");
                let mut fact = format!("{name}: {} {} today", client.today.cost, costs.currency);
                if client.today.provisioned > 0 {
                    fact += &format!(
                        ", and {} responses of {PROVISIONED_BACKEND}, which is paid for by the hour",
                        client.today.provisioned
                    );
                }
                facts.push(fact + ".");
            }
        }
        Scene {
            title: "What it costs, for each client",
            facts,
            look_at: "Clients: the table of costs. Each record has its own cost, prompt, answer and attempts.",
            commands: vec![self.command("usage --cost --by client"), self.command("status --verbose")],
        }
    }

    async fn post(&self, key: &str, path: &str, body: &Value) -> Option<Answer> {
        self.caller.post(key, path, body).await.ok()
    }

    /// A request as a command for a shell. No body has a single quote.
    fn curl(&self, path: &str, key: &str, body: &Value) -> String {
        format!(
            "curl -si \"http://{}{path}\" -H \"api-key: {key}\" \\\n  -H \"content-type: application/json\" -d '{body}'",
            self.places.listen
        )
    }

    /// A command of this binary, with the configuration of the demo.
    fn command(&self, arguments: &str) -> String {
        let config_file = self.places.config_file();
        format!("{} {arguments} -c {}", quoted(&self.places.program), quoted(&config_file))
    }
}

/// A prompt that no prompt cache has: cached tokens would take nothing of the provisioned deployment.
fn long_prompt() -> String {
    let mut words = vec![format!("Request {}:", fastrand::u64(..))];
    words.extend((0..LONG_PROMPT_WORDS).map(|number| format!("w{number}")));
    words.join(" ")
}

/// Who answered how many requests.
fn counted(answers: &[Option<Answer>]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for answer in answers {
        let outcome = match answer {
            None => "were not answered".to_owned(),
            Some(answer) if answer.status == 200 => format!("answered by {}", answer.backend),
            Some(answer) => match answer.body.pointer("/error/code").and_then(Value::as_str) {
                Some(code) => format!("refused with {} {code}", answer.status),
                None => format!("refused with {}", answer.status),
            },
        };
        *counts.entry(outcome).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    counts.join(", ")
}

/// The text of a response of `/responses`.
fn output_text(body: &Value) -> Option<&str> {
    let items = body.get("output")?.as_array()?;
    items.iter().find_map(|item| item.pointer("/content/0/text")?.as_str())
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    if text.chars().all(is_plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
