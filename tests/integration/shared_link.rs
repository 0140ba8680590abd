//! The connection to the server of `shared`, used as the balancer does: commands, scripts, messages.

use crate::support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aoai_lb::config::parse_and_check_yaml;
use aoai_lb::credentials::Keyring;
use aoai_lb::shared::{DEFAULT_TIME_LIMIT, Script, SharedError, SharedLink, Value, cmd, find_secret};
use support::redis_server::RedisServer;
use support::{free_port, poll, wait_until, wait_until_async};
use tokio::runtime::Handle;

/// More than a server on this machine takes, however busy that is.
const LONG: Duration = Duration::from_secs(20);

fn start_link(url: &str, more: &str) -> Arc<SharedLink> {
    let yaml = format!(
        "listeners: [ {{ address: '127.0.0.1:1' }} ]\nclients: open\n\
         backends: [ {{ name: a, endpoint: 'https://a.b', credential: {{ api_key: k }} }} ]\n\
         shared: {{ redis: {{ url: '{url}'{more} }} }}"
    );
    let config = parse_and_check_yaml(&yaml, Path::new("/"), &|_| None).unwrap().config;
    let redis = config.shared.unwrap();
    let keyring = Keyring::new(&Handle::current());
    let password = find_secret(&redis, &config.key_vault, &keyring);
    SharedLink::start(&redis, password, &Handle::current())
}

async fn start_connected(server: &RedisServer) -> Arc<SharedLink> {
    let link = start_link(&server.url(), "");
    wait_until("the link is up", || link.is_up()).await;
    link
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_scripts_have_results_and_errors_of_the_server() {
    let server = RedisServer::start(&[]).await;
    let link = start_connected(&server).await;
    let key = link.keys().key_of("team-a", "x");
    assert_eq!(link.run(cmd("SET").arg(&key).arg("7"), LONG).await.unwrap(), Value::Okay);
    let script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    let mut invocation = script.prepare_invoke();
    invocation.key(&key).arg(5);
    // The first time the server does not know the script, and again after it has forgotten all of them.
    assert_eq!(link.run_script(&invocation, LONG).await.unwrap(), Value::Int(12));
    link.run(cmd("SCRIPT").arg("FLUSH"), LONG).await.unwrap();
    assert_eq!(link.run_script(&invocation, LONG).await.unwrap(), Value::Int(17));
    let refused = link.run(cmd("LPUSH").arg(&key).arg("1"), LONG).await.unwrap_err();
    assert!(matches!(&refused, SharedError::Refused { code, .. } if code == "WRONGTYPE"), "{refused:?}");
    assert!(link.is_up() && link.problem().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_fails_at_once_without_a_connection_and_in_time_without_an_answer() {
    let mut server = RedisServer::start(&[]).await;
    let link = start_connected(&server).await;
    server.send_signal("STOP");
    let started = Instant::now();
    let silent = link.run(&cmd("PING"), DEFAULT_TIME_LIMIT).await.unwrap_err();
    assert!(matches!(silent, SharedError::TimedOut(DEFAULT_TIME_LIMIT)), "{silent:?}");
    assert!(
        (DEFAULT_TIME_LIMIT..Duration::from_secs(1)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    wait_until("the silence is noticed", || !link.is_up()).await;
    let down = link.run(&cmd("PING"), LONG).await.unwrap_err();
    assert!(matches!(down, SharedError::Down), "{down:?}");
    let expected =
        format!("cannot use Redis at 127.0.0.1:{}: it accepts connections but does not answer", server.port);
    poll("the problem is told", async || match link.problem() {
        Some(problem) if problem.starts_with(&expected) => Ok(()),
        other => Err(other),
    })
    .await;
    server.send_signal("CONT");
    wait_until("the link is up again", || link.is_up()).await;
    assert_eq!(link.run(&cmd("PING"), LONG).await.unwrap(), Value::SimpleString("PONG".to_owned()));
    server.kill();
    wait_until("the end is noticed", || !link.is_up()).await;
    wait_until("the newest problem is told", || {
        link.problem()
            .is_some_and(|problem| problem.ends_with(": connection refused (nothing listens there)"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_all_who_have_subscribed_also_after_the_server_was_away() {
    let mut server = RedisServer::start(&[]).await;
    let (publisher, subscriber) = (start_connected(&server).await, start_connected(&server).await);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listen = |link: &SharedLink, name: &'static str| {
        let heard = Arc::clone(&heard);
        let topic = name.trim_end_matches(char::is_numeric);
        link.subscribe(topic, move |payload| heard.lock().unwrap().push((name, payload.to_vec())));
    };
    listen(&subscriber, "cooldowns1");
    listen(&subscriber, "homes1");
    listen(&publisher, "cooldowns2");
    let all_hear = async |payload: &'static [u8]| {
        // A subscription is made in the background: until then a message is missed, as it may be.
        wait_until_async("all have heard it", async || {
            publisher.publish("cooldowns", payload.to_vec());
            let heard = heard.lock().unwrap();
            ["cooldowns1", "cooldowns2"].iter().all(|name| heard.contains(&(name, payload.to_vec())))
        })
        .await;
    };
    all_hear(b"\x00one\xff").await;
    assert!(heard.lock().unwrap().iter().all(|(name, _)| *name != "homes1"));
    server.kill();
    wait_until("both are down", || !publisher.is_up() && !subscriber.is_up()).await;
    let dropped = publisher.dropped_message_count();
    publisher.publish("cooldowns", b"lost".to_vec());
    assert_eq!(publisher.dropped_message_count(), dropped + 1);
    server.start_again().await;
    wait_until("both are up", || publisher.is_up() && subscriber.is_up()).await;
    // Who is up has its subscriptions already.
    publisher.publish("cooldowns", b"two".to_vec());
    wait_until("both have heard it", || {
        let heard = heard.lock().unwrap();
        ["cooldowns1", "cooldowns2"].iter().all(|name| heard.contains(&(name, b"two".to_vec())))
    })
    .await;
    assert!(heard.lock().unwrap().iter().all(|(_, payload)| payload != b"lost"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_become_a_replica_is_left_and_told() {
    let server = RedisServer::start(&[]).await;
    let link = start_connected(&server).await;
    let port = free_port().to_string();
    server.command("", &["REPLICAOF", "127.0.0.1", &port]).await;
    let refused = link.run(cmd("SET").arg("x").arg("1"), LONG).await.unwrap_err();
    assert!(matches!(&refused, SharedError::Refused { code, .. } if code == "READONLY"), "{refused:?}");
    wait_until("the problem is told", || {
        link.problem()
            .is_some_and(|problem| problem.contains("it is a replica, to which nothing can be written"))
    })
    .await;
    server.command("", &["REPLICAOF", "NO", "ONE"]).await;
    wait_until("the link is up again", || link.is_up()).await;
}
