//! The harness: the real binary against simulated resources, and a client that sends and
//! reads exactly the bytes it is told to.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of the harness")]

pub mod client;
pub mod h2;
pub mod identity;
pub mod ingestion;
pub mod tls;
pub mod traffic;
pub mod upstream;
pub mod websocket;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aoai_lb::demo::{Kind, Resource, Simulator};
use serde_json::Value;

pub use client::{Client, Reply};

/// How long anything may take that happens at all.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The key of the client `team-a` in configurations of the harness.
pub const KEY: &str = "key-of-team-a";
pub const CHAT: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
pub const STREAM: &str = r#"{"stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
pub const HELLO: &str = r#"{"messages":[{"role":"user","content":"hello"}]}"#;

/// A port nobody listens on, outside the range from which the system hands ports to
/// connections, so that it stays free until it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 9_000).unwrap();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (offset + step * 7) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A simulated resource with the deployments `gpt-4o` and `other`, without limits.
pub fn resource(name: &str) -> Resource {
    Resource::new(name)
        .key(format!("{name}-key"))
        .deployment("gpt-4o", "gpt-4o-2024-11-20", Kind::Unlimited)
        .deployment("other", "gpt-4o-2024-11-20", Kind::Unlimited)
        .deployment("whisper", "whisper-1", Kind::Unlimited)
        .keeping_bodies()
}

/// Simulated resources with these names.
pub async fn azure(names: &[&str]) -> Simulator {
    let resources = names.iter().map(|name| Resource { pace: quick(), ..resource(name) }).collect();
    Simulator::start(resources).await.unwrap()
}

/// Answers without the pauses that a model makes.
pub fn quick() -> aoai_lb::demo::Pace {
    aoai_lb::demo::Pace { first_byte: Duration::ZERO, between_events: Duration::ZERO }
}

/// The entry of a configuration for a simulated resource; `more` are further lines of it.
pub fn backend(azure: &Simulator, name: &str, more: &str) -> String {
    entry(name, &format!("http://{}", azure.address(name)), more)
}

/// The entry of a configuration for an endpoint; `more` are further lines of it.
pub fn entry(name: &str, endpoint: &str, more: &str) -> String {
    let more: String = more.lines().map(|line| format!("    {line}\n")).collect();
    format!("  - name: {name}\n    endpoint: {endpoint}\n    credential: {{ api_key: {name}-key }}\n{more}")
}

/// The line of an entry without which a deployment that nobody lists has no rests of its own
/// before its first answer.
pub const LISTED: &str = "deployments: { gpt-4o: gpt-4o, other: other }";

/// All resources of the simulator as backends of one tier that list their deployments.
pub fn listed(azure: &Simulator) -> String {
    azure.names().iter().map(|name| backend(azure, name, LISTED)).collect()
}

/// All resources of the simulator as backends of one tier.
pub fn backends(azure: &Simulator) -> String {
    azure.names().iter().map(|name| backend(azure, name, "")).collect()
}

pub fn sha256(key: &str) -> String {
    openssl::sha::sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `clients` block with `team-a`.
pub fn clients() -> String {
    format!("clients:\n  - name: team-a\n    keys: [ {{ sha256: {} }} ]\n", sha256(KEY))
}

/// A running balancer.
pub struct Balancer {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    directory: tempfile::TempDir,
    speaks_tls: bool,
    has_admin: bool,
    log: Arc<Mutex<String>>,
}

impl Balancer {
    /// Starts the binary with these backends, `team-a` as client, and these further blocks.
    pub async fn start(backends: &str, more: &str) -> Self {
        Self::with_clients(backends, &clients(), more).await
    }

    pub async fn with_clients(backends: &str, clients: &str, more: &str) -> Self {
        Self::with_all(backends, clients, "", more).await
    }

    /// The same with a further key of the listener.
    pub async fn with_listener(backends: &str, listener: &str) -> Self {
        Self::with_all(backends, &clients(), listener, "").await
    }

    /// With TLS and HTTP/2, and a certificate of this authority.
    pub async fn with_tls(authority: &tls::Authority, backends: &str, more: &str) -> Self {
        Self::behind_tls(authority, "", backends, more).await
    }

    /// The same with further keys of the listener.
    pub async fn with_tls_and(authority: &tls::Authority, listener: &str, backends: &str) -> Self {
        Self::behind_tls(authority, listener, backends, "").await
    }

    async fn behind_tls(authority: &tls::Authority, listener: &str, backends: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        tls::write_pair(directory.path(), authority, 1);
        let tls = "tls: { certificate: cert.pem, private_key: key.pem }\nhttp2: true\n";
        Self::within(directory, backends, &clients(), &format!("{tls}{listener}"), more, &[]).await
    }

    async fn with_all(backends: &str, clients: &str, listener: &str, more: &str) -> Self {
        Self::within(tempfile::tempdir().unwrap(), backends, clients, listener, more, &[]).await
    }

    /// Starts the binary with these variables.
    pub async fn in_environment(variables: &[(&str, String)], backends: &str, more: &str) -> Self {
        Self::within(tempfile::tempdir().unwrap(), backends, &clients(), "", more, variables).await
    }

    async fn within(
        directory: tempfile::TempDir,
        backends: &str,
        clients: &str,
        listener: &str,
        more: &str,
        variables: &[(&str, String)],
    ) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener: String = listener.lines().map(|line| format!("    {line}\n")).collect();
        let mut text = format!("listeners:\n  - address: {address}\n{listener}");
        if !more.contains("server:") {
            text += "server: { drain_delay: 0s }\n";
        }
        if !more.contains("record:") {
            text += "record: { jsonl: { path: records.jsonl } }\n";
        }
        text += &format!("admin: {{ address: {admin} }}\nbackends:\n{backends}{clients}{more}\n");
        Self::with_environment(directory, address, admin, &text, variables).await
    }

    /// Starts the binary with this file, which names these addresses.
    pub async fn from_file(
        directory: tempfile::TempDir,
        address: SocketAddr,
        admin: SocketAddr,
        text: &str,
    ) -> Self {
        Self::with_environment(directory, address, admin, text, &[]).await
    }

    /// The same with these further variables.
    pub async fn with_environment(
        directory: tempfile::TempDir,
        address: SocketAddr,
        admin: SocketAddr,
        text: &str,
        variables: &[(&str, String)],
    ) -> Self {
        let path = directory.path().join("aoai-lb.yaml");
        std::fs::write(&path, text).unwrap();
        // Under a name of its own, so that another can be put in its place.
        let binary = directory.path().join("aoai-lb");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_aoai-lb"), &binary).unwrap();
        let mut child = Command::new(binary)
            .args(["run", "-c"])
            .arg(&path)
            .env("RUNTIME_DIRECTORY", directory.path().join("run"))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let listeners = text.split("\nadmin:").next().unwrap();
        let speaks_tls = listeners.contains(" tls: { certificate");
        let has_admin = text.contains(&format!("address: {admin}"));
        let mut balancer = Self { child, address, admin, directory, speaks_tls, has_admin, log };
        balancer.until_ready().await;
        balancer
    }

    async fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.is_ready().await {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the balancer ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it answers; a listener with TLS has to be asked in another language.
    async fn is_ready(&self) -> bool {
        let Ok(mut client) = Client::try_connect(self.address).await else { return false };
        if !self.speaks_tls && !client.is_ok("/readyz").await {
            return false;
        }
        if !self.has_admin {
            return true;
        }
        let Ok(mut admin) = Client::try_connect(self.admin).await else { return false };
        // With TLS of its own, or a token, it need not say more.
        !self.speaks_tls || admin.is_ok("/api/status").await
    }

    /// What of the log has arrived; a line may come after the reply that it is about.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log says so.
    pub async fn until_said(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log.lock().unwrap().contains(what) {
            assert!(Instant::now() < deadline, "never said: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub async fn post(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.client().await.post(target, headers, body).await
    }

    /// One chat on a connection of its own, as `team-a`.
    pub async fn chat(&self) -> Reply {
        self.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await
    }

    /// The status of the process that serves: for a while after an upgrade the one before answers
    /// as well.
    pub async fn status(&self) -> Value {
        loop {
            let reply = Client::connect(self.admin).await.get("/api/status", &[("Host", "localhost")]).await;
            let status: Value = serde_json::from_slice(&reply.body).unwrap();
            if status["process"]["replaced"] == false {
                return status;
            }
        }
    }

    /// The state of each backend, in the order of the configuration.
    pub async fn states(&self) -> Vec<(String, String)> {
        let status = self.status().await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let backends = status["backends"].as_array().unwrap().iter();
        backends.map(|backend| (text(&backend["name"]), text(&backend["state"]))).collect()
    }

    /// Waits until the status says so.
    pub async fn until_status(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut status = self.status().await;
            if holds(&status) {
                return;
            }
            // Too much of it for a message.
            status["timeline"].take();
            assert!(Instant::now() < deadline, "never happened: {what}: {status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Replaces the configuration's file.
    pub fn write(&self, text: &str) {
        std::fs::write(self.path("aoai-lb.yaml"), text).unwrap();
    }

    /// The configuration's file, changed.
    pub fn rewrite(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path("aoai-lb.yaml")).unwrap();
        assert!(text.contains(from), "{from} is not in\n{text}");
        self.write(&text.replace(from, to));
    }

    /// `POST` to the admin API.
    pub async fn admin_post(&self, target: &str) -> Reply {
        let headers = [("Host", "localhost"), ("x-aoai-lb-admin", "1")];
        loop {
            let reply = Client::connect(self.admin).await.post(target, &headers, b"").await;
            if reply.status != 503 {
                return reply;
            }
        }
    }

    /// `aoai-lb upgrade`, as the operator of this balancer calls it.
    pub async fn upgrade(&self) -> std::process::Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        command.args(["upgrade", "-c"]).arg(self.path("aoai-lb.yaml"));
        command.env("RUNTIME_DIRECTORY", self.path("run")).output().await.unwrap()
    }

    /// All processes that serve or have served this configuration and are still there, oldest first.
    pub fn processes(&mut self) -> Vec<u32> {
        let log = self.log();
        let served = log.lines().filter_map(|line| line.split_once(" process ")?.1.split_once(" serves on "));
        let mut pids: Vec<u32> = served.filter_map(|(pid, _)| pid.parse().ok()).collect();
        // The first is the child, which has to be waited for.
        let is_over = self.child.try_wait().unwrap().is_some();
        pids.retain(|pid| if *pid == self.child.id() { !is_over } else { signal_to("0", *pid) });
        pids
    }

    /// Waits until nobody but the process that serves is left, and returns it.
    pub async fn until_alone(&mut self) -> u32 {
        let serving = self.serving().await;
        let deadline = Instant::now() + PATIENCE;
        // The first is known, whatever of the log has arrived.
        let is_first = serving == self.child.id();
        while self.processes().iter().any(|pid| *pid != serving)
            || (!is_first && self.child.try_wait().unwrap().is_none())
        {
            assert!(Instant::now() < deadline, "still there: {:?}\n{}", self.processes(), self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        serving
    }

    /// The process that serves now.
    pub async fn serving(&self) -> u32 {
        self.status().await["process"]["pid"].as_u64().unwrap().try_into().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Value> {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(self.path("records.jsonl")) {
            file.read_to_string(&mut text).unwrap();
        }
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The records, once there are `count` of them.
    pub async fn records_of(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = self.records();
            if records.len() >= count {
                assert_eq!(records.len(), count, "more records than requests: {records:#?}");
                return records;
            }
            assert!(
                Instant::now() < deadline,
                "{} of {count} records: {records:#?}\n{}",
                records.len(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        assert!(signal_to(name, self.child.id()));
    }

    /// SIGTERM, then the end; returns the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.ended().await
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for successor in self.processes() {
            signal_to("KILL", successor);
        }
        if std::thread::panicking() {
            eprintln!("--- log of the balancer\n{}---", self.log());
        }
    }
}

/// Sends a signal; returns whether there was somebody to get it.
pub fn signal_to(name: &str, pid: u32) -> bool {
    Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The backend that answered.
pub fn answerer(reply: &Reply) -> String {
    reply.header("x-aoai-lb-backend").unwrap_or_default().to_owned()
}
