//! Drains outlive restarts, kills and upgrades, and what happens to the state directory that they live in.

use crate::support;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use support::{
    Balancer, Client, LISTED_DEPLOYMENTS, answering_backend, is_process_alive, listed_backends_yaml,
    send_signal_to, simulated_backend_yaml, start_simulator, wait_until,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

/// The drained backends in the state file.
fn drained_in_file(balancer: &Balancer) -> Vec<String> {
    let text = std::fs::read_to_string(balancer.path("state/drains.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["version"], 1, "{file}");
    let names =
        file["drains"].as_array().unwrap().iter().map(|drain| drain["backend"].as_str().unwrap().to_owned());
    names.collect()
}

async fn states(balancer: &Balancer) -> Vec<String> {
    balancer.backend_states().await.into_iter().map(|(_, state)| state).collect()
}

/// The time since which a backend is drained, as the status says.
async fn drained_since(balancer: &Balancer, index: usize) -> chrono::DateTime<chrono::FixedOffset> {
    let status = balancer.status().await;
    chrono::DateTime::parse_from_rfc3339(status["backends"][index]["since"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_drain_outlives_a_stop_a_kill_and_an_upgrade_until_it_is_lifted() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    assert_eq!(drained_in_file(&balancer), Vec::<String>::new());
    let response = balancer.post_admin("/api/backends/b/drain").await.json();
    assert_eq!((&response["changed"], &response["save_problem"]), (&json!(true), &Value::Null));
    assert_eq!(drained_in_file(&balancer), ["b"]);
    let since = drained_since(&balancer, 1).await;
    let mode = std::fs::metadata(balancer.path("state/drains.json")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o640, "readable for the group as records are");

    assert_eq!(balancer.stop().await, 0);
    balancer.start_again().await;
    assert_eq!(states(&balancer).await[1], "drained");
    balancer.wait_for_log("WARN  aoai_lb::server::drained_backends] backend b: drained since 20").await;
    assert!((drained_since(&balancer, 1).await - since).num_seconds().abs() <= 1);
    for _ in 0..4 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    }

    // Without a chance to write anything.
    balancer.send_signal("KILL");
    balancer.start_again().await;
    assert_eq!(states(&balancer).await[1], "drained");

    assert!(balancer.run_upgrade_command().await.status.success());
    assert_eq!(states(&balancer).await[1], "drained");
    let pid = balancer.wait_until_single_process().await;
    // The successor is the one that writes now.
    assert_eq!(balancer.post_admin("/api/backends/a/drain").await.json()["save_problem"], Value::Null);
    assert_eq!(drained_in_file(&balancer), ["a", "b"]);
    assert_eq!(balancer.post_admin("/api/backends/b/undrain").await.json()["changed"], true);
    assert!(send_signal_to("KILL", pid));
    wait_until("the successor is gone", || !is_process_alive(pid)).await;
    balancer.start_again().await;
    assert_eq!(states(&balancer).await, ["drained", "healthy"]);
    assert!(!balancer.log().contains("kept in memory only"), "{}", balancer.log());
}

#[tokio::test]
async fn no_drain_is_lost_or_revived_by_upgrades_that_go_on_meanwhile() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let (admin, stop) = (balancer.admin_address, Arc::new(AtomicBool::new(false)));
    let stopping = Arc::clone(&stop);
    // Drains and undrains as fast as they are answered, and returns the last state that was confirmed.
    let operator = tokio::spawn(async move {
        let (mut drained, mut confirmed_count, mut retries) = (false, 0, 0);
        while !stopping.load(Ordering::Relaxed) {
            let verb = if drained { "undrain" } else { "drain" };
            let headers = [("Host", "localhost"), ("x-aoai-lb-admin", "1")];
            let Ok(mut client) = Client::try_connect(admin).await else { continue };
            let response = client.try_post(&format!("/api/backends/b/{verb}"), &headers, b"").await;
            match response {
                Some(response) if response.status == 200 => {
                    let body = response.json();
                    assert_eq!(body["changed"], true, "a confirmed change was lost");
                    assert_eq!(body["save_problem"], Value::Null);
                    (drained, confirmed_count) = (!drained, confirmed_count + 1);
                }
                Some(response) => {
                    assert_eq!(response.status, 503, "{}", response.text());
                    retries += 1;
                }
                None => panic!("the connection broke: whether {verb} took effect is unknown"),
            }
        }
        (drained, confirmed_count, retries)
    });
    for _ in 0..3 {
        assert!(balancer.run_upgrade_command().await.status.success());
    }
    stop.store(true, Ordering::Relaxed);
    let (drained, confirmed_count, retries) = operator.await.unwrap();
    println!("{confirmed_count} changes, {retries} retries");
    assert!(confirmed_count > 10);
    let expected = if drained { "drained" } else { "healthy" };
    assert_eq!(states(&balancer).await[1], expected);
    let pid = balancer.wait_until_single_process().await;
    assert!(send_signal_to("KILL", pid));
    wait_until("the process is gone", || !is_process_alive(pid)).await;
    balancer.start_again().await;
    assert_eq!(states(&balancer).await[1], expected);
}

#[tokio::test]
async fn backends_can_be_drained_again_after_a_handover_that_failed() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    // A successor that gets the drains and then goes no further.
    let socket = balancer.path("run/upgrade.sock.control");
    let mut successor = ScriptedSuccessor::connect(&socket).await;
    successor.send(r#"{"succeed":{"pid":1}}"#).await;
    assert!(successor.receive().await.contains("welcome"));
    successor.send(r#""prepared""#).await;
    assert!(successor.receive().await.contains("inheritance"));
    let headers = [("Host", "localhost"), ("x-aoai-lb-admin", "1")];
    let mut client = Client::connect(balancer.admin_address).await;
    let response = client.post("/api/backends/b/drain", &headers, b"").await;
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")), "{}", response.text());
    assert!(response.text().contains("an upgrade is in progress"), "{}", response.text());
    drop(successor);
    assert_eq!(balancer.post_admin("/api/backends/b/drain").await.json()["changed"], true);
    assert_eq!(drained_in_file(&balancer), ["b"]);
}

/// The side of a new process on the control socket.
struct ScriptedSuccessor {
    stream: tokio::io::BufReader<tokio::net::UnixStream>,
}

impl ScriptedSuccessor {
    async fn connect(path: &std::path::Path) -> Self {
        Self { stream: tokio::io::BufReader::new(tokio::net::UnixStream::connect(path).await.unwrap()) }
    }

    async fn send(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line
    }
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_used_is_reported_once_and_drains_live_in_memory() {
    let azure = start_simulator(&["a", "b"]).await;
    let variables = [("STATE_DIRECTORY", "/dev/null/state".to_owned())];
    let balancer = Balancer::start_with_environment(&variables, &listed_backends_yaml(&azure), "").await;
    let response = balancer.post_admin("/api/backends/b/drain").await.json();
    let problem = response["save_problem"].as_str().unwrap();
    assert!(problem.starts_with("cannot use /dev/null/state: Not a directory"), "{problem}");
    assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    assert_eq!(balancer.status().await["process"]["drains_not_saved"], problem);
    // In memory it outlives an upgrade all the same.
    assert!(balancer.run_upgrade_command().await.status.success());
    assert_eq!(states(&balancer).await, ["healthy", "drained"]);
    let told = "server.state_directory: drains are kept in memory only and end with this process: cannot use";
    assert_eq!(balancer.log().matches(told).count(), 2, "once for each process: {}", balancer.log());
}

#[tokio::test]
async fn a_write_that_fails_is_reported_and_made_up_for_by_a_reload() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    // As a full disk would: the file cannot be replaced.
    std::fs::remove_file(balancer.path("state/drains.json")).unwrap();
    std::fs::create_dir(balancer.path("state/drains.json")).unwrap();
    let problem = balancer.post_admin("/api/backends/b/drain").await.json()["save_problem"].clone();
    assert!(problem.as_str().unwrap().starts_with("cannot write drains.json: "), "{problem}");
    assert_eq!(states(&balancer).await, ["healthy", "drained"]);
    std::fs::remove_dir(balancer.path("state/drains.json")).unwrap();
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(drained_in_file(&balancer), ["b"]);
    balancer.wait_for_log("drains are saved again").await;
    assert_eq!(balancer.status().await["process"]["drains_not_saved"], Value::Null);
}

#[tokio::test]
async fn a_second_instance_says_who_has_the_directory_and_writes_nothing_there() {
    let azure = start_simulator(&["a", "b"]).await;
    let first = Balancer::start(&listed_backends_yaml(&azure), "").await;
    first.post_admin("/api/backends/a/drain").await;
    let directory = first.path("state").display().to_string();
    let server = format!("server: {{ drain_delay: 0s, state_directory: {directory} }}");
    let second = Balancer::start(&listed_backends_yaml(&azure), &server).await;
    second.wait_for_log(&format!("end with this process: process {} uses {directory}", first.pid())).await;
    assert_eq!(
        states(&second).await,
        ["healthy", "healthy"],
        "the drains of the first are not those of the second"
    );
    let response = second.post_admin("/api/backends/b/drain").await.json();
    assert!(response["save_problem"].as_str().unwrap().contains("a directory of its own"), "{response}");
    assert_eq!(drained_in_file(&first), ["a"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_reported_renamed_and_replaced() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    for (text, reason) in [
        ("{\"version\":1,\"dra", "it is not a list of drains: EOF while parsing"),
        ("{\"version\":7,\"drains\":{\"b\":1}}", "it has version 7, and this binary knows version 1"),
    ] {
        balancer.send_signal("KILL");
        balancer.wait_for_exit().await;
        std::fs::write(balancer.path("state/drains.json"), text).unwrap();
        balancer.start_again().await;
        balancer
            .wait_for_log(&format!("drains.json cannot be used, and no backend is drained by it: {reason}"))
            .await;
        assert_eq!(states(&balancer).await, ["healthy", "healthy"]);
        assert_eq!(balancer.post_chat().await.status, 200);
        let files = std::fs::read_dir(balancer.path("state")).unwrap().map(|entry| entry.unwrap().path());
        let aside: Vec<_> =
            files.filter(|path| path.to_string_lossy().contains("drains.json.unusable-")).collect();
        assert!(aside.iter().any(|path| std::fs::read_to_string(path).unwrap() == text), "{aside:?}");
        assert_eq!(drained_in_file(&balancer), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_drain_of_a_backend_that_has_left_the_file_is_kept_and_can_be_lifted() {
    let azure = start_simulator(&["a", "b"]).await;
    let entry = simulated_backend_yaml(&azure, "b", LISTED_DEPLOYMENTS);
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    balancer.post_admin("/api/backends/b/drain").await;
    balancer.replace_in_config(&entry, "");
    assert_eq!(balancer.stop().await, 0);
    balancer.start_again().await;
    balancer.wait_for_log("and not in the configuration; it stays drained if it comes back").await;
    assert_eq!(drained_in_file(&balancer), ["b"]);
    // It comes back with a reload.
    let text = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    balancer.write_config(&text.replace("clients:\n", &format!("{entry}clients:\n")));
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(states(&balancer).await, ["healthy", "drained"]);
    // And leaves again.
    balancer.write_config(&text);
    assert_eq!(balancer.post_admin("/api/reload").await.status, 200);
    assert_eq!(balancer.post_admin("/api/backends/b/drain").await.status, 404, "there is nothing to drain");
    assert_eq!(balancer.post_admin("/api/backends/b/undrain").await.json()["changed"], true);
    assert_eq!(balancer.post_admin("/api/backends/b/undrain").await.status, 404);
    assert_eq!(drained_in_file(&balancer), Vec::<String>::new());
}
