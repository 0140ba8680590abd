//! Constant load of three kinds, of which nothing may fail: short requests on connections that are
//! kept, streams, and conversations over WebSockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::websocket::{UPGRADE, frame, try_read_frame};
use super::{CHAT, Client, HELLO, KEY, STREAM};

/// What there was.
#[derive(Debug, Default)]
pub struct Seen {
    pub requests: usize,
    pub streams: usize,
    pub sockets: usize,
    pub failures: Vec<String>,
}

/// Load under way.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    begun: Arc<AtomicUsize>,
    workers: JoinSet<Seen>,
}

impl Traffic {
    /// Begins; the deployment `gpt-4o` has to be served.
    pub fn start(address: SocketAddr) -> Self {
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let mut workers = JoinSet::new();
        for n in 0..4 {
            workers.spawn(short(address, n, Arc::clone(&stop), Arc::clone(&begun)));
        }
        for _ in 0..3 {
            workers.spawn(streams(address, Arc::clone(&stop), Arc::clone(&begun)));
        }
        for _ in 0..2 {
            workers.spawn(sockets(address, Arc::clone(&stop), Arc::clone(&begun)));
        }
        Self { stop, begun, workers }
    }

    /// Requests begun so far.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Ends what is under way and sums it up.
    pub async fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Seen::default();
        while let Some(seen) = self.workers.join_next().await {
            let seen = seen.unwrap();
            sum.requests += seen.requests;
            sum.streams += seen.streams;
            sum.sockets += seen.sockets;
            sum.failures.extend(seen.failures);
        }
        sum
    }
}

/// Requests one after the other on a connection until it is said to be closed; some at once, some
/// after a while.
async fn short(address: SocketAddr, n: u64, stop: Arc<AtomicBool>, begun: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen::default();
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let connection = match &mut client {
            Some(client) => client,
            None => match Client::try_connect(address).await {
                Ok(new) => client.insert(new),
                Err(problem) => {
                    seen.failures.push(format!("connect: {problem}"));
                    continue;
                }
            },
        };
        begun.fetch_add(1, Ordering::Relaxed);
        seen.requests += 1;
        let reply = connection.try_post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
        match reply {
            Some(reply) if reply.status == 200 && reply.whole => {
                if reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                    client = None;
                }
            }
            other => {
                seen.failures.push(format!("short: {other:?}"));
                client = None;
            }
        }
        tokio::time::sleep(Duration::from_millis(n * n * 3)).await;
    }
    seen
}

/// Streams, each to its end.
async fn streams(address: SocketAddr, stop: Arc<AtomicBool>, begun: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::try_connect(address).await else {
            seen.failures.push("stream: connect".to_owned());
            continue;
        };
        begun.fetch_add(1, Ordering::Relaxed);
        seen.streams += 1;
        match client.try_post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await {
            Some(reply)
                if reply.status == 200 && reply.whole && reply.text().ends_with("data: [DONE]\n\n") => {}
            other => seen.failures.push(format!("stream: {other:?}")),
        }
    }
    seen
}

/// One conversation, until the end.
async fn sockets(address: SocketAddr, stop: Arc<AtomicBool>, begun: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen { sockets: 1, ..Seen::default() };
    let mut client = Client::connect(address).await;
    begun.fetch_add(1, Ordering::Relaxed);
    client.send(Client::head("GET", "/openai/v1/realtime?model=gpt-4o", &UPGRADE).as_bytes()).await;
    let head = client.reply_head().await;
    if head.as_ref().is_none_or(|head| head.status != 101) || try_read_frame(&mut client).await.is_none() {
        seen.failures.push(format!("socket: {head:?}"));
        return seen;
    }
    while !stop.load(Ordering::Relaxed) {
        client.try_send(&frame(r#"{"type":"response.create"}"#)).await;
        loop {
            match try_read_frame(&mut client).await {
                Some(text) if text.contains("response.done") => break,
                Some(_) => {}
                None => {
                    seen.failures.push("socket: broken off".to_owned());
                    return seen;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen
}
