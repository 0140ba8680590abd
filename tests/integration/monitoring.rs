//! The dashboard and the alert rules: each of their queries finds what it asks for in the metrics of balancers that
//! are in the states which it is about, and `promtool` accepts them.

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, Mood, SimulatedError, Simulator};
use regex::Regex;
use serde_json::Value;
use support::affinity_traffic::AffinityTraffic;
use support::collector::Collector;
use support::identity::{AuthenticatedResource, IdentityPlatform};
use support::ingestion::LogIngestionService;
use support::tls::generate_authority;
use support::yaml::backend_yaml;
use support::{
    Balancer, CHAT_BODY, CLIENT_KEY, Client, all_backends_yaml, instant_resource, poll_within, sha256_hex,
    simulated_backend_yaml, start_simulator, wait_until_async,
};

/// Labels that Prometheus adds to each sample.
const ADDED_LABELS: [&str; 2] = ["instance", "job"];
/// It takes some 20 s until a backend counts as stalled.
const STATES_TIMEOUT: Duration = Duration::from_secs(90);
const ALL_STATES: [&str; 11] = [
    "healthy",
    "cooling",
    "breaker_open",
    "failing",
    "stalled",
    "unresolvable",
    "credential",
    "permission",
    "absent",
    "drained",
    "disabled",
];

/// The samples that were ever seen: for each name the labels of each.
#[derive(Default)]
struct SeenSamples(BTreeMap<String, BTreeSet<BTreeMap<String, String>>>);

impl SeenSamples {
    async fn scrape(&mut self, balancer: &Balancer) {
        let response =
            Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await;
        let label = Regex::new(r#"([a-z_]+)="((?:[^"\\]|\\.)*)""#).unwrap();
        for line in response.text().lines().filter(|line| !line.starts_with('#')) {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let labels = label.captures_iter(labels).map(|found| (found[1].to_owned(), found[2].to_owned()));
            self.0.entry(name.to_owned()).or_default().insert(labels.collect());
        }
    }

    fn has_value(&self, metric: &str, label: &str, value: &str) -> bool {
        let pattern = Regex::new(&format!("^(?:{value})$")).unwrap();
        let samples = self.0.get(metric).into_iter().flatten();
        samples.filter_map(|labels| labels.get(label)).any(|found| pattern.is_match(found))
    }

    fn has_label(&self, metric: &str, label: &str) -> bool {
        ADDED_LABELS.contains(&label) || self.has_value(metric, label, ".*")
    }
}

/// A metric in a query, with its conditions: label, operator, value.
struct Selector {
    metric: String,
    conditions: Vec<(String, String, String)>,
}

/// The metrics in a query of Prometheus or in a variable of Grafana, without recorded ones.
fn selectors(query: &str) -> Vec<Selector> {
    let metric = Regex::new(r"\b((?:aoai_lb|process)_[a-z_]+|up)\b(:)?(?:\{([^}]*)\})?").unwrap();
    let condition = Regex::new(r#"([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)""#).unwrap();
    let found = metric.captures_iter(query).filter(|found| found.get(2).is_none());
    found
        .map(|found| {
            let conditions = found.get(3).map_or("", |conditions| conditions.as_str());
            let conditions = condition.captures_iter(conditions);
            Selector {
                metric: found[1].to_owned(),
                conditions: conditions
                    .map(|part| (part[1].to_owned(), part[2].to_owned(), part[3].to_owned()))
                    .collect(),
            }
        })
        .collect()
}

/// What a query asks for and no balancer has ever told.
fn unknown_parts(query: &str, seen: &SeenSamples) -> Vec<String> {
    let mut unknown = Vec::new();
    let selectors = selectors(query);
    for Selector { metric, conditions } in &selectors {
        // Prometheus itself makes this one.
        if metric == "up" {
            continue;
        }
        if !seen.0.contains_key(metric) {
            unknown.push(metric.clone());
        }
        for (label, operator, value) in conditions {
            if !seen.has_label(metric, label) {
                unknown.push(format!("{metric}: label {label}"));
            }
            let is_pattern = operator.ends_with('~');
            let alternatives = value.split('|').filter(|part| is_pattern || *part == value);
            let is_known = |part: &&str| part.starts_with('$') || seen.has_value(metric, label, part);
            let named = !ADDED_LABELS.contains(&label.as_str());
            let missing = alternatives.filter(|part| named && !is_known(part));
            unknown.extend(missing.map(|part| format!("{metric}: {label}={part:?}")));
        }
    }
    let grouping = Regex::new(r"\bby \(([^)]*)\)").unwrap();
    for group in grouping.captures_iter(query) {
        for label in group[1].split(',').map(str::trim) {
            let is_known = selectors.iter().any(|selector| seen.has_label(&selector.metric, label));
            if !is_known && !selectors.is_empty() {
                unknown.push(format!("by {label}"));
            }
        }
    }
    unknown
}

fn conf(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(path)
}

/// The queries of a dashboard, those of its variables too.
fn dashboard_queries(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if matches!(key.as_str(), "expr" | "query" | "definition") => {
                        queries.push(text.clone());
                    }
                    value => dashboard_queries(value, queries),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| dashboard_queries(value, queries)),
        _ => {}
    }
}

fn all_dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(conf("grafana/aoai-lb.json")).unwrap();
    let mut queries = Vec::new();
    dashboard_queries(&serde_json::from_str(&text).unwrap(), &mut queries);
    queries.retain(|query| query.contains("aoai_lb_") || query.contains("process_"));
    queries
}

#[test]
fn panels_of_the_dashboard_have_ids_and_places_of_their_own() {
    let text = fs::read_to_string(conf("grafana/aoai-lb.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 40, "{} panels", panels.len());
    for (number, panel) in panels.iter().enumerate() {
        let side = |panel: &Value, from: &str, length: &str| {
            let from = panel["gridPos"][from].as_u64().unwrap();
            from..from + panel["gridPos"][length].as_u64().unwrap()
        };
        assert!(side(panel, "x", "w").end <= 24, "{}", panel["title"]);
        for other in &panels[..number] {
            assert_ne!(panel["id"], other["id"], "{}, {}", panel["title"], other["title"]);
            let share = |from, length| {
                let (one, two) = (side(panel, from, length), side(other, from, length));
                one.start < two.end && two.start < one.end
            };
            assert!(!(share("x", "w") && share("y", "h")), "{}, {}", panel["title"], other["title"]);
        }
    }
}

fn rules() -> Vec<serde_yaml::Value> {
    let text = fs::read_to_string(conf("prometheus/alerts.yml")).unwrap();
    let file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let groups = file["groups"].as_sequence().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_sequence().unwrap().clone()).collect()
}

fn text_of<'a>(rule: &'a serde_yaml::Value, key: &str) -> &'a str {
    rule[key].as_str().unwrap_or_else(|| panic!("no {key} in {rule:?}"))
}

/// The target of a chat with a deployment of this name.
fn chat_target(deployment: &str) -> String {
    format!("/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21")
}

async fn post(balancer: &Balancer, deployment: &str, key: &str) -> u16 {
    balancer.post(&chat_target(deployment), &[("api-key", key)], CHAT_BODY.as_bytes()).await.status
}

/// Brings a balancer into every state that there is, and keeps what its metrics tell meanwhile.
async fn see_all_states(seen: &mut SeenSamples) {
    let moods = [
        ("cooling", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None }),
        ("breaking", Mood::ResetBeforeHead),
        ("stalling", Mood::Mute),
        ("credential", Mood::Refuses(SimulatedError::InvalidKey)),
        ("permission", Mood::Refuses(SimulatedError::PermissionDenied)),
        ("absent", Mood::Refuses(SimulatedError::DeploymentNotFound)),
    ];
    let standard = DeploymentKind::Standard { tokens_per_minute: 100_000, requests_per_minute: Some(1_000) };
    let provisioned = DeploymentKind::Provisioned { tokens_per_minute: 100_000, output_weight: 4 };
    let calm = [("standard", standard), ("provisioned", provisioned), ("drained", DeploymentKind::Unlimited)];
    let resources = calm.iter().map(|(name, kind)| instant_resource(name, *kind));
    let resources =
        resources.chain(moods.iter().map(|(name, _)| instant_resource(name, DeploymentKind::Unlimited)));
    let azure = Simulator::start(resources.collect()).await.unwrap();
    for (name, mood) in &moods {
        azure.set_mood(name, mood.clone());
    }
    let names = azure.resource_names();
    let mut entries: String = names
        .iter()
        .map(|name| {
            let both = if ["breaking", "standard"].contains(name) { ", both: gpt-4o" } else { "" };
            let deployments = format!("deployments: {{ {name}: gpt-4o{both} }}");
            simulated_backend_yaml(&azure, name, &deployments)
        })
        .collect();
    let nowhere = "http://no-such-host.invalid";
    entries += &backend_yaml("unresolvable", nowhere, "deployments: { nowhere: gpt-4o }");
    entries += &backend_yaml("disabled", nowhere, "enabled: false");
    let clients = format!(
        "clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n  - name: limited\n    keys: [ {{ sha256: {} }} ]\n    deployments: [ standard ]\n",
        sha256_hex(CLIENT_KEY),
        sha256_hex("limited-key")
    );
    let ingestion = LogIngestionService::start().await;
    let record =
        format!("record: {{ jsonl: {{ path: records.jsonl }}, {} }}", ingestion.log_analytics_yaml());
    let prices = "prices: { currency: USD, rows: [ { deployment: standard, input: 1000, output: 1000 } ] }";
    let traces = Collector::start().await.traces_yaml("");
    let extra = format!("retry: {{ outage: 0s }}\n{record}\n{prices}\n{traces}\n");
    let balancer = Arc::new(Balancer::start_with_clients(&entries, &clients, &extra).await);
    assert_eq!(balancer.post_admin("/api/backends/drained/drain").await.status, 200);
    for deployment in ["standard", "provisioned", "both", "both"] {
        assert_eq!(post(&balancer, deployment, CLIENT_KEY).await, 200);
    }
    for (deployment, key, status) in [
        ("standard", "wrong", 401),
        ("provisioned", "limited-key", 403),
        ("misspelt", CLIENT_KEY, 404),
        ("cooling", CLIENT_KEY, 429),
        ("cooling", CLIENT_KEY, 429),
    ] {
        assert_eq!(post(&balancer, deployment, key).await, status, "{deployment}");
    }
    assert_eq!(balancer.post("/elsewhere", &[("api-key", CLIENT_KEY)], b"{}").await.status, 404);
    for _ in 0..2 {
        let balancer = Arc::clone(&balancer);
        drop(tokio::spawn(async move { post(&balancer, "stalling", CLIENT_KEY).await }));
    }
    poll_within(STATES_TIMEOUT, "a backend was in each state", async || {
        for deployment in ["breaking", "credential", "permission", "absent", "standard"] {
            post(&balancer, deployment, CLIENT_KEY).await;
            seen.scrape(&balancer).await;
        }
        let has_state = |state: &str| seen.has_value("aoai_lb_backend_state", "state", state);
        let missing: Vec<&str> = ALL_STATES.into_iter().filter(|state| !has_state(state)).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    })
    .await;
}

/// What a balancer tells of a certificate and of a credential that has an end.
async fn see_expiries(seen: &mut SeenSamples) {
    let (azure, authority) = (start_simulator(&["a"]).await, generate_authority());
    let balancer = Balancer::start_with_tls(&authority, &all_backends_yaml(&azure), "").await;
    seen.scrape(&balancer).await;
    let platform = IdentityPlatform::start().await;
    platform.set_secret("a-key", "a-key");
    platform.set_secret_expiry_date("a-key", 4_000_000_000);
    let resource = AuthenticatedResource::start(&["a-key"], Some(&platform)).await;
    let entry = resource.backend_yaml("a", &format!("key_vault: '{}'", platform.secret_url("a-key")));
    let balancer = Balancer::start_with_environment(&platform.vm_environment(), &entry, "").await;
    seen.scrape(&balancer).await;
}

/// What a balancer tells of requests about objects.
async fn see_affinity(seen: &mut SeenSamples) {
    let traffic = AffinityTraffic::start().await;
    wait_until_async("requests are counted", async || {
        seen.scrape(&traffic.balancer).await;
        seen.has_value("aoai_lb_refusals_total", "code", "home_unavailable")
            && seen.has_label("aoai_lb_read_lag_seconds_bucket", "resource")
            && seen.has_value("aoai_lb_affinity_requests_total", "how", "asked")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_the_alerts_finds_what_it_asks_for() {
    let mut seen = SeenSamples::default();
    see_all_states(&mut seen).await;
    see_expiries(&mut seen).await;
    see_affinity(&mut seen).await;
    let rules = rules();
    let of_rules = rules.iter().map(|rule| text_of(rule, "expr").to_owned());
    let queries: Vec<String> = all_dashboard_queries().into_iter().chain(of_rules).collect();
    assert!(queries.len() > 60, "{queries:#?}");
    let unknown: Vec<_> = queries
        .iter()
        .filter_map(|query| {
            let unknown = unknown_parts(query, &seen);
            (!unknown.is_empty()).then_some((query, unknown))
        })
        .collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    // The check itself sees what does not exist.
    for (query, expected) in [
        ("aoai_lb_nothing > 0", "aoai_lb_nothing"),
        (r#"aoai_lb_backend_state{state="ok"}"#, r#"aoai_lb_backend_state: state="ok""#),
        (r#"aoai_lb_backend_state{state=~"failing|broken"}"#, r#"aoai_lb_backend_state: state="broken""#),
        (r#"aoai_lb_requests_total{code=~".*"}"#, "aoai_lb_requests_total: label code"),
        ("sum by (backend) (aoai_lb_in_flight)", "by backend"),
    ] {
        assert!(unknown_parts(query, &seen).contains(&expected.to_owned()), "{query}");
    }
}

#[test]
fn every_alert_says_what_it_means_and_what_to_do() {
    let label = Regex::new(r"\$labels\.([a-z_]+)").unwrap();
    let (recorded, alerts): (Vec<_>, Vec<_>) =
        rules().into_iter().partition(|rule| rule.get("record").is_some());
    let recorded: BTreeSet<_> = recorded.iter().map(|rule| text_of(rule, "record").to_owned()).collect();
    let recorded_name = Regex::new(r"\baoai_lb:[a-z0-9_:]+").unwrap();
    let grouping = Regex::new(r"\bby \(([^)]*)\)").unwrap();
    let mut names = BTreeSet::new();
    for alert in &alerts {
        let (name, expr) = (text_of(alert, "alert"), text_of(alert, "expr"));
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        assert!(["critical", "warning", "info"].contains(&text_of(&alert["labels"], "severity")), "{name}");
        let (summary, description) =
            (text_of(&alert["annotations"], "summary"), text_of(&alert["annotations"], "description"));
        assert!(description.len() > 60 && description.ends_with('.'), "{name}: {description}");
        for used in recorded_name.find_iter(expr) {
            assert!(recorded.contains(used.as_str()), "{name}: {}", used.as_str());
        }
        let groups: Vec<&str> =
            grouping.captures_iter(expr).map(|found| found.get(1).unwrap().as_str()).collect();
        for used in label.captures_iter(&format!("{summary}{description}")) {
            let is_left = |group: &&str| group.split(", ").any(|label| label == &used[1]);
            assert!(groups.iter().all(is_left), "{name}: {} is not left by {expr}", &used[1]);
        }
    }
    assert!(names.len() > 20, "{names:?}");
    let tested = fs::read_to_string(conf("prometheus/alerts_test.yml")).unwrap();
    let untested: Vec<_> =
        names.iter().filter(|name| !tested.contains(&format!("alertname=\"{name}\""))).collect();
    assert!(untested.is_empty(), "no test lets them fire: {untested:?}");
}

#[test]
fn promtool_accepts_the_rules_and_the_queries_of_the_dashboard() {
    // `make test` installs it; only a run of this test alone may be without.
    if Command::new("promtool").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "promtool is not installed");
        println!("NOT CHECKED: promtool is not installed; `sh .ci/packages test` installs it");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The queries of the dashboard, as rules.
    let queries = all_dashboard_queries().into_iter().filter(|query| !query.starts_with("label_values("));
    let rules: Vec<_> = queries
        .enumerate()
        .map(|(number, query)| {
            let variable = Regex::new(r"\$__(?:rate_interval|range)").unwrap();
            let query = variable.replace_all(&query, "5m").into_owned();
            serde_json::json!({ "record": format!("query:{number}"), "expr": query })
        })
        .collect();
    let file = serde_json::json!({ "groups": [ { "name": "dashboard", "rules": rules } ] });
    let queries_path = directory.path().join("queries.yml");
    fs::write(&queries_path, file.to_string()).unwrap();
    for (verb, path) in [
        ("check", &queries_path),
        ("check", &conf("prometheus/alerts.yml")),
        ("test", &conf("prometheus/alerts_test.yml")),
    ] {
        let output = Command::new("promtool").args([verb, "rules"]).arg(path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {verb} rules {}:\n{text}", path.display());
    }
}
