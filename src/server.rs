//! The composition root: listeners, Pingora's services, background tasks, shutdown.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use pingora::apps::HttpServerOptions;
use pingora::listeners::TcpSocketOptions;
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Admin;
use crate::config::{self, AdminAddress, Config, ListenerTls};
use crate::credentials::Keyring;
use crate::gateway::{Gateway, Process};
use crate::proxy::dns::{Directory, Resolve, System};
use crate::proxy::door::{BadDoor, Door};
use crate::proxy::guard::{Guard, IDLE, STOPPING};
use crate::proxy::peer::{BadAuthority, Peers, keepalive};
use crate::proxy::probe;
use crate::proxy::{Balancer, Serving};
use crate::record::{RecordError, Recorder};

/// How long the start waits for names to resolve; a backend whose name has not is left out
/// until it has.
const FIRST_LOOK_UP: Duration = Duration::from_secs(3);
/// How long the start waits for tokens and secrets; a backend whose has not come is left out until
/// it has.
const FIRST_SECRETS: Duration = Duration::from_secs(5);
/// How often a stopping process looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

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
    /// The background runtime cannot be started.
    #[error("cannot start the background runtime: {0}")]
    Runtime(io::Error),
}

/// Serves until a signal ends it.
///
/// # Errors
/// [`StartError`] when it cannot begin.
pub fn run(config: &Config, background: &Runtime) -> Result<(), StartError> {
    let started = Instant::now();
    probe_addresses(config)?;
    let keyring = Keyring::new(background.handle());
    let recorder = Recorder::open(config, &keyring, background.handle())?;
    let process = Arc::new(Process::new(started, recorder, keyring));
    let directory = Directory::new(config);
    let resolver: Arc<dyn Resolve> = Arc::new(System);
    let gateway = Arc::new(Gateway::new(config, Arc::clone(&process), started));
    background.block_on(async {
        directory.watch(&resolver);
        tokio::join!(directory.settle(FIRST_LOOK_UP), process.keyring.settle(FIRST_SECRETS));
    });
    for backend in gateway.backends.iter().filter(|backend| backend.credential.kept().number() == 0) {
        let (name, problem) = (&backend.config.name, backend.credential.kept().problem());
        error!("backend {name} is left out until it has its credential: {problem}");
    }
    let serving = Arc::new(ArcSwap::from_pointee(Serving {
        gateway,
        peers: Peers::new(config, directory.by_backend())?,
    }));
    background.block_on(async { probe::watch(&serving) });
    background.spawn(rotate_on_hangup(Arc::clone(&process)));
    let mut server = Server::new_with_opt_and_conf(None, engine(config));
    server.bootstrap();
    let mut options = HttpServerOptions::default();
    // CONNECT is refused by our own rules, with a body and a record.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(IDLE);
    let mut proxy = http_proxy(&server.configuration, Balancer::new(Arc::clone(&serving)));
    proxy.server_options = Some(options);
    let proxy = Arc::new(proxy);
    for (n, listener) in config.listeners.iter().enumerate() {
        let guard = Guard::new(Arc::clone(&proxy), Arc::new(listener.clone()), Arc::clone(&serving));
        let mut service = Service::new(format!("listener {}", listener.address), guard);
        let (address, options) = (listener.address.to_string(), socket(config, listener.address));
        match &listener.tls {
            Some(tls) => {
                let bad = |problem| StartError::Certificate { key: format!("listeners[{n}]"), problem };
                let door = Door::of_listener(listener, tls).map_err(bad)?;
                background.block_on(async { door.watch() });
                service.add_tls_with_settings(&address, Some(options), door.settings().map_err(bad)?);
            }
            None => service.add_tcp_with_settings(&address, options),
        }
        server.add_service(service);
    }
    if let Some(admin) = &config.admin {
        let secure = |tls: &ListenerTls| {
            let door = Door::of_admin(tls)?;
            background.block_on(async { door.watch() });
            door.settings()
        };
        let bad = |problem| StartError::Certificate { key: "admin".to_owned(), problem };
        let tls = admin.tls.as_ref().map(secure).transpose().map_err(bad)?;
        let token = admin.token.as_ref().map(|token| process.keyring.secret(token, &config.key_vault));
        add_admin(&mut server, admin, tls, Admin::new(Arc::clone(&serving), admin, token, started));
    }
    let addresses: Vec<String> =
        config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    info!("serving {} backends on {}", config.backends.len(), addresses.join(", "));
    let watch = Signals { process: Arc::clone(&process), drain_delay: config.server.drain_delay };
    server.run(RunArgs { shutdown_signal: Box::new(watch) });
    finish(&process);
    Ok(())
}

/// SIGHUP begins a new file of records, so that what rotates files by name gets along.
async fn rotate_on_hangup(process: Arc<Process>) {
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => {
            while hangup.recv().await.is_some() {
                info!("SIGHUP: a new file of records begins");
                process.recorder.rotate();
            }
        }
        Err(problem) => warn!("SIGHUP is not listened to: {problem}"),
    }
}

/// Pingora's own configuration.
fn engine(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.server.threads,
        grace_period_seconds: Some(config.server.grace_period.as_millis().div_ceil(1000) as u64),
        graceful_shutdown_timeout_seconds: Some(1),
        // Enough for every client of a busy balancer to find a connection again.
        upstream_keepalive_pool_size: 1024,
        // The engine counts attempts; how many there are is decided in routing.
        max_retries: 1000,
        ..ServerConf::default()
    }
}

fn socket(config: &Config, address: SocketAddr) -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(keepalive(&config.server));
    options.ipv6_only = address.is_ipv6().then_some(false);
    options
}

fn add_admin(server: &mut Server, config: &config::Admin, tls: Option<TlsSettings>, admin: Admin) {
    let app = pingora::apps::http_app::HttpServer::new_app(admin);
    let mut service = Service::new("admin".to_owned(), app);
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
}

/// Whether every address can be listened on. The engine panics where it cannot; an operator
/// is told what is wrong instead.
///
/// # Errors
/// [`StartError::Listen`] for the first that cannot.
pub fn probe_addresses(config: &Config) -> Result<(), StartError> {
    let listeners = config.listeners.iter().enumerate();
    let listeners = listeners.map(|(n, listener)| (format!("listeners[{n}].address"), listener.address));
    let admin = match config.admin.as_ref().map(|admin| &admin.address) {
        Some(AdminAddress::Tcp(address)) => Some(("admin.address".to_owned(), *address)),
        _ => None,
    };
    for (key, address) in listeners.chain(admin) {
        try_address(address).map_err(|problem| StartError::Listen {
            key,
            address: address.to_string(),
            problem,
        })?;
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

/// What a signal means. SIGTERM: readiness fails, listeners stay for a while, what is in
/// flight is finished. SIGINT: now.
struct Signals {
    process: Arc<Process>,
    drain_delay: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            warn!("signals cannot be watched");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
        }
        self.process.stopping.store(true, Ordering::Release);
        info!("stopping: not ready any more, listening for another {:?}", self.drain_delay);
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => {}
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
        }
        let process = Arc::clone(&self.process);
        std::thread::spawn({
            let process = Arc::clone(&process);
            move || exit_when_interrupted(&process)
        });
        // A thread of its own: the engine sleeps through the whole grace period.
        std::thread::spawn(move || exit_when_idle(&process));
        ShutdownSignal::GracefulTerminate
    }
}

/// Ends the process as soon as nothing is in flight.
fn exit_when_idle(process: &Process) {
    // The listeners close now; connections linger for a moment.
    std::thread::sleep(STOPPING);
    let mut quiet = 0;
    // Two looks in a row: a request whose head was just read may not be counted yet.
    while quiet < 2 {
        std::thread::sleep(DRAIN_LOOK);
        quiet = if process.in_flight.load(Ordering::Acquire) == 0 { quiet + 1 } else { 0 };
    }
    finish(process);
    std::process::exit(0);
}

/// Ends the process at once when it is asked to, although something is in flight.
fn exit_when_interrupted(process: &Process) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        match signal(SignalKind::interrupt()) {
            Ok(mut interrupt) => interrupt.recv().await,
            Err(_) => std::future::pending().await,
        }
    });
    finish(process);
    std::process::exit(0);
}

fn finish(process: &Process) {
    process.recorder.close();
    info!("stopped with {} requests in flight", process.in_flight.load(Ordering::Acquire));
}
