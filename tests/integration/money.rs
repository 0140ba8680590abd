//! What responses cost: in records, metrics, status and the report of `aoai-lb usage --cost`; and why a lower tier has
//! answered.

use crate::support;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use aoai_lb::demo::{DeploymentKind, Mood, SimulatedResource, Simulator};
use serde_json::{Value, json};
use support::upstream::{ScriptedUpstream, complete_response};
use support::yaml::backend_yaml;
use support::{
    Balancer, CLIENT_KEY, Client, Response, all_backends_yaml, simulated_backend_yaml, start_simulator,
};

const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";
const EMBEDDINGS: &str = "/openai/v1/embeddings";
const IMAGES: &str = "/openai/v1/images/generations";

async fn post(balancer: &Balancer, target: &str, body: &Value) -> Response {
    let headers = [("api-key", CLIENT_KEY), ("Content-Type", "application/json")];
    balancer.post(target, &headers, body.to_string().as_bytes()).await
}

/// A simulated resource with these deployments of models.
fn resource(name: &str, models: &[&str]) -> SimulatedResource {
    let resource = SimulatedResource::new(name).with_api_key(format!("{name}-key"));
    models
        .iter()
        .fold(resource, |resource, model| resource.with_deployment(*model, *model, DeploymentKind::Unlimited))
}

fn count(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_default()
}

/// Millionths of a decimal number, as a record has it.
fn millionths(number: &Value) -> u64 {
    (number.as_f64().unwrap_or_else(|| panic!("{number} is not a number")) * 1e6).round() as u64
}

/// The cost of a record's tokens at these rates in millionths of the currency for a million tokens: plain, cached and
/// written input, output.
fn expected_cost(record: &Value, [input, cached, written, output]: [u64; 4]) -> u64 {
    let cached_tokens = count(record, "cached_tokens");
    let written_tokens = count(record, "cache_write_tokens");
    let plain_tokens = count(record, "input_tokens") - cached_tokens - written_tokens;
    let exact = plain_tokens * input
        + cached_tokens * cached
        + written_tokens * written
        + count(record, "output_tokens") * output;
    (exact + 500_000) / 1_000_000
}

/// `usage --format csv` with these options, over the records of a balancer.
fn usage(balancer: &Balancer, options: &[&str]) -> String {
    let records = balancer.path("records.jsonl").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["usage", "--format", "csv", &records]).args(options).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_have_the_cost_of_every_kind_of_response() {
    const SOL: &str = "gpt-5.6-sol";
    let models = [SOL, "gpt-4o", "text-embedding-3-small"];
    let azure = Simulator::start(vec![resource("a", &models)]).await.unwrap();
    let prices = "prices:
  currency: USD
  rows:
    - { deployment: gpt-5.6-sol, input: 5, cached: 0.5, cache_write: 6.25, output: 30 }
    - { deployment: gpt-5.6-sol, service_tier: flex, input: 2.5, cached: 0.25, cache_write: 3.125, output: 15 }
    - { model: text-embedding-3-small, input: 0.02 }
";
    let balancer = Balancer::start(&all_backends_yaml(&azure), prices).await;
    let words: String = (0..1000).map(|index| format!("w{index} ")).collect();
    let chat = |more: Value| {
        let messages = json!([{"role": "system", "content": words}, {"role": "user", "content": "hi"}]);
        let mut body = json!({"model": SOL, "messages": messages});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    const STANDARD: [u64; 4] = [5_000_000, 500_000, 6_250_000, 30_000_000];
    const FLEX: [u64; 4] = [2_500_000, 250_000, 3_125_000, 15_000_000];
    const EMBEDDING: [u64; 4] = [20_000, 20_000, 20_000, 0];
    let cases = [
        (CHAT, chat(json!({})), Some(STANDARD)),
        (CHAT, chat(json!({"stream": true})), Some(STANDARD)),
        (CHAT, chat(json!({"service_tier": "flex"})), Some(FLEX)),
        // A tier without a row has no price.
        (CHAT, chat(json!({"service_tier": "priority"})), None),
        (RESPONSES, json!({"model": SOL, "input": words}), Some(STANDARD)),
        (RESPONSES, json!({"model": SOL, "input": words, "stream": true}), Some(STANDARD)),
        (EMBEDDINGS, json!({"model": "text-embedding-3-small", "input": words}), Some(EMBEDDING)),
        (CHAT, json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}), None),
        (CHAT, json!({"model": "unknown", "messages": [{"role": "user", "content": "hi"}]}), None),
    ];
    for (target, body, _) in &cases {
        post(&balancer, target, body).await;
    }
    let records = balancer.wait_for_records(cases.len()).await;
    let mut sum = 0;
    for (record, (target, body, rates)) in records.iter().zip(&cases) {
        let expected = rates.map(|rates| expected_cost(record, rates));
        let cost = (!record["cost"].is_null()).then(|| millionths(&record["cost"]));
        assert_eq!(cost, expected, "{target} {}: {record:#}", body["stream"]);
        assert!(expected.is_none_or(|cost| cost > 0), "{record:#}");
        sum += expected.unwrap_or_default();
    }
    assert!(records.iter().any(|record| count(record, "cached_tokens") > 0));
    assert!(records.iter().any(|record| count(record, "cache_write_tokens") > 0));

    // The report is the sum of the records, as are status and metrics.
    let csv = usage(&balancer, &["--cost", "--by", "client"]);
    let mut lines = csv.lines();
    assert_eq!(
        lines.next().unwrap(),
        "client,requests,input,output,cached,reasoning,total,cost,without_cost,cache_write"
    );
    let row: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!((row[0], row[1], row[8]), ("team-a", "9", "2"), "{csv}");
    assert_eq!(millionths(&row[7].parse().unwrap()), sum, "{csv}");
    let by_tier = usage(&balancer, &["--cost", "--by", "tier"]);
    assert!(by_tier.lines().any(|line| line.starts_with("flex,1,")), "{by_tier}");
    let status = balancer.status().await;
    let costs = &status["costs"];
    assert_eq!((&costs["currency"], &costs["clients"][0]["client"]), (&json!("USD"), &json!("team-a")));
    let month: Value = serde_json::from_str(costs["clients"][0]["month"]["cost"].as_str().unwrap()).unwrap();
    assert_eq!(
        (millionths(&month), &costs["clients"][0]["month"]["without_cost"]),
        (sum, &json!(2)),
        "{costs:#}"
    );
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    assert!(
        metrics.contains("aoai_lb_cost_unknown_total{client=\"team-a\",deployment=\"gpt-4o\"} 1"),
        "{metrics}"
    );
    let costs_of = |prefix: &str| {
        let samples = metrics.lines().filter_map(|line| line.strip_prefix(prefix));
        samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum::<f64>()
    };
    assert_eq!((costs_of("aoai_lb_cost_total{client=\"team-a\"") * 1e6).round() as u64, sum);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_billed_one_by_one_in_bodies_of_any_length() {
    // Of three such images, no record keeps the whole body.
    let lengths = [1_000, 6 << 20];
    let upstream = ScriptedUpstream::start(move |request| {
        let request: Value = serde_json::from_slice(&request.body).unwrap();
        let data = "A".repeat(request["n"].as_u64().unwrap() as usize);
        let body =
            json!({"created": 1, "data": [{"b64_json": data}, {"b64_json": data}, {"b64_json": data}]});
        complete_response(200, "Content-Type: application/json", &body.to_string())
    })
    .await;
    let entry =
        backend_yaml("a", &format!("http://{}", upstream.address), "deployments: { dall-e-3: dall-e-3 }");
    let prices = "prices: { currency: USD, rows: [ { deployment: dall-e-3, per_image: 0.04 } ] }";
    let balancer = Balancer::start(&entry, prices).await;
    for length in lengths {
        let response =
            post(&balancer, IMAGES, &json!({"model": "dall-e-3", "prompt": "x", "n": length})).await;
        assert_eq!(response.status, 200);
    }
    for record in balancer.wait_for_records(lengths.len()).await {
        assert_eq!((&record["cost"], &record["outcome"]), (&json!(0.12), &json!("answered")), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_prices_there_is_no_cost_and_a_reload_reads_them_again() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let chat = async || assert_eq!(balancer.post_chat().await.status, 200);
    let write_prices = |rows: &str| std::fs::write(balancer.path("prices.yaml"), rows).unwrap();
    chat().await;
    assert_eq!(balancer.wait_for_records(1).await[0]["cost"], Value::Null);
    assert_eq!(balancer.status().await["costs"], Value::Null);

    write_prices("currency: USD\nrows: [ { deployment: GPT-4o, input: 1000, output: 1000 } ]\n");
    balancer.replace_in_config("clients:", "prices: { file: prices.yaml }\nclients:");
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    chat().await;
    let record = balancer.wait_for_records(2).await.pop().unwrap();
    assert_eq!(millionths(&record["cost"]), count(&record, "total_tokens") * 1000, "{record:#}");

    // An invalid file changes nothing.
    write_prices("currency: USD\nrows: [ { deployment: gpt-4o, input: -1 } ]\n");
    let refused = balancer.post_admin("/api/reload").await.text();
    assert!(refused.contains("prices.yaml:2: error: rows[0].input: must be a number from 0"), "{refused}");
    // A row that has not begun does not apply.
    write_prices(
        "currency: EUR\nrows:\n  - { deployment: gpt-4o, input: 2000, output: 2000 }\n  - { deployment: gpt-4o, from: 2999-01-01, input: 1, output: 1 }\n",
    );
    let report = balancer.post_admin("/api/reload").await.text();
    assert!(report.contains("prices.currency") && report.contains("prices.rows"), "{report}");
    chat().await;
    let record = balancer.wait_for_records(3).await.pop().unwrap();
    assert_eq!(millionths(&record["cost"]), count(&record, "total_tokens") * 2000, "{record:#}");
    assert_eq!(balancer.status().await["costs"]["currency"], "EUR");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provisioned_backend_answers_costs_a_share_and_what_leaves_it_says_why() {
    let azure = start_simulator(&["ptu", "paid"]).await;
    let backends = simulated_backend_yaml(&azure, "ptu", "tier: 1\nprovisioned: { cost_per_hour: 10 }")
        + &simulated_backend_yaml(&azure, "paid", "tier: 2");
    let prices = "prices: { currency: USD, rows: [ { deployment: gpt-4o, input: 1000, output: 1000 } ] }\nretry: { wait: 0s }";
    let balancer = Balancer::start(&backends, prices).await;
    let mut records = 0;
    let mut last_record = async || {
        assert_eq!(balancer.post_chat().await.status, 200);
        records += 1;
        balancer.wait_for_records(records).await.pop().unwrap()
    };
    let told =
        |record: &Value| (record["backend"].clone(), record["spilled"].clone(), record["cost"].is_null());
    assert_eq!(told(&last_record().await), (json!("ptu"), Value::Null, true));

    azure.set_mood("ptu", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    // The request that is refused, and one that comes while the deployment cools down.
    for _ in 0..2 {
        assert_eq!(told(&last_record().await), (json!("paid"), json!("throttled"), false));
    }
    assert_eq!(balancer.post_admin("/api/backends/ptu/drain").await.status, 200);
    assert_eq!(told(&last_record().await), (json!("paid"), json!("drained"), false));

    let config = balancer.path("aoai-lb.yaml").display().to_string();
    let csv = usage(&balancer, &["--cost", "--by", "backend", "-c", &config]);
    let row = |backend: &str| {
        csv.lines().find(|line| line.starts_with(backend)).unwrap().split(',').collect::<Vec<_>>()
    };
    assert_eq!(
        csv.lines().next().unwrap(),
        "backend,requests,input,output,cached,reasoning,total,cost,provisioned,without_cost"
    );
    let (ptu, paid) = (row("ptu,"), row("paid,"));
    assert_eq!((ptu[7], ptu[9], paid[8], paid[9]), ("0", "0", "0", "0"), "{csv}");
    // Nobody else has used it today: it pays for all hours of the day until now.
    let share: f64 = ptu[8].parse().unwrap();
    assert!((0.0..=240.0).contains(&share), "{csv}");
    let csv = usage(&balancer, &["--spill", "-c", &config]);
    let rows: Vec<&str> = csv.lines().collect();
    assert!(
        rows[0].starts_with("deployment,spilled,backend,requests,") && rows[0].ends_with(",provisioned_load"),
        "{csv}"
    );
    assert!(rows[1].starts_with("gpt-4o,throttled,paid,2,"), "{csv}");
    assert!(rows[2].starts_with("gpt-4o,drained,paid,1,"), "{csv}");
    assert_eq!(rows.len(), 3, "{csv}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_response_costs_once_in_the_record_that_shows_its_end() {
    let polls = AtomicUsize::new(0);
    let upstream = ScriptedUpstream::start(move |request| {
        let state = match () {
            () if request.head.starts_with("POST") => r#""status":"queued","usage":null"#,
            () if polls.fetch_add(1, Ordering::Relaxed) == 0 => r#""status":"in_progress","usage":null"#,
            () => {
                r#""status":"completed","usage":{"input_tokens":100,"output_tokens":50,"total_tokens":150}"#
            }
        };
        let body = format!(r#"{{"id":"resp_1","object":"response","model":"m","output":[],{state}}}"#);
        complete_response(200, "Content-Type: application/json", &body)
    })
    .await;
    // Only the request that makes the response names the deployment.
    let prices = "prices: { currency: USD, rows: [ { deployment: d, input: 1000, output: 1000 } ] }\n";
    let balancer = Balancer::start(&upstream.backend_yaml("a"), prices).await;
    let created = post(&balancer, RESPONSES, &json!({"model": "d", "input": "x", "background": true})).await;
    assert_eq!(created.status, 200, "{}", created.text());
    let key = [("api-key", CLIENT_KEY)];
    for _ in 0..3 {
        assert_eq!(balancer.connect().await.get(&format!("{RESPONSES}/resp_1"), &key).await.status, 200);
    }
    let records = balancer.wait_for_records(4).await;
    let costs: Vec<_> = records.iter().map(|record| record["cost"].as_f64()).collect();
    assert_eq!(costs, [None, None, Some(0.15), None]);
    assert!(records.iter().all(|record| record["usage_missing"].is_null()), "{records:#?}");
    let csv = usage(&balancer, &["--cost", "--by", "client"]);
    assert!(csv.ends_with("\nteam-a,4,100,50,0,0,150,0.15,0\n"), "{csv}");
    let month = &balancer.status().await["costs"]["clients"][0]["month"];
    assert_eq!(month, &json!({ "cost": "0.15", "provisioned": 0, "without_cost": 0 }));
}
