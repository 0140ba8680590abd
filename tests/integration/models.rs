//! `/v1` in place of `/openai/v1`, and the models that a client may use.

use crate::support;

use aoai_lb::demo::Simulator;
use serde_json::{Value, json};
use support::tls::generate_authority;
use support::websocket::{UPGRADE_HEADERS, client_text_frame, read_frame};
use support::{
    Balancer, CLIENT_KEY, Client, answering_backend, clients_yaml, h2, sha256_hex, simulated_backend_yaml,
    start_simulator,
};

const KEY_HEADER: &[(&str, &str)] = &[("api-key", CLIENT_KEY)];
const LISTED_KEY: &str = "key-of-listed";

/// Backends `a` and `b` with deployments of their own.
fn two_backends_yaml(azure: &Simulator) -> String {
    simulated_backend_yaml(azure, "a", "deployments: { gpt-4o: gpt-4o, Voice: gpt-4o }")
        + &simulated_backend_yaml(azure, "b", "deployments: { GPT-4O: gpt-4o, other: other }")
}

fn model(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": 0, "owned_by": "aoai-lb" })
}

fn model_list(ids: &[&str]) -> Value {
    json!({ "object": "list", "data": ids.iter().map(|id| model(id)).collect::<Vec<_>>() })
}

#[tokio::test]
async fn the_paths_of_openai_are_those_of_azures_v1() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { allow: [ \"POST /openai/v1/chat/*\", \"POST /openai/v1/responses\", \"GET /openai/v1/realtime\" ] }";
    let backend = simulated_backend_yaml(&azure, "a", "deployments: { chat: gpt-4o }");
    let balancer = Balancer::start(&backend, extra_yaml).await;
    let mut client = balancer.connect().await;
    let chat = br#"{"model":"chat","messages":[{"role":"user","content":"hello"}]}"#;
    for (target, body, forwarded) in [
        ("/v1/chat/completions", &chat[..], "/openai/v1/chat/completions"),
        (
            "//V1/Chat//Completions/?api-version=preview&x=1",
            chat,
            "/openai/v1/chat/completions?api-version=preview&x=1",
        ),
        (
            "/v1/responses?api-version=2024-10-21",
            br#"{"model":"chat","input":"hello"}"#,
            "/openai/v1/responses",
        ),
    ] {
        let response = client.post(target, KEY_HEADER, body).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "a"), "{target}");
        let request = azure.received_requests("a").pop().unwrap();
        assert_eq!(request.target, forwarded, "{target}");
    }
    // `allow` is matched after that.
    for (method, target) in [("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("POST", "/v1")] {
        let response = client.request(method, target, KEY_HEADER, Some(chat)).await;
        assert_eq!((response.status, response.error_code().as_str()), (404, "path_not_allowed"), "{target}");
    }
    // A path that only looks like one of OpenAI's.
    assert_eq!(client.post("/v1beta/chat/completions", KEY_HEADER, chat).await.status, 404);
    let records = balancer.wait_for_records(7).await;
    let facts: Vec<_> = records
        .iter()
        .map(|record| ["path", "api", "operation"].map(|name| record[name].as_str().unwrap_or("null")))
        .collect();
    assert_eq!(
        facts,
        [
            ["/openai/v1/chat/completions", "v1", "chat"],
            ["/openai/v1/chat/completions", "v1", "chat"],
            ["/openai/v1/responses", "v1", "responses"],
            ["/openai/v1/embeddings", "v1", "embeddings"],
            ["/openai/v1/models", "v1", "models"],
            ["/openai/v1", "v1", "other"],
            ["/v1beta/chat/completions", "classic", "other"],
        ]
    );
    let mut client = balancer.connect().await;
    client.send(Client::request_head("GET", "/v1/realtime?model=chat", &UPGRADE_HEADERS).as_bytes()).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 101);
    assert!(read_frame(&mut client).await.contains("session.created"));
    client.send(&client_text_frame(r#"{"type":"response.create"}"#)).await;
    while !read_frame(&mut client).await.contains("response.done") {}
    let request = azure.received_requests("a").pop().unwrap();
    assert_eq!(request.target, "/openai/v1/realtime?model=gpt-4o");
    drop(client);
    // One of the response, and one of the session.
    let mut records = balancer.wait_for_records(9).await.split_off(7);
    records.sort_by_key(|record| record["status"].as_u64());
    for (record, status) in records.iter().zip([101, 200]) {
        assert_eq!((&record["path"], &record["status"]), (&json!("/openai/v1/realtime"), &json!(status)));
    }
}

#[tokio::test]
async fn a_client_gets_the_models_that_it_may_use_from_the_balancer() {
    let azure = start_simulator(&["a", "b"]).await;
    // Without `stateful`, the client with a list may make no other call that names no deployment.
    let clients = clients_yaml()
        + &format!(
            "  - name: listed\n    keys: [ {{ sha256: {} }} ]\n    deployments: [ VOICE, gpt-4o, elsewhere ]\n",
            sha256_hex(LISTED_KEY)
        );
    let balancer = Balancer::start_with_clients(&two_backends_yaml(&azure), &clients, "").await;
    let mut client = balancer.connect().await;
    let listed_key: &[(&str, &str)] = &[("Authorization", "Bearer key-of-listed")];
    for (target, key, expected) in [
        ("/v1/models", KEY_HEADER, model_list(&["gpt-4o", "other", "Voice"])),
        ("/openai/v1/models?api-version=preview", listed_key, model_list(&["gpt-4o", "Voice"])),
        ("/v1/models/GPT-4o", KEY_HEADER, model("gpt-4o")),
        ("/openai/v1/models/voice/", listed_key, model("Voice")),
    ] {
        let response = client.get(target, key).await;
        assert_eq!((response.status, response.json()), (200, expected), "{target}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("x-aoai-lb-backend"), None);
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("0"));
        let length = response.body.len().to_string();
        let head = client.request("HEAD", target, key, None).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())), "{target}");
        assert!(head.body.is_empty());
    }
    for (target, key, status, code) in [
        ("/v1/models/none", KEY_HEADER, 404, "DeploymentNotFound"),
        ("/v1/models/not%20a%20name", KEY_HEADER, 404, "DeploymentNotFound"),
        ("/v1/models/other", listed_key, 404, "DeploymentNotFound"),
        ("/v1/models/elsewhere", listed_key, 404, "DeploymentNotFound"),
        ("/v1/models", &[][..], 401, "invalid_api_key"),
        ("/v1/models/gpt-4o", &[("api-key", "wrong")], 401, "invalid_api_key"),
        ("/v1/files", listed_key, 403, "deployment_not_allowed"),
        ("/openai/models", listed_key, 403, "deployment_not_allowed"),
    ] {
        let response = client.get(target, key).await;
        assert_eq!((response.status, response.error_code().as_str()), (status, code), "{target}");
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("0"));
    }
    assert_eq!(azure.request_count("a") + azure.request_count("b"), 0);
    let records = balancer.wait_for_records(16).await;
    for (record, method) in records.iter().zip(["GET", "HEAD"].into_iter().cycle()).take(8) {
        let answered = json!({
            "method": method, "operation": "models", "outcome": "answered", "refusal": null, "status": 200,
            "backend": null, "attempts": [], "deployment": null, "request_bytes": 0, "usage_source": "none",
        });
        for (name, value) in answered.as_object().unwrap() {
            assert_eq!(&record[name], value, "{name}: {record:#}");
        }
        assert_eq!(record["response_bytes"] == 0, method == "HEAD", "{record:#}");
    }
    assert_eq!(records[4]["path"], "/openai/v1/models/GPT-4o");
    assert_eq!(
        (&records[8]["refusal"], &records[8]["outcome"]),
        (&json!("DeploymentNotFound"), &json!("refused"))
    );
    // What is classic, or changes something, goes to the default backend.
    let response = client.get("/openai/models?api-version=2024-10-21", KEY_HEADER).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "a"));
    let response = client.request("DELETE", "/v1/models/gpt-4o", KEY_HEADER, None).await;
    assert_eq!(answering_backend(&response), "a");
}

#[tokio::test]
async fn the_answer_keeps_the_connection_in_step() {
    let azure = start_simulator(&["a", "b"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &two_backends_yaml(&azure), "").await;
    let connection = h2::Http2Connection::connect(balancer.address, &authority).await;
    for key in [CLIENT_KEY, "wrong", CLIENT_KEY] {
        let mut requests = connection.requests.clone().ready().await.unwrap();
        let request = http::Request::get("https://balancer.test/v1/models/gpt-4o").header("api-key", key);
        let (response, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
        let status = response.await.unwrap().status().as_u16();
        assert_eq!(status, if key == CLIENT_KEY { 200 } else { 401 });
    }
    let plain = Balancer::start(&two_backends_yaml(&azure), "").await;
    let mut client = plain.connect().await;
    // A body that nobody needs, and an offer to upgrade that is not taken.
    for (headers, body) in [(&UPGRADE_HEADERS[..], None), (KEY_HEADER, Some(&b"{\"model\":1}"[..]))] {
        let response = client.request("GET", "/v1/models/gpt-4o", headers, body).await;
        assert_eq!((response.status, response.json()), (200, model("gpt-4o")), "{headers:?}");
    }
    let expect = [KEY_HEADER, &[("Expect", "100-continue"), ("Content-Length", "5")]].concat();
    client.send(Client::request_head("GET", "/v1/models/gpt-4o", &expect).as_bytes()).await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.json()), (200, model("gpt-4o")));
    assert_eq!(response.header("connection").map(str::to_lowercase).as_deref(), Some("close"));
}

#[tokio::test]
async fn a_client_without_a_name_gets_all_models_and_a_configuration_can_pass_them_on() {
    let azure = start_simulator(&["a", "b"]).await;
    let backends = two_backends_yaml(&azure);
    let balancer = Balancer::start_with_clients(&backends, "clients: open\n", "").await;
    let response = balancer.connect().await.get("/v1/models", &[]).await;
    assert_eq!(response.json(), model_list(&["gpt-4o", "other", "Voice"]));
    let passing_on = Balancer::start(&backends, "requests: { models: home, home: b }\n").await;
    let mut client = passing_on.connect().await;
    for target in ["/v1/models", "/openai/v1/models", "/openai/models?api-version=2024-10-21"] {
        let response = client.get(target, KEY_HEADER).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"), "{target}");
        assert_ne!(response.json(), model_list(&["gpt-4o", "other", "Voice"]));
    }
}
