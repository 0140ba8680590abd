//! A resource that keeps responses and files: it answers only for what it has made itself, in Azure's words.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::upstream::{RawRequest, ScriptedUpstream, complete_response};

/// How a resource behaves at the moment.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// It answers 429 with this `retry-after-ms`.
    pub throttled_ms: Option<u64>,
    /// It answers 500.
    pub fails: bool,
    /// It denies responses that are younger than this.
    pub read_lag: Duration,
    /// It answers 404 to responses that are fetched, in words that nobody knows.
    pub unusual_words: bool,
}

/// A running resource.
pub struct StatefulUpstream {
    pub name: String,
    upstream: ScriptedUpstream,
    pub behaviour: Arc<Mutex<Behaviour>>,
    objects: Arc<Mutex<Objects>>,
}

#[derive(Default)]
struct Objects {
    made: Vec<(String, Instant)>,
    deleted: BTreeSet<String>,
}

impl Objects {
    fn has(&self, id: &str, lag: Duration) -> bool {
        let made = self.made.iter().find(|(made, _)| made == id);
        !self.deleted.contains(id)
            && made.is_some_and(|(_, at)| at.elapsed() >= lag || !id.starts_with("resp_"))
    }

    fn make(&mut self, prefix: &str, name: &str) -> String {
        let id = format!("{prefix}{name}{:04}", self.made.len());
        self.made.push((id.clone(), Instant::now()));
        id
    }
}

impl StatefulUpstream {
    pub async fn start(name: &str) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        let objects = Arc::new(Mutex::new(Objects::default()));
        let (script_behaviour, script_objects, own_name) =
            (Arc::clone(&behaviour), Arc::clone(&objects), name.to_owned());
        let upstream = ScriptedUpstream::start(move |request| {
            let behaviour = script_behaviour.lock().unwrap().clone();
            let (status, headers, body) =
                answer(request, &own_name, &behaviour, &mut script_objects.lock().unwrap());
            complete_response(
                status,
                &format!("Content-Type: application/json\n{headers}"),
                &body.to_string(),
            )
        })
        .await;
        Self { name: name.to_owned(), upstream, behaviour, objects }
    }

    /// The requests that it has received, without the balancer's own questions.
    pub fn requests(&self) -> Vec<RawRequest> {
        let is_question =
            |request: &RawRequest| request.body == b"{}" || request.head.starts_with("GET /openai/models");
        self.upstream.requests().into_iter().filter(|request| !is_question(request)).collect()
    }

    pub fn forget_requests(&self) {
        self.upstream.forget_requests();
    }

    /// An object that it has, and that was not made through the balancer.
    pub fn make(&self, prefix: &str) -> String {
        self.objects.lock().unwrap().make(prefix, &self.name)
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The YAML entry of `backends`; `extra_yaml` are further lines of it.
    pub fn backend_yaml(&self, extra_yaml: &str) -> String {
        super::backend_yaml(&self.name, &format!("http://{}", self.upstream.address), extra_yaml)
    }
}

fn answer(
    request: &RawRequest,
    name: &str,
    behaviour: &Behaviour,
    objects: &mut Objects,
) -> (u16, String, Value) {
    let error = |status: u16, code: Value, message: String| {
        let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
        (status, String::new(), json!({ "error": error }))
    };
    let mut words = request.head.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = path.split('?').next().unwrap_or("").trim_start_matches("/openai/v1");
    if path.ends_with("/models") || request.body == b"{}" {
        return (200, String::new(), json!({"data": []}));
    }
    if behaviour.fails {
        return error(500, json!("server_error"), "The server had an error.".to_owned());
    }
    if let Some(wait) = behaviour.throttled_ms {
        let (_, _, body) = error(429, json!("429"), "Rate limit is exceeded.".to_owned());
        return (429, format!("retry-after-ms: {wait}\n"), body);
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match (method, segments.as_slice()) {
        ("POST", ["responses"]) => {
            if let Some(previous) = body["previous_response_id"].as_str()
                && !objects.has(previous, behaviour.read_lag)
            {
                let message = format!("Previous response with id '{previous}' not found.");
                return error(400, json!("previous_response_not_found"), message);
            }
            let items = body["input"].as_array().cloned().unwrap_or_default();
            for item in &items {
                if let Some(blob) = item["encrypted_content"].as_str()
                    && !blob.contains(name)
                {
                    let message = format!("The encrypted content {blob} could not be verified.");
                    return error(400, json!("invalid_encrypted_content"), message);
                }
                if let Some(file) = item["content"][0]["file_id"].as_str()
                    && !objects.has(file, Duration::ZERO)
                {
                    return error(400, Value::Null, format!("File with id '{file}' not found."));
                }
            }
            let id = objects.make("resp_", name);
            let item = objects.make("msg_", name);
            let reasoning = objects.make("rs_", name);
            let stored = body["store"] != json!(false);
            let output = json!([
                {"id": reasoning, "type": "reasoning", "encrypted_content": format!("gAAAAAB{name}{reasoning}"), "summary": []},
                {"id": item, "type": "message", "role": "assistant",
                 "content": [{"type": "output_text", "text": "hi", "annotations": []}]}
            ]);
            let response = json!({"id": id, "object": "response", "status": "completed", "model": "m",
                "store": stored, "output": output, "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}});
            (200, String::new(), response)
        }
        ("POST", ["files"]) => {
            let id = objects.make("file-", name);
            (200, String::new(), json!({"id": id, "object": "file", "purpose": "batch"}))
        }
        ("POST", ["batches"]) => {
            let input = body["input_file_id"].as_str().unwrap_or("").to_owned();
            if !objects.has(&input, Duration::ZERO) {
                return error(400, Value::Null, format!("No such File object: {input}"));
            }
            let (id, output) = (objects.make("batch_", name), objects.make("file-", name));
            (
                200,
                String::new(),
                json!({"id": id, "object": "batch", "input_file_id": input, "output_file_id": output}),
            )
        }
        ("POST", [_, id, "cancel"]) | ("GET", [_, id, ..]) if objects.has(id, behaviour.read_lag) => {
            (200, String::new(), json!({"id": id, "status": "completed", "on": name}))
        }
        ("DELETE", [_, id]) if objects.has(id, behaviour.read_lag) => {
            objects.deleted.insert((*id).to_owned());
            (200, String::new(), json!({"id": id, "deleted": true}))
        }
        (_, [_, _, ..]) if behaviour.unusual_words => error(404, json!("huh"), "Nope.".to_owned()),
        (_, [_, id, ..]) => error(404, Value::Null, format!("Response with id '{id}' not found.")),
        ("GET", [_]) => (200, String::new(), json!({"data": [], "on": name})),
        _ => error(404, json!("404"), "Resource not found".to_owned()),
    }
}
