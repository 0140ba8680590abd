//! A client with many requests at the same time, in virtual time, and the process that limits them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aoai_lb::admission::limits::{
    BudgetWindow, ClientAccounts, ClientLimiter, Demand, KeeperLink, PredecessorShare, QueuedMessage,
    RateSnapshot, Reservation, Settlement, UsedTokens,
};
use aoai_lb::config::{ClientLimits, LimitSet, LimitsConfig};
use aoai_lb::gateway::budget_books::{BudgetBooks, BudgetReport};
use aoai_lb::names::{ClientName, DeploymentName};
use aoai_lb::state::StateDirectory;
use aoai_lb::state::budget_log::BudgetEntry;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::ledger::Ledger;

/// How many requests the client has at the same time.
pub const CONCURRENCY: usize = 200;
const CLIENT: &str = "team-a";
const MEAN_TOKENS: u64 = 1000;
/// From the shortest request to the longest.
const DURATIONS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// What a client does.
pub struct LimitRun {
    pub limits: LimitSet,
    /// When another process takes over; none if the times are empty.
    pub upgrades: Vec<Duration>,
    pub length: Duration,
}

/// What has happened.
pub struct LimitRunResult {
    pub start: Instant,
    pub ledger: Ledger,
    /// What the client has used of its budget of the day, according to the books of a process that starts at the end.
    pub budget_used: u64,
}

/// What a process tells its successor: at the handover, and afterwards.
type Handover = (Vec<RateSnapshot>, UnboundedReceiver<QueuedMessage>);

/// One process: what its clients use is kept in the state directory, and told to its successor.
struct Process {
    accounts: ClientAccounts,
    budgets: BudgetBooks,
    limiter: ClientLimiter,
    /// What the process before it has reserved, and what that one tells of it.
    predecessor: (PredecessorShare, Option<UnboundedReceiver<QueuedMessage>>),
    /// What it has counted since it was replaced.
    reports: Arc<Mutex<Vec<BudgetEntry>>>,
}

struct RunState {
    start: Instant,
    /// Budgets end at the real end of the day.
    time: SystemTime,
    random: fastrand::Rng,
    events: BinaryHeap<Reverse<(Instant, usize)>>,
    /// For each worker of the client, its request.
    running: Vec<Option<RunningRequest>>,
    ledger: Ledger,
}

struct RunningRequest {
    reservation: Reservation,
    number: usize,
    used: u64,
}

impl Process {
    /// Windows count from `origin`, and `handover` is what the process before it has told.
    fn start(
        run: &LimitRun,
        directory: &Path,
        origin: Instant,
        handover: Option<Handover>,
        now: Instant,
    ) -> Self {
        let (accounts, budgets) = (ClientAccounts::new(origin), BudgetBooks::default());
        let (rates, messages) = handover.unzip();
        let share = accounts.restore(&rates.unwrap_or_default(), now);
        budgets.restore(&StateDirectory::open(directory).map(Arc::new));
        assert_eq!(budgets.save_problem(), None);
        let client = ClientName::new(CLIENT);
        let limits = Arc::new(ClientLimits { total: run.limits, ..ClientLimits::default() });
        let open_budget = |deployment: Option<&DeploymentName>| budgets.open(Some(&client), deployment);
        let account = accounts.find_or_create(Some(&client));
        let limiter = ClientLimiter::new(limits, &LimitsConfig::default(), account, &open_budget);
        Self { accounts, budgets, limiter, predecessor: (share, messages), reports: Arc::default() }
    }

    /// Counts what the process before it has told since the last call.
    fn follow_predecessor(&mut self, now: Instant) {
        let (share, messages) = &mut self.predecessor;
        while let Some(Ok(QueuedMessage::Send(message))) = messages.as_mut().map(UnboundedReceiver::try_recv)
        {
            share.apply(&self.accounts, &message, now);
        }
    }

    /// Gives up the state directory. Returns what the successor has to know, and what it will be told.
    fn hand_over(&self, now: Instant) -> Handover {
        let reports = Arc::clone(&self.reports);
        let report: BudgetReport = Box::new(move |entries| {
            reports.lock().unwrap().extend_from_slice(entries);
            Ok(())
        });
        self.budgets.release_directory(report);
        let (link, messages) = KeeperLink::new();
        self.accounts.offer_keeper(link);
        let text = serde_json::to_string(&self.accounts.capture(now)).unwrap();
        (serde_json::from_str(&text).unwrap(), messages)
    }
}

/// Runs until all requests have ended.
pub fn run_client(run: &LimitRun) -> LimitRunResult {
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut processes = vec![Process::start(run, directory.path(), start, None, start)];
    let mut state = RunState {
        start,
        time: SystemTime::now(),
        random: fastrand::Rng::with_seed(5),
        events: (0..CONCURRENCY).map(|worker| Reverse((start, worker))).collect(),
        running: (0..CONCURRENCY).map(|_| None).collect(),
        ledger: Ledger::default(),
    };
    let mut upgrades = run.upgrades.iter().map(|at| start + *at).peekable();
    while let Some(Reverse((now, worker))) = state.events.pop() {
        if let Some(at) = upgrades.next_if(|at| *at <= now) {
            let handover = processes.last().unwrap().hand_over(at);
            processes.push(Process::start(run, directory.path(), start, Some(handover), at));
        }
        state.on_event(run, worker, &processes.last().unwrap().limiter, now);
        processes.iter_mut().for_each(|process| process.follow_predecessor(now));
    }
    // The processes end, each after it has told the last one what it has counted.
    let (last, replaced) = processes.split_last().unwrap();
    for process in replaced {
        process.budgets.close();
        last.budgets.add_reported(&process.reports.lock().unwrap());
    }
    last.hand_over(start + run.length);
    let successor = Process::start(run, directory.path(), start, None, start + run.length);
    let budget = successor.budgets.open(Some(&ClientName::new(CLIENT)), None);
    let budget_used = budget.counted(BudgetWindow::Day, state.time).booked.tokens;
    LimitRunResult { start, ledger: state.ledger, budget_used }
}

impl RunState {
    /// A worker's request ends, or it is time for its next one.
    fn on_event(&mut self, run: &LimitRun, worker: usize, limiter: &ClientLimiter, now: Instant) {
        let limit = run.limits.tokens_per_minute.unwrap_or(u64::MAX);
        if let Some(mut request) = self.running[worker].take() {
            let used = UsedTokens { input: request.used, cached: 0, output: 0 };
            request.reservation.settle(Settlement::Used(used), now, self.time);
            self.ledger.end(request.number, request.used, limit, now);
        }
        if now >= self.start + run.length {
            return;
        }
        let estimate = self.random.u64(MEAN_TOKENS / 5..MEAN_TOKENS * 9 / 5);
        let demand = Demand {
            prompt_bytes: 0,
            max_output_tokens: Some(estimate),
            choices: 1,
            has_output: true,
            may_use_tokens: true,
            rates: None,
        };
        match limiter.reserve(None, &demand, now, self.time) {
            Ok(reservation) => {
                let number = self.ledger.admit(reservation.tokens(), limit, now);
                // From half of the estimate to twice as much.
                let used = (estimate as f64 * 2.0_f64.powf(self.random.f64() * 2.0 - 1.0)) as u64;
                let (shortest, longest) = DURATIONS;
                let end = now + shortest + (longest - shortest).mul_f64(self.random.f64());
                self.running[worker] = Some(RunningRequest { reservation, number, used });
                self.events.push(Reverse((end, worker)));
            }
            Err(reached) => {
                // The client obeys. Over a budget, it does not come back before the end.
                let wait = reached.wait.filter(|_| reached.key.kind.window().is_none()).unwrap_or(run.length);
                self.events.push(Reverse((now + wait.max(Duration::from_millis(1)), worker)));
            }
        }
    }
}
