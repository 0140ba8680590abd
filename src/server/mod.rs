//! The composition root: builds the listeners, Pingora's services and the background tasks, and runs
//! them until the process ends.

pub mod build_config;
mod clock_origin;
mod config_manager;
mod drained_backends;
mod listen_addresses;
mod listeners;
mod notify;
mod open_files;
mod port_holder;
mod shutdown;
mod signals;
mod start_error;
mod startup;
mod startup_settings;
mod startup_summary;
pub mod upgrade;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use log::warn;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use self::clock_origin::clock_origin;
use self::config_manager::{ConfigManager, ConfigSource, ReloadError};
use self::listen_addresses::listen_addresses;
use self::listeners::{ListenerRuntimeHandle, admin_service, listener_services};
use self::open_files::raise_open_file_limit;
use self::shutdown::{RelatedProcesses, close_recorder, exit_when_drained};
use self::signals::{SignalHandler, reload_on_sighup, reopen_record_file_on_sigusr1};
use self::startup::StartupTask;
use self::upgrade::{ControlSocket, PredecessorRole, Program, SuccessorRole};
use crate::admin::AdminApi;
use crate::admin::monitor::ServiceMonitor;
use crate::admin::reload::ReloadFunction;
use crate::admin::snapshot::StatusSource;
use crate::admin::status_feed::StatusFeed;
use crate::config::{CheckedConfig, Config};
use crate::credentials::Keyring;
use crate::gateway::ProcessState;
use crate::gateway::homes_keeper::read_hash_key;
use crate::gateway::shared_fairness::FairnessExchange;
use crate::gateway::shared_limits::LimitReporter;
use crate::record::Recorder;
use crate::routing::homes::{HashKey, Homes};
use crate::shared::{InstanceRegistry, Shared, SharedLink, find_secret};

pub use self::listen_addresses::{check_addresses, check_addresses_are_free};
pub use self::start_error::StartError;

/// Serves until a signal stops the process or a successor takes over. `program` is what an upgrade
/// starts; without it there are no upgrades. With `takes_over`, this process takes the listening
/// sockets over from the running one.
///
/// # Errors
/// [`StartError`] if it cannot start.
pub fn run(
    checked: CheckedConfig,
    program: Option<Program>,
    takes_over: bool,
    background: &Runtime,
) -> Result<(), StartError> {
    raise_open_file_limit();
    let upgrade_socket_path = checked.config.server.upgrade_socket_path.clone();
    let mut successor = takes_over
        .then(|| background.block_on(SuccessorRole::introduce(&upgrade_socket_path)))
        .transpose()?;
    let prepared = PreparedServer::new(checked, successor.as_mut(), program.as_ref(), background);
    match (prepared, successor) {
        (Ok(prepared), Some(mut successor)) => {
            // From here on the predecessor may hand over its sockets, which cannot be undone.
            background.block_on(successor.adopt_state_and_report_ready(&prepared.config_manager))?;
            prepared.run(program, Some(successor), background);
            Ok(())
        }
        (Ok(prepared), None) => {
            prepared.run(program, None, background);
            Ok(())
        }
        (Err(error), Some(successor)) => {
            background.block_on(successor.report_failure(error.to_string()));
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}

/// A server for which every step that can fail has been done.
struct PreparedServer {
    config: Config,
    config_manager: Arc<ConfigManager>,
    server: Server,
    watched_runtime_handles: Vec<ListenerRuntimeHandle>,
}

impl PreparedServer {
    fn new(
        checked: CheckedConfig,
        successor: Option<&mut SuccessorRole>,
        program: Option<&Program>,
        background: &Runtime,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let config = checked.config.clone();
        // Pingora panics if it cannot bind; this check reports the key of the file instead.
        let inherited =
            successor.as_ref().map(|successor| successor.inherited_addresses.as_slice()).unwrap_or_default();
        check_addresses_are_free(&config, inherited)?;
        let keyring = Keyring::new(background.handle());
        let recorder = Recorder::start(&config, &keyring, background.handle())?;
        let is_successor = successor.is_some();
        let homes = empty_homes(&config, successor.as_deref());
        if let Some(successor) = successor {
            successor.copy_homes_into(&homes);
        }
        let process = Arc::new(ProcessState::with_homes(started, clock_origin(), recorder, keyring, homes));
        start_shared(&config, &process, background.handle());
        {
            // Before the steps that take long: until it is handled, this signal would end the process.
            let _context = background.enter();
            match signal(SignalKind::user_defined1()) {
                Ok(reopen) => {
                    drop(background.spawn(reopen_record_file_on_sigusr1(reopen, Arc::clone(&process))));
                }
                Err(error) => warn!("cannot handle SIGUSR1: {error}"),
            }
        }
        match (is_successor, &config.server.state_directory) {
            (false, Some(directory)) => process.restore_state(directory, started),
            (false, None) => process.join_instances(None),
            (true, _) => {}
        }
        let source = program.map(|program| ConfigSource {
            file: program.config_file.clone(),
            environment: program.environment.clone(),
        });
        let config_manager = Arc::new(background.block_on(ConfigManager::new(checked, source, process))?);
        let options = Opt { upgrade: is_successor, ..Opt::default() };
        let mut server = Server::new_with_opt_and_conf(options, pingora_config(&config));
        let mut watched_runtime_handles = Vec::new();
        let active_config = config_manager.active_config();
        for listener in listener_services(&config, active_config, &server.configuration, background)? {
            server.add_service(listener.service);
            watched_runtime_handles.push(listener.runtime_handle);
        }
        let monitor = ServiceMonitor::new(
            Arc::clone(active_config),
            Arc::clone(config_manager.config_status()),
            started,
        );
        background.spawn(monitor.run());
        let queue = Arc::clone(&config_manager.process_state().queue);
        background.spawn(async move { queue.run_clock().await });
        if let Some(admin) = &config.admin {
            let (active_config, status) =
                (Arc::clone(active_config), Arc::clone(config_manager.config_status()));
            let status_source = StatusSource::new(active_config, status, started);
            let status_feed = StatusFeed::new();
            background.spawn(Arc::clone(&status_feed).publish_and_sample_in_flight(status_source.clone()));
            let reload = reload_function(Arc::clone(&config_manager), background.handle().clone());
            let api = AdminApi::new(admin, status_source, status_feed, reload);
            let certificate_expiries = &config_manager.process_state().certificate_expiries;
            server.add_service(admin_service(admin, api, certificate_expiries, background)?);
        }
        Ok(Self { config, config_manager, server, watched_runtime_handles })
    }

    /// Runs the server until the process ends.
    fn run(self, program: Option<Program>, successor: Option<SuccessorRole>, background: &Runtime) {
        let Self { config, config_manager, mut server, watched_runtime_handles } = self;
        let process = Arc::clone(config_manager.process_state());
        // With `Opt::upgrade` this blocks until the predecessor has sent its sockets, and exits the
        // process if they do not come: everything that can fail has to be done before.
        server.bootstrap();
        // Given up by the predecessor before it sent its sockets.
        match (&successor, &config.server.state_directory) {
            (Some(successor), Some(directory)) => {
                process.take_over_state(directory, successor.are_homes_complete(), Instant::now());
            }
            (Some(_), None) => process.join_instances(None),
            (None, _) => {}
        }
        let (command_sender, command_receiver) = ControlSocket::command_queue();
        let earlier_processes =
            Arc::new(successor.as_ref().map(SuccessorRole::earlier_processes).unwrap_or_default());
        let predecessor_role = program.map(|program| PredecessorRole {
            program,
            config_manager: Arc::clone(&config_manager),
            listen_addresses: listen_addresses(&config),
            earlier_processes: Arc::clone(&earlier_processes),
            upgrade_socket_path: config.server.upgrade_socket_path.clone(),
            started_pid: AtomicU32::new(0),
        });
        let startup = StartupTask {
            config: config.clone(),
            config_manager: Arc::clone(&config_manager),
            successor_role: successor,
            command_sender: predecessor_role.is_some().then_some(command_sender),
            watched_runtime_handles,
        };
        background.spawn(startup.run(server.watch_execution_phase()));
        background.spawn(reload_on_sighup(Arc::clone(&config_manager)));
        let related_processes = Arc::new(RelatedProcesses::new(earlier_processes));
        let (phases, draining_process, related) =
            (server.watch_execution_phase(), Arc::clone(&process), Arc::clone(&related_processes));
        let grace_period = config.server.grace_period;
        std::thread::spawn(move || exit_when_drained(phases, &draining_process, &related, grace_period));
        let signal_handler = SignalHandler {
            process_state: Arc::clone(&process),
            drain_delay: config.server.drain_delay,
            predecessor_role,
            command_receiver: Mutex::new(command_receiver),
            background_runtime: background.handle().clone(),
            related_processes,
        };
        server.run(RunArgs { shutdown_signal: Box::new(signal_handler) });
        close_recorder(&process);
    }
}

/// Begins to connect to the server of `shared`. This process is no instance yet.
fn start_shared(config: &Config, process: &Arc<ProcessState>, background: &Handle) {
    let Some(redis) = &config.shared else { return };
    let password = find_secret(redis, &config.key_vault, &process.keyring);
    let link = SharedLink::start(redis, password, background);
    let measured = Arc::downgrade(process);
    let measure_load = move || measured.upgrade().map(|process| process.load());
    let instances = InstanceRegistry::new(&link, measure_load, background);
    let reporter = LimitReporter::new(&link, &instances, &process.client_accounts, background);
    let exchange = FairnessExchange::new(&link, &instances, &process.queue, background);
    // Set only here.
    let _ = process.fairness_exchange.set(exchange);
    let _ = process.limit_reporter.set(reporter);
    process.start_sharing(Shared { link, instances }, background);
}

/// A memory of homes for the ids as the predecessor or an earlier process has hashed them.
fn empty_homes(config: &Config, successor: Option<&SuccessorRole>) -> Arc<Homes> {
    let from_predecessor = successor.and_then(SuccessorRole::homes_hash_key);
    let from_log = || config.server.state_directory.as_deref().and_then(read_hash_key);
    let hash_key = from_predecessor.or_else(from_log).unwrap_or_else(HashKey::random);
    Arc::new(Homes::with_hash_key(config.affinity.memory_bytes, hash_key))
}

/// The function with which the admin API reloads the configuration.
fn reload_function(config_manager: Arc<ConfigManager>, background: Handle) -> ReloadFunction {
    Box::new(move || {
        let config_manager = Arc::clone(&config_manager);
        // A task of its own, so that the reload completes even if the client disconnects.
        let reload = background.spawn(async move { config_manager.reload().await });
        Box::pin(async move {
            let result = reload.await.unwrap_or(Err(ReloadError::Internal));
            result.map_err(|error| error.to_string())
        })
    })
}

/// The configuration of Pingora.
fn pingora_config(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.server.worker_threads,
        grace_period_seconds: Some(config.server.grace_period.as_millis().div_ceil(1000) as u64),
        // Dropping a runtime cancels its tasks, so this timeout does not drain: `grace_period` and
        // `exit_when_drained` do.
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: config.server.upgrade_socket_path.to_string_lossy().into_owned(),
        // Enough that every client of a busy balancer finds an idle connection.
        upstream_keepalive_pool_size: 1024,
        // Pingora has a limit of its own; `routing` decides how many attempts there are.
        max_retries: 1000,
        ..ServerConf::default()
    }
}
