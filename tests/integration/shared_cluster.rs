//! Several balancers with one cluster of Redis servers, in which each key has its node.

use crate::shared::{
    instance_count, live_check, metrics, requests_go_on_while, shared_status, start_balancer, wait_for_shared,
};
use crate::shared_homes::home_key;
use crate::shared_limits::{Instances, post};
use crate::shared_rests::{Backend, start_balancers, wait_until_resting};
use crate::support;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use support::redis_cluster::RedisCluster;
use support::stateful_upstream::StatefulUpstream;
use support::tls::{CertificateAuthority, generate_authority, generate_key, issue_certificate};
use support::{Balancer, CLIENT_KEY, answering_backend, free_port, poll, wait_until_async};

/// A key of the client of the tests.
const CLIENT_LIMIT: &str = "{aoai-lb:1:team-a}:limit:requests_per_minute";
const INSTANCES: &str = "aoai-lb:1:instances";
/// Nodes find out quickly that another one is gone.
const QUICK: [&str; 2] = ["--cluster-node-timeout", "2000"];

fn shared_yaml(cluster: &RedisCluster, node: usize, more: &str) -> String {
    cluster.nodes[node].shared_yaml(more)
}

/// Two balancers whose configuration names a node that has not the limits of their client.
async fn start_instances(cluster: RedisCluster, limits: &str) -> Instances<RedisCluster> {
    let other = (cluster.owner(CLIENT_LIMIT).await + 1) % 3;
    let yaml = shared_yaml(&cluster, other, "");
    Instances::start_with(cluster, 2, limits, &yaml).await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_exact_over_all_instances() {
    let instances = start_instances(RedisCluster::start(0, &[]).await, "requests_per_minute: 60").await;
    let mut answered = 0;
    poll("the limit is used up", async || {
        answered += instances.answered(3, "requests_per_minute").await.iter().sum::<usize>();
        if answered >= 60 { Ok(()) } else { Err(answered) }
    })
    .await;
    let limited_alone = instances.limited_alone().await;
    assert!((60..=60 + limited_alone).contains(&answered), "{answered}, {limited_alone} alone");
    let answered = answered as u64;
    poll("all know what is used", async || match instances.used().await {
        used if used.iter().all(|used| (answered..=answered + 3).contains(used)) => Ok(()),
        used => Err(used),
    })
    .await;
    let fields = instances.server.command(&["HLEN", CLIENT_LIMIT]).await;
    assert_eq!(fields, redis::Value::Int(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_have_several_nodes_are_looked_up_together() {
    let cluster = RedisCluster::start(0, &[]).await;
    let (a, b) = (StatefulUpstream::start("a").await, StatefulUpstream::start("b").await);
    let (backends, shared) = (a.backend_yaml("") + &b.backend_yaml(""), shared_yaml(&cluster, 0, ""));
    let balancers = start_balancers(2, &backends, &shared).await;
    let send = async |balancer: &Balancer, method: &str, target: &str, body: &str| {
        let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
        balancer.connect().await.request(method, target, &headers, Some(body.as_bytes())).await
    };
    // On a busy machine a node may need longer than the 5 ms that a request waits. Each id is used once.
    for attempt in 1.. {
        let files: Vec<String> = (0..12).map(|_| b.make("file-")).collect();
        for file in &files {
            let found = send(&balancers[0], "GET", &format!("/openai/v1/files/{file}"), "").await;
            assert_eq!((found.status, &*answering_backend(&found)), (200, "b"));
        }
        for file in &files {
            wait_until_async("its home is kept", async || {
                cluster.command(&["GET", &home_key(file)]).await != redis::Value::Nil
            })
            .await;
        }
        let item =
            |file: &String| json!({"role": "user", "content": [{"type": "input_file", "file_id": file}]});
        let input: Vec<_> = files.iter().map(item).collect();
        let body = json!({"model": "gpt-4o", "input": input}).to_string();
        let answered = send(&balancers[1], "POST", "/openai/v1/responses", &body).await;
        assert_eq!((answered.status, &*answering_backend(&answered)), (200, "b"), "{}", answered.text());
        let metrics = metrics(&balancers[1]).await;
        let learned = |line: &str| {
            line.starts_with("aoai_lb_affinity_requests_total")
                && line.contains("how=\"learned\"")
                && !line.ends_with(" 0")
        };
        if metrics.lines().any(learned) {
            break;
        }
        assert!(attempt < 30, "none is learned");
    }
    // All nodes have some of them.
    for node in &cluster.nodes {
        let keys = node.command("", &["KEYS", "aoai-lb:1:home:*"]).await;
        assert_ne!(keys, redis::Value::Array(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_instance_publishes_reaches_those_that_listen_on_other_nodes() {
    let cluster = RedisCluster::start(0, &[]).await;
    let (first, second) = (Backend::healthy().await, Backend::healthy().await);
    let backends = first.yaml("first", "tier: 1") + &second.yaml("second", "tier: 2");
    let mut balancers = Vec::new();
    for node in 0..3 {
        balancers.push(Balancer::start(&backends, &shared_yaml(&cluster, node, "")).await);
    }
    for balancer in &balancers {
        wait_for_shared(balancer, "all are seen", |shared| instance_count(shared) == 3).await;
    }
    first.throttle(Duration::from_secs(30));
    assert_eq!(answering_backend(&balancers[0].post_chat().await), "second");
    for balancer in &balancers[1..] {
        wait_until_resting(balancer, "first", "cooling").await;
        assert_eq!(answering_backend(&balancer.post_chat().await), "second");
    }
    assert_eq!(first.request_count(), 1);
    // One that comes later reads it.
    let late = Balancer::start(&backends, &shared_yaml(&cluster, 1, "")).await;
    wait_until_resting(&late, "first", "cooling").await;
    assert_eq!(first.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_may_move_while_it_is_used() {
    let instances = start_instances(RedisCluster::start(0, &[]).await, "requests_per_minute: 600000").await;
    let cluster = &instances.server;
    let (slot, from) = (cluster.slot(CLIENT_LIMIT).await, cluster.owner(CLIENT_LIMIT).await);
    let to = (from + 2) % 3;
    let sent = AtomicU64::new(0);
    let send = async || {
        for balancer in &instances.balancers {
            assert_eq!(post(balancer).await.status, 200);
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let wait_until_counted = async |what: &str| {
        poll(what, async || {
            let (used, sent) = (instances.used().await, sent.load(Ordering::Relaxed));
            if used.iter().all(|used| *used == sent) { Ok(()) } else { Err((used, sent)) }
        })
        .await;
    };
    send().await;
    wait_until_counted("they are counted").await;
    cluster.begin_move(&slot, from, to).await;
    wait_until_async("a command is sent to the other node", async || {
        send().await;
        cluster.errors(from, "ASK").await > 0
    })
    .await;
    wait_until_counted("they are counted while the slot moves").await;
    cluster.end_move(&slot, from, to).await;
    wait_until_async("the move is noticed", async || {
        send().await;
        cluster.errors(from, "MOVED").await > 0
    })
    .await;
    wait_until_counted("they are counted after the move").await;
    // From then on the right node is asked at once.
    let moved = cluster.errors(from, "MOVED").await;
    poll("no command goes to the old node", async || {
        let before = cluster.errors(from, "MOVED").await;
        for _ in 0..20 {
            send().await;
        }
        wait_until_counted("the latest are counted").await;
        if cluster.errors(from, "MOVED").await == before { Ok(()) } else { Err((moved, before)) }
    })
    .await;
    for balancer in &instances.balancers {
        assert_eq!(shared_status(balancer).await["problem"], json!(null));
        assert!(!balancer.log().contains("cannot"), "{}", balancer.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_node_without_a_replica_is_away_that_is_said_and_made_up_for_later() {
    const PROBLEM: &str = "cannot use a part of Redis at 127.0.0.1:";
    let cluster =
        RedisCluster::start(0, &["--cluster-require-full-coverage", "no", QUICK[0], QUICK[1]]).await;
    let mut instances = start_instances(cluster, "requests_per_minute: 60").await;
    let lost = instances.server.owner(CLIENT_LIMIT).await;
    assert_ne!(lost, instances.server.owner(INSTANCES).await, "the test needs another prefix");
    instances.server.nodes[lost].kill();
    for balancer in &instances.balancers {
        wait_for_shared(balancer, "a part is away", |shared| {
            let problem = shared["problem"].as_str().unwrap_or_default();
            shared["up"] == true && problem.contains("of 16384 hash slots have no server")
        })
        .await;
        assert!(metrics(balancer).await.contains("\naoai_lb_shared_up 0\n"));
        // The list of instances is on another node.
        assert_eq!(instance_count(&shared_status(balancer).await), 2);
    }
    requests_go_on_while(&instances.balancers[0], async {}).await;
    assert_eq!(instances.answered(30, "requests_per_minute").await, [20, 30]);
    instances.server.nodes[lost].start_again().await;
    instances.server.wait_until_whole().await;
    for balancer in &instances.balancers {
        wait_for_shared(balancer, "all of it is back", |shared| {
            shared["up"] == true && shared["problem"].is_null()
        })
        .await;
        assert_eq!(balancer.log().matches(PROBLEM).count(), 1, "{}", balancer.log());
        balancer.wait_for_log("shared.redis: all of the cluster at ").await;
        assert!(!balancer.log().contains("cannot be shared"), "{}", balancer.log());
    }
    poll("all requests are counted", async || match instances.used().await {
        used if used == [60, 60] => Ok(()),
        used => Err(used),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_refuses_everything_while_a_part_is_away_is_away() {
    let mut cluster = RedisCluster::start(0, &QUICK).await;
    let lost = cluster.owner(INSTANCES).await;
    let balancer = start_balancer(&shared_yaml(&cluster, (lost + 1) % 3, "")).await;
    wait_for_shared(&balancer, "it is up", |shared| instance_count(shared) == 1).await;
    cluster.nodes[lost].kill();
    requests_go_on_while(&balancer, async {
        wait_for_shared(&balancer, "it is down", |shared| {
            let problem = shared["problem"].as_str().unwrap_or_default();
            shared["up"] == false && problem.contains("a part of the cluster has no server")
        })
        .await;
    })
    .await;
    cluster.nodes[lost].start_again().await;
    wait_for_shared(&balancer, "it is up", |shared| shared["up"] == true && shared["problem"].is_null())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_over_also_for_the_node_of_the_configuration() {
    let mut cluster = RedisCluster::start(1, &QUICK).await;
    let balancers = [
        start_balancer(&shared_yaml(&cluster, 0, "")).await,
        start_balancer(&shared_yaml(&cluster, 1, "")).await,
    ];
    for balancer in &balancers {
        wait_for_shared(balancer, "both are seen", |shared| instance_count(shared) == 2).await;
    }
    cluster.nodes[0].kill();
    requests_go_on_while(&balancers[0], async {
        wait_until_async("the replica takes over", async || {
            cluster.nodes[3].info_line("", "role:").await.as_deref() == Some("master")
        })
        .await;
        for balancer in &balancers {
            wait_for_shared(balancer, "all of it is up", |shared| {
                shared["up"] == true && shared["problem"].is_null() && instance_count(shared) == 2
            })
            .await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_in_the_manual_are_enough_and_what_is_missing_is_named() {
    let cluster = RedisCluster::start(0, &[]).await;
    for node in &cluster.nodes {
        node.add_user_of_manual("hush").await;
    }
    let yaml = shared_yaml(&cluster, 2, ", username: aoai-lb, password: hush");
    let limits = "requests_per_minute: 600000, tokens_per_day: 1000000";
    let instances = Instances::start_with(cluster, 2, limits, &yaml).await;
    let cluster = &instances.server;
    let (slot, from) = (cluster.slot(CLIENT_LIMIT).await, cluster.owner(CLIENT_LIMIT).await);
    cluster.begin_move(&slot, from, (from + 1) % 3).await;
    wait_until_async("a command is sent to the other node", async || {
        for balancer in &instances.balancers {
            assert_eq!(post(balancer).await.status, 200);
        }
        cluster.errors(from, "ASK").await > 0
    })
    .await;
    cluster.end_move(&slot, from, (from + 1) % 3).await;
    let good = live_check(&yaml).await;
    for node in &cluster.nodes {
        let refused = node.command("", &["ACL", "LOG"]).await;
        assert_eq!(refused, redis::Value::Array(Vec::new()), "{refused:?}");
        let line = format!("good  shared.redis  node: 127.0.0.1:{} answers\n", node.port);
        assert!(good.contains(&line), "{good}");
    }
    assert!(good.contains("scripts run; 2 instances: "), "{good}");
    // The rights of each node are its own.
    cluster.nodes[1].command("", &["ACL", "SETUSER", "aoai-lb", "-eval"]).await;
    cluster.nodes[1].command("", &["ACL", "SETUSER", "aoai-lb", "-evalsha"]).await;
    let weak = live_check(&yaml).await;
    let expected = format!(
        "BAD   shared.redis  node: 127.0.0.1:{}: the user of shared.redis may not run what is needed",
        cluster.nodes[1].port
    );
    assert!(weak.contains(&expected), "{weak}");
    cluster.nodes[2].command("", &["ACL", "SETUSER", "aoai-lb", "-cluster"]).await;
    let blind = live_check(&yaml).await;
    let expected = "BAD   shared.redis  connection: the user of shared.redis may not run what is needed";
    assert!(blind.contains(expected) && blind.contains("cluster|slots"), "{blind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_needed_on_each_node() {
    let mut cluster = RedisCluster::start(0, &[]).await;
    cluster.require_password("hush").await;
    let (good, wrong) = (
        shared_yaml(&cluster, 1, ", password: hush"),
        shared_yaml(&cluster, 1, ", password: other-password"),
    );
    let balancer = start_balancer(&good).await;
    wait_for_shared(&balancer, "it is up", |shared| {
        instance_count(shared) == 1 && shared["problem"].is_null()
    })
    .await;
    let text = live_check(&wrong).await;
    let expected = "BAD   shared.redis  connection: it does not accept the user name or the password";
    assert!(text.contains(expected) && !text.contains("other-password"), "{text}");
    // Of two nodes it is accepted.
    let other = [0, 2].into_iter().find(|node| *node != 1).unwrap();
    cluster.nodes[other].command("hush", &["CONFIG", "SET", "requirepass", "changed"]).await;
    let text = live_check(&good).await;
    let expected = format!(
        "BAD   shared.redis  node: 127.0.0.1:{}: it does not accept the user name or the password",
        cluster.nodes[other].port
    );
    assert!(text.contains(&expected) && text.contains("BAD   shared.redis  slots: 5461 of 16384"), "{text}");
}

/// The arguments of a server with a certificate for `localhost`, and its port for TLS.
fn tls_arguments(authority: &CertificateAuthority, directory: &Path) -> Vec<String> {
    let key = generate_key();
    let certificate = issue_certificate("localhost", (-1, 1), &key, Some(authority));
    let port = free_port();
    let write = |name: &str, bytes: Vec<u8>| {
        let path = directory.join(format!("{port}-{name}"));
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let certificate = write("cert.pem", certificate.to_pem().unwrap());
    let key = write("key.pem", key.private_key_to_pem_pkcs8().unwrap());
    let ca = write("ca.pem", authority.certificate.to_pem().unwrap());
    [
        ["--tls-port", &port.to_string()],
        ["--tls-cert-file", &certificate],
        ["--tls-key-file", &key],
        ["--tls-ca-cert-file", &ca],
        ["--tls-auth-clients", "no"],
        ["--tls-cluster", "yes"],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_announced_by_address_have_the_certificate_of_the_configured_name() {
    let (authority, other) = (generate_authority(), generate_authority());
    let directory = tempfile::tempdir().unwrap();
    let arguments: Vec<_> = (0..3).map(|_| tls_arguments(&authority, directory.path())).collect();
    let cluster = RedisCluster::start_with(0, |number| arguments[number].clone()).await;
    let ca = |authority: &CertificateAuthority, name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, authority.certificate.to_pem().unwrap()).unwrap();
        path.display().to_string()
    };
    let port = &arguments[0][1];
    let block =
        |ca: String| format!("shared: {{ redis: {{ url: 'rediss://localhost:{port}', ca: '{ca}' }} }}\n");
    let balancer = start_balancer(&block(ca(&authority, "ca.pem"))).await;
    wait_for_shared(&balancer, "it is up", |shared| {
        instance_count(shared) == 1 && shared["problem"].is_null()
    })
    .await;
    let text = live_check(&block(ca(&authority, "ca.pem"))).await;
    for arguments in &arguments {
        let line = format!("good  shared.redis  node: 127.0.0.1:{} answers\n", arguments[1]);
        assert!(text.contains(&line), "{text}");
    }
    let text = live_check(&block(ca(&other, "other.pem"))).await;
    assert!(text.contains("; it has to come from an authority in shared.redis.ca"), "{text}");
    drop(cluster);
}
