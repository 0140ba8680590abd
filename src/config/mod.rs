//! The configuration as the rest of the program may trust it: every value here has been
//! read, expanded and checked against the others, so no room checks it again.
//!
//! What the YAML may look like is decided in `check.rs` and its parts; what a runtime does
//! with a value is left to the rooms, which build themselves from [`Config`].

mod allow;
mod check;
mod credentials;
mod deployments;
mod endpoint;
mod expand;
mod key_pair;
mod node;
mod secret;
mod statuses;
#[cfg(test)]
mod tests;
mod units;
mod words;
mod yaml;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::names::{BackendName, ClientName, Deployment, Subject, Tier, Weight};

pub use allow::{Allow, PathPattern};
pub use credentials::{
    Application, Credential, Entra, Identity, KeyVault, Proof, SecretSource, VaultSecret, WhichIdentity,
};
pub use deployments::DeploymentMap;
pub use endpoint::Endpoint;
pub use key_pair::{BadPair, KeyPair, PairFiles};
pub use secret::Secret;
pub use statuses::Statuses;

/// Everything one file says, with its defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// The routable entries, in the order of the file; at least one, names unique.
    pub backends: Vec<Backend>,
    /// Who may call.
    pub clients: Clients,
    /// Whose tokens clients may show in place of a key; `None`: nobody's.
    pub entra: Option<ClientTokens>,
    /// What may be asked, and how much of it.
    pub requests: Requests,
    /// How the backends of a tier take turns.
    pub balance: Balance,
    /// When another attempt is made.
    pub retry: Retry,
    /// How long a throttled deployment rests.
    pub cooldown: Cooldown,
    /// When a failing backend is left alone.
    pub breaker: Breaker,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// What is written down; `None`: nothing.
    pub record: Option<Record>,
    /// How secrets that are in a vault are read.
    pub key_vault: KeyVault,
    /// Where the admin API listens; `None`: nowhere.
    pub admin: Option<Admin>,
    /// The process itself.
    pub server: Server,
}

/// How the backends of a tier take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other, by weight.
    RoundRobin,
    /// The same, but those that are about to refuse take fewer turns.
    Headroom,
}

/// One address clients connect to.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The socket address; `[::]` is dual-stack.
    pub address: SocketAddr,
    /// What clients speak TLS with; `None`: they do not.
    pub tls: Option<ListenerTls>,
    /// Whether clients may speak HTTP/2; only with TLS.
    pub http2: bool,
    /// The networks whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Most connections at once from one address that is no trusted proxy's; at least 1.
    pub connections_per_client: usize,
}

/// The TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// What it shows: the first to whoever names none of the others' hosts. At least one.
    pub pairs: Vec<PairFiles>,
    /// What clients have to speak at least.
    pub minimum_version: TlsVersion,
    /// For TLS 1.2, by OpenSSL's names; `None`: Mozilla's "intermediate".
    pub ciphers: Option<String>,
    /// For TLS 1.3, by OpenSSL's names; `None`: Mozilla's "intermediate".
    pub ciphersuites: Option<String>,
    /// A PEM file of authorities: clients have to show a certificate of one of them. `None`: they
    /// need none.
    pub client_ca: Option<PathBuf>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the version's number")]
pub enum TlsVersion {
    V12,
    V13,
}

/// One routable entry: an endpoint with its credential, tier and weight.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Unique in the file.
    pub name: BackendName,
    /// The Azure resource host; several backends may share one.
    pub endpoint: Endpoint,
    /// Its place in the order of trying.
    pub tier: Tier,
    /// Its share of the tier.
    pub weight: Weight,
    /// What it is called with.
    pub credential: Credential,
    /// What it serves, under which names.
    pub deployments: DeploymentMap,
    /// Replaces the client's `api-version` on the classic path.
    pub api_version: Option<String>,
    /// How its certificate is checked; empty for an `http` endpoint.
    pub tls: BackendTls,
    /// Whether it is offered HTTP/2; never for an `http` endpoint.
    pub http2: bool,
    /// How long it may be without traffic before it is asked whether it is well; `None`: for
    /// ever.
    pub probe: Option<Duration>,
}

/// What differs from the usual check of a backend's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTls {
    /// A PEM file of authorities to trust in place of the system's; was readable at the check.
    pub ca: Option<PathBuf>,
    /// The name for SNI, for the check of the certificate and for `Host`, in place of the
    /// endpoint's host.
    pub server_name: Option<String>,
    /// The certificate that the balancer shows.
    pub pair: Option<PairFiles>,
}

/// Who may call.
#[derive(Clone, Debug)]
pub enum Clients {
    /// Anyone who can connect.
    Open,
    /// These, each with keys of its own; at least one.
    Listed(Vec<Client>),
}

/// One caller.
#[derive(Clone, Debug)]
pub struct Client {
    /// Unique in the file.
    pub name: ClientName,
    /// SHA-256 of each key; no hash belongs to two clients. It has one of these, or one of the
    /// following three.
    pub keys: Vec<[u8; 32]>,
    /// Ids of applications whose tokens it shows; none belongs to two clients.
    pub app_ids: Vec<String>,
    /// App roles of the tokens that it shows; none belongs to two clients.
    pub roles: Vec<String>,
    /// Subjects of its certificates; none belongs to two clients.
    pub certificates: Vec<Subject>,
    /// What it may ask for; `None`: everything. Never empty.
    pub deployments: Option<Vec<Deployment>>,
    /// Whether it may use files, batches, stored responses and the like.
    pub stateful: bool,
    /// What is kept of its content, where that differs from [`Record::content`].
    pub content: Option<Content>,
}

/// The tokens of Entra ID that clients may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTokens {
    /// Where its signing keys are published.
    pub authority: Endpoint,
    /// The directory's id.
    pub tenant: String,
    /// Whom its tokens have to be for: one of these; at least one.
    pub audiences: Vec<String>,
    /// Whose they have to be: one of these; at least one.
    pub issuers: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// What may be asked, how much of it, and what is changed on the way.
#[derive(Clone, Debug)]
pub struct Requests {
    /// One of these has to permit a request; at least one.
    pub allow: Vec<Allow>,
    /// Added to a classic path that has no `api-version`.
    pub api_version: Option<String>,
    /// The backend for calls that name no deployment: an index into [`Config::backends`].
    pub home: usize,
    /// Most bytes of a body that is held and replayed.
    pub max_body: u64,
    /// Most bytes of a body that passes through without replay; at least `max_body`.
    pub max_streamed_body: u64,
    /// Most bytes of all held bodies together; at least `max_body`.
    pub body_memory: u64,
    /// Set on every request upstream; no name twice. Values that were expanded are marked sensitive.
    pub set_headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Removed from every request upstream; none of them is also set.
    pub remove_headers: Vec<http::HeaderName>,
}

/// When another attempt is made.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Tries after the first, at most 100.
    pub attempts: u32,
    /// The statuses that lead to another backend.
    pub statuses: Statuses,
    /// From the end of the request body; no attempt after the first starts later.
    pub deadline: Duration,
    /// The most one request waits for cooldowns before it goes to the next tier.
    pub wait: Duration,
    /// How many more attempts than requests a pool may cost that is failing.
    pub budget: Ratio,
    /// How much of a stream is held until it is known to be an answer.
    pub hold: Hold,
}

/// A part of a whole, in whole percent; at most 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u8);

impl Ratio {
    const TWENTY: Self = Self(20);
    const HALF: Self = Self(50);

    /// Takes 0 to 100 percent.
    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    /// The ratio in percent.
    pub fn percent(self) -> u8 {
        self.0
    }
}

/// When a failing backend is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures within the window; at least 1.
    pub failures: u32,
    /// The part of all attempts within the window that they also have to be.
    pub ratio: Ratio,
    /// How far back is looked; above zero.
    pub window: Duration,
    /// How long it is left alone the first time; above zero.
    pub open: Duration,
    /// The most, when it comes back only to fail; at least `open`.
    pub maximum: Duration,
}

/// Bounds on what is held of a stream before its first content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// From the response head; zero holds nothing.
    pub time: Duration,
    /// Bytes; above zero.
    pub size: u64,
}

/// How long a throttled deployment rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// Where the answer gives no usable hint; above zero.
    pub default: Duration,
    /// Where the hint asks for more; at least `default`.
    pub maximum: Duration,
}

/// How long each step may take; all above zero and at most 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS to a backend.
    pub connect: Duration,
    /// From the request sent to the response head.
    pub first_byte: Duration,
    /// The same for a request that asks for a stream.
    pub first_byte_stream: Duration,
    /// Between two pieces of a response.
    pub idle: Duration,
    /// For a client's request head.
    pub request_header: Duration,
    /// For the whole of a client's request body; between two pieces of one that passes through.
    pub request_body: Duration,
    /// How long an unused upstream connection is kept.
    pub pool_idle: Duration,
}

/// What is written down of each exchange.
#[derive(Clone, Debug)]
pub struct Record {
    /// What is kept of prompts and answers, where the client does not say otherwise.
    pub content: Content,
    /// Most bytes kept of each of the two; above zero.
    pub content_limit: u64,
    /// How token counts of streams are come by.
    pub usage: UsageMode,
    /// What is taken out of prompts and answers before they are written down.
    pub redact: Vec<regex::Regex>,
    /// The file of JSON lines; that or the table, or both.
    pub jsonl: Option<Jsonl>,
    /// The table in Log Analytics.
    pub log_analytics: Option<LogAnalytics>,
    /// Where records wait for their sinks.
    pub spool: Spool,
}

/// A file of one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jsonl {
    /// Its path; the directory existed at the check.
    pub path: PathBuf,
    /// From so many bytes on a new file is begun.
    pub rotate: u64,
    /// How many old files are kept.
    pub keep: usize,
}

/// A table in Log Analytics, reached by a data collection rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAnalytics {
    /// The rule's or the data collection endpoint's.
    pub endpoint: Endpoint,
    /// The rule's immutable id.
    pub rule: String,
    /// The rule's stream.
    pub stream: String,
    /// Who may send to it.
    pub credential: Entra,
}

/// Where records wait for their sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// A directory of the balancer's own.
    pub path: PathBuf,
    /// Bytes beyond which the oldest go.
    pub maximum: u64,
}

/// What is kept of prompts and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Both.
    Full,
    /// The prompt only.
    Prompt,
    /// Neither.
    None,
}

/// How token counts of streams are come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageMode {
    /// Upstream is asked for them where the client did not.
    Ask,
    /// Only what passes anyway is read.
    Observe,
}

/// The admin API.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: AdminAddress,
    /// What has to be shown; always there beyond loopback.
    pub token: Option<SecretSource>,
    /// The same.
    pub tls: Option<ListenerTls>,
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address that no listener uses.
    Tcp(SocketAddr),
    /// A Unix socket; the path is short enough for one.
    Unix(PathBuf),
}

/// The process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Worker threads; 1 to 256.
    pub threads: usize,
    /// How long requests in flight may go on after a stop was asked for.
    pub grace_period: Duration,
    /// How long listeners stay after readiness has failed.
    pub drain_delay: Duration,
    /// Silence after which TCP probes both sides; whole seconds, 1 s to 9 h.
    pub tcp_keepalive: Duration,
    /// Where an upgrade hands the listening sockets over; its directory is the balancer's own.
    pub upgrade_socket: PathBuf,
}

/// A good configuration, and what is worth a second look in it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// What is allowed but unlikely to be meant.
    pub warnings: Vec<Problem>,
    /// SHA-256 of the text, in hexadecimal.
    pub sha256: String,
}

/// One thing to look at, and where. Neither part shows a value that was expanded or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place, as `backends[2].weight`; empty for the whole file.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Why a file is refused: all of it, one line each when displayed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", lines(.errors))]
pub struct Problems {
    /// What has to be put right; at least one.
    pub errors: Vec<Problem>,
    /// What was noticed besides.
    pub warnings: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// A variable of the process's environment, which is what it was at the start.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads and checks the file at `path`. Relative paths in it start at its own directory.
///
/// `env` is the environment for `${NAME}`; a reload passes that of the process start.
///
/// # Errors
/// Every problem of the file at once, or the one that keeps it from being read.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Checked, Problems> {
    parse(&read(path)?, base(path), env)
}

fn read(path: &Path) -> Result<String, Problems> {
    let refused = |reason: String| Problems {
        errors: vec![Problem {
            path: String::new(),
            message: format!("cannot read {}: {reason}", path.display()),
        }],
        warnings: Vec::new(),
    };
    let bytes = std::fs::read(path).map_err(|e| refused(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8 text".to_owned()))
}

/// Where relative paths of a file start.
fn base(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Where the process of this file listens for upgrades, also if the rest of the file is bad.
///
/// # Errors
/// When the file cannot be read, or what it says of the socket is no path.
pub fn upgrade_socket(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, Problems> {
    let text = read(path)?;
    let report = node::Report::new(base(path), env);
    let socket = yaml::document(&text, &report).and_then(|root| check::upgrade_socket(&root));
    let (errors, warnings) = report.finish();
    socket.ok_or(Problems { errors, warnings })
}

/// Checks a configuration that is at hand as text; `base` is where relative paths start.
///
/// # Errors
/// Every problem of the text at once; a YAML syntax error hides all others.
pub fn parse(text: &str, base: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Checked, Problems> {
    let report = node::Report::new(base, env);
    let config = yaml::document(text, &report).and_then(|root| check::config(&root));
    let (errors, warnings) = report.finish();
    match config {
        Some(config) if errors.is_empty() => {
            let sha256 = openssl::sha::sha256(text.as_bytes());
            Ok(Checked {
                config,
                warnings,
                sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        }
        _ => Err(Problems { errors, warnings }),
    }
}
