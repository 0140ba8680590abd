//! A Redis server that exists only in the test: on loopback, in a directory of its own, without anything on disk.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, send_signal_to, wait_until};

/// In the log of a server that accepts connections.
const READY: &str = "Ready to accept connections";

/// A running server. It is killed when it is dropped.
pub struct RedisServer {
    child: Child,
    directory: tempfile::TempDir,
    pub port: u16,
    arguments: Vec<String>,
    starts: usize,
}

impl RedisServer {
    /// Starts a server with these arguments.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_on(free_port(), arguments).await
    }

    /// Like [`Self::start`], on this port.
    pub async fn start_on(port: u16, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        // With a port for TLS of its own it has both.
        let port_key = if has("--tls-cert-file") && !has("--tls-port") {
            vec!["--port".to_owned(), "0".to_owned(), "--tls-port".to_owned(), port.to_string()]
        } else {
            vec!["--port".to_owned(), port.to_string()]
        };
        let directory = tempfile::tempdir().unwrap();
        let arguments = [port_key, arguments].concat();
        let child = spawn_server(directory.path(), &arguments);
        let mut server = Self { child, directory, port, arguments, starts: 1 };
        server.wait_until_ready().await;
        server
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Self::kill`]: empty, as it keeps nothing on disk.
    pub async fn start_again(&mut self) {
        self.child = spawn_server(self.directory.path(), &self.arguments);
        self.starts += 1;
        self.wait_until_ready().await;
    }

    /// Sends it a signal, such as `STOP`.
    pub fn send_signal(&self, name: &str) {
        assert!(send_signal_to(name, self.child.id()));
    }

    /// The URL without TLS.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The block `shared` of a configuration, with further keys.
    pub fn shared_yaml(&self, more: &str) -> String {
        format!("shared: {{ redis: {{ url: '{}'{more} }} }}\n", self.url())
    }

    /// Runs a command on a connection of its own, with this password if it is not empty.
    pub async fn command(&self, password: &str, parts: &[&str]) -> redis::Value {
        self.try_command(password, parts).await.unwrap()
    }

    /// The same, if the server may refuse it.
    pub async fn try_command(&self, password: &str, parts: &[&str]) -> redis::RedisResult<redis::Value> {
        // Authenticated by HELLO: a test may count AUTH.
        let url = format!("redis://:{password}@127.0.0.1:{}?protocol=resp3", self.port);
        let url = if password.is_empty() { self.url() } else { url };
        let client = redis::Client::open(url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::Cmd::new();
        for part in parts {
            command.arg(part);
        }
        command.query_async(&mut connection).await
    }

    /// Creates the user `aoai-lb` with the rights that the manual names.
    pub async fn add_user_of_manual(&self, password: &str) {
        let manual = include_str!("../../docs/high-availability.md");
        let rule =
            manual.lines().find_map(|line| line.strip_prefix("redis-cli ACL SETUSER aoai-lb ")).unwrap();
        // The quotes are for the shell.
        let rule = rule.replace('\'', "").replace(">PASSWORD", &format!(">{password}"));
        let command: Vec<&str> = ["ACL", "SETUSER", "aoai-lb"].into_iter().chain(rule.split(' ')).collect();
        self.command("", &command).await;
    }

    /// The rest of a line of INFO that begins so.
    pub async fn info_line(&self, password: &str, beginning: &str) -> Option<String> {
        let info = self.command(password, &["INFO", "everything"]).await;
        let info: String = redis::from_redis_value(info).unwrap();
        info.lines().find_map(|line| line.strip_prefix(beginning)).map(str::to_owned)
    }

    async fn wait_until_ready(&mut self) {
        let (log, starts) = (self.directory.path().join("log"), self.starts);
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        let child = &mut self.child;
        wait_until("redis-server accepts connections", || {
            let exited = child.try_wait().unwrap();
            assert!(exited.is_none(), "redis-server exited: {exited:?}\n{}", read());
            read().matches(READY).count() >= starts
        })
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // A stopped process takes this signal as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn_server(directory: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", "log", "--dir"]);
    command.arg(directory).args(arguments).current_dir(directory);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    spawned.expect("redis-server is missing; `make install-test-packages` installs it")
}

/// Time within which a lost instance is noticed: five seconds, and those that a busy machine takes.
pub const NOTICE_TIME: Duration = Duration::from_secs(15);
