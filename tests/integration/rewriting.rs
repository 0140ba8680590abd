//! How requests are rewritten for a backend and responses for a client.

use crate::support;

use aoai_lb::demo::{LoggedRequest, Mood, SimulatedError};
use support::upstream::{ScriptedUpstream, complete_response};
use support::websocket::{UPGRADE_HEADERS, client_text_frame, read_frame};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, all_backends_yaml, answering_backend, sha256_hex,
    simulated_backend_yaml, start_simulator,
};

fn header(request: &LoggedRequest, name: &str) -> Option<String> {
    let found = request.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

#[tokio::test]
async fn classic_paths_get_the_upstream_deployment_and_api_version() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", "deployments: { openai: gpt-4o, whisper: whisper }")
        + &simulated_backend_yaml(
            &azure,
            "b",
            "deployments: { chat: gpt-4o }\napi_version: \"2025-01-01-preview\"",
        );
    let balancer = Balancer::start(&entries, "requests: { api_version: \"2024-10-21\" }").await;
    let key = [("api-key", CLIENT_KEY)];
    let table = [
        (
            "/openai/deployments/openai/chat/completions?api-version=2024-06-01",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01",
        ),
        (
            "/openai/deployments/openai/chat/completions",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        ),
        (
            "//OpenAI//Deployments/OPENAI/Chat/completions/?x=%2F&api-version=2024-06-01",
            "a",
            "/openai/deployments/gpt-4o/chat/completions?x=%2F&api-version=2024-06-01",
        ),
        (
            "/openai/deployments/ch%61t/chat/completions?api-version=2024-06-01",
            "b",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        ),
        (
            "/openai/deployments/chat/chat/completions?subscription-key=x&api%2Dkey=y",
            "b",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        ),
    ];
    for (target, name, expected) in table {
        let response = balancer.post(target, &key, CHAT_BODY.as_bytes()).await;
        assert_eq!(
            (response.status, answering_backend(&response).as_str()),
            (200, name),
            "{target}: {}",
            response.text()
        );
        let request = azure.received_requests(name).pop().unwrap();
        assert_eq!(request.target, expected, "{target}");
        assert_eq!(request.body.as_deref(), Some(CHAT_BODY.as_bytes()));
    }
    let record = balancer.wait_for_records(5).await.pop().unwrap();
    assert_eq!(record["path"], "/openai/deployments/chat/chat/completions");
    assert_eq!(
        (record["deployment"].as_str(), record["upstream_deployment"].as_str()),
        (Some("chat"), Some("gpt-4o"))
    );
    assert_eq!(record["api_version"], "2025-01-01-preview");
}

#[tokio::test]
async fn only_the_model_is_replaced_in_v1_bodies() {
    let azure = start_simulator(&["a"]).await;
    let entry =
        simulated_backend_yaml(&azure, "a", "deployments: { x: gpt-4o }\napi_version: \"2024-10-21\"");
    let balancer = Balancer::start(&entry, "requests: { api_version: \"2024-10-21\" }").await;
    let body = |model: &str| {
        format!(
            "{{ \"messages\" : [{{\"role\":\"user\",\"content\":\"model: x \\u00e4\"}}],\n\t\"MODEL2\":1,\"model\" :\t{model} , \"top_p\":1.0 }}"
        )
    };
    for (target, expected_target) in [
        ("/openai/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/openai/v1/chat/completions?api-version=2024-06-01", "/openai/v1/chat/completions"),
        (
            "/openai/v1/chat/completions?api-version=preview",
            "/openai/v1/chat/completions?api-version=preview",
        ),
    ] {
        let response = balancer
            .post(
                target,
                &[("authorization", &format!("Bearer {CLIENT_KEY}"))],
                body("\"\\u0078\"").as_bytes(),
            )
            .await;
        assert_eq!(response.status, 200, "{}", response.text());
        let request = azure.received_requests("a").pop().unwrap();
        assert_eq!(request.target, expected_target);
        assert_eq!(String::from_utf8(request.body.unwrap().to_vec()).unwrap(), body("\"gpt-4o\""));
    }
}

#[tokio::test]
async fn hop_by_hop_headers_are_not_forwarded() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    azure.set_mood("b", Mood::Refuses(SimulatedError::Unavailable));
    let headers = [
        ("api-key", CLIENT_KEY),
        ("Connection", "keep-alive, X-Mine"),
        ("connection", " x-also"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("X-Mine", "1"),
        ("x-also", "2"),
        ("X-Kept", "3"),
        ("OpenAI-Beta", "assistants=v2"),
    ];
    // The same on every attempt.
    balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await;
    for name in ["a", "b"] {
        let request = azure.received_requests(name).pop().unwrap();
        for removed in ["connection", "keep-alive", "te", "x-mine", "x-also", "transfer-encoding"] {
            assert_eq!(header(&request, removed), None, "{removed}");
        }
        let length = CHAT_BODY.len().to_string();
        for (forwarded, value) in
            [("x-kept", "3"), ("openai-beta", "assistants=v2"), ("content-length", &length)]
        {
            assert_eq!(header(&request, forwarded).as_deref(), Some(value), "{forwarded}");
        }
    }
}

#[tokio::test]
async fn multipart_forms_get_the_upstream_model_and_keep_their_boundary() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", "deployments: { x: whisper }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { x: whisper }");
    let balancer = Balancer::start(
        &entries,
        "requests: { set_headers: { Content-Type: application/json, X-Team: blue } }",
    )
    .await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::Unavailable));
    let multipart_form = |model: &str| {
        let audio = "RIFF\0\u{1}model\r\n--not the boundary\r\n".repeat(1000);
        format!(
            "--B o\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n{audio}\r\n--B o\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--B o--\r\n"
        )
    };
    let content_type = "multipart/form-data; boundary=\"B o\"";
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", content_type)];
    let response =
        balancer.post("/openai/v1/audio/transcriptions", &headers, multipart_form("x").as_bytes()).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"), "{}", response.text());
    let request = azure.received_requests("b").pop().unwrap();
    assert_eq!(request.body.as_deref(), Some(multipart_form("whisper").as_bytes()));
    assert_eq!(header(&request, "content-type").as_deref(), Some(content_type));
    assert_eq!(header(&request, "x-team").as_deref(), Some("blue"));
    // A request that is not a form gets the configured content type.
    azure.set_mood("a", Mood::Calm);
    let response = balancer
        .post(
            "/openai/v1/chat/completions",
            &[("api-key", CLIENT_KEY), ("Content-Type", "text/plain")],
            br#"{"model":"x","messages":[]}"#,
        )
        .await;
    let request = azure.received_requests(&answering_backend(&response)).pop().unwrap();
    assert_eq!(header(&request, "content-type").as_deref(), Some("application/json"));
}

#[tokio::test]
async fn models_in_other_places_name_the_deployment_and_are_replaced() {
    let upstream = |name: &'static str| async move {
        ScriptedUpstream::start(move |_| complete_response(200, &format!("x-resource: {name}"), "{}")).await
    };
    let (a, b) = (upstream("a").await, upstream("b").await);
    let entries = a.backend_yaml("a")
        + "    deployments: { other: up-other }\n"
        + &b.backend_yaml("b")
        + "    deployments: { voice: up-voice, film: up-film }\n";
    let balancer = Balancer::start(&entries, "").await;
    let form = |session: &str| {
        format!(
            "--B\r\nContent-Disposition: form-data; name=\"sdp\"\r\nContent-Type: application/sdp\r\n\r\nv=0 \"model\":\"voice\"\r\n\
             --B\r\nContent-Disposition: form-data; name=\"session\"\r\nContent-Type: application/json\r\n\r\n{session}\r\n--B--\r\n"
        )
    };
    let video = |model: &str| {
        format!(
            "--B\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nfilm\r\n\
             --B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--B--\r\n"
        )
    };
    const JSON: &str = "application/json";
    const FORM: &str = "multipart/form-data; boundary=B";
    let secrets = "/openai/v1/realtime/client_secrets";
    let calls = "/openai/v1/realtime/calls";
    // Target, content type and body; the resource, and the target and body that it gets.
    let table = [
        (
            secrets,
            JSON,
            r#"{"session":{"type":"realtime","model":"voice"},"model":"other"}"#.to_owned(),
            "b",
            secrets,
            r#"{"session":{"type":"realtime","model":"up-voice"},"model":"other"}"#.to_owned(),
        ),
        // Without a model it goes to the default backend, as before.
        (
            secrets,
            JSON,
            r#"{"session":{"type":"transcription"}}"#.to_owned(),
            "a",
            secrets,
            r#"{"session":{"type":"transcription"}}"#.to_owned(),
        ),
        (
            "/openai/v1/realtime/calls?model=voice&x=1",
            "application/sdp",
            "v=0".to_owned(),
            "b",
            "/openai/v1/realtime/calls?model=up-voice&x=1",
            "v=0".to_owned(),
        ),
        (calls, FORM, form(r#"{"model": "voice"}"#), "b", calls, form(r#"{"model": "up-voice"}"#)),
        (
            "/openai/v1/realtime/calls?model=Voice",
            FORM,
            form(r#"{"model":"voice"}"#),
            "b",
            "/openai/v1/realtime/calls?model=up-voice",
            form(r#"{"model":"up-voice"}"#),
        ),
        (
            "/openai/realtimeapi/sessions?api-version=2025-04-01-preview",
            JSON,
            r#"{"voice":"v","model":"voice"}"#.to_owned(),
            "b",
            "/openai/realtimeapi/sessions?api-version=2025-04-01-preview",
            r#"{"voice":"v","model":"up-voice"}"#.to_owned(),
        ),
        (
            "/openai/v1/realtime/sessions",
            JSON,
            r#"{"model":"voice"}"#.to_owned(),
            "b",
            "/openai/v1/realtime/sessions",
            r#"{"model":"up-voice"}"#.to_owned(),
        ),
        (
            "/openai/v1/videos",
            JSON,
            r#"{"model":"film"}"#.to_owned(),
            "b",
            "/openai/v1/videos",
            r#"{"model":"up-film"}"#.to_owned(),
        ),
        ("/openai/v1/videos", FORM, video("film"), "b", "/openai/v1/videos", video("up-film")),
        (
            "/openai/v1/video/generations/jobs?api-version=preview",
            JSON,
            r#"{"model":"film"}"#.to_owned(),
            "b",
            "/openai/v1/video/generations/jobs?api-version=preview",
            r#"{"model":"up-film"}"#.to_owned(),
        ),
    ];
    for (target, content_type, body, resource, upstream_target, upstream_body) in &table {
        let headers = [("api-key", CLIENT_KEY), ("Content-Type", content_type)];
        let response = balancer.post(target, &headers, body.as_bytes()).await;
        assert_eq!(
            (response.status, response.header("x-resource")),
            (200, Some(*resource)),
            "{target} {body}: {}",
            response.text()
        );
        let upstream = if *resource == "a" { &a } else { &b };
        let request = upstream.requests().pop().unwrap();
        assert_eq!(request.head.split(' ').nth(1), Some(*upstream_target), "{body}");
        assert_eq!(String::from_utf8(request.body).unwrap(), *upstream_body, "{target}");
    }
    let record = balancer.wait_for_records(table.len()).await.pop().unwrap();
    assert_eq!(
        (record["deployment"].as_str(), record["upstream_deployment"].as_str()),
        (Some("film"), Some("up-film"))
    );
    let refused = [
        ("/openai/v1/realtime/calls?model=voice", FORM, form(r#"{"model":"other"}"#)),
        (secrets, JSON, r#"{"session":{"model":"voice"},"session":{"model":"other"}}"#.to_owned()),
        (secrets, JSON, r#"{"session":{"model":7}}"#.to_owned()),
        ("/openai/v1/videos", JSON, r#"{"model":"film","MODEL":"other"}"#.to_owned()),
    ];
    for (target, content_type, body) in refused {
        let headers = [("api-key", CLIENT_KEY), ("Content-Type", content_type)];
        let response = balancer.post(target, &headers, body.as_bytes()).await;
        assert_eq!(response.status, 400, "{target} {body}: {}", response.text());
    }
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", JSON)];
    let response = balancer.post("/openai/v1/videos", &headers, br#"{"model":"nobody-has-it"}"#).await;
    assert_eq!(response.status, 404, "{}", response.text());
}

#[tokio::test]
async fn models_in_other_places_are_checked_against_the_list_of_the_client() {
    let azure =
        ScriptedUpstream::start(|_| complete_response(200, "content-type: application/json", "{}")).await;
    let entry = azure.backend_yaml("a") + "    deployments: { voice: voice, secret: secret }\n";
    let clients = format!(
        "clients:\n  - name: team\n    keys: [ {{ sha256: {} }} ]\n    deployments: [ voice ]\n",
        sha256_hex(CLIENT_KEY)
    );
    let balancer = Balancer::start_with_clients(&entry, &clients, "").await;
    let table = [
        ("/openai/v1/realtime/client_secrets", r#"{"session":{"model":"voice"}}"#, 200),
        ("/openai/v1/realtime/client_secrets", r#"{"session":{"model":"secret"}}"#, 403),
        // Without a model it is a call without a deployment.
        ("/openai/v1/realtime/client_secrets", "{}", 403),
        ("/openai/v1/realtime/calls?model=secret", "v=0", 403),
        ("/openai/v1/videos", r#"{"model":"voice"}"#, 200),
        ("/openai/v1/videos", r#"{"model":"secret"}"#, 403),
    ];
    for (target, body, status) in table {
        let response = balancer.post(target, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert_eq!(response.status, status, "{target} {body}: {}", response.text());
    }
}

#[tokio::test]
async fn only_the_backend_credential_and_allowed_headers_are_forwarded() {
    let azure = start_simulator(&["a"]).await;
    let balancer =
        Balancer::start(&all_backends_yaml(&azure), "requests: { remove_headers: [user-agent] }").await;
    let bearer = format!("Bearer {CLIENT_KEY}");
    let headers = [
        ("api-key", "something-else"),
        ("Ocp-Apim-Subscription-Key", CLIENT_KEY),
        ("Authorization", &bearer),
        ("Cookie", "a=b"),
        ("Proxy-Authorization", "Basic x"),
        ("Forwarded", "for=1.1.1.1"),
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Real-IP", "1.1.1.1"),
        ("X-Original-URL", "/x"),
        ("Via", "1.1 p"),
        ("Client-IP", "1.1.1.1"),
        ("X-Azure-Ref", "x"),
        ("X-AppGW-Trace-Id", "x"),
        ("X-ARR-SSL", "x"),
        ("CF-Ray", "x"),
        ("traceparent", "x"),
        ("tracestate", "x"),
        ("baggage", "x"),
        ("x-stainless-lang", "python"),
        ("x-stainless-retry-count", "0"),
        ("x-aoai-lb-admin", "1"),
        ("Connection", "keep-alive, X-Nominated"),
        ("X-Nominated", "x"),
        ("Keep-Alive", "5"),
        ("TE", "trailers"),
        ("Accept-Encoding", "gzip"),
        ("User-Agent", "AzureOpenAI/Python"),
        ("Accept", "application/json"),
        ("X-MS-Client-Request-Id", "mine"),
        ("OpenAI-Beta", "x=1"),
        ("Content-Type", "application/json"),
    ];
    let target = format!("{CHAT_TARGET}&subscription-key={CLIENT_KEY}&api-key=zzz");
    let response = balancer.post(&target, &headers, CHAT_BODY.as_bytes()).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-ms-client-request-id"), Some("mine"));
    let request = azure.received_requests("a").pop().unwrap();
    let mut names: Vec<String> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "api-key",
            "content-length",
            "content-type",
            "host",
            "openai-beta",
            "x-ms-client-request-id"
        ]
    );
    assert_eq!(header(&request, "api-key").as_deref(), Some("a-key"));
    assert_eq!(header(&request, "accept-encoding").as_deref(), Some("identity"));
    assert_eq!(header(&request, "host"), Some(azure.address("a").to_string()));
    assert!(!request.target.contains(CLIENT_KEY) && !request.target.contains("zzz"), "{}", request.target);
    let output =
        std::fs::read_to_string(balancer.path("records.jsonl")).unwrap_or_default() + &balancer.log();
    assert!(!output.contains(CLIENT_KEY) && !output.contains("a-key"), "{output}");
}

#[tokio::test]
async fn set_cookie_is_removed_and_bodyless_responses_stay_bodyless() {
    let upstream = ScriptedUpstream::start(|request| {
        let response = match request.head.split(' ').next() {
            Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nConnection: close\r\n\r\n",
            Some("DELETE") => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nx-ms-region: R\r\nConnection: close\r\n\r\n[1,2,3]",
        };
        vec![response.into()]
    })
    .await;
    let balancer = Balancer::start(&upstream.backend_yaml("a"), "").await;
    let mut client = balancer.connect().await;
    let response = client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await;
    assert_eq!(
        (response.status, response.text().as_str(), response.header("set-cookie")),
        (200, "[1,2,3]", None)
    );
    assert_eq!(response.header("x-ms-region"), Some("R"));
    let response = client.request("HEAD", "/openai/v1/files", &[("api-key", CLIENT_KEY)], None).await;
    assert_eq!((response.status, response.header("content-length")), (200, Some("7")));
    let response =
        client.request("DELETE", "/openai/v1/files/file-1", &[("api-key", CLIENT_KEY)], None).await;
    assert_eq!(response.status, 204);
    let response = client.request("HEAD", "/openai/v1/files", &[], None).await;
    assert_eq!(response.status, 401);
    assert_eq!(
        client.get("/openai/v1/files", &[("api-key", CLIENT_KEY)]).await.status,
        200,
        "expected the connection to stay in sync"
    );
}

#[tokio::test]
async fn websockets_are_tunnelled_and_fail_over_before_the_101() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", "deployments: { voice: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { voice: gpt-4o }");
    let balancer = Balancer::start(&entries, "").await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    let targets = [
        ("/openai/realtime?api-version=2024-10-01-preview&deployment=voice", "deployment=gpt-4o"),
        ("/openai/v1/realtime?model=voice", "model=gpt-4o"),
    ];
    for (index, (target, expected_target)) in targets.into_iter().enumerate() {
        let mut client = balancer.connect().await;
        let headers =
            [&UPGRADE_HEADERS[..], &[("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.SECRET")]]
                .concat();
        client.send(Client::request_head("GET", target, &headers).as_bytes()).await;
        let response = client.read_response_head().await.unwrap();
        assert_eq!((response.status, answering_backend(&response).as_str()), (101, "b"), "{response:?}");
        assert!(read_frame(&mut client).await.contains("session.created"));
        client.send(&client_text_frame(r#"{"type":"response.create"}"#)).await;
        while !read_frame(&mut client).await.contains("response.done") {}
        let request = azure.received_requests("b").pop().unwrap();
        assert!(request.target.contains(expected_target), "{}", request.target);
        assert_eq!(header(&request, "sec-websocket-protocol").as_deref(), Some("realtime"));
        assert_eq!(balancer.status().await["in_flight"], 1);
        drop(client);
        // One of the response, and one of the session.
        let records = balancer.wait_for_records(2 * (index + 1)).await.split_off(2 * index);
        let mut statuses: Vec<_> = records.iter().filter_map(|record| record["status"].as_u64()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [101, 200]);
        for record in records {
            assert_eq!((&record["operation"], &record["deployment"]), (&"realtime".into(), &"voice".into()));
        }
    }
    // If all backends refuse, the client gets an ordinary response.
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    let mut client = balancer.connect().await;
    client.send(Client::request_head("GET", targets[1].0, &UPGRADE_HEADERS).as_bytes()).await;
    let response = client.read_response().await;
    assert_eq!(response.status, 429);
    assert!(response.header("retry-after-ms").is_some());
    let mut client = balancer.connect().await;
    client
        .send(
            Client::request_head("GET", &targets[1].0.replace("voice", "none"), &UPGRADE_HEADERS).as_bytes(),
        )
        .await;
    assert_eq!(client.read_response().await.error_code(), "DeploymentNotFound");
}
