//! The compared gateways: their configurations and processes. Each is configured as its manual recommends
//! for this purpose, on one core: two backends, keep-alive, retries on 429 and 5xx, no response buffering.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use super::support::{free_port, memory_directory, sha256_hex};
use super::{BACKEND_KEY, HOST, bare};

/// How long a gateway may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The kind of a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GatewayKind {
    Nginx,
    HaProxy,
    Envoy,
    BarePingora,
    /// aoai-lb with records.
    Balancer,
    /// aoai-lb without records.
    BalancerWithoutRecords,
}

impl GatewayKind {
    pub const ALL: [Self; 6] = [
        Self::Nginx,
        Self::HaProxy,
        Self::Envoy,
        Self::BarePingora,
        Self::Balancer,
        Self::BalancerWithoutRecords,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::BarePingora => "bare Pingora",
            Self::Balancer => "aoai-lb",
            Self::BalancerWithoutRecords => "aoai-lb, no records",
        }
    }

    /// The version that the program reports; `None` if it is not installed.
    pub fn version(self) -> Option<String> {
        let (program, argument) = match self {
            Self::Nginx => ("nginx".into(), "-v"),
            Self::HaProxy => ("haproxy".into(), "-v"),
            Self::Envoy => (find_envoy()?, "--version"),
            Self::BarePingora => return Some("0.9.1".to_owned()),
            Self::Balancer | Self::BalancerWithoutRecords => (balancer_program(), "--version"),
        };
        let output = Command::new(program).arg(argument).output().ok()?;
        let output_text = [output.stdout, output.stderr].concat();
        let output_text = String::from_utf8_lossy(&output_text);
        // The first word that starts with a digit, also after a slash as in `nginx/1.22`.
        let words = output_text.split(|c: char| c.is_whitespace() || c == '/');
        words
            .into_iter()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
            .map(str::to_owned)
    }
}

/// The program of aoai-lb: the one that cargo has built, or another that is to be measured.
fn balancer_program() -> PathBuf {
    env::var_os("AOAI_LB_PROGRAM").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_aoai-lb")), PathBuf::from)
}

/// The program of Envoy: from PATH, or as installed by `make bench`.
fn find_envoy() -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    let bundled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("envoy/bin");
    env::split_paths(&paths).chain([bundled]).map(|path| path.join("envoy")).find(|path| path.exists())
}

/// The environment of a gateway in a scenario.
pub struct GatewaySetup<'a> {
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub directory: &'a Path,
    pub upstreams: &'a [SocketAddr],
    pub tls_upstream: bool,
    pub http2_upstream: bool,
    pub tls_listener: bool,
    /// The number of configured clients.
    pub clients: usize,
}

/// A running gateway. It is stopped when it is dropped.
pub struct RunningGateway {
    pub kind: GatewayKind,
    pub address: SocketAddr,
    child: Child,
    _runtime_directory: tempfile::TempDir,
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        // A program that was built to be profiled writes what it has counted when it ends by itself.
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                self.signal(rustix::process::Signal::KILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl RunningGateway {
    /// Starts a gateway on the first core and waits until it listens.
    pub fn start(kind: GatewayKind, setup: &GatewaySetup<'_>) -> io::Result<Self> {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let directory = setup.directory.join(format!("{kind:?}-{port}"));
        fs::create_dir_all(&directory)?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(setup.directory.join(name), directory.join(name))?;
        }
        let command = match kind {
            GatewayKind::Nginx => nginx_command(&directory, address, setup)?,
            GatewayKind::HaProxy => haproxy_command(&directory, address, setup)?,
            GatewayKind::Envoy => envoy_command(&directory, address, setup)?,
            GatewayKind::BarePingora => bare_command(&directory, address, setup)?,
            GatewayKind::Balancer | GatewayKind::BalancerWithoutRecords => {
                balancer_command(&directory, address, setup, kind == GatewayKind::Balancer)?
            }
        };
        let runtime_directory = memory_directory();
        let log = directory.join("log");
        let mut child = Command::new("taskset")
            .args(["-c", "0"])
            .args(command)
            .current_dir(&directory)
            .env("RUNTIME_DIRECTORY", runtime_directory.path())
            .env("RUNTIME_DIRECTORY_PRESERVE", "yes")
            .env("STATE_DIRECTORY", directory.join("state"))
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let output_text = fs::read_to_string(&log)?;
                return Err(io::Error::other(format!("{} does not listen:\n{output_text}", kind.name())));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { kind, address, child, _runtime_directory: runtime_directory })
    }

    fn signal(&self, signal: rustix::process::Signal) {
        for pid in self.pids().into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// The process ids of the gateway: the first process and its children.
    fn pids(&self) -> Vec<i32> {
        let pid = self.child.id().cast_signed();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    /// Processor time so far, user and system.
    pub fn cpu_time(&self) -> Duration {
        let ticks = self.pids().into_iter().map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The fields after the name of the program, which may contain spaces.
            let rest = stat.rsplit(") ").next().unwrap_or_default();
            rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u32>().ok()).sum::<u32>()
        });
        // USER_HZ is 100 on every Linux.
        Duration::from_millis(10) * ticks.sum::<u32>()
    }

    /// How often its threads have been switched to another so far.
    pub fn context_switches(&self) -> u64 {
        let tasks = self.pids().into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let statuses =
            tasks.flatten().flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let switches = statuses.map(|status| {
            let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
            counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>()
        });
        switches.sum()
    }

    /// Resident memory in KiB; memory that its processes share counts once.
    pub fn memory_kib(&self) -> u64 {
        let kib = self.pids().into_iter().map(|pid| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = rollup.lines().find(|line| line.starts_with("Pss:"));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
        });
        kib.sum()
    }
}

fn path_in(directory: &Path, name: &str) -> String {
    directory.join(name).to_string_lossy().into_owned()
}

fn nginx_command(directory: &Path, address: SocketAddr, setup: &GatewaySetup<'_>) -> io::Result<Vec<String>> {
    let scheme = if setup.tls_upstream { "https" } else { "http" };
    let servers = setup.upstreams.iter().fold(String::new(), |mut text, address| {
        let _ = writeln!(text, "    server {address};");
        text
    });
    let (tls, ssl) = if setup.tls_listener {
        ("ssl_certificate cert.pem; ssl_certificate_key key.pem;", " ssl")
    } else {
        ("", "")
    };
    let text = format!(
        "daemon off; pid nginx.pid; error_log stderr error; worker_processes 1; worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  client_max_body_size 100m; client_body_buffer_size 2m; tcp_nodelay on;
  upstream azure {{
{servers}    keepalive 1024; keepalive_requests 100000000;
  }}
  server {{
    listen {address}{ssl} backlog=8192; {tls} keepalive_requests 100000000;
    location / {{
      proxy_pass {scheme}://azure; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host {HOST}; proxy_set_header api-key {BACKEND_KEY}; proxy_buffering off;
      proxy_read_timeout 300s; proxy_ssl_trusted_certificate ca.pem; proxy_ssl_verify on; proxy_ssl_name {HOST};
      proxy_ssl_server_name on;
      proxy_next_upstream error timeout http_429 http_500 http_502 http_503 http_504 non_idempotent;
    }}
  }}
}}
"
    );
    fs::write(directory.join("nginx.conf"), text)?;
    let prefix = directory.to_string_lossy().into_owned();
    Ok(["nginx", "-p", &prefix, "-e", "stderr", "-c", "nginx.conf"].map(str::to_owned).to_vec())
}

fn haproxy_command(
    directory: &Path,
    address: SocketAddr,
    setup: &GatewaySetup<'_>,
) -> io::Result<Vec<String>> {
    let alpn = if setup.http2_upstream { " alpn h2" } else { "" };
    let tls = if setup.tls_upstream {
        format!(" ssl verify required ca-file ca.pem sni str({HOST}) verifyhost {HOST}{alpn}")
    } else {
        String::new()
    };
    let servers = setup.upstreams.iter().enumerate().fold(String::new(), |mut text, (number, address)| {
        let _ = writeln!(text, "  server s{number} {address}{tls}");
        text
    });
    let bind = if setup.tls_listener { " ssl crt pair.pem alpn http/1.1" } else { "" };
    let pair = [fs::read(directory.join("cert.pem"))?, fs::read(directory.join("key.pem"))?].concat();
    fs::write(directory.join("pair.pem"), pair)?;
    let text = format!(
        "global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 75s
  option http-no-delay
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response response-timeout 500 502 503 504
  http-reuse always
frontend f
  bind {address}{bind} backlog 8192
  default_backend azure
backend azure
  balance roundrobin
  http-request set-header host {HOST}
  http-request set-header api-key {BACKEND_KEY}
{servers}"
    );
    fs::write(directory.join("haproxy.cfg"), text)?;
    Ok(["haproxy", "-db", "-f", "haproxy.cfg"].map(str::to_owned).to_vec())
}

fn envoy_command(directory: &Path, address: SocketAddr, setup: &GatewaySetup<'_>) -> io::Result<Vec<String>> {
    let port = address.port();
    let endpoints = setup.upstreams.iter().fold(String::new(), |mut text, address| {
        let port = address.port();
        let _ = writeln!(
            text,
            "      - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}"
        );
        text
    });
    let file = |name: &str| path_in(directory, name);
    let (ca, certificate, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let upstream_tls = if setup.tls_upstream {
        format!(
            "    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {HOST}
        common_tls_context:
          validation_context:
            trusted_ca: {{ filename: {ca} }}
            match_typed_subject_alt_names: [ {{ san_type: DNS, matcher: {{ exact: {HOST} }} }} ]\n"
        )
    } else {
        String::new()
    };
    let listener_tls = if setup.tls_listener {
        format!(
            "      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates: [ {{ certificate_chain: {{ filename: {certificate} }}, private_key: {{ filename: {key} }} }} ]\n"
        )
    } else {
        String::new()
    };
    let protocol = if setup.http2_upstream { "http2_protocol_options" } else { "http_protocol_options" };
    let text = format!(
        "static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    tcp_backlog_size: 8192
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: azure
              domains: [\"*\"]
              request_headers_to_add:
              - {{ header: {{ key: api-key, value: {BACKEND_KEY} }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }}
              routes:
              - match: {{ prefix: / }}
                route:
                  cluster: azure
                  host_rewrite_literal: {HOST}
                  timeout: 0s
                  retry_policy: {{ retry_on: \"5xx,reset,connect-failure,retriable-status-codes\", retriable_status_codes: [429], num_retries: 3 }}
{listener_tls}  clusters:
  - name: azure
    connect_timeout: 5s
    type: STATIC
    lb_policy: ROUND_ROBIN
    circuit_breakers: {{ thresholds: [ {{ max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 }} ] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{}} }}
    load_assignment:
      cluster_name: azure
      endpoints:
      - lb_endpoints:
{endpoints}{upstream_tls}"
    );
    // The list of endpoints is indented by two more columns.
    let text = text.replace("      - endpoint:", "        - endpoint:");
    fs::write(directory.join("envoy.yaml"), text)?;
    let program = find_envoy().ok_or(io::ErrorKind::NotFound)?.to_string_lossy().into_owned();
    let arguments =
        ["-c", "envoy.yaml", "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"];
    Ok(std::iter::once(program).chain(arguments.map(str::to_owned)).collect())
}

fn bare_command(directory: &Path, address: SocketAddr, setup: &GatewaySetup<'_>) -> io::Result<Vec<String>> {
    let [first, second, ..] = setup.upstreams else { return Err(io::ErrorKind::InvalidInput.into()) };
    let (ca, certificate, key) =
        (path_in(directory, "ca.pem"), path_in(directory, "cert.pem"), path_in(directory, "key.pem"));
    let ca = setup.tls_upstream.then_some(ca.as_str());
    let pair = setup.tls_listener.then_some((certificate.as_str(), key.as_str()));
    let mut command = vec![env::current_exe()?.to_string_lossy().into_owned()];
    command.extend(bare::command_arguments(address, [*first, *second], ca, setup.http2_upstream, pair));
    Ok(command)
}

fn balancer_command(
    directory: &Path,
    address: SocketAddr,
    setup: &GatewaySetup<'_>,
    writes_records: bool,
) -> io::Result<Vec<String>> {
    let scheme = if setup.tls_upstream { "https" } else { "http" };
    let tls = if setup.tls_upstream {
        format!("\n    tls: {{ ca: ca.pem, server_name: {HOST} }}\n    http2: {}", setup.http2_upstream)
    } else {
        String::new()
    };
    let backends = setup.upstreams.iter().enumerate().fold(String::new(), |mut text, (number, address)| {
        let _ = writeln!(
            text,
            "  - name: b{number}\n    endpoint: {scheme}://{address}\n    credential: {{ api_key: {BACKEND_KEY} }}\n    \
             deployments: {{ gpt-4o: gpt-4o-{number} }}{tls}"
        );
        text
    });
    let clients = (0..setup.clients.max(1)).fold(String::new(), |mut text, number| {
        let digest = sha256_hex(&super::client_key(number));
        let _ = writeln!(text, "  - name: client-{number}\n    keys: [ {{ sha256: {digest} }} ]");
        text
    });
    let listener =
        if setup.tls_listener { "\n    tls: { certificate: cert.pem, private_key: key.pem }" } else { "" };
    let record = if writes_records {
        "record:\n  content: full\n  jsonl: { path: exchanges.jsonl, keep: 1 }\n"
    } else {
        ""
    };
    let admin = free_port();
    let text = format!(
        "listeners:\n  - address: {address}\n    connections_per_client: 20000{listener}\n\
         backends:\n{backends}clients:\n{clients}{record}\
         admin: {{ address: 127.0.0.1:{admin} }}\nserver: {{ threads: 1, drain_delay: 0s }}\n"
    );
    fs::write(directory.join("aoai-lb.yaml"), text)?;
    let program = balancer_program().to_string_lossy().into_owned();
    Ok([&program, "run", "-c", "aoai-lb.yaml"].map(str::to_owned).to_vec())
}
