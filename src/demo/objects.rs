//! The other stateful collections, only as far as a router is concerned: objects are created, found on
//! the resource that made them, listed and deleted; nothing is computed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::answer::{Answer, Reply};
use super::azure::Call;
use super::live::{hold, unix_now};
use super::refusal::{Refusal, no_such};

/// Collections of the service: path, prefix of the ids, name of the object.
const COLLECTIONS: [(&[&str], &str, &str); 8] = [
    (&["assistants"], "asst_", "assistant"),
    (&["threads"], "thread_", "thread"),
    (&["vector_stores"], "vs_", "vector_store"),
    (&["conversations"], "conv_", "conversation"),
    (&["containers"], "cntr_", "container"),
    (&["evals"], "eval_", "eval"),
    (&["fine_tuning", "jobs"], "ftjob-", "fine_tuning.job"),
    (&["videos"], "video_", "video"),
];

/// Collections within an object: name, prefix of the ids, name of the object.
const MEMBERS: [(&str, &str, &str); 6] = [
    ("messages", "msg_", "thread.message"),
    ("runs", "run_", "thread.run"),
    ("files", "file-", "vector_store.file"),
    ("file_batches", "vsfb_", "vector_store.file_batch"),
    ("items", "msg_", "conversation.item"),
    ("events", "ftevent-", "fine_tuning.job.event"),
];

#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<String, (String, Value)>);

impl Objects {
    pub(super) fn put(&mut self, id: &str, kind: &str, object: Value) {
        self.0.insert(id.to_owned(), (kind.to_owned(), object));
    }

    pub(super) fn find(&self, id: &str, kind: &str) -> Option<&Value> {
        self.0.get(id).filter(|(own, _)| own == kind).map(|(_, object)| object)
    }

    pub(super) fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.0.values().filter(|(own, _)| own == kind).map(|(_, object)| object).collect()
    }
}

/// Any path that no other module answers.
pub(super) fn operate(call: &Call, method: &str, path: &[&str]) -> Reply {
    let found =
        COLLECTIONS.iter().find_map(|(own, prefix, kind)| Some((path.strip_prefix(*own)?, *prefix, *kind)));
    let Some((rest, prefix, kind)) = found else { return Err(Refusal::ResourceNotFound.into()) };
    match rest {
        [] => collection(call, method, prefix, kind),
        [id] => object(call, method, id, kind),
        [id, member, inner @ ..] => {
            hold(&call.live.objects).find(id, kind).ok_or_else(|| no_such(kind, id))?;
            let known = MEMBERS.iter().find(|(own, ..)| own == member);
            match (known, inner) {
                (Some((_, prefix, kind)), []) => collection(call, method, prefix, kind),
                (Some((_, _, kind)), [id]) => object(call, method, id, kind),
                _ => Err(Refusal::ResourceNotFound.into()),
            }
        }
    }
}

fn collection(call: &Call, method: &str, prefix: &str, kind: &str) -> Reply {
    match method {
        "POST" => {
            let mut object = if call.body.is_empty() { json!({}) } else { call.json()? };
            let id = call.live.ids.alnum(prefix, 24);
            if let Some(map) = object.as_object_mut() {
                map.insert("id".to_owned(), json!(id));
                map.insert("object".to_owned(), json!(kind));
                map.insert("created_at".to_owned(), json!(unix_now()));
                map.entry("status").or_insert(json!("completed"));
            }
            hold(&call.live.objects).put(&id, kind, object.clone());
            Ok(Answer::json(200, &object))
        }
        "GET" => {
            let objects = hold(&call.live.objects);
            Ok(Answer::json(
                200,
                &json!({"object": "list", "data": objects.of_kind(kind), "has_more": false}),
            ))
        }
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}

fn object(call: &Call, method: &str, id: &str, kind: &str) -> Reply {
    let mut objects = hold(&call.live.objects);
    let found = objects.find(id, kind).cloned().ok_or_else(|| no_such(kind, id))?;
    match method {
        "GET" | "POST" => Ok(Answer::json(200, &found)),
        "DELETE" => {
            objects.0.remove(id);
            Ok(Answer::json(200, &json!({"id": id, "object": format!("{kind}.deleted"), "deleted": true})))
        }
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}
