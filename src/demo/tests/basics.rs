//! Normal behaviour: dialects, credentials, chat, embeddings, limits, framing.

use super::*;
use crate::demo::{DeploymentKind, LoggedRequest};

#[tokio::test]
async fn both_dialects_give_the_same_chat_response() {
    let simulator = start_simulator(east_resource().with_recorded_request_bodies()).await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    let classic = client.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await;
    let body = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"hello there"}]}"#;
    let v1 = client.round_trip(post_request("/openai/v1/chat/completions", body)).await;
    for response in [&classic, &v1] {
        assert_eq!(response.status, 200, "{}", response.head);
        let value = response.json();
        let text = "You said: hello there - and this is a simulated answer to it.";
        assert_eq!(value["choices"][0]["message"]["content"], text);
        assert_eq!(value["usage"]["total_tokens"], 4 + 18);
        assert!(value["id"].as_str().unwrap().len() == "chatcmpl-".len() + 29);
        for name in ["apim-request-id", "x-request-id", "x-ms-region", "x-ms-deployment-name", "date"] {
            assert!(response.header(name).is_some(), "{name} is missing");
        }
        assert_eq!(response.header("x-ratelimit-limit-tokens"), None);
    }
    let requests = simulator.received_requests("east");
    assert_eq!(
        (simulator.request_count("east"), simulator.accepted_connection_count("east"), requests.len()),
        (2, 1, 2)
    );
    let last = &requests[1];
    assert_eq!((last.target.as_str(), last.body_len), ("/openai/v1/chat/completions", body.len() as u64));
    assert_eq!(last.body.as_deref(), Some(body.as_bytes()));
    assert_eq!(last.headers[2], ("Content-Length".to_owned(), body.len().to_string().into_bytes()));
    assert!(last.is_body_complete && !last.client_disconnected && last.response_status == Some(200));
}

#[tokio::test]
async fn each_fault_of_a_request_has_its_own_error() {
    let simulator = start_simulator(SimulatedResource {
        required_host: Some("east.openai.azure.com".to_owned()),
        ..east_resource()
    })
    .await;
    let request = |target: &str, headers: &str| {
        format!("POST {target} HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{CHAT_BODY}", CHAT_BODY.len())
    };
    let right_host = "Host: east.openai.azure.com:443\r\n";
    let right_headers = format!("{right_host}api-key: k\r\n");
    let v1 = "/openai/v1/chat/completions";
    let custom_headers: String = (0..11).map(|index| format!("x-custom-{index}: 1\r\n")).collect();
    let sdk_headers: String = (0..30).map(|index| format!("x-stainless-{index}: 1\r\n")).collect();
    let cases = [
        (request(CHAT_TARGET, &right_headers), 200, ""),
        (request(CHAT_TARGET, "Host: other\r\napi-key: k\r\n"), 404, "/error/message=Resource not found"),
        (request("/openai/deployments/gpt-4o/chat/completions", &right_headers), 404, "/error/code=404"),
        (
            request("/openai/deployments/gpt-4o/chat/completions?api-version=9", &right_headers),
            404,
            "/error/code=404",
        ),
        (request("/openai/chat/completions?api-version=2024-10-21", &right_headers), 404, "/error/code=404"),
        (request("/openai/v1/nothing", &right_headers), 404, "/error/code=404"),
        (
            request("/openai/v1/chat/completions?api-version=2024-10-21", &right_headers),
            400,
            "/error/code=BadRequest",
        ),
        (
            request("/openai/deployments/none/chat/completions?api-version=2024-10-21", &right_headers),
            404,
            "/error/code=DeploymentNotFound",
        ),
        (
            request("/openai/deployments/embed/chat/completions?api-version=2024-10-21", &right_headers),
            400,
            "/error/code=OperationNotSupported",
        ),
        (request(v1, &right_headers), 400, "/error/param=model"),
        (request(CHAT_TARGET, &format!("{right_headers}{custom_headers}")), 431, ""),
        (request(CHAT_TARGET, &format!("{right_headers}{sdk_headers}")), 200, ""),
        (request(CHAT_TARGET, &format!("{right_host}api-key: wrong\r\n")), 401, "/error/code=401"),
        (request(CHAT_TARGET, right_host), 401, "/statusCode=401"),
        (request(CHAT_TARGET, &format!("{right_host}Authorization: Bearer eyJgood\r\n")), 200, ""),
        (request(CHAT_TARGET, &format!("{right_host}Authorization: Bearer k\r\n")), 401, "/statusCode=401"),
        (request(v1, &format!("{right_host}Authorization: Bearer k\r\n")), 400, "/error/param=model"),
        (request(v1, &format!("{right_host}Authorization: Bearer eyJbad\r\n")), 401, "/statusCode=401"),
    ];
    for (request, status, expected) in cases {
        let response = send_once(&simulator, &request).await;
        assert_eq!(response.status, status, "{request}\n{response:?}");
        if let Some((pointer, wanted)) = expected.split_once('=') {
            let value = response.json();
            let found = value.pointer(pointer).map(|value| value.to_string().trim_matches('"').to_owned());
            assert_eq!(found.as_deref(), Some(wanted), "{request}");
        }
    }
}

#[tokio::test]
async fn a_resource_can_disable_api_keys() {
    let mut resource = east_resource();
    resource.is_key_auth_disabled = true;
    resource.entra_tokens_without_role.push("eyJweak".to_owned());
    let simulator = start_simulator(resource).await;
    let response = send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await;
    assert_eq!(
        (response.status, response.json()["error"]["code"].clone()),
        (403, json!("AuthenticationTypeDisabled"))
    );
    let without_role =
        post_request(CHAT_TARGET, CHAT_BODY).replace("api-key: k", "authorization: bearer eyJweak");
    let response = send_once(&simulator, without_role).await;
    assert_eq!((response.status, response.json()["error"]["code"].clone()), (401, json!("PermissionDenied")));
}

#[tokio::test]
async fn a_chat_stream_has_the_quirks_of_azure() {
    let simulator = start_simulator(east_resource()).await;
    let response = send_once(&simulator, post_request(CHAT_TARGET, STREAMING_CHAT_BODY)).await;
    let events = response.events();
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    assert!(events[0]["choices"].as_array().unwrap().is_empty() && events[0]["id"] == "");
    assert!(events[0]["prompt_filter_results"].is_array());
    assert_eq!(response.chat_text(), "You said: hello there - and this is a simulated answer to it.");
    assert!(events[2]["obfuscation"].is_string() && events.iter().all(|event| event.get("usage").is_none()));
    assert!(response.text().ends_with("data: [DONE]\n\n") && response.is_complete);

    let body = r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},
                   "messages":[{"role":"user","content":"hello there"}]}"#;
    let events = send_once(&simulator, post_request(CHAT_TARGET, body)).await.events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!((last["choices"].clone(), last["usage"]["total_tokens"].clone()), (json!([]), json!(22)));
    assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert!(events.iter().all(|event| event.get("obfuscation").is_none()));

    let old_version =
        send_once(&simulator, post_request(&CHAT_TARGET.replace("2024-10-21", "2024-06-01"), body)).await;
    assert_eq!(old_version.status, 400);
    assert!(old_version.text().contains("stream_options"));
}

#[tokio::test]
async fn parameters_of_a_chat_shape_its_response() {
    let simulator = start_simulator(east_resource()).await;
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
    for (parameters, pointer, expected) in cases {
        let mut body =
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "use the tool"}]}]});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let response = send_once(&simulator, post_request(CHAT_TARGET, &body.to_string())).await.json();
        assert_eq!(response.pointer(pointer), Some(&expected), "{parameters}: {response}");
    }
    let response = send_once(&simulator, post_request(CHAT_TARGET, "{nonsense")).await;
    assert_eq!(
        (response.status, response.json()["error"]["type"].clone()),
        (400, json!("invalid_request_error"))
    );
}

#[tokio::test]
async fn embeddings_are_numbers_or_base64() {
    let simulator = start_simulator(east_resource()).await;
    let target = "/openai/deployments/embed/embeddings?api-version=2024-10-21";
    let response = send_once(&simulator, post_request(target, r#"{"input":["a","b",[1,2]],"dimensions":3}"#))
        .await
        .json();
    assert_eq!(
        (response["data"].as_array().unwrap().len(), response["usage"]["prompt_tokens"].clone()),
        (3, json!(6))
    );
    let floats: Vec<f32> = serde_json::from_value(response["data"][0]["embedding"].clone()).unwrap();
    let encoded = send_once(
        &simulator,
        post_request(target, r#"{"input":"a","dimensions":3,"encoding_format":"base64"}"#),
    )
    .await
    .json();
    let bytes: Vec<u8> = floats.iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(encoded["data"][0]["embedding"], crate::demo::util::encoding::base64_encode(&bytes));
}

#[tokio::test]
async fn a_429_says_how_long_to_wait() {
    let kind = DeploymentKind::Standard { tokens_per_minute: 100, requests_per_minute: Some(600) };
    let ptu = DeploymentKind::Provisioned { tokens_per_minute: 100, output_weight: 4 };
    let simulator = start_simulator(
        SimulatedResource::new("east")
            .with_api_key("k")
            .with_deployment("gpt-4o", "gpt-4o", kind)
            .with_deployment("ptu", "gpt-4o", ptu),
    )
    .await;
    let body = |max_tokens: u64| {
        json!({"max_tokens": max_tokens, "messages": [{"role": "user", "content": "hello"}]}).to_string()
    };
    let oversized = send_once(&simulator, post_request(CHAT_TARGET, &body(500))).await;
    assert_eq!((oversized.status, oversized.header("retry-after")), (429, Some("86400")));
    let admitted = send_once(&simulator, post_request(CHAT_TARGET, &body(150).replace("150", "90"))).await;
    assert_eq!((admitted.status, admitted.header("x-ratelimit-limit-tokens")), (200, Some("100")));
    let last = send_once(&simulator, post_request(CHAT_TARGET, &body(90))).await;
    assert!(last.header("x-ratelimit-remaining-tokens").unwrap().starts_with('-'), "{}", last.head);
    let refused = send_once(&simulator, post_request(CHAT_TARGET, &body(1))).await;
    assert_eq!(refused.status, 429);
    assert!(refused.text().contains("ChatCompletions_Create") && refused.text().contains("token rate limit"));
    assert!((1..=60).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));

    let target = CHAT_TARGET.replace("gpt-4o", "ptu");
    let full = send_once(&simulator, post_request(&target, &body(100))).await;
    assert_eq!(full.status, 200);
    assert!(full.header("azure-openai-deployment-utilization").unwrap().ends_with('%'));
    assert_eq!(full.header("x-ratelimit-limit-tokens"), None);
    let mut responses = Vec::new();
    for _ in 0..4 {
        responses.push(send_once(&simulator, post_request(&target, &body(100))).await);
    }
    let refused = responses.iter().find(|response| response.status == 429).unwrap();
    assert!(refused.header("retry-after-ms").is_some());
}

#[tokio::test]
async fn the_size_of_a_body_is_exact_with_any_framing() {
    let simulator = start_simulator(east_resource().with_recorded_request_bodies()).await;
    let mut client = TestClient::connect(simulator.address("east")).await;
    let (first, second) = CHAT_BODY.split_at(20);
    client
        .send(format!(
            "POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\napi-key: k\r\nTransfer-Encoding: chunked\r\n\r\n14;x=y\r\n"
        ))
        .await;
    client.send(format!("{first}\r\n{:X}\r\n{second}\r\n0\r\ntrailer: 1\r\n\r\n", second.len())).await;
    assert_eq!(client.read_response().await.unwrap().status, 200);
    let expecting =
        post_request(CHAT_TARGET, CHAT_BODY).replace("api-key", "Expect: 100-continue\r\napi-key");
    let (head, body) = expecting.split_at(expecting.len() - CHAT_BODY.len());
    assert_eq!(client.round_trip(head).await.status, 100);
    assert_eq!(client.round_trip(body).await.status, 200);
    assert_eq!(
        client.round_trip(bodiless_request("HEAD", "/openai/v1/models").replace("HEAD", "GET")).await.status,
        200
    );
    let requests: Vec<LoggedRequest> = simulator.received_requests("east");
    assert_eq!(requests[0].body.as_deref(), Some(CHAT_BODY.as_bytes()));
    assert_eq!(
        (requests[1].body_len, simulator.accepted_connection_count("east")),
        (CHAT_BODY.len() as u64, 1)
    );
}

#[tokio::test]
async fn absurd_numbers_are_refused() {
    let simulator = start_simulator(east_resource()).await;
    let maximum = u64::MAX;
    let chunked = format!(
        "POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n{maximum:x}\r\n"
    );
    let sized = format!("POST {CHAT_TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: {maximum}\r\n\r\n");
    for (request, status) in [(chunked, 413), (sized, 413), ("nonsense\r\n\r\n".to_owned(), 400)] {
        assert_eq!(send_once(&simulator, &request).await.status, status, "{request}");
    }
    let created =
        send_once(&simulator, post_request("/openai/v1/responses", r#"{"model":"gpt-4o","input":"x"}"#))
            .await
            .json();
    let resumed = format!(
        "/openai/v1/responses/{}?stream=true&starting_after={maximum}",
        created["id"].as_str().unwrap()
    );
    let response = send_once(&simulator, bodiless_request("GET", &resumed)).await;
    assert_eq!((response.status, response.events().len()), (200, 0));
}

#[tokio::test]
async fn a_body_of_a_hundred_mebibytes_is_accepted() {
    let simulator =
        start_simulator(east_resource().with_deployment("whisper", "whisper", DeploymentKind::Unlimited))
            .await;
    let form_start = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n";
    let form_end = "\r\n--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--b--\r\n";
    let size = 100 * 1024 * 1024;
    let length = form_start.len() + size + form_end.len();
    let mut client = TestClient::connect(simulator.address("east")).await;
    client
        .send(format!(
            "POST /openai/v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\napi-key: k\r\nContent-Length: {length}\r\n\
             Content-Type: multipart/form-data; boundary=b\r\n\r\n{form_start}"
        ))
        .await;
    let block = vec![b'a'; 1024 * 1024];
    for _ in 0..100 {
        client.send(&block).await;
    }
    let response = client.round_trip(form_end).await;
    assert_eq!(response.status, 200);
    assert!(response.text().contains(&format!("{size} bytes")));
    assert_eq!(simulator.received_requests("east")[0].body_len, length as u64);
}

#[tokio::test]
async fn listening_can_be_stopped_and_resumed_on_the_same_address() {
    let simulator = start_simulator(east_resource()).await;
    let address = simulator.address("east");
    let mut open = TestClient::connect(address).await;
    assert_eq!(open.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status, 200);
    simulator.stop_listening("east").await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(
        open.round_trip(post_request(CHAT_TARGET, CHAT_BODY)).await.status,
        200,
        "an open connection goes on"
    );
    simulator.abort_connections("east").await;
    assert!(!open.read_more().await);
    simulator.resume_listening("east").await.unwrap();
    assert_eq!(send_once(&simulator, post_request(CHAT_TARGET, CHAT_BODY)).await.status, 200);
}
