//! `--refers-to ID`: puts an id into a request at the place where such an object is named.

use serde_json::{Map, Value, json};

use crate::azure::Operation;

/// Stands for the id in a path.
pub(super) const PLACEHOLDER: &str = "{id}";

/// What names only a path: the beginnings of ids.
const ONLY_IN_PATHS: [&str; 6] = ["batch_", "ftjob-", "eval_", "evalrun_", "upload_", "chatcmpl-"];
/// The beginnings of the ids of files, also of those in containers.
const FILES: [&str; 4] = ["file-", "file_", "assistant-", "cfile_"];
/// How every `encrypted_content` begins: the version of its format, in base64.
const ENCRYPTED_CONTENT: &str = "gAAAA";

/// Puts an id into a JSON body of this operation. Which kind of object it names is told from how it begins; anything
/// else is taken for an item.
///
/// # Errors
/// If only a path names such an object.
pub(super) fn refer_in_body(
    body: &mut Map<String, Value>,
    id: &str,
    operation: Operation,
) -> Result<(), String> {
    let begins_with = |beginnings: &[&str]| beginnings.iter().any(|beginning| id.starts_with(beginning));
    let (key, value) = if begins_with(&ONLY_IN_PATHS) {
        return Err(format!("an object like {id} is named by the path: write {PLACEHOLDER} there"));
    } else if begins_with(&["resp_"]) {
        ("previous_response_id", json!(id))
    } else if begins_with(&["conv_"]) {
        ("conversation", json!(id))
    } else if begins_with(&["vs_"]) {
        ("tools", json!([{ "type": "file_search", "vector_store_ids": [id] }]))
    } else if begins_with(&["cntr_"]) {
        ("tools", json!([{ "type": "code_interpreter", "container": id }]))
    } else if begins_with(&["video_"]) {
        ("video", json!({ "id": id }))
    } else if begins_with(&[ENCRYPTED_CONTENT]) {
        ("input", json!([{ "type": "reasoning", "encrypted_content": id }]))
    } else if begins_with(&FILES) {
        file_reference(id, operation)
    } else {
        let key = if operation == Operation::Conversations { "items" } else { "input" };
        (key, json!([{ "type": "item_reference", "id": id }]))
    };
    body.insert(key.to_owned(), value);
    Ok(())
}

/// Where an operation names a file.
fn file_reference(id: &str, operation: Operation) -> (&'static str, Value) {
    match operation {
        Operation::Batches => ("input_file_id", json!(id)),
        Operation::FineTuning => ("training_file", json!(id)),
        Operation::VectorStores | Operation::Containers => ("file_ids", json!([id])),
        Operation::Chat => (
            "messages",
            json!([{ "role": "user", "content": [{ "type": "file", "file": { "file_id": id } }] }]),
        ),
        _ => ("input", json!([{ "role": "user", "content": [{ "type": "input_file", "file_id": id }] }])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::request::json_body::BodyFacts;
    use crate::azure::request::references::visit_body_references;

    #[test]
    fn an_id_is_put_where_requests_name_such_an_object() {
        for (id, operation, expected) in [
            ("resp_1", Operation::Responses, "previous_response"),
            ("conv_1", Operation::Responses, "conversation"),
            ("vs_1", Operation::Responses, "vector_store"),
            ("cntr_1", Operation::Responses, "container"),
            ("video_1", Operation::Videos, "video"),
            ("gAAAAABo", Operation::Responses, "encrypted"),
            ("file-1", Operation::Responses, "file"),
            ("file-1", Operation::Batches, "file"),
            ("file-1", Operation::FineTuning, "file"),
            ("cfile_1", Operation::Containers, "file"),
            ("assistant-1", Operation::VectorStores, "file"),
            ("file-1", Operation::Chat, "file"),
            ("rs_1", Operation::Responses, "item"),
            ("anything", Operation::Conversations, "item"),
        ] {
            let mut body = Map::from_iter([("model".to_owned(), json!("m"))]);
            refer_in_body(&mut body, id, operation).unwrap();
            let text = Value::Object(body).to_string();
            let facts = BodyFacts::parse(text.as_bytes()).unwrap();
            let mut found = Vec::new();
            visit_body_references(&facts, text.as_bytes(), &mut |kind, id| {
                found.push((kind.as_str(), id.to_owned()));
            });
            assert_eq!(found, [(expected, id.to_owned())], "{text}");
        }
    }

    #[test]
    fn what_only_paths_name_is_not_put_into_a_body() {
        let error = refer_in_body(&mut Map::new(), "batch_1", Operation::Batches).unwrap_err();
        assert!(error.contains("write {id} there"), "{error}");
    }
}
