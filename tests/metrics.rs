//! `/metrics`: every name of the contract, bounded labels, and the dashboard that reads them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use aoai_lb::demo::{Kind, Mood, Resource, Simulator};
use serde_json::Value;
use support::{Balancer, CHAT, Client, HELLO, KEY, STREAM, azure, backend, backends, listed, quick};

/// The contract's.
const NAMES: [&str; 17] = [
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
    "aoai_lb_overhead_seconds",
    "aoai_lb_records_total",
    "aoai_lb_request_duration_seconds",
    "aoai_lb_requests_total",
    "aoai_lb_spool_bytes",
    "aoai_lb_tokens_total",
];

/// Samples by name and labels.
async fn scrape(balancer: &Balancer) -> BTreeMap<String, f64> {
    let reply = Client::connect(balancer.admin).await.get("/metrics", &[("Host", "localhost")]).await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = reply.text();
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn families(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    samples.keys().map(|name| family(name.split('{').next().unwrap())).collect()
}

fn family(name: &str) -> String {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    histogram.filter(|name| name.ends_with("_seconds")).unwrap_or(name).to_owned()
}

/// Waits until this sample has this value.
async fn until_counted(balancer: &Balancer, name: &str, value: f64) -> BTreeMap<String, f64> {
    let begun = std::time::Instant::now();
    loop {
        let samples = scrape(balancer).await;
        if samples.get(name) == Some(&value) {
            return samples;
        }
        assert!(begun.elapsed() < support::PATIENCE, "{name} is not {value}: {samples:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_contract_and_of_the_dashboard_is_there() {
    let resource = |name: &str, kind| Resource {
        pace: quick(),
        ..Resource::new(name).key(format!("{name}-key")).deployment("gpt-4o", "gpt-4o-2024-11-20", kind)
    };
    let standard = Kind::Standard { tokens_per_minute: 100_000, requests_per_minute: Some(1_000) };
    let provisioned = Kind::Provisioned { tokens_per_minute: 100_000, output_weight: 4 };
    let azure = Simulator::start(vec![resource("a", standard), resource("b", provisioned)]).await.unwrap();
    let entries = backend(&azure, "a", "deployments: { gpt-4o: gpt-4o }")
        + &backend(&azure, "b", "deployments: { gpt-4o: gpt-4o }");
    let balancer = Balancer::start(&entries, "").await;
    for _ in 0..2 {
        let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert_eq!(reply.status, 200);
    }
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    for _ in 0..2 {
        assert_eq!(balancer.chat().await.status, 200);
    }
    let mut client = balancer.client().await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 400);
    let chat = r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    let samples = until_counted(&balancer, chat, 4.0).await;
    assert_eq!(families(&samples), NAMES.map(str::to_owned).into());
    for (name, expected) in [
        (r#"aoai_lb_attempts_total{backend="a",outcome="answered"}"#, 1.0),
        (r#"aoai_lb_attempts_total{backend="a",outcome="throttled"}"#, 1.0),
        (r#"aoai_lb_attempts_total{backend="b",outcome="answered"}"#, 3.0),
        (r#"aoai_lb_failovers_total{reason="429"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="a",deployment="gpt-4o",state="cooling"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="a",deployment="",state="ok"}"#, 1.0),
        (r#"aoai_lb_backend_state{backend="b",deployment="gpt-4o",state="ok"}"#, 1.0),
        (r#"aoai_lb_request_duration_seconds_count{operation="chat"}"#, 4.0),
        (r#"aoai_lb_first_byte_seconds_count{operation="chat"}"#, 4.0),
        ("aoai_lb_overhead_seconds_count", 4.0),
        ("aoai_lb_malformed_total", 1.0),
        ("aoai_lb_in_flight", 0.0),
        (r#"aoai_lb_records_total{result="written",sink="spool"}"#, 4.0),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}: {samples:#?}");
    }
    let records = balancer.records_of(4).await;
    let sum = |field: &str| records.iter().map(|record| record[field].as_f64().unwrap()).sum::<f64>();
    for kind in ["input", "output"] {
        let name = format!(r#"aoai_lb_tokens_total{{client="team-a",deployment="gpt-4o",type="{kind}"}}"#);
        assert_eq!(samples[&name], sum(&format!("{kind}_tokens")));
    }
    let left = samples[r#"aoai_lb_backend_remaining_requests{backend="a",deployment="gpt-4o"}"#];
    assert!((1.0..1_000.0).contains(&left), "{left}");
    // Time in the balancer is a part of the whole.
    assert!(
        samples["aoai_lb_overhead_seconds_sum"]
            < samples[r#"aoai_lb_request_duration_seconds_sum{operation="chat"}"#]
    );

    let dashboard =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/grafana/aoai-lb.json"));
    let dashboard: Value = serde_json::from_str(&dashboard.unwrap()).unwrap();
    let mut read = BTreeSet::new();
    queries(&dashboard, &mut read);
    let there = families(&samples);
    let unknown: Vec<_> = read.difference(&there).collect();
    assert!(unknown.is_empty() && read.len() > 10, "{unknown:?} of {read:?}");
}

/// The metrics that a dashboard's queries name.
fn queries(value: &Value, read: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if matches!(key.as_str(), "expr" | "query" | "definition") => {
                        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                        let names = text.split(|c| !is_name(c)).filter(|word| word.starts_with("aoai_lb_"));
                        read.extend(names.map(family));
                    }
                    value => queries(value, read),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, read)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_bounded_by_what_is_configured_or_answered() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    let path = |name: &str| format!("/openai/deployments/{name}/chat/completions?api-version=2024-10-21");
    for n in 0..20 {
        let reply =
            balancer.post(&path(&format!("invented-{n}")), &[("api-key", KEY)], HELLO.as_bytes()).await;
        assert_eq!(reply.status, 503);
    }
    let ask = async |name: &str, key: &str| {
        balancer.post(&path(name), &[("api-key", key)], HELLO.as_bytes()).await.status
    };
    // Spelled differently, it is the same.
    assert_eq!((ask("gpt-4o", KEY).await, ask("GPT-4o", KEY).await), (200, 200));
    assert_eq!(ask("gpt-4o", "wrong").await, 401);
    let own = r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    let samples = until_counted(&balancer, own, 2.0).await;
    let labelled: Vec<&String> =
        samples.keys().filter(|name| name.starts_with("aoai_lb_requests_total")).collect();
    assert_eq!(
        labelled,
        [
            r#"aoai_lb_requests_total{client="none",deployment="gpt-4o",operation="chat",status="401"}"#,
            own,
            r#"aoai_lb_requests_total{client="team-a",deployment="other",operation="chat",status="503"}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_record_block_requests_and_tokens_are_counted_and_nothing_is_kept() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let text = format!(
        "listeners: [ {{ address: '{address}' }} ]\nadmin: {{ address: '{admin}' }}\nserver: {{ drain_delay: 0s }}\nbackends:\n{}{}",
        listed(&azure),
        support::clients()
    );
    let balancer = Balancer::from_file(directory, address, admin, &text).await;
    assert_eq!(balancer.chat().await.status, 200);
    let reply = balancer.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
    assert_eq!(reply.status, 200);
    let input =
        r#"aoai_lb_requests_total{client="team-a",deployment="gpt-4o",operation="chat",status="200"}"#;
    let samples = until_counted(&balancer, input, 2.0).await;
    // Whoever keeps no record asks for no usage either: the stream told none.
    assert!(samples[r#"aoai_lb_tokens_total{client="team-a",deployment="gpt-4o",type="output"}"#] > 0.0);
    assert!(!samples.keys().any(|name| name.starts_with("aoai_lb_records_total")));
    let files = std::fs::read_dir(balancer.path("")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    files.sort_unstable();
    // The binary's name, the configuration, the directory of the sockets.
    assert_eq!(files, ["aoai-lb", "aoai-lb.yaml", "run"], "nothing is written");
}
