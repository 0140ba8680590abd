//! A balancer that has no file descriptor left: what is open goes on, no backend is blamed, and it recovers.

use crate::support;

use std::time::Duration;

use aoai_lb::demo::{Mood, Simulator};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, Response, STREAM_BODY, listed_backends_yaml,
    start_simulator,
};

/// Fewer than the balancer has open, so that it gets no further descriptor.
const NO_FURTHER_FILES: u64 = 10;
const LONG_OUTAGE: &str = "retry: { outage: 30s }\nbreaker: { failures: 1, ratio: 1% }";

/// Limits the open files of the balancer; `None` is what it had at the start.
fn limit_open_files(balancer: &Balancer, limit: Option<u64>) {
    let pid = Pid::from_raw(balancer.pid().cast_signed());
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: limit.or(maximum), maximum }).unwrap();
}

/// A connection that the balancer has accepted.
async fn connect_and_wait(balancer: &Balancer) -> Client {
    let mut client = balancer.connect().await;
    assert!(client.get_is_ok("/healthz").await);
    client
}

async fn post_chat(client: &mut Client) -> Response {
    client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await
}

async fn start(extra_yaml: &str) -> (Simulator, Balancer) {
    let azure = start_simulator(&["a", "b"]).await;
    for name in ["a", "b"] {
        azure.set_mood(name, Mood::Drip(Duration::from_millis(50)));
    }
    let balancer = Balancer::start(&listed_backends_yaml(&azure), extra_yaml).await;
    (azure, balancer)
}

async fn assert_no_backend_is_blamed(balancer: &Balancer) {
    let healthy = |name: &str| (name.to_owned(), "healthy".to_owned());
    assert_eq!(balancer.backend_states().await, [healthy("a"), healthy("b")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_streams_go_on_and_a_request_waits_until_there_are_some() {
    let (_azure, balancer) = start(LONG_OUTAGE).await;
    let mut streaming = connect_and_wait(&balancer).await;
    let mut waiting = connect_and_wait(&balancer).await;
    streaming.send_chat(STREAM_BODY).await;
    assert_eq!(streaming.read_response_head().await.unwrap().status, 200);
    limit_open_files(&balancer, Some(NO_FURTHER_FILES));
    // The kernel accepts these, and the balancer cannot.
    let mut accepted_late = balancer.connect().await;
    waiting.send_chat(CHAT_BODY).await;
    balancer.wait_for_log("too many open files").await;
    let mut events = 0;
    while streaming.read_chunk().await.is_some_and(|chunk| !chunk.is_empty()) {
        events += 1;
    }
    assert!(events > 3, "{events} events");
    limit_open_files(&balancer, None);
    assert_eq!(waiting.read_response().await.status, 200);
    assert_eq!(post_chat(&mut accepted_late).await.status, 200);
    let records = balancer.wait_for_records(3).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered"), "{records:#?}");
    assert!(records.iter().any(|record| record["attempts"][0]["error"] == "local_shortage"), "{records:#?}");
    assert_no_backend_is_blamed(&balancer).await;
    let log = balancer.log();
    assert_eq!(log.matches("cannot connect to backends").count(), 1, "{log}");
    assert!(log.matches("cannot accept a connection").count() <= 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_gets_no_descriptor_in_time_is_refused_as_overload() {
    let (_azure, balancer) = start("retry: { outage: 0s }\nbreaker: { failures: 1, ratio: 1% }").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(connect_and_wait(&balancer).await);
    }
    let mut last = clients.pop().unwrap();
    limit_open_files(&balancer, Some(NO_FURTHER_FILES));
    for client in &mut clients {
        let response = post_chat(client).await;
        assert_eq!((response.status, response.error_code().as_str()), (503, "overloaded"));
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    limit_open_files(&balancer, None);
    assert_eq!(post_chat(&mut last).await.status, 200);
    assert_no_backend_is_blamed(&balancer).await;
}
