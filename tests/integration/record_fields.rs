//! Fields of the record that say whose request it was and where its time went.

use crate::support;

use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, SimulatedError};
use serde_json::{Value, json};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, backend_yaml, free_port,
    simulated_backend_yaml, start_simulator, wait_until,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn throttled(ms: u64) -> Mood {
    Mood::Throttled { retry_after_ms: Some(ms), retry_after: None }
}

async fn last_record(balancer: &Balancer, count: usize) -> Value {
    balancer.wait_for_records(count).await.pop().unwrap()
}

fn millis(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[tokio::test]
async fn records_have_the_ids_and_the_program_that_the_client_tells() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let traceparent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let long = "z".repeat(1_000);
    type Case<'a> = (Vec<(&'a str, &'a str)>, [Option<&'a str>; 3]);
    let cases: [Case<'_>; 4] = [
        (
            vec![
                ("x-request-id", "proxy"),
                ("x-ms-client-request-id", "azure"),
                ("User-Agent", "OpenAI/Python \"x\""),
                ("traceparent", &traceparent),
            ],
            [Some("azure"), Some("OpenAI/Python \"x\""), Some(TRACE_ID)],
        ),
        (
            vec![("X-Client-Request-Id", &long), ("User-Agent", "caf\u{e9}"), ("traceparent", TRACE_ID)],
            [Some(&long[..256]), Some("caf\\xc3\\xa9"), None],
        ),
        (vec![("x-request-id", "proxy")], [Some("proxy"), None, None]),
        (vec![], [None; 3]),
    ];
    let mut count = 0;
    // Served, refused for its key, and refused for its path.
    for (target, key, status) in
        [(CHAT_TARGET, CLIENT_KEY, 200), (CHAT_TARGET, "wrong", 401), ("/openai/%2e", CLIENT_KEY, 400)]
    {
        for (headers, expected) in &cases {
            let headers = [&[("api-key", key)][..], headers].concat();
            let response = balancer.post(target, &headers, CHAT_BODY.as_bytes()).await;
            assert_eq!(response.status, status);
            count += 1;
            let record = last_record(&balancer, count).await;
            let told = ["client_request_id", "user_agent", "trace_id"].map(|name| record[name].as_str());
            assert_eq!(&told, expected, "{status} {record:#}");
            assert_eq!(record["request_id"].as_str(), response.header("x-aoai-lb-request-id"));
            assert_eq!(record["waited_ms"], 0, "{record:#}");
        }
    }
}

#[tokio::test]
async fn records_tell_when_each_attempt_began_and_its_backend_answered() {
    let azure = start_simulator(&["a"]).await;
    let closed = backend_yaml("closed", &format!("http://127.0.0.1:{}", free_port()), "tier: 1");
    let backends = closed + &simulated_backend_yaml(&azure, "a", "tier: 2");
    let balancer = Balancer::start(&backends, "retry: { wait: 5s }").await;
    let slow = Mood::SlowFirstByte(Duration::from_millis(80));
    let unavailable = Mood::Refuses(SimulatedError::Unavailable);
    azure.set_mood(
        "a",
        Mood::Sequence(vec![throttled(150), slow, Mood::ResetBeforeHead, unavailable, Mood::Calm]),
    );
    assert_eq!(balancer.post_chat().await.status, 200);
    let record = last_record(&balancer, 1).await;
    let attempts = record["attempts"].as_array().unwrap();
    let facts: Vec<_> = attempts.iter().map(|attempt| (&attempt["backend"], &attempt["status"])).collect();
    assert_eq!(
        facts,
        [(&json!("closed"), &Value::Null), (&json!("a"), &json!(429)), (&json!("a"), &json!(200))],
        "{record:#}"
    );
    assert_eq!(attempts[0]["first_byte_ms"], Value::Null, "nothing came: {record:#}");
    let waited = millis(&record["waited_ms"]);
    // The cooldown is counted from the 429, a moment before the wait begins; and all are cut to milliseconds.
    assert!((120..5_000).contains(&waited), "{record:#}");
    let [first, second, third] = [0, 1, 2].map(|index| millis(&attempts[index]["start_ms"]));
    assert!(first <= second && second + waited <= third + 1, "{record:#}");
    for attempt in &attempts[1..] {
        assert!(millis(&attempt["first_byte_ms"]) <= millis(&attempt["ms"]), "{record:#}");
    }
    assert!(millis(&attempts[2]["first_byte_ms"]) >= 80, "{record:#}");
    assert!(third + millis(&attempts[2]["first_byte_ms"]) <= millis(&record["duration_ms"]), "{record:#}");

    // Another round over what has failed is a wait as well.
    assert_eq!(balancer.post_chat().await.status, 200);
    let record = last_record(&balancer, 2).await;
    let attempts = record["attempts"].as_array().unwrap();
    let reset = attempts.iter().find(|attempt| attempt["error"] == "reset").unwrap();
    assert_eq!((&reset["first_byte_ms"], &reset["status"]), (&Value::Null, &Value::Null), "{record:#}");
    assert!(millis(&record["waited_ms"]) > 0 && attempts.len() > 3, "{record:#}");
}

#[tokio::test]
async fn a_wait_that_its_client_does_not_live_to_see_is_recorded() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "retry: { wait: 60s }").await;
    azure.set_mood("a", throttled(30_000));
    let mut client = balancer.connect().await;
    client.send_chat(CHAT_BODY).await;
    wait_until("the request reaches the backend", || azure.request_count("a") == 1).await;
    let answered_at = Instant::now();
    wait_until("the request has waited for a while", || answered_at.elapsed() > Duration::from_millis(100))
        .await;
    drop(client);
    let record = last_record(&balancer, 1).await;
    assert_eq!((&record["outcome"], &record["status"]), (&json!("client_gone"), &Value::Null), "{record:#}");
    assert!((50..30_000).contains(&millis(&record["waited_ms"])), "{record:#}");
}
