//! The test harness: it starts the real binary in front of simulated Azure resources and provides
//! clients that send and read exact bytes.

#![allow(unreachable_pub, reason = "the benchmarks use it as well, each as a module of its own")]

pub mod affinity_traffic;
pub mod balancer;
pub mod client;
pub mod h2;
pub mod identity;
pub mod ingestion;
pub mod ports;
pub mod redis_server;
pub mod responses_upstream;
pub mod stateful_upstream;
pub mod terminal;
pub mod tls;
pub mod traffic;
pub mod upstream;
pub mod websocket;
pub mod yaml;

use std::time::{Duration, Instant};

pub use balancer::{Balancer, is_process_alive, send_signal_to};
pub use client::{Client, Response};
pub use ports::free_port;
pub use yaml::{
    LISTED_DEPLOYMENTS, all_backends_yaml, backend_yaml, clients_yaml, instant_resource,
    listed_backends_yaml, sha256_hex, simulated_backend_yaml, start_simulator,
};

/// How long a test waits for anything before it fails: for other tests and processes on a busy machine, and beyond the
/// half minute after which a request leaves a stalled backend.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The key of the client `team-a` in the configurations of the harness.
pub const CLIENT_KEY: &str = "key-of-team-a";
pub const CHAT_TARGET: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
pub const STREAM_BODY: &str = r#"{"stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
pub const CHAT_BODY: &str = r#"{"messages":[{"role":"user","content":"hello"}]}"#;

/// Waits until `condition` holds; `what` describes it in the failure message.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Like `wait_until`, for a condition that has to ask somebody.
pub async fn wait_until_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a number that grows has stayed the same for this time.
pub async fn wait_until_steady(what: &str, time: Duration, mut read: impl FnMut() -> usize) {
    let (mut last, mut since) = (0, Instant::now());
    wait_until(what, || {
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        last > 0 && since.elapsed() >= time
    })
    .await;
}

/// The name of the backend that answered, empty if no backend did.
pub fn answering_backend(response: &Response) -> String {
    response.header("x-aoai-lb-backend").unwrap_or_default().to_owned()
}
