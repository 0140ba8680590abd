//! Storms: whatever one client does, the requests, streams and WebSockets of another succeed, and its
//! records are complete.

use crate::support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aoai_lb::demo::{Mood, SimulatedError, Simulator};
use support::traffic::BackgroundTraffic;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY, listed_backends_yaml, poll,
    sha256_hex, start_simulator, wait_until,
};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The key of the client that storms.
const STORM_KEY: &str = "key-of-storm";
const STORM_WORKERS: usize = 8;
/// Between two actions of a task, so that a storm does not simply take all of the processor.
const STORM_PAUSE: Duration = Duration::from_millis(20);
/// How long an upload takes at most until it stalls.
const UPLOAD_TIME: Duration = Duration::from_secs(1);
/// The other client's requests during a storm.
const CALM_REQUESTS: usize = 300;
/// The least that a storm does meanwhile.
const MIN_STORM_ACTIONS: usize = 40;
/// The deployment that only the storm asks for.
const STORM_TARGET: &str = "/openai/deployments/other/chat/completions?api-version=2024-10-21";

/// Runs `action` in many tasks while another client sends requests, streams and WebSocket messages, and
/// checks that all of those succeed and are recorded with their prompt. Each task keeps what its actions
/// return.
async fn check_that_others_are_served<T: Send + 'static>(
    azure: &Simulator,
    extra_yaml: &str,
    max_kept: usize,
    action: impl AsyncAction<T>,
) -> Balancer {
    let clients: String = [("team-a", CLIENT_KEY), ("storm", STORM_KEY)]
        .map(|(name, key)| format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(key)))
        .concat();
    let balancer = Balancer::start_with_clients(
        &listed_backends_yaml(azure),
        &format!("clients:\n{clients}"),
        extra_yaml,
    )
    .await;
    let traffic = BackgroundTraffic::start(balancer.address);
    let actions = Arc::<AtomicUsize>::default();
    let mut storm = JoinSet::new();
    for _ in 0..STORM_WORKERS {
        let (action, actions, address) = (action.clone(), Arc::clone(&actions), balancer.address);
        storm.spawn(async move {
            let mut kept = std::collections::VecDeque::new();
            loop {
                kept.push_back(action.run(address).await);
                actions.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(STORM_PAUSE).await;
                if kept.len() > max_kept / STORM_WORKERS {
                    kept.pop_front();
                }
            }
        });
    }
    poll("the storm has raged for a while", async || {
        let counts = (traffic.started_requests(), actions.load(Ordering::Relaxed));
        if counts.0 >= CALM_REQUESTS && counts.1 >= MIN_STORM_ACTIONS { Ok(()) } else { Err(counts) }
    })
    .await;
    let counts = traffic.stop().await;
    storm.shutdown().await;
    assert!(counts.failures.is_empty(), "{:?}\n{}", counts.failures, balancer.log());
    assert!(counts.requests > 0 && counts.streams > 0 && counts.websockets > 0);
    wait_until("the records of the other client are written", || {
        let records = balancer.records();
        let of_others = records.iter().filter(|record| record["client"] == "team-a");
        let with_prompt =
            of_others.filter(|record| record["outcome"] == "answered" && !record["prompt"].is_null());
        with_prompt.count() >= counts.requests + counts.streams
    })
    .await;
    balancer
}

/// What each task of a storm does again and again.
trait AsyncAction<T>: Clone + Send + Sync + 'static {
    fn run(&self, address: SocketAddr) -> impl Future<Output = T> + Send;
}

impl<T, F, R> AsyncAction<T> for F
where
    F: Fn(SocketAddr) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = T> + Send,
{
    fn run(&self, address: SocketAddr) -> impl Future<Output = T> + Send {
        self(address)
    }
}

/// Sends these bytes on a connection of another address than that of the other client.
async fn send_from_elsewhere(address: SocketAddr, bytes: &[u8]) -> Option<Client> {
    let mut client = connect_from_elsewhere(address).await?;
    client.try_send(bytes).await.then_some(client)
}

async fn connect_from_elsewhere(address: SocketAddr) -> Option<Client> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Some(Client::from_stream(socket.connect(address).await.ok()?))
}

fn storm_request(target: &str, body: &str) -> Vec<u8> {
    let headers = [("api-key", STORM_KEY), ("Content-Length", &body.len().to_string())];
    (Client::request_head("POST", target, &headers) + body).into_bytes()
}

/// Sends a whole request and reads the response.
async fn storm_exchange(address: SocketAddr, target: &'static str) -> Option<u16> {
    let mut client = send_from_elsewhere(address, &storm_request(target, CHAT_BODY)).await?;
    Some(client.read_response_head().await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_backends_reject_for_what_they_ask_do_not_disturb_others() {
    let moods = [
        Mood::Refuses(SimulatedError::InvalidKey),
        Mood::Refuses(SimulatedError::PermissionDenied),
        Mood::Refuses(SimulatedError::DeploymentNotFound),
        Mood::Refuses(SimulatedError::ServerError),
        Mood::HighDemand,
        Mood::Throttled { retry_after_ms: None, retry_after: Some("20".to_owned()) },
    ];
    for mood in moods {
        let azure = start_simulator(&["a", "b"]).await;
        for name in ["a", "b"] {
            let moods_by_deployment = HashMap::from([("other".to_owned(), mood.clone())]);
            let mood = Mood::PerDeployment { moods_by_deployment, default_mood: Box::new(Mood::Calm) };
            azure.set_mood(name, mood);
        }
        println!("{mood:?}");
        check_that_others_are_served(&azure, "retry: { outage: 0s }", 0, |address| {
            storm_exchange(address, STORM_TARGET)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_malformed_connections_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    check_that_others_are_served(&azure, "", 200, |address| async move {
        let silent = send_from_elsewhere(address, b"").await;
        let unfinished =
            send_from_elsewhere(address, b"POST /openai/v1/chat/completions HTTP/1.1\r\nA: ").await;
        let _ = send_from_elsewhere(address, b"\x16\x03\x01 no TLS here\r\n\r\n").await;
        let _ = storm_exchange(address, "/openai/..%2f").await;
        let mut wrong_key = send_from_elsewhere(
            address,
            Client::request_head("GET", "/openai/models", &[("api-key", "wrong")]).as_bytes(),
        )
        .await;
        if let Some(client) = &mut wrong_key {
            let _ = client.read_response_head().await;
        }
        (silent, unfinished)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_not_read_or_broken_off_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    check_that_others_are_served(&azure, "", 100, |address| async move {
        let unread = send_from_elsewhere(address, &storm_request(STORM_TARGET, STREAM_BODY)).await;
        if let Some(mut broken_off) =
            send_from_elsewhere(address, &storm_request(STORM_TARGET, STREAM_BODY)).await
        {
            let _ = broken_off.read_response_head().await;
        }
        unread
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    let extra_yaml = "requests: { max_body: 1MiB, body_memory: 4MiB, max_streamed_body: 1MiB }";
    check_that_others_are_served(&azure, extra_yaml, 100, |address| async move {
        let headers = [("api-key", STORM_KEY), ("Content-Length", "400000")];
        let head = Client::request_head("POST", CHAT_TARGET, &headers).into_bytes();
        let mut client = connect_from_elsewhere(address).await?;
        // The balancer need not read it while there is no memory for it.
        let _ = timeout(UPLOAD_TIME, client.try_send(&[head, vec![b' '; 390_000]].concat())).await;
        Some(client)
    })
    .await;
}
