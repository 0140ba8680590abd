//! Several balancers with one Redis: what one finds unavailable is so on all, and one at a time probes.

use crate::support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::redis_server::RedisServer;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{Balancer, LISTED_DEPLOYMENTS, answering_backend, backend_yaml, wait_until_async};

const JSON_TYPE: &str = "Content-Type: application/json";
const ANSWER: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
const THROTTLED: &str = r#"{"error":{"code":"429","message":"Requests have exceeded the call rate limit"}}"#;
const INVALID_KEY: &str = r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#;
const NO_DEPLOYMENT: &str = r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#;
/// As long as Azure's keys.
const KEY: &str = "0123456789abcdef0123456789abcdef";
const CHANNEL: &str = "aoai-lb:1:channel:unavailability";
const BROKEN_MESSAGE: &str = "a message about unavailable backends is ignored";

/// A backend that answers as it is set to, and keeps the times of the requests that it gets.
pub(crate) struct Backend {
    upstream: ScriptedUpstream,
    /// The `retry-after-ms` of its 429s; 0 if it does not answer 429.
    retry_after_ms: Arc<AtomicU64>,
    is_broken: Arc<AtomicBool>,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Backend {
    /// `rejection` is what it answers while it is broken.
    pub(crate) async fn start(status: u16, rejection: &'static str) -> Self {
        let (retry_after_ms, is_broken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let times = Arc::<Mutex<Vec<Instant>>>::default();
        let (wait, broken, arrivals) =
            (Arc::clone(&retry_after_ms), Arc::clone(&is_broken), Arc::clone(&times));
        let upstream = ScriptedUpstream::start(move |request: &RawRequest| {
            let is_question = request.body == b"{}" || request.head.starts_with("GET ");
            if !is_question {
                arrivals.lock().unwrap().push(Instant::now());
            }
            let wait = wait.load(Ordering::SeqCst);
            // A refused key is one of several.
            let is_rejected = rejection != INVALID_KEY || request.head.contains(KEY);
            if broken.load(Ordering::SeqCst) && is_rejected {
                complete_response(status, JSON_TYPE, rejection)
            } else if wait > 0 && !is_question {
                complete_response(429, &format!("{JSON_TYPE}\nretry-after-ms: {wait}"), THROTTLED)
            } else {
                complete_response(200, JSON_TYPE, ANSWER)
            }
        })
        .await;
        Self { upstream, retry_after_ms, is_broken, times }
    }

    pub(crate) async fn healthy() -> Self {
        Self::start(500, "{}").await
    }

    pub(crate) fn throttle(&self, retry_after: Duration) {
        self.retry_after_ms.store(retry_after.as_millis() as u64, Ordering::SeqCst);
    }

    fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
    }

    pub(crate) fn request_count(&self) -> usize {
        self.times.lock().unwrap().len()
    }

    pub(crate) fn yaml(&self, name: &str, more: &str) -> String {
        backend_yaml(
            name,
            &format!("http://{}", self.upstream.address),
            &format!("{LISTED_DEPLOYMENTS}\n{more}"),
        )
    }

    fn yaml_with_key(&self, name: &str, key: &str) -> String {
        self.yaml(name, "").replace(&format!("{name}-key"), key)
    }
}

/// Balancers with these backends, which know of each other.
pub(crate) async fn start_balancers(count: usize, backends: &str, extra: &str) -> Vec<Balancer> {
    let mut balancers = Vec::new();
    for _ in 0..count {
        balancers.push(Balancer::start(backends, extra).await);
    }
    for balancer in &balancers {
        balancer
            .wait_for_status("all instances are seen", |status| {
                status["shared"]["instances"].as_array().is_some_and(|seen| seen.len() == count)
            })
            .await;
    }
    balancers
}

/// The state of a backend, and that of what it cannot do.
fn state_of(status: &Value, name: &str) -> (String, Vec<String>) {
    let backends = status["backends"].as_array().unwrap();
    let backend = backends.iter().find(|backend| backend["name"] == name).unwrap();
    let resting = backend["resting"].as_array().unwrap().iter();
    let reasons = resting.map(|part| part["reason"].as_str().unwrap_or_default().to_owned());
    (backend["state"].as_str().unwrap().to_owned(), reasons.collect())
}

pub(crate) async fn wait_until_resting(balancer: &Balancer, name: &str, reason: &str) {
    balancer
        .wait_for_status(&format!("{name} rests: {reason}"), |status| {
            let (state, parts) = state_of(status, name);
            state == reason || parts.iter().any(|part| part == reason)
        })
        .await;
}

async fn wait_until_serving(balancer: &Balancer, name: &str) {
    balancer.wait_for_status(&format!("{name} serves"), |status| state_of(status, name).1.is_empty()).await;
}

/// Sends requests on all balancers, one after the other on each, until this is over. All are answered.
async fn with_load(balancers: &[Balancer], happens: impl Future<Output = ()>) -> usize {
    let is_over = AtomicBool::new(false);
    let happens = async {
        happens.await;
        is_over.store(true, Ordering::SeqCst);
    };
    let load = |balancer| {
        let is_over = &is_over;
        async move {
            let mut count = 0;
            while !is_over.load(Ordering::SeqCst) {
                let response = Balancer::post_chat(balancer).await;
                assert_eq!(response.status, 200);
                count += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            count
        }
    };
    let loads = futures::future::join_all(balancers.iter().map(load));
    let ((), counts) = tokio::join!(happens, loads);
    counts.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_that_one_meets_rests_the_deployment_on_all_also_on_one_that_starts_later() {
    let server = RedisServer::start(&[]).await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let balancers = start_balancers(3, &backends, &server.shared_yaml("")).await;
    first.throttle(Duration::from_secs(30));
    assert_eq!(answering_backend(&balancers[0].post_chat().await), "second");
    for balancer in &balancers[1..] {
        wait_until_resting(balancer, "first", "cooling").await;
    }
    for balancer in &balancers {
        assert_eq!(answering_backend(&balancer.post_chat().await), "second");
    }
    assert_eq!(first.request_count(), 1);
    let late = Balancer::start(&backends, &server.shared_yaml("")).await;
    wait_until_resting(&late, "first", "cooling").await;
    assert_eq!(answering_backend(&late.post_chat().await), "second");
    assert_eq!(first.request_count(), 1);
    let left = server.command("", &["KEYS", "*:rest:*"]).await;
    let key = format!("{left:?}");
    assert!(key.contains("}:rest:deployment:gpt-4o"), "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_at_a_time_probes_and_ends_the_rest_for_all() {
    const REST: Duration = Duration::from_millis(700);
    let server = RedisServer::start(&[]).await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let balancers = start_balancers(3, &backends, &server.shared_yaml("")).await;
    first.throttle(REST);
    let shown = Mutex::new(Vec::new());
    with_load(&balancers, async {
        wait_until_async("it is probed some times", async || {
            let shared = balancers[0].status().await["shared"].clone();
            shown.lock().unwrap().extend(shared["probes"].as_array().unwrap().clone());
            first.request_count() >= 12
        })
        .await;
    })
    .await;
    let times = first.times.lock().unwrap().clone();
    // Before the first rest is known, each may have met its own.
    let begins = times.iter().position(|time| *time >= times[0] + REST / 2).unwrap();
    let gaps: Vec<Duration> = times[begins..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap >= REST * 9 / 10), "{begins} {gaps:?}");
    let shown = shown.into_inner().unwrap();
    let expected = json!({ "backend": "first", "part": "deployment", "name": "gpt-4o" });
    assert!(!shown.is_empty(), "a probe is shown");
    for probe in &shown {
        for key in ["backend", "part", "name"] {
            assert_eq!(probe[key], expected[key], "{probe}");
        }
        assert!(probe["instance"].as_str().unwrap().contains('/'), "{probe}");
    }
    // One probe that succeeds ends it for all.
    first.throttle(Duration::ZERO);
    with_load(&balancers, async {
        for balancer in &balancers {
            wait_until_serving(balancer, "first").await;
        }
    })
    .await;
    for balancer in &balancers {
        assert_eq!(answering_backend(&balancer.post_chat().await), "first");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_or_hostile_message_changes_nothing_and_a_rest_is_as_long_as_this_file_allows() {
    let server = RedisServer::start(&[]).await;
    let first = Backend::healthy().await;
    let extra = server.shared_yaml("") + "cooldown: { maximum: 20s }\n";
    let balancers = start_balancers(1, &first.yaml("first", ""), &extra).await;
    let url = format!("http://{}", first.upstream.address);
    let message = |url: &str, name: &str, version: u32| {
        json!({
            "v": version, "from": "other", "event": "unavailable", "backend": "first", "url": url,
            "part": "deployment", "name": name, "reason": "cooling", "left_ms": 86_400_000,
        })
        .to_string()
    };
    let credential = json!({
        "v": 1, "from": "other", "event": "unavailable", "backend": "first", "url": url, "part": "credential",
        "reason": "credential", "left_ms": 86_400_000, "status": 401,
    });
    for text in [
        "".to_owned(),
        "\u{0}\u{1}".to_owned(),
        "{".repeat(5000),
        message(&url, "gpt-4o", 2),
        message("http://127.0.0.1:1", "gpt-4o", 1),
        message(&url, "unknown", 1),
        credential.to_string(),
    ] {
        server.command("", &["PUBLISH", CHANNEL, &text]).await;
    }
    balancers[0].wait_for_log(BROKEN_MESSAGE).await;
    server.command("", &["PUBLISH", CHANNEL, &message(&url, "other", 1)]).await;
    wait_until_resting(&balancers[0], "first", "cooling").await;
    let status = balancers[0].status().await;
    let resting = status["backends"][0]["resting"].as_array().unwrap();
    assert_eq!(resting.len(), 1, "{resting:?}");
    assert_eq!(resting[0]["deployment"], "other", "{resting:?}");
    let left = resting[0]["left_ms"].as_u64().or(resting[0]["remaining_ms"].as_u64());
    assert!(left.is_none_or(|left| left <= 20_000), "{resting:?}");
    assert_eq!(balancers[0].post_chat().await.status, 200);
    assert_eq!(balancers[0].log().matches(BROKEN_MESSAGE).count(), 1, "{}", balancers[0].log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_concerns_those_that_have_the_same_and_the_others_go_on() {
    let server = RedisServer::start(&[]).await;
    let (first, second) = (Backend::start(401, INVALID_KEY).await, Backend::healthy().await);
    let backends = |key: &str| first.yaml_with_key("first", key) + &second.yaml("second", "tier: 2");
    let same = start_balancers(2, &backends(KEY), &server.shared_yaml("")).await;
    let other = Balancer::start(&backends(&KEY.replace('0', "1")), &server.shared_yaml("")).await;
    other
        .wait_for_status("all are seen", |status| {
            status["shared"]["instances"].as_array().unwrap().len() == 3
        })
        .await;
    first.set_broken(true);
    assert_eq!(answering_backend(&same[0].post_chat().await), "second");
    wait_until_resting(&same[0], "first", "credential").await;
    wait_until_resting(&same[1], "first", "credential").await;
    let count = first.request_count();
    assert_eq!(answering_backend(&same[1].post_chat().await), "second");
    assert_eq!(first.request_count(), count);
    assert_eq!(answering_backend(&other.post_chat().await), "first");
    // The one that asked finds out when it is over, and tells it.
    let keys = format!("{:?}", server.command("", &["MGET", &rest_key(&first, "credential:")]).await);
    assert!(keys.contains("proof") && !keys.contains(KEY), "{keys}");
}

fn rest_key(backend: &Backend, part: &str) -> String {
    format!("{{aoai-lb:1:backend:first http://{}}}:rest:{part}", backend.upstream.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_deployment_is_missing_for_all_and_is_there_for_all() {
    let server = RedisServer::start(&[]).await;
    let first = Backend::start(404, NO_DEPLOYMENT).await;
    let balancers = start_balancers(2, &first.yaml("first", ""), &server.shared_yaml("")).await;
    first.set_broken(true);
    balancers[0].post_chat().await;
    wait_until_resting(&balancers[0], "first", "absent").await;
    wait_until_resting(&balancers[1], "first", "absent").await;
    first.set_broken(false);
    // While nothing else is left, one request a second tries it.
    let found = Instant::now();
    wait_until_async("it is there again", async || balancers[0].post_chat().await.status == 200).await;
    wait_until_serving(&balancers[1], "first").await;
    assert!(found.elapsed() < Duration::from_secs(50), "by itself it would be over after a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_hears_late_of_an_outage_and_its_end_knows_that_it_is_over() {
    let server = RedisServer::start(&[]).await;
    let first = Backend::start(404, NO_DEPLOYMENT).await;
    let balancers = start_balancers(2, &first.yaml("first", ""), &server.shared_yaml("")).await;
    balancers[1].send_signal("STOP");
    first.set_broken(true);
    balancers[0].post_chat().await;
    wait_until_resting(&balancers[0], "first", "absent").await;
    first.set_broken(false);
    wait_until_async("it is there again", async || balancers[0].post_chat().await.status == 200).await;
    wait_until_serving(&balancers[0], "first").await;
    balancers[1].send_signal("CONT");
    balancers[1].wait_for_log("is unavailable (absent), as another instance has found").await;
    let found = Instant::now();
    balancers[1].wait_for_log("is available again, as another instance has found").await;
    assert!(found.elapsed() < Duration::from_secs(50), "by itself it would be over after a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_that_mean_different_backends_by_a_name_do_not_rest_each_others() {
    let server = RedisServer::start(&[]).await;
    let (one, another) = (Backend::healthy().await, Backend::healthy().await);
    let extra = server.shared_yaml("");
    let first = Balancer::start(&one.yaml("first", ""), &extra).await;
    let second = Balancer::start(&another.yaml("first", ""), &extra).await;
    let witness = Balancer::start(&one.yaml("first", ""), &extra).await;
    for balancer in [&first, &second, &witness] {
        balancer
            .wait_for_status("all are seen", |status| {
                status["shared"]["instances"].as_array().unwrap().len() == 3
            })
            .await;
    }
    one.throttle(Duration::from_secs(30));
    first.post_chat().await;
    wait_until_resting(&witness, "first", "cooling").await;
    assert_eq!(second.post_chat().await.status, 200);
    wait_until_serving(&second, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_server_each_probes_for_itself_and_nothing_fails() {
    const REST: Duration = Duration::from_millis(300);
    let mut server = RedisServer::start(&[]).await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let balancers = start_balancers(2, &backends, &server.shared_yaml("")).await;
    first.throttle(REST);
    let more_requests = async |count: usize| {
        let before = first.request_count();
        wait_until_async("it is probed", async || first.request_count() >= before + count).await;
    };
    let is_up = async |up: bool| {
        for balancer in &balancers {
            balancer.wait_for_status("the server is noticed", |status| status["shared"]["up"] == up).await;
        }
    };
    with_load(&balancers, async {
        more_requests(3).await;
        server.command("", &["FLUSHALL"]).await;
        more_requests(3).await;
        server.send_signal("STOP");
        more_requests(3).await;
        is_up(false).await;
        more_requests(6).await;
        server.send_signal("CONT");
        is_up(true).await;
        more_requests(3).await;
        server.kill();
        is_up(false).await;
        more_requests(6).await;
        server.start_again().await;
        is_up(true).await;
        more_requests(3).await;
        server.command("", &["CONFIG", "SET", "requirepass", "another"]).await;
        server.command("another", &["CLIENT", "KILL", "TYPE", "normal"]).await;
        server.command("another", &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        is_up(false).await;
        more_requests(6).await;
    })
    .await;
    first.throttle(Duration::ZERO);
    with_load(&balancers, async {
        for balancer in &balancers {
            wait_until_serving(balancer, "first").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_at_a_time_probes_an_open_circuit() {
    const OPEN: Duration = Duration::from_millis(600);
    let server = RedisServer::start(&[]).await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let breaker = "breaker: { failures: 2, ratio: 1%, window: 10s, open: 600ms, maximum: 600ms }\n";
    let balancers = start_balancers(3, &backends, &(server.shared_yaml("") + breaker)).await;
    first.set_broken(true);
    with_load(&balancers, async {
        for balancer in &balancers {
            wait_until_state(balancer, "first", "breaker_open").await;
        }
        // The probe that fails next sets the time for all.
        let before = first.request_count();
        wait_until_async("they are in step", async || first.request_count() >= before + 3).await;
        let before = first.request_count();
        wait_until_async("it is probed", async || first.request_count() >= before + 6).await;
        let times = first.times.lock().unwrap()[before..].to_vec();
        let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= OPEN * 9 / 10), "{gaps:?}");
        first.set_broken(false);
        for balancer in &balancers {
            wait_until_state(balancer, "first", "healthy").await;
        }
    })
    .await;
    for balancer in &balancers {
        assert_eq!(answering_backend(&balancer.post_chat().await), "first");
    }
}

async fn wait_until_state(balancer: &Balancer, name: &str, state: &str) {
    balancer.wait_for_status(&format!("{name} is {state}"), |status| state_of(status, name).0 == state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_in_the_manual_are_enough() {
    let server = RedisServer::start(&[]).await;
    server.add_user_of_manual("hush").await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let shared = server.shared_yaml(", username: aoai-lb, password: hush");
    let balancers = start_balancers(2, &backends, &shared).await;
    first.throttle(Duration::from_millis(300));
    with_load(&balancers, async {
        wait_until_async("it is probed", async || first.request_count() >= 8).await;
        first.throttle(Duration::ZERO);
        for balancer in &balancers {
            wait_until_serving(balancer, "first").await;
        }
    })
    .await;
    let refused = server.command("", &["ACL", "LOG"]).await;
    assert_eq!(refused, redis::Value::Array(Vec::new()), "{refused:?}");
}
