//! The queue as operators see it: in the status, in metrics, in records and in recent trouble.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, Simulator};
use serde_json::{Value, json};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, Response, listed_backends_yaml, start_simulator,
    wait_until,
};

/// Two backends. One is throttled for longer than any test; the other one is free once its drain ends.
async fn start(queue: &str) -> (Simulator, Balancer) {
    let azure = start_simulator(&["a", "b"]).await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(60_000), retry_after: None });
    let balancer = Balancer::start(&listed_backends_yaml(&azure), queue).await;
    assert_eq!(balancer.post_admin("/api/backends/b/drain").await.status, 200);
    (azure, balancer)
}

async fn free_the_other_backend(balancer: &Balancer) {
    assert_eq!(balancer.post_admin("/api/backends/b/undrain").await.status, 200);
}

async fn post_of_class(balancer: &Balancer, class: &str) -> Response {
    let headers = [("api-key", CLIENT_KEY), ("x-aoai-lb-class", class)];
    balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await
}

async fn admin_get(balancer: &Balancer, target: &str) -> Response {
    Client::connect(balancer.admin_address).await.get(target, &[("Host", "localhost")]).await
}

/// The samples of the queue, without those of buckets and sums.
async fn queue_samples(balancer: &Balancer) -> Vec<String> {
    let text = admin_get(balancer, "/metrics").await.text();
    let samples = text.lines().filter_map(|line| line.strip_prefix("aoai_lb_queue_"));
    let mut samples: Vec<String> = samples
        .filter(|sample| !sample.contains("_bucket") && !sample.contains("_sum"))
        .map(str::to_owned)
        .collect();
    samples.sort();
    samples
}

fn queue_with(waiting: [u64; 3], lines: &Value) -> Value {
    let [interactive, standard, batch] = waiting;
    json!({
        "wait_ms": 50_000, "requests": 7, "body_memory": 1_048_576, "lines": lines,
        "waiting": { "interactive": interactive, "standard": standard, "batch": batch },
    })
}

async fn status_command(balancer: &Balancer, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let admin = format!("http://{}", balancer.admin_address);
    let output = command.args(["status", "--admin", &admin]).args(arguments).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn millis(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[tokio::test]
async fn requests_that_wait_are_told_everywhere_until_they_are_served() {
    let (_azure, balancer) = start("queue: { wait: 50s, requests: 7, body_memory: 1MiB }").await;
    let log = balancer.log();
    assert!(log.contains("queue: at most 7 requests wait for a free backend, each for at most 50s"), "{log}");
    assert_eq!(balancer.status().await["queue"], queue_with([0; 3], &json!([])));
    let depths = |batch, interactive, standard| {
        [("batch", batch), ("interactive", interactive), ("standard", standard)]
            .map(|(class, count): (&str, u64)| format!(r#"depth{{class="{class}"}} {count}"#))
    };
    assert_eq!(queue_samples(&balancer).await, depths(0, 0, 0));

    let throttled = async { balancer.post_chat().await };
    let batch = async {
        balancer
            .wait_for_status("the first waits", |status| status["queue"]["waiting"]["standard"] == 1)
            .await;
        post_of_class(&balancer, "batch").await
    };
    let observe = async {
        let lines = json!([{ "deployment": "gpt-4o", "waiting": 2 }]);
        let both = queue_with([0, 1, 1], &lines);
        balancer.wait_for_status("both wait", |status| status["queue"] == both).await;
        let both_wait_since = Instant::now();
        assert_eq!(queue_samples(&balancer).await, depths(1, 0, 1));
        let text = status_command(&balancer, &[]).await;
        assert!(text.contains("; in flight 2, in the queue 2, finished 0"), "{text}");
        let bounds =
            "in the queue: interactive 0, standard 1, batch 1; at most 7 requests, each for at most 50s";
        assert!(text.contains("QUEUE FOR  WAITING\ngpt-4o ") && text.contains(bounds), "{text}");
        let report: Value = serde_json::from_str(&status_command(&balancer, &["--json"]).await).unwrap();
        assert_eq!(report["queue"], both);
        wait_until("both have waited for more than a second", || {
            both_wait_since.elapsed() > Duration::from_millis(1_050)
        })
        .await;
        free_the_other_backend(&balancer).await;
    };
    let (throttled, batch, ()) = futures::join!(throttled, batch, observe);
    assert_eq!((throttled.status, batch.status), (200, 200));

    let records = balancer.wait_for_records(2).await;
    let record_of = |response: &Response| {
        let id = response.header("x-aoai-lb-request-id").unwrap();
        records.iter().find(|record| record["request_id"] == id).unwrap()
    };
    for (response, class, attempts) in [(&throttled, "standard", 2), (&batch, "batch", 1)] {
        let record = record_of(response);
        assert_eq!((&record["class"], &record["waited_ms"]), (&json!(class), &json!(0)), "{record:#}");
        assert_eq!(record["attempts"].as_array().unwrap().len(), attempts, "{record:#}");
        let queued = millis(&record["queued_ms"]);
        assert!((1_050..=millis(&record["duration_ms"])).contains(&queued), "{record:#}");
        let start = millis(&record["attempts"][attempts - 1]["start_ms"]);
        assert!(queued <= start + 1, "the attempt began after the wait: {record:#}");
    }
    let waits = ["batch", "standard"].map(|class| format!(r#"wait_seconds_count{{class="{class}"}} 1"#));
    assert_eq!(queue_samples(&balancer).await, [&depths(0, 0, 0)[..], &waits].concat());
    assert_eq!(balancer.status().await["queue"], queue_with([0; 3], &json!([])));
    let list = admin_get(&balancer, "/api/requests").await.json();
    for (response, trouble) in [(&throttled, "retried"), (&batch, "slow")] {
        let id = response.header("x-aoai-lb-request-id").unwrap();
        let entry = list["requests"].as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap();
        assert_eq!((&entry["trouble"], &entry["waited_ms"]), (&json!(trouble), &json!(0)), "{entry}");
        assert_eq!(entry["queued_ms"], record_of(response)["queued_ms"], "{entry}");
        if trouble == "slow" {
            let cause = entry["cause"].as_str().unwrap();
            assert!(cause.starts_with("waited ") && cause.ends_with(" s in the queue"), "{entry}");
        }
    }
}

#[tokio::test]
async fn a_queue_is_told_as_long_as_it_is_configured_and_a_wait_in_vain_is_recorded() {
    let (_azure, balancer) = start("").await;
    assert_eq!(balancer.status().await["queue"], Value::Null);
    assert_eq!(balancer.post_chat().await.status, 429, "that of the backend");
    let refused = balancer.post_chat().await;
    assert_eq!((refused.status, &*refused.error_code()), (429, "all_throttled"));
    for record in balancer.wait_for_records(2).await {
        assert_eq!((&record["queued_ms"], &record["waited_ms"]), (&json!(0), &json!(0)), "{record:#}");
    }
    assert_eq!(queue_samples(&balancer).await, [""; 0]);

    let file = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    balancer.write_config(&format!("{file}\nqueue: {{ wait: 300ms, requests: 7, body_memory: 1MiB }}\n"));
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.status().await["queue"]["wait_ms"], 300);
    assert_eq!(queue_samples(&balancer).await.len(), 3);
    let refused = balancer.post_chat().await;
    assert_eq!((refused.status, &*refused.error_code()), (429, "all_throttled"));
    let record = &balancer.wait_for_records(3).await[2];
    assert_eq!(
        (&record["refusal"], &record["waited_ms"]),
        (&json!("all_throttled"), &json!(0)),
        "{record:#}"
    );
    assert!((300..=millis(&record["duration_ms"])).contains(&millis(&record["queued_ms"])), "{record:#}");
    let waited = r#"wait_seconds_count{class="standard"} 1"#.to_owned();
    assert!(queue_samples(&balancer).await.contains(&waited));

    balancer.write_config(&file);
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.status().await["queue"], Value::Null);
    assert_eq!(queue_samples(&balancer).await, [waited], "what was counted stays");
}
