//! Reports what the clients of this instance use to the server that several instances share, and brings back leases
//! (`admission/limits/leases/`). A task in the background does it; `report.lua` decides on the server.

mod ledger_id;
mod wire;

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::ledger_id::OwnLedgerId;
use self::wire::{ReportAnswer, forget_call, parse_answer, report_call};
use crate::admission::limits::{
    ClientAccount, ClientAccounts, LeaseDesk, LimitReport, ReportKind, ReportRequest,
};
use crate::names::ClientName;
use crate::shared::{InstanceRegistry, SharedError, SharedLink, Value, cmd};
use crate::state::StateDirectory;

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
    ledger: OwnLedgerId,
    last_problem: Mutex<Option<String>>,
}

/// How the reports of an account have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportEnd {
    Done,
    /// Another instance reports under the id of this one.
    IdInUse,
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
            ledger: OwnLedgerId::default(),
            last_problem: Mutex::default(),
        })
    }

    /// Begins to report. The directory keeps the id under which the server counts what this instance has used, so that the
    /// process after this one goes on with it. Blocks.
    pub fn start(self: &Arc<Self>, directory: Option<&Arc<StateDirectory>>) {
        let Some(queue) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.ledger.start(directory);
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
        let (mut active, mut reports) = (HashMap::new(), JoinSet::new());
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
                Some(ended) = reports.join_next() => {
                    if matches!(ended, Ok(ReportEnd::IdInUse)) {
                        self.take_new_id(&mut reports).await;
                    }
                }
                Some(request) = queue.recv() => match request {
                    ReportRequest::Urgent(client) => {
                        if let Some(account) = self.accounts.find(client.as_ref()) {
                            self.report_in_background(&account, ReportKind::Changes, &mut reports);
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
                            self.report_in_background(account, ReportKind::Changes, &mut reports);
                        }
                        if now >= refresh_due {
                            refresh_due = now + REFRESH;
                            for account in self.accounts.all() {
                                if account.is_at_rest() {
                                    self.report_in_background(&account, ReportKind::Everything, &mut reports);
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
        // A process that takes over and has the same id goes on with what this one has reported.
        if self.desk.is_replaced() && self.ledger.get().is_some_and(|ledger| !ledger.is_kept) {
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

    fn report_in_background(
        self: &Arc<Self>,
        account: &Arc<ClientAccount>,
        kind: ReportKind,
        reports: &mut JoinSet<ReportEnd>,
    ) {
        let (reporter, account) = (Arc::clone(self), account.clone());
        reports.spawn_on(async move { reporter.report(&account, kind).await }, &self.runtime);
    }

    /// Reports until there is nothing that has to be reported at once.
    async fn report(&self, account: &Arc<ClientAccount>, kind: ReportKind) -> ReportEnd {
        while let Some(report) = account.begin_report(&self.desk, kind, Instant::now(), SystemTime::now()) {
            if report.limits().is_empty() {
                report.finish(Vec::new(), Instant::now(), SystemTime::now());
                break;
            }
            match self.exchange(account.client(), report.limits()).await {
                Ok(ReportAnswer::Grants(grants)) => {
                    self.on_exchanged(None);
                    if !report.finish(grants, Instant::now(), SystemTime::now()) {
                        break;
                    }
                }
                Ok(ReportAnswer::IdInUse) => return ReportEnd::IdInUse,
                Err(problem) => {
                    self.on_exchanged(Some(&problem));
                    break;
                }
            }
        }
        ReportEnd::Done
    }

    /// Reports under a new id from now on. The instance that has the old one goes on with what was reported under it.
    async fn take_new_id(&self, reports: &mut JoinSet<ReportEnd>) {
        // None may be on its way under the old id.
        while reports.join_next().await.is_some() {}
        let Some(old) = self.ledger.get().filter(|_| !self.desk.is_closed()) else { return };
        self.ledger.replace().await;
        for account in self.accounts.all() {
            account.give_up_id(&old.id, SystemTime::now());
        }
        warn!(
            "shared.redis: another instance has the ledger.json of this one, as a copy of its server.state_directory has. \
             This instance takes a new id; what was used counts once"
        );
    }

    async fn exchange(
        &self,
        client: Option<&ClientName>,
        limits: &[LimitReport],
    ) -> Result<ReportAnswer, SharedError> {
        let Some(ledger) = self.ledger.get() else { return Err(SharedError::Down) };
        let call = report_call(self.link.keys(), client, &ledger.id, self.instances.own_id(), limits);
        parse_answer(&self.link.run_script(&call, REPORT_TIMEOUT).await?, limits)
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

    /// Reports for the last time, so that nothing is held or leased any more. What this instance has used counts on.
    async fn end_reports(&self) {
        let Some(ledger) = self.ledger.get() else { return };
        for account in self.accounts.all() {
            let Some(report) =
                account.begin_report(&self.desk, ReportKind::Last, Instant::now(), SystemTime::now())
            else {
                continue;
            };
            let (client, limits) = (account.client(), report.limits());
            let ended = if ledger.is_kept || !self.desk.is_replaced() {
                self.exchange(client, limits).await.map(drop)
            } else if limits.is_empty() {
                Ok(())
            } else {
                // The process that takes over reports it under an id of its own.
                let call = forget_call(self.link.keys(), client, &ledger.id, limits);
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
