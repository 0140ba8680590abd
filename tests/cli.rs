//! The commands as an operator uses them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use aoai_lb::demo::Mood;
use support::{Balancer, CHAT, Client, HELLO, KEY, azure, backends};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    // What the examples in conf/ and the README take from the environment.
    for name in ["EASTUS_KEY", "WESTUS_KEY", "SWEDEN_KEY", "BACKEND_1_KEY", "BACKEND_2_KEY"] {
        command.env(name, "an-azure-key");
    }
    for (n, name) in ["TEAM_A_SHA256", "TEAM_B_SHA256", "SUBSCRIPTION_1_SHA256", "SUBSCRIPTION_2_SHA256"]
        .iter()
        .enumerate()
    {
        command.env(name, support::sha256(&n.to_string()));
    }
    command.env("LOGS_DIRECTORY", std::env::temp_dir());
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_example_passes_the_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(root.join("conf")).unwrap().map(|entry| entry.unwrap().path());
    let mut checked = 0;
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        if file.ends_with("simulate.yaml") {
            assert!(aoai_lb::demo::load(&file).is_ok());
            continue;
        }
        let output = run(&["check", "-c", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}: {}", file.display(), text(&output.stderr));
        checked += 1;
    }
    assert!(checked >= 3);
    // And those that the README shows.
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let whole: Vec<&&str> =
        blocks.iter().filter(|block| block.contains("listeners:") && block.contains("clients:")).collect();
    assert!(!whole.is_empty());
    for block in whole {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("readme.yaml");
        std::fs::write(&file, block.replace("REPLACE-ME: output of aoai-lb keys new", &support::sha256("x")))
            .unwrap();
        let output = run(&["check", "-c", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{block}\n{}", text(&output.stderr));
    }
}

#[test]
fn check_tells_every_problem_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(
        &file,
        "listeners:\n  - adress: 127.0.0.1:1\nbackends:\n  - name: a\n    endpoint: https://x/y\n    weight: 0\n    credential: { api_key: \"${NOT_SET_ANYWHERE}\" }\ntimeouts: { connect: 5 }\n",
    )
    .unwrap();
    let output = run(&["check", "-c", file.to_str().unwrap()]);
    let lines = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for expected in [
        "listeners[0].adress",
        "address",
        "backends[0].endpoint",
        "backends[0].weight",
        "NOT_SET_ANYWHERE",
        "timeouts.connect",
        "clients",
    ] {
        assert!(lines.contains(expected), "{expected} is not in\n{lines}");
    }
    assert!(lines.lines().count() >= 6, "{lines}");
    // It does not serve such a file either.
    assert_eq!(run(&["run", "-c", file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn exit_codes_are_good_bad_and_usage() {
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["serve"]).status.code(), Some(2));
    assert_eq!(run(&["check"]).status.code(), Some(2));
    let output = run(&["check", "-c", "/does/not/exist.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/does/not/exist.yaml"));
}

#[tokio::test]
async fn a_new_key_opens_the_door_it_was_made_for() {
    let output = run(&["keys", "new", "team-x"]);
    assert_eq!(output.status.code(), Some(0));
    let printed = text(&output.stdout);
    let key = printed.lines().map(str::trim).find(|line| line.len() == 64).unwrap().to_owned();
    let yaml = printed.split("`clients:`\n\n").nth(1).unwrap();
    let azure = azure(&["a"]).await;
    let balancer = Balancer::with_clients(&backends(&azure), &format!("clients:\n{yaml}"), "").await;
    assert_eq!(balancer.post(CHAT, &[("api-key", &key)], HELLO.as_bytes()).await.status, 200);
    assert_eq!(balancer.chat().await.status, 401);
    assert_eq!(balancer.records_of(2).await[0]["client"], "team-x");
    assert_eq!(run(&["keys", "new", "team x"]).status.code(), Some(1));
    assert_ne!(text(&run(&["keys", "new", "team-x"]).stdout), printed);
}

#[tokio::test]
async fn a_taken_address_is_told_and_not_panicked_about() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    let output = run(&["run", "-c", balancer.path("aoai-lb.yaml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("listeners[0].address") && !told.contains("panicked"), "{told}");
}

#[tokio::test]
async fn sigterm_fails_readiness_first_finishes_what_runs_and_keeps_every_record() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backends(&azure), "server: { drain_delay: 700ms }").await;
    for _ in 0..50 {
        assert_eq!(balancer.chat().await.status, 200);
    }
    azure.set_mood("a", Mood::SlowFirstByte(std::time::Duration::from_millis(1500)));
    let mut running = balancer.client().await;
    running
        .send(
            Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &HELLO.len().to_string())])
                .as_bytes(),
        )
        .await;
    running.send(HELLO.as_bytes()).await;
    support::until("it runs", || azure.hits("a") == 51).await;
    balancer.signal("TERM");
    let probe = async |target| balancer.client().await.get(target, &[]).await;
    while probe("/readyz").await.status != 503 {}
    let health = probe("/healthz").await;
    assert_eq!((health.status, health.header("connection")), (200, Some("close")), "still listening");
    let begun = Instant::now();
    let reply = running.reply().await;
    assert_eq!((reply.status, reply.whole), (200, true));
    assert_eq!(balancer.ended().await, 0);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "the grace period was slept through");
    assert_eq!(balancer.records().len(), 51);
}

#[tokio::test]
async fn sigint_ends_a_stop_that_takes_too_long() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backends(&azure), "").await;
    azure.set_mood("a", Mood::Mute);
    let mut running = balancer.client().await;
    let length = HELLO.len().to_string();
    running
        .send(Client::head("POST", CHAT, &[("api-key", KEY), ("Content-Length", &length)]).as_bytes())
        .await;
    running.send(HELLO.as_bytes()).await;
    support::until("it runs", || azure.hits("a") == 1).await;
    balancer.signal("TERM");
    support::until("it has stopped listening", || std::net::TcpStream::connect(balancer.address).is_err())
        .await;
    balancer.signal("INT");
    assert_eq!(balancer.ended().await, 0);
}

#[tokio::test]
async fn the_demo_works_as_printed() {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .arg("demo")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut printed = String::new();
    while !printed.contains("End with") {
        printed += &(lines.next().unwrap().unwrap() + "\n");
    }
    let key = printed.split("api-key: ").nth(1).unwrap().split('"').next().unwrap();
    let target = printed.split("http://127.0.0.1:8080").find(|rest| rest.starts_with("/openai")).unwrap();
    let target = target.split('"').next().unwrap();
    let address = "127.0.0.1:8080".parse().unwrap();
    let deadline = Instant::now() + support::PATIENCE;
    let mut client = loop {
        match Client::try_connect(address).await {
            Ok(client) => break client,
            Err(problem) => assert!(Instant::now() < deadline, "{problem}"),
        }
    };
    let reply = client.post(target, &[("api-key", key)], HELLO.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut admin = Client::connect("127.0.0.1:9901".parse().unwrap()).await;
    let status = admin.get("/api/status", &[("Host", "127.0.0.1:9901")]).await.json();
    assert_eq!(status["backends"].as_array().unwrap().len(), 3);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_access_log_is_for_those_who_ask_for_it() {
    let azure = azure(&["a"]).await;
    let target = format!("{CHAT}&api-key={KEY}");
    let variables = [("RUST_LOG", "warn,aoai_lb=info,access=info".to_owned())];
    let balancer = Balancer::in_environment(&variables, &backends(&azure), "").await;
    let reply = balancer.post(&target, &[], HELLO.as_bytes()).await;
    let id = reply.header("x-aoai-lb-request-id").unwrap();
    let line = "127.0.0.1 team-a POST /openai/deployments/gpt-4o/chat/completions 200 by a in ";
    balancer.until_said(&format!("{id} {line}")).await;
    assert!(!balancer.log().contains(KEY));
    let balancer = Balancer::start(&backends(&azure), "").await;
    balancer.post(&target, &[], HELLO.as_bytes()).await;
    balancer.records_of(1).await;
    assert!(!balancer.log().contains("POST"), "{}", balancer.log());
}

#[test]
fn usage_is_summed_up_from_files_and_strange_ones_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("exchanges.jsonl");
    let line = r#"{"time":"2026-11-23T08:00:00Z","request_id":"01a20776-cbd3-7efe-9689-f3f27b33c881","client":"team-a","deployment":"gpt-4o","backend":"east","input_tokens":3,"output_tokens":4,"total_tokens":7}"#;
    std::fs::write(&path, format!("{line}\nstrange\n")).unwrap();
    let output = run(&["usage", "--format", "csv", path.to_str().unwrap()]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.ends_with("2026-11-23,team-a,gpt-4o,east,1,3,4,0,0,7\n"), "{out}");
    assert!(output.status.success() && err.contains("1 lines are no records"), "{err}");
    assert_eq!(run(&["usage"]).status.code(), Some(2));
    let missing = run(&["usage", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/file: No such file"));
}
