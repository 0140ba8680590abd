//! Reports what the clients of this instance use to the server that several instances share, and brings back leases
//! (`admission/limits/leases/`). A task in the background does it; `report.lua` decides on the server.

mod wire;

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval};

use self::wire::{forget_call, parse_grants, report_call};
use crate::admission::limits::{
    ClientAccount, ClientAccounts, LeaseDesk, LeaseGrant, LimitReport, ReportKind, ReportRequest,
};
use crate::names::ClientName;
use crate::shared::{InstanceRegistry, SharedError, SharedLink, Value, cmd};
use crate::state::StateDirectory;
use crate::state::ledger;

/// How often changes are reported that nobody waits for.
const ROUND: Duration = Duration::from_millis(250);
/// How often is reported what is held and does not change. The server forgets it after five seconds.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often this instance learns what others have used of limits of which it uses nothing itself.
const REFRESH: Duration = Duration::from_secs(5);
/// How long the server may take to answer a report. Requests wait for it for a few milliseconds only.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the clocks are compared.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the last reports.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Reports the limits of clients.
#[derive(Debug)]
pub struct LimitReporter {
    link: Arc<SharedLink>,
    instances: Arc<InstanceRegistry>,
    accounts: Arc<ClientAccounts>,
    desk: Arc<LeaseDesk>,
    runtime: Handle,
    /// Until it has started.
    queue: Mutex<Option<UnboundedReceiver<ReportRequest>>>,
    ledger: OnceLock<LedgerId>,
    last_problem: Mutex<Option<String>>,
}

/// Under which name the server counts what this instance has used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LedgerId {
    id: String,
    /// It is kept in the state directory, for the process after this one.
    is_kept: bool,
}

impl LimitReporter {
    /// A reporter that has not started. From now on, requests need leases.
    pub fn new(
        link: &Arc<SharedLink>,
        instances: &Arc<InstanceRegistry>,
        accounts: &Arc<ClientAccounts>,
        runtime: &Handle,
    ) -> Arc<Self> {
        let (desk, queue) = LeaseDesk::new();
        accounts.share(Arc::clone(&desk));
        Arc::new(Self {
            link: Arc::clone(link),
            instances: Arc::clone(instances),
            accounts: Arc::clone(accounts),
            desk,
            runtime: runtime.clone(),
            queue: Mutex::new(Some(queue)),
            ledger: OnceLock::new(),
            last_problem: Mutex::default(),
        })
    }

    /// Begins to report. The directory keeps the name under which the server counts what this instance has used, so that the
    /// process after this one goes on with it.
    pub fn start(self: &Arc<Self>, directory: Option<&StateDirectory>) {
        let Some(queue) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let ledger = match directory.and_then(ledger::find_or_create) {
            Some(id) => LedgerId { id, is_kept: true },
            None => LedgerId { id: ledger::new_id(), is_kept: false },
        };
        // Set only here: there was one queue to take.
        let _ = self.ledger.set(ledger);
        self.runtime.spawn(Arc::clone(self).run(queue));
    }

    /// How many requests were compared with this instance's part of a limit, because the server did not answer in time.
    pub fn limited_alone(&self) -> u64 {
        self.desk.limited_alone()
    }

    /// Gives up all leases, at the end of the process. It may wait for the server a moment.
    pub fn close(self: &Arc<Self>) {
        let was_closed = self.desk.is_closed();
        self.desk.close();
        if was_closed || !self.link.is_up() {
            return;
        }
        let (done, is_done) = sync_channel(1);
        let reporter = Arc::clone(self);
        self.runtime.spawn(async move {
            reporter.end_reports().await;
            let _ = done.send(());
        });
        let _ = is_done.recv_timeout(CLOSE_TIMEOUT);
    }

    async fn run(self: Arc<Self>, mut queue: UnboundedReceiver<ReportRequest>) {
        let mut link_state = self.link.watch_state();
        link_state.mark_changed();
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut active = HashMap::new();
        let (mut clock_due, mut refresh_due) = (Instant::now(), Instant::now());
        while !self.desk.is_closed() {
            tokio::select! {
                Ok(()) = link_state.changed() => {
                    if *link_state.borrow_and_update() {
                        // What was used meanwhile is added.
                        active = self.all_accounts();
                        clock_due = Instant::now();
                    } else {
                        self.desk.set_down();
                    }
                }
                Some(request) = queue.recv() => match request {
                    ReportRequest::Urgent(client) => {
                        if let Some(account) = self.accounts.find(client.as_ref()) {
                            self.report_in_background(&account, ReportKind::Changes);
                        }
                    }
                    ReportRequest::Changed(client) => {
                        if let Some(account) = self.accounts.find(client.as_ref()) {
                            active.insert(client, account);
                        }
                    }
                },
                _ = rounds.tick() => {
                    if self.desk.is_up() {
                        active.retain(|_, account| !account.is_at_rest());
                        let now = Instant::now();
                        for account in active.values().filter(|account| account.has_to_report(HEARTBEAT, now)) {
                            self.report_in_background(account, ReportKind::Changes);
                        }
                        if now >= refresh_due {
                            refresh_due = now + REFRESH;
                            for account in self.accounts.all() {
                                if account.is_at_rest() {
                                    self.report_in_background(&account, ReportKind::Everything);
                                }
                            }
                        }
                    }
                }
            }
            self.desk.set_instances(self.instances.instances().last_seen_count);
            if self.link.is_up() && Instant::now() >= clock_due {
                clock_due = Instant::now() + if self.compare_clocks().await { CLOCK_INTERVAL } else { ROUND };
            }
        }
        if self.ledger.get().is_some_and(|ledger| !ledger.is_kept) {
            // The process that takes over counts it under another name.
            self.end_reports().await;
        }
    }

    fn all_accounts(&self) -> HashMap<Option<ClientName>, Arc<ClientAccount>> {
        self.accounts.all().into_iter().map(|account| (account.client().cloned(), account)).collect()
    }

    /// Learns what the server's clock is ahead, and begins to use leases. Returns false if the server does not answer.
    async fn compare_clocks(&self) -> bool {
        let Ok(reply) = self.link.run(&cmd("TIME"), REPORT_TIMEOUT).await else { return false };
        let Some(server_time) = parse_time(&reply) else { return false };
        let (now, wall_now) = (Instant::now(), SystemTime::now());
        let local = wall_now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.accounts.set_clock_offset(millis(server_time).saturating_sub(millis(local)));
        let counted = millis(now.saturating_duration_since(self.accounts.start()));
        // Rounded up: nothing may be forgotten early.
        let offset = millis(server_time).saturating_sub(counted).saturating_add(999) / 1000;
        // An empty report: afterwards the server knows the script, which a request should not have to wait for.
        match self.exchange(None, &[]).await {
            Ok(_) => {
                self.desk.set_up(offset);
                true
            }
            Err(problem) => {
                self.on_exchanged(Some(&problem));
                false
            }
        }
    }

    fn report_in_background(self: &Arc<Self>, account: &Arc<ClientAccount>, kind: ReportKind) {
        let (reporter, account) = (Arc::clone(self), account.clone());
        self.runtime.spawn(async move { reporter.report(&account, kind).await });
    }

    /// Reports until there is nothing that has to be reported at once.
    async fn report(&self, account: &Arc<ClientAccount>, kind: ReportKind) {
        while let Some(report) = account.begin_report(&self.desk, kind, Instant::now(), SystemTime::now()) {
            if report.limits().is_empty() {
                report.finish(Vec::new(), Instant::now(), SystemTime::now());
                return;
            }
            match self.exchange(account.client(), report.limits()).await {
                Ok(grants) => {
                    self.on_exchanged(None);
                    if !report.finish(grants, Instant::now(), SystemTime::now()) {
                        return;
                    }
                }
                Err(problem) => {
                    self.on_exchanged(Some(&problem));
                    return;
                }
            }
        }
    }

    async fn exchange(
        &self,
        client: Option<&ClientName>,
        limits: &[LimitReport],
    ) -> Result<Vec<LeaseGrant>, SharedError> {
        let Some(ledger) = self.ledger.get() else { return Err(SharedError::Down) };
        let call = report_call(self.link.keys(), client, &ledger.id, limits);
        parse_grants(&self.link.run_script(&call, REPORT_TIMEOUT).await?, limits)
    }

    /// Logs a problem when it is new.
    fn on_exchanged(&self, problem: Option<&SharedError>) {
        // The link logs the others.
        let problem = match problem {
            Some(SharedError::Down | SharedError::Lost | SharedError::TimedOut(_)) => return,
            problem => problem.map(ToString::to_string),
        };
        let mut last = self.last_problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == problem {
            return;
        }
        match &problem {
            Some(problem) => warn!(
                "shared.redis: the limits of clients cannot be shared: {problem}. This instance uses its part of each rate"
            ),
            None => info!("shared.redis: the limits of clients are shared again"),
        }
        *last = problem;
    }

    /// Reports for the last time. What this instance has used counts on only if the process after it takes over its name.
    async fn end_reports(&self) {
        let Some(ledger) = self.ledger.get() else { return };
        for account in self.accounts.all() {
            let Some(report) =
                account.begin_report(&self.desk, ReportKind::Last, Instant::now(), SystemTime::now())
            else {
                continue;
            };
            let ended = if ledger.is_kept {
                self.exchange(account.client(), report.limits()).await.map(drop)
            } else if report.limits().is_empty() {
                Ok(())
            } else {
                let call = forget_call(self.link.keys(), account.client(), &ledger.id, report.limits());
                self.link.run_script(&call, REPORT_TIMEOUT).await.map(drop)
            };
            if let Err(problem) = ended {
                debug!("shared.redis: the leases of this instance end in five seconds: {problem}");
                return;
            }
        }
    }
}

/// The time in an answer to `TIME`.
fn parse_time(reply: &Value) -> Option<Duration> {
    let Value::Array(parts) = reply else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    let number = |value: &Value| match value {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    Some(Duration::from_secs(number(seconds)?) + Duration::from_micros(number(micros)?))
}
