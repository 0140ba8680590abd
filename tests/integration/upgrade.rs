//! Upgrades: a new process takes over from the old one without failing a request, inherits its health
//! data, and if anything goes wrong the old process keeps serving.

use crate::support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aoai_lb::demo::{Mood, SimulatedError};
use support::h2::Http2Connection;
use support::tls::{CertificateAuthority, generate_authority};
use support::traffic::BackgroundTraffic;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, LISTED_DEPLOYMENTS, STREAM_BODY, answering_backend,
    free_port, is_process_alive, listed_backends_yaml, send_signal_to, simulated_backend_yaml,
    start_simulator, wait_until,
};
use tokio::net::UnixDatagram;

fn command_output(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Starts a stream and reads its first chunk.
async fn start_stream(balancer: &Balancer) -> Client {
    let mut client = balancer.connect().await;
    let headers = [("api-key", CLIENT_KEY), ("Content-Length", &STREAM_BODY.len().to_string())];
    client.send(Client::request_head("POST", CHAT_TARGET, &headers).as_bytes()).await;
    client.send(STREAM_BODY.as_bytes()).await;
    assert_eq!(client.read_response_head().await.unwrap().status, 200);
    assert!(!client.read_chunk().await.unwrap().is_empty());
    client
}

/// Reads a stream to its end; fails if it is truncated.
async fn finish_stream(client: &mut Client) {
    let mut last_chunk = Vec::new();
    loop {
        let chunk = client.read_chunk().await.expect("the stream ended before its last chunk");
        if chunk.is_empty() {
            break;
        }
        last_chunk = chunk;
    }
    assert!(last_chunk.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&last_chunk));
}

#[tokio::test]
async fn upgrades_under_load_fail_no_request() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    let traffic = BackgroundTraffic::start(balancer.address);
    let mut pids = vec![balancer.serving_pid().await];
    for _ in 0..3 {
        let output = balancer.run_upgrade_command().await;
        assert!(output.status.success(), "{}", command_output(&output));
        let serving = balancer.serving_pid().await;
        assert!(!pids.contains(&serving), "expected a new process");
        pids.push(serving);
        let started_before = traffic.started_requests();
        wait_until("50 more requests have started", || traffic.started_requests() > started_before + 50)
            .await;
    }
    let traffic_counts = traffic.stop().await;
    assert_eq!(traffic_counts.failures, Vec::<String>::new());
    assert_eq!(balancer.wait_until_single_process().await, pids[3]);
    let records = balancer.wait_for_records(traffic_counts.records()).await;
    let mut ids: Vec<_> = records.iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), records.len(), "expected each record once");
    assert!(
        records.iter().all(|record| record["outcome"] == "answered" || record["operation"] == "realtime")
    );
}

#[tokio::test]
async fn backend_health_is_handed_over_to_the_new_process() {
    let azure = start_simulator(&["throttled", "broken", "drained", "healthy"]).await;
    let entries = listed_backends_yaml(&azure)
        + &simulated_backend_yaml(&azure, "healthy", "").replace("name: healthy", "name: spare\n    tier: 2");
    let mut balancer = Balancer::start(&entries, "breaker: { failures: 1, ratio: 1%, open: 60s }").await;
    azure.set_mood("throttled", Mood::Throttled { retry_after_ms: Some(50_000), retry_after: None });
    azure.set_mood("broken", Mood::Refuses(SimulatedError::ServerError));
    balancer.post_admin("/api/backends/drained/drain").await;
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "healthy");
    }
    // A deployment that is not configured.
    let unlisted_target = CHAT_TARGET.replace("gpt-4o", "whisper");
    balancer.post(&unlisted_target, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    let hits =
        (azure.request_count("throttled"), azure.request_count("broken"), azure.request_count("drained"));
    assert_eq!((hits.0, hits.1, hits.2), (1, 1, 0));
    let unavailability = |status: &serde_json::Value| {
        let all = status["backends"].as_array().unwrap();
        let backend_status = |name: &str| all.iter().find(|backend| backend["name"] == name).unwrap();
        (
            backend_status("throttled")["resting"][0]["until_ms"].as_u64().unwrap(),
            backend_status("broken")["until_ms"].as_u64().unwrap(),
            backend_status("drained")["state"].clone(),
        )
    };
    let before_upgrade = unavailability(&balancer.status().await);
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    let after_upgrade = unavailability(&balancer.status().await);
    assert!(
        after_upgrade.0 <= before_upgrade.0 && after_upgrade.0 + 20_000 > before_upgrade.0,
        "{before_upgrade:?} {after_upgrade:?}"
    );
    assert!(
        after_upgrade.1 <= before_upgrade.1 && after_upgrade.1 + 20_000 > before_upgrade.1,
        "{before_upgrade:?} {after_upgrade:?}"
    );
    assert_eq!(after_upgrade.2, "drained");
    for _ in 0..8 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "healthy");
    }
    assert_eq!(
        hits,
        (azure.request_count("throttled"), azure.request_count("broken"), azure.request_count("drained"))
    );
    balancer.wait_until_single_process().await;
}

#[tokio::test]
async fn the_old_process_keeps_serving_when_an_upgrade_fails() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let old_pid = balancer.serving_pid().await;
    let valid_yaml = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    let binary = balancer.path("aoai-lb");
    let expect_refused_upgrade = async |balancer: &Balancer, reason: &str| {
        let output = balancer.run_upgrade_command().await;
        assert_eq!(output.status.code(), Some(1), "{}", command_output(&output));
        assert!(command_output(&output).contains(reason), "{reason}: {}", command_output(&output));
        assert_eq!(balancer.serving_pid().await, old_pid);
        assert_eq!(balancer.post_chat().await.status, 200);
    };
    balancer.write_config(&valid_yaml.replace("credential:", "credental:"));
    expect_refused_upgrade(&balancer, "backends[0] (a).credental: unknown key; did you mean `credential`?")
        .await;
    // The file is valid, but one of its addresses is in use.
    let occupied = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = occupied.local_addr().unwrap();
    balancer.write_config(&valid_yaml.replace("listeners:\n", &format!("listeners:\n  - address: {port}\n")));
    expect_refused_upgrade(
        &balancer,
        &format!("the new process cannot serve: listeners[0].address: cannot listen on {port}"),
    )
    .await;
    balancer.write_config(&valid_yaml);
    std::fs::remove_file(&binary).unwrap();
    expect_refused_upgrade(&balancer, ": No such file or directory").await;
    std::fs::write(&binary, "#!/bin/sh\necho it is too old >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    expect_refused_upgrade(&balancer, " failed: it is too old").await;
    // The binary accepts the file in `check`, but does not start.
    std::fs::write(&binary, "#!/bin/sh\n[ \"$1\" = check ]\n").unwrap();
    expect_refused_upgrade(&balancer, "the new process exited before it was ready").await;
    std::fs::write(&binary, b"\x7fELF\x02\x01\x01 and no more").unwrap();
    expect_refused_upgrade(&balancer, "cannot start ").await;
    std::fs::remove_file(&binary).unwrap();
    symlink(env!("CARGO_BIN_EXE_aoai-lb"), &binary).unwrap();
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    assert_ne!(balancer.wait_until_single_process().await, old_pid);
    assert_eq!(balancer.post_chat().await.status, 200);
}

#[tokio::test]
async fn an_upgrade_can_change_the_listener_addresses() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let (old_address, new_address) =
        (balancer.address, std::net::SocketAddr::from(([127, 0, 0, 1], free_port())));
    balancer.replace_in_config(&format!("address: {old_address}\n"), &format!("address: {new_address}\n"));
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    balancer.address = new_address;
    assert_eq!(balancer.post_chat().await.status, 200);
    balancer.wait_until_single_process().await;
    assert!(Client::try_connect(old_address).await.is_err(), "expected nothing to listen on the old address");
}

#[tokio::test]
async fn the_old_process_exits_after_its_last_stream_and_a_shutdown_waits_for_both() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(300)));
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let mut first = start_stream(&balancer).await;
    let old_pid = balancer.serving_pid().await;
    // SIGUSR2 does the same as the command. SIGQUIT, Pingora's own upgrade signal, is ignored.
    balancer.send_signal("QUIT");
    balancer.wait_for_log("SIGQUIT is ignored").await;
    balancer.send_signal("USR2");
    balancer.wait_for_status("the new process serves", |status| status["process"]["pid"] != old_pid).await;
    let new_pid = balancer.serving_pid().await;
    let mut second = start_stream(&balancer).await;
    // The new process is the one that systemd supervises: when it exits, systemd kills all others. So it
    // has to wait for the old process.
    assert!(send_signal_to("TERM", new_pid));
    balancer.wait_for_log("stopping: readiness probes fail").await;
    finish_stream(&mut second).await;
    azure.set_mood("a", Mood::Calm);
    finish_stream(&mut first).await;
    assert_eq!(balancer.wait_for_exit().await, 0);
    wait_until("both processes exit", || !is_process_alive(new_pid)).await;
    let records = balancer.wait_for_records(2).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered"));
    let stopped = || balancer.log().matches("stopped with 0 requests in flight").count();
    wait_until("both processes report their end", || stopped() == 2).await;
}

#[tokio::test]
async fn a_stop_that_reaches_the_old_process_just_after_the_handover_stops_both() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(300)));
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let old_pid = balancer.serving_pid().await;
    assert!(balancer.run_upgrade_command().await.status.success());
    // As a service manager does that has not yet learned of the new main process: it waits for the old one.
    assert!(send_signal_to("TERM", old_pid));
    balancer.wait_for_log("forwarding the stop to process").await;
    balancer.wait_for_log("stopping: readiness probes fail").await;
    assert_eq!(balancer.wait_for_exit().await, 0);
    let stopped = || balancer.log().matches("stopped with 0 requests in flight").count();
    wait_until("both processes report their end", || stopped() == 2).await;
    assert!(!balancer.log().contains("does not accept the stop"), "{}", balancer.log());
}

#[tokio::test]
async fn the_old_process_exits_after_the_grace_period() {
    let azure = start_simulator(&["a"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_secs(5)));
    let server = "server: { grace_period: 2s, drain_delay: 0s }";
    let mut balancer =
        Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), server).await;
    let mut stream = start_stream(&balancer).await;
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    balancer.wait_until_single_process().await;
    while stream.read_chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
    let records = balancer.wait_for_records(1).await;
    assert_eq!(records[0]["outcome"], "failed");
}

#[tokio::test]
async fn readiness_stays_200_and_idle_clients_move_to_the_new_process() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    let old_pid = balancer.serving_pid().await;
    let mut idle_client = balancer.connect().await;
    assert_eq!(
        idle_client
            .post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes())
            .await
            .header("connection"),
        Some("keep-alive")
    );
    let mut probing_client = balancer.connect().await;
    assert_eq!(probing_client.get("/readyz", &[]).await.status, 200);
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    assert!(is_process_alive(old_pid), "expected the old process to be running");
    // Both connections belong to the old process, which stays ready and announces the end of each.
    let response = probing_client.get("/readyz", &[]).await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    let response = idle_client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(idle_client.is_closed().await);
    assert_eq!(balancer.connect().await.get("/readyz", &[]).await.status, 200);
    balancer.wait_until_single_process().await;
}

#[tokio::test]
async fn concurrent_upgrades_exclude_each_other_and_a_takeover_needs_a_running_process() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS), "").await;
    // There is no running process to take over from.
    let other_directory = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(["run", "--upgrade", "-c"]).arg(balancer.path("aoai-lb.yaml"));
    let output = command.env("RUNTIME_DIRECTORY", other_directory.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        command_output(&output).contains("cannot reach a running process at"),
        "{}",
        command_output(&output)
    );
    let (first, second) = tokio::join!(balancer.run_upgrade_command(), balancer.run_upgrade_command());
    let success_count = [&first, &second].into_iter().filter(|output| output.status.success()).count();
    assert!(success_count >= 1, "{} {}", command_output(&first), command_output(&second));
    for output in [&first, &second] {
        assert!(
            output.status.success()
                || command_output(output).contains("an upgrade is already in progress")
                || command_output(output).contains("lost the connection"),
            "{}",
            command_output(output)
        );
    }
    balancer.wait_until_single_process().await;
    assert_eq!(balancer.post_chat().await.status, 200);
}

/// Receives the notifications that systemd would get (sd_notify).
struct FakeServiceManager {
    messages: Arc<Mutex<Vec<String>>>,
}

impl FakeServiceManager {
    /// It reads all the time: the kernel keeps ten messages, and a process waits to send the next one.
    fn start(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let received = Arc::clone(&messages);
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes).await {
                received.lock().unwrap().push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
        });
        Self { messages }
    }

    fn has(&self, what: &str) -> bool {
        let messages = self.messages.lock().unwrap();
        messages.iter().any(|message| message.lines().any(|line| line.starts_with(what)))
    }

    async fn wait_for(&self, what: &str) {
        wait_until(&format!("systemd is notified of {what}"), || self.has(what)).await;
    }

    fn clear_messages(&self) {
        self.messages.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn systemd_is_notified_of_start_reload_upgrade_and_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = FakeServiceManager::start(&path);
    let azure = start_simulator(&["a"]).await;
    let variables = [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "300000".to_owned())];
    let mut balancer = Balancer::start_with_environment(
        &variables,
        &simulated_backend_yaml(&azure, "a", LISTED_DEPLOYMENTS),
        "",
    )
    .await;
    let old_pid = balancer.serving_pid().await;
    manager.wait_for("READY=1").await;
    manager.wait_for(&format!("MAINPID={old_pid}")).await;
    manager.wait_for("STATUS=configuration 1; backends: 1").await;
    manager.wait_for("WATCHDOG=1").await;
    manager.clear_messages();
    assert_eq!(balancer.post_chat().await.status, 200);
    manager.wait_for("WATCHDOG=1").await;
    balancer.send_signal("HUP");
    manager.wait_for("RELOADING=1").await;
    manager.wait_for("MONOTONIC_USEC=").await;
    manager.wait_for("READY=1").await;
    manager.wait_for("STATUS=configuration 2").await;
    manager.clear_messages();
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", command_output(&output));
    let new_pid = balancer.serving_pid().await;
    manager.wait_for(&format!("MAINPID={new_pid}")).await;
    manager.wait_for("WATCHDOG=1").await;
    assert!(!manager.has("STOPPING=1"), "{:?}", manager.messages.lock().unwrap());
    assert_eq!(balancer.wait_until_single_process().await, new_pid);
    manager.clear_messages();
    balancer.post_admin("/api/backends/a/drain").await;
    manager.wait_for("STATUS=configuration 1; backends: 1, unavailable: a (drained)").await;
    assert!(send_signal_to("TERM", new_pid));
    manager.wait_for("STOPPING=1").await;
    wait_until("the process exits", || !is_process_alive(new_pid)).await;
}

/// Sends requests one after another over HTTP/2, on a new connection after each GOAWAY. Returns the number
/// of requests and of connections.
async fn post_over_http_2_until_stopped(
    address: std::net::SocketAddr,
    authority: Arc<CertificateAuthority>,
    stop: Arc<AtomicBool>,
) -> Result<(usize, usize), String> {
    let (mut requests, mut connections) = (0, 1);
    let mut connection = Http2Connection::connect(address, &authority).await;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut sender) = connection.requests.clone().ready().await else {
            connection = Http2Connection::connect(address, &authority).await;
            connections += 1;
            continue;
        };
        let request =
            http::Request::post(format!("https://balancer.test{CHAT_TARGET}")).header("api-key", CLIENT_KEY);
        let Ok((response, mut body)) = sender.send_request(request.body(()).unwrap(), false) else {
            // The GOAWAY arrived after the check.
            connection = Http2Connection::connect(address, &authority).await;
            connections += 1;
            continue;
        };
        let stream_error = |error: h2::Error| format!("request {requests}: {error}");
        body.send_data(STREAM_BODY.into(), true).map_err(stream_error)?;
        let response = response.await.map_err(stream_error)?;
        if response.status() != 200 {
            return Err(format!("request {requests}: {}", response.status()));
        }
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(data) = body.data().await {
            let data = data.map_err(stream_error)?;
            let _ = body.flow_control().release_capacity(data.len());
            text.extend_from_slice(&data);
        }
        if !text.ends_with(b"data: [DONE]\n\n") {
            return Err(format!("request {requests} was cut"));
        }
        requests += 1;
    }
    Ok((requests, connections))
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_clients_move_to_the_new_process_without_an_error() {
    let azure = start_simulator(&["a", "b"]).await;
    let authority = Arc::new(generate_authority());
    let mut balancer = Balancer::start_with_tls(&authority, &listed_backends_yaml(&azure), "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let worker = || {
        tokio::spawn(post_over_http_2_until_stopped(
            balancer.address,
            Arc::clone(&authority),
            Arc::clone(&stop),
        ))
    };
    let workers: Vec<_> = (0..6).map(|_| worker()).collect();
    for _ in 0..2 {
        let output = balancer.run_upgrade_command().await;
        assert!(output.status.success(), "{}", command_output(&output));
        balancer.wait_until_single_process().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut request_count = 0;
    for worker in workers {
        let (requests, connections) = worker.await.unwrap().unwrap();
        assert_eq!(connections, 3, "expected one connection for each process");
        request_count += requests;
    }
    balancer.wait_for_records(request_count).await;
}
