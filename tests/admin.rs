//! The admin API: who may ask, what is told, what can be done.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::time::Duration;

use aoai_lb::demo::Mood;
use support::{Balancer, CHAT, Client, HELLO, KEY, LISTED, answerer, azure, backend, listed, until};

const LOCAL: (&str, &str) = ("Host", "localhost");
const ACTS: (&str, &str) = ("x-aoai-lb-admin", "1");

#[tokio::test]
async fn only_local_names_and_pages_of_its_own_may_ask() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let own = format!("http://{}", balancer.admin);
    let host = balancer.admin.to_string();
    type Headers<'h> = &'h [(&'h str, &'h str)];
    let table: [(&str, &str, Headers<'_>, u16); 15] = [
        ("GET", "/api/status", &[LOCAL], 200),
        ("GET", "/api/status", &[("Host", "evil.test")], 403),
        ("GET", "/", &[("Host", "evil.test")], 403),
        ("GET", "/api/status", &[LOCAL, ("Origin", "http://evil.test")], 403),
        ("GET", "/api/status", &[LOCAL, ("Origin", "null")], 403),
        ("GET", "/api/status", &[("Host", &host), ("Origin", &own)], 200),
        ("GET", "/api/status", &[LOCAL, ("Sec-Fetch-Site", "cross-site")], 403),
        ("POST", "/api/backends/a/drain", &[LOCAL], 403),
        ("POST", "/api/backends/a/drain", &[LOCAL, ACTS, ("Origin", "http://evil.test")], 403),
        ("POST", "/api/backends/a/drain", &[("Host", &host), ACTS, ("Origin", &own)], 200),
        ("POST", "/api/backends/a/undrain", &[LOCAL, ACTS], 200),
        ("POST", "/api/backends/none/drain", &[LOCAL, ACTS], 404),
        ("POST", "/api/status", &[LOCAL, ACTS], 404),
        ("GET", "/api/reload", &[LOCAL, ACTS], 404),
        ("PUT", "/api/reload", &[LOCAL, ACTS], 405),
    ];
    for (method, target, headers, expected) in table {
        let reply = Client::connect(balancer.admin).await.request(method, target, headers, None).await;
        assert_eq!(reply.status, expected, "{method} {target} {headers:?}: {}", reply.text());
    }
    let reply = balancer.admin_post("/api/backends/none/drain").await;
    assert!(reply.text().contains("there is no backend of this name; there are a"), "{}", reply.text());
    // A connection that is kept, HEAD among its requests.
    let mut client = Client::connect(balancer.admin).await;
    for target in ["/", "/healthz", "/readyz", "/metrics", "/api/status"] {
        let reply = client.request("HEAD", target, &[LOCAL], None).await;
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{target}");
        let reply = client.get(target, &[LOCAL]).await;
        assert!(reply.status == 200 && !reply.body.is_empty() && reply.whole, "{target}");
    }
}

#[tokio::test]
async fn the_page_brings_all_it_needs_and_nothing_else_may_run() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let reply = Client::connect(balancer.admin).await.get("/", &[LOCAL]).await;
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert!(reply.text().starts_with("<!doctype html>"), "{}", &reply.text()[..40]);
}

#[tokio::test]
async fn events_tell_the_status_for_as_long_as_somebody_listens() {
    let azure = azure(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed(&azure), "").await;
    let mut client = Client::connect(balancer.admin).await;
    client.send(Client::head("GET", "/api/events", &[LOCAL]).as_bytes()).await;
    let head = client.reply_head().await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let event = |chunk: &[u8]| -> serde_json::Value {
        let text = std::str::from_utf8(chunk).unwrap();
        let data = text.strip_prefix("event: status\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
        serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap()
    };
    let first = event(&client.chunk().await.unwrap());
    assert_eq!((first["settled"].as_u64(), first["backends"].as_array().unwrap().len()), (Some(0), 2));
    balancer.chat().await;
    balancer.admin_post("/api/backends/b/drain").await;
    loop {
        let next = event(&client.chunk().await.unwrap());
        if next["settled"] == 1 && next["backends"][1]["state"] == "drained" {
            break;
        }
    }
    // A listener does not hold up the end.
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(client.chunk().await, Some(Vec::new()), "it ended well");
}

#[tokio::test]
async fn the_status_counts_what_happened() {
    let azure = azure(&["a", "b"]).await;
    let entries = backend(&azure, "a", &format!("tier: 1\n{LISTED}"))
        + &backend(&azure, "b", &format!("tier: 2\n{LISTED}"));
    let balancer = Balancer::start(&entries, "").await;
    assert_eq!(balancer.chat().await.status, 200);
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(30_000), retry_after: None });
    for _ in 0..3 {
        assert_eq!(answerer(&balancer.chat().await), "b");
    }
    balancer.records_of(4).await;
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
    assert!(b["last_minute"]["p50_ms"].is_u64() && a["state"] == "ok");
    let resting = &a["resting"][0];
    assert_eq!(
        (resting["deployment"].as_str(), resting["reason"].as_str()),
        (Some("gpt-4o"), Some("cooling"))
    );
    assert!(resting["until_ms"].as_u64().unwrap() <= 30_000 && resting["since"].is_string());
    let known = a["deployments"].as_array().unwrap().iter().find(|known| known["name"] == "gpt-4o").unwrap();
    assert_eq!(known["reason"], "asked to wait (429, or retry-after)");
    let client = &status["clients"][0];
    assert_eq!((client["name"].as_str(), client["requests"].as_u64()), (Some("team-a"), Some(4)));
    assert!(client["output_tokens"].as_u64().unwrap() > 0);
    let sum = |column: &str| -> u64 {
        status["timeline"][column].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum()
    };
    assert_eq!((sum("requests"), sum("failovers"), sum("retries_429"), sum("failed")), (4, 1, 1, 0));
    assert_eq!(status["timeline"]["requests"].as_array().unwrap().len(), 180);
    let pool = &status["pools"][0];
    assert_eq!((pool["kind"].as_str(), pool["deployment"].as_str()), (Some("deployment"), Some("gpt-4o")));
    assert_eq!(pool["tiers"][0]["members"][0]["state"], "cooling");
    assert_eq!(pool["tiers"][1]["members"][0]["state"], "ok");
}

#[tokio::test]
async fn a_drained_backend_finishes_and_gets_no_more() {
    let azure = azure(&["a", "b"]).await;
    azure.set_mood("a", Mood::SlowFirstByte(Duration::from_millis(600)));
    let entries = backend(&azure, "a", &format!("tier: 1\n{LISTED}"))
        + &backend(&azure, "b", &format!("tier: 2\n{LISTED}"));
    let balancer = Balancer::start(&entries, "").await;
    let mut waiting = balancer.client().await;
    let headers = [("api-key", KEY), ("Content-Length", &HELLO.len().to_string())];
    waiting.send(Client::head("POST", CHAT, &headers).as_bytes()).await;
    waiting.send(HELLO.as_bytes()).await;
    until("it is under way", || azure.hits("a") == 1).await;
    let reply = balancer.admin_post("/api/backends/a/drain").await.json();
    assert_eq!((reply["changed"].as_bool(), reply["in_flight"].as_u64()), (Some(true), Some(1)));
    assert_eq!(reply["left_without_backend"], serde_json::json!(["calls that name no deployment"]));
    assert_eq!(balancer.admin_post("/api/backends/a/drain").await.json()["changed"], false);
    assert_eq!(answerer(&balancer.chat().await), "b");
    assert_eq!(answerer(&waiting.reply().await), "a");
    let reply = balancer.admin_post("/api/backends/b/drain").await.json();
    assert_eq!(reply["left_without_backend"][0], "deployment 'gpt-4o'");
    let refused = balancer.chat().await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_backend"));
    assert!(
        refused.text().contains("is drained by the balancer's operator")
            && refused.header("retry-after").is_none()
    );
    assert_eq!(balancer.admin_post("/api/backends/a/undrain").await.json()["changed"], true);
    assert_eq!(answerer(&balancer.chat().await), "a");
    let metrics = Client::connect(balancer.admin).await.get("/metrics", &[LOCAL]).await.text();
    assert!(
        metrics.contains(r#"aoai_lb_backend_state{backend="b",deployment="",state="drained"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_status_command_shows_the_same_in_a_terminal() {
    let azure = azure(&["a", "b"]).await;
    let balancer = Balancer::start(&listed(&azure), "").await;
    assert_eq!(balancer.chat().await.status, 200);
    balancer.records_of(1).await;
    balancer.admin_post("/api/backends/b/drain").await;
    let status = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let output = command.arg("status").args(arguments).output().await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let url = format!("http://{}", balancer.admin);
    let (code, table, _) = status(&["--admin", &url]).await;
    assert_eq!(code, Some(0));
    for part in ["ready", "BACKEND", "drained", "gpt-4o", "CLIENT", "team-a"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let (_, json, _) = status(&["--json", "--admin", &url]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["backends"][1]["state"], "drained");
    let (code, _, problem) = status(&["--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(code, Some(1));
    assert!(problem.starts_with("the admin API is not reached: 127.0.0.1"), "{problem}");
    let (code, _, problem) = status(&["--admin", "localhost"]).await;
    assert!(code == Some(1) && problem.starts_with("--admin: must begin with"), "{problem}");
}
