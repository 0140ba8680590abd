//! The Responses API: creation (whole, streamed, in the background), and what is remembered of it.
//!
//! Responses, their items and encrypted reasoning are known to the resource that made them, and to no
//! other: the reason why a balancer needs affinity.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use serde_json::{Value, json};

use super::answer::{Answer, Flavour, Piece, Reply, Role};
use super::azure::{Call, Dialect, Pass};
use super::chat::{called_tool, obfuscation, positive, unsupported};
use super::codec::base64;
use super::limits::Ask;
use super::live::{hold, unix_now};
use super::refusal::{Refusal, bad_parameter, coded, invalid, no_such};
use super::response_object::Made;
use super::sse::{self, EVENT_STREAM};
use super::text::{clip, content, echo, tokens};

/// Responses remembered; older ones are forgotten.
const KEPT: usize = 10_000;
/// The first classic version with this API.
const SINCE: &str = "2025-03-01";
const REASONING: u64 = 64;

/// The responses of a resource, or those of one WebSocket.
#[derive(Debug, Default)]
pub(super) struct Archive {
    stored: HashMap<String, Stored>,
    order: VecDeque<String>,
    items: HashSet<String>,
}

#[derive(Debug, Clone)]
struct Stored {
    finished: Value,
    pending: Value,
    /// What was said so far, as text.
    history: String,
    input: Vec<Value>,
    events: Vec<Value>,
    /// When a background response is done.
    ready: Instant,
    cancelled: bool,
}

impl Archive {
    fn store(&mut self, id: &str, stored: Stored) {
        if self.order.len() == KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.stored.remove(&oldest);
        }
        let items = stored.finished.get("output").and_then(Value::as_array).into_iter().flatten();
        self.items.extend(items.filter_map(|item| item.get("id")?.as_str().map(str::to_owned)));
        self.order.push_back(id.to_owned());
        self.stored.insert(id.to_owned(), stored);
    }
}

/// A created response.
pub(super) struct Created<'a> {
    pub(super) events: Vec<Value>,
    object: Value,
    pass: Pass<'a>,
    input: u64,
    output: u64,
}

/// `/responses`
pub(super) fn operate(call: &Call, method: &str, rest: &[&str]) -> Reply {
    if let Dialect::Classic { version } = &call.route.dialect
        && version.as_str() < SINCE
    {
        let message =
            "Azure OpenAI Responses API is enabled only for api-version 2025-03-01-preview and later";
        return Err(Box::new(coded(400, "BadRequest", message)));
    }
    match (method, rest) {
        ("POST", []) => {
            let body = call.json()?;
            let created = create(call, &body, None)?;
            let answer = if body.get("stream").and_then(Value::as_bool).unwrap_or(false) {
                Answer::stream(Flavour::Responses, EVENT_STREAM, pieces(&created.events))
            } else {
                Answer::json(200, &created.object)
            };
            Ok(created.pass.onto(answer, created.input, created.output))
        }
        ("POST", ["compact"]) if call.route.dialect == Dialect::V1 => compact(call),
        ("GET", [id]) => retrieve(call, id),
        ("GET", [id, "input_items"]) => {
            let data: Vec<Value> = find(call, id)?.input.into_iter().rev().collect();
            let edge = |item: Option<&Value>| item.and_then(|item| item.get("id")).cloned();
            let list = json!({
                "object": "list", "data": data, "has_more": false,
                "first_id": edge(data.first()), "last_id": edge(data.last()),
            });
            Ok(Answer::json(200, &list))
        }
        ("DELETE", [id]) => {
            find(call, id)?;
            hold(&call.live.archive).stored.remove(*id);
            Ok(Answer::json(200, &json!({"id": id, "object": "response", "deleted": true})))
        }
        ("POST", [id, "cancel"]) => cancel(call, id),
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}

/// Makes a response; a WebSocket brings the archive of its own connection.
pub(super) fn create<'a>(
    call: &Call<'a>,
    body: &Value,
    local: Option<&mut Archive>,
) -> Result<Created<'a>, Box<Answer>> {
    let own = call.deployment(body.get("model").and_then(Value::as_str))?;
    if own.model.contains("embedding") {
        return Err(Box::new(unsupported("responses", &own.model)));
    }
    let flag = |name: &str, default: bool| body.get(name).and_then(Value::as_bool).unwrap_or(default);
    let (stores, background) = (flag("store", true), flag("background", false));
    if background && !stores {
        return Err(bad_parameter("background", "Background mode requires 'store' to be true."));
    }
    let limit = positive(body, "max_output_tokens")?;
    let items = input_items(call, body)?;
    check_references(call, &items)?;
    let mut history = previous(call, body, local.as_deref())?;
    for part in
        [body.get("tools").map(Value::to_string), body.get("instructions").map(content)].into_iter().flatten()
    {
        history.insert_str(0, &format!("{part}\n"));
    }
    for item in &items {
        let said = item.get("content").or_else(|| item.get("output")).map(content).unwrap_or_default();
        history.push_str(&format!("{} {said}\n", item.get("role").and_then(Value::as_str).unwrap_or("item")));
    }
    let key = body.get("prompt_cache_key").and_then(Value::as_str).unwrap_or_default();
    let input = tokens(&history);
    let cached = call.live.cached_tokens(&own.name, key, &history, call.now).min(input);
    let ask = Ask { characters: history.len() as u64, cached, output: limit.unwrap_or(0) };
    let pass = call.admit(own, ask)?;

    let (output_items, said, cut, thought) = think(call, body, &items, limit);
    let output = limit.map_or(tokens(&said), |limit| tokens(&said).min(limit)) + thought;
    let made = Made {
        id: call.live.ids.hex("resp_", 48),
        created: unix_now(),
        model: own.name.clone(),
        output: output_items,
        cut,
        usage: json!({
            "input_tokens": input, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": output, "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": input + output,
        }),
    };
    let obfuscates =
        body.pointer("/stream_options/include_obfuscation").and_then(Value::as_bool).unwrap_or(true);
    let events = made.events(body, || obfuscates.then(|| obfuscation(call)));
    let finished = made.finished(body);
    let object = if background { made.pending(body, "queued") } else { finished.clone() };
    history.push_str(&format!("assistant {said}\n"));
    let is_local = local.is_some();
    if stores || is_local {
        let stored = Stored {
            finished,
            pending: made.pending(body, "in_progress"),
            history,
            input: items,
            events: events.clone(),
            ready: if background { call.now + call.live.resource.background_time } else { call.now },
            cancelled: false,
        };
        match local {
            Some(archive) if !stores => archive.store(&made.id, stored),
            _ => hold(&call.live.archive).store(&made.id, stored),
        }
    }
    Ok(Created { events, object, pass, input: input - cached, output })
}

/// Events as they stand in a stream.
fn pieces(events: &[Value]) -> Vec<Piece> {
    let role = |event: &Value| match event.get("type").and_then(Value::as_str).unwrap_or_default() {
        "response.created" | "response.queued" | "response.in_progress" => Role::Preamble,
        "response.output_item.added" | "response.content_part.added" => Role::Preamble,
        "response.completed" | "response.incomplete" | "response.failed" => Role::Terminal,
        _ => Role::Content,
    };
    events.iter().map(|event| sse::event(role(event), event)).collect()
}

/// The input as a list of items, each with an id.
fn input_items(call: &Call, body: &Value) -> Result<Vec<Value>, Box<Answer>> {
    let items = match body.get("input") {
        Some(Value::String(text)) => {
            vec![
                json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}),
            ]
        }
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => items.clone(),
        None if body.get("previous_response_id").is_some_and(Value::is_string) => Vec::new(),
        _ => return Err(bad_parameter("input", "Missing required parameter: 'input'.")),
    };
    let with_id = |mut item: Value| {
        if let Some(map) = item.as_object_mut() {
            map.entry("type").or_insert(json!("message"));
            map.entry("id").or_insert_with(|| json!(call.live.ids.hex("msg_", 48)));
        }
        item
    };
    Ok(items.into_iter().map(with_id).collect())
}

/// Refuses what another resource gave out: encrypted reasoning, items, files.
fn check_references(call: &Call, items: &[Value]) -> Result<(), Box<Answer>> {
    for item in items {
        if let Some(sealed) = item.get("encrypted_content").and_then(Value::as_str)
            && !sealed.starts_with(&seal(call))
        {
            return Err(Refusal::InvalidEncryptedContent.into());
        }
        if item.get("type").and_then(Value::as_str) == Some("item_reference") {
            let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
            if !hold(&call.live.archive).items.contains(id) {
                return Err(no_such("Item", id));
            }
        }
        let parts = item.get("content").and_then(Value::as_array).into_iter().flatten();
        for id in parts.filter_map(|part| part.get("file_id").and_then(Value::as_str)) {
            if !hold(&call.live.shelf).holds(id) {
                return Err(no_such("File", id));
            }
        }
    }
    Ok(())
}

/// What was said before, in the response this one continues.
fn previous(call: &Call, body: &Value, local: Option<&Archive>) -> Result<String, Box<Answer>> {
    let Some(id) = body.get("previous_response_id").and_then(Value::as_str) else { return Ok(String::new()) };
    let known = local.and_then(|archive| archive.stored.get(id)).map(|stored| stored.history.clone());
    known.or_else(|| hold(&call.live.archive).stored.get(id).map(|stored| stored.history.clone())).ok_or_else(
        || {
            let message = format!("Previous response with id '{id}' not found.");
            Box::new(invalid(
                400,
                &message,
                Some("previous_response_id"),
                Some("previous_response_not_found"),
            ))
        },
    )
}

/// Output items, their text, whether it was cut off, and what thinking cost.
fn think(call: &Call, body: &Value, items: &[Value], limit: Option<u64>) -> (Vec<Value>, String, bool, u64) {
    let of_user = |item: &&Value| item.get("role").and_then(Value::as_str) == Some("user");
    let question = items
        .iter()
        .rev()
        .find(of_user)
        .and_then(|item| item.get("content"))
        .map(content)
        .unwrap_or_default();
    let mut output = Vec::new();
    let asked = body.get("include").and_then(Value::as_array).is_some_and(|include| {
        include.iter().any(|wish| wish.as_str() == Some("reasoning.encrypted_content"))
    });
    let effort =
        body.pointer("/reasoning/effort").and_then(Value::as_str).is_some_and(|effort| effort != "none");
    if asked || effort {
        let mut item = json!({"id": call.live.ids.hex("rs_", 48), "type": "reasoning", "summary": []});
        if let Some(map) = item.as_object_mut().filter(|_| asked) {
            let sealed = format!("{}{}", seal(call), call.live.ids.alnum("", 64));
            map.insert("encrypted_content".to_owned(), json!(sealed));
        }
        output.push(item);
    }
    let thought = if output.is_empty() { 0 } else { REASONING };
    let result =
        items.last().filter(|item| item.get("type").and_then(Value::as_str) == Some("function_call_output"));
    if let Some(name) = called_tool(body, &question).filter(|_| result.is_none()) {
        let arguments = json!({"input": question}).to_string();
        output.push(json!({
            "id": call.live.ids.hex("fc_", 48), "type": "function_call", "status": "completed",
            "call_id": call.live.ids.alnum("call_", 24), "name": name, "arguments": arguments,
        }));
        return (output, arguments, false, thought);
    }
    let text = match result {
        Some(item) => format!("The tool said: {}", item.get("output").map(content).unwrap_or_default()),
        None => echo(&question),
    };
    let (text, cut) = clip(&text, limit);
    output.push(json!({
        "id": call.live.ids.hex("msg_", 48), "type": "message", "role": "assistant",
        "status": if cut { "incomplete" } else { "completed" },
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }));
    (output, text, cut, thought)
}

/// How everything begins that this resource encrypted.
fn seal(call: &Call) -> String {
    format!("gAAAAAB{}", base64(call.live.seal.as_bytes()).trim_end_matches('='))
}

fn find(call: &Call, id: &str) -> Result<Stored, Box<Answer>> {
    hold(&call.live.archive).stored.get(id).cloned().ok_or_else(|| no_such("Response", id))
}

fn retrieve(call: &Call, id: &str) -> Reply {
    let stored = find(call, id)?;
    if call.head.query("stream").as_deref() == Some("true") {
        let after = call.head.query("starting_after").and_then(|text| text.parse::<usize>().ok());
        let rest = stored.events.get(after.map_or(0, |after| after.saturating_add(1))..).unwrap_or_default();
        return Ok(Answer::stream(Flavour::Responses, EVENT_STREAM, pieces(rest)));
    }
    let is_done = stored.cancelled || call.now >= stored.ready;
    Ok(Answer::json(200, if is_done { &stored.finished } else { &stored.pending }))
}

fn cancel(call: &Call, id: &str) -> Reply {
    let stored = find(call, id)?;
    if stored.finished.get("background").and_then(Value::as_bool) != Some(true) {
        let message = "Cannot cancel a synchronous response.";
        return Err(Box::new(invalid(400, message, None, None)));
    }
    let mut archive = hold(&call.live.archive);
    let Some(stored) = archive.stored.get_mut(id) else { return Err(no_such("Response", id)) };
    if !stored.cancelled && call.now < stored.ready {
        stored.cancelled = true;
        stored.finished = stored.pending.clone();
        if let Some(map) = stored.finished.as_object_mut() {
            map.insert("status".to_owned(), json!("cancelled"));
        }
    }
    Ok(Answer::json(200, &stored.finished))
}

fn compact(call: &Call) -> Reply {
    let body = call.json()?;
    let created = create(call, &body, Some(&mut Archive::default()))?;
    let item = json!({
        "id": call.live.ids.hex("cmp_", 48), "type": "compaction",
        "encrypted_content": format!("{}{}", seal(call), call.live.ids.alnum("", 64)),
    });
    let compacted = json!({
        "id": call.live.ids.hex("resp_", 48), "object": "response.compaction", "created_at": unix_now(),
        "output": [item], "usage": created.object.get("usage"),
    });
    Ok(created.pass.onto(Answer::json(200, &compacted), created.input, created.output))
}
