//! The test harness: it starts the real binary in front of simulated Azure resources and provides
//! clients that send and read exact bytes.

#![allow(unreachable_pub, reason = "the benchmarks use it as well, each as a module of its own")]

pub mod affinity_traffic;
pub mod balancer;
pub mod client;
pub mod collector;
pub mod h2;
pub mod identity;
pub mod ingestion;
pub mod ports;
pub mod redis_cluster;
pub mod redis_server;
pub mod responses_upstream;
pub mod stateful_upstream;
pub mod storms;
pub mod terminal;
pub mod tls;
pub mod traffic;
pub mod upstream;
pub mod websocket;
pub mod yaml;

use std::fmt::Debug;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

pub use balancer::{Balancer, is_process_alive, send_signal_to};
pub use client::{Client, Response};
pub use ports::free_port;
pub use yaml::{
    LISTED_DEPLOYMENTS, all_backends_yaml, backend_yaml, clients_yaml, instant_resource,
    listed_backends_yaml, sha256_hex, simulated_backend_yaml, start_simulator,
};

/// A private directory in memory, as `/run/aoai-lb` is.
pub fn memory_directory() -> tempfile::TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir_in("/dev/shm").unwrap()
}

/// How long a test waits for anything before it fails: for other tests and processes on a busy machine, and beyond the
/// half minute after which a request leaves a stalled backend.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a condition is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(3);
/// The key of the client `team-a` in the configurations of the harness.
pub const CLIENT_KEY: &str = "key-of-team-a";
pub const CHAT_TARGET: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
pub const STREAM_BODY: &str = r#"{"stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
pub const CHAT_BODY: &str = r#"{"messages":[{"role":"user","content":"hello"}]}"#;

/// Repeats `attempt` until it succeeds, and returns its result. After `time_limit` the test fails with the last error;
/// `what` says what was waited for.
pub async fn poll_within<T, E: Debug>(
    time_limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = PollDeadline::after(time_limit);
    loop {
        match attempt().await {
            Ok(result) => return result,
            Err(error) => deadline.pause(what, error).await,
        }
    }
}

/// Until when something is tried again and again.
#[derive(Clone, Copy)]
pub struct PollDeadline(Instant);

impl PollDeadline {
    pub fn after(time_limit: Duration) -> Self {
        Self(Instant::now() + time_limit)
    }

    /// Waits until the next attempt is due; fails the test if the deadline is over.
    pub async fn pause(self, what: &str, error: impl Debug) {
        assert!(Instant::now() < self.0, "timed out waiting until {what}: {error:#?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// [`poll_within`] the usual time.
pub async fn poll<T, E: Debug>(what: &str, attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    poll_within(TEST_TIMEOUT, what, attempt).await
}

/// Waits until `condition` holds; `what` describes it in the failure message.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = PollDeadline::after(TEST_TIMEOUT);
    while !condition() {
        deadline.pause(what, "it does not hold").await;
    }
}

/// Like `wait_until`, for a condition that has to ask somebody.
pub async fn wait_until_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    poll(what, async || if condition().await { Ok(()) } else { Err("it does not hold") }).await;
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
