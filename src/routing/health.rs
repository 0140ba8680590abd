//! What a backend asked for or suffers from, and until when: cooldown, absence, credential,
//! breaker; and who goes first when it is over.
//!
//! State lives in cells that outlive a configuration, keyed by name. What a reply means is
//! `azure/verdict.rs`'s; which cell it marks is `gateway.rs`'s.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::breaker::Breaker;
use super::headroom::Headroom;
use crate::azure::Operation;
use crate::credentials::Credential;
use crate::names::{BackendName, Deployment};

/// How long after it was sent a request that was let through first, after a cooldown, counts
/// as accepted: refusals are quick, answers are not.
const REFUSALS_TAKE: Duration = Duration::from_millis(100);
/// A backend that refuses the secret that was renewed for it gets another after so long.
const RENEWAL_REST: Duration = Duration::from_secs(60);
/// Longer than any process.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The log says so often why no connection can be made.
const COMPLAINT_REST: Duration = Duration::from_secs(60);
/// How long such a request may keep its place without having come so far.
const PROBE_SLOT: Duration = Duration::from_secs(30);

/// Why something rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Azure asked to wait (429, or `retry-after` on another refusal).
    Cooling,
    /// The resource does not have the deployment or the model.
    Absent,
    /// The resource refuses our credential, or all keys, or our network.
    Credential,
    /// The credential may not do this operation.
    PermissionDenied,
    /// It failed too often.
    BreakerOpen,
    /// The operator wants it left alone.
    Drained,
}

impl Reason {
    const ALL: [Self; 6] = [
        Self::Cooling,
        Self::Absent,
        Self::Credential,
        Self::PermissionDenied,
        Self::BreakerOpen,
        Self::Drained,
    ];

    /// The word for it in the status API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cooling => "cooling",
            Self::Absent => "absent",
            Self::Credential => "credential",
            Self::PermissionDenied => "permission",
            Self::BreakerOpen => "breaker_open",
            Self::Drained => "drained",
        }
    }

    /// The reason of this word.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.word() == word)
    }
}

/// A rest: why and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Why.
    pub reason: Reason,
    /// The first moment at which it is over.
    pub until: Instant,
}

/// A rest and when it began: longer rests that followed at once count as the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Why and until when.
    pub rest: Rest,
    /// Its beginning.
    pub since: Instant,
}

/// How something stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be asked by everyone.
    Awake,
    /// It rests, or somebody is finding out whether it is over.
    Resting(Rest),
    /// Its rest is over and one may go first: [`Cell::claim`].
    Due,
}

/// One thing that can rest. While nothing rests, which is nearly always, looking costs one
/// load.
#[derive(Debug, Default)]
pub struct Cell {
    resting: AtomicBool,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    rest: Rest,
    since: Instant,
    gate: Gate,
}

/// What stands at the end of a rest.
#[derive(Debug)]
enum Gate {
    /// Nobody has asked yet.
    Shut,
    /// One has been let through; nobody else until then.
    Probing { ticket: u64, until: Instant, then_opens: bool },
}

impl Cell {
    /// Rests until the given moment, or longer if a longer rest is under way. Returns whether
    /// it was awake before: the moment to log, once per incident.
    pub fn rest(&self, rest: Rest, now: Instant) -> bool {
        let mut state = self.lock();
        let was_awake = self.look(&mut state, now) == Standing::Awake;
        let since = state.as_ref().map_or(now, |state| state.since);
        let rest = match state.as_ref() {
            Some(State { rest: under_way, .. }) if under_way.until > rest.until => *under_way,
            _ => rest,
        };
        *state = Some(State { rest, since, gate: Gate::Shut });
        self.resting.store(true, Ordering::Release);
        was_awake
    }

    /// Goes on with what was told of it elsewhere.
    pub(super) fn continues(&self, Incident { rest, since }: Incident) {
        *self.lock() = Some(State { rest, since, gate: Gate::Shut });
        self.resting.store(true, Ordering::Release);
    }

    /// Its rest and when that began; also one that is over, if nobody has found out yet.
    pub(super) fn told(&self, now: Instant) -> Option<Incident> {
        let mut state = self.lock();
        self.look(&mut state, now);
        state.as_ref().map(|state| Incident { rest: state.rest, since: state.since })
    }

    /// Why, since when and until when it rests, if it does.
    pub fn incident(&self, now: Instant) -> Option<Incident> {
        let rest = self.rest_at(now)?;
        let since = self.lock().as_ref().map_or(now, |state| state.since);
        Some(Incident { rest, since })
    }

    /// How it stands.
    pub fn standing(&self, now: Instant) -> Standing {
        if !self.resting.load(Ordering::Acquire) {
            return Standing::Awake;
        }
        self.look(&mut self.lock(), now)
    }

    /// Why and until when it rests, if it does.
    pub fn rest_at(&self, now: Instant) -> Option<Rest> {
        match self.standing(now) {
            Standing::Resting(rest) => Some(rest),
            Standing::Awake | Standing::Due => None,
        }
    }

    /// Takes the place of the one that goes first; `None` if that is taken.
    fn claim(&self, now: Instant, ticket: u64) -> bool {
        let mut state = self.lock();
        if self.look(&mut state, now) != Standing::Due {
            return false;
        }
        if let Some(state) = state.as_mut() {
            state.gate = Gate::Probing { ticket, until: now + PROBE_SLOT, then_opens: false };
        }
        true
    }

    /// Ends the rest: it has answered.
    pub fn wake(&self) {
        if self.resting.load(Ordering::Acquire) {
            let mut state = self.lock();
            *state = None;
            self.resting.store(false, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, state: &mut Option<State>, now: Instant) -> Standing {
        let Some(State { rest, gate, .. }) = state else { return Standing::Awake };
        if now < rest.until {
            return Standing::Resting(*rest);
        }
        match gate {
            Gate::Shut => Standing::Due,
            Gate::Probing { until, then_opens: false, .. } if now < *until => {
                // For a cooldown it is as good as known when the gate opens.
                let soon = now + REFUSALS_TAKE;
                let until = if rest.reason == Reason::Cooling { soon.min(*until) } else { *until };
                Standing::Resting(Rest { until, ..*rest })
            }
            Gate::Probing { until, then_opens: true, .. } if now < *until => {
                Standing::Resting(Rest { until: *until, ..*rest })
            }
            Gate::Probing { then_opens: true, .. } => {
                *state = None;
                self.resting.store(false, Ordering::Release);
                Standing::Awake
            }
            Gate::Probing { .. } => Standing::Due,
        }
    }

    fn with_ticket(&self, ticket: u64, change: impl FnOnce(&mut Option<State>)) {
        let mut state = self.lock();
        let holds =
            |state: &State| matches!(state.gate, Gate::Probing { ticket: held, .. } if held == ticket);
        if state.as_ref().is_some_and(holds) {
            change(&mut state);
            self.resting.store(state.is_some(), Ordering::Release);
        }
    }
}

/// The right and duty of one request to find out whether rests are over. Dropped without a
/// result, it lets another try.
#[derive(Debug, Default)]
pub struct Claim {
    probes: SmallVec<[(Arc<Cell>, u64); 1]>,
}

impl Claim {
    /// Claims all of these cells that are due; `None` if another request was faster.
    pub(super) fn of<'c>(cells: impl Iterator<Item = &'c Arc<Cell>>, now: Instant) -> Option<Self> {
        let mut claim = Self::default();
        for cell in cells {
            match cell.standing(now) {
                Standing::Awake => {}
                Standing::Resting(_) => return None,
                Standing::Due => {
                    let ticket = fastrand::u64(..);
                    if !cell.claim(now, ticket) {
                        return None;
                    }
                    claim.probes.push((Arc::clone(cell), ticket));
                }
            }
        }
        Some(claim)
    }

    /// Whether it holds this cell.
    pub fn holds(&self, cell: &Arc<Cell>) -> bool {
        self.probes.iter().any(|(held, _)| Arc::ptr_eq(held, cell))
    }

    /// The request has been sent whole: a cooldown is over soon if no refusal comes.
    pub fn sent(&self, now: Instant) {
        for (cell, ticket) in &self.probes {
            cell.with_ticket(*ticket, |state| {
                if let Some(State { rest, gate: Gate::Probing { until, then_opens, .. }, .. }) = state
                    && rest.reason == Reason::Cooling
                    && !*then_opens
                {
                    (*until, *then_opens) = (now + REFUSALS_TAKE, true);
                }
            });
        }
    }

    /// This one of what was claimed is open to everyone; about the rest nothing is known yet.
    pub fn open_one(&mut self, cell: &Arc<Cell>) {
        self.probes.retain(|(held, ticket)| {
            let is_it = Arc::ptr_eq(held, cell);
            if is_it {
                held.with_ticket(*ticket, |state| *state = None);
            }
            !is_it
        });
    }

    /// It has answered: what was claimed is open to everyone.
    pub fn open(self) {
        for (cell, ticket) in &self.probes {
            cell.with_ticket(*ticket, |state| *state = None);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for (cell, ticket) in &self.probes {
            cell.with_ticket(*ticket, |state| {
                if let Some(state) = state {
                    state.gate = Gate::Shut;
                }
            });
        }
    }
}

/// What is remembered of one deployment on one backend.
#[derive(Debug, Default)]
pub struct DeploymentMemory {
    /// Its rests.
    pub cell: Arc<Cell>,
    /// How much it can still take.
    pub headroom: Headroom,
    /// It refused `stream_options`, so it is no longer asked for the usage of a stream.
    pub declines_usage: AtomicBool,
}

/// A part of a backend that can rest by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A deployment, by the name the resource knows; empty for calls that name none.
    Deployment(String),
    /// An operation.
    Operation(Operation),
}

/// What is remembered of one backend over reloads.
#[derive(Debug)]
pub struct BackendMemory {
    /// Rests while the resource refuses our credential, or there is none.
    credential: Arc<Cell>,
    /// The number of the secret that was refused; 0: there was none.
    refused: AtomicU64,
    /// The secret that was last renewed because this backend refused it, and when. Forgotten when
    /// the backend has taken one.
    renewal: Mutex<Option<(u64, Instant)>>,
    /// Whether there is such a renewal.
    is_doubted: AtomicBool,
    /// When the log last said why no connection can be made.
    complained: Mutex<Option<Instant>>,
    /// Rests for as long as the operator wants it to.
    pub(super) drained: Arc<Cell>,
    /// Counts failures, and rests when there are too many.
    pub breaker: Breaker,
    operations: [Arc<Cell>; Operation::ALL.len()],
    deployments: Mutex<HashMap<String, Arc<DeploymentMemory>>>,
    /// Attempts under way.
    pub in_flight: AtomicUsize,
    /// Attempts begun since the process started.
    pub attempts: AtomicU64,
}

impl BackendMemory {
    fn new(birth: Instant) -> Self {
        Self {
            credential: Arc::default(),
            refused: AtomicU64::new(0),
            renewal: Mutex::default(),
            is_doubted: AtomicBool::new(false),
            complained: Mutex::default(),
            drained: Arc::default(),
            breaker: Breaker::new(birth),
            operations: std::array::from_fn(|_| Arc::default()),
            deployments: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            attempts: AtomicU64::new(0),
        }
    }

    /// The cell that rests while the resource refuses our credential. Another secret than the one
    /// that was refused is worth a try at once.
    pub fn credential(&self, credential: &Credential) -> &Arc<Cell> {
        let cell = &self.credential;
        if cell.resting.load(Ordering::Acquire)
            && self.refused.load(Ordering::Acquire) != credential.kept().number()
        {
            cell.wake();
        }
        cell
    }

    /// The secret of this number was refused, or with 0 there is none. Returns whether it is
    /// news; not if there is another by now.
    pub fn refuse(&self, credential: &Credential, number: u64, rest: Rest, now: Instant) -> bool {
        self.refused.store(number, Ordering::Release);
        let is_news = self.credential.rest(rest, now);
        // One that came just now must not rest for the one before it.
        self.credential(credential);
        is_news
    }

    /// Whether its refusal of this secret is worth a renewal: not when it has refused the one
    /// before as well, lest a backend that takes none wear out who gives them.
    pub fn may_renew(&self, number: u64, now: Instant) -> bool {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        match *renewal {
            Some((renewed, _)) if renewed == number => true,
            Some((_, at)) if now < at + RENEWAL_REST => false,
            _ => {
                *renewal = Some((number, now));
                self.is_doubted.store(true, Ordering::Release);
                true
            }
        }
    }

    /// Whether it is time to say once more why no connection can be made.
    pub fn may_complain(&self, now: Instant) -> bool {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = complained.is_none_or(|at| now >= at + COMPLAINT_REST);
        if is_time {
            *complained = Some(now);
        }
        is_time
    }

    /// It has taken our credential.
    pub fn trusts(&self) {
        if self.is_doubted.load(Ordering::Acquire) {
            self.is_doubted.store(false, Ordering::Release);
            *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// No new request goes there, until [`BackendMemory::undrain`]. Returns whether that is news.
    pub fn drain(&self, now: Instant) -> bool {
        self.drained.rest(Rest { reason: Reason::Drained, until: now + FOR_EVER }, now)
    }

    /// The operator has nothing against it any more. Returns whether that is news.
    pub fn undrain(&self, now: Instant) -> bool {
        let was_drained = self.drained.standing(now) != Standing::Awake;
        self.drained.wake();
        was_drained
    }

    /// Why, since when and until when all of it rests, if it does.
    pub fn incident(&self, credential: &Credential, now: Instant) -> Option<Incident> {
        let cells = [&self.drained, self.credential(credential), &self.breaker.cell];
        cells.into_iter().find_map(|cell| cell.incident(now))
    }

    /// An attempt on it begins.
    pub fn attempt_begins(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt on it has ended.
    pub fn attempt_ends(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The cell of one operation.
    pub fn operation(&self, operation: Operation) -> &Arc<Cell> {
        // In bounds, since `ALL` has them all.
        &self.operations[operation as usize]
    }

    /// What is remembered of one of its deployments, by the name the resource knows; `None`
    /// is for calls that name no deployment.
    pub fn deployment(&self, upstream: Option<&Deployment>) -> Arc<DeploymentMemory> {
        self.deployment_of_key(upstream.map(Deployment::key).unwrap_or_default())
    }

    pub(super) fn deployment_of_key(&self, key: String) -> Arc<DeploymentMemory> {
        let mut known = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(key).or_default())
    }

    /// All its deployments that are remembered, by upstream name.
    pub fn deployments(&self) -> Vec<(String, Arc<DeploymentMemory>)> {
        let known = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known: Vec<_> =
            known.iter().map(|(name, memory)| (name.clone(), Arc::clone(memory))).collect();
        known.sort_by(|a, b| a.0.cmp(&b.0));
        known
    }

    /// All parts of it that rest now: deployments by upstream name, then operations.
    pub fn resting(&self, now: Instant) -> Vec<(Part, Incident)> {
        let rest = |cell: &Cell| cell.incident(now);
        let known = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let deployments = known.iter().filter_map(|(name, memory)| Some((name, rest(&memory.cell)?)));
        let mut deployments: Vec<_> = deployments.collect();
        deployments.sort_by_key(|(name, _)| *name);
        let deployments = deployments.into_iter().map(|(name, rest)| (Part::Deployment(name.clone()), rest));
        let operations = Operation::ALL
            .into_iter()
            .filter_map(|operation| Some((Part::Operation(operation), rest(self.operation(operation))?)));
        deployments.chain(operations).collect()
    }
}

/// What is remembered over reloads, by backend name.
#[derive(Debug)]
pub struct Memory {
    birth: Instant,
    backends: Mutex<HashMap<BackendName, Arc<BackendMemory>>>,
}

impl Memory {
    /// An empty memory; `now` is the zero of its clock.
    pub fn new(now: Instant) -> Self {
        Self { birth: now, backends: Mutex::default() }
    }

    /// What is remembered of this backend.
    pub fn backend(&self, name: &BackendName) -> Arc<BackendMemory> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let birth = self.birth;
        Arc::clone(backends.entry(name.clone()).or_insert_with(|| Arc::new(BackendMemory::new(birth))))
    }

    /// Everything that is remembered, by name.
    pub(super) fn all(&self) -> Vec<(BackendName, Arc<BackendMemory>)> {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            backends.iter().map(|(name, memory)| (name.clone(), Arc::clone(memory))).collect();
        all.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rest(reason: Reason, until: Instant) -> Rest {
        Rest { reason, until }
    }

    #[test]
    fn a_cell_rests_until_its_time_and_longer_rests_win() {
        let now = Instant::now();
        let cell = Cell::default();
        let until = |ms: u32| rest(Reason::Cooling, now + ms * MS);
        assert_eq!(cell.standing(now), Standing::Awake);
        assert!(cell.rest(until(100), now));
        assert!(!cell.rest(until(50), now), "already resting");
        assert_eq!(cell.standing(now + 99 * MS), Standing::Resting(until(100)));
        assert_eq!(cell.standing(now + 100 * MS), Standing::Due);
        assert!(!cell.rest(until(300), now + 200 * MS), "the same incident until somebody was answered");
        cell.wake();
        assert_eq!(cell.standing(now), Standing::Awake);
        assert!(cell.rest(until(400), now + 300 * MS));
    }

    #[test]
    fn one_goes_first_after_a_cooldown_and_the_gate_opens_by_time_or_answer() {
        let now = Instant::now();
        let cell = Arc::new(Cell::default());
        let claim = |at| Claim::of([&cell].into_iter(), at);
        cell.rest(rest(Reason::Cooling, now), now);
        let first = claim(now).unwrap();
        assert!(first.holds(&cell) && claim(now).is_none(), "one only");
        assert!(matches!(cell.standing(now), Standing::Resting(rest) if rest.until == now + 100 * MS));
        // It is given up without having been sent: the next one goes.
        drop(first);
        let second = claim(now).unwrap();
        second.sent(now + 10 * MS);
        assert_eq!(cell.standing(now + 110 * MS), Standing::Awake, "refusals are quick");
        // A refusal shuts it again, whoever gets it.
        cell.rest(rest(Reason::Cooling, now + 500 * MS), now + 200 * MS);
        let third = claim(now + 500 * MS).unwrap();
        cell.rest(rest(Reason::Cooling, now + 900 * MS), now + 520 * MS);
        drop(third);
        assert!(matches!(cell.standing(now + 899 * MS), Standing::Resting(_)));
        // An answer opens it at once.
        claim(now + 900 * MS).unwrap().open();
        assert_eq!(cell.standing(now + 900 * MS), Standing::Awake);
        drop(second);
    }

    #[test]
    fn other_gates_open_only_by_an_answer_and_a_slot_is_freed_after_a_while() {
        let now = Instant::now();
        let cell = Arc::new(Cell::default());
        cell.rest(rest(Reason::Credential, now), now);
        let claim = Claim::of([&cell].into_iter(), now).unwrap();
        claim.sent(now);
        assert!(matches!(cell.standing(now + 29_000 * MS), Standing::Resting(_)));
        assert_eq!(cell.standing(now + 30_000 * MS), Standing::Due);
        let next = Claim::of([&cell].into_iter(), now + 30_000 * MS).unwrap();
        // The late answer of the first is no business of the second's.
        claim.open();
        assert!(matches!(cell.standing(now + 30_001 * MS), Standing::Resting(_)));
        next.open();
        assert_eq!(cell.standing(now + 30_001 * MS), Standing::Awake);
    }

    #[test]
    fn memory_is_found_again_by_name() {
        let now = Instant::now();
        let memory = Memory::new(now);
        let (a, d) = (BackendName::new("a"), Deployment::parse("GPT").unwrap());
        let until = now + Duration::from_secs(1);
        memory.backend(&a).deployment(Some(&d)).cell.rest(rest(Reason::Absent, until), now);
        let same = Deployment::parse("gpt").unwrap();
        assert!(matches!(
            memory.backend(&a).deployment(Some(&same)).cell.standing(now),
            Standing::Resting(_)
        ));
        assert_eq!(memory.backend(&a).resting(now).len(), 1);
    }
}
