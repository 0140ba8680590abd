//! Tables of requests and the ids that they refer to, and a comparison with serde_json.

use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::body_references::{MAX_BODY_REFERENCES, PLACES};
use super::ReferenceKind::{
    Batch, Call, ChatCompletion, Container, Conversation, EncryptedContent, Eval, File, Item, Job,
    PreviousResponse, Response, Upload, VectorStore, Video,
};
use super::*;
use crate::azure::parse_target;
use crate::azure::request::json_body::BodyError;

type References = Vec<(ReferenceKind, String)>;

fn references_in_body(body: &str) -> References {
    let facts = BodyFacts::parse(body.as_bytes()).unwrap();
    let mut found = Vec::new();
    visit_body_references(&facts, body.as_bytes(), &mut |kind, id| found.push((kind, id.to_owned())));
    found
}

fn owned(references: &[(ReferenceKind, &str)]) -> References {
    references.iter().map(|(kind, id)| (*kind, (*id).to_owned())).collect()
}

#[test]
fn ids_are_found_in_paths_and_queries() {
    let rows: &[(&str, &[(ReferenceKind, &str)])] = &[
        ("/openai/v1/responses", &[]),
        ("/openai/v1/responses/compact", &[]),
        ("/openai/v1/responses/resp_1", &[(Response, "resp_1")]),
        ("/openai/responses/resp_1/cancel?api-version=2025-04-01-preview", &[(Response, "resp_1")]),
        ("/v1/responses/resp_1?stream=true&starting_after=7", &[(Response, "resp_1")]),
        (
            "/openai/v1/responses/resp_1/input_items?after=msg_1&before=msg_2&limit=2",
            &[(Response, "resp_1"), (Item, "msg_1"), (Item, "msg_2")],
        ),
        ("/openai/v1/conversations", &[]),
        ("/openai/v1/conversations/conv_1/items/msg_1", &[(Conversation, "conv_1"), (Item, "msg_1")]),
        ("/openai/v1/conversations/conv_1/items?AFTER=msg_1", &[(Conversation, "conv_1"), (Item, "msg_1")]),
        ("/openai/files?api-version=2024-10-21&after=file-1", &[(File, "file-1")]),
        ("/openai/files/file-1/content?api-version=2024-10-21", &[(File, "file-1")]),
        ("/openai/v1/files/assistant%2d1%3aX", &[(File, "assistant-1:X")]),
        ("/openai/v1/files?after=", &[]),
        ("/openai/v1/files?after=file%2D1&after=file-2", &[(File, "file-1"), (File, "file-2")]),
        ("/openai/v1/uploads/upload_1/parts", &[(Upload, "upload_1")]),
        ("/openai/v1/batches/batch_1-2/cancel", &[(Batch, "batch_1-2")]),
        ("/openai/v1/batches?after=batch_1", &[(Batch, "batch_1")]),
        ("/openai/v1/vector_stores/vs_1/files/file-1/content", &[(VectorStore, "vs_1"), (File, "file-1")]),
        ("/openai/v1/vector_stores/vs_1/files?after=file-1", &[(VectorStore, "vs_1"), (File, "file-1")]),
        (
            "/openai/v1/vector_stores/vs_1/file_batches/vsfb_1/files?before=file-1",
            &[(VectorStore, "vs_1"), (VectorStore, "vsfb_1"), (File, "file-1")],
        ),
        ("/openai/v1/vector_stores/vs_1/search", &[(VectorStore, "vs_1")]),
        ("/openai/v1/vector_stores?after=vs_1", &[(VectorStore, "vs_1")]),
        ("/openai/v1/containers/cntr_1/files/cfile_1/content", &[(Container, "cntr_1"), (File, "cfile_1")]),
        ("/openai/v1/containers?after=cntr_1", &[(Container, "cntr_1")]),
        (
            "/openai/v1/fine_tuning/jobs/ftjob-1/events?after=ftevent-1",
            &[(Job, "ftjob-1"), (Job, "ftevent-1")],
        ),
        ("/openai/v1/fine_tuning/jobs/ftjob-1/checkpoints", &[(Job, "ftjob-1")]),
        ("/openai/v1/fine_tuning/jobs?after=ftjob-1", &[(Job, "ftjob-1")]),
        (
            "/openai/v1/evals/eval_1/runs/evalrun_1/output_items/outputitem_1",
            &[(Eval, "eval_1"), (Eval, "evalrun_1"), (Eval, "outputitem_1")],
        ),
        ("/openai/v1/videos/video_1/content", &[(Video, "video_1")]),
        ("/openai/v1/videos/video_1/remix", &[(Video, "video_1")]),
        ("/openai/v1/videos/edits", &[]),
        ("/openai/v1/video/generations/jobs/task_1?api-version=preview", &[(Video, "task_1")]),
        ("/openai/v1/video/generations/gen_1/content/video", &[(Video, "gen_1")]),
        ("/openai/v1/chat/completions/chatcmpl-1/messages", &[(ChatCompletion, "chatcmpl-1")]),
        ("/openai/v1/realtime/calls/rtc_1/hangup", &[(Call, "rtc_1")]),
        // No objects of a resource, and nothing that `after` could name.
        ("/openai/v1/models/gpt-4o?after=x", &[]),
        ("/openai/deployments/gpt-4o/embeddings?after=x", &[]),
        ("/openai/threads/thread_1/messages/msg_1", &[]),
        ("/unknown/responses/resp_1?after=x", &[]),
    ];
    for (target, expected) in rows {
        let parsed = parse_target(target.as_bytes(), false).unwrap();
        let mut found = Vec::new();
        visit_references(&parsed, None, &mut |kind, id| found.push((kind, id.to_owned())));
        assert_eq!(found, owned(expected), "{target}");
        let upstream = parsed.upstream_target(None, None, None);
        let upstream = parse_target(upstream.as_bytes(), false).unwrap();
        let mut found_upstream = Vec::new();
        visit_references(&upstream, None, &mut |kind, id| found_upstream.push((kind, id.to_owned())));
        assert_eq!(found_upstream, found, "{target}");
    }
}

#[test]
fn path_query_and_body_are_visited_in_this_order() {
    let target = parse_target(b"/openai/v1/conversations/conv_1/items?after=msg_1", false).unwrap();
    assert_eq!(target.deployment_source(&Method::POST), crate::azure::DeploymentSource::Unspecified);
    let body = br#"{"items":[{"type":"item_reference","id":"msg_2"}]}"#;
    let facts = BodyFacts::parse(body).unwrap();
    let mut found = Vec::new();
    visit_references(&target, Some((&facts, body)), &mut |kind, id| found.push((kind, id.to_owned())));
    assert_eq!(found, owned(&[(Conversation, "conv_1"), (Item, "msg_1"), (Item, "msg_2")]));
}

#[test]
fn ids_are_found_at_their_places_in_bodies() {
    let rows: &[(&str, &[(ReferenceKind, &str)])] = &[
        (r#"{"previous_response_id":"resp_1"}"#, &[(PreviousResponse, "resp_1")]),
        (r#"{"type":"response.inject","response_id":"resp_1","input":[]}"#, &[(Response, "resp_1")]),
        (r#"{"conversation":"conv_1"}"#, &[(Conversation, "conv_1")]),
        (r#"{"conversation":{"id":"conv_1"}}"#, &[(Conversation, "conv_1")]),
        (
            r#"{"input":[{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAAA1"},
                {"type":"function_call","id":"fc_1","call_id":"call_1","arguments":"{\"id\":\"x\"}"},
                {"type":"function_call_output","call_id":"call_1","output":"{\"file_id\":\"x\"}"},
                {"type":"item_reference","id":"msg_1"},
                {"type":"mcp_approval_response","approval_request_id":"mcpr_1","approve":true},
                {"type":"compaction","id":"cmp_1","encrypted_content":"gAAA2"}]}"#,
            &[
                (Item, "rs_1"),
                (EncryptedContent, "gAAA1"),
                (Item, "fc_1"),
                (Item, "msg_1"),
                (Item, "mcpr_1"),
                (Item, "cmp_1"),
                (EncryptedContent, "gAAA2"),
            ],
        ),
        (
            r#"{"input":[{"type":"agent_message","content":[{"type":"encrypted_content","encrypted_content":"gAAA3"}]},
                {"role":"user","content":[{"type":"input_file","file_id":"file-1"},{"type":"input_text","text":"file_id"}]},
                {"type":"function_call_output","call_id":"c","output":[{"type":"input_image","file_id":"file-2"}]},
                {"type":"computer_call_output","call_id":"c","output":{"type":"computer_screenshot","file_id":"file-3"}}]}"#,
            &[(EncryptedContent, "gAAA3"), (File, "file-1"), (File, "file-2"), (File, "file-3")],
        ),
        (
            r#"{"tools":[{"type":"file_search","vector_store_ids":["vs_1","vs_2"]},
                {"type":"code_interpreter","container":"cntr_1"},
                {"type":"code_interpreter","container":{"type":"auto","file_ids":["file-1", "file-2"]}},
                {"type":"shell","environment":{"type":"container_reference","container_id":"cntr_2"}},
                {"type":"image_generation","input_image_mask":{"file_id":"file-3"}}]}"#,
            &[
                (VectorStore, "vs_1"),
                (VectorStore, "vs_2"),
                (Container, "cntr_1"),
                (File, "file-1"),
                (File, "file-2"),
                (Container, "cntr_2"),
                (File, "file-3"),
            ],
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}"#,
            &[(File, "file-1")],
        ),
        (
            r#"{"prompt":{"id":"pmpt_1","variables":{"document":{"type":"input_file","file_id":"file-1"}}}}"#,
            &[(File, "file-1")],
        ),
        (r#"{"input_file_id":"file-1","endpoint":"/v1/responses"}"#, &[(File, "file-1")]),
        (r#"{"training_file":"file-1","validation_file":"file-2"}"#, &[(File, "file-1"), (File, "file-2")]),
        (r#"{"file_ids":["file-1","file-2"],"name":"store"}"#, &[(File, "file-1"), (File, "file-2")]),
        (r#"{"file_id":"file-1","attributes":{"file_id":"mine"}}"#, &[(File, "file-1")]),
        (r#"{"files":[{"file_id":"file-1"},{"file_id":"file-2"}]}"#, &[(File, "file-1"), (File, "file-2")]),
        (r#"{"part_ids":["part_1","part_2"],"md5":"id"}"#, &[(Upload, "part_1"), (Upload, "part_2")]),
        (
            r#"{"data_source":{"type":"jsonl","source":{"type":"file_id","id":"file-1"}}}"#,
            &[(File, "file-1")],
        ),
        (
            r#"{"images":[{"file_id":"file-1"}],"mask":{"file_id":"file-2"}}"#,
            &[(File, "file-1"), (File, "file-2")],
        ),
        (
            r#"{"video":{"id":"video_1"},"input_reference":{"file_id":"file-1"}}"#,
            &[(Video, "video_1"), (File, "file-1")],
        ),
        // Keys and ids may be written with escapes and in any case.
        (
            r#"{"\u0069nput":[{"i\u0064":"rs\u005f1","ENCRYPTED_content":"g\u0041\/"}],"Conversation":{"ID":"conv_1"}}"#,
            &[(Item, "rs_1"), (EncryptedContent, "gA/"), (Conversation, "conv_1")],
        ),
        (r#"{"input":[{"cont\u0065nt":[{"file_id":"file-1"}]}],"fremdwörter":1}"#, &[(File, "file-1")]),
        // The client's own data, and values of other types.
        (
            r#"{"id":"x","call_id":"x","model":"id","user":"file_id","metadata":{"previous_response_id":"x","file_id":"x"},
                "text":{"format":{"type":"json_schema","schema":{"properties":{"id":"x","file_id":"x","encrypted_content":"x"}}}},
                "tools":[{"type":"function","id":"x","file_ids":["x"],"parameters":{"properties":{"id":"x","container_id":"x","file_ids":["x"]},"vector_store_ids":["x"]}},
                    {"type":"mcp","server_label":"container","headers":{"container_id":"x"}}],
                "input":[{"role":"user","content":"{\"id\":\"x\"}","status":{"id":"x"}},
                    {"role":"assistant","content":[{"type":"output_text","id":"x","text":"\"id\":\"x\"","annotations":[{"type":"file_citation","file_id":"x"}]}]},
                    {"type":"file_search_call","results":[{"file_id":"x"}]},
                    {"type":"computer_call","pending_safety_checks":[{"id":"x"}]}],
                "messages":[{"role":"tool","tool_call_id":"x","id":"x","content":[{"type":"text","file_id":"x"}],"tool_calls":[{"id":"x"}]}],
                "previous_response":"x","data_sources":[{"parameters":{"file_id":"x"}}]}"#,
            &[],
        ),
        (
            r#"{"previous_response_id":null,"conversation":{"id":7},"file_ids":[1,{"id":"x"},["x"],null,"","file-1"],
                "input":[{"id":null,"encrypted_content":""},[{"id":"x"}],"id"],"tools":{"container":"x"},"file_id":{"id":"x"}}"#,
            &[(File, "file-1")],
        ),
        (r#"{"input":"id","conversation":[],"tools":null}"#, &[]),
        (r#"{"input":[[{"id":"x"}],{"content":[[{"file_id":"x"}]]}]}"#, &[]),
        ("{}", &[]),
    ];
    for (body, expected) in rows {
        assert_eq!(references_in_body(body), owned(expected), "{body}");
    }
}

#[test]
fn items_without_content_are_told_apart() {
    let body = json!({
        "items": [{"id": "msg_0"}],
        "input": [
            {"type": "message", "id": "msg_1", "content": "x"},
            {"id": "msg_2", "role": "user", "content": "x"},
            {"type": "item_reference", "id": "msg_3"},
            {"id": "rs_4"},
            {"type": "reasoning", "id": "rs_5", "summary": []},
            {"type": "reasoning", "id": "rs_6", "encrypted_content": null},
            {"type": "reasoning", "id": "rs_7", "encrypted_content": "gAAA"},
            {"type": "function_call", "id": "fc_8", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "mcp_approval_response", "id": "mcpr_9", "approval_request_id": "mcpr_\u{e9}"},
            "text", 7, {},
        ],
    });
    for body in [body.to_string(), serde_json::to_string_pretty(&body).unwrap()] {
        let mut found = Vec::new();
        visit_items_without_content(body.as_bytes(), &mut |id| found.push(id.to_owned()));
        found.sort_unstable();
        assert_eq!(found, ["mcpr_\u{e9}", "msg_0", "msg_3", "rs_4", "rs_5", "rs_6"]);
    }
    for body in [&b"{\"input\":\"text\"}"[..], b"{\"input\":[{\"id\":", b"\xff", b""] {
        visit_items_without_content(body, &mut |id| panic!("{id}"));
    }
}

#[test]
fn the_beginning_of_encrypted_content_is_its_id() {
    let long = "gAAAAABé".repeat(40);
    let id: String = long.chars().take(64).collect();
    let escaped: String = long.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    for content in [&long, &escaped] {
        let body = format!(r#"{{"input":[{{"encrypted_content":"{content}"}}]}}"#);
        assert_eq!(references_in_body(&body), [(EncryptedContent, id.clone())]);
    }
    let pairs = r"\ud83d\ude00".repeat(100);
    let body = format!(r#"{{"input":[{{"encrypted_content":"{pairs}"}}]}}"#);
    assert_eq!(references_in_body(&body), [(EncryptedContent, "😀".repeat(64))]);
}

#[test]
fn ids_beside_deep_nesting_are_found() {
    for depth in [100, 200, 10_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let body = format!(
            r#"{{"x":{deep},"input":[{{"id":"rs_1","x":{deep}}},{{"id":"rs_2"}}],"input_file_id":"f"}}"#
        );
        assert_eq!(references_in_body(&body), owned(&[(Item, "rs_1"), (Item, "rs_2"), (File, "f")]));
    }
}

#[test]
fn more_references_than_are_remembered_are_an_error() {
    let body = |count: usize| format!(r#"{{"input":[{}]}}"#, vec![r#"{"id":"a"}"#; count].join(","));
    assert_eq!(references_in_body(&body(MAX_BODY_REFERENCES)).len(), MAX_BODY_REFERENCES);
    let error = BodyFacts::parse(body(MAX_BODY_REFERENCES + 1).as_bytes()).unwrap_err();
    assert_eq!(error, BodyError::TooManyReferences);
}

/// What a document has at a place, such as `input[].content[].file_id`.
fn values_at<'v>(value: &'v Value, pattern: &str) -> Vec<&'v Value> {
    if pattern.is_empty() {
        return vec![value];
    }
    if let Some(rest) = pattern.strip_prefix("[]") {
        return value.as_array().into_iter().flatten().flat_map(|item| values_at(item, rest)).collect();
    }
    let from_name = pattern.strip_prefix('.').unwrap();
    let (name, rest) = from_name.split_at(from_name.find(['.', '[']).unwrap_or(from_name.len()));
    let pairs = value.as_object().into_iter().flatten();
    let pairs = pairs.filter(|(key, _)| name == "*" || key.eq_ignore_ascii_case(name));
    pairs.flat_map(|(_, value)| values_at(value, rest)).collect()
}

/// The references of a document, sorted, as they are listed in the table of places.
fn expected_references(document: &Value) -> References {
    let mut found = Vec::new();
    for (pattern, kind) in PLACES.iter().flat_map(|(root, places)| places.patterns_under(root)) {
        for value in values_at(document, &pattern) {
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let ids = values.iter().filter_map(Value::as_str).filter(|id| !id.is_empty());
            found.extend(ids.map(|id| match kind {
                EncryptedContent => (kind, id.chars().take(64).collect()),
                _ => (kind, id.to_owned()),
            }));
        }
    }
    found.sort();
    found
}

fn any_document() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 34] = [
        "id",
        "ID",
        "file_id",
        "file_ids",
        "container",
        "container_id",
        "vector_store_ids",
        "encrypted_content",
        "approval_request_id",
        "content",
        "output",
        "input",
        "items",
        "tools",
        "messages",
        "file",
        "environment",
        "conversation",
        "previous_response_id",
        "prompt",
        "variables",
        "data_source",
        "source",
        "mask",
        "images",
        "video",
        "part_ids",
        "metadata",
        "parameters",
        "x",
        "é",
        "a\"b",
        "input_image_mask",
        "files",
    ];
    let key = proptest::sample::select(&KEYS[..]).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(7)),
        "[a-c]{1,3}|\"\\\\é|😀|".prop_map(Value::from),
        "[g]{60}[a-z]{0,10}".prop_map(Value::from),
        proptest::collection::vec("[a-c]{0,2}", 0..3).prop_map(Value::from),
    ];
    let inner = leaf.prop_recursive(6, 60, 5, move |inner| {
        let key = proptest::sample::select(&KEYS[..]).prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    proptest::collection::btree_map(key, inner, 0..6)
        .prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_ids_are_those_that_serde_json_finds(document in any_document(), pretty: bool, escaped: bool) {
        let mut body = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
        if escaped {
            body = body.replace("id\"", r#"\u0069d""#).replace("\"in", r#""\u0069n"#);
        }
        let mut found = references_in_body(&body);
        found.sort();
        prop_assert_eq!(found, expected_references(&document), "{}", body);
    }

    #[test]
    fn any_bytes_are_searched(body in proptest::collection::vec(any::<u8>(), 0..60), key in "id|file_ids|input") {
        let body = [b"{\"input\":[{\"", key.as_bytes(), b"\":\"", &body, b"\"}],\"file_ids\":[", &body, b"]}"].concat();
        if let Ok(facts) = BodyFacts::parse(&body) {
            visit_body_references(&facts, &body, &mut |_, id| assert!(!id.is_empty()));
        }
    }
}
