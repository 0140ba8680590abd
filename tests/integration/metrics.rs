//! `/metrics`: the documented names, and limited labels. `monitoring.rs` has the dashboard and the alerts.

use crate::support;

use std::collections::{BTreeMap, BTreeSet};

use aoai_lb::demo::{DeploymentKind, Mood, Simulator};
use support::affinity_traffic::AffinityTraffic;
use support::h2::{Http2Connection, connect_tls};
use support::tls::generate_authority;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY, all_backends_yaml, instant_resource,
    listed_backends_yaml, poll, simulated_backend_yaml, start_simulator,
};
use tokio::io::AsyncWriteExt;

/// All documented metrics.
const METRIC_NAMES: &[&str] = &[
    "aoai_lb_affinity_asked_total",
    "aoai_lb_affinity_capacity",
    "aoai_lb_affinity_entries",
    "aoai_lb_affinity_evicted_total",
    "aoai_lb_affinity_requests_total",
    "aoai_lb_attempt_seconds",
    "aoai_lb_attempts_total",
    "aoai_lb_backend_remaining_requests",
    "aoai_lb_backend_remaining_tokens",
    "aoai_lb_backend_state",
    "aoai_lb_backend_utilization_ratio",
    "aoai_lb_build_info",
    "aoai_lb_config_reloads_total",
    "aoai_lb_failovers_total",
    "aoai_lb_first_byte_seconds",
    "aoai_lb_in_flight",
    "aoai_lb_malformed_total",
    "aoai_lb_oldest_attempt_seconds",
    "aoai_lb_overhead_seconds",
    "aoai_lb_prompt_tokens_total",
    "aoai_lb_read_lag_seconds",
    "aoai_lb_record_backlog_seconds",
    "aoai_lb_records_total",
    "aoai_lb_refusals_total",
    "aoai_lb_request_duration_seconds",
    "aoai_lb_requests_total",
    "aoai_lb_service_state",
    "aoai_lb_spool_bytes",
    "aoai_lb_tokens_total",
    "aoai_lb_websocket_turns_total",
    "aoai_lb_websockets_open",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
];

/// The value of each sample, by its name with labels.
async fn scrape_metrics(balancer: &Balancer) -> BTreeMap<String, f64> {
    let response =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text();
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn metric_families(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    samples.keys().map(|name| metric_family(name.split('{').next().unwrap())).collect()
}

fn metric_family(name: &str) -> String {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    histogram.filter(|name| name.ends_with("_seconds")).unwrap_or(name).to_owned()
}

/// Waits until a sample has this value, and returns all samples.
async fn wait_for_sample(balancer: &Balancer, name: &str, value: f64) -> BTreeMap<String, f64> {
    poll(&format!("{name} is {value}"), async || {
        let samples = scrape_metrics(balancer).await;
        if samples.get(name) == Some(&value) { Ok(samples) } else { Err(samples) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_documented_metrics_exist() {
    let standard = DeploymentKind::Standard { tokens_per_minute: 100_000, requests_per_minute: Some(1_000) };
    let provisioned = DeploymentKind::Provisioned { tokens_per_minute: 100_000, output_weight: 4 };
    let azure = Simulator::start(vec![instant_resource("a", standard), instant_resource("b", provisioned)])
        .await
        .unwrap();
    let entries = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &simulated_backend_yaml(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&entries, "").await;
    for _ in 0..2 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
        assert_eq!(response.status, 200);
    }
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    for _ in 0..2 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    assert_eq!(balancer.post(CHAT_TARGET, &[("api-key", "wrong")], b"{}").await.status, 401);
    let mut client = balancer.connect().await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert_eq!(client.read_response().await.status, 400);
    let chat_sample =
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    wait_for_sample(&balancer, chat_sample, 4.0).await;
    let refusal_sample = r#"aoai_lb_refusals_total{client="none",code="invalid_api_key"}"#;
    let samples = wait_for_sample(&balancer, refusal_sample, 1.0).await;
    let mut families = metric_families(&samples);
    let affinity = AffinityTraffic::start().await;
    let failed = r#"aoai_lb_refusals_total{client="team-a",code="home_unavailable"}"#;
    let affinity_samples = wait_for_sample(&affinity.balancer, failed, 1.0).await;
    families.extend(metric_families(&affinity_samples));
    assert_eq!(families, METRIC_NAMES.iter().map(|name| (*name).to_owned()).collect());
    for (name, expected) in [
        (r#"aoai_lb_affinity_requests_total{how="learned",outcome="answered"}"#, 1.0),
        (r#"aoai_lb_affinity_requests_total{how="asked",outcome="answered"}"#, 1.0),
        (r#"aoai_lb_affinity_evicted_total{maker="yes"}"#, 0.0),
    ] {
        assert_eq!(affinity_samples.get(name), Some(&expected), "{name}: {affinity_samples:#?}");
    }
    for (name, expected) in [
        (r#"aoai_lb_attempts_total{backend="a",outcome="answered"}"#, 1.0),
        (r#"aoai_lb_attempts_total{backend="a",outcome="throttled"}"#, 1.0),
        (r#"aoai_lb_attempts_total{backend="b",outcome="answered"}"#, 3.0),
        (r#"aoai_lb_attempt_seconds_count{backend="a",deployment="gpt-4o"}"#, 2.0),
        (r#"aoai_lb_attempt_seconds_count{backend="b",deployment="gpt-4o"}"#, 3.0),
        (r#"aoai_lb_attempt_seconds_bucket{backend="b",deployment="gpt-4o",le="+Inf"}"#, 3.0),
        (r#"aoai_lb_failovers_total{reason="429"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="a",deployment="gpt-4o",state="cooling"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="a",deployment="",state="cooling"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="b",deployment="gpt-4o",state="healthy"}"#, 1.0),
        (r#"aoai_lb_request_duration_seconds_count{operation="chat"}"#, 5.0),
        (r#"aoai_lb_first_byte_seconds_count{operation="chat"}"#, 5.0),
        ("aoai_lb_overhead_seconds_count", 5.0),
        ("aoai_lb_malformed_total", 1.0),
        ("aoai_lb_in_flight", 0.0),
        (r#"aoai_lb_records_total{result="written",sink="spool"}"#, 5.0),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}: {samples:#?}");
    }
    let records = balancer.wait_for_records(5).await;
    let sum = |field: &str| records.iter().filter_map(|record| record[field].as_f64()).sum::<f64>();
    for kind in ["input", "output"] {
        let name = format!(r#"aoai_lb_tokens_total{{client="team-a",deployment="gpt-4o",type="{kind}"}}"#);
        assert_eq!(samples[&name], sum(&format!("{kind}_tokens")));
    }
    let remaining_requests =
        samples[r#"aoai_lb_backend_remaining_requests{backend="a",deployment="gpt-4o"}"#];
    assert!((1.0..1_000.0).contains(&remaining_requests), "{remaining_requests}");
    // The overhead of the balancer is a part of the total duration.
    assert!(
        samples["aoai_lb_overhead_seconds_sum"]
            < samples[r#"aoai_lb_request_duration_seconds_sum{operation="chat"}"#]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metric_labels_are_limited_to_known_clients_and_deployments() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let path = |name: &str| format!("/openai/deployments/{name}/chat/completions?api-version=2024-10-21");
    for number in 0..20 {
        let response = balancer
            .post(&path(&format!("invented-{number}")), &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes())
            .await;
        assert_eq!(response.status, 404);
    }
    let post_chat_status = async |name: &str, key: &str| {
        balancer.post(&path(name), &[("api-key", key)], CHAT_BODY.as_bytes()).await.status
    };
    // Another spelling of the same deployment does not make another label.
    assert_eq!(
        (post_chat_status("gpt-4o", CLIENT_KEY).await, post_chat_status("GPT-4o", CLIENT_KEY).await),
        (200, 200)
    );
    assert_eq!(post_chat_status("gpt-4o", "wrong").await, 401);
    let team_a_sample =
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    let samples = wait_for_sample(&balancer, team_a_sample, 2.0).await;
    let request_samples: Vec<&String> =
        samples.keys().filter(|name| name.starts_with("aoai_lb_requests_total")).collect();
    assert_eq!(
        request_samples,
        [
            r#"aoai_lb_requests_total{client="none",deployment="gpt-4o",operation="chat",status="401"}"#,
            team_a_sample,
            r#"aoai_lb_requests_total{client="team-a",deployment="other",operation="chat",status="404"}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_by_client_and_code_and_attempts_to_their_first_byte() {
    let azure = start_simulator(&["a"]).await;
    let closed = format!("http://127.0.0.1:{}", support::free_port());
    let backends = simulated_backend_yaml(&azure, "a", "deployments: { gpt-4o: gpt-4o, Mapped: gpt-4o }")
        + &support::backend_yaml("closed", &closed, "deployments: { gone: gpt-4o }")
        + &simulated_backend_yaml(&azure, "a", "tier: 2").replace("name: a", "name: all");
    let balancer = Balancer::start(&backends, "retry: { attempts: 0 }").await;
    let path = |name: &str| format!("/openai/deployments/{name}/chat/completions?api-version=2024-10-21");
    let post = async |target: &str, key: &str| {
        balancer.post(target, &[("api-key", key)], CHAT_BODY.as_bytes()).await.status
    };
    for (target, key, status) in [
        (path("gpt-4o"), CLIENT_KEY, 200),
        (path("MAPPED"), CLIENT_KEY, 200),
        (path("gpt-4o"), "wrong", 401),
        (path("gpt-4o"), "wrong too", 401),
        ("/elsewhere".to_owned(), CLIENT_KEY, 404),
        ("/openai/..".to_owned(), CLIENT_KEY, 400),
        (path("gone"), CLIENT_KEY, 502),
        (path("misspelt"), CLIENT_KEY, 404),
    ] {
        assert_eq!(post(&target, key).await, status, "{target}");
    }
    // What is relayed is no refusal of ours.
    azure.set_mood("a", Mood::Refuses(aoai_lb::demo::SimulatedError::ContentFilter));
    assert_eq!(post(&path("gpt-4o"), CLIENT_KEY).await, 400);
    let relayed =
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="400"}"#;
    let samples = wait_for_sample(&balancer, relayed, 1.0).await;
    let of_family = |family: &str| -> Vec<(&str, f64)> {
        let own = samples.iter().filter(|(name, _)| name.starts_with(family));
        own.map(|(name, value)| (&name[family.len()..], *value)).collect()
    };
    assert_eq!(
        of_family("aoai_lb_refusals_total"),
        [
            (r#"{client="none",code="bad_request"}"#, 1.0),
            (r#"{client="none",code="invalid_api_key"}"#, 2.0),
            (r#"{client="none",code="path_not_allowed"}"#, 1.0),
            (r#"{client="team-a",code="DeploymentNotFound"}"#, 1.0),
            (r#"{client="team-a",code="upstream_failed"}"#, 1.0),
        ]
    );
    // An attempt without a response has no first byte.
    assert_eq!(
        of_family("aoai_lb_attempt_seconds_count"),
        [
            (r#"{backend="a",deployment="gpt-4o"}"#, 2.0),
            (r#"{backend="a",deployment="mapped"}"#, 1.0),
            (r#"{backend="all",deployment="other"}"#, 1.0),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_record_block_metrics_are_counted_and_no_file_is_written() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin}' }}\nserver: {{ drain_delay: 0s }}\nbackends:\n{}{}",
        listed_backends_yaml(&azure),
        support::clients_yaml()
    );
    let balancer = Balancer::start_from_file(directory, address, admin, &text).await;
    assert_eq!(balancer.post_chat().await.status, 200);
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
    assert_eq!(response.status, 200);
    let chat_sample =
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    let samples = wait_for_sample(&balancer, chat_sample, 2.0).await;
    // Without records the balancer does not request usage from streams, so tokens of the stream are unknown.
    assert!(samples[r#"aoai_lb_tokens_total{client="team-a",deployment="gpt-4o",type="output"}"#] > 0.0);
    assert!(!samples.keys().any(|name| name.starts_with("aoai_lb_records_total")));
    let files = std::fs::read_dir(balancer.path("")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    files.sort_unstable();
    // The symlink to the binary, the configuration, and the directories of the sockets and the state.
    assert_eq!(files, ["aoai-lb", "aoai-lb.yaml", "run", "state"], "expected no other file");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_request_is_counted() {
    let azure = start_simulator(&["a"]).await;
    let authority = generate_authority();
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    let mut expected = 0.0;
    // The first is refused by Pingora, with a bare 400, the others by h2: with a reset and a bare 431.
    for (name, values) in [
        ("host", vec!["another.test".to_owned()]),
        ("content-length", vec!["1".to_owned(), "2".to_owned()]),
        ("x", vec!["y".repeat(60_000), "y".repeat(60_000)]),
    ] {
        let connection = Http2Connection::connect(balancer.address, &authority).await;
        let mut requests = connection.requests.clone().ready().await.unwrap();
        let mut request = http::Request::post(format!("https://balancer.test{CHAT_TARGET}"));
        for value in values {
            request = request.header(name, value);
        }
        let (response, _) = requests.send_request(request.body(()).unwrap(), true).unwrap();
        assert!(!response.await.is_ok_and(|response| response.status().is_success()), "{name}");
        expected += 1.0;
        wait_for_sample(&balancer, "aoai_lb_malformed_total", expected).await;
    }
    // No HTTP/2 at all.
    let mut stream = connect_tls(balancer.address, &authority, b"\x02h2", None).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x01\0\0\0\0\0\0x").await.unwrap();
    expected += 1.0;
    wait_for_sample(&balancer, "aoai_lb_malformed_total", expected).await;
    // The framing of a body.
    let mut stream = connect_tls(balancer.address, &authority, b"", None).await.unwrap();
    let head = "Host: x\r\nTransfer-Encoding: chunked";
    let request = format!("POST {CHAT_TARGET} HTTP/1.1\r\napi-key: {CLIENT_KEY}\r\n{head}\r\n\r\n;x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    expected += 1.0;
    wait_for_sample(&balancer, "aoai_lb_malformed_total", expected).await;
    // What is well-formed is not counted, whatever becomes of it.
    let connection = Http2Connection::connect(balancer.address, &authority).await;
    assert_eq!(connection.post(CHAT_TARGET, CHAT_BODY.as_bytes()).await.status, 200);
    assert_eq!(connection.post(CHAT_TARGET, b"{").await.status, 400);
    assert_eq!(connection.post("/elsewhere", b"{}").await.status, 404);
    let mut abandoned = connection.send_post(CHAT_TARGET, STREAM_BODY.as_bytes()).await;
    abandoned.body.send_reset(h2::Reason::CANCEL);
    balancer.wait_for_records(5).await;
    let samples = scrape_metrics(&balancer).await;
    assert_eq!(samples["aoai_lb_malformed_total"], expected);
}
