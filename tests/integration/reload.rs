//! Reloading the configuration while requests are running.

use crate::support;

use std::time::Duration;

use aoai_lb::demo::Mood;
use serde_json::json;
use support::traffic::BackgroundTraffic;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, STREAM_BODY, answering_backend,
    clients_yaml, listed_backends_yaml, sha256_hex, simulated_backend_yaml, start_simulator, wait_until,
};

async fn wait_for_config_version(balancer: &Balancer, version: u64) {
    balancer
        .wait_for_status("the new configuration is active", |status| {
            status["configuration"]["version"] == version
        })
        .await;
}

#[tokio::test]
async fn sighup_applies_the_new_file_while_running_requests_keep_the_old_one() {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(100)));
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let mut streaming_client = balancer.connect().await;
    let headers = [("api-key", CLIENT_KEY), ("Content-Length", &STREAM_BODY.len().to_string())];
    streaming_client.send(Client::request_head("POST", CHAT_TARGET, &headers).as_bytes()).await;
    streaming_client.send(STREAM_BODY.as_bytes()).await;
    let head = streaming_client.read_response_head().await.unwrap();
    assert_eq!((head.status, answering_backend(&head).as_str()), (200, "a"));
    assert!(!streaming_client.read_chunk().await.unwrap().is_empty());
    // The new file has another backend and another client.
    let text = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    let other_clients =
        format!("clients:\n  - name: team-b\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex("key-of-team-b"));
    let text = text.replace(
        &simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS),
        &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS),
    );
    balancer.write_config(&text.replace(&clients_yaml(), &other_clients));
    balancer.send_signal("HUP");
    wait_for_config_version(&balancer, 2).await;
    assert_eq!(balancer.post_chat().await.error_code(), "invalid_api_key");
    let response = balancer.post(CHAT_TARGET, &[("api-key", "key-of-team-b")], CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    // The stream that started before continues, although its client and backend are removed.
    azure.set_mood("a", Mood::Calm);
    let mut last_chunk = Vec::new();
    while let Some(chunk) = streaming_client.read_chunk().await {
        if chunk.is_empty() {
            break;
        }
        last_chunk = chunk;
    }
    assert!(last_chunk.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&last_chunk));
    // SIGHUP also starts a new file of records, so the record of the stream is in the new one.
    wait_until("the stream is recorded", || balancer.records().iter().any(|record| record["stream"] == true))
        .await;
    let records = balancer.records();
    let stream = records.iter().find(|record| record["stream"] == true).unwrap();
    assert_eq!((stream["client"].as_str(), stream["outcome"].as_str()), (Some("team-a"), Some("answered")));
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_its_problem_is_reported() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let good = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    balancer.write_config(&good.replace("credential:", "credental:"));
    let response = balancer.post_admin("/api/reload").await;
    assert_eq!((response.status, response.error_code().as_str()), (400, "bad_request"));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    for part in [
        "the previous configuration stays active",
        "backends[0] (a).credental: unknown key; did you mean `credential`?",
    ] {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
    balancer.send_signal("HUP");
    wait_until("the log reports the problem twice", || {
        balancer.log().matches("the previous configuration stays active").count() == 2
    })
    .await;
    let configuration = balancer.status().await["configuration"].clone();
    assert_eq!(configuration["version"], 1);
    assert!(configuration["problem"].as_str().unwrap().contains("credental"), "{configuration}");
    assert_eq!(balancer.post_chat().await.status, 200);
    balancer.write_config(&good.replace("a-key", "\"${NO_SUCH_VARIABLE}\""));
    let message = balancer.post_admin("/api/reload").await.text();
    assert!(message.contains("variables are read when the process starts"), "{message}");
    // A missing file is a problem, too.
    std::fs::remove_file(balancer.path("aoai-lb.yaml")).unwrap();
    let response = balancer.post_admin("/api/reload").await;
    assert!(
        response.json()["error"]["message"].as_str().unwrap().contains("cannot read"),
        "{}",
        response.text()
    );
    balancer.write_config(&good);
    let response = balancer.post_admin("/api/reload").await;
    assert_eq!((response.status, response.json()["version"].as_u64()), (200, Some(2)));
    assert!(balancer.status().await["configuration"]["problem"].is_null());
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    assert!(metrics.contains("aoai_lb_config_reloads_total{result=\"success\"} 1"), "{metrics}");
    assert!(metrics.contains("aoai_lb_config_reloads_total{result=\"failure\"} 4"));
}

#[tokio::test]
async fn a_reload_says_what_changed_by_name_and_key() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let (a, b, c) = (
        simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS),
        simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS),
        simulated_backend_yaml(&azure, "c", LISTED_DEPLOYMENTS),
    );
    let balancer = Balancer::start(&format!("{a}{b}"), "retry: { attempts: 3 }").await;
    let response = balancer.post_admin("/api/reload").await.json();
    assert_eq!(response["summary"], json!(["nothing changed"]));
    let unchanged = json!({ "added": [], "removed": [], "changed": [] });
    assert_eq!(
        response["changes"],
        json!({ "backends": unchanged, "clients": unchanged, "listeners": unchanged, "settings": [] })
    );
    balancer.wait_for_log("configuration 2 is active (SHA-256 ").await;
    balancer.wait_for_log("): nothing changed").await;

    balancer.replace_in_config(&b, &c);
    balancer.replace_in_config("a-key", "another-key-of-a");
    balancer.replace_in_config("attempts: 3", "attempts: 4");
    let listener = format!("address: {}\n", balancer.address);
    balancer.replace_in_config(&listener, &format!("{listener}    trusted_proxies: [127.0.0.1]\n"));
    let new_client = format!("clients:\n  - name: team-b\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex("b"));
    balancer.replace_in_config("clients:\n", &new_client);
    let response = balancer.post_admin("/api/reload").await.json();
    let lines = [
        "backends: added c, removed b, changed a (credential)",
        "clients: added team-b",
        &format!("listeners: changed {} (trusted_proxies)", balancer.address),
        "settings: retry.attempts",
    ];
    assert_eq!(response["summary"], json!(lines));
    assert_eq!(
        response["changes"]["backends"],
        json!({ "added": ["c"], "removed": ["b"], "changed": [{ "name": "a", "keys": ["credential"] }] })
    );
    balancer.wait_for_log(&format!("): {}", lines.join("; "))).await;

    // The same by a signal, against the file of the last reload.
    balancer.replace_in_config("attempts: 4", "attempts: 5");
    balancer.send_signal("HUP");
    balancer.wait_for_log("): settings: retry.attempts\n").await;
    assert!(!balancer.log().contains("another-key-of-a"), "{}", balancer.log());
}

#[tokio::test]
async fn settings_that_need_an_upgrade_are_listed() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    balancer.replace_in_config("server: { drain_delay: 0s }", "server: { drain_delay: 1s }");
    balancer.replace_in_config("path: records.jsonl", "path: others.jsonl");
    let entry = simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS);
    balancer.replace_in_config(
        &entry,
        &(entry.clone() + &simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS)),
    );
    let response = balancer.post_admin("/api/reload").await;
    let needs_upgrade = serde_json::json!(["server.drain_delay", "record.jsonl", "record.spool"]);
    assert_eq!(response.json()["needs_upgrade"], needs_upgrade);
    let status = balancer.status().await;
    assert_eq!(status["configuration"]["needs_upgrade"], needs_upgrade);
    assert_eq!(balancer.backend_states().await.len(), 2, "expected the other settings to be active");
    balancer.post_chat().await;
    balancer.wait_for_records(1).await;
    balancer.wait_for_log("record.jsonl: the change takes effect with an upgrade").await;
}

#[tokio::test]
async fn unchanged_backends_keep_their_state_and_connections() {
    let azure = start_simulator(&["a", "b", "c"]).await;
    let entries = listed_backends_yaml(&azure);
    let balancer = Balancer::start(&entries, "balance: round_robin").await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    let mut client = balancer.connect().await;
    for _ in 0..6 {
        assert_eq!(
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status,
            200
        );
    }
    assert_eq!(balancer.post_admin("/api/backends/b/drain").await.json()["drained"], true);
    let before = (
        azure.request_count("a"),
        azure.accepted_connection_count("c"),
        azure.accepted_connection_count("b"),
    );
    balancer.replace_in_config("balance: round_robin", "balance: headroom");
    for version in 2..5 {
        assert_eq!(balancer.post_admin("/api/reload").await.json()["version"], version);
        for _ in 0..4 {
            let response = client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
            assert_eq!(
                (response.status, answering_backend(&response).as_str()),
                (200, "c"),
                "expected c, since a has a cooldown and b is drained"
            );
        }
    }
    assert_eq!(
        before,
        (
            azure.request_count("a"),
            azure.accepted_connection_count("c"),
            azure.accepted_connection_count("b")
        )
    );
    let status = balancer.status().await;
    assert_eq!(status["backends"][0]["resting"][0]["reason"], "cooling");
    assert_eq!(balancer.backend_states().await[1], ("b".to_owned(), "drained".to_owned()));
    balancer.post_admin("/api/backends/b/undrain").await;
    let mut answering_backends = Vec::new();
    for _ in 0..4 {
        answering_backends.push(answering_backend(
            &client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await,
        ));
    }
    assert!(answering_backends.contains(&"b".to_owned()), "{answering_backends:?}");
}

#[tokio::test]
async fn reloadable_settings_apply_to_the_next_request() {
    let azure = start_simulator(&["a"]).await;
    let extra_yaml = "requests: { max_body: 1MiB }\nrecord: { jsonl: { path: records.jsonl } }";
    let balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", ""), extra_yaml).await;
    let headers = [("api-key", CLIENT_KEY), ("x-forwarded-for", "198.51.100.7")];
    let body = r#"{"messages":[{"role":"user","content":"the password is hunter2"}]}"#.as_bytes();
    balancer.post(CHAT_TARGET, &headers, body).await;
    balancer.replace_in_config("max_body: 1MiB", "max_body: 10B");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.post(CHAT_TARGET, &headers, body).await.error_code(), "body_too_large");
    balancer.replace_in_config("requests: { max_body: 10B }\nrecord: {", "record: { redact: [hunter2],");
    let listener = format!("address: {}\n", balancer.address);
    balancer.replace_in_config(&listener, &format!("{listener}    trusted_proxies: [127.0.0.1]\n"));
    assert_eq!(balancer.post_admin("/api/reload").await.json()["needs_upgrade"], serde_json::json!([]));
    balancer.post(CHAT_TARGET, &headers, body).await;
    let records = balancer.wait_for_records(3).await;
    let client_ip_and_leak = |index: usize| {
        (
            records[index]["client_ip"].as_str(),
            records[index]["prompt"].as_str().unwrap_or("").contains("hunter2"),
        )
    };
    assert_eq!(client_ip_and_leak(0), (Some("127.0.0.1"), true));
    assert_eq!(client_ip_and_leak(2), (Some("198.51.100.7"), false), "{}", records[2]);
    assert_eq!(records[2]["deployment"], "gpt-4o");
}

#[tokio::test]
async fn connections_per_client_address_are_limited() {
    let azure = start_simulator(&["a"]).await;
    let balancer =
        Balancer::start_with_listener(&simulated_backend_yaml(&azure, "a", ""), "connections_per_client: 3")
            .await;
    let mut open_clients = Vec::new();
    // Connections of the harness may still be open for a moment.
    while open_clients.len() < 3 {
        let mut client = balancer.connect().await;
        if client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status == 200 {
            open_clients.push(client);
        }
    }
    let mut refused_client = balancer.connect().await;
    let response = refused_client.read_response().await;
    assert_eq!((response.status, response.error_code().as_str()), (503, "overloaded"));
    assert!(response.json()["error"]["message"].as_str().unwrap().contains("has 3 connections already"));
    balancer.wait_for_log("(listeners[].connections_per_client); more are refused").await;
    open_clients.pop();
    // When a connection ends, another one is admitted.
    let deadline = std::time::Instant::now() + support::TEST_TIMEOUT;
    while balancer.post_chat().await.status != 200 {
        assert!(std::time::Instant::now() < deadline);
    }
    balancer.replace_in_config("connections_per_client: 3", "connections_per_client: 100");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    for _ in 0..10 {
        let mut client = balancer.connect().await;
        assert_eq!(
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await.status,
            200
        );
        open_clients.push(client);
    }
}

#[tokio::test]
async fn ten_reloads_under_load_fail_no_request() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "balance: round_robin").await;
    let traffic = BackgroundTraffic::start(balancer.address);
    for round in 0..10 {
        let (from, to) =
            if round % 2 == 0 { ("round_robin", "headroom") } else { ("headroom", "round_robin") };
        balancer.replace_in_config(&format!("balance: {from}"), &format!("balance: {to}"));
        let started_before = traffic.started_requests();
        assert_eq!(balancer.post_admin("/api/reload").await.json()["version"], round + 2);
        wait_until("20 more requests have started", || traffic.started_requests() > started_before + 20)
            .await;
    }
    let traffic_counts = traffic.stop().await;
    assert_eq!(traffic_counts.failures, Vec::<String>::new());
    let records = balancer.wait_for_records(traffic_counts.records()).await;
    assert!(records.iter().all(|record| record["outcome"] != "failed"));
}

#[tokio::test]
async fn a_start_says_its_version_configuration_and_what_it_serves() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let file = balancer.path("aoai-lb.yaml");
    let hash = sha256_hex(&std::fs::read_to_string(&file).unwrap());
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("aoai-lb {version} with configuration {} (SHA-256 {})", file.display(), &hash[..12]),
        format!("listeners: {}; admin API: {} without a token", balancer.address, balancer.admin_address),
        "backends: a (tier 1) and b (tier 1); deployments: gpt-4o and other".to_owned(),
        "clients: team-a".to_owned(),
        format!("records: {}; spool: ", balancer.path("records.jsonl").display()),
    ] {
        let logged = balancer.log();
        assert!(
            logged.contains(&format!("INFO  aoai_lb::server::startup] {line}")),
            "expected {line:?} in:\n{logged}"
        );
    }
}
