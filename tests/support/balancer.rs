//! The balancer under test: the real binary with its own directory and ports.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use super::{
    CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, PollDeadline, Response, TEST_TIMEOUT, clients_yaml,
    free_port, tls, wait_until,
};

/// In the log when a process has completed its start.
const SERVES: &str = " serves on ";

/// A running balancer. Its processes are killed when it is dropped.
pub struct Balancer {
    child: Child,
    pub address: SocketAddr,
    pub admin_address: SocketAddr,
    directory: tempfile::TempDir,
    speaks_tls: bool,
    has_admin: bool,
    log: Arc<Mutex<String>>,
    environment: Vec<(String, String)>,
    /// How many processes had completed their start before the one that is awaited.
    earlier_starts: usize,
}

impl Balancer {
    /// Starts the binary with these backends, the client `team-a` and further top-level blocks of YAML.
    pub async fn start(backends: &str, extra_yaml: &str) -> Self {
        Self::start_with_clients(backends, &clients_yaml(), extra_yaml).await
    }

    pub async fn start_with_clients(backends: &str, clients: &str, extra_yaml: &str) -> Self {
        Self::start_with_blocks(backends, clients, "", extra_yaml).await
    }

    /// Like [`Self::start`], with further keys of the listener instead of further blocks.
    pub async fn start_with_listener(backends: &str, listener: &str) -> Self {
        Self::start_with_blocks(backends, &clients_yaml(), listener, "").await
    }

    /// Like [`Self::start`], with TLS, HTTP/2 and a certificate issued by this authority.
    pub async fn start_with_tls(
        authority: &tls::CertificateAuthority,
        backends: &str,
        extra_yaml: &str,
    ) -> Self {
        Self::start_with_tls_blocks(authority, "", backends, extra_yaml).await
    }

    /// Like [`Self::start_with_tls`], with further keys of the listener.
    pub async fn start_with_tls_and_listener(
        authority: &tls::CertificateAuthority,
        listener: &str,
        backends: &str,
    ) -> Self {
        Self::start_with_tls_blocks(authority, listener, backends, "").await
    }

    /// Like [`Self::start_with_tls`], with further keys of the listener and further top-level blocks.
    pub async fn start_with_tls_blocks(
        authority: &tls::CertificateAuthority,
        listener: &str,
        backends: &str,
        extra_yaml: &str,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        tls::write_certificate_and_key(directory.path(), authority, 1);
        let tls = "tls: { certificate: cert.pem, private_key: key.pem }\nhttp2: true\n";
        Self::start_in_directory(
            directory,
            backends,
            &clients_yaml(),
            &format!("{tls}{listener}"),
            extra_yaml,
            &[],
        )
        .await
    }

    async fn start_with_blocks(backends: &str, clients: &str, listener: &str, extra_yaml: &str) -> Self {
        Self::start_in_directory(tempfile::tempdir().unwrap(), backends, clients, listener, extra_yaml, &[])
            .await
    }

    /// Like [`Self::start`], with these environment variables.
    pub async fn start_with_environment(
        variables: &[(&str, String)],
        backends: &str,
        extra_yaml: &str,
    ) -> Self {
        Self::start_in_directory(
            tempfile::tempdir().unwrap(),
            backends,
            &clients_yaml(),
            "",
            extra_yaml,
            variables,
        )
        .await
    }

    async fn start_in_directory(
        directory: tempfile::TempDir,
        backends: &str,
        clients: &str,
        listener: &str,
        extra_yaml: &str,
        variables: &[(&str, String)],
    ) -> Self {
        raise_open_file_limit();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin_address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener: String = listener.lines().map(|line| format!("    {line}\n")).collect();
        let mut text = format!("listeners:\n  - address: {address}\n{listener}");
        if !extra_yaml.contains("server:") {
            text += "server: { drain_delay: 0s }\n";
        }
        if !extra_yaml.contains("record:") {
            text += "record: { jsonl: { path: records.jsonl } }\n";
        }
        text +=
            &format!("admin: {{ address: {admin_address} }}\nbackends:\n{backends}{clients}{extra_yaml}\n");
        Self::start_from_file_with_environment(directory, address, admin_address, &text, variables).await
    }

    /// Starts the binary with this configuration file, which must contain both addresses.
    pub async fn start_from_file(
        directory: tempfile::TempDir,
        address: SocketAddr,
        admin_address: SocketAddr,
        text: &str,
    ) -> Self {
        Self::start_from_file_with_environment(directory, address, admin_address, text, &[]).await
    }

    /// Like [`Self::start_from_file`], with these environment variables.
    pub async fn start_from_file_with_environment(
        directory: tempfile::TempDir,
        address: SocketAddr,
        admin_address: SocketAddr,
        text: &str,
        variables: &[(&str, String)],
    ) -> Self {
        let path = directory.path().join("aoai-lb.yaml");
        std::fs::write(&path, text).unwrap();
        // A symlink, so that a test of upgrades can replace the binary.
        let binary = directory.path().join("aoai-lb");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_aoai-lb"), &binary).unwrap();
        let in_directory = |name: &str| directory.path().join(name).display().to_string();
        let mut environment = vec![
            ("RUNTIME_DIRECTORY".to_owned(), in_directory("run")),
            ("STATE_DIRECTORY".to_owned(), in_directory("state")),
        ];
        environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let log = Arc::new(Mutex::new(String::new()));
        let child = spawn_process(directory.path(), &environment, &log);
        let listeners = text.split("\nadmin:").next().unwrap();
        let speaks_tls = listeners.contains(" tls: { certificate");
        let has_admin = text.contains(&format!("address: {admin_address}"));
        let mut balancer = Self {
            child,
            address,
            admin_address,
            directory,
            speaks_tls,
            has_admin,
            log,
            environment,
            earlier_starts: 0,
        };
        balancer.wait_until_ready().await;
        balancer
    }

    /// Starts another process with the file as it is now. The first one must have exited, and there must be no
    /// successor.
    pub async fn start_again(&mut self) {
        self.child.wait().unwrap();
        self.earlier_starts = self.log().matches(SERVES).count();
        self.child = spawn_process(self.directory.path(), &self.environment, &self.log);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&mut self) {
        let deadline = PollDeadline::after(TEST_TIMEOUT);
        loop {
            if self.is_ready().await {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the balancer exited with {status} before it was ready:\n{}", self.log());
            }
            deadline.pause("the balancer is ready", self.log()).await;
        }
    }

    /// Whether the balancer answers and has completed its start: the control socket is opened after the
    /// listeners. A TLS listener only has to accept connections.
    async fn is_ready(&self) -> bool {
        if self.log.lock().unwrap().matches(SERVES).count() <= self.earlier_starts {
            return false;
        }
        let Ok(mut client) = Client::try_connect(self.address).await else { return false };
        if !self.speaks_tls && !client.get_is_ok("/readyz").await {
            return false;
        }
        if !self.has_admin {
            return true;
        }
        let Ok(mut admin) = Client::try_connect(self.admin_address).await else { return false };
        // An admin API with TLS or a token would refuse this request, so connecting is enough.
        !self.speaks_tls || admin.get_is_ok("/api/status").await
    }

    /// The log so far. A line may arrive after the response that it is about.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains this text.
    pub async fn wait_for_log(&self, what: &str) {
        wait_until(&format!("{what:?} is in the log"), || self.log.lock().unwrap().contains(what)).await;
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Sends one POST on a new connection.
    pub async fn post(&self, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.connect().await.post(target, headers, body).await
    }

    /// Sends one chat request on a new connection, as `team-a`.
    pub async fn post_chat(&self) -> Response {
        self.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await
    }

    /// The status of the newest process. For a while after an upgrade the old process still answers
    /// on the admin address, too.
    pub async fn status(&self) -> Value {
        loop {
            let response =
                Client::connect(self.admin_address).await.get("/api/status", &[("Host", "localhost")]).await;
            let status: Value = serde_json::from_slice(&response.body).unwrap();
            if status["process"]["replaced"] == false {
                return status;
            }
        }
    }

    /// Name and state of each backend, in the order of the configuration.
    pub async fn backend_states(&self) -> Vec<(String, String)> {
        let status = self.status().await;
        let to_text = |value: &Value| value.as_str().unwrap().to_owned();
        let backends = status["backends"].as_array().unwrap().iter();
        backends.map(|backend| (to_text(&backend["name"]), to_text(&backend["state"]))).collect()
    }

    /// Waits until the status meets a condition; `what` describes it in the failure message.
    pub async fn wait_for_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = PollDeadline::after(TEST_TIMEOUT);
        loop {
            let mut status = self.status().await;
            if condition(&status) {
                return status;
            }
            // The timeline is too long for a failure message.
            status["timeline"].take();
            deadline.pause(what, status).await;
        }
    }

    /// Waits until a single request is in flight, and none of its attempts is.
    pub async fn wait_for_request_between_attempts(&self) {
        self.wait_for_status("the request waits between attempts", |status| {
            let backends = status["backends"].as_array().unwrap();
            status["in_flight"] == 1 && backends.iter().all(|backend| backend["in_flight"] == 0)
        })
        .await;
    }

    /// Overwrites the configuration file.
    pub fn write_config(&self, text: &str) {
        std::fs::write(self.path("aoai-lb.yaml"), text).unwrap();
    }

    /// Replaces a text in the configuration file.
    pub fn replace_in_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path("aoai-lb.yaml")).unwrap();
        assert!(text.contains(from), "{from:?} is not in the configuration:\n{text}");
        self.write_config(&text.replace(from, to));
    }

    /// Sends a POST to the admin API, again if a stopping process refuses it.
    pub async fn post_admin(&self, target: &str) -> Response {
        let headers = [("Host", "localhost"), ("x-aoai-lb-admin", "1")];
        loop {
            let response = Client::connect(self.admin_address).await.post(target, &headers, b"").await;
            if response.status != 503 {
                return response;
            }
        }
    }

    /// Runs `aoai-lb upgrade` for this balancer.
    pub async fn run_upgrade_command(&self) -> std::process::Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        command.args(["upgrade", "-c"]).arg(self.path("aoai-lb.yaml"));
        command.envs(self.environment.iter().cloned()).output().await.unwrap()
    }

    /// The process ids of all running processes of this balancer, oldest first.
    pub fn running_pids(&mut self) -> Vec<u32> {
        let log = self.log();
        let announcements =
            log.lines().filter_map(|line| line.split_once(" process ")?.1.split_once(" serves on "));
        let mut pids: Vec<u32> = announcements.filter_map(|(pid, _)| pid.parse().ok()).collect();
        // The first process is a child: it stays a zombie until it has been waited for.
        let has_exited = self.child.try_wait().unwrap().is_some();
        pids.retain(|pid| if *pid == self.child.id() { !has_exited } else { is_process_alive(*pid) });
        pids
    }

    /// Waits until only the newest process is left, and returns its id.
    pub async fn wait_until_single_process(&mut self) -> u32 {
        let serving = self.serving_pid().await;
        let deadline = PollDeadline::after(TEST_TIMEOUT);
        // The child is known even if its log lines have not arrived yet.
        let is_first = serving == self.child.id();
        while self.running_pids().iter().any(|pid| *pid != serving)
            || (!is_first && self.child.try_wait().unwrap().is_none())
        {
            deadline.pause("the old processes exit", self.running_pids()).await;
        }
        serving
    }

    /// The id of the newest process.
    pub async fn serving_pid(&self) -> u32 {
        self.status().await["process"]["pid"].as_u64().unwrap().try_into().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The records written so far.
    pub fn records(&self) -> Vec<Value> {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(self.path("records.jsonl")) {
            file.read_to_string(&mut text).unwrap();
        }
        let complete_lines = text.rsplit_once('\n').map_or("", |(complete_lines, _)| complete_lines);
        complete_lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until there are `count` records. Fails if there are more.
    pub async fn wait_for_records(&self, count: usize) -> Vec<Value> {
        let deadline = PollDeadline::after(TEST_TIMEOUT);
        loop {
            let records = self.records();
            if records.len() >= count {
                assert_eq!(records.len(), count, "more records than requests: {records:#?}");
                return records;
            }
            deadline.pause(&format!("there are {count} records"), records).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn send_signal(&self, name: &str) {
        assert!(send_signal_to(name, self.child.id()));
    }

    /// Sends SIGTERM, waits for the process to exit, and returns its exit code.
    pub async fn stop(&mut self) -> i32 {
        self.send_signal("TERM");
        self.wait_for_exit().await
    }

    /// Waits until the first process exits, and returns its exit code.
    pub async fn wait_for_exit(&mut self) -> i32 {
        let deadline = PollDeadline::after(TEST_TIMEOUT);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            deadline.pause("the balancer exits", self.log()).await;
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for successor in self.running_pids() {
            send_signal_to("KILL", successor);
        }
        if std::thread::panicking() {
            eprintln!("--- log of the balancer\n{}---", self.log());
        }
    }
}

/// Clients and resources of all tests are in this process; some have a thousand connections.
fn raise_open_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

fn spawn_process(directory: &Path, environment: &[(String, String)], log: &Arc<Mutex<String>>) -> Child {
    let mut command = Command::new(directory.join("aoai-lb"));
    command.args(["run", "-c"]).arg(directory.join("aoai-lb.yaml"));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let (lines, log) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(log));
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    child
}

/// Sends a signal; returns whether the process exists.
pub fn send_signal_to(name: &str, pid: u32) -> bool {
    Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Whether a process with this id exists. Signal 0 only checks that.
pub fn is_process_alive(pid: u32) -> bool {
    send_signal_to("0", pid)
}
