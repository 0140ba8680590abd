//! One process takes over from another: nothing in flight is lost, what is remembered goes along,
//! and whatever can go wrong leaves the old one serving.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, Refusal};
use support::h2::Connection;
use support::tls::{Authority, authority};
use support::traffic::Traffic;
use support::{
    Balancer, CHAT, Client, HELLO, KEY, LISTED, PATIENCE, STREAM, answerer, azure, backend, free_port,
    listed, signal_to, until,
};

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Begins a stream and reads until its first content.
async fn begin_stream(balancer: &Balancer) -> Client {
    let mut client = balancer.client().await;
    let headers = [("api-key", KEY), ("Content-Length", &STREAM.len().to_string())];
    client.send(Client::head("POST", CHAT, &headers).as_bytes()).await;
    client.send(STREAM.as_bytes()).await;
    assert_eq!(client.reply_head().await.unwrap().status, 200);
    assert!(!client.chunk().await.unwrap().is_empty());
    client
}

/// Reads a stream to its end, which has to be a good one.
async fn end_stream(client: &mut Client) {
    let mut end = Vec::new();
    loop {
        let chunk = client.chunk().await.expect("the stream was cut");
        if chunk.is_empty() {
            break;
        }
        end = chunk;
    }
    assert!(end.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&end));
}

#[tokio::test]
async fn upgrades_under_load_lose_nothing() {
    let azure = azure(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed(&azure), "").await;
    let traffic = Traffic::start(balancer.address);
    let mut pids = vec![balancer.serving().await];
    for _ in 0..3 {
        let output = balancer.upgrade().await;
        assert!(output.status.success(), "{}", said(&output));
        let serving = balancer.serving().await;
        assert!(!pids.contains(&serving), "a new process");
        pids.push(serving);
        let begun = traffic.begun();
        until("there is traffic", || traffic.begun() > begun + 50).await;
    }
    let seen = traffic.finish().await;
    assert_eq!(seen.failures, Vec::<String>::new());
    assert_eq!(balancer.until_alone().await, pids[3]);
    let records = balancer.records_of(seen.requests + seen.streams + seen.sockets).await;
    let mut ids: Vec<_> = records.iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), records.len(), "each once");
    assert!(
        records.iter().all(|record| record["outcome"] == "answered" || record["operation"] == "realtime")
    );
}

#[tokio::test]
async fn what_is_remembered_goes_along() {
    let azure = azure(&["throttled", "broken", "drained", "well"]).await;
    let entries =
        listed(&azure) + &backend(&azure, "well", "").replace("name: well", "name: passing\n    tier: 2");
    let mut balancer = Balancer::start(&entries, "breaker: { failures: 1, ratio: 1%, open: 60s }").await;
    azure.set_mood("throttled", Mood::Throttled { retry_after_ms: Some(50_000), retry_after: None });
    azure.set_mood("broken", Mood::Refuses(Refusal::ServerError));
    balancer.admin_post("/api/backends/drained/drain").await;
    for _ in 0..8 {
        assert_eq!(answerer(&balancer.chat().await), "well");
    }
    // A deployment that no file names.
    let learned = CHAT.replace("gpt-4o", "whisper");
    balancer.post(&learned, &[("api-key", KEY)], HELLO.as_bytes()).await;
    let before = (azure.hits("throttled"), azure.hits("broken"), azure.hits("drained"));
    assert_eq!((before.0, before.1, before.2), (1, 1, 0));
    let rests = |status: &serde_json::Value| {
        let all = status["backends"].as_array().unwrap();
        let backend = |name: &str| all.iter().find(|backend| backend["name"] == name).unwrap();
        (
            backend("throttled")["resting"][0]["until_ms"].as_u64().unwrap(),
            backend("broken")["until_ms"].as_u64().unwrap(),
            backend("drained")["state"].clone(),
        )
    };
    let told = rests(&balancer.status().await);
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    let now = rests(&balancer.status().await);
    assert!(now.0 <= told.0 && now.0 + 20_000 > told.0, "{told:?} {now:?}");
    assert!(now.1 <= told.1 && now.1 + 20_000 > told.1, "{told:?} {now:?}");
    assert_eq!(now.2, "drained");
    for _ in 0..8 {
        assert_eq!(answerer(&balancer.chat().await), "well");
    }
    assert_eq!(before, (azure.hits("throttled"), azure.hits("broken"), azure.hits("drained")));
    balancer.until_alone().await;
}

#[tokio::test]
async fn a_bad_file_or_binary_or_port_leaves_the_old_one_serving() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let old = balancer.serving().await;
    let good = std::fs::read_to_string(balancer.path("aoai-lb.yaml")).unwrap();
    let binary = balancer.path("aoai-lb");
    let refused = async |balancer: &Balancer, reason: &str| {
        let output = balancer.upgrade().await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(reason), "{reason}: {}", said(&output));
        assert_eq!(balancer.serving().await, old);
        assert_eq!(balancer.chat().await.status, 200);
    };
    balancer.write(&good.replace("credential:", "credental:"));
    refused(&balancer, "backends[0].credental: unknown key; did you mean `credential`?").await;
    // Good as such, but nobody can serve with it.
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap();
    balancer.write(&good.replace("listeners:\n", &format!("listeners:\n  - address: {port}\n")));
    refused(
        &balancer,
        &format!("the new process cannot serve: listeners[0].address: cannot listen on {port}"),
    )
    .await;
    balancer.write(&good);
    std::fs::remove_file(&binary).unwrap();
    refused(&balancer, "cannot be started: No such file or directory").await;
    std::fs::write(&binary, "#!/bin/sh\necho it is too old >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    refused(&balancer, "says: it is too old").await;
    // It takes the file, and then it does not come up.
    std::fs::write(&binary, "#!/bin/sh\n[ \"$1\" = check ]\n").unwrap();
    refused(&balancer, "the new process ended before it was ready").await;
    std::fs::write(&binary, b"\x7fELF\x02\x01\x01 and no more").unwrap();
    refused(&balancer, "cannot be started").await;
    std::fs::remove_file(&binary).unwrap();
    symlink(env!("CARGO_BIN_EXE_aoai-lb"), &binary).unwrap();
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    assert_ne!(balancer.until_alone().await, old);
    assert_eq!(balancer.chat().await.status, 200);
}

#[tokio::test]
async fn addresses_come_and_go_with_an_upgrade() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let (old, new) = (balancer.address, std::net::SocketAddr::from(([127, 0, 0, 1], free_port())));
    balancer.rewrite(&format!("address: {old}\n"), &format!("address: {new}\n"));
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    balancer.address = new;
    assert_eq!(balancer.chat().await.status, 200);
    balancer.until_alone().await;
    assert!(Client::try_connect(old).await.is_err(), "nobody listens there any more");
}

#[tokio::test]
async fn the_old_process_ends_with_its_last_stream_and_a_stop_waits_for_both() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_millis(300)));
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let mut first = begin_stream(&balancer).await;
    let old = balancer.serving().await;
    // As an operator would without the command; SIGQUIT, the engine's own signal, does nothing.
    balancer.signal("QUIT");
    balancer.until_said("SIGQUIT is ignored").await;
    balancer.signal("USR2");
    balancer.until_status("the new process serves", |status| status["process"]["pid"] != old).await;
    let new = balancer.serving().await;
    let mut second = begin_stream(&balancer).await;
    // The service manager would kill whatever is left when the process ends that it supervises.
    assert!(signal_to("TERM", new));
    balancer.until_said("stopping: not ready any more").await;
    end_stream(&mut second).await;
    azure.set_mood("a", Mood::Calm);
    end_stream(&mut first).await;
    assert_eq!(balancer.ended().await, 0);
    until("both are gone", || !signal_to("0", new)).await;
    let records = balancer.records_of(2).await;
    assert!(records.iter().all(|record| record["outcome"] == "answered"));
    let stopped = || balancer.log().matches("stopped with 0 requests in flight").count();
    until("both say it", || stopped() == 2).await;
}

#[tokio::test]
async fn the_grace_period_bounds_the_old_process() {
    let azure = azure(&["a"]).await;
    azure.set_mood("a", Mood::Drip(Duration::from_secs(5)));
    let server = "server: { grace_period: 2s, drain_delay: 0s }";
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), server).await;
    let mut stream = begin_stream(&balancer).await;
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    balancer.until_alone().await;
    while stream.chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
    let records = balancer.records_of(1).await;
    assert_eq!(records[0]["outcome"], "failed");
}

#[tokio::test]
async fn readiness_does_not_waver_and_idle_clients_move_over() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    let old = balancer.serving().await;
    let mut idle = balancer.client().await;
    assert_eq!(
        idle.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await.header("connection"),
        Some("keep-alive")
    );
    let mut probing = balancer.client().await;
    assert_eq!(probing.get("/readyz", &[]).await.status, 200);
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    assert!(signal_to("0", old), "it is still there");
    // Both connections are the old process's: it is as ready as ever, and says that they end.
    let reply = probing.get("/readyz", &[]).await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    let reply = idle.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(idle.is_closed().await);
    assert_eq!(balancer.client().await.get("/readyz", &[]).await.status, 200);
    balancer.until_alone().await;
}

#[tokio::test]
async fn one_upgrade_at_a_time_and_only_by_a_successor_that_is_let() {
    let azure = azure(&["a"]).await;
    let mut balancer = Balancer::start(&backend(&azure, "a", LISTED), "").await;
    // Nobody to take over from.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(["run", "--upgrade", "-c"]).arg(balancer.path("aoai-lb.yaml"));
    let output = command.env("RUNTIME_DIRECTORY", elsewhere.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no running process is reached at"), "{}", said(&output));
    let (first, second) = tokio::join!(balancer.upgrade(), balancer.upgrade());
    let good = [&first, &second].into_iter().filter(|output| output.status.success()).count();
    assert!(good >= 1, "{} {}", said(&first), said(&second));
    for output in [&first, &second] {
        assert!(
            output.status.success()
                || said(output).contains("an upgrade is under way")
                || said(output).contains("broke off"),
            "{}",
            said(output)
        );
    }
    balancer.until_alone().await;
    assert_eq!(balancer.chat().await.status, 200);
}

/// What the service manager was told so far.
struct Manager {
    socket: UnixDatagram,
    said: Vec<String>,
}

impl Manager {
    async fn until(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said.iter().any(|said| said.lines().any(|line| line.starts_with(what))) {
            let mut bytes = [0; 4096];
            match self.socket.recv(&mut bytes) {
                Ok(length) => self.said.push(String::from_utf8_lossy(&bytes[..length]).into_owned()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            assert!(Instant::now() < deadline, "never told {what}: {:?}", self.said);
        }
    }

    fn forget(&mut self) {
        let mut bytes = [0; 4096];
        while self.socket.recv(&mut bytes).is_ok() {}
        self.said.clear();
    }
}

#[tokio::test]
async fn the_service_manager_is_told_at_the_right_moments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut manager = Manager { socket, said: Vec::new() };
    let azure = azure(&["a"]).await;
    let variables = [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "300000".to_owned())];
    let mut balancer = Balancer::in_environment(&variables, &backend(&azure, "a", LISTED), "").await;
    let old = balancer.serving().await;
    manager.until("READY=1").await;
    manager.until(&format!("MAINPID={old}")).await;
    manager.until("STATUS=configuration 1; backends: 1").await;
    manager.until("WATCHDOG=1").await;
    manager.forget();
    assert_eq!(balancer.chat().await.status, 200);
    manager.until("WATCHDOG=1").await;
    balancer.signal("HUP");
    manager.until("RELOADING=1").await;
    manager.until("MONOTONIC_USEC=").await;
    manager.until("READY=1").await;
    manager.until("STATUS=configuration 2").await;
    manager.forget();
    let output = balancer.upgrade().await;
    assert!(output.status.success(), "{}", said(&output));
    let new = balancer.serving().await;
    manager.until(&format!("MAINPID={new}")).await;
    manager.until("WATCHDOG=1").await;
    assert!(!manager.said.iter().any(|said| said.contains("STOPPING=1")), "{:?}", manager.said);
    assert_eq!(balancer.until_alone().await, new);
    manager.forget();
    balancer.admin_post("/api/backends/a/drain").await;
    manager.until("STATUS=configuration 1; backends: 1, of which rest: a (drained)").await;
    assert!(signal_to("TERM", new));
    manager.until("STOPPING=1").await;
    until("it is gone", || !signal_to("0", new)).await;
}

/// Requests one after the other on a connection of HTTP/2 until that is said to end; returns how
/// many, and on how many connections.
async fn over_http_2(
    address: std::net::SocketAddr,
    authority: Arc<Authority>,
    stop: Arc<AtomicBool>,
) -> Result<(usize, usize), String> {
    let (mut requests, mut connections) = (0, 1);
    let mut connection = Connection::open(address, &authority).await;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut sender) = connection.requests.clone().ready().await else {
            connection = Connection::open(address, &authority).await;
            connections += 1;
            continue;
        };
        let request = http::Request::post(format!("https://balancer.test{CHAT}")).header("api-key", KEY);
        let Ok((response, mut body)) = sender.send_request(request.body(()).unwrap(), false) else {
            // It was told between the two.
            connection = Connection::open(address, &authority).await;
            connections += 1;
            continue;
        };
        let broken = |problem: h2::Error| format!("request {requests}: {problem}");
        body.send_data(STREAM.into(), true).map_err(broken)?;
        let response = response.await.map_err(broken)?;
        if response.status() != 200 {
            return Err(format!("request {requests}: {}", response.status()));
        }
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
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
async fn clients_of_http_2_move_over_without_an_error() {
    let azure = azure(&["a", "b"]).await;
    let authority = Arc::new(authority());
    let mut balancer = Balancer::with_tls(&authority, &listed(&azure), "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let worker = || tokio::spawn(over_http_2(balancer.address, Arc::clone(&authority), Arc::clone(&stop)));
    let workers: Vec<_> = (0..6).map(|_| worker()).collect();
    for _ in 0..2 {
        let output = balancer.upgrade().await;
        assert!(output.status.success(), "{}", said(&output));
        balancer.until_alone().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sum = 0;
    for worker in workers {
        let (requests, connections) = worker.await.unwrap().unwrap();
        assert_eq!(connections, 3, "one for each process");
        sum += requests;
    }
    balancer.records_of(sum).await;
}
