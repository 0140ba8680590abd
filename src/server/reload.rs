//! The configuration over the life of a process: a new file becomes a new gateway, swapped whole;
//! a bad file leaves the old one serving.
//!
//! What was opened at the start (listeners, the admin API, where records go, the engine) stays as it
//! is until an upgrade; a reload says which of it would be another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use log::{error, info, warn};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};

use crate::config::{self, Checked, Config, Problem, Problems};
use crate::gateway::{Gateway, Process};
use crate::names::Deployment;
use crate::proxy::Serving;
use crate::proxy::upstream::dns::{Directory, Resolve, System};
use crate::proxy::upstream::peer::{BadAuthority, Peers};
use crate::proxy::upstream::probe;

/// How long a new configuration waits for names to resolve; a backend whose name has not is left
/// out until it has.
const FIRST_LOOK_UP: Duration = Duration::from_secs(3);
/// How long it waits for tokens and secrets; a backend whose has not come is left out until it has.
const FIRST_SECRETS: Duration = Duration::from_secs(5);

/// The configuration in place and how it got there.
pub struct Live {
    /// What requests are served with.
    pub serving: Arc<ArcSwap<Serving>>,
    process: Arc<Process>,
    /// Where it comes from; `None` for one that no file has.
    file: Option<PathBuf>,
    opened: Config,
    turn: Mutex<Turn>,
    told: ArcSwap<Told>,
}

/// What a reload replaces besides; held while one is under way.
struct Turn {
    directory: Directory,
    _probes: JoinSet<()>,
}

/// What there is to tell about the configuration in place.
#[derive(Clone, Debug)]
pub struct Told {
    /// Counts the configurations of this process, from 1.
    pub version: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// When it came into place.
    pub loaded: SystemTime,
    /// Why the last reload was refused, if it was.
    pub problem: Option<String>,
    /// The keys whose values come into effect with an upgrade.
    pub needs_upgrade: Vec<String>,
}

/// Why a new configuration is not put in place.
#[derive(Debug, thiserror::Error)]
pub enum NotReloaded {
    /// There is no file.
    #[error("this configuration comes from no file")]
    NoFile,
    /// It is bad.
    #[error("{0}{note}", note = note(.0))]
    Bad(#[from] Problems),
    /// A file that it names cannot be read.
    #[error("backends[].tls: {0}")]
    Authority(#[from] BadAuthority),
    /// This is a fault of the balancer.
    #[error("it could not be prepared")]
    Fault,
}

/// What somebody may not know who has just changed the environment.
fn note(problems: &Problems) -> &'static str {
    if problems.errors.iter().any(|problem| problem.message.contains("${")) {
        "\nvariables are those of the process's start: a new value needs a restart"
    } else {
        ""
    }
}

/// A configuration that was put in place.
#[derive(Debug)]
pub struct Reloaded {
    /// What there is to tell about it.
    pub told: Arc<Told>,
    /// What is worth a second look in it.
    pub warnings: Vec<Problem>,
}

impl Live {
    /// Puts the first configuration in place; `learned` are deployments that another process found
    /// to exist.
    ///
    /// # Errors
    /// When a file of a backend's TLS cannot be read.
    pub async fn new(
        checked: Checked,
        file: Option<PathBuf>,
        process: Arc<Process>,
    ) -> Result<Self, BadAuthority> {
        let Checked { config, sha256, .. } = checked;
        let (serving, directory) = prepare(&config, &Directory::default(), &process).await?;
        for backend in &serving.gateway.backends {
            if backend.credential.kept().number() == 0 {
                let (name, problem) = (&backend.config.name, backend.credential.kept().problem());
                error!("backend {name} is left out until it has its credential: {problem}");
            }
        }
        let probes = probe::watch(&serving);
        let told =
            Told { version: 1, sha256, loaded: SystemTime::now(), problem: None, needs_upgrade: Vec::new() };
        Ok(Self {
            serving: Arc::new(ArcSwap::new(serving)),
            process,
            file,
            opened: config,
            turn: Mutex::new(Turn { directory, _probes: probes }),
            told: ArcSwap::from_pointee(told),
        })
    }

    /// What there is to tell about the configuration in place.
    pub fn told(&self) -> Arc<Told> {
        self.told.load_full()
    }

    /// The file it comes from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The process that it is of.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Takes over from another process what it found to exist.
    pub fn learn_of(&self, deployments: &[Deployment], now: Instant) {
        let serving = self.serving.load();
        deployments.iter().for_each(|deployment| serving.gateway.learn_of(deployment, now));
    }

    /// Reads the file again and puts it in place. Requests under way end as they began.
    ///
    /// # Errors
    /// [`NotReloaded`]; nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        // One after the other, each with the file as it is then.
        let mut turn = self.turn.lock().await;
        let reloaded = self.replace(&mut turn).await;
        self.process.recorder.metrics().reloaded(reloaded.is_ok());
        match &reloaded {
            Ok(Reloaded { told, warnings }) => {
                warnings.iter().for_each(|warning| warn!("configuration: {warning}"));
                let count = self.serving.load().gateway.backends.len();
                info!("configuration {} is in place: backends: {count}", told.version);
                for key in &told.needs_upgrade {
                    warn!("configuration: {key}: comes into effect with an upgrade (aoai-lb upgrade)");
                }
            }
            Err(problem) => {
                let problem = problem.to_string();
                error!("the configuration stays as it is: {}", problem.replace('\n', "; "));
                self.told.rcu(|told| Told { problem: Some(problem.clone()), ..Told::clone(told) });
            }
        }
        reloaded
    }

    async fn replace(&self, turn: &mut Turn) -> Result<Reloaded, NotReloaded> {
        let file = self.file.clone().ok_or(NotReloaded::NoFile)?;
        let loaded = spawn_blocking(move || config::load(&file, &config::environment)).await;
        let Checked { mut config, sha256, warnings } = loaded.map_err(|_| NotReloaded::Fault)??;
        let needs_upgrade = differences(&self.opened, &config);
        keep_sinks(&self.opened, &mut config);
        let (serving, directory) = prepare(&config, &turn.directory, &self.process).await?;
        let now = Instant::now();
        for deployment in self.serving.load().gateway.learned() {
            serving.gateway.learn_of(&deployment, now);
        }
        self.process.recorder.redact(config.record.map(|record| record.redact).unwrap_or_default());
        *turn = Turn { directory, _probes: probe::watch(&serving) };
        self.serving.store(serving);
        let version = self.told.load().version + 1;
        let told = Told { version, sha256, loaded: SystemTime::now(), problem: None, needs_upgrade };
        let told = Arc::new(told);
        self.told.store(Arc::clone(&told));
        Ok(Reloaded { told, warnings })
    }
}

/// A configuration ready to serve, with names looked up and secrets fetched as far as that goes
/// quickly.
///
/// # Errors
/// When a file of a backend's TLS cannot be read.
pub async fn prepare(
    config: &Config,
    before: &Directory,
    process: &Arc<Process>,
) -> Result<(Arc<Serving>, Directory), BadAuthority> {
    let resolver: Arc<dyn Resolve> = Arc::new(System);
    let directory = before.followed_by(config);
    directory.watch(&resolver);
    let peers = Peers::new(config, directory.by_backend())?;
    let gateway = Gateway::new(config, Arc::clone(process), Instant::now());
    let token = config.admin.as_ref().and_then(|admin| admin.token.as_ref());
    let admin_token = token.map(|token| process.keyring.secret(token, &config.key_vault));
    tokio::join!(directory.settle(FIRST_LOOK_UP), process.keyring.settle(FIRST_SECRETS));
    let serving =
        Serving { gateway: Arc::new(gateway), peers, listeners: config.listeners.clone(), admin_token };
    Ok((Arc::new(serving), directory))
}

/// Whether records are kept, and where, is as it was at the start.
fn keep_sinks(opened: &Config, config: &mut Config) {
    config.record = match (&opened.record, config.record.take()) {
        (Some(opened), Some(record)) => Some(config::Record {
            jsonl: opened.jsonl.clone(),
            log_analytics: opened.log_analytics.clone(),
            spool: opened.spool.clone(),
            ..record
        }),
        (opened, _) => opened.clone(),
    };
}

/// What was opened at the start and would be another thing by this file: its keys.
fn differences(opened: &Config, file: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut note = |is_other: bool, key: String| keys.extend(is_other.then_some(key));
    for (n, listener) in file.listeners.iter().enumerate() {
        match opened.listeners.iter().find(|open| open.address == listener.address) {
            Some(open) => {
                note(open.tls != listener.tls, format!("listeners[{n}].tls"));
                note(open.http2 != listener.http2, format!("listeners[{n}].http2"));
            }
            None => note(true, format!("listeners[{n}].address")),
        }
    }
    for open in &opened.listeners {
        let is_gone = file.listeners.iter().all(|listener| listener.address != open.address);
        note(is_gone, format!("listeners ({} is gone)", open.address));
    }
    let admin =
        |config: &Config| config.admin.as_ref().map(|admin| (admin.address.clone(), admin.tls.clone()));
    note(admin(opened) != admin(file), "admin".to_owned());
    let (a, b) = (&opened.server, &file.server);
    for (is_other, key) in [
        (a.threads != b.threads, "threads"),
        (a.grace_period != b.grace_period, "grace_period"),
        (a.drain_delay != b.drain_delay, "drain_delay"),
        (a.tcp_keepalive != b.tcp_keepalive, "tcp_keepalive"),
        (a.upgrade_socket != b.upgrade_socket, "upgrade_socket"),
    ] {
        note(is_other, format!("server.{key}"));
    }
    match (&opened.record, &file.record) {
        (Some(a), Some(b)) => {
            note(a.jsonl != b.jsonl, "record.jsonl".to_owned());
            note(a.log_analytics != b.log_analytics, "record.log_analytics".to_owned());
            note(a.spool != b.spool, "record.spool".to_owned());
        }
        (a, b) => note(a.is_some() != b.is_some(), "record".to_owned()),
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Config {
        let text = format!(
            "backends: [ {{ name: a, endpoint: 'http://127.0.0.1:1', credential: {{ api_key: k }} }} ]\n\
             clients: open\n{yaml}"
        );
        config::parse(&text, Path::new("/"), &|_| None).unwrap().config
    }

    #[test]
    fn what_needs_an_upgrade_is_named() {
        let opened = config(
            "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:81' } ]\n\
             admin: { address: '127.0.0.1:9' }\nrecord: { jsonl: { path: tmp/x } }",
        );
        let table: [(&str, &[&str]); 3] = [
            (
                "listeners: [ { address: '127.0.0.1:81', trusted_proxies: [10.0.0.1], connections_per_client: 1 },\
                 { address: '127.0.0.1:80' } ]\nadmin: { address: '127.0.0.1:9', token: new }\n\
                 record: { jsonl: { path: tmp/x }, content: none, redact: [a] }\nbalance: round_robin",
                &[],
            ),
            (
                "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:82' } ]\n\
                 record: { jsonl: { path: tmp/x, keep: 3 } }\nserver: { threads: 7, drain_delay: 1s }",
                &[
                    "listeners[1].address",
                    "listeners (127.0.0.1:81 is gone)",
                    "admin",
                    "server.threads",
                    "server.drain_delay",
                    "record.jsonl",
                ],
            ),
            (
                "listeners: [ { address: '127.0.0.1:80' }, { address: '127.0.0.1:81' } ]\n\
                 admin: { address: '127.0.0.1:9' }\nserver: { upgrade_socket: /x/y }",
                &["server.upgrade_socket", "record"],
            ),
        ];
        for (yaml, expected) in table {
            let mut file = config(yaml);
            let threads = if yaml.contains("threads") { 7 } else { opened.server.threads };
            file.server.threads = threads;
            assert_eq!(differences(&opened, &file), expected, "{yaml}");
            keep_sinks(&opened, &mut file);
            let sinks = |config: &Config| config.record.as_ref().map(|record| record.jsonl.clone());
            assert_eq!(sinks(&file), sinks(&opened));
        }
    }
}
