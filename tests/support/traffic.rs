//! Constant load in the background: short requests on reused connections, streams, and conversations
//! over WebSockets. Every request must succeed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::websocket::{UPGRADE_HEADERS, client_text_frame, try_read_frame};
use super::{CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY};

/// What the load has done.
#[derive(Debug, Default)]
pub struct TrafficCounts {
    pub requests: usize,
    pub streams: usize,
    pub websockets: usize,
    /// Responses that came over the WebSockets.
    pub turns: usize,
    pub failures: Vec<String>,
}

impl TrafficCounts {
    /// How many records it has left.
    pub fn records(&self) -> usize {
        self.requests + self.streams + self.websockets + self.turns
    }
}

/// Load that runs until it is stopped.
pub struct BackgroundTraffic {
    stop: Arc<AtomicBool>,
    started_requests: Arc<AtomicUsize>,
    workers: JoinSet<TrafficCounts>,
}

impl BackgroundTraffic {
    /// Starts the load. The balancer must serve the deployment `gpt-4o` to `team-a`.
    pub fn start(address: SocketAddr) -> Self {
        let (stop, started_requests) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let mut workers = JoinSet::new();
        for number in 0..4 {
            workers.spawn(send_short_requests(
                address,
                number,
                Arc::clone(&stop),
                Arc::clone(&started_requests),
            ));
        }
        for _ in 0..3 {
            workers.spawn(send_streams(address, Arc::clone(&stop), Arc::clone(&started_requests)));
        }
        for _ in 0..2 {
            workers.spawn(hold_conversations(address, Arc::clone(&stop), Arc::clone(&started_requests)));
        }
        Self { stop, started_requests, workers }
    }

    /// The number of requests started so far.
    pub fn started_requests(&self) -> usize {
        self.started_requests.load(Ordering::Relaxed)
    }

    /// Waits for the running requests to end, and returns the counts.
    pub async fn stop(mut self) -> TrafficCounts {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = TrafficCounts::default();
        while let Some(counts) = self.workers.join_next().await {
            let counts = counts.unwrap();
            total.requests += counts.requests;
            total.streams += counts.streams;
            total.websockets += counts.websockets;
            total.turns += counts.turns;
            total.failures.extend(counts.failures);
        }
        total
    }
}

/// Sends requests one after another on one connection until the balancer announces its end. The pause
/// between requests grows with `number`.
async fn send_short_requests(
    address: SocketAddr,
    number: u64,
    stop: Arc<AtomicBool>,
    started_requests: Arc<AtomicUsize>,
) -> TrafficCounts {
    let mut counts = TrafficCounts::default();
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let connection = match &mut client {
            Some(client) => client,
            None => match Client::try_connect(address).await {
                Ok(new) => client.insert(new),
                Err(error) => {
                    counts.failures.push(format!("connect: {error}"));
                    continue;
                }
            },
        };
        started_requests.fetch_add(1, Ordering::Relaxed);
        counts.requests += 1;
        let response =
            connection.try_post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        match response {
            Some(response) if response.status == 200 && response.is_complete => {
                if response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                    client = None;
                }
            }
            unexpected => {
                counts.failures.push(format!("short: {unexpected:?}"));
                client = None;
            }
        }
        tokio::time::sleep(Duration::from_millis(number * number * 3)).await;
    }
    counts
}

/// Reads one stream after another, each to its end.
async fn send_streams(
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    started_requests: Arc<AtomicUsize>,
) -> TrafficCounts {
    let mut counts = TrafficCounts::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::try_connect(address).await else {
            counts.failures.push("stream: cannot connect".to_owned());
            continue;
        };
        started_requests.fetch_add(1, Ordering::Relaxed);
        counts.streams += 1;
        match client.try_post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await {
            Some(response)
                if response.status == 200
                    && response.is_complete
                    && response.text().ends_with("data: [DONE]\n\n") => {}
            unexpected => counts.failures.push(format!("stream: {unexpected:?}")),
        }
    }
    counts
}

/// Holds one conversation over a WebSocket until the load stops.
async fn hold_conversations(
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    started_requests: Arc<AtomicUsize>,
) -> TrafficCounts {
    let mut counts = TrafficCounts { websockets: 1, ..TrafficCounts::default() };
    let mut client = Client::connect(address).await;
    started_requests.fetch_add(1, Ordering::Relaxed);
    client
        .send(Client::request_head("GET", "/openai/v1/realtime?model=gpt-4o", &UPGRADE_HEADERS).as_bytes())
        .await;
    let response_head = client.read_response_head().await;
    if response_head.as_ref().is_none_or(|response_head| response_head.status != 101)
        || try_read_frame(&mut client).await.is_none()
    {
        counts.failures.push(format!("socket: {response_head:?}"));
        return counts;
    }
    while !stop.load(Ordering::Relaxed) {
        client.try_send(&client_text_frame(r#"{"type":"response.create"}"#)).await;
        loop {
            match try_read_frame(&mut client).await {
                Some(text) if text.contains("response.done") => {
                    counts.turns += 1;
                    break;
                }
                Some(_) => {}
                None => {
                    counts.failures.push("websocket: the connection ended".to_owned());
                    return counts;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    counts
}
