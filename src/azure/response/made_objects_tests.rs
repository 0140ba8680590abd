//! Tables of responses and the ids that they tell, and a comparison with serde_json.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::sse::EventScanner;
use super::ReferenceKind::{
    Batch, Container, Conversation, EncryptedContent, Eval, File, Item, Job, Response, Upload, VectorStore,
    Video,
};
use super::*;
use crate::azure::parse_target;

type Ids = Vec<(ReferenceKind, String)>;
/// A target, a body, and the ids in it.
type Row<'a> = (&'a str, &'a str, &'a [(ReferenceKind, &'a str)]);

fn owned(ids: &[(ReferenceKind, &str)]) -> Ids {
    ids.iter().map(|(kind, id)| (*kind, (*id).to_owned())).collect()
}

fn reader(target: &str) -> Option<MadeObjectReader> {
    MadeObjectReader::new(&parse_target(target.as_bytes(), false).unwrap())
}

/// The ids in a body that arrives in chunks of this size.
fn ids_in_body(target: &str, body: &[u8], chunk_bytes: usize) -> (Ids, bool) {
    let (mut reader, mut ids) = (reader(target).unwrap(), Vec::new());
    for chunk in body.chunks(chunk_bytes) {
        reader.on_body_bytes(chunk, &mut |id| ids.push((id.kind, id.id.to_owned())));
    }
    (ids, reader.says_not_stored())
}

/// The ids in a stream whose events are too long if they have more than this many bytes.
fn ids_in_stream(stream: &[u8], max_event_bytes: usize) -> (Ids, bool) {
    let (mut reader, mut ids) = (reader("/openai/v1/responses").unwrap(), Vec::new());
    let mut scanner = EventScanner::new(max_event_bytes);
    scanner.feed(stream, &mut |event| {
        reader.on_event(&event, &mut |id| ids.push((id.kind, id.id.to_owned())));
    });
    (ids, reader.says_not_stored())
}

const RESPONSE: &str = r#"{"id":"resp_1","object":"response","status":"completed","previous_response_id":"resp_0",
    "conversation":{"id":"conv_1"},"instructions":"\"id\":\"x\"","metadata":{"id":"x","file_id":"x"},
    "tools":[{"type":"file_search","vector_store_ids":["x"],"id":"x"}],
    "text":{"format":{"schema":{"properties":{"id":"x","file_id":"x"}}}},
    "output":[{"id":"rs_1","type":"reasoning","summary":[{"text":"id"}],"encrypted_content":"gAAA1"},
      {"id":"msg_1","type":"message","content":[{"type":"output_text","text":"{\"id\":\"x\"}","annotations":[
        {"type":"container_file_citation","container_id":"cntr_1","file_id":"cfile_1"},{"type":"url_citation","url":"x"}]}]},
      {"id":"fc_1","type":"function_call","call_id":"x","arguments":"{\"id\":\"x\"}"},
      {"id":"ci_1","type":"code_interpreter_call","container_id":"cntr_1","outputs":[{"id":"x"}]},
      {"id":"fs_1","type":"file_search_call","results":[{"file_id":"file-1","text":"x","attributes":{"id":"x"}}]},
      {"id":"sh_1","type":"shell_call","environment":{"type":"container_reference","container_id":"cntr_2"},"action":{"id":"x"}},
      {"id":"cmp_1","type":"compaction","encrypted_content":"gAAA2"},
      {"id":"am_1","type":"agent_message","content":[{"type":"encrypted_content","encrypted_content":"gAAA3"}]}],
    "usage":{"id":"x"},"error":null,"store":true}"#;

const IDS_OF_OUTPUT: [(ReferenceKind, &str); 16] = [
    (Item, "rs_1"),
    (EncryptedContent, "gAAA1"),
    (Item, "msg_1"),
    (Container, "cntr_1"),
    (File, "cfile_1"),
    (Item, "fc_1"),
    (Item, "ci_1"),
    (Container, "cntr_1"),
    (Item, "fs_1"),
    (File, "file-1"),
    (Item, "sh_1"),
    (Container, "cntr_2"),
    (Item, "cmp_1"),
    (EncryptedContent, "gAAA2"),
    (Item, "am_1"),
    (EncryptedContent, "gAAA3"),
];

#[test]
fn ids_are_found_in_json_bodies() {
    let response_ids: Vec<_> =
        [(Conversation, "conv_1")].into_iter().chain(IDS_OF_OUTPUT).chain([(Response, "resp_1")]).collect();
    let rows: &[Row] = &[
        ("/openai/v1/responses", RESPONSE, &response_ids),
        ("/openai/v1/responses/resp_1", RESPONSE, &response_ids),
        ("/openai/responses/resp_1/cancel", RESPONSE, &response_ids),
        (
            "/openai/v1/responses/compact",
            r#"{"id":"resp_1","object":"response.compaction","output":[{"id":"cmp_1","encrypted_content":"gAAA"}]}"#,
            &[(Item, "cmp_1"), (EncryptedContent, "gAAA"), (Response, "resp_1")],
        ),
        (
            "/openai/v1/responses",
            r#"{"id":"resp_1","conversation":"conv_1"}"#,
            &[(Conversation, "conv_1"), (Response, "resp_1")],
        ),
        (
            "/openai/v1/responses/resp_1/input_items",
            r#"{"object":"list","data":[{"id":"msg_1","content":[{"type":"input_file","file_id":"file-1"}]},{"id":"rs_1","encrypted_content":"gAAA"}],"first_id":"msg_1","last_id":"rs_1"}"#,
            &[(Item, "msg_1"), (File, "file-1"), (Item, "rs_1"), (EncryptedContent, "gAAA")],
        ),
        (
            "/openai/v1/conversations",
            r#"{"id":"conv_1","object":"conversation","metadata":{"id":"x"}}"#,
            &[(Conversation, "conv_1")],
        ),
        (
            "/openai/v1/conversations/conv_1/items",
            r#"{"object":"list","data":[{"id":"msg_1"}]}"#,
            &[(Item, "msg_1")],
        ),
        (
            "/openai/v1/conversations/conv_1/items/msg_1",
            r#"{"id":"msg_1","content":[{"annotations":[{"file_id":"file-1"}]}]}"#,
            &[(File, "file-1"), (Item, "msg_1")],
        ),
        (
            "/openai/files?api-version=2024-10-21",
            r#"{"id":"file-1","object":"file","filename":"id"}"#,
            &[(File, "file-1")],
        ),
        (
            "/openai/v1/files",
            r#"{"data":[{"id":"file-1"},{"id":"file\u002d2"}],"object":"list"}"#,
            &[(File, "file-1"), (File, "file-2")],
        ),
        ("/openai/v1/uploads", r#"{"id":"upload_1","file":null,"bytes":7}"#, &[(Upload, "upload_1")]),
        (
            "/openai/v1/uploads/upload_1/parts",
            r#"{"id":"part_1","upload_id":"upload_1"}"#,
            &[(Upload, "part_1")],
        ),
        (
            "/openai/v1/uploads/upload_1/complete",
            r#"{"id":"upload_1","file":{"id":"file-1","object":"file"}}"#,
            &[(File, "file-1"), (Upload, "upload_1")],
        ),
        (
            "/openai/v1/batches",
            r#"{"id":"batch_1","input_file_id":"file-1","output_file_id":"file-2","error_file_id":"file-3","errors":{"data":[{"id":"x"}]}}"#,
            &[(File, "file-1"), (File, "file-2"), (File, "file-3"), (Batch, "batch_1")],
        ),
        (
            "/openai/v1/batches/batch_1",
            r#"{"id":"batch_1","output_file_id":null,"error_file_id":""}"#,
            &[(Batch, "batch_1")],
        ),
        ("/openai/v1/vector_stores", r#"{"id":"vs_1","file_counts":{"total":1}}"#, &[(VectorStore, "vs_1")]),
        (
            "/openai/v1/vector_stores/vs_1/files",
            r#"{"id":"file-1","vector_store_id":"vs_1"}"#,
            &[(VectorStore, "vs_1"), (File, "file-1")],
        ),
        (
            "/openai/v1/vector_stores/vs_1/file_batches",
            r#"{"id":"vsfb_1","vector_store_id":"vs_1"}"#,
            &[(VectorStore, "vs_1"), (VectorStore, "vsfb_1")],
        ),
        (
            "/openai/v1/vector_stores/vs_1/search",
            r#"{"data":[{"file_id":"file-1","attributes":{"id":"x"},"content":[{"text":"x"}]}]}"#,
            &[(File, "file-1")],
        ),
        (
            "/openai/v1/containers",
            r#"{"id":"cntr_1","expires_after":{"anchor":"id"}}"#,
            &[(Container, "cntr_1")],
        ),
        (
            "/openai/v1/containers/cntr_1/files",
            r#"{"id":"cfile_1","container_id":"cntr_1"}"#,
            &[(Container, "cntr_1"), (File, "cfile_1")],
        ),
        (
            "/openai/v1/fine_tuning/jobs",
            r#"{"id":"ftjob-1","training_file":"file-1","validation_file":"file-2","result_files":["file-3", "file-4"],"hyperparameters":{"id":"x"}}"#,
            &[(File, "file-1"), (File, "file-2"), (File, "file-3"), (File, "file-4"), (Job, "ftjob-1")],
        ),
        ("/openai/v1/evals", r#"{"id":"eval_1","data_source_config":{"id":"x"}}"#, &[(Eval, "eval_1")]),
        (
            "/openai/v1/evals/eval_1/runs",
            r#"{"id":"evalrun_1","eval_id":"eval_1"}"#,
            &[(Eval, "eval_1"), (Eval, "evalrun_1")],
        ),
        ("/openai/v1/videos", r#"{"id":"video_1","object":"video"}"#, &[(Video, "video_1")]),
        ("/openai/v1/video/generations/jobs", r#"{"id":"task_1","generations":[]}"#, &[(Video, "task_1")]),
        // What was deleted, errors, and what is no object.
        ("/openai/v1/responses/resp_1", r#"{"id":"resp_1","object":"response.deleted","deleted":true}"#, &[]),
        ("/openai/v1/files/file-1", r#"{"deleted": true, "id":"file-1"}"#, &[]),
        ("/openai/v1/files/file-1", r#"{"id":"file-1","deleted":false}"#, &[(File, "file-1")]),
        ("/openai/v1/files", r#"{"error":{"id":"x","file_id":"x"}}"#, &[]),
        ("/openai/v1/files", r#"[{"id":"x"}]"#, &[]),
        ("/openai/v1/files", r#""id""#, &[]),
        ("/openai/v1/files", r#"{"id":"file-1"#, &[]),
        ("/openai/v1/files", r#"{"id":"file-1"} {"id":"x"}"#, &[(File, "file-1")]),
        ("/openai/v1/files", r#"{"id":{"id":"x"},"data":"x","x":[[{"id":"x"}]],"data":[[{"id":"x"}]]}"#, &[]),
        ("/openai/v1/files", "", &[]),
    ];
    for (target, body, expected) in rows {
        for chunk_bytes in [usize::MAX, 1, 7] {
            assert_eq!(
                ids_in_body(target, body.as_bytes(), chunk_bytes),
                (owned(expected), false),
                "{target} {body}"
            );
        }
    }
    let body = r#"{"id":"resp_1","store" : false}"#;
    assert_eq!(
        ids_in_body("/openai/v1/responses", body.as_bytes(), 1),
        (owned(&[(Response, "resp_1")]), true)
    );
}

#[test]
fn long_strings_do_not_hide_ids() {
    let text = "text \\\" and \\u00e9 ".repeat(100_000);
    let body = format!(
        r#"{{"id":"{}","output":[{{"id":"rs_1","encrypted_content":"{}","x":{}"{text}"{}}}],"text":"{text}","conversation":"conv_1"}}"#,
        "x".repeat(300),
        "gAAAB".repeat(100_000),
        "[".repeat(10_000),
        "]".repeat(10_000),
    );
    let id = "gAAAB".repeat(13);
    let expected =
        owned(&[(Item, "rs_1"), (EncryptedContent, id.get(..64).unwrap()), (Conversation, "conv_1")]);
    assert_eq!(ids_in_body("/openai/v1/responses", body.as_bytes(), 1000), (expected, false));
}

#[test]
fn ids_are_found_in_streams_whatever_the_length_of_events() {
    let item = r#"{"id":"rs_1","type":"reasoning","encrypted_content":"gAAA1"}"#;
    let response = RESPONSE.replace('\n', " ").replace(r#""store":true"#, r#""store":false"#);
    let events = [
        r#"{"type":"response.created","response":{"id":"resp_1","store":false,"conversation":{"id":"conv_1"},"tools":[{"id":"x"}],"output":[]}}"#.to_owned(),
        r#"{"type":"response.in_progress","response":{"id":"resp_1"}}"#.to_owned(),
        r#"{"type":"response.output_item.added","output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[]}}"#.to_owned(),
        r#"{"type":"response.output_text.delta","item_id":"msg_1","delta":"{\"id\":\"x\"}"}"#.to_owned(),
        format!(r#"{{"type":"response.output_item.done","item":{item}}}"#),
        r#"{"sequence_number":9,"type":"response.output_text.annotation.added","item_id":"x","annotation":{"type":"file_citation","file_id":"file-1"}}"#.to_owned(),
        format!(r#"{{"type":"response.completed","response":{response}}}"#),
        r#"{"type":"error","error":{"id":"x"}}"#.to_owned(),
    ];
    let mut expected = owned(&[
        (Response, "resp_1"),
        (Conversation, "conv_1"),
        (Item, "rs_1"),
        (Item, "rs_1"),
        (EncryptedContent, "gAAA1"),
        (File, "file-1"),
        (Response, "resp_1"),
        (Conversation, "conv_1"),
    ]);
    expected.extend(owned(&IDS_OF_OUTPUT));
    for has_names in [true, false] {
        let mut stream = String::new();
        for event in &events {
            let event_type = event.split(r#""type":""#).nth(1).unwrap().split('"').next().unwrap();
            if has_names {
                stream.push_str(&format!("event: {event_type}\n"));
            }
            stream.push_str(&format!("data: {event}\n\n"));
        }
        for max_event_bytes in [1 << 20, 200, 40] {
            // Without its name, the type of an event that is too long is in its outline.
            let found = ids_in_stream(stream.as_bytes(), max_event_bytes);
            assert_eq!(found, (expected.clone(), true), "{has_names} {max_event_bytes}");
        }
    }
    let (mut reader, mut ids) = (reader("/openai/v1/responses").unwrap(), Vec::new());
    for event in &events {
        reader.on_frame(event.as_bytes(), &mut |id| ids.push((id.kind, id.id.to_owned())));
    }
    assert_eq!((ids, reader.says_not_stored()), (expected, true));
}

#[test]
fn operations_that_make_nothing_have_no_reader() {
    for target in [
        "/openai/deployments/gpt-4o/chat/completions",
        "/openai/v1/embeddings",
        "/openai/v1/images/generations",
        "/openai/v1/models",
        "/openai/v1/files/file-1/content",
        "/openai/v1/containers/cntr_1/files/cfile_1/content",
        "/openai/v1/video/generations/gen_1/content/video",
        "/other",
    ] {
        assert!(reader(target).is_none(), "{target}");
    }
}

/// The ids in a response body, by the rules of the scanner, in the order of a document.
fn expected_ids(value: &Value, place: &str, own: &mut Option<String>, found: &mut Ids) {
    match value {
        Value::Array(items) if place != "top" => {
            for item in items.iter().filter(|item| item.is_object()) {
                expected_ids(item, place, own, found);
            }
        }
        Value::Object(pairs) => {
            for (key, value) in pairs {
                let kind = match (place, &**key) {
                    ("top", "id") => {
                        *own = value.as_str().filter(|id| !id.is_empty()).map(str::to_owned).or(own.take());
                        None
                    }
                    ("item", "id") => Some(Item),
                    ("response" | "listed", "id") => Some(Response),
                    ("conversation", "id") | ("top" | "response", "conversation") => Some(Conversation),
                    ("file", "id") | (_, "file_id" | "result_files") => Some(File),
                    (_, "container_id") => Some(Container),
                    (_, "encrypted_content") => Some(EncryptedContent),
                    _ => None,
                };
                let inner = match (place, &**key) {
                    ("top", "response") => Some("response"),
                    ("top", "item") | ("top" | "response" | "listed", "output") => Some("item"),
                    ("top", "data") => Some("listed"),
                    ("top", "file") => Some("file"),
                    ("top" | "response" | "listed", "conversation") => Some("conversation"),
                    ("top", "annotation") => Some("part"),
                    ("top" | "item" | "listed", "content" | "environment" | "results") => Some("part"),
                    ("part", "annotations" | "content") => Some("part"),
                    _ => None,
                };
                let ids: Vec<&str> = match value {
                    Value::String(id) => vec![id],
                    Value::Array(items) if inner.is_none() => {
                        items.iter().filter_map(Value::as_str).collect()
                    }
                    _ => Vec::new(),
                };
                if let Some(kind) = kind {
                    found.extend(ids.iter().filter(|id| !id.is_empty()).map(|id| (kind, (*id).to_owned())));
                }
                if let Some(inner) = inner {
                    expected_ids(value, inner, own, found);
                }
            }
        }
        _ => {}
    }
}

fn any_body() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 19] = [
        "id",
        "file_id",
        "container_id",
        "encrypted_content",
        "content",
        "output",
        "item",
        "response",
        "data",
        "file",
        "conversation",
        "annotation",
        "annotations",
        "results",
        "environment",
        "result_files",
        "metadata",
        "x",
        "a\"b",
    ];
    let pairs = |inner: BoxedStrategy<Value>| {
        proptest::collection::btree_map(proptest::sample::select(&KEYS[..]), inner, 0..6).prop_map(|pairs| {
            Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
        })
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(7)),
        Just(json!(true)),
        "[a-c]{1,3}|\"\\\\é😀|".prop_map(Value::from)
    ];
    let inner = leaf.prop_recursive(5, 60, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            pairs(inner.boxed())
        ]
    });
    pairs(inner.boxed())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_ids_are_those_that_serde_json_finds(body in any_body(), pretty: bool, chunk_bytes in 1_usize..40) {
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        let (mut own, mut expected) = (None, Vec::new());
        expected_ids(&body, "top", &mut own, &mut expected);
        expected.extend(own.map(|id| (Response, id)));
        let (found, _) = ids_in_body("/openai/v1/responses", text.as_bytes(), chunk_bytes);
        prop_assert_eq!(found, expected, "{}", text);
    }

    #[test]
    fn any_bytes_are_read(body in "([\\[\\]{}\",:\\\\ t]|\"id\"|\"data\"|\"content\"|true){0,60}", chunk_bytes in 1_usize..9) {
        let whole = ids_in_body("/openai/v1/files", body.as_bytes(), usize::MAX);
        prop_assert_eq!(ids_in_body("/openai/v1/files", body.as_bytes(), chunk_bytes), whole);
        let _ = ids_in_stream(body.as_bytes(), 20);
    }
}
