//! What an operator sees of stored objects: status, metrics, drains, recent trouble, explain.

use crate::support;

use aoai_lb::state::homes_log::{HomeEntry, HomeRecord, encode, header};
use serde_json::{Value, json};
use support::affinity_traffic::AffinityTraffic;
use support::stateful_upstream::StatefulUpstream;
use support::{Balancer, CLIENT_KEY, Client, Response, answering_backend, poll};
use tokio::process::Command;

const RESPONSES: &str = "/openai/v1/responses";

/// Runs a command of the binary, and returns its exit code and all that it printed.
async fn run(balancer: &Balancer, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(arguments).env("STATE_DIRECTORY", balancer.path("state")).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

async fn respond(balancer: &Balancer, body: Value) -> Response {
    let mut request = json!({"model": "gpt-4o", "input": "hi"});
    request.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
    balancer.post(RESPONSES, &headers, request.to_string().as_bytes()).await
}

async fn get(balancer: &Balancer, target: &str) -> Response {
    balancer.connect().await.request("GET", target, &[("api-key", CLIENT_KEY)], Some(b"")).await
}

async fn get_admin(balancer: &Balancer, target: &str) -> Response {
    Client::connect(balancer.admin_address).await.get(target, &[("Host", "localhost")]).await
}

fn resource<'a>(status: &'a Value, backend: &str) -> &'a Value {
    let resources = status["affinity"]["resources"].as_array().unwrap();
    resources
        .iter()
        .find(|resource| resource["backends"].as_array().unwrap().contains(&json!(backend)))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_where_objects_live_and_what_is_asked() {
    let (a, b) = (StatefulUpstream::start("a").await, StatefulUpstream::start("b").await);
    let east = a.backend_yaml("resource: east");
    let backends = [&east, &east.replace("name: a\n", "name: a2\n"), &b.backend_yaml("")];
    let backends = backends.map(String::as_str).concat();
    let balancer = Balancer::start(&backends, "").await;
    let file = balancer.path("aoai-lb.yaml").display().to_string();

    let status = balancer.status().await;
    let affinity = &status["affinity"];
    assert_eq!(
        (&affinity["entries"], &affinity["owner"], &affinity["not_saved"], &affinity["bytes"]),
        (&json!(0), &json!("off"), &Value::Null, &json!(64 << 20)),
    );
    assert!(affinity["capacity"].as_u64().unwrap() > 1_000_000, "{affinity}");
    assert_eq!(resource(&status, "a")["backends"], json!(["a", "a2"]));
    assert_eq!(resource(&status, "a")["last_read_lag_ms"], Value::Null, "unknown is not 0");

    // One response of each resource, one continuation, and one object that was made elsewhere.
    let first = loop {
        let response = respond(&balancer, json!({})).await;
        if answering_backend(&response) == "b" {
            break response;
        }
    };
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answering_backend(&respond(&balancer, json!({"previous_response_id": id})).await), "b");
    let made_elsewhere = b.make("file-");
    let found = get(&balancer, &format!("/openai/v1/files/{made_elsewhere}")).await;
    assert_eq!((found.status, answering_backend(&found).as_str()), (200, "b"));
    assert_eq!(get(&balancer, "/openai/v1/files/file-nobody").await.status, 404);
    balancer
        .wait_for_status("all requests are counted", |status| {
            let (east, west) = (resource(status, "a"), resource(status, "b"));
            west["last_minute_requests"] == 2
                && west["asked"] == json!({"accepted": 1, "denied": 1})
                && east["asked"] == json!({"accepted": 0, "denied": 2})
                && east["last_minute_requests"] == 0
                && west["entries"].as_u64() >= Some(3)
                && status["affinity"]["entries"].as_u64() > west["entries"].as_u64()
        })
        .await;

    let metrics = get_admin(&balancer, "/metrics").await.text();
    let entries = resource(&balancer.status().await, "b")["entries"].as_u64().unwrap();
    let west = resource(&status, "b")["name"].as_str().unwrap().to_owned();
    for sample in [
        format!(r#"aoai_lb_affinity_entries{{resource="{west}"}} {entries}"#),
        r#"aoai_lb_affinity_evicted_total{maker="yes"} 0"#.to_owned(),
        r#"aoai_lb_affinity_asked_total{outcome="denied",resource="east"} 2"#.to_owned(),
    ] {
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }

    let list = get_admin(&balancer, "/api/requests").await.json();
    let causes: Vec<&str> = list["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|request| request["cause"].as_str().unwrap())
        .collect();
    assert_eq!(
        causes,
        [
            format!("no resource that was asked has what the request refers to: east, {west}"),
            format!("what the request refers to was found on {west}; not on east"),
        ]
    );

    let (code, text) = run(&balancer, &["status", "-v", "-c", &file]).await;
    let row = text.lines().find(|line| line.starts_with(&west)).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    let entries = entries.to_string();
    assert_eq!((code, &cells[1..5]), (Some(0), &[entries.as_str(), "2", "1", "1"][..]), "{text}");
    assert!(text.contains(" ids are remembered that fit into 64 MiB"), "{text}");

    // The process goes on writing its log.
    let explain = |id: String, target: &'static str| {
        let (file, balancer) = (file.clone(), &balancer);
        async move {
            let arguments = ["explain", "-c", &file, "POST", target, "--model", "gpt-4o", "--refers-to", &id];
            let (code, text) = run(balancer, &arguments).await;
            assert_eq!(code, Some(0), "{text}");
            text
        }
    };
    let log = balancer.path("state/homes.log").display().to_string();
    let remembered =
        format!("refers to   {id} (previous response): on the resource {west} (backends: b), made ");
    let text = poll("the object is remembered in the log", async || {
        let text = explain(id.clone(), RESPONSES).await;
        if text.contains(&remembered) { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(
        text.contains(&format!(" ago, as {log} tells"))
            && text.contains(&format!("only backends of {west} get the request")),
        "{text}"
    );
    assert!(text.contains("  1.        b: tier 1") && !text.contains("  2.  "), "{text}");
    let text = explain("resp_of_nobody".to_owned(), RESPONSES).await;
    for part in [
        &format!("refers to   resp_of_nobody (previous response): not remembered in {log}"),
        "affinity    the resources are asked in the order below until one has it",
        "its id does not tell when it was made: if all say no, they are asked again after 2s",
        "  2.  ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let drained = balancer.post_admin("/api/backends/a/drain").await.json();
    assert_eq!(drained["resource"]["name"], "east");
    assert_eq!(drained["resource"]["other_backends"], json!(["a2"]));
    let (code, text) = run(&balancer, &["drain", "b", "-c", &file]).await;
    assert!(
        code == Some(0)
            && text.contains(&format!("{entries} objects live on its resource {west}; requests that refer to them (2 in the last minute) still go there")),
        "{text}"
    );
    assert_eq!(answering_backend(&respond(&balancer, json!({"previous_response_id": id})).await), "b");
    let (_, text) = run(&balancer, &["undrain", "b", "-c", &file]).await;
    assert_eq!(text, "b is no longer drained\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_trouble_says_which_resource_was_late_or_unavailable() {
    let traffic = AffinityTraffic::start().await;
    let status = traffic.balancer.status().await;
    let names = ["a", "b"].map(|backend| resource(&status, backend)["name"].as_str().unwrap().to_owned());
    let requests = poll("three requests are kept", async || {
        let list = get_admin(&traffic.balancer, "/api/requests").await.json();
        if list["kept"] == 3 { Ok(list["requests"].clone()) } else { Err(list) }
    })
    .await;
    let [a, b] = &names;
    for (request, trouble, refusal, cause) in [
        (
            &requests[0],
            "refused",
            json!("home_unavailable"),
            format!(
                "{a}: not there; other resources, which may have what the request refers to, are unavailable: "
            ),
        ),
        (
            &requests[1],
            "retried",
            Value::Null,
            format!("what the request refers to was found on {b}; not on {a}"),
        ),
        (&requests[2], "retried", Value::Null, format!("{a} could read what it had made after ")),
    ] {
        assert_eq!((&request["trouble"], &request["refusal"]), (&json!(trouble), &refusal), "{request}");
        assert!(request["cause"].as_str().unwrap().starts_with(&cause), "{cause}: {request}");
    }
    assert!(requests[2]["waited_ms"].as_u64() >= Some(250), "{}", requests[2]);
    traffic
        .balancer
        .wait_for_status("the lag is known", |status| {
            resource(status, "a")["last_read_lag_ms"].is_u64()
                && resource(status, "b")["last_read_lag_ms"].is_null()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn makers_that_would_be_forgotten_degrade_the_whole_only_if_owners_are_enforced() {
    let upstream = StatefulUpstream::start("a").await;
    let variables = [("STATE_DIRECTORY", "/dev/null/state".to_owned())];
    for (owner, expected) in [("enforce", "degraded"), ("off", "healthy")] {
        let balancer = Balancer::start_with_environment(
            &variables,
            &upstream.backend_yaml(""),
            &format!("affinity: {{ owner: '{owner}' }}"),
        )
        .await;
        balancer.wait_for_status("it was looked at", |status| !status["service"]["since"].is_null()).await;
        let file = balancer.path("aoai-lb.yaml").display().to_string();
        let what = format!("the whole is {expected}");
        balancer.wait_for_status(&what, |status| status["service"]["state"] == expected).await;
        let status = balancer.status().await;
        let problem = status["affinity"]["not_saved"].as_str().unwrap();
        assert!(problem.starts_with("cannot use /dev/null/state: Not a directory"), "{problem}");
        assert_eq!(status["affinity"]["owner"], owner);
        let (_, text) = run(&balancer, &["status", "-c", &file]).await;
        assert!(
            text.contains(
                "ids of stored objects are forgotten when this process ends: cannot use /dev/null/state"
            ),
            "{text}"
        );
        let problems = status["service"]["problems"].as_array().unwrap();
        let is_named = problems.iter().any(|problem| problem["subject"] == "affinity.owner");
        assert_eq!(is_named, owner == "enforce", "{problems:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn makers_that_are_forgotten_for_lack_of_memory_are_told() {
    let upstream = StatefulUpstream::start("a").await;
    let directory = tempfile::tempdir().unwrap();
    // More ids than fit into 1 MiB, each of which a client has made.
    let mut log = header([7; 16]).to_vec();
    for key in 1..40_000_u64 {
        let key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let entry = HomeEntry { key, resource: 1, maker: 2, made_at: 3, used_at: 4, lags: false };
        encode(HomeRecord::Stored(entry), &mut log);
    }
    std::fs::write(directory.path().join("homes.log"), log).unwrap();
    let variables = [("STATE_DIRECTORY", directory.path().display().to_string())];
    let balancer = Balancer::start_with_environment(
        &variables,
        &upstream.backend_yaml(""),
        "affinity: { owner: enforce, memory: 1MiB }",
    )
    .await;
    balancer.wait_for_log("affinity.memory is full: ids of known makers were forgotten").await;
    balancer
        .wait_for_status("the whole is degraded", |status| {
            let problems = status["service"]["problems"].as_array().unwrap();
            let is_full =
                |problem: &Value| problem["text"].as_str().unwrap().contains("affinity.memory is full");
            status["service"]["state"] == "degraded" && problems.iter().any(is_full)
        })
        .await;
    let status = balancer.status().await;
    let affinity = &status["affinity"];
    assert!(affinity["evicted_with_maker"].as_u64() > Some(1_000), "{affinity}");
    assert_eq!(affinity["evicted"], affinity["evicted_with_maker"]);
    let file = balancer.path("aoai-lb.yaml").display().to_string();
    let (_, text) = run(&balancer, &["status", "-v", "-c", &file]).await;
    assert!(text.contains(" were forgotten since the memory was full, "), "{text}");
}
