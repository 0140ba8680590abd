//! Vector stores. In place of vectors, the words of a query are looked for in the text of the files.

use std::collections::HashSet;

use bytes::Bytes;
use serde_json::{Value, json};

use super::files::find_file;
use super::shared::listing::list_response;
use crate::demo::api::error_response::{invalid_parameter, not_found};
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ErrorResponse, OperationResult, SimulatedResponse};
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::util::clock::unix_seconds_now;
use crate::demo::util::json::{merge_objects, set_member, text_list, text_member};
use crate::demo::util::locking::lock_ignoring_poison;

const KIND: &str = "vector_store";
const FILE_KIND: &str = "vector_store.file";
const FILE_BATCH_KIND: &str = "vector_store.file_batch";
const DEFAULT_SEARCH_RESULTS: u64 = 10;
const MAX_SEARCH_RESULTS: u64 = 50;
/// A file is searched in pieces of whole lines, of at least this many characters.
const PIECE_CHARACTERS: usize = 600;

/// A piece of a file in which words of the query were found.
pub(super) struct SearchHit {
    pub(super) vector_store_id: String,
    pub(super) file_id: String,
    pub(super) filename: String,
    /// The part of the query's words that the piece contains, up to 1.
    pub(super) score: f64,
    pub(super) text: String,
    attributes: Value,
}

/// All operations under `/vector_stores`; `path` is what follows it.
pub(super) fn handle_vector_stores(
    request: &SimulatedRequest,
    method: &str,
    path: &[&str],
) -> OperationResult {
    match (method, path) {
        ("POST", []) => create_vector_store(request),
        ("GET", []) => {
            let stores = stored(request, KIND, "");
            list_response(
                request,
                "Vector store",
                stores.into_iter().map(|store| with_counts(request, store)).collect(),
            )
        }
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find_vector_store(request, id)?)),
        ("POST", [id]) => {
            find_vector_store(request, id)?;
            let body = request.json_body()?;
            if let Some(store) = lock_ignoring_poison(&request.resource.objects).get_mut(KIND, id) {
                for name in ["name", "metadata", "expires_after"] {
                    if let Some(value) = body.get(name) {
                        set_member(store, name, value.clone());
                    }
                }
            }
            Ok(SimulatedResponse::from_json(200, &find_vector_store(request, id)?))
        }
        ("DELETE", [id]) => {
            find_vector_store(request, id)?;
            lock_ignoring_poison(&request.resource.objects).remove(KIND, "", id);
            let deleted = json!({"id": id, "object": "vector_store.deleted", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        (method, [id, path @ ..]) => {
            find_vector_store(request, id)?;
            match (method, path) {
                ("POST", ["search"]) => search(request, id),
                (method, ["files", path @ ..]) => handle_files(request, method, id, path),
                (method, ["file_batches", path @ ..]) => handle_file_batches(request, method, id, path),
                _ => Err(SimulatedError::ResourceNotFound.into()),
            }
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// # Errors
/// 404 if this resource has no such vector store.
pub(super) fn find_vector_store(request: &SimulatedRequest, id: &str) -> Result<Value, ErrorResponse> {
    let found = lock_ignoring_poison(&request.resource.objects).get(KIND, id).cloned();
    found.map(|store| with_counts(request, store)).ok_or_else(|| not_found("Vector store", id))
}

/// Searches vector stores for the words of a query, best pieces first.
pub(super) fn search_vector_stores(
    request: &SimulatedRequest,
    store_ids: &[&str],
    query: &str,
    limit: u64,
) -> Vec<SearchHit> {
    let wanted = words(query);
    let mut hits = Vec::new();
    for store_id in store_ids {
        for stored_file in stored(request, FILE_KIND, store_id) {
            let file_id = text_member(&stored_file, "id").unwrap_or_default();
            // A file that has been deleted is not searched any more.
            let Ok(file) = find_file(request, file_id) else { continue };
            let text = String::from_utf8_lossy(&file.content);
            for piece in pieces(&text) {
                let found = words(piece);
                let matching = wanted.iter().filter(|word| found.contains(*word)).count();
                if matching > 0 {
                    hits.push(SearchHit {
                        vector_store_id: (*store_id).to_owned(),
                        file_id: file_id.to_owned(),
                        filename: text_member(&file.metadata, "filename").unwrap_or_default().to_owned(),
                        score: matching as f64 / wanted.len() as f64,
                        text: piece.trim().to_owned(),
                        attributes: stored_file.get("attributes").cloned().unwrap_or_default(),
                    });
                }
            }
        }
    }
    hits.sort_by(|one, other| other.score.total_cmp(&one.score));
    hits.truncate(usize::try_from(limit.min(MAX_SEARCH_RESULTS)).unwrap_or_default());
    hits
}

fn create_vector_store(request: &SimulatedRequest) -> OperationResult {
    let body = if request.body.is_empty() { json!({}) } else { request.json_body()? };
    let file_ids = text_list(&body, "file_ids");
    for id in &file_ids {
        find_file(request, id)?;
    }
    let id = request.resource.id_generator.new_timed_id("vs_", 32);
    let now = unix_seconds_now();
    let store = json!({
        "id": id, "object": KIND, "created_at": now, "name": body.get("name"), "status": "completed",
        "expires_after": body.get("expires_after"), "expires_at": null, "last_active_at": now,
        "metadata": body.get("metadata").cloned().unwrap_or(json!({})),
    });
    lock_ignoring_poison(&request.resource.objects).insert(KIND, &id, store);
    for file_id in file_ids {
        add_file(request, &id, file_id, &body)?;
    }
    Ok(SimulatedResponse::from_json(200, &find_vector_store(request, &id)?))
}

/// The number and the size of the files are counted when they are asked for.
fn with_counts(request: &SimulatedRequest, store: Value) -> Value {
    let files = stored(request, FILE_KIND, text_member(&store, "id").unwrap_or_default());
    let bytes: u64 = files.iter().filter_map(|file| file.get("usage_bytes")?.as_u64()).sum();
    merge_objects(store, &json!({"usage_bytes": bytes, "file_counts": file_counts(files.len())}))
}

fn file_counts(count: usize) -> Value {
    json!({"in_progress": 0, "completed": count, "failed": 0, "cancelled": 0, "total": count})
}

/// Adds a file, which keeps its id, and returns its object.
fn add_file(
    request: &SimulatedRequest,
    store_id: &str,
    file_id: &str,
    options: &Value,
) -> Result<Value, ErrorResponse> {
    let file = find_file(request, file_id)?;
    let object = json!({
        "id": file_id, "object": FILE_KIND, "created_at": unix_seconds_now(), "vector_store_id": store_id,
        "usage_bytes": file.content.len(), "status": "completed", "last_error": null,
        "attributes": options.get("attributes").cloned().unwrap_or(json!({})),
        "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}},
    });
    let mut objects = lock_ignoring_poison(&request.resource.objects);
    objects.insert_child(FILE_KIND, store_id, file_id, object.clone(), Bytes::new());
    Ok(object)
}

fn search(request: &SimulatedRequest, store_id: &str) -> OperationResult {
    let body = request.json_body()?;
    let query = match body.get("query") {
        Some(Value::String(query)) => query.clone(),
        Some(Value::Array(_)) => text_list(&body, "query").join(" "),
        _ => return Err(invalid_parameter("query", "Missing required parameter: 'query'.")),
    };
    let limit = body.get("max_num_results").and_then(Value::as_u64).unwrap_or(DEFAULT_SEARCH_RESULTS);
    let hits = search_vector_stores(request, &[store_id], &query, limit);
    let data: Vec<Value> = hits
        .iter()
        .map(|hit| {
            json!({
                "file_id": hit.file_id, "filename": hit.filename, "score": hit.score, "attributes": hit.attributes,
                "content": [{"type": "text", "text": hit.text}],
            })
        })
        .collect();
    let page = json!({
        "object": "vector_store.search_results.page", "search_query": [query], "data": data, "has_more": false,
        "next_page": null,
    });
    Ok(SimulatedResponse::from_json(200, &page))
}

fn handle_files(request: &SimulatedRequest, method: &str, store_id: &str, path: &[&str]) -> OperationResult {
    let find = |id: &str| {
        let objects = lock_ignoring_poison(&request.resource.objects);
        let found = objects.child(FILE_KIND, store_id, id).map(|object| object.json.clone());
        found.ok_or_else(|| not_found("Vector store file", id))
    };
    match (method, path) {
        ("POST", []) => {
            let body = request.json_body()?;
            let Some(file_id) = text_member(&body, "file_id") else {
                return Err(invalid_parameter("file_id", "Missing required parameter: 'file_id'."));
            };
            Ok(SimulatedResponse::from_json(200, &add_file(request, store_id, file_id, &body)?))
        }
        ("GET", []) => list_response(request, "Vector store file", stored(request, FILE_KIND, store_id)),
        ("GET", [id]) => Ok(SimulatedResponse::from_json(200, &find(id)?)),
        ("POST", [id]) => {
            let body = request.json_body()?;
            let attributes = body.get("attributes").cloned().unwrap_or(json!({}));
            find(id)?;
            Ok(SimulatedResponse::from_json(
                200,
                &add_file(request, store_id, id, &json!({"attributes": attributes}))?,
            ))
        }
        ("GET", [id, "content"]) => {
            find(id)?;
            let file = find_file(request, id)?;
            let text = String::from_utf8_lossy(&file.content).into_owned();
            let page = json!({
                "object": "vector_store.file_content.page", "data": [{"type": "text", "text": text}],
                "has_more": false, "next_page": null,
            });
            Ok(SimulatedResponse::from_json(200, &page))
        }
        ("DELETE", [id]) => {
            find(id)?;
            lock_ignoring_poison(&request.resource.objects).remove(FILE_KIND, store_id, id);
            let deleted = json!({"id": id, "object": "vector_store.file.deleted", "deleted": true});
            Ok(SimulatedResponse::from_json(200, &deleted))
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

/// Several files that are added at once. They are added when the batch is created.
fn handle_file_batches(
    request: &SimulatedRequest,
    method: &str,
    store_id: &str,
    path: &[&str],
) -> OperationResult {
    let find = |id: &str| {
        let objects = lock_ignoring_poison(&request.resource.objects);
        let found = objects.child(FILE_BATCH_KIND, store_id, id).map(|object| object.json.clone());
        found.ok_or_else(|| not_found("Vector store file batch", id))
    };
    match (method, path) {
        ("POST", []) => {
            let body = request.json_body()?;
            let file_ids = text_list(&body, "file_ids");
            if file_ids.is_empty() {
                return Err(invalid_parameter("file_ids", "Missing required parameter: 'file_ids'."));
            }
            for id in &file_ids {
                find_file(request, id)?;
            }
            for id in &file_ids {
                add_file(request, store_id, id, &body)?;
            }
            let id = request.resource.id_generator.new_timed_id("vsfb_", 32);
            let batch = json!({
                "id": id, "object": "vector_store.files_batch", "created_at": unix_seconds_now(), "vector_store_id": store_id,
                "status": "completed", "file_counts": file_counts(file_ids.len()),
            });
            let content = Bytes::from(file_ids.join("\n"));
            let mut objects = lock_ignoring_poison(&request.resource.objects);
            objects.insert_child(FILE_BATCH_KIND, store_id, &id, batch.clone(), content);
            Ok(SimulatedResponse::from_json(200, &batch))
        }
        // A batch that has completed is not cancelled any more.
        ("GET", [id]) | ("POST", [id, "cancel"]) => Ok(SimulatedResponse::from_json(200, &find(id)?)),
        ("GET", [id, "files"]) => {
            find(id)?;
            let ids = lock_ignoring_poison(&request.resource.objects)
                .child(FILE_BATCH_KIND, store_id, id)
                .map(|object| String::from_utf8_lossy(&object.content).into_owned())
                .unwrap_or_default();
            let is_of_batch = |file: &Value| ids.lines().any(|line| text_member(file, "id") == Some(line));
            let files = stored(request, FILE_KIND, store_id).into_iter().filter(is_of_batch).collect();
            list_response(request, "Vector store file", files)
        }
        _ => Err(SimulatedError::ResourceNotFound.into()),
    }
}

fn stored(request: &SimulatedRequest, kind: &str, parent_id: &str) -> Vec<Value> {
    let objects = lock_ignoring_poison(&request.resource.objects);
    objects.list(kind, parent_id).into_iter().map(|object| object.json.clone()).collect()
}

/// The different words of a text, in lower case.
fn words(text: &str) -> HashSet<String> {
    text.split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Cuts a text into pieces of whole lines.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut end) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        end += line.len();
        if end - start >= PIECE_CHARACTERS {
            pieces.extend(text.get(start..end));
            start = end;
        }
    }
    pieces.extend(text.get(start..).filter(|rest| !rest.is_empty()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_text_are_whole_lines_and_add_up_to_the_text() {
        let line = "word ".repeat(30);
        let text = format!("{line}\n").repeat(20);
        for text in ["", "one", "one\ntwo", &text] {
            let pieces = pieces(text);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().rev().skip(1).all(|piece| piece.ends_with('\n')));
        }
        assert_eq!(pieces(&text).len(), 5);
    }
}
