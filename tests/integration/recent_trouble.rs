//! Recent trouble: `GET /api/requests` tells which requests were refused, failed or retried, and why.

use crate::support;

use aoai_lb::demo::{BodyPosition, Mood, SimulatedError};
use serde_json::{Value, json};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, STREAM_BODY,
    TEST_TIMEOUT, backend_yaml, free_port, sha256_hex, simulated_backend_yaml, start_simulator,
    wait_until_async,
};

async fn get(balancer: &Balancer, query: &str) -> Response {
    let target = format!("/api/requests{query}");
    Client::connect(balancer.admin_address).await.get(&target, &[("Host", "localhost")]).await
}

async fn list(balancer: &Balancer, query: &str) -> Value {
    let response = get(balancer, query).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// Waits until this many requests are kept, and returns those that match the query, newest first.
async fn wait_for_requests(balancer: &Balancer, kept: usize, query: &str) -> Vec<Value> {
    wait_until_async(&format!("{kept} requests are kept"), async || {
        list(balancer, "").await["kept"].as_u64() == Some(kept as u64)
    })
    .await;
    list(balancer, query).await["requests"].as_array().unwrap().clone()
}

/// The values of these keys, each as JSON.
fn pick(request: &Value, keys: &[&str]) -> Value {
    keys.iter().map(|key| request[*key].clone()).collect::<Vec<_>>().into()
}

async fn post_as(balancer: &Balancer, key: &str, target: &str) -> Response {
    balancer.post(target, &[("api-key", key)], CHAT_BODY.as_bytes()).await
}

fn request_id(response: &Response) -> String {
    response.header("x-aoai-lb-request-id").unwrap().to_owned()
}

#[tokio::test]
async fn refused_failed_and_retried_requests_are_kept_without_a_record_block() {
    let azure = start_simulator(&["a", "b"]).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let backends = simulated_backend_yaml(&azure, "a", &format!("tier: 1\n{LISTED_DEPLOYMENTS}"))
        + &simulated_backend_yaml(&azure, "b", &format!("tier: 2\n{LISTED_DEPLOYMENTS}"))
        + &backend_yaml("dead", &dead, "deployments: { broken: broken }");
    let clients = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n    deployments: [gpt-4o, broken]\n",
        sha256_hex(CLIENT_KEY)
    );
    // The harness adds a record block unless the text names one.
    let balancer = Balancer::start_with_clients(
        &backends,
        &clients,
        "# without a record: block\nretry: { outage: 100ms }",
    )
    .await;
    assert_eq!(balancer.post_chat().await.status, 200, "a request that goes well is not kept");
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let broken = "/openai/deployments/broken/chat/completions?api-version=2024-10-21";
    let mut ids = vec![request_id(&post_as(&balancer, "not-a-key-of-anybody", CHAT_TARGET).await)];
    ids.push(request_id(&post_as(&balancer, CLIENT_KEY, other).await));
    ids.push(request_id(&post_as(&balancer, CLIENT_KEY, "/v9/nothing?api-key=query-secret").await));
    ids.push(request_id(&post_as(&balancer, CLIENT_KEY, broken).await));
    azure.set_mood("a", Mood::Refuses(SimulatedError::ContentFilter));
    ids.push(request_id(&post_as(&balancer, CLIENT_KEY, CHAT_TARGET).await));
    azure.set_mood("a", Mood::ResetMidBody { after: BodyPosition::Events(4) });
    let mut client = balancer.connect().await;
    client.send_chat(STREAM_BODY).await;
    ids.push(request_id(&client.read_response().await));
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    ids.push(request_id(&post_as(&balancer, CLIENT_KEY, CHAT_TARGET).await));
    let requests = wait_for_requests(&balancer, ids.len(), "").await;
    let keys = ["trouble", "client", "deployment", "status", "outcome", "refusal", "backend", "cause"];
    let expected = [
        json!([
            "refused",
            null,
            "gpt-4o",
            401,
            "refused",
            "invalid_api_key",
            null,
            "no valid key, token or certificate, or those of two clients"
        ]),
        json!([
            "refused",
            "team-a",
            "other",
            403,
            "refused",
            "deployment_not_allowed",
            null,
            "the client may not use this deployment, or make calls without one"
        ]),
        json!([
            "refused",
            null,
            null,
            404,
            "refused",
            "path_not_allowed",
            null,
            "requests.allow does not list this method and path"
        ]),
        json!([
            "failed",
            "team-a",
            "broken",
            502,
            "failed",
            "upstream_failed",
            null,
            "no backend answered: dead: connection refused"
        ]),
        json!(["refused", "team-a", "gpt-4o", 400, "answered", null, "a", "a: 400"]),
        json!([
            "failed",
            "team-a",
            "gpt-4o",
            200,
            "failed",
            null,
            "a",
            "the response broke off: a: connection reset"
        ]),
        json!(["retried", "team-a", "gpt-4o", 200, "answered", null, "b", "a: 429"]),
    ];
    for ((request, id), expected) in requests.iter().rev().zip(&ids).zip(expected) {
        assert_eq!((&request["id"], pick(request, &keys)), (&json!(id), expected), "{request}");
        assert!(request["time"].as_str().unwrap().starts_with("20") && request["duration_ms"].is_u64());
        assert_eq!((&request["client_ip"], &request["attempts_left_out"]), (&json!("127.0.0.1"), &json!(0)));
    }
    let retried = &requests[0];
    assert_eq!(pick(&retried["attempts"][0], &["backend", "status", "error"]), json!(["a", 429, null]));
    assert_eq!(pick(&retried["attempts"][1], &["backend", "status", "error"]), json!(["b", 200, null]));
    assert!(retried["first_byte_ms"].is_u64() && retried["operation"] == "chat");
    let [first, second] = [0, 1].map(|index| &retried["attempts"][index]);
    let end_of_first = first["start_ms"].as_u64().unwrap() + first["ms"].as_u64().unwrap();
    assert!(second["start_ms"].as_u64().unwrap() >= end_of_first, "{retried}");
    assert!(second["first_byte_ms"].as_u64().unwrap() <= second["ms"].as_u64().unwrap(), "{retried}");
    let refused_connection = &requests[3]["attempts"][0];
    assert_eq!(
        pick(refused_connection, &["status", "error", "first_byte_ms"]),
        json!([null, "connect_refused", null])
    );
    let text = get(&balancer, "").await.text();
    for secret in ["hello", CLIENT_KEY, "not-a-key-of-anybody", "query-secret", "a-key"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }

    // The filters.
    let table: [(&str, &[usize]); 12] = [
        ("?client=team-a", &[6, 5, 4, 3, 1]),
        ("?client=", &[2, 0]),
        ("?client=nobody", &[]),
        ("?status=4xx", &[4, 2, 1, 0]),
        ("?status=401", &[0]),
        ("?status=5xx", &[3]),
        ("?status=2xx&client=team-a", &[6, 5]),
        (&format!("?id={}", ids[4]), &[4]),
        (&format!("?id={}&status=401", ids[4]), &[]),
        ("?limit=2", &[6, 5]),
        ("?client=team%2Da&limit=1", &[6]),
        ("?", &[6, 5, 4, 3, 2, 1, 0]),
    ];
    for (query, expected) in table {
        let found = list(&balancer, query).await;
        let found_ids: Vec<&str> = found["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|request| request["id"].as_str().unwrap())
            .collect();
        let expected: Vec<&str> = expected.iter().map(|index| ids[*index].as_str()).collect();
        assert_eq!(found_ids, expected, "{query}");
        assert_eq!(found["kept"], 7, "{query}");
    }
    assert_eq!(pick(&list(&balancer, "?limit=2").await, &["matching", "kept", "limit"]), json!([7, 7, 2]));
    for query in ["?backend=a", "?status=teapot", "?limit=0", "?client=a&client=b"] {
        let response = get(&balancer, query).await;
        assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"), "{query}");
    }
    let message = get(&balancer, "?backend=a").await.text();
    assert!(message.contains("the keys of the query are client, status, id and limit"), "{message}");

    assert_eq!(balancer.status().await["sinks"], json!([]), "no records are kept");
    // A reload changes nothing.
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(list(&balancer, "").await["kept"], 7);
}

#[tokio::test]
async fn a_flood_of_unknown_clients_does_not_push_out_the_trouble_of_others() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::ContentFilter));
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let mut refused = Vec::new();
    for _ in 0..3 {
        refused.push(request_id(&balancer.post_chat().await));
    }
    let mut client = balancer.connect().await;
    let mut last_unknown = String::new();
    let started = std::time::Instant::now();
    for number in 0..600 {
        let key = format!("guess-{number}");
        let response = client.post(CHAT_TARGET, &[("api-key", &key)], b"{}").await;
        assert_eq!(response.status, 401);
        last_unknown = request_id(&response);
        if response.header("connection") == Some("close") {
            client = balancer.connect().await;
        }
        assert!(started.elapsed() < TEST_TIMEOUT);
    }
    wait_until_async("all requests are kept", async || {
        list(&balancer, "?limit=1").await["requests"][0]["id"] == last_unknown.as_str()
    })
    .await;
    let kept = list(&balancer, "?limit=500").await;
    assert_eq!(pick(&kept, &["kept", "matching"]), json!([500, 500]));
    let of_team = list(&balancer, "?client=team-a").await;
    let ids: Vec<&str> = of_team["requests"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|entry| entry["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, refused);
    assert_eq!(list(&balancer, "?client=&status=401").await["matching"], 497);
}

#[tokio::test]
async fn refusals_are_counted_by_client_and_status() {
    let azure = start_simulator(&["a"]).await;
    let clients = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n    deployments: [gpt-4o]\n  \
         - name: team-b\n    keys: [ {{ sha256: {} }} ]\n",
        sha256_hex(CLIENT_KEY),
        sha256_hex("key-of-team-b")
    );
    let entries = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start_with_clients(&entries, &clients, "").await;
    let other = "/openai/deployments/other/chat/completions?api-version=2024-10-21";
    let missing = "/openai/deployments/missing/chat/completions?api-version=2024-10-21";
    for (key, target, status) in [
        ("guess", CHAT_TARGET, 401),
        ("", CHAT_TARGET, 401),
        (CLIENT_KEY, other, 403),
        (CLIENT_KEY, CHAT_TARGET, 200),
        ("key-of-team-b", missing, 404),
        ("key-of-team-b", missing, 404),
        ("key-of-team-b", other, 200),
    ] {
        assert_eq!(post_as(&balancer, key, target).await.status, status, "{key} {target}");
    }
    azure.set_mood("a", Mood::Refuses(SimulatedError::ContentFilter));
    assert_eq!(balancer.post_chat().await.status, 400);
    // The last backend's own 429 counts, too: the client is refused whoever says it.
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    for _ in 0..3 {
        assert_eq!(balancer.post_chat().await.status, 429);
    }
    let counts = |values: [u64; 5]| {
        let [unauthorized, forbidden, not_found, throttled, other] = values;
        let refused = json!(
            {"401": unauthorized, "403": forbidden, "404": not_found, "429": throttled, "other": other}
        );
        json!({"refused": refused, "failed": 0})
    };
    let expected = [
        (json!("team-a"), counts([0, 1, 0, 3, 1])),
        (Value::Null, counts([2, 0, 0, 0, 0])),
        (json!("team-b"), counts([0, 0, 2, 0, 0])),
    ];
    let expected: Vec<Value> = expected
        .into_iter()
        .map(|(client, counts)| {
            json!({"client": client, "refused": counts["refused"], "failed": 0, "last_minute": counts})
        })
        .collect();
    balancer
        .wait_for_status("all refusals are counted", |status| status["refusals"] == json!(expected))
        .await;
    let status = balancer.status().await;
    let team_a =
        status["clients"].as_array().unwrap().iter().find(|client| client["name"] == "team-a").unwrap();
    assert_eq!((&team_a["requests"], &team_a["refused"]["429"]), (&json!(6), &json!(3)));
    assert_eq!(team_a["last_minute"]["refused"]["403"], 1);
    assert_eq!(status["clients"].as_array().unwrap().len(), 2, "unknown clients are no client");
    let url = format!("http://{}", balancer.admin_address);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["status", "--admin", &url]).output().await.unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in ["team-a 0 1 0 3 1 0 5 0", "(unknown) 2 0 0 0 0 0 2 0", "team-b 0 0 2 0 0 0 2 0"] {
        assert!(rows.contains(&row.split(' ').collect()), "{row}: {table}");
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_backend_is_slow() {
    let azure = start_simulator(&["a"]).await;
    let throttled = Mood::Throttled { retry_after_ms: Some(4_000), retry_after: None };
    azure.set_mood("a", Mood::Sequence(vec![throttled, Mood::Calm]));
    let entry = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS);
    let balancer = Balancer::start(&entry, "retry: { wait: 6s }").await;
    let first = async { balancer.post_chat().await };
    let second = async {
        // Not only that the first is between attempts, which it also is before its first.
        balancer
            .wait_for_status("the deployment cools down", |status| {
                status["backends"][0]["resting"][0]["reason"] == "cooling"
            })
            .await;
        balancer.post_chat().await
    };
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.status, second.status), (200, 200));
    wait_for_requests(&balancer, 2, "").await;
    let entry = async |response: &Response| {
        let found = list(&balancer, &format!("?id={}", request_id(response))).await;
        found["requests"][0].clone()
    };
    let (retried, slow) = (entry(&first).await, entry(&second).await);
    assert_eq!(pick(&retried, &["trouble", "cause"]), json!(["retried", "a: 429"]));
    assert_eq!((&slow["trouble"], slow["attempts"].as_array().unwrap().len()), (&json!("slow"), 1), "{slow}");
    let cause = slow["cause"].as_str().unwrap();
    assert!(cause.starts_with("waited ") && cause.ends_with(" s for a backend"), "{cause}");
    for request in [&retried, &slow] {
        let waited = request["waited_ms"].as_u64().unwrap();
        assert!((1_000..=6_000).contains(&waited), "{request}");
        let last = request["attempts"].as_array().unwrap().last().unwrap();
        assert!(last["start_ms"].as_u64().unwrap() >= waited && last["first_byte_ms"].is_u64(), "{request}");
    }
}
