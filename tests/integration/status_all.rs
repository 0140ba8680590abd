//! `aoai-lb status --all`: each instance that shares one Redis, and their sum.

use crate::status_command::{admin_url, run};
use crate::support;

use serde_json::Value;
use support::redis_server::RedisServer;
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, LISTED_DEPLOYMENTS, backend_yaml, poll};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn all_instances_are_shown_with_their_sum_unless_that_is_not_known() {
    let mut server = RedisServer::start(&[]).await;
    // It accepts connections, and answers nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let backends = backend_yaml("a", &url, LISTED_DEPLOYMENTS);
    let (first, second) = (
        Balancer::start(&backends, &server.shared_yaml("")).await,
        Balancer::start(&backends, &server.shared_yaml("")).await,
    );
    let mut requests = JoinSet::new();
    for balancer in [&first, &second, &second] {
        let mut client = balancer.connect().await;
        requests.spawn(async move {
            client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await
        });
    }
    let admin = admin_url(&first);
    let report = async || {
        let (code, json, stderr) = run(&["--all", "--json", "--admin", &admin]).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        serde_json::from_str::<Value>(&json).unwrap()
    };
    poll("the requests of both are counted", async || {
        let report = report().await;
        if report["total"]["in_flight"] == 3 && report["total"]["instances"] == 2 {
            Ok(())
        } else {
            Err(report)
        }
    })
    .await;
    // One of an earlier version, which reports less. It registers now.
    let register = "local now = redis.call('TIME') return redis.call('HSET', KEYS[1], 'earlier', \
                    now[1] .. '000 {\"name\":\"vm-0/1\",\"version\":\"0.0.1\",\"requests_per_second\":2.5}')";
    poll("it is left out of the sum", async || {
        server.command("", &["EVAL", register, "1", "aoai-lb:1:instances"]).await;
        let (code, text, _) = run(&["--all", "--admin", &admin]).await;
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let has = |beginning: &str| lines.iter().any(|line| line.starts_with(beginning));
        let own = format!("/{} (this one) ", first.pid());
        let is_told = code == Some(0)
            && has("INSTANCE STATE VERSION SINCE IN FLIGHT QUEUED REQUESTS/S")
            && has("vm-0/1 - 0.0.1 - - - 2.5")
            && has("TOTAL (3) 3 0 ")
            && lines.iter().any(|line| line.contains(&own) && line.contains(" 1 0 "))
            && has("The total of requests in flight and in queues leaves out 1 instance ");
        if is_told { Ok(()) } else { Err(text) }
    })
    .await;
    server.kill();
    poll("there is no total", async || {
        let report = report().await;
        let is_told = report["up"] == false
            && report["total"].is_null()
            && report["instances_seen"].is_string()
            && report["instances"].as_array().is_some_and(|instances| instances.len() >= 2);
        if is_told { Ok(()) } else { Err(report) }
    })
    .await;
    let (code, text, _) = run(&["--all", "--admin", &admin]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("There is no total: this is what was last known, at 20"), "{text}");
    assert!(text.contains("cannot use Redis at ") && !text.contains("TOTAL"), "{text}");

    let alone = Balancer::start(&backends, "").await;
    let (code, _, stderr) = run(&["--all", "--admin", &admin_url(&alone)]).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("this instance is alone: its configuration has no `shared`"), "{stderr}");
}
