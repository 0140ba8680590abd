//! Storms: whatever one client does, the requests, streams and WebSockets of another succeed, and its
//! records are complete. `benches/storms` has them at full size.

use crate::support;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aoai_lb::demo::{Mood, SimulatedError, Simulator};
use support::storms::{STORM_DEPLOYMENT, Storm, storm_clients_yaml};
use support::traffic::BackgroundTraffic;
use support::{Balancer, listed_backends_yaml, poll, start_simulator, wait_until};
use tokio::task::JoinSet;

const STORM_WORKERS: usize = 8;
/// Between two actions of a task, so that a storm does not simply take all of the processor.
const STORM_PAUSE: Duration = Duration::from_millis(20);
/// The other client's requests during a storm.
const CALM_REQUESTS: usize = 300;
/// The least that a storm does meanwhile.
const MIN_STORM_ACTIONS: usize = 40;
/// The most that a storm does for each of the other client's requests: on a busy machine it would leave no processor
/// time for them.
const MAX_STORM_ACTIONS_PER_REQUEST: usize = 4;

/// Lets a storm rage in many tasks while another client sends requests, streams and WebSocket messages, and
/// checks that all of those succeed and are recorded with their prompt. What the storm's actions return is kept,
/// `max_kept` of it.
async fn check_that_others_are_served(azure: &Simulator, extra_yaml: &str, max_kept: usize, storm: Storm) {
    let balancer =
        Balancer::start_with_clients(&listed_backends_yaml(azure), &storm_clients_yaml(), extra_yaml).await;
    let traffic = BackgroundTraffic::start(balancer.address);
    let actions = Arc::<AtomicUsize>::default();
    let max_actions = Arc::new(AtomicUsize::new(MIN_STORM_ACTIONS));
    let mut workers = JoinSet::new();
    for _ in 0..STORM_WORKERS {
        let (actions, max_actions) = (Arc::clone(&actions), Arc::clone(&max_actions));
        let address = balancer.address;
        workers.spawn(async move {
            let mut kept = VecDeque::new();
            loop {
                while actions.load(Ordering::Relaxed) >= max_actions.load(Ordering::Relaxed) {
                    tokio::time::sleep(STORM_PAUSE).await;
                }
                kept.push_back(storm.act(address).await);
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
        max_actions.store(MIN_STORM_ACTIONS + MAX_STORM_ACTIONS_PER_REQUEST * counts.0, Ordering::Relaxed);
        if counts.0 >= CALM_REQUESTS && counts.1 >= MIN_STORM_ACTIONS { Ok(()) } else { Err(counts) }
    })
    .await;
    let counts = traffic.stop().await;
    workers.shutdown().await;
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
            let moods_by_deployment = HashMap::from([(STORM_DEPLOYMENT.to_owned(), mood.clone())]);
            let mood = Mood::PerDeployment { moods_by_deployment, default_mood: Box::new(Mood::Calm) };
            azure.set_mood(name, mood);
        }
        println!("{mood:?}");
        check_that_others_are_served(&azure, "retry: { outage: 0s }", 0, Storm::Rejected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_malformed_connections_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    check_that_others_are_served(&azure, "", 200, Storm::Malformed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_not_read_or_broken_off_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    for storm in [Storm::Unread, Storm::LargePrompts] {
        check_that_others_are_served(&azure, "", 100, storm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_do_not_disturb_others() {
    let azure = start_simulator(&["a", "b"]).await;
    let extra_yaml = "requests: { max_body: 1MiB, body_memory: 4MiB, max_streamed_body: 1MiB }";
    check_that_others_are_served(&azure, extra_yaml, 100, Storm::StalledUploads).await;
}
