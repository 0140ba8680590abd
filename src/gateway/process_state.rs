//! What outlives a configuration.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use super::backend_question::QuestionQueue;
use super::backend_queue::BackendQueue;
use super::budget_books::{BudgetBooks, BudgetReport};
use super::certificate_expiries::CertificateExpiries;
use super::drains::Drains;
use super::homes_keeper::{HomesKeeper, ReportFunction};
use super::open_sockets::OpenSockets;
use super::rates_keeper::RatesKeeper;
use super::shared_fairness::FairnessExchange;
use super::shared_homes::SharedHomes;
use super::shared_limits::LimitReporter;
use super::shared_rests::SharedRests;
use super::shared_sends::SharedSends;
use super::unfinished_objects::{ReportObjects, UnfinishedObjects};
use crate::admission::limits::ClientAccounts;
use crate::config::RequestClass;
use crate::credentials::Keyring;
use crate::record::Recorder;
use crate::routing::asking::Asking;
use crate::routing::health::backend_health::HealthRegistry;
use crate::routing::homes::{DEFAULT_MEMORY_BYTES, Homes};
use crate::routing::prompt_cache::HotKeys;
use crate::routing::service_state::ServiceReport;
use crate::shared::{InstanceLoad, Shared};
use crate::state::StateDirectory;

/// What a process keeps when it loads another configuration.
#[derive(Debug)]
pub struct ProcessState {
    /// What is known of each backend.
    pub health_registry: HealthRegistry,
    /// The drains of backends, in memory until they get a directory.
    pub drains: Drains,
    /// Limits for asking resources for objects.
    pub asking: Asking,
    /// How often the keys of prompts are asked.
    pub hot_keys: HotKeys,
    /// The requests for which no backend is free.
    pub queue: Arc<BackendQueue>,
    /// What the clients use, for their limits.
    pub client_accounts: Arc<ClientAccounts>,
    /// What sees to it that rates outlive a restart.
    pub rates_keeper: RatesKeeper,
    /// How many predecessors this process keeps limits for, until they end.
    pub limits_kept_for: AtomicUsize,
    /// Which resource made which object.
    pub homes: Arc<Homes>,
    /// What sees to it that `homes` outlives this process.
    pub homes_keeper: HomesKeeper,
    /// What clients have used of their budgets, in memory until they get a directory.
    pub budgets: BudgetBooks,
    /// What the responses to clients have cost, in memory until it gets a directory.
    pub costs: Arc<BudgetBooks>,
    /// Background responses whose end is not known.
    pub unfinished_objects: Arc<UnfinishedObjects>,
    /// Requests in progress: from the parsed head until both the record and the response are finished.
    pub requests_in_flight: AtomicUsize,
    /// Requests whose record is finished.
    pub requests_finished: Arc<AtomicUsize>,
    /// What this instance has in common with others; set at the start if the configuration has `shared`.
    pub shared: OnceLock<Shared>,
    /// What shares the limits of clients with other instances; set together with `shared`.
    pub limit_reporter: OnceLock<Arc<LimitReporter>>,
    /// What shares the unavailability of backends with the other instances; set together with `shared`.
    pub shared_rests: OnceLock<SharedRests>,
    /// What shares the homes of objects with the other instances; set together with `shared`.
    pub shared_homes: OnceLock<Arc<SharedHomes>>,
    /// What shares how much instances send; set together with `shared`.
    pub shared_sends: OnceLock<SharedSends>,
    /// What keeps the queue fair over all instances; set together with `shared`.
    pub fairness_exchange: OnceLock<Arc<FairnessExchange>>,
    /// The WebSockets that are open.
    pub open_sockets: OpenSockets,
    /// The process is about to stop: its readiness check fails.
    pub is_stopping: AtomicBool,
    /// The process stops, or another has taken over: each connection of a client is closed after its next
    /// response.
    pub is_draining_connections: AtomicBool,
    /// This process has been replaced, and its successor serves, or has failed to.
    pub is_handover_over: AtomicBool,
    /// The balancer's own questions to backends that have not been sent.
    pub questions: Arc<QuestionQueue>,
    /// The state of the whole, as of the last second.
    pub service_report: ArcSwap<ServiceReport>,
    /// Where records go.
    pub recorder: Recorder,
    /// The secrets and tokens of the backends.
    pub keyring: Keyring,
    /// The balancer's own certificates.
    pub certificate_expiries: Arc<CertificateExpiries>,
}

impl ProcessState {
    /// The state of a process that starts now and remembers no homes.
    pub fn new(now: Instant, recorder: Recorder, keyring: Keyring) -> Self {
        Self::with_homes(now, now, recorder, keyring, Arc::new(Homes::new(DEFAULT_MEMORY_BYTES)))
    }

    /// The state of a process that starts now, with this memory of homes. The seconds of rates are counted from
    /// `seconds_from`, which has to be the same in processes that replace each other.
    pub fn with_homes(
        now: Instant,
        seconds_from: Instant,
        recorder: Recorder,
        keyring: Keyring,
        homes: Arc<Homes>,
    ) -> Self {
        let costs = Arc::new(BudgetBooks::of_costs());
        recorder.metrics().costs.keep_in(Arc::<BudgetBooks>::clone(&costs));
        let client_accounts = Arc::new(ClientAccounts::new(seconds_from));
        let unfinished_objects = Arc::new(UnfinishedObjects::new(&client_accounts));
        recorder.stored_objects().keep_in(Arc::<UnfinishedObjects>::clone(&unfinished_objects));
        Self {
            health_registry: HealthRegistry::new(now),
            drains: Drains::default(),
            asking: Asking::default(),
            hot_keys: HotKeys::new(now),
            queue: Arc::default(),
            client_accounts,
            rates_keeper: RatesKeeper::default(),
            limits_kept_for: AtomicUsize::new(0),
            homes_keeper: HomesKeeper::new(Arc::clone(&homes)),
            homes,
            budgets: BudgetBooks::default(),
            costs,
            unfinished_objects,
            requests_in_flight: AtomicUsize::new(0),
            requests_finished: Arc::default(),
            shared: OnceLock::new(),
            limit_reporter: OnceLock::new(),
            shared_rests: OnceLock::new(),
            shared_homes: OnceLock::new(),
            shared_sends: OnceLock::new(),
            fairness_exchange: OnceLock::new(),
            open_sockets: OpenSockets::default(),
            is_stopping: AtomicBool::new(false),
            is_draining_connections: AtomicBool::new(false),
            is_handover_over: AtomicBool::new(false),
            questions: Arc::default(),
            service_report: ArcSwap::default(),
            recorder,
            keyring,
            certificate_expiries: Arc::default(),
        }
    }

    /// Takes the state directory at a start, and restores what it has.
    pub fn restore_state(&self, directory: &Path, now: Instant) {
        let opened = StateDirectory::open(directory).map(Arc::new);
        self.drains.restore(&opened, &self.health_registry, now);
        self.homes_keeper.restore(&opened);
        self.budgets.restore(&opened);
        self.costs.restore(&opened);
        self.rates_keeper.restore(&opened, &self.client_accounts, now);
        self.unfinished_objects.restore(&opened);
        self.join_instances(opened.ok());
    }

    /// Takes the state directory after the predecessor has given it up. `are_homes_told` if the predecessor has
    /// told the homes that it remembers.
    pub fn take_over_state(&self, directory: &Path, are_homes_told: bool, now: Instant) {
        let opened = StateDirectory::open(directory).map(Arc::new);
        self.drains.take_over(&opened, &self.health_registry, now);
        self.homes_keeper.take_over(&opened, are_homes_told);
        self.budgets.restore(&opened);
        self.costs.restore(&opened);
        self.rates_keeper.take_over(&opened);
        self.unfinished_objects.restore(&opened);
        self.join_instances(opened.ok());
    }

    /// Whether clients have used their rates since these were saved.
    pub fn are_rates_unsaved(&self, now: Instant) -> bool {
        !self.client_accounts.is_empty() && self.rates_keeper.is_save_due(self.activity(), now)
    }

    /// Saves what clients have used of their rates. Blocks.
    pub fn save_rates(&self, now: Instant) {
        self.rates_keeper.save_if_due(&self.client_accounts, self.activity(), now);
    }

    /// A number that changes whenever a request begins or ends.
    fn activity(&self) -> usize {
        self.requests_finished.load(Ordering::Relaxed) * 2 + self.requests_in_flight.load(Ordering::Relaxed)
    }

    /// Has several things in common with other instances from now on. Called once, at the start.
    pub fn start_sharing(&self, shared: Shared, runtime: &Handle) {
        let rests =
            SharedRests::start(&shared, Arc::clone(&self.questions), Arc::clone(&self.queue), runtime);
        let _ = self.shared_rests.set(rests);
        let _ = self.shared_homes.set(SharedHomes::start(&shared.link, runtime));
        self.unfinished_objects.share(&shared.link, runtime);
        let _ = self.shared_sends.set(SharedSends::start(&shared, runtime));
        let _ = self.shared.set(shared);
    }

    /// What this process has to do now.
    pub fn load(&self) -> InstanceLoad {
        InstanceLoad {
            requests_finished: self.requests_finished.load(Ordering::Relaxed),
            in_flight: self.requests_in_flight.load(Ordering::Relaxed),
            queued: RequestClass::ALL.into_iter().map(|class| self.queue.waiting(class)).sum(),
            state: self.service_report.load().state.as_str(),
        }
    }

    /// Becomes one of the instances. The directory has how many there were. It may wait for the disk.
    pub fn join_instances(&self, directory: Option<Arc<StateDirectory>>) {
        if let Some(reporter) = self.limit_reporter.get() {
            reporter.start(directory.as_ref());
        }
        if let Some(exchange) = self.fairness_exchange.get() {
            exchange.start();
        }
        if let Some(shared) = self.shared.get() {
            shared.instances.join(directory);
        }
    }

    /// Is no instance any more: the process stops, or another one takes over. It may wait for the server a moment.
    pub fn leave_instances(&self) {
        if let Some(shared) = self.shared.get() {
            shared.instances.leave();
        }
    }

    /// Releases the state directory for the successor. Afterwards this process reports learned homes with
    /// `report_homes`, once the successor no longer follows them, used budgets and costs with `report_budgets` and
    /// `report_costs`, and what happens to background responses with `report_objects`. It may wait for a file that is being written.
    pub fn release_state(
        &self,
        report_homes: ReportFunction,
        report_budgets: BudgetReport,
        report_costs: BudgetReport,
        report_objects: ReportObjects,
    ) {
        self.leave_instances();
        self.drains.release_directory();
        self.rates_keeper.release_directory();
        self.homes_keeper.release_directory(report_homes);
        self.budgets.release_directory(report_budgets);
        self.costs.release_directory(report_costs);
        self.unfinished_objects.release_directory();
        self.unfinished_objects.report_to_successor(report_objects);
    }
}
