//! Limits of clients that several balancers share by one Redis.

use crate::limits::{USED, answer, chat, clients};
use crate::limits_upgrade::connect_to_new_process;
use crate::support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::redis_server::{NOTICE_TIME, RedisServer};
use support::upstream::ScriptedUpstream;
use support::{
    Balancer, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, Response, poll, send_signal_to, wait_until,
};
use tokio::task::JoinSet;

/// For how long a place of an instance that is gone counts on.
const PLACE_LIFETIME: Duration = Duration::from_secs(5);

/// A configuration with a state directory.
const WITH_STATE: &str = "server: { drain_delay: 0s, state_directory: state }\n";

/// Balancers with the same limits, one Redis or cluster and one resource.
pub(crate) struct Instances<S = RedisServer> {
    pub(crate) server: S,
    upstream: ScriptedUpstream,
    pub(crate) balancers: Vec<Balancer>,
}

impl Instances {
    pub(crate) async fn start(count: usize, limits: &str, extra_yaml: &str) -> Self {
        let server = RedisServer::start(&[]).await;
        let yaml = server.shared_yaml("") + extra_yaml;
        Self::start_with(server, count, limits, &yaml).await
    }
}

impl<S> Instances<S> {
    /// The configuration names the server.
    pub(crate) async fn start_with(server: S, count: usize, limits: &str, yaml: &str) -> Self {
        let upstream = ScriptedUpstream::start(answer).await;
        let backend = support::backend_yaml("a", &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS);
        let mut balancers = Vec::new();
        for _ in 0..count {
            balancers.push(Balancer::start_with_clients(&backend, &clients(limits), yaml).await);
        }
        let instances = Self { server, upstream, balancers };
        instances.wait_until_all_are_seen().await;
        instances
    }

    pub(crate) async fn wait_until_all_are_seen(&self) {
        for balancer in &self.balancers {
            balancer
                .wait_for_status("all instances are seen", |status| {
                    status["shared"]["up"] == true
                        && status["shared"]["last_seen_count"] == self.balancers.len()
                        && status["shared"]["instances"].as_array().unwrap().len() == self.balancers.len()
                })
                .await;
        }
    }

    /// Sends this many requests to each balancer at once, and returns how many each of them has answered. The others are
    /// refused by this limit.
    pub(crate) async fn answered(&self, requests: usize, limit: &str) -> Vec<usize> {
        let mut tasks = JoinSet::new();
        for (index, balancer) in self.balancers.iter().enumerate() {
            for _ in 0..requests {
                let address = balancer.address;
                tasks.spawn(async move {
                    let mut client = Client::connect(address).await;
                    (index, post_on(&mut client, &json!({})).await)
                });
            }
        }
        let mut answered = vec![0; self.balancers.len()];
        for (index, response) in tasks.join_all().await {
            match response.status {
                200 => answered[index] += 1,
                _ => expect_refusal(&response, limit),
            }
        }
        answered
    }

    /// What is used of the first limit, as each balancer knows it.
    pub(crate) async fn used(&self) -> Vec<u64> {
        let mut used = Vec::new();
        for balancer in &self.balancers {
            used.push(used_at(balancer).await);
        }
        used
    }

    /// How many requests were admitted or refused without Redis, because it did not answer within five milliseconds.
    pub(crate) async fn limited_alone(&self) -> usize {
        let mut sum = 0;
        for balancer in &self.balancers {
            let count = &balancer.status().await["shared"]["requests_limited_alone"];
            sum += usize::try_from(count.as_u64().unwrap()).unwrap();
        }
        sum
    }

    /// Sends requests until this limit refuses one: where Redis does not answer within five milliseconds, requests are
    /// admitted that it learns of later.
    pub(crate) async fn expect_refusal_at(&self, index: usize, limit: &str) -> Response {
        poll("a request is refused", async || {
            let response = post(&self.balancers[index]).await;
            if response.status == 200 {
                return Err("it is admitted");
            }
            expect_refusal(&response, limit);
            Ok(response)
        })
        .await
    }

    pub(crate) async fn wait_until_used(&self, expected: u64) {
        self.wait_until_used_between(expected, expected).await;
    }

    async fn wait_until_used_between(&self, min: u64, max: u64) {
        poll("all instances know what is used", async || {
            let used = self.used().await;
            if used.iter().all(|used| (min..=max).contains(used)) { Ok(()) } else { Err(used) }
        })
        .await;
    }
}

pub(crate) async fn used_at(balancer: &Balancer) -> u64 {
    balancer.status().await["limits"]["clients"][0]["limits"][0]["used"].as_u64().unwrap()
}

async fn post_on(client: &mut Client, fields: &Value) -> Response {
    client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], chat(fields).as_bytes()).await
}

pub(crate) async fn post(balancer: &Balancer) -> Response {
    post_on(&mut balancer.connect().await, &json!({})).await
}

#[track_caller]
pub(crate) fn expect_refusal(response: &Response, limit: &str) {
    let code = if limit.ends_with("_day") { "insufficient_quota" } else { "rate_limit_exceeded" };
    assert_eq!((response.status, &*response.error_code()), (429, code), "{}", response.text());
    assert!(response.text().contains(&format!("{limit} of team-a")), "{}", response.text());
}

/// A request that takes two seconds, once the resource has it. It is tried again while it is refused.
async fn start_slow(instances: &Instances, index: usize) -> tokio::task::JoinHandle<Response> {
    start_slow_with(instances, index, json!({})).await
}

/// The same with further fields.
pub(crate) async fn start_slow_with(
    instances: &Instances,
    index: usize,
    mut fields: Value,
) -> tokio::task::JoinHandle<Response> {
    fields["user"] = "slow".into();
    poll("a request is admitted", async || {
        let task = try_start_slow(instances, index, fields.clone()).await;
        if task.is_finished() { Err(task.await.unwrap().status) } else { Ok(task) }
    })
    .await
}

async fn try_start_slow(
    instances: &Instances,
    index: usize,
    fields: Value,
) -> tokio::task::JoinHandle<Response> {
    let (address, before) = (instances.balancers[index].address, instances.upstream.requests().len());
    let task = tokio::spawn(async move { post_on(&mut Client::connect(address).await, &fields).await });
    wait_until("the resource has the request", || {
        instances.upstream.requests().len() > before || task.is_finished()
    })
    .await;
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_of_requests_is_exact_over_all_instances() {
    let instances = Instances::start(3, "requests_per_minute: 60", "").await;
    let began_at = Instant::now();
    let mut answered = 0;
    // One that is refused while another instance has a lease is answered once that is given back.
    poll("the limit is used up", async || {
        answered += instances.answered(2, "requests_per_minute").await.iter().sum::<usize>();
        if answered >= 60 { Ok(()) } else { Err(answered) }
    })
    .await;
    for _ in 0..5 {
        answered += instances.answered(2, "requests_per_minute").await.iter().sum::<usize>();
    }
    assert!(began_at.elapsed() < Duration::from_secs(50), "the first requests are forgotten");
    let limited_alone = instances.limited_alone().await;
    assert!((60..=60 + limited_alone).contains(&answered), "{answered}, {limited_alone} alone");
    let refused = instances.expect_refusal_at(1, "requests_per_minute").await;
    let wait: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((1_000..=62_000).contains(&wait), "{wait}");
    let answered = answered as u64;
    instances.wait_until_used_between(answered, answered + 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_instance_uses_is_missing_at_the_others() {
    let instances = Instances::start(2, "tokens_per_minute: 1000", "").await;
    let first = post(&instances.balancers[0]).await;
    assert_eq!(first.status, 200);
    instances.wait_until_used(USED).await;
    let second = post(&instances.balancers[1]).await;
    assert_eq!(second.header("x-ratelimit-limit-tokens"), Some("1000"));
    let remaining: u64 = second.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!(remaining < 1000 - USED, "{remaining}");
    let answered = instances.answered(40, "tokens_per_minute").await;
    let used = (answered.iter().sum::<usize>() as u64 + 2) * USED;
    // Each estimate learns from the answers before, and is exceeded by less than a request.
    assert!(used <= 1000 + 2 * USED, "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_given_back_at_once_and_free_after_the_instance_that_had_them_is_gone() {
    let mut instances = Instances::start(2, "in_flight: 1", "").await;
    let slow = start_slow(&instances, 0).await;
    for index in [0, 1] {
        instances.expect_refusal_at(index, "in_flight").await;
    }
    assert_eq!(slow.await.unwrap().status, 200);
    let ended_at = Instant::now();
    poll("the other instance has the place", async || match post(&instances.balancers[1]).await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    assert!(ended_at.elapsed() < Duration::from_secs(1), "{:?}", ended_at.elapsed());

    let _lost = start_slow(&instances, 0).await;
    instances.expect_refusal_at(1, "in_flight").await;
    let pid = instances.balancers[0].pid();
    assert!(send_signal_to("KILL", pid));
    let killed_at = Instant::now();
    poll("the place is free", async || match post(&instances.balancers[1]).await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    let free_after = killed_at.elapsed();
    let expected = PLACE_LIFETIME - Duration::from_secs(2)..PLACE_LIFETIME + Duration::from_secs(3);
    assert!(expected.contains(&free_after), "{free_after:?}");
    instances.balancers.remove(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_one_for_all_and_survives_restarts_and_a_server_that_loses_everything() {
    let mut instances = Instances::start(2, "tokens_per_day: 100000", WITH_STATE).await;
    for balancer in &instances.balancers {
        for _ in 0..3 {
            assert_eq!(post(balancer).await.status, 200);
        }
    }
    instances.wait_until_used(6 * USED).await;
    // The same instance as before, so nothing counts twice.
    instances.balancers[0].stop().await;
    instances.balancers[0].start_again().await;
    instances.wait_until_all_are_seen().await;
    assert_eq!(post(&instances.balancers[0]).await.status, 200);
    instances.wait_until_used(7 * USED).await;
    // Each instance reports again what the server has lost.
    instances.server.command("", &["FLUSHALL"]).await;
    for balancer in &instances.balancers {
        assert_eq!(post(balancer).await.status, 200);
    }
    instances.wait_until_used(9 * USED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_server_each_instance_has_its_part_and_what_was_used_is_added_later() {
    let mut instances = Instances::start(3, "requests_per_minute: 60", "").await;
    instances.server.kill();
    for balancer in &instances.balancers {
        balancer.wait_for_status("it is noticed", |status| status["shared"]["up"] == false).await;
    }
    let began_at = Instant::now();
    assert_eq!(instances.answered(30, "requests_per_minute").await, [20, 20, 20]);
    assert!(began_at.elapsed() < Duration::from_secs(20), "it still counts");
    instances.server.start_again().await;
    instances.wait_until_all_are_seen().await;
    instances.wait_until_used(60).await;
    expect_refusal(&post(&instances.balancers[0]).await, "requests_per_minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_delays_no_request_and_refuses_none_that_has_room() {
    let instances = Instances::start(2, "requests_per_minute: 6000, in_flight: 100", "").await;
    instances.server.send_signal("STOP");
    let stopped_at = Instant::now();
    let mut longest = Duration::ZERO;
    while stopped_at.elapsed() < NOTICE_TIME {
        for balancer in &instances.balancers {
            let started_at = Instant::now();
            assert_eq!(post(balancer).await.status, 200);
            longest = longest.max(started_at.elapsed());
        }
    }
    instances.server.send_signal("CONT");
    assert!(longest < Duration::from_millis(900), "{longest:?}");
    instances.wait_until_all_are_seen().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_counts_nothing_twice() {
    for yaml in [WITH_STATE, ""] {
        let mut instances = Instances::start(2, "requests_per_minute: 60", yaml).await;
        for balancer in &instances.balancers {
            for _ in 0..10 {
                let response = post(balancer).await;
                assert_eq!(response.status, 200, "{}", response.text());
            }
        }
        instances.wait_until_used(20).await;
        let output = instances.balancers[0].run_upgrade_command().await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut client = connect_to_new_process(&instances.balancers[0]).await;
        for _ in 0..10 {
            let response = post_on(&mut client, &json!({})).await;
            assert_eq!(response.status, 200, "{}\n{}", response.text(), instances.balancers[0].log());
        }
        instances.wait_until_used(30).await;
        instances.balancers[0].wait_until_single_process().await;
        instances.wait_until_used(30).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_in_the_manual_are_enough_for_limits() {
    let server = RedisServer::start(&[]).await;
    server.add_user_of_manual("hush").await;
    let limits = "requests_per_minute: 600, tokens_per_day: 100000, in_flight: 10";
    let yaml = server.shared_yaml(", username: aoai-lb, password: hush");
    let mut instances = Instances::start_with(server, 2, limits, &yaml).await;
    for balancer in &instances.balancers {
        assert_eq!(post(balancer).await.status, 200);
    }
    instances.wait_until_used(2).await;
    instances.balancers[0].stop().await;
    let refused = instances.server.command("", &["ACL", "LOG"]).await;
    assert_eq!(refused, redis::Value::Array(Vec::new()), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_logged_once_and_no_request_fails() {
    let instances = Instances::start(1, "requests_per_minute: 60", "").await;
    let balancer = &instances.balancers[0];
    assert_eq!(post(balancer).await.status, 200);
    for setting in [["maxmemory-policy", "noeviction"], ["maxmemory", "1"]] {
        instances.server.command("", &["CONFIG", "SET", setting[0], setting[1]]).await;
    }
    for _ in 0..20 {
        assert_eq!(post(balancer).await.status, 200);
    }
    let problem = "the limits of clients cannot be shared: the server answered OOM";
    balancer.wait_for_log(problem).await;
    instances.server.command("", &["CONFIG", "SET", "maxmemory", "0"]).await;
    balancer.wait_for_log("the limits of clients are shared again").await;
    assert_eq!(post(balancer).await.status, 200);
    instances.wait_until_used(22).await;
    assert_eq!(balancer.log().matches(problem).count(), 1);
}

/// How many commands a server has run, also in scripts, and its time in seconds.
async fn commands_run(server: &RedisServer) -> (u64, f64) {
    let info = server.command("", &["INFO", "commandstats"]).await;
    let info: String = redis::from_redis_value(info).unwrap();
    let calls = info.lines().filter_map(|line| line.split_once(":calls=")?.1.split(',').next());
    let calls = calls.map(|calls| calls.parse::<u64>().unwrap()).sum();
    let time = server.command("", &["TIME"]).await;
    let (seconds, micros): (f64, f64) = redis::from_redis_value(time).unwrap();
    (calls, seconds + micros / 1e6)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_cost_few_commands_while_no_requests_come() {
    /// For each instance with one client, whatever it shares.
    const MAX_PER_SECOND: f64 = 20.0;
    let limits = "requests_per_minute: 600, tokens_per_minute: 100000, in_flight: 10";
    let instances = Instances::start(2, limits, "").await;
    for balancer in &instances.balancers {
        assert_eq!(post(balancer).await.status, 200);
    }
    instances.wait_until_used(2).await;
    let before = commands_run(&instances.server).await;
    // What is measured is a rate: it needs time. It includes the refresh of limits that are not in use.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let after = commands_run(&instances.server).await;
    let per_second = (after.0 - before.0) as f64 / (after.1 - before.1) / 2.0;
    assert!(per_second <= MAX_PER_SECOND, "{per_second} commands per second");
    // It still shares.
    assert!(per_second >= 2.0, "{per_second} commands per second");
}
