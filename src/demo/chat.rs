//! Chat completions: whole and streamed, with the quirks of Azure's stream.

use serde_json::{Map, Value, json};

use super::SimDeployment;
use super::answer::{Answer, Flavour, Piece, Reply, Role};
use super::azure::{Call, Dialect, harmless, snapshot};
use super::limits::Ask;
use super::live::unix_now;
use super::refusal::{bad_parameter, coded, invalid};
use super::sse::{self, EVENT_STREAM};
use super::text::{clip, content, deltas, echo, tokens};

/// What reasoning costs when a request asks for it.
const REASONING: u64 = 64;
/// The first classic version that knows `stream_options`.
const STREAM_OPTIONS_SINCE: &str = "2024-09-01";

/// `POST /chat/completions`
pub(super) fn create(call: &Call) -> Reply {
    let body = call.json()?;
    let own = call.deployment(body.get("model").and_then(Value::as_str))?;
    let wish = Wish::read(call, own, &body)?;
    let cached = wish.cached(call, own, &body);
    let ask =
        Ask { characters: wish.prompt.len() as u64, cached, output: wish.limit.unwrap_or(0) * wish.choices };
    let pass = call.admit(own, ask)?;
    let completion = Completion::new(call, own, &wish, cached);
    let answer = if wish.stream {
        Answer::stream(Flavour::Chat, EVENT_STREAM, completion.events(call, &body))
    } else {
        Answer::json(200, &completion.whole())
    };
    Ok(pass.onto(answer, completion.input.saturating_sub(cached), completion.output))
}

/// The body of an answer to one line of a batch.
pub(super) fn answer_line(call: &Call, own: &SimDeployment, body: &Value) -> Result<Value, Box<Answer>> {
    let wish = Wish::read(call, own, body)?;
    Ok(Completion::new(call, own, &wish, 0).whole())
}

/// What a request asks for.
struct Wish {
    /// Everything the model would read, tools first, as one text.
    prompt: String,
    outcome: Outcome,
    choices: u64,
    limit: Option<u64>,
    reasoning: u64,
    stream: bool,
}

#[derive(Clone)]
enum Outcome {
    Text(String),
    Tool { name: String, arguments: String },
}

impl Wish {
    fn read(call: &Call, own: &SimDeployment, body: &Value) -> Result<Self, Box<Answer>> {
        if own.model.contains("embedding") {
            return Err(Box::new(unsupported("chatCompletion", &own.model)));
        }
        let messages = body.get("messages").and_then(Value::as_array).filter(|messages| !messages.is_empty());
        let Some(messages) = messages else {
            return Err(bad_parameter("messages", "Missing required parameter: 'messages'."));
        };
        let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
        check_stream_options(call, body, stream)?;
        let mut prompt = body.get("tools").map(Value::to_string).unwrap_or_default();
        for message in messages {
            prompt.push('\n');
            prompt.push_str(message.get("role").and_then(Value::as_str).unwrap_or("user"));
            prompt.push(' ');
            prompt.push_str(&message.get("content").map(content).unwrap_or_default());
        }
        let last = |role: &str| {
            let found = messages
                .iter()
                .rev()
                .find(|message| message.get("role").and_then(Value::as_str) == Some(role));
            found.and_then(|message| message.get("content")).map(content).unwrap_or_default()
        };
        let question = last("user");
        let is_result =
            messages.last().and_then(|message| message.get("role")).and_then(Value::as_str) == Some("tool");
        let outcome = match called_tool(body, &question) {
            Some(name) if !is_result => {
                Outcome::Tool { name, arguments: json!({"input": question}).to_string() }
            }
            _ if is_result => Outcome::Text(format!("The tool said: {}", last("tool"))),
            _ if wants_json(body) => Outcome::Text(json!({"answer": echo(&question)}).to_string()),
            _ => Outcome::Text(echo(&question)),
        };
        let thinks =
            body.get("reasoning_effort").and_then(Value::as_str).is_some_and(|effort| effort != "none");
        Ok(Self {
            prompt,
            outcome,
            choices: positive(body, "n")?.unwrap_or(1).min(128),
            limit: positive(body, "max_completion_tokens")?.or(positive(body, "max_tokens")?),
            reasoning: if thinks { REASONING } else { 0 },
            stream,
        })
    }

    fn cached(&self, call: &Call, own: &SimDeployment, body: &Value) -> u64 {
        let key = body.get("prompt_cache_key").and_then(Value::as_str).unwrap_or_default();
        call.live.cached_tokens(&own.name, key, &self.prompt, call.now)
    }
}

/// The tool a model would call: one it must call, or one it was told to use.
pub(super) fn called_tool(body: &Value, question: &str) -> Option<String> {
    let first = body.get("tools")?.as_array()?.first()?;
    // Chat nests the name under `function`, Responses does not.
    let name = |tool: &Value| {
        let name = tool.get("function").unwrap_or(tool).get("name")?;
        name.as_str().map(str::to_owned)
    };
    match body.get("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => None,
        Some(Value::String(choice)) if choice == "required" => name(first),
        Some(choice @ Value::Object(_)) => name(choice).or_else(|| name(first)),
        _ => question.to_ascii_lowercase().contains("use the tool").then(|| name(first)).flatten(),
    }
}

/// A parameter that must be a positive number, and no absurd one, where it is given.
pub(super) fn positive(body: &Value, name: &str) -> Result<Option<u64>, Box<Answer>> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number @ 1..=1_000_000_000) => Ok(Some(number)),
            _ => Err(bad_parameter(
                name,
                &format!("Invalid '{name}': expected a positive integer, but got {value}."),
            )),
        },
    }
}

/// 400 for a model that cannot do this.
pub(super) fn unsupported(operation: &str, model: &str) -> Answer {
    let message = format!(
        "The {operation} operation does not work with the specified model, {model}. Please choose different model and try \
         again. You can learn more about which models can be used with each operation here: \
         https://go.microsoft.com/fwlink/?linkid=2197993."
    );
    coded(400, "OperationNotSupported", &message)
}

/// `usage` as chat and legacy completions report it.
pub(super) fn usage(input: u64, cached: u64, output: u64, reasoning: u64) -> Value {
    json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

/// Refuses `stream_options` where they are unknown (old versions) or pointless (no stream).
pub(super) fn check_stream_options(call: &Call, body: &Value, stream: bool) -> Result<(), Box<Answer>> {
    if body.get("stream_options").is_none_or(Value::is_null) {
        return Ok(());
    }
    if let Dialect::Classic { version } = &call.route.dialect
        && version.as_str() < STREAM_OPTIONS_SINCE
    {
        let message = "Unrecognized request argument supplied: stream_options";
        return Err(Box::new(invalid(400, message, None, None)));
    }
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(bad_parameter("stream_options", message));
    }
    Ok(())
}

/// Whether a member of `stream_options` is set.
pub(super) fn stream_option(body: &Value, name: &str, default: bool) -> bool {
    body.pointer(&format!("/stream_options/{name}")).and_then(Value::as_bool).unwrap_or(default)
}

fn wants_json(body: &Value) -> bool {
    matches!(
        body.pointer("/response_format/type").and_then(Value::as_str),
        Some("json_object" | "json_schema")
    )
}

/// What the model came up with.
struct Completion {
    id: String,
    created: u64,
    model: String,
    turns: Vec<Turn>,
    input: u64,
    cached: u64,
    output: u64,
    reasoning: u64,
}

struct Turn {
    outcome: Outcome,
    call_id: String,
    finish: &'static str,
}

impl Completion {
    fn new(call: &Call, own: &SimDeployment, wish: &Wish, cached: u64) -> Self {
        let mut output = 0;
        let turns = (0..wish.choices).map(|index| {
            let call_id = call.live.ids.alnum("call_", 24);
            let (outcome, finish) = match &wish.outcome {
                Outcome::Tool { arguments, .. } => {
                    output += tokens(arguments);
                    (wish.outcome.clone(), "tool_calls")
                }
                Outcome::Text(text) => {
                    let text = if index == 0 { text.clone() } else { format!("{text} (choice {index})") };
                    let (text, cut) = clip(&text, wish.limit);
                    output += wish.limit.map_or(tokens(&text), |limit| tokens(&text).min(limit));
                    (Outcome::Text(text), if cut { "length" } else { "stop" })
                }
            };
            Turn { outcome, call_id, finish }
        });
        let turns = turns.collect();
        let input = tokens(&wish.prompt);
        Self {
            id: call.live.ids.alnum("chatcmpl-", 29),
            created: unix_now(),
            model: snapshot(&own.model),
            turns,
            input,
            cached: cached.min(input),
            output: output + wish.reasoning,
            reasoning: wish.reasoning,
        }
    }

    fn usage(&self) -> Value {
        usage(self.input, self.cached, self.output, self.reasoning)
    }

    fn whole(&self) -> Value {
        let choices: Vec<Value> =
            self.turns.iter().enumerate().map(|(index, turn)| turn.choice(index)).collect();
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": choices, "usage": self.usage(), "system_fingerprint": "fp_b54fe76834",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": harmless(true)}],
        })
    }

    fn events(&self, call: &Call, body: &Value) -> Vec<Piece> {
        let wants_usage = stream_option(body, "include_usage", false);
        let obfuscates = stream_option(body, "include_obfuscation", true);
        let chunk = |choices: Value, padded: bool| {
            let mut chunk = Map::new();
            chunk.insert("choices".to_owned(), choices);
            chunk.insert("created".to_owned(), json!(self.created));
            chunk.insert("id".to_owned(), json!(self.id));
            chunk.insert("model".to_owned(), json!(self.model));
            if padded && obfuscates {
                chunk.insert("obfuscation".to_owned(), json!(obfuscation(call)));
            }
            chunk.insert("object".to_owned(), json!("chat.completion.chunk"));
            chunk.insert("system_fingerprint".to_owned(), json!("fp_b54fe76834"));
            if wants_usage {
                chunk.insert("usage".to_owned(), Value::Null);
            }
            Value::Object(chunk)
        };
        let mut first = json!({
            "choices": [], "created": 0, "id": "", "model": "", "object": "",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": harmless(true)}],
        });
        if let Some(map) = first.as_object_mut().filter(|_| wants_usage) {
            map.insert("usage".to_owned(), Value::Null);
        }
        let mut events = vec![sse::data(Role::Preamble, &first)];
        for (index, turn) in self.turns.iter().enumerate() {
            let choice = |filters: Value, delta: Value, finish: Option<&str>| json!([{"content_filter_results": filters, "delta": delta, "finish_reason": finish, "index": index, "logprobs": null}]);
            let opening =
                choice(json!({}), json!({"content": "", "refusal": null, "role": "assistant"}), None);
            events.push(sse::data(Role::Preamble, &chunk(opening, true)));
            for delta in turn.deltas() {
                let filters = if delta.get("content").is_some() { harmless(false) } else { json!({}) };
                events.push(sse::data(Role::Content, &chunk(choice(filters, delta, None), true)));
            }
            let closing = choice(json!({}), json!({}), Some(turn.finish));
            events.push(sse::data(Role::Content, &chunk(closing, true)));
        }
        if wants_usage {
            let mut last = chunk(json!([]), false);
            if let Some(map) = last.as_object_mut() {
                map.insert("usage".to_owned(), self.usage());
            }
            events.push(sse::data(Role::Content, &last));
        }
        events.push(sse::done());
        events
    }
}

impl Turn {
    fn choice(&self, index: usize) -> Value {
        let message = match &self.outcome {
            Outcome::Text(text) => {
                json!({"role": "assistant", "content": text, "refusal": null, "annotations": []})
            }
            Outcome::Tool { name, arguments } => json!({
                "role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [{
                    "id": self.call_id, "type": "function", "function": {"name": name, "arguments": arguments},
                }],
            }),
        };
        let filters = if matches!(self.outcome, Outcome::Text(_)) { harmless(false) } else { json!({}) };
        json!({
            "index": index, "finish_reason": self.finish, "logprobs": null,
            "content_filter_results": filters, "message": message,
        })
    }

    fn deltas(&self) -> Vec<Value> {
        match &self.outcome {
            Outcome::Text(text) => deltas(text).into_iter().map(|delta| json!({"content": delta})).collect(),
            Outcome::Tool { name, arguments } => {
                let opening = json!({"tool_calls": [{
                    "index": 0, "id": self.call_id, "type": "function", "function": {"name": name, "arguments": ""},
                }]});
                let rest = deltas(arguments)
                    .into_iter()
                    .map(|delta| json!({"tool_calls": [{"index": 0, "function": {"arguments": delta}}]}));
                std::iter::once(opening).chain(rest).collect()
            }
        }
    }
}

/// Padding that hides the length of a delta from somebody who watches the wire.
pub(super) fn obfuscation(call: &Call) -> String {
    let length = call.live.ids.hex("", 1);
    call.live.ids.alnum("", 1 + usize::from_str_radix(&length, 16).unwrap_or(8))
}
