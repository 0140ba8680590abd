//! The client that behaves well: small requests at a fixed rate, and streams that it reads to their end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::support::{CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, STREAM_BODY};

pub const STREAM_DEPLOYMENT: &str = "streams";
/// Each connection for small requests has a tenth of a second for one.
const PERIOD: Duration = Duration::from_millis(100);

/// What has happened to the requests of a time.
#[derive(Debug, Default)]
pub struct CalmStats {
    /// The times of small requests, from the moment at which each was due to the end of its response.
    pub requests: Vec<Duration>,
    /// The times of streams.
    pub streams: Vec<Duration>,
    pub failures: Vec<String>,
}

impl CalmStats {
    /// A quantile of the times of small requests, in milliseconds.
    pub fn request_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.requests, quantile)
    }

    /// A quantile of the times of streams, in milliseconds.
    pub fn stream_ms(&self, quantile: f64) -> f64 {
        quantile_ms(&self.streams, quantile)
    }
}

fn quantile_ms(times: &[Duration], quantile: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let index = (times.len() as f64 * quantile) as usize;
    times.get(index.min(times.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// Sends requests until it is stopped.
pub struct CalmClient {
    stats: Arc<Mutex<CalmStats>>,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl CalmClient {
    /// Starts `rate` small requests per second, and this many streams at the same time.
    pub fn start(address: SocketAddr, rate: u32, streams: u32) -> Self {
        let (stats, stop) = (Arc::<Mutex<CalmStats>>::default(), Arc::<AtomicBool>::default());
        let mut workers = JoinSet::new();
        let connections = (f64::from(rate) * PERIOD.as_secs_f64()).ceil() as u32;
        let start = Instant::now();
        for number in 0..connections {
            let first = start + PERIOD * number / connections;
            workers.spawn(send_requests(address, first, Arc::clone(&stats), Arc::clone(&stop)));
        }
        for _ in 0..streams {
            workers.spawn(read_streams(address, Arc::clone(&stats), Arc::clone(&stop)));
        }
        Self { stats, stop, workers }
    }

    /// What has happened since the last time.
    pub fn take_stats(&self) -> CalmStats {
        std::mem::take(&mut *self.stats.lock().unwrap())
    }

    /// Ends all requests.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.workers.join_next().await.is_some() {}
    }
}

async fn send_requests(
    address: SocketAddr,
    first: Instant,
    stats: Arc<Mutex<CalmStats>>,
    stop: Arc<AtomicBool>,
) {
    let mut client = Client::connect(address).await;
    let mut due = first;
    while !stop.load(Ordering::Relaxed) {
        sleep_until(due).await;
        let response = client.try_post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        match response {
            Some(response) if response.status == 200 && response.is_complete => {
                stats.lock().unwrap().requests.push(due.elapsed());
            }
            unexpected => {
                stats.lock().unwrap().failures.push(format!("request: {unexpected:?}"));
                client = Client::connect(address).await;
            }
        }
        due += PERIOD;
    }
}

async fn read_streams(address: SocketAddr, stats: Arc<Mutex<CalmStats>>, stop: Arc<AtomicBool>) {
    let target = CHAT_TARGET.replace("gpt-4o", STREAM_DEPLOYMENT);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let mut client = Client::connect(address).await;
        let response = client.try_post(&target, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
        let mut stats = stats.lock().unwrap();
        match response {
            Some(response) if response.status == 200 && response.text().ends_with("data: [DONE]\n\n") => {
                stats.streams.push(start.elapsed());
            }
            unexpected => stats.failures.push(format!("stream: {unexpected:?}")),
        }
    }
}
