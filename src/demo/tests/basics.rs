//! Calm behaviour: dialects, credentials, chat, embeddings, limits, framing.

use serde_json::json;

use super::super::{Kind, Seen, demo_resources, parse};
use super::*;

#[tokio::test]
async fn both_dialects_answer_a_chat_alike_on_one_connection() {
    let simulator = started(east().keeping_bodies()).await;
    let mut client = Client::to(simulator.address("east")).await;
    let classic = client.ask(post(CHAT, HELLO)).await;
    let body = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"hello there"}]}"#;
    let v1 = client.ask(post("/openai/v1/chat/completions", body)).await;
    for reply in [&classic, &v1] {
        assert_eq!(reply.status, 200, "{}", reply.head);
        let value = reply.json();
        let text = "You said: hello there - and this is a simulated answer to it.";
        assert_eq!(value["choices"][0]["message"]["content"], text);
        assert_eq!(value["usage"]["total_tokens"], 4 + 18);
        assert!(value["id"].as_str().unwrap().len() == "chatcmpl-".len() + 29);
        for name in ["apim-request-id", "x-request-id", "x-ms-region", "x-ms-deployment-name", "date"] {
            assert!(reply.header(name).is_some(), "{name} is missing");
        }
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), None);
    }
    let seen = simulator.requests("east");
    assert_eq!((simulator.hits("east"), simulator.connections("east"), seen.len()), (2, 1, 2));
    let last = &seen[1];
    assert_eq!((last.target.as_str(), last.body_len), ("/openai/v1/chat/completions", body.len() as u64));
    assert_eq!(last.body.as_deref(), Some(body.as_bytes()));
    assert_eq!(last.headers[2], ("Content-Length".to_owned(), body.len().to_string().into_bytes()));
    assert!(last.complete && !last.cancelled && last.status == Some(200));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_decides_its_error() {
    let simulator = started(Resource { host: Some("east.openai.azure.com".to_owned()), ..east() }).await;
    let request = |target: &str, headers: &str| {
        format!("POST {target} HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{HELLO}", HELLO.len())
    };
    let ours = "Host: east.openai.azure.com:443\r\n";
    let keyed = format!("{ours}api-key: k\r\n");
    let v1 = "/openai/v1/chat/completions";
    let many: String = (0..11).map(|at| format!("x-custom-{at}: 1\r\n")).collect();
    let usual: String = (0..30).map(|at| format!("x-stainless-{at}: 1\r\n")).collect();
    let cases = [
        (request(CHAT, &keyed), 200, ""),
        (request(CHAT, "Host: other\r\napi-key: k\r\n"), 404, "/error/message=Resource not found"),
        (request("/openai/deployments/gpt-4o/chat/completions", &keyed), 404, "/error/code=404"),
        (
            request("/openai/deployments/gpt-4o/chat/completions?api-version=9", &keyed),
            404,
            "/error/code=404",
        ),
        (request("/openai/chat/completions?api-version=2024-10-21", &keyed), 404, "/error/code=404"),
        (request("/openai/v1/nothing", &keyed), 404, "/error/code=404"),
        (
            request("/openai/v1/chat/completions?api-version=2024-10-21", &keyed),
            400,
            "/error/code=BadRequest",
        ),
        (
            request("/openai/deployments/none/chat/completions?api-version=2024-10-21", &keyed),
            404,
            "/error/code=DeploymentNotFound",
        ),
        (
            request("/openai/deployments/embed/chat/completions?api-version=2024-10-21", &keyed),
            400,
            "/error/code=OperationNotSupported",
        ),
        (request(v1, &keyed), 400, "/error/param=model"),
        (request(CHAT, &format!("{keyed}{many}")), 431, ""),
        (request(CHAT, &format!("{keyed}{usual}")), 200, ""),
        (request(CHAT, &format!("{ours}api-key: wrong\r\n")), 401, "/error/code=401"),
        (request(CHAT, ours), 401, "/statusCode=401"),
        (request(CHAT, &format!("{ours}Authorization: Bearer eyJgood\r\n")), 200, ""),
        (request(CHAT, &format!("{ours}Authorization: Bearer k\r\n")), 401, "/statusCode=401"),
        (request(v1, &format!("{ours}Authorization: Bearer k\r\n")), 400, "/error/param=model"),
        (request(v1, &format!("{ours}Authorization: Bearer eyJbad\r\n")), 401, "/statusCode=401"),
    ];
    for (request, status, expected) in cases {
        let reply = one(&simulator, &request).await;
        assert_eq!(reply.status, status, "{request}\n{reply:?}");
        if let Some((pointer, wanted)) = expected.split_once('=') {
            let value = reply.json();
            let found = value.pointer(pointer).map(|value| value.to_string().trim_matches('"').to_owned());
            assert_eq!(found.as_deref(), Some(wanted), "{request}");
        }
    }
}

#[tokio::test]
async fn keys_can_be_switched_off() {
    let mut resource = east();
    resource.key_auth_disabled = true;
    resource.tokens_without_role.push("eyJweak".to_owned());
    let simulator = started(resource).await;
    let reply = one(&simulator, post(CHAT, HELLO)).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].clone()),
        (403, json!("AuthenticationTypeDisabled"))
    );
    let weak = post(CHAT, HELLO).replace("api-key: k", "authorization: bearer eyJweak");
    let reply = one(&simulator, weak).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].clone()), (401, json!("PermissionDenied")));
}

#[tokio::test]
async fn a_chat_streams_as_azure_does() {
    let simulator = started(east()).await;
    let reply = one(&simulator, post(CHAT, STREAM)).await;
    let events = reply.events();
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert!(events[0]["choices"].as_array().unwrap().is_empty() && events[0]["id"] == "");
    assert!(events[0]["prompt_filter_results"].is_array());
    assert_eq!(reply.said(), "You said: hello there - and this is a simulated answer to it.");
    assert!(events[2]["obfuscation"].is_string() && events.iter().all(|event| event.get("usage").is_none()));
    assert!(reply.text().ends_with("data: [DONE]\n\n") && reply.whole);

    let body = r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},
                   "messages":[{"role":"user","content":"hello there"}]}"#;
    let events = one(&simulator, post(CHAT, body)).await.events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!((last["choices"].clone(), last["usage"]["total_tokens"].clone()), (json!([]), json!(22)));
    assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert!(events.iter().all(|event| event.get("obfuscation").is_none()));

    let old = one(&simulator, post(&CHAT.replace("2024-10-21", "2024-06-01"), body)).await;
    assert_eq!(old.status, 400);
    assert!(old.text().contains("stream_options"));
}

#[tokio::test]
async fn choices_limits_and_tools_shape_an_answer() {
    let simulator = started(east()).await;
    let cases = [
        (
            json!({"n": 3}),
            "/choices/2/message/content",
            json!("You said: use the tool - and this is a simulated answer to it. (choice 2)"),
        ),
        (json!({"max_tokens": 4}), "/choices/0/finish_reason", json!("length")),
        (json!({"max_completion_tokens": 4}), "/usage/completion_tokens", json!(4)),
        (json!({"max_tokens": 0}), "/error/param", json!("max_tokens")),
        (json!({"max_tokens": u64::MAX}), "/error/param", json!("max_tokens")),
        (
            json!({"tools": [{"function": {"name": "f"}}]}),
            "/choices/0/message/tool_calls/0/function/name",
            json!("f"),
        ),
        (
            json!({"tools": [{"function": {"name": "f"}}], "tool_choice": "none"}),
            "/choices/0/finish_reason",
            json!("stop"),
        ),
        (json!({"reasoning_effort": "low"}), "/usage/completion_tokens_details/reasoning_tokens", json!(64)),
        (json!({"stream_options": {}}), "/error/param", json!("stream_options")),
        (json!({"messages": []}), "/error/param", json!("messages")),
    ];
    for (more, pointer, expected) in cases {
        let mut body =
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "use the tool"}]}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = one(&simulator, post(CHAT, &body.to_string())).await.json();
        assert_eq!(reply.pointer(pointer), Some(&expected), "{more}: {reply}");
    }
    let reply = one(&simulator, post(CHAT, "{nonsense")).await;
    assert_eq!((reply.status, reply.json()["error"]["type"].clone()), (400, json!("invalid_request_error")));
}

#[tokio::test]
async fn embeddings_come_as_numbers_and_as_base64() {
    let simulator = started(east()).await;
    let target = "/openai/deployments/embed/embeddings?api-version=2024-10-21";
    let reply = one(&simulator, post(target, r#"{"input":["a","b",[1,2]],"dimensions":3}"#)).await.json();
    assert_eq!(
        (reply["data"].as_array().unwrap().len(), reply["usage"]["prompt_tokens"].clone()),
        (3, json!(6))
    );
    let floats: Vec<f32> = serde_json::from_value(reply["data"][0]["embedding"].clone()).unwrap();
    let packed = one(&simulator, post(target, r#"{"input":"a","dimensions":3,"encoding_format":"base64"}"#))
        .await
        .json();
    let bytes: Vec<u8> = floats.iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(packed["data"][0]["embedding"], super::super::codec::base64(&bytes));
}

#[tokio::test]
async fn limits_refuse_and_say_for_how_long() {
    let kind = Kind::Standard { tokens_per_minute: 100, requests_per_minute: Some(600) };
    let ptu = Kind::Provisioned { tokens_per_minute: 100, output_weight: 4 };
    let simulator = started(
        Resource::new("east").key("k").deployment("gpt-4o", "gpt-4o", kind).deployment("ptu", "gpt-4o", ptu),
    )
    .await;
    let body = |most: u64| {
        json!({"max_tokens": most, "messages": [{"role": "user", "content": "hello"}]}).to_string()
    };
    let huge = one(&simulator, post(CHAT, &body(500))).await;
    assert_eq!((huge.status, huge.header("retry-after")), (429, Some("86400")));
    let good = one(&simulator, post(CHAT, &body(150).replace("150", "90"))).await;
    assert_eq!((good.status, good.header("x-ratelimit-limit-tokens")), (200, Some("100")));
    let last = one(&simulator, post(CHAT, &body(90))).await;
    assert!(last.header("x-ratelimit-remaining-tokens").unwrap().starts_with('-'), "{}", last.head);
    let refused = one(&simulator, post(CHAT, &body(1))).await;
    assert_eq!(refused.status, 429);
    assert!(refused.text().contains("ChatCompletions_Create") && refused.text().contains("token rate limit"));
    assert!((1..=60).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));

    let target = CHAT.replace("gpt-4o", "ptu");
    let full = one(&simulator, post(&target, &body(100))).await;
    assert_eq!(full.status, 200);
    assert!(full.header("azure-openai-deployment-utilization").unwrap().ends_with('%'));
    assert_eq!(full.header("x-ratelimit-limit-tokens"), None);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(one(&simulator, post(&target, &body(100))).await);
    }
    let refused = statuses.iter().find(|reply| reply.status == 429).unwrap();
    assert!(refused.header("retry-after-ms").is_some());
}

#[tokio::test]
async fn bodies_are_counted_exactly_however_they_are_framed() {
    let simulator = started(east().keeping_bodies()).await;
    let mut client = Client::to(simulator.address("east")).await;
    let (first, second) = HELLO.split_at(20);
    client
        .send(format!(
            "POST {CHAT} HTTP/1.1\r\nHost: x\r\napi-key: k\r\nTransfer-Encoding: chunked\r\n\r\n14;x=y\r\n"
        ))
        .await;
    client.send(format!("{first}\r\n{:X}\r\n{second}\r\n0\r\ntrailer: 1\r\n\r\n", second.len())).await;
    assert_eq!(client.reply().await.unwrap().status, 200);
    let expecting = post(CHAT, HELLO).replace("api-key", "Expect: 100-continue\r\napi-key");
    let (head, body) = expecting.split_at(expecting.len() - HELLO.len());
    assert_eq!(client.ask(head).await.status, 100);
    assert_eq!(client.ask(body).await.status, 200);
    assert_eq!(client.ask(fetch("HEAD", "/openai/v1/models").replace("HEAD", "GET")).await.status, 200);
    let bodies: Vec<Seen> = simulator.requests("east");
    assert_eq!(bodies[0].body.as_deref(), Some(HELLO.as_bytes()));
    assert_eq!((bodies[1].body_len, simulator.connections("east")), (HELLO.len() as u64, 1));
}

#[tokio::test]
async fn absurd_numbers_are_refused_not_believed() {
    let simulator = started(east()).await;
    let most = u64::MAX;
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n{most:x}\r\n"
    );
    let sized = format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {most}\r\n\r\n");
    for (request, status) in [(chunked, 413), (sized, 413), ("nonsense\r\n\r\n".to_owned(), 400)] {
        assert_eq!(one(&simulator, &request).await.status, status, "{request}");
    }
    let made =
        one(&simulator, post("/openai/v1/responses", r#"{"model":"gpt-4o","input":"x"}"#)).await.json();
    let resumed =
        format!("/openai/v1/responses/{}?stream=true&starting_after={most}", made["id"].as_str().unwrap());
    let reply = one(&simulator, fetch("GET", &resumed)).await;
    assert_eq!((reply.status, reply.events().len()), (200, 0));
}

#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_no_trouble() {
    let simulator = started(east().deployment("whisper", "whisper", Kind::Unlimited)).await;
    let opening = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n";
    let rest = "\r\n--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--b--\r\n";
    let size = 100 * 1024 * 1024;
    let length = opening.len() + size + rest.len();
    let mut client = Client::to(simulator.address("east")).await;
    client
        .send(format!(
            "POST /openai/v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\napi-key: k\r\nContent-Length: {length}\r\n\
             Content-Type: multipart/form-data; boundary=b\r\n\r\n{opening}"
        ))
        .await;
    let block = vec![b'a'; 1024 * 1024];
    for _ in 0..100 {
        client.send(&block).await;
    }
    let reply = client.ask(rest).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains(&format!("{size} bytes")));
    assert_eq!(simulator.requests("east")[0].body_len, length as u64);
}

#[tokio::test]
async fn listening_stops_and_resumes_on_the_same_address() {
    let simulator = started(east()).await;
    let address = simulator.address("east");
    let mut open = Client::to(address).await;
    assert_eq!(open.ask(post(CHAT, HELLO)).await.status, 200);
    simulator.stop_listening("east").await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(open.ask(post(CHAT, HELLO)).await.status, 200, "open connections go on");
    simulator.drop_connections("east").await;
    assert!(!open.more().await);
    simulator.resume("east").await.unwrap();
    assert_eq!(one(&simulator, post(CHAT, HELLO)).await.status, 200);
}

#[test]
fn files_are_read_or_refused_with_a_place_and_a_reason() {
    let example = include_str!("../../../conf/simulate.yaml");
    assert_eq!(parse(example).unwrap().len(), 3);
    assert_eq!(demo_resources().len(), 3);
    let file = |more: &str| format!("resources:\n  - name: a\n    address: 127.0.0.1:0\n    {more}\n");
    let cases = [
        ("mood: throtled", "resources[0].mood: throtled: no such mood"),
        ("mood: error", "did you mean error_first?"),
        ("mood: {drip: 50}", "a duration is expected"),
        ("mood: {drip: 50x}", "write a number and a unit"),
        ("mood: {throttled: {after: 1}}", "unknown after; it takes retry_after_ms, retry_after"),
        ("mood: {refuses: 200}", "neither a known refusal nor a status"),
        ("mood: {sequence: [calm, {per_deployment: {x: nope}}]}", "per_deployment: nope: no such mood"),
        (
            "deployments: [{name: d, provisioned: true}]",
            "resources[0].deployments[0]: a provisioned deployment needs",
        ),
        ("colour: red", "unknown field `colour`"),
        ("idle_limit: soon", "resources[0].idle_limit"),
    ];
    for (more, expected) in cases {
        let problem = parse(&file(more)).unwrap_err().to_string();
        assert!(problem.contains(expected), "{more}: {problem}");
    }
}
