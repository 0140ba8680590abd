//! Files and uploads in parts, which live on one resource only.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Reply};
use super::azure::Call;
use super::live::{hold, unix_now};
use super::refusal::{Refusal, bad_parameter, no_such};

/// The files of one resource, oldest first.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    files: Vec<File>,
    uploads: Vec<Upload>,
}

#[derive(Debug, Clone)]
struct File {
    id: String,
    object: Value,
    content: Bytes,
}

#[derive(Debug)]
struct Upload {
    id: String,
    object: Value,
    parts: Vec<(String, Bytes)>,
}

impl Shelf {
    pub(super) fn holds(&self, id: &str) -> bool {
        self.files.iter().any(|file| file.id == id)
    }

    pub(super) fn content(&self, id: &str) -> Option<Bytes> {
        self.files.iter().find(|file| file.id == id).map(|file| file.content.clone())
    }
}

/// `/files`
pub(super) fn operate(call: &Call, method: &str, rest: &[&str]) -> Reply {
    match (method, rest) {
        ("POST", []) => {
            let form = call.form()?;
            let Some(file) = form.part("file") else {
                return Err(bad_parameter("file", "Missing required parameter: 'file'."));
            };
            let Some(purpose) = form.text("purpose") else {
                return Err(bad_parameter("purpose", "Missing required parameter: 'purpose'."));
            };
            let name = file.filename.clone().unwrap_or_else(|| "file".to_owned());
            Ok(Answer::json(201, &store(call, &name, &purpose, Bytes::copy_from_slice(file.content))))
        }
        ("GET", []) => {
            let purpose = call.head.query("purpose");
            let shelf = hold(&call.live.shelf);
            let wanted = |file: &&File| {
                purpose.is_none() || file.object.get("purpose").and_then(Value::as_str) == purpose.as_deref()
            };
            let data: Vec<&Value> =
                shelf.files.iter().rev().filter(wanted).map(|file| &file.object).collect();
            let edge = |file: Option<&&Value>| file.and_then(|file| file.get("id")).cloned();
            let list = json!({
                "object": "list", "data": data, "has_more": false,
                "first_id": edge(data.first()), "last_id": edge(data.last()),
            });
            Ok(Answer::json(200, &list))
        }
        ("GET", [id]) => Ok(Answer::json(200, &find(call, id)?.object)),
        ("GET", [id, "content"]) => {
            Ok(Answer::whole(200, "application/octet-stream", find(call, id)?.content))
        }
        ("DELETE", [id]) => {
            find(call, id)?;
            hold(&call.live.shelf).files.retain(|file| file.id != *id);
            Ok(Answer::json(200, &json!({"id": id, "object": "file", "deleted": true})))
        }
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}

/// `/uploads`
pub(super) fn operate_uploads(call: &Call, method: &str, rest: &[&str]) -> Reply {
    match (method, rest) {
        ("POST", []) => {
            let body = call.json()?;
            let id = call.live.ids.hex("upload_", 24);
            let object = json!({
                "id": id, "object": "upload", "status": "pending", "bytes": body.get("bytes"), "created_at": unix_now(),
                "filename": body.get("filename"), "purpose": body.get("purpose"), "expires_at": unix_now() + 3600,
            });
            hold(&call.live.shelf).uploads.push(Upload { id, object: object.clone(), parts: Vec::new() });
            Ok(Answer::json(200, &object))
        }
        ("POST", [id, "parts"]) => {
            let form = call.form()?;
            let Some(data) = form.part("data") else {
                return Err(bad_parameter("data", "Missing required parameter: 'data'."));
            };
            let content = Bytes::copy_from_slice(data.content);
            change_upload(call, id, |upload| {
                let part = call.live.ids.hex("part_", 24);
                upload.parts.push((part.clone(), content));
                Ok(json!({"id": part, "object": "upload.part", "created_at": unix_now(), "upload_id": id}))
            })
        }
        ("POST", [id, "cancel"]) => change_upload(call, id, |upload| Ok(upload.marked("cancelled"))),
        ("POST", [id, "complete"]) => {
            let body = call.json()?;
            let order: Vec<&str> = strings(body.get("part_ids"));
            let (upload, content) = {
                let mut shelf = hold(&call.live.shelf);
                let upload = shelf.uploads.iter_mut().find(|upload| upload.id == *id);
                let upload = upload.ok_or_else(|| no_such("Upload", id))?;
                let mut content = Vec::new();
                for part in order {
                    let found = upload
                        .parts
                        .iter()
                        .find(|(own, _)| own == part)
                        .ok_or_else(|| no_such("Part", part))?;
                    content.extend_from_slice(&found.1);
                }
                (upload.marked("completed"), content)
            };
            let text = |name: &str| upload.get(name).and_then(Value::as_str).unwrap_or("file");
            let file = store(call, text("filename"), text("purpose"), Bytes::from(content));
            let mut upload = upload.clone();
            if let Some(map) = upload.as_object_mut() {
                map.insert("file".to_owned(), file);
            }
            Ok(Answer::json(200, &upload))
        }
        _ => Err(Refusal::ResourceNotFound.into()),
    }
}

/// Puts a file on the shelf and describes it.
pub(super) fn store(call: &Call, name: &str, purpose: &str, content: Bytes) -> Value {
    let id = call.live.ids.hex("file-", 32);
    let object = json!({
        "id": id, "object": "file", "bytes": content.len(), "created_at": unix_now(), "filename": name,
        "purpose": purpose, "status": "processed", "status_details": null,
    });
    hold(&call.live.shelf).files.push(File { id, object: object.clone(), content });
    object
}

/// The texts of a JSON list.
pub(super) fn strings(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn find(call: &Call, id: &str) -> Result<File, Box<Answer>> {
    let shelf = hold(&call.live.shelf);
    shelf.files.iter().find(|file| file.id == id).cloned().ok_or_else(|| no_such("File", id))
}

fn change_upload(
    call: &Call,
    id: &str,
    change: impl FnOnce(&mut Upload) -> Result<Value, Box<Answer>>,
) -> Reply {
    let mut shelf = hold(&call.live.shelf);
    let upload =
        shelf.uploads.iter_mut().find(|upload| upload.id == id).ok_or_else(|| no_such("Upload", id))?;
    Ok(Answer::json(200, &change(upload)?))
}

impl Upload {
    fn marked(&mut self, status: &str) -> Value {
        if let Some(map) = self.object.as_object_mut() {
            map.insert("status".to_owned(), json!(status));
        }
        self.object.clone()
    }
}
