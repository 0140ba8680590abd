//! `check --live`: who holds a port, whether records can be delivered, and errors in plain words; and what `run` says
//! about a port that is taken.

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use support::ingestion::{IngestionBehaviour, LogIngestionService};
use support::{Balancer, all_backends_yaml, backend_yaml, clients_yaml, free_port, start_simulator};
use tokio::process::Command;

/// Exit code and output of a command for this file. `RUNTIME_DIRECTORY` is the one of the harness.
async fn run_command(arguments: &[&str], file: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(arguments).arg("-c").arg(file).env("RUNTIME_DIRECTORY", file.with_file_name("run"));
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

fn config_yaml(listener: SocketAddr, admin: SocketAddr, backends: &str, more: &str) -> String {
    format!(
        "listeners: [ {{ address: '{listener}' }} ]\nadmin: {{ address: '{admin}' }}\nbackends:\n{backends}{}{more}",
        clients_yaml()
    )
}

/// A server that answers whatever it gets with 400 in clear, as web servers do.
fn start_plain_http_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    address
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_taken_port_is_named_by_check_and_run() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken_address, free) = (taken.local_addr().unwrap(), loopback(free_port()));
    let own_name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let holder = format!("it is taken by {} (process {})", own_name.trim(), std::process::id());
    std::fs::write(&file, config_yaml(taken_address, free, &all_backends_yaml(&azure), "")).unwrap();
    let (code, text) = run_command(&["check", "--live"], &file).await;
    assert_eq!(code, Some(1), "{text}");
    let bad = format!(
        "BAD   listeners[0]  address: cannot listen on {taken_address}: {holder}; stop it, or use another"
    );
    assert!(text.contains(&bad) && text.contains(&format!("good  admin  address: {free} is free")), "{text}");
    let (code, text) = run_command(&["run"], &file).await;
    assert_eq!(code, Some(1), "{text}");
    let expected = format!("listeners[0].address: cannot listen on {taken_address}: {holder}");
    assert!(text.contains(&expected) && !text.contains("os error"), "{text}");
    // A wildcard address includes it.
    let wildcard = SocketAddr::from(([0, 0, 0, 0], taken_address.port()));
    let text = config_yaml(wildcard, free, &all_backends_yaml(&azure), "");
    std::fs::write(&file, text).unwrap();
    let (_, text) = run_command(&["check", "--live"], &file).await;
    assert!(text.contains(&format!("cannot listen on {wildcard}: {holder}")), "{text}");
    // An address of another machine.
    let foreign = SocketAddr::from(([192, 0, 2, 1], 8080));
    std::fs::write(&file, config_yaml(foreign, free, &all_backends_yaml(&azure), "")).unwrap();
    let (_, text) = run_command(&["check", "--live"], &file).await;
    let expected = "cannot listen on 192.0.2.1:8080: this machine does not have the address";
    assert!(text.contains(expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_of_the_running_process_are_no_problem() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let file = balancer.path("aoai-lb.yaml");
    let (code, text) = run_command(&["check", "--live"], &file).await;
    assert_eq!(code, Some(0), "{text}");
    let pid = balancer.pid();
    for part in [
        format!(
            "good  listeners[0]  address: {} is in use by the running aoai-lb, aoai-lb (process {pid})",
            balancer.address
        ),
        format!("good  admin  address: {} is in use by the running aoai-lb", balancer.admin_address),
    ] {
        assert!(text.contains(&part), "{part}\n{text}");
    }
    // The same ports in a file with another upgrade socket are those of another process.
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("aoai-lb.yaml");
    std::fs::copy(&file, &copy).unwrap();
    let (code, text) = run_command(&["check", "--live"], &copy).await;
    assert_eq!(code, Some(1), "{text}");
    let expected =
        format!("it is taken by aoai-lb (process {pid}); `aoai-lb upgrade` replaces a running process");
    assert!(text.contains(&expected), "{text}");
    let (code, text) = run_command(&["run"], &copy).await;
    assert!(code == Some(1) && text.contains(&expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sinks_of_records_are_checked() {
    let azure = start_simulator(&["a"]).await;
    let ingestion = LogIngestionService::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let write = |record: &str| {
        let record = format!("record: {{ {record} }}\n");
        let (listener, admin) = (loopback(free_port()), loopback(free_port()));
        std::fs::write(&file, config_yaml(listener, admin, &all_backends_yaml(&azure), &record)).unwrap();
    };
    let both = format!("jsonl: {{ path: records.jsonl }}, {}", ingestion.log_analytics_yaml());
    write(&both);
    let (code, text) = run_command(&["check", "--live"], &file).await;
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "good  record.jsonl  path: ",
        "records.jsonl can be written by this user",
        "records-spool does not exist yet and can be created by this user",
        "good  record.log_analytics  credential: a token was issued",
        "good  record.log_analytics  delivery: an empty batch was accepted (204)",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!((ingestion.call_statistics().0, ingestion.row_count()), (1, 0));
    assert!(ingestion.unexpected_requests().is_empty());
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["aoai-lb.yaml"], "nothing is left behind");

    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(403, None));
    let (code, text) = run_command(&["check", "--live"], &file).await;
    let expected =
        "BAD   record.log_analytics  delivery: 403: its identity needs the role Monitoring Metrics Publisher";
    assert!(code == Some(1) && text.contains(expected), "{text}");
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(400, None));
    let (_, text) = run_command(&["check", "--live"], &file).await;
    assert!(text.contains("delivery: 400: the data collection rule has no such stream"), "{text}");
    ingestion.reject_token_requests(true);
    let (code, text) = run_command(&["check", "--live"], &file).await;
    let expected = "BAD   record.log_analytics  credential: 127.0.0.1 responded with 401 (invalid_client)";
    assert!(code == Some(1) && text.contains(expected), "{text}");
    // The address of the service is closed, and the directories cannot be written.
    let closed = format!("127.0.0.1:{}", free_port());
    let unreachable = both
        .replace(
            &format!("endpoint: 'http://{}'", ingestion.address),
            &format!("endpoint: 'http://{closed}'"),
        )
        .replace("records.jsonl", "/proc/records.jsonl");
    ingestion.reject_token_requests(false);
    write(&unreachable);
    let (code, text) = run_command(&["check", "--live"], &file).await;
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "BAD   record.jsonl  path: cannot create files in /proc: ",
        "BAD   record.spool  path: cannot create files in /proc: ",
        &format!("BAD   record.log_analytics  delivery: {closed}: connection refused"),
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("os error"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_connections_are_told_in_plain_words() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let plain = start_plain_http_server();
    let closed = free_port();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let backends = [
        backend_yaml("no-tls", &format!("https://127.0.0.1:{}", plain.port()), ""),
        backend_yaml("closed", &format!("http://127.0.0.1:{closed}"), ""),
        backend_yaml("nowhere", "http://nowhere.invalid", ""),
        backend_yaml("silent", &format!("https://{}", silent.local_addr().unwrap()), ""),
    ];
    let more = "timeouts: { connect: 1s }\n";
    let text = config_yaml(loopback(free_port()), loopback(free_port()), &backends.concat(), more);
    std::fs::write(&file, text).unwrap();
    let (code, text) = run_command(&["check", "--live"], &file).await;
    assert_eq!(code, Some(1), "{text}");
    for part in [
        format!(
            "BAD   no-tls  connection: the TLS handshake with {plain} failed: the other side does not speak TLS on this port"
        ),
        format!(
            "BAD   closed  connection: cannot connect to 127.0.0.1:{closed}: connection refused (nothing listens there)"
        ),
        "BAD   nowhere  name: nowhere.invalid does not resolve: ".to_owned(),
        "BAD   silent  connection: the TLS handshake was not complete within 1s".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}\n{text}");
    }
    for word in ["os error", "error:0", "context:", "getaddrinfo", "lookup address information"] {
        assert!(!text.contains(word), "{word}\n{text}");
    }
    // `status` says the same of the admin API.
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["status", "--admin", &format!("https://127.0.0.1:{}", plain.port())]).output();
    let text = String::from_utf8(output.await.unwrap().stderr).unwrap();
    let expected = "the TLS handshake failed: the other side does not speak TLS on this port";
    assert!(text.contains(expected) && !text.contains("context:") && !text.contains("error:0"), "{text}");
}
