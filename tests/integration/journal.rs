//! The journal of an incident: who reads only warnings and errors understands it from its first to its last line, and
//! is not flooded.

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, Mood, Simulator};
use regex::Regex;
use support::identity::{AuthenticatedResource, IdentityPlatform};
use support::ingestion::{IngestionBehaviour, LogIngestionService};
use support::{Balancer, instant_resource, poll_within, simulated_backend_yaml};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Full after one request; what it refuses may be tried again after some seconds.
const TINY: DeploymentKind = DeploymentKind::Provisioned { tokens_per_minute: 200, output_weight: 4 };
const LISTED: &str = "deployments: { gpt-4o: gpt-4o }";

/// The texts of the lines of at least this level, without time and place.
fn lines(balancer: &Balancer, levels: &[&str]) -> Vec<String> {
    let line = Regex::new(r"^\[\S+ ([A-Z]+) +[a-z_:]+\] (.*)$").unwrap();
    let log = balancer.log();
    let of_level =
        log.lines().filter_map(|text| line.captures(text)).filter(|found| levels.contains(&&found[1]));
    of_level.map(|found| found[2].to_owned()).collect()
}

fn warnings(balancer: &Balancer) -> Vec<String> {
    lines(balancer, &["WARN", "ERROR"])
}

/// Waits for a warning that matches. An incident takes its time.
async fn wait_for_warning(balancer: &Balancer, pattern: &str) {
    let expression = Regex::new(pattern).unwrap();
    poll_within(Duration::from_secs(120), &format!("{pattern} is in the log"), async || {
        let warnings = warnings(balancer);
        if warnings.iter().any(|line| expression.is_match(line)) { Ok(()) } else { Err(warnings) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_hundred_requests_into_a_full_provisioned_tier_write_a_handful_of_lines() {
    let resources = [("ptu", TINY), ("spare", DeploymentKind::Unlimited)];
    let azure =
        Simulator::start(resources.iter().map(|(name, kind)| instant_resource(name, *kind)).collect())
            .await
            .unwrap();
    let entries = simulated_backend_yaml(&azure, "ptu", LISTED)
        + &simulated_backend_yaml(&azure, "spare", &format!("tier: 2\n{LISTED}"));
    let balancer = Arc::new(Balancer::start(&entries, "").await);
    // The first response tells that it is provisioned. From then on it is full all the time, for longer than the minute
    // after which a line may come again, and each cooldown is short.
    assert_eq!(balancer.post_chat().await.status, 200);
    azure.set_mood("ptu", Mood::Throttled { retry_after_ms: Some(50), retry_after: None });
    let lines_of_start = lines(&balancer, &["INFO", "WARN", "ERROR"]).len();
    let mut ticks = interval(Duration::from_millis(45));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut requests, mut states) = (JoinSet::new(), Vec::new());
    for number in 0..1600 {
        ticks.tick().await;
        let sender = Arc::clone(&balancer);
        requests.spawn(async move { sender.post_chat().await.status });
        if number % 20 == 0 {
            states.push(balancer.status().await["service"]["state"].as_str().unwrap().to_owned());
        }
    }
    let statuses = requests.join_all().await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let refused = azure.request_count("ptu");
    assert!(refused > 500, "{refused}");
    states.dedup();
    assert_eq!(states, ["healthy", "spilling"]);
    assert_eq!(
        warnings(&balancer),
        ["backend ptu, deployment 'gpt-4o': throttled (429): its provisioned capacity is full"]
    );
    let all = lines(&balancer, &["INFO", "WARN", "ERROR"]);
    assert!(all.len() - lines_of_start <= 5, "{all:#?}");
}

/// One request after the other, as long as it is wanted.
fn send_traffic(balancer: &Arc<Balancer>, is_wanted: &Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let failed = Arc::<AtomicUsize>::default();
    let (balancer, is_wanted, count) = (Arc::clone(balancer), Arc::clone(is_wanted), Arc::clone(&failed));
    tokio::spawn(async move {
        while is_wanted.load(Ordering::Relaxed) {
            let response = balancer.post_chat().await;
            count.fetch_add(usize::from(response.status != 200), Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
    });
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_tell_an_incident_from_its_first_to_its_last_line() {
    let resources = [("ptu", TINY), ("west", DeploymentKind::Unlimited)];
    let azure =
        Simulator::start(resources.iter().map(|(name, kind)| instant_resource(name, *kind)).collect())
            .await
            .unwrap();
    let (platform, ingestion) = (IdentityPlatform::start().await, LogIngestionService::start().await);
    platform.set_secret("sweden-key", "first-key");
    let sweden = AuthenticatedResource::start(&["first-key"], Some(&platform)).await;
    let vault = format!("key_vault: '{}'", platform.secret_url("sweden-key"));
    let entries = simulated_backend_yaml(&azure, "ptu", LISTED)
        + &simulated_backend_yaml(&azure, "west", &format!("tier: 2\n{LISTED}"))
        + &sweden.backend_yaml("sweden", &vault)
        + &format!("    tier: 2\n    {LISTED}\n");
    let extra = format!(
        "retry: {{ outage: 0s }}\nbreaker: {{ failures: 5, ratio: 50%, window: 10s, open: 1s, maximum: 1s }}\n\
         record: {{ jsonl: {{ path: records.jsonl }}, {} }}\n",
        ingestion.log_analytics_yaml()
    );
    let balancer =
        Arc::new(Balancer::start_with_environment(&platform.vm_environment(), &entries, &extra).await);
    let is_wanted = Arc::new(AtomicBool::new(true));
    let failed = send_traffic(&balancer, &is_wanted);
    let wait = async |pattern: &str| wait_for_warning(&balancer, pattern).await;

    wait("^backend ptu, .*: throttled").await;
    azure.set_mood("west", Mood::ResetBeforeHead);
    wait("^the service is degraded: west").await;
    sweden.accept_keys(&["second-key"]);
    platform.set_secret("sweden-key", "key-of-another-resource");
    wait("^backend sweden: credential: ").await;
    wait("^the service is failing: requests").await;
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(503, None));
    wait("^records stay in the spool").await;
    assert!(failed.load(Ordering::Relaxed) > 0);

    azure.set_mood("west", Mood::Calm);
    platform.set_secret("sweden-key", "second-key");
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    wait("^backend sweden is healthy again").await;
    is_wanted.store(false, Ordering::Relaxed);
    wait("^the service has recovered").await;
    wait("^backend ptu, .*: no longer throttled").await;

    let mut left = warnings(&balancer);
    // Each once, apart from the line of each further minute.
    for expected in [
        "^backend ptu, deployment 'gpt-4o': throttled \\(429\\): its provisioned capacity is full$",
        "^backend west: (failing: the last \\d+ attempts failed|breaker_open: failed too often).*; last: connection reset$",
        "^the service is degraded: west: (failing: the last \\d+|breaker_open: failed too often)",
        "^backend sweden: credential: rejects its credential .*; last: 401: Access denied due to invalid",
        "^requests fail because of backends: gpt-4o: (429|502|503), .* \\(request [0-9a-f-]{36}\\)$",
        "^the service is failing: requests: \\d+ of \\d+ in the last 30 s were refused or failed; also: ",
        "^records stay in the spool: Log Analytics does not accept them: 503$",
        "^backend west is healthy again, after ",
        "^backend sweden is healthy again, after ",
        "^records are delivered to Log Analytics again, after ",
        "^requests do not fail because of backends any more \\(\\d+ did, within ",
        "^the service has recovered after .*, and is (spilling|healthy)$",
        "^backend ptu, deployment 'gpt-4o': no longer throttled \\(\\d+ attempts were, within ",
    ] {
        let pattern = Regex::new(expected).unwrap();
        let count = left.iter().filter(|line| pattern.is_match(line)).count();
        assert_eq!(count, 1, "{expected}\n{}", balancer.log());
        left.retain(|line| !pattern.is_match(line));
    }
    let further =
        Regex::new("^(\\d+ more requests failed because of backends, the last: |the service is degraded: )");
    let further = further.unwrap();
    left.retain(|line| !further.is_match(line));
    assert!(left.is_empty(), "{left:#?}\n{}", balancer.log());
}
