//! Text of prompts and answers on its way into records: broken characters, escapes, redaction, forms in any
//! encoding, and token counts in answers that are too long to be kept.

use crate::support;

use serde_json::{Value, json};
use support::upstream::{self, RawRequest, ScriptedUpstream};
use support::{Balancer, CHAT_TARGET, CLIENT_KEY};

const JSON: &str = "Content-Type: application/json";

/// A stream of chat chunks with these `delta` objects.
fn chat_stream(deltas: &[String]) -> Vec<Vec<u8>> {
    let mut events: String = deltas
        .iter()
        .map(|delta| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n"))
        .collect();
    events.push_str(
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    );
    upstream::complete_response(200, "Content-Type: text/event-stream", &events)
}

async fn post_chat(balancer: &Balancer, body: &str) {
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
}

/// A balancer with these patterns in `record.redact`. Its records stay in its own directory.
async fn start_redacting(
    resource: &ScriptedUpstream,
    patterns: &str,
    more: &str,
) -> (Balancer, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let record = format!(
        "record: {{ {more}redact: {patterns}, jsonl: {{ path: {path}/records.jsonl }}, spool: {{ path: {path}/spool }} }}"
    );
    (Balancer::start(&resource.backend_yaml("a"), &record).await, directory)
}

/// The records of a balancer that has been stopped.
async fn stop_and_read_records(mut balancer: Balancer, directory: &tempfile::TempDir) -> Vec<Value> {
    assert_eq!(balancer.stop().await, 0);
    let text = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_character_costs_no_other_text_and_is_forwarded_unchanged() {
    let resource = ScriptedUpstream::start(|request: &RawRequest| {
        if String::from_utf8_lossy(&request.body).contains("\"stream\"") {
            return chat_stream(&[
                r#"{"content":"Good \ud83d"}"#.into(),
                r#"{"content":"\ude00 day\ud83d"}"#.into(),
            ]);
        }
        upstream::complete_response(200, JSON, r#"{"choices":[{"message":{"content":"half \ud83d of it"}}]}"#)
    })
    .await;
    let balancer = Balancer::start(&resource.backend_yaml("a"), "").await;
    let bodies: [(&[u8], &str, &str); 3] = [
        (
            br#"{"messages":[{"role":"user","content":"cut \ud83d"}],"stream":true,"stream_options":{"include_usage":false}}"#,
            r#"[{"role":"user","content":"cut \ufffd"}]"#,
            "Good 😀 day\u{fffd}",
        ),
        (br#"{"prompt":"cut \ud83d here"}"#, "cut \u{fffd} here", "half \u{fffd} of it"),
        (b"{\"messages\":[\"caf\xe9\"]}", "[\"caf\u{fffd}\"]", "half \u{fffd} of it"),
    ];
    for (body, ..) in bodies {
        assert_eq!(balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body).await.status, 200);
    }
    let records = balancer.wait_for_records(bodies.len()).await;
    for ((body, prompt, completion), request) in bodies.into_iter().zip(resource.requests()) {
        assert_eq!(request.body, body);
        let record = records.iter().find(|record| record["prompt"] == prompt);
        let record = record.unwrap_or_else(|| panic!("{prompt}: {records:#?}"));
        assert_eq!((&record["completion"], &record["content_cut"]), (&completion.into(), &false.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn escapes_broken_characters_and_nesting_hide_nothing_from_redaction() {
    let secrets = json!({"name": "Jürgen Müller", "note": "password\nis hunter2", "sk-abc": [4_111_111_111_111_111_u64]});
    // As Python writes it: every character beyond ASCII is an escape.
    let nested = secrets.to_string().replace('ü', "\\u00fc");
    let twice = Value::from(nested.as_str()).to_string();
    let arguments =
        [nested.clone(), twice.clone(), nested[..nested.len() - 4].to_owned(), format!("Result: {nested}")];
    let answers: Vec<String> = arguments
        .iter()
        .map(|arguments| {
            let call = json!({"id": "call_1", "type": "function", "function": {"name": "save", "arguments": arguments}});
            json!({"choices": [{"index": 0, "message": {"content": null, "tool_calls": [call]}}]}).to_string()
        })
        .collect();
    let bodies: Vec<String> = arguments
        .iter()
        .map(|content| json!({"messages": [{"role": "tool", "content": content}]}).to_string())
        .chain([r#"{"messages":[{"role":"user","content":"password\nis hunter2, J\u00fcrgen M\u00fcller, \u0073k-abc \ud83d"}]}"#.to_owned()])
        .collect();
    let by_body: Vec<(Vec<u8>, String)> = bodies
        .iter()
        .zip(answers.into_iter().cycle())
        .map(|(body, answer)| (body.clone().into_bytes(), answer))
        .collect();
    let resource = ScriptedUpstream::start(move |request: &RawRequest| {
        let (_, answer) = by_body.iter().find(|(body, _)| *body == request.body).unwrap();
        upstream::complete_response(200, JSON, answer)
    })
    .await;
    let patterns = r"['(?i)password\s+is\s+\S+', 'Jürgen Müller', 'sk-[a-z]+', '4[0-9]{15}']";
    let (balancer, directory) = start_redacting(&resource, patterns, "").await;
    for body in &bodies {
        post_chat(&balancer, body).await;
    }
    let records = stop_and_read_records(balancer, &directory).await;
    assert_eq!(records.len(), bodies.len());
    for record in &records {
        for part in ["prompt", "completion"] {
            let text = record[part].as_str().unwrap();
            for secret in ["hunter2", "rgen", "sk-", "abc", "4111"] {
                assert!(!text.contains(secret), "{part} with {secret}: {text}");
            }
            let parsed = serde_json::from_str::<Value>(text);
            assert!(parsed.is_ok(), "expected the {part} to stay JSON: {text}");
        }
    }
    // What was JSON in a string is JSON still.
    let expected = json!({"name": "[redacted]", "note": "[redacted]", "[redacted]": ["[redacted]"]});
    for (index, levels) in [(0, 1), (1, 2)] {
        let mut value: Value = serde_json::from_str(records[index]["prompt"].as_str().unwrap()).unwrap();
        value = value[0]["content"].take();
        for _ in 0..levels {
            value = serde_json::from_str(value.as_str().unwrap()).unwrap();
        }
        assert_eq!(value, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_split_over_deltas_or_at_the_content_limit_is_redacted() {
    // Each delta has three characters of the arguments of a tool, which are JSON.
    let arguments =
        json!({"text": "x".repeat(150), "name": "J\u{fc}rgen sk-abcdefghijklmnopqrstuvwxyz"}).to_string();
    let arguments = arguments.replace('ü', "\\u00fc");
    let pieces: Vec<char> = arguments.chars().collect();
    let deltas: Vec<String> = pieces
        .chunks(3)
        .map(|piece| {
            let arguments: String = piece.iter().collect();
            json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}).to_string()
        })
        .collect();
    let resource = ScriptedUpstream::start(move |_: &RawRequest| chat_stream(&deltas)).await;
    let body = json!({"stream": true, "messages": [{"role": "tool", "content": arguments}]}).to_string();
    // The limits lie before, in and after the secrets.
    for limit in [200, 215, 230, 245, 260, 275, 290, 10_000] {
        let patterns = "['J.rgen', 'sk-[a-z]+']";
        let (balancer, directory) =
            start_redacting(&resource, patterns, &format!("content_limit: {limit}B, ")).await;
        post_chat(&balancer, &body).await;
        let records = stop_and_read_records(balancer, &directory).await;
        for part in ["prompt", "completion"] {
            let text = records[0][part].as_str().unwrap();
            assert!(text.contains("xxx") && text.len() <= limit, "{part} at {limit}: {text}");
            for secret in ["rgen", "sk-", "abc"] {
                assert!(!text.contains(secret), "{part} at {limit} with {secret}: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_was_cut_in_one_of_several_choices_is_not_written() {
    // The capture, which is of 1 MiB for a stream, ends within the secret of the first choice.
    let (half, last) = ("b ".repeat(256 * 1024), "b ".repeat(256 * 1024 - 154));
    let deltas =
        [(0, "a".repeat(300)), (1, half), (1, last), (0, "4111111111111111".into()), (1, "more".into())];
    let events: String = deltas
        .map(|(index, content)| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n"
            )
        })
        .concat()
        + "data: [DONE]\n\n";
    let resource = ScriptedUpstream::start(move |_: &RawRequest| {
        upstream::complete_response(200, "Content-Type: text/event-stream", &events)
    })
    .await;
    let (balancer, directory) = start_redacting(&resource, "['4[0-9]{15}']", "content_limit: 1000B, ").await;
    post_chat(&balancer, r#"{"stream":true,"n":2,"messages":[{"role":"user","content":"hi"}]}"#).await;
    let records = stop_and_read_records(balancer, &directory).await;
    let completion = records[0]["completion"].as_str().unwrap();
    assert!(completion.contains(r#"[redacted]","b b b"#) && !completion.contains('4'), "{completion}");
    assert_eq!(records[0]["content_cut"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_with_file_names_in_any_encoding_are_forwarded_and_recorded() {
    let resource =
        ScriptedUpstream::start(|_: &RawRequest| upstream::complete_response(200, JSON, r#"{"text":"hi"}"#))
            .await;
    let endpoint = format!("http://{}", resource.address);
    let backends = support::backend_yaml("a", &endpoint, "deployments: { whisper: up }");
    let balancer = Balancer::start(&backends, "").await;
    let form = |filename: &[u8], model: &[u8]| {
        [
            b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"",
            filename,
            b"\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\0\xff\r\n--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n",
            model,
            b"\r\n--B--\r\n",
        ]
        .concat()
    };
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", "multipart/form-data; boundary=B")];
    let classic = "/openai/deployments/whisper/audio/transcriptions?api-version=2024-10-21";
    let filenames: [&[u8]; 5] =
        ["grüße.wav".as_bytes(), b"gr\xfc\xdfe.wav", b"\x89\xef\x8bc.wav", b"\x95\x5c.wav", b"\x95\x5c"];
    for filename in filenames {
        for (target, model) in [("/openai/v1/audio/transcriptions", &b"up"[..]), (classic, b"whisper")] {
            let response = balancer.post(target, &headers, &form(filename, b"whisper")).await;
            assert_eq!(response.status, 200, "{}: {}", filename.escape_ascii(), response.text());
            assert_eq!(
                resource.requests().last().unwrap().body,
                form(filename, model),
                "{}",
                filename.escape_ascii()
            );
        }
    }
    // Who reads a backslash as an escape sees no `model` here, and others do.
    let two_ways =
        b"x\"\r\nX: y\r\n\r\n\r\n--B\r\nContent-Disposition: form-data; filename=\"\x95\x5c\"; name=\"model";
    for target in ["/openai/v1/audio/transcriptions", classic] {
        let response = balancer.post(target, &headers, &form(two_ways, b"other")).await;
        assert_eq!((response.status, response.error_code()), (400, "bad_request".into()), "{target}");
    }
    let records = balancer.wait_for_records(2 * filenames.len() + 2).await;
    assert!(
        records
            .iter()
            .filter(|record| record["status"] == 200)
            .all(|record| record["prompt"] == r#"{"model":"whisper"}"#),
        "{records:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_read_from_events_and_replies_that_are_too_long_to_be_kept() {
    let picture = "iVBORw0KGgo\\u0041\\\"".repeat(100_000);
    let usage = r#""usage":{"input_tokens":50,"output_tokens":4160,"total_tokens":4210}"#;
    let decoy = r#""data":[{"model":"decoy","usage":{"total_tokens":1}}]"#;
    let stream = format!(
        "event: image_generation.partial_image\ndata: {{\"type\":\"image_generation.partial_image\",\"b64_json\":\"{picture}\"}}\n\n\
         event: image_generation.completed\ndata: {{\"type\":\"image_generation.completed\",\"b64_json\":\"{picture}\",{decoy},\"model\":\"gpt-image-1\",{usage}}}\n\n"
    );
    let reply = format!(r#"{{"model":"gpt-image-1",{usage},"content":"{picture}",{decoy}}}"#);
    let (expected_stream, expected_reply) = (stream.clone(), reply.clone());
    let resource = ScriptedUpstream::start(move |request: &RawRequest| {
        if request.head.contains("/images/") {
            upstream::complete_response(200, "Content-Type: text/event-stream", &stream)
        } else {
            upstream::complete_response(200, JSON, &reply)
        }
    })
    .await;
    let balancer = Balancer::start(&resource.backend_yaml("a"), "").await;
    for (operation, expected) in
        [("images/generations", expected_stream), ("chat/completions", expected_reply)]
    {
        let target = format!("/openai/deployments/d/{operation}?api-version=2025-04-01-preview");
        let body = br#"{"prompt":"a cat","stream":true}"#;
        let response = balancer.post(&target, &[("api-key", CLIENT_KEY)], body).await;
        assert_eq!(response.status, 200);
        assert!(response.body == expected.as_bytes(), "expected the bytes of the backend");
    }
    for record in balancer.wait_for_records(2).await {
        let read = ["outcome", "model", "input_tokens", "output_tokens", "usage_source"]
            .map(|key| record[key].clone());
        assert_eq!(json!(read), json!(["answered", "gpt-image-1", 50, 4160, "reported"]), "{record:#}");
        assert_eq!(record["content_cut"], record["operation"] == "chat");
    }
}
