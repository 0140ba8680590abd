//! Limits of clients by cost, and the sums of costs that outlive the process.

use crate::limits::{answer, chat, clients};
use crate::shared_limits::Instances;
use crate::support;

use serde_json::{Value, json};
use support::redis_server::RedisServer;
use support::responses_upstream::{ResponsesUpstream, create};
use support::upstream::ScriptedUpstream;
use support::websocket::WebSocket;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, poll, wait_until,
    wait_until_async,
};

/// At these prices each response costs 0.2.
const PRICES: &str = "prices:
  currency: USD
  rows:
    - { deployment: gpt-4o, input: 1000, output: 5000 }
    - { model: m, input: 1000, output: 5000 }
";
/// In place of a block that would write records.
const NO_RECORDS: &str = "# no record: block\n";

async fn start(limits: &str, extra_yaml: &str) -> (ScriptedUpstream, Balancer) {
    let upstream = ScriptedUpstream::start(answer).await;
    let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
    let balancer =
        Balancer::start_with_clients(&backend, &clients(limits), &format!("{PRICES}{extra_yaml}")).await;
    (upstream, balancer)
}

async fn post_as(balancer: &Balancer, key: &str) -> Response {
    balancer.post(CHAT_TARGET, &[("api-key", key)], chat(&json!({})).as_bytes()).await
}

async fn post(balancer: &Balancer) -> Response {
    post_as(balancer, CLIENT_KEY).await
}

/// The limits of `team-a` in the status.
async fn limits_of(balancer: &Balancer) -> Value {
    balancer.status().await["limits"]["clients"][0]["limits"].clone()
}

#[track_caller]
fn expect_refusal(response: &Response, limit: &str) {
    assert_eq!(
        (response.status, &*response.error_code(), response.header("x-should-retry")),
        (429, "insufficient_quota", Some("false")),
        "{}",
        response.text()
    );
    let wait: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * 86_400 + 1).contains(&wait), "{wait}");
    assert!(response.text().contains(&format!("{limit} of team-a is reached")), "{}", response.text());
}

#[tokio::test]
async fn a_client_at_its_cost_limit_is_refused_and_another_one_is_not() {
    let (upstream, balancer) = start("cost_per_day: 1.05, cost_per_month: 50.000001", "").await;
    for _ in 0..5 {
        let response = post(&balancer).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let refused = post(&balancer).await;
    expect_refusal(&refused, "cost_per_day");
    let message = refused.text();
    assert!(
        message.contains("1.05 USD a day (UTC), and this request needs about 0.")
            && message.contains(" USD\""),
        "{message}"
    );
    assert_eq!(post_as(&balancer, "other").await.status, 200);
    assert_eq!(upstream.requests().len(), 6);
    let records = balancer.wait_for_records(7).await;
    let refused: Vec<_> = records.iter().filter(|record| record["status"] == 429).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((&refused[0]["limited_by"], &refused[0]["cost"]), (&json!("cost_per_day"), &Value::Null));
    let limit = |limit: &str, value: f64, used: f64, remaining: f64| json!({ "limit": limit, "value": value, "used": used, "remaining": remaining });
    let expected =
        json!([limit("cost_per_day", 1.05, 1.0, 0.05), limit("cost_per_month", 50.000_001, 1.0, 49.000_001)]);
    assert_eq!(limits_of(&balancer).await, expected);
    assert_eq!(balancer.status().await["limits"]["currency"], "USD");
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    for sample in [
        r#"aoai_lb_limit_refused_total{client="team-a",limit="cost_per_day"} 1"#,
        r#"aoai_lb_limit_remaining{client="team-a",limit="cost_per_day"} 0.05"#,
        r#"aoai_lb_limit_remaining{client="team-a",limit="cost_per_month"} 49.000001"#,
    ] {
        assert!(metrics.contains(sample), "{sample}\n{metrics}");
    }
}

#[tokio::test]
async fn costs_outlive_a_kill_an_upgrade_and_a_reload() {
    let (_upstream, mut balancer) = start("cost_per_day: 0.5, cost_per_month: 100", "").await;
    for _ in 0..2 {
        assert_eq!(post(&balancer).await.status, 200);
    }
    expect_refusal(&post(&balancer).await, "cost_per_day");
    let costs = async |balancer: &Balancer| balancer.status().await["costs"].clone();
    let expected = |today: &str| {
        let sum = json!({ "cost": today, "provisioned": 0, "without_cost": 0 });
        json!({ "currency": "USD", "not_saved": null, "clients": [{ "client": "team-a", "today": sum, "month": sum }] })
    };
    balancer.wait_for_records(3).await;
    assert_eq!(costs(&balancer).await, expected("0.4"));
    let is_saved = |file: &str| {
        let text = std::fs::read_to_string(balancer.path(file)).unwrap_or_default();
        text.contains(r#""day_costs":{"millionths":400000}"#)
    };
    wait_until("both are saved", || is_saved("state/budgets.log") && is_saved("state/costs.log")).await;
    balancer.send_signal("KILL");
    balancer.start_again().await;
    assert_eq!(costs(&balancer).await, expected("0.4"));
    expect_refusal(&post(&balancer).await, "cost_per_day");
    assert!(balancer.run_upgrade_command().await.status.success());
    balancer.wait_until_single_process().await;
    assert_eq!(costs(&balancer).await, expected("0.4"));
    expect_refusal(&post(&balancer).await, "cost_per_day");
    // What was used is not forgotten, and there is more now.
    balancer.replace_in_config("cost_per_day: 0.5", "cost_per_day: 0.7");
    let report = balancer.post_admin("/api/reload").await;
    assert_eq!(report.status, 200, "{}", report.text());
    assert_eq!(post(&balancer).await.status, 200);
    expect_refusal(&post(&balancer).await, "cost_per_day");
    assert_eq!(costs(&balancer).await, expected("0.6"));
}

#[tokio::test]
async fn a_cost_limit_of_a_deployment_counts_that_deployment_without_records_too() {
    let (_upstream, balancer) = start("deployments: { gpt-4o: { cost_per_day: 0.25 } }", NO_RECORDS).await;
    assert_eq!(post(&balancer).await.status, 200);
    wait_until_async("it is settled", async || limits_of(&balancer).await[0]["used"] == json!(0.2)).await;
    expect_refusal(&post(&balancer).await, "deployments.gpt-4o.cost_per_day");
    let other = CHAT_TARGET.replace("gpt-4o", "other");
    for _ in 0..3 {
        let response = balancer.post(&other, &[("api-key", CLIENT_KEY)], chat(&json!({})).as_bytes()).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(limits_of(&balancer).await[0]["used"], json!(0.2));
}

#[tokio::test]
async fn a_price_that_only_the_response_tells_counts_as_well() {
    // No row is about the deployment `other`: its responses name the model.
    let (_upstream, balancer) = start("cost_per_day: 0.5", "").await;
    let other = CHAT_TARGET.replace("gpt-4o", "other");
    let post = async || balancer.post(&other, &[("api-key", CLIENT_KEY)], chat(&json!({})).as_bytes()).await;
    for count in 1..=2 {
        assert_eq!(post().await.status, 200);
        balancer.wait_for_records(count).await;
    }
    // What the earlier ones have cost is expected of this one.
    expect_refusal(&post().await, "cost_per_day");
}

#[tokio::test]
async fn an_observed_cost_limit_is_counted_and_refuses_nothing() {
    let (_upstream, balancer) = start("cost_per_month: 0.3", "limits: { mode: observe }\n").await;
    for count in 1..=3 {
        assert_eq!(post(&balancer).await.status, 200);
        balancer.wait_for_records(count).await;
    }
    let records = balancer.wait_for_records(3).await;
    let limited_by: Vec<&Value> = records.iter().map(|record| &record["limited_by"]).collect();
    let name = json!("cost_per_month");
    assert_eq!(limited_by, [&Value::Null, &name, &name]);
    let limits = limits_of(&balancer).await;
    assert_eq!((&limits[0]["used"], &limits[0]["remaining"]), (&json!(0.6), &json!(0.0)), "{limits}");
}

#[tokio::test]
async fn what_a_provisioned_backend_answers_or_nobody_answers_costs_nothing() {
    let upstream = ScriptedUpstream::start(answer).await;
    let keys = format!("{LISTED_DEPLOYMENTS}\nprovisioned: {{ units: 100 }}");
    let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), &keys);
    let balancer = Balancer::start_with_clients(&backend, &clients("cost_per_day: 0.1"), PRICES).await;
    for count in 1..=3 {
        assert_eq!(post(&balancer).await.status, 200);
        balancer.wait_for_records(count).await;
    }
    assert_eq!(limits_of(&balancer).await[0]["used"], json!(0.0));
    // A request that the backend refuses is given back.
    let (_upstream, balancer) = start("cost_per_day: 0.25", "").await;
    for count in 1..=3 {
        let refused = chat(&json!({"user": "400"}));
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], refused.as_bytes()).await;
        assert_eq!(response.status, 400, "{}", response.text());
        balancer.wait_for_records(count).await;
    }
    assert_eq!(limits_of(&balancer).await[0]["used"], json!(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_turn_of_a_socket_costs() {
    let upstream = ResponsesUpstream::start("a").await;
    let backend = upstream.backend_yaml(LISTED_DEPLOYMENTS);
    // Its responses name the service tier. Each of them has 18 tokens.
    let prices = "prices:
  currency: USD
  rows:
    - { deployment: gpt-4o, input: 500, output: 500 }
    - { deployment: gpt-4o, service_tier: priority, input: 1000, output: 1000 }
";
    let balancer = Balancer::start_with_clients(&backend, &clients("cost_per_day: 0.055"), prices).await;
    let mut socket = WebSocket::open(&balancer).await;
    let fields = json!({"max_output_tokens": 5});
    let mut answered = 0_u32;
    let event = loop {
        let events = socket.turn(&create(&fields)).await;
        let last = events.last().unwrap().clone();
        if last["type"] == "error" {
            break last;
        }
        answered += 1;
        assert!(answered < 100, "nothing is refused");
        let expected = f64::from(18 * answered) / 1000.0;
        wait_until_async("the turn is settled", async || {
            let used = limits_of(&balancer).await[0]["used"].as_f64().unwrap();
            (used - expected).abs() < 1e-9
        })
        .await;
    };
    assert!(answered > 0);
    assert_eq!(
        (&event["status"], &event["error"]["code"]),
        (&json!(429), &json!("insufficient_quota")),
        "{event}"
    );
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_one_cost_limit() {
    let server = RedisServer::start(&[]).await;
    let yaml = server.shared_yaml("") + PRICES;
    let instances = Instances::start_with(server, 2, "cost_per_day: 2.05", &yaml).await;
    let mut answered = 0_u32;
    for balancer in &instances.balancers {
        for _ in 0..4 {
            let response = post(balancer).await;
            assert_eq!(response.status, 200, "{}", response.text());
            answered += 1;
        }
    }
    let wait_until_known = async |answered: u32| {
        let expected = f64::from(answered * 2) / 10.0;
        poll("both know what is used", async || {
            for balancer in &instances.balancers {
                let used = limits_of(balancer).await[0]["used"].as_f64().unwrap();
                if (used - expected).abs() > 1e-9 {
                    return Err(format!("{used} instead of {expected}"));
                }
            }
            Ok(())
        })
        .await;
    };
    wait_until_known(answered).await;
    // One of them uses up the rest, and the other one has nothing left.
    loop {
        let response = post(&instances.balancers[0]).await;
        if response.status != 200 {
            expect_refusal(&response, "cost_per_day");
            break;
        }
        answered += 1;
    }
    let alone = u32::try_from(instances.limited_alone().await).unwrap();
    assert!((9..=10 + alone).contains(&answered), "{answered}, {alone} alone");
    wait_until_known(answered).await;
    if answered >= 10 {
        expect_refusal(&post(&instances.balancers[1]).await, "cost_per_day");
    }
}
