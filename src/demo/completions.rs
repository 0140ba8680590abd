//! Legacy completions: one text per prompt, whole or streamed.

use serde_json::{Value, json};

use super::answer::{Answer, Flavour, Reply, Role};
use super::azure::{Call, harmless, snapshot};
use super::chat::{check_stream_options, positive, stream_option, unsupported, usage};
use super::limits::Ask;
use super::live::unix_now;
use super::refusal::bad_parameter;
use super::sse::{self, EVENT_STREAM};
use super::text::{clip, deltas, echo, tokens};

/// `POST /completions`
pub(super) fn create(call: &Call) -> Reply {
    let body = call.json()?;
    let own = call.deployment(body.get("model").and_then(Value::as_str))?;
    if own.model.contains("embedding") {
        return Err(Box::new(unsupported("completion", &own.model)));
    }
    let prompts: Vec<String> = match body.get("prompt") {
        Some(Value::String(prompt)) => vec![prompt.clone()],
        Some(Value::Array(prompts)) => prompts
            .iter()
            .map(|prompt| prompt.as_str().map_or_else(|| prompt.to_string(), str::to_owned))
            .collect(),
        _ => return Err(bad_parameter("prompt", "Missing required parameter: 'prompt'.")),
    };
    let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    check_stream_options(call, &body, stream)?;
    let limit = positive(&body, "max_tokens")?;
    let copies = positive(&body, "best_of")?.max(positive(&body, "n")?).unwrap_or(1);
    let characters = prompts.iter().map(|prompt| prompt.len() as u64).sum();
    let pass = call.admit(own, Ask { characters, cached: 0, output: limit.unwrap_or(16) * copies })?;

    let texts: Vec<(String, bool)> = prompts.iter().map(|prompt| clip(&echo(prompt), limit)).collect();
    let input = prompts.iter().map(|prompt| tokens(prompt)).sum();
    let output =
        texts.iter().map(|(text, _)| limit.map_or(tokens(text), |limit| tokens(text).min(limit))).sum();
    let (id, created, model) = (call.live.ids.alnum("cmpl-", 29), unix_now(), snapshot(&own.model));
    let frame = |choices: Value, usage: Option<Value>| {
        let mut frame = json!({
            "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices,
        });
        if let (Some(map), Some(usage)) = (frame.as_object_mut(), usage) {
            map.insert("usage".to_owned(), usage);
        }
        frame
    };
    let choice = |index: usize, text: &str, finish: Option<&str>| {
        json!({
            "text": text, "index": index, "finish_reason": finish, "logprobs": null,
            "content_filter_results": harmless(false),
        })
    };
    let finish = |cut: bool| if cut { "length" } else { "stop" };
    let total = usage(input, 0, output, 0);
    let answer = if stream {
        let wants_usage = stream_option(&body, "include_usage", false);
        let absent = wants_usage.then_some(Value::Null);
        let mut events = Vec::new();
        for (index, (text, cut)) in texts.iter().enumerate() {
            for delta in deltas(text) {
                let choices = json!([choice(index, delta, None)]);
                events.push(sse::data(Role::Content, &frame(choices, absent.clone())));
            }
            let choices = json!([choice(index, "", Some(finish(*cut)))]);
            events.push(sse::data(Role::Content, &frame(choices, absent.clone())));
        }
        if wants_usage {
            events.push(sse::data(Role::Content, &frame(json!([]), Some(total))));
        }
        events.push(sse::done());
        Answer::stream(Flavour::Chat, EVENT_STREAM, events)
    } else {
        let choices: Vec<Value> = texts
            .iter()
            .enumerate()
            .map(|(index, (text, cut))| choice(index, text, Some(finish(*cut))))
            .collect();
        Answer::json(200, &frame(json!(choices), Some(total)))
    };
    Ok(pass.onto(answer, input, output))
}
