//! The admin API: access checks, the status page and its policy, status, events, draining.

use crate::support;

use std::time::Duration;

use aoai_lb::demo::Mood;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, answering_backend,
    listed_backends_yaml, simulated_backend_yaml, start_simulator, wait_until, wait_until_async,
};

const LOCAL_HOST: (&str, &str) = ("Host", "localhost");
const ADMIN_HEADER: (&str, &str) = ("x-aoai-lb-admin", "1");

#[tokio::test]
async fn requests_from_foreign_hosts_and_origins_are_rejected() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let admin_origin = format!("http://{}", balancer.admin_address);
    let host = balancer.admin_address.to_string();
    type Headers<'h> = &'h [(&'h str, &'h str)];
    let table: [(&str, &str, Headers<'_>, u16); 15] = [
        ("GET", "/api/status", &[LOCAL_HOST], 200),
        ("GET", "/api/status", &[("Host", "evil.test")], 403),
        ("GET", "/", &[("Host", "evil.test")], 403),
        ("GET", "/api/status", &[LOCAL_HOST, ("Origin", "http://evil.test")], 403),
        ("GET", "/api/status", &[LOCAL_HOST, ("Origin", "null")], 403),
        ("GET", "/api/status", &[("Host", &host), ("Origin", &admin_origin)], 200),
        ("GET", "/api/status", &[LOCAL_HOST, ("Sec-Fetch-Site", "cross-site")], 403),
        ("POST", "/api/backends/a/drain", &[LOCAL_HOST], 403),
        ("POST", "/api/backends/a/drain", &[LOCAL_HOST, ADMIN_HEADER, ("Origin", "http://evil.test")], 403),
        ("POST", "/api/backends/a/drain", &[("Host", &host), ADMIN_HEADER, ("Origin", &admin_origin)], 200),
        ("POST", "/api/backends/a/undrain", &[LOCAL_HOST, ADMIN_HEADER], 200),
        ("POST", "/api/backends/none/drain", &[LOCAL_HOST, ADMIN_HEADER], 404),
        ("POST", "/api/status", &[LOCAL_HOST, ADMIN_HEADER], 404),
        ("GET", "/api/reload", &[LOCAL_HOST, ADMIN_HEADER], 404),
        ("PUT", "/api/reload", &[LOCAL_HOST, ADMIN_HEADER], 405),
    ];
    for (method, target, headers, expected) in table {
        let response =
            Client::connect(balancer.admin_address).await.request(method, target, headers, None).await;
        assert_eq!(response.status, expected, "{method} {target} {headers:?}: {}", response.text());
    }
    let response = balancer.post_admin("/api/backends/none/drain").await;
    assert!(response.text().contains("no backend has this name; the backends are a"), "{}", response.text());
    // HEAD and GET requests on one connection.
    let mut client = Client::connect(balancer.admin_address).await;
    for target in ["/", "/healthz", "/readyz", "/metrics", "/api/status"] {
        let response = client.request("HEAD", target, &[LOCAL_HOST], None).await;
        assert_eq!((response.status, response.body.len()), (200, 0), "{target}");
        let response = client.get(target, &[LOCAL_HOST]).await;
        assert!(response.status == 200 && !response.body.is_empty() && response.is_complete, "{target}");
    }
}

#[tokio::test]
async fn the_content_security_policy_allows_only_the_page_itself() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let response = Client::connect(balancer.admin_address).await.get("/", &[LOCAL_HOST]).await;
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = response.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part), "expected {part:?} in: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert!(response.text().starts_with("<!doctype html>"), "{}", &response.text()[..40]);
}

#[tokio::test]
async fn the_event_stream_sends_the_status_until_shutdown() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let mut client = Client::connect(balancer.admin_address).await;
    client.send(Client::request_head("GET", "/api/events", &[LOCAL_HOST]).as_bytes()).await;
    let head = client.read_response_head().await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let parse_event = |chunk: &[u8]| -> serde_json::Value {
        let text = std::str::from_utf8(chunk).unwrap();
        let data = text.strip_prefix("event: status\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
        serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap()
    };
    let first_status = parse_event(&client.read_chunk().await.unwrap());
    assert_eq!(
        (first_status["settled"].as_u64(), first_status["backends"].as_array().unwrap().len()),
        (Some(0), 2)
    );
    balancer.post_chat().await;
    balancer.post_admin("/api/backends/b/drain").await;
    loop {
        let status = parse_event(&client.read_chunk().await.unwrap());
        if status["settled"] == 1 && status["backends"][1]["state"] == "drained" {
            break;
        }
    }
    // An open event stream does not delay the shutdown.
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(client.read_chunk().await, Some(Vec::new()), "the event stream ends with its last chunk");
}

#[tokio::test]
async fn connections_and_event_streams_of_the_admin_api_are_limited() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let request_head = Client::request_head("GET", "/api/events", &[LOCAL_HOST]);
    let mut watchers = Vec::new();
    for _ in 0..64 {
        let mut watcher = Client::connect(balancer.admin_address).await;
        watcher.send(request_head.as_bytes()).await;
        assert_eq!(watcher.read_response_head().await.unwrap().status, 200);
        watchers.push(watcher);
    }
    let mut client = Client::connect(balancer.admin_address).await;
    let response = client.get("/api/events", &[LOCAL_HOST]).await;
    assert_eq!((response.status, response.error_code().as_str()), (503, "overloaded"));
    assert_eq!(client.get("/healthz", &[LOCAL_HOST]).await.status, 200);
    // Each of the others still gets events, and its place is free when it leaves.
    assert!(watchers.pop().unwrap().read_chunk().await.is_some());
    wait_until_async("there is room for another event stream", async || {
        let mut watcher = Client::connect(balancer.admin_address).await;
        watcher.send(request_head.as_bytes()).await;
        watcher.read_response_head().await.is_some_and(|response| response.status == 200)
    })
    .await;
    // Silent connections, until the address has all that it may have.
    let mut silent_clients = Vec::new();
    for _ in 0..128 {
        silent_clients.push(Client::connect(balancer.admin_address).await);
    }
    wait_until_async("a further connection is refused", async || {
        let mut client = Client::connect(balancer.admin_address).await;
        client.try_send(Client::request_head("GET", "/healthz", &[LOCAL_HOST]).as_bytes()).await;
        client.read_response_head().await.is_some_and(|response| response.status == 503)
    })
    .await;
}

#[tokio::test]
async fn the_status_reports_attempts_cooldowns_and_client_usage() {
    let azure = start_simulator(&["a", "b"]).await;
    let entries = simulated_backend_yaml(&azure, "a", &format!("tier: 1\n{LISTED_DEPLOYMENTS}"))
        + &simulated_backend_yaml(&azure, "b", &format!("tier: 2\n{LISTED_DEPLOYMENTS}"));
    let balancer = Balancer::start(&entries, "").await;
    assert_eq!(balancer.post_chat().await.status, 200);
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    for _ in 0..3 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    }
    balancer.wait_for_records(4).await;
    let status = balancer.status().await;
    let (a, b) = (&status["backends"][0], &status["backends"][1]);
    assert_eq!(
        a["counters"],
        serde_json::json!({"answered": 1, "throttled": 1, "failed": 0, "refused": 0, "client_gone": 0})
    );
    assert_eq!(
        (b["counters"]["answered"].as_u64(), b["last_minute"]["share"].as_f64()),
        (Some(3), Some(0.6))
    );
    assert!(b["last_minute"]["p50_ms"].is_u64() && a["state"] == "healthy");
    let cooldown = &a["resting"][0];
    assert_eq!(
        (cooldown["deployment"].as_str(), cooldown["reason"].as_str()),
        (Some("gpt-4o"), Some("cooling"))
    );
    assert!(cooldown["until_ms"].as_u64().unwrap() <= 30_000 && cooldown["since"].is_string());
    let deployment = a["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .find(|deployment| deployment["name"] == "gpt-4o")
        .unwrap();
    assert_eq!(deployment["reason"], "answered 429, or sent retry-after");
    let client = &status["clients"][0];
    assert_eq!((client["name"].as_str(), client["requests"].as_u64()), (Some("team-a"), Some(4)));
    assert!(client["output_tokens"].as_u64().unwrap() > 0);
    let timeline_sum = |column: &str| -> u64 {
        status["timeline"][column].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum()
    };
    assert_eq!(
        (
            timeline_sum("requests"),
            timeline_sum("failovers"),
            timeline_sum("retries_429"),
            timeline_sum("failed")
        ),
        (4, 1, 1, 0)
    );
    assert_eq!(status["timeline"]["requests"].as_array().unwrap().len(), 180);
    let pool = &status["pools"][0];
    assert_eq!((pool["kind"].as_str(), pool["deployment"].as_str()), (Some("deployment"), Some("gpt-4o")));
    assert_eq!(pool["tiers"][0]["members"][0]["state"], "cooling");
    assert_eq!(pool["tiers"][1]["members"][0]["state"], "healthy");
}

#[tokio::test]
async fn a_drained_backend_finishes_its_requests_and_gets_no_new_ones() {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_millis(600)));
    let entries = simulated_backend_yaml(&azure, "a", &format!("tier: 1\n{LISTED_DEPLOYMENTS}"))
        + &simulated_backend_yaml(&azure, "b", &format!("tier: 2\n{LISTED_DEPLOYMENTS}"));
    let balancer = Balancer::start(&entries, "").await;
    let mut waiting_client = balancer.connect().await;
    let headers = [("api-key", CLIENT_KEY), ("Content-Length", &CHAT_BODY.len().to_string())];
    waiting_client.send(Client::request_head("POST", CHAT_TARGET, &headers).as_bytes()).await;
    waiting_client.send(CHAT_BODY.as_bytes()).await;
    wait_until("the request reaches backend a", || azure.request_count("a") == 1).await;
    let response = balancer.post_admin("/api/backends/a/drain").await.json();
    assert_eq!((response["changed"].as_bool(), response["in_flight"].as_u64()), (Some(true), Some(1)));
    assert_eq!(response["left_without_backend"], serde_json::json!(["calls that name no deployment"]));
    assert_eq!(balancer.post_admin("/api/backends/a/drain").await.json()["changed"], false);
    assert_eq!(answering_backend(&balancer.post_chat().await), "b");
    assert_eq!(answering_backend(&waiting_client.read_response().await), "a");
    let response = balancer.post_admin("/api/backends/b/drain").await.json();
    assert_eq!(response["left_without_backend"][0], "deployment 'gpt-4o'");
    let refusal = balancer.post_chat().await;
    assert_eq!((refusal.status, refusal.error_code().as_str()), (503, "no_backend"));
    assert!(
        refusal.text().contains("is drained by the balancer's operator")
            && refusal.header("retry-after").is_none()
    );
    assert_eq!(balancer.post_admin("/api/backends/a/undrain").await.json()["changed"], true);
    assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    let metrics = Client::connect(balancer.admin_address).await.get("/metrics", &[LOCAL_HOST]).await.text();
    assert!(
        metrics.contains(r#"aoai_lb_backend_state{backend="b",deployment="",state="drained"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_status_command_prints_a_table_or_json() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    assert_eq!(balancer.post_chat().await.status, 200);
    balancer.wait_for_records(1).await;
    balancer.post_admin("/api/backends/b/drain").await;
    let run_status_command = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let output = command.arg("status").args(arguments).output().await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let url = format!("http://{}", balancer.admin_address);
    let (code, table, _) = run_status_command(&["--verbose", "--admin", &url]).await;
    assert_eq!(code, Some(0));
    for part in ["ready", "BACKEND", "drained", "gpt-4o", "CLIENT", "team-a"] {
        assert!(table.contains(part), "expected {part:?} in:\n{table}");
    }
    let (_, json, _) = run_status_command(&["--json", "--admin", &url]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["backends"][1]["state"], "drained");
    let (code, _, stderr) = run_status_command(&["--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("cannot reach the admin API at http://127.0.0.1:1: "), "{stderr}");
    let (code, _, stderr) = run_status_command(&["--admin", "localhost"]).await;
    assert!(code == Some(1) && stderr.starts_with("--admin: must begin with"), "{stderr}");
}
