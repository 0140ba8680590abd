//! The composition root: listeners, Pingora's services, background tasks, start, and end.

mod notify;
pub mod reload;
mod signals;
pub mod upgrade;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use log::{error, info, warn};
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{ExecutionPhase, RunArgs, Server};
use pingora::services::listening::Service;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio::time::sleep;

use self::notify::Served;
use self::reload::Live;
use self::signals::{Company, Signals};
use self::upgrade::{Control, Heir, NoPredecessor, Program, Running, Wish};
use crate::admin::Admin;
use crate::admin::feed::Feed;
use crate::config::{self, AdminAddress, Checked, Config, ListenerTls};
use crate::credentials::Keyring;
use crate::gateway::Process;
use crate::proxy::Balancer;
use crate::proxy::client::connection::ConnectionHandler;
use crate::proxy::client::tls::{BadDoor, Door};
use crate::proxy::runner::Runner;
use crate::proxy::upstream::peer::{BadAuthority, keepalive};
use crate::record::{RecordError, Recorder};

/// The most that the listeners may take to listen.
const LISTENING: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{key}: cannot listen on {address}: {problem}")]
    Listen {
        /// The configuration's key.
        key: String,
        /// The address.
        address: String,
        /// The system's reason.
        problem: io::Error,
    },
    /// Records cannot be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A listener's TLS cannot be set up.
    #[error("{key}.tls.{problem}")]
    Certificate {
        /// The configuration's key of the listener.
        key: String,
        /// What is wrong.
        problem: BadDoor,
    },
    /// A file of a backend's TLS cannot be read.
    #[error("backends[].tls: {0}")]
    Authority(#[from] BadAuthority),
    /// Nobody is there whose sockets could be taken over.
    #[error(transparent)]
    Predecessor(#[from] NoPredecessor),
    /// The background runtime cannot be started.
    #[error("cannot start the background runtime: {0}")]
    Runtime(io::Error),
}

/// Serves until a signal ends it, or another process takes over. `program` is what that would be;
/// with `takes_over` this process takes over from the one that is running.
///
/// # Errors
/// [`StartError`] when it cannot begin.
pub fn run(
    checked: Checked,
    program: Option<Program>,
    takes_over: bool,
    background: &Runtime,
) -> Result<(), StartError> {
    raise_descriptors();
    let upgrade_socket = checked.config.server.upgrade_socket.clone();
    let heir = takes_over.then(|| background.block_on(Heir::introduce(&upgrade_socket))).transpose()?;
    let prepared = Prepared::new(checked, heir.as_ref(), program.as_ref(), background);
    match (prepared, heir) {
        (Ok(prepared), Some(mut heir)) => {
            background.block_on(heir.inherit(&prepared.live))?;
            prepared.run(program, Some(heir), background);
            Ok(())
        }
        (Ok(prepared), None) => {
            prepared.run(program, None, background);
            Ok(())
        }
        (Err(problem), Some(heir)) => {
            background.block_on(heir.decline(problem.to_string()));
            Err(problem)
        }
        (Err(problem), None) => Err(problem),
    }
}

/// Everything that can fail has been done.
struct Prepared {
    config: Config,
    live: Arc<Live>,
    server: Server,
    /// Says for each listener what serves it.
    served: Vec<Served>,
}

impl Prepared {
    fn new(
        checked: Checked,
        heir: Option<&Heir>,
        program: Option<&Program>,
        background: &Runtime,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let config = checked.config.clone();
        probe_addresses(&config, heir.map(|heir| heir.addresses.as_slice()).unwrap_or_default())?;
        let keyring = Keyring::new(background.handle());
        let recorder = Recorder::open(&config, &keyring, background.handle())?;
        let process = Arc::new(Process::new(started, recorder, keyring));
        let file = program.map(|program| program.file.clone());
        let live = Arc::new(background.block_on(Live::new(checked, file, Arc::clone(&process)))?);
        let options = Opt { upgrade: heir.is_some(), ..Opt::default() };
        let mut server = Server::new_with_opt_and_conf(options, engine(&config));
        let mut served = Vec::new();
        for service in listeners(&config, &live, &server, &mut served, background)? {
            server.add_service(service);
        }
        if let Some(admin) = &config.admin {
            let feed = Feed::new();
            background.spawn(Arc::clone(&feed).run(Arc::clone(&live), started));
            let api = Admin::new(Arc::clone(&live), admin, feed, started, background.handle().clone());
            add_admin(&mut server, admin, api, background)?;
        }
        Ok(Self { config, live, server, served })
    }

    /// Serves.
    fn run(self, program: Option<Program>, heir: Option<Heir>, background: &Runtime) {
        let Self { config, live, mut server, served } = self;
        let process = Arc::clone(live.process());
        server.bootstrap();
        let (wishes, wished) = Control::wishes();
        let predecessors = Arc::new(heir.as_ref().map(Heir::predecessors).unwrap_or_default());
        let running = program.map(|program| Running {
            program,
            live: Arc::clone(&live),
            addresses: addresses(&config),
            predecessors: Arc::clone(&predecessors),
            upgrade_socket: config.server.upgrade_socket.clone(),
        });
        let wishes = running.is_some().then_some(wishes);
        let up = Up { config: config.clone(), live: Arc::clone(&live), heir, wishes, served };
        background.spawn(up.begin(server.watch_execution_phase()));
        background.spawn(signals::reload_on_hangup(Arc::clone(&live)));
        let (phases, ending) = (server.watch_execution_phase(), Arc::clone(&process));
        let company = Arc::new(Company::new(predecessors));
        let all = Arc::clone(&company);
        std::thread::spawn(move || signals::end_when_done(phases, &ending, &all));
        let watch = Signals {
            process: Arc::clone(&process),
            drain_delay: config.server.drain_delay,
            running,
            wishes: Mutex::new(wished),
            background: background.handle().clone(),
            company,
        };
        server.run(RunArgs { shutdown_signal: Box::new(watch) });
        signals::finish(&process);
    }
}

/// What is done once the process serves.
struct Up {
    config: Config,
    live: Arc<Live>,
    heir: Option<Heir>,
    /// Where wishes for an upgrade go, if there can be one.
    wishes: Option<mpsc::Sender<Wish>>,
    served: Vec<Served>,
}

impl Up {
    async fn begin(self, mut phases: broadcast::Receiver<ExecutionPhase>) {
        while !matches!(phases.recv().await, Ok(ExecutionPhase::Running) | Err(_)) {}
        if let Err(problem) = self.until_listening().await {
            error!("{problem}");
            signals::end(self.live.process(), 1);
        }
        let Self { config, live, heir, wishes, served } = self;
        if let Some(wishes) = wishes {
            let opened = Control::open(&config.server.upgrade_socket, heir.is_some()).await;
            match opened {
                Ok(control) => drop(tokio::spawn(control.run(wishes))),
                Err(problem) => warn!("an upgrade would need a restart: server.upgrade_socket: {problem}"),
            }
        }
        notify::ready(&live);
        info!(
            "process {} serves on {}; backends: {}",
            std::process::id(),
            addresses(&config).join(", "),
            config.backends.len()
        );
        if let Some(heir) = heir {
            heir.serves().await;
        }
        tokio::spawn(notify::keep_watchdog(Arc::clone(live.process()), served));
        notify::keep_status(live).await;
    }

    /// Waits until every listener listens.
    async fn until_listening(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + LISTENING;
        for (key, address) in tcp_addresses(&self.config) {
            // What is listened on cannot be bound once more.
            while address.port() != 0 && try_address(address).is_ok() {
                if Instant::now() >= deadline {
                    let problem = io::Error::from(io::ErrorKind::TimedOut);
                    return Err(StartError::Listen { key, address: address.to_string(), problem });
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }
}

/// A service for each listener, in front of the balancer that all share.
fn listeners(
    config: &Config,
    live: &Arc<Live>,
    server: &Server,
    served: &mut Vec<Served>,
    background: &Runtime,
) -> Result<Vec<Service<ConnectionHandler>>, StartError> {
    let balancer = Balancer::new(Arc::clone(&live.serving));
    let drive = Arc::new(Runner::new(balancer, &server.configuration));
    let mut services = Vec::new();
    for (n, listener) in config.listeners.iter().enumerate() {
        let runtime = Arc::new(OnceLock::new());
        served.push(Arc::clone(&runtime));
        let guard = ConnectionHandler::new(
            Arc::clone(&drive),
            Arc::new(listener.clone()),
            Arc::clone(&live.serving),
            runtime,
        );
        let mut service = Service::new(format!("listener {}", listener.address), guard);
        let mut endpoint = ListenerConfig::tcp(listener.address.to_string())
            .tcp_socket_options(socket(config, listener.address))
            .l4_buffer(buffers(listener.tls.is_some()));
        if let Some(tls) = &listener.tls {
            let bad = |problem| StartError::Certificate { key: format!("listeners[{n}]"), problem };
            let door = Door::of_listener(listener, tls).map_err(bad)?;
            background.block_on(async { door.watch() });
            endpoint = endpoint.tls(door.settings().map_err(bad)?);
        }
        service.add_listener(endpoint);
        services.push(service);
    }
    Ok(services)
}

/// As many descriptors as the system lets this process have: each connection is one.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(problem) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!("the limit of open files cannot be raised: {problem}");
    }
}

/// Pingora's own configuration.
fn engine(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.server.threads,
        grace_period_seconds: Some(config.server.grace_period.as_millis().div_ceil(1000) as u64),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: config.server.upgrade_socket.to_string_lossy().into_owned(),
        // Enough for every client of a busy balancer to find a connection again.
        upstream_keepalive_pool_size: 1024,
        // The engine counts attempts; how many there are is decided in routing.
        max_retries: 1000,
        ..ServerConf::default()
    }
}

/// What of a connection's bytes is gathered, in bytes: an answer's head and a short body leave as
/// one. Heads and bodies are read into memory of their own, but TLS reads the five bytes before
/// each record by themselves.
fn buffers(tls: bool) -> L4BufferSettings {
    L4BufferSettings::new(if tls { 16 * 1024 + 512 } else { 0 }, 4 * 1024)
}

fn socket(config: &Config, address: SocketAddr) -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(keepalive(&config.server));
    options.ipv6_only = address.is_ipv6().then_some(false);
    options
}

/// Adds the service of the admin API.
fn add_admin(
    server: &mut Server,
    config: &config::Admin,
    api: Admin,
    background: &Runtime,
) -> Result<(), StartError> {
    let secure = |tls: &ListenerTls| -> Result<TlsSettings, BadDoor> {
        let door = Door::of_admin(tls)?;
        background.block_on(async { door.watch() });
        door.settings()
    };
    let bad = |problem| StartError::Certificate { key: "admin".to_owned(), problem };
    let tls = config.tls.as_ref().map(secure).transpose().map_err(bad)?;
    let mut service = Service::new("admin".to_owned(), api);
    // It has little to do and is to get its turn all the same.
    service.threads = Some(1);
    match (&config.address, tls) {
        (AdminAddress::Tcp(address), Some(tls)) => {
            service.add_tls_with_settings(&address.to_string(), None, tls);
        }
        (AdminAddress::Tcp(address), None) => service.add_tcp(&address.to_string()),
        (AdminAddress::Unix(path), _) => {
            let owner_only = std::fs::Permissions::from_mode(0o600);
            service.add_uds(&path.to_string_lossy(), Some(owner_only));
        }
    }
    server.add_service(service);
    Ok(())
}

/// All addresses as the engine spells them.
fn addresses(config: &Config) -> Vec<String> {
    let admin = config.admin.as_ref().map(|admin| match &admin.address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    });
    config.listeners.iter().map(|listener| listener.address.to_string()).chain(admin).collect()
}

/// All TCP addresses and their keys.
fn tcp_addresses(config: &Config) -> impl Iterator<Item = (String, SocketAddr)> {
    let listeners = config.listeners.iter().enumerate();
    let listeners = listeners.map(|(n, listener)| (format!("listeners[{n}].address"), listener.address));
    let admin = match config.admin.as_ref().map(|admin| &admin.address) {
        Some(AdminAddress::Tcp(address)) => Some(("admin.address".to_owned(), *address)),
        _ => None,
    };
    listeners.chain(admin)
}

/// Whether every address can be listened on that is not `inherited`. The engine panics where it
/// cannot; an operator is told what is wrong instead.
///
/// # Errors
/// [`StartError::Listen`] for the first that cannot.
pub fn probe_addresses(config: &Config, inherited: &[String]) -> Result<(), StartError> {
    for (key, address) in tcp_addresses(config) {
        if inherited.contains(&address.to_string()) {
            continue;
        }
        let bad = |problem| StartError::Listen { key, address: address.to_string(), problem };
        try_address(address).map_err(bad)?;
    }
    Ok(())
}

/// Takes the address as the engine will, without listening: nobody is to be accepted and then
/// dropped.
fn try_address(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}
