//! The registry of instances: each says once a second that it lives, and sees the others.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use log::warn;
use redis::{Script, cmd};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::error::SharedError;
use super::link::SharedLink;
use super::listing::{Instance, REGISTER_SCRIPT, parse_listing};
use crate::state::StateDirectory;
use crate::state::instances::{FILE_NAME, parse, to_text};

/// How often an instance says that it lives.
const REGISTER_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take to answer that.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an instance that stops waits until it is taken out.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(250);
/// After a connection is made, others may not have registered yet with a server that began empty. For so long the
/// number of instances only grows.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// What the rate of requests is measured over.
const RATE_WINDOW: usize = 10;
/// What follows if the file cannot be used.
const SET_ASIDE: &str = "one instance is assumed until the server has told how many there are";

/// The instances that were seen last.
#[derive(Clone, Debug, PartialEq)]
pub struct Instances {
    /// This one first. While there is no connection, as it was before.
    pub list: Vec<Instance>,
    /// How many there were, also before this process started; at least 1.
    pub last_seen_count: usize,
    /// When the list was made; `None` if there was none yet.
    pub seen_at: Option<SystemTime>,
}

/// What an instance has to do at a moment.
#[derive(Clone, Copy, Debug)]
pub struct InstanceLoad {
    /// How many requests it has finished since it started.
    pub requests_finished: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that wait in its queue.
    pub queued: usize,
    /// The state of the whole, as it sees it.
    pub state: &'static str,
}

/// Measures the load of this process; `None` if it is gone.
type MeasureLoad = Box<dyn Fn() -> Option<InstanceLoad> + Send + Sync>;

/// This instance and the others.
pub struct InstanceRegistry {
    link: Arc<SharedLink>,
    runtime: Handle,
    id: String,
    name: String,
    started_at: SystemTime,
    measure_load: MeasureLoad,
    instances: ArcSwap<Instances>,
    /// `None` before this process has joined, and after it has left.
    membership: Mutex<Option<Membership>>,
}

impl fmt::Debug for InstanceRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceRegistry").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Membership {
    task: AbortHandle,
}

impl InstanceRegistry {
    /// A registry that this process has not joined yet.
    pub fn new(
        link: &Arc<SharedLink>,
        measure_load: impl Fn() -> Option<InstanceLoad> + Send + Sync + 'static,
        runtime: &Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            link: Arc::clone(link),
            runtime: runtime.clone(),
            id: format!("{:016x}", fastrand::u64(..)),
            name: format!("{}/{}", host_name(), std::process::id()),
            started_at: SystemTime::now(),
            measure_load: Box::new(measure_load),
            instances: ArcSwap::from_pointee(Instances {
                list: Vec::new(),
                last_seen_count: 1,
                seen_at: None,
            }),
            membership: Mutex::default(),
        })
    }

    /// Registers this process from now on. The number of instances is read from the directory, and kept there.
    pub fn join(self: &Arc<Self>, directory: Option<Arc<StateDirectory>>) {
        if let Some(count) = directory.as_deref().and_then(read_count) {
            self.instances.rcu(|known| Instances { last_seen_count: count, ..Instances::clone(known) });
        }
        let registration = Registration {
            registry: Arc::clone(self),
            directory,
            saved_count: 0,
            rate: RateMeter::default(),
            connected_at: Instant::now(),
        };
        let task = self.runtime.spawn(registration.run()).abort_handle();
        let membership = self.lock_membership().replace(Membership { task });
        if let Some(earlier) = membership {
            earlier.task.abort();
        }
    }

    /// Takes this process out: it stops, or another one takes over for it. Waits until the server has confirmed it,
    /// but not for long. Afterwards it does not use the directory any more.
    pub fn leave(&self) {
        let Some(Membership { task }) = self.lock_membership().take() else { return };
        task.abort();
        if !self.link.is_up() {
            return;
        }
        let (done, is_done) = sync_channel(1);
        let (link, id) = (Arc::clone(&self.link), self.id.clone());
        self.runtime.spawn(async move {
            let mut command = cmd("HDEL");
            command.arg(instances_key(&link)).arg(id);
            // If it fails, the others notice within five seconds.
            let _ = link.run(&command, LEAVE_TIMEOUT).await;
            let _ = done.send(());
        });
        let _ = is_done.recv_timeout(LEAVE_TIMEOUT);
    }

    /// The id of this process. It is random.
    pub fn own_id(&self) -> &str {
        &self.id
    }

    /// The instances that were seen last.
    pub fn instances(&self) -> Arc<Instances> {
        self.instances.load_full()
    }

    fn lock_membership(&self) -> std::sync::MutexGuard<'_, Option<Membership>> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this process lives, and returns all that do.
    async fn register(
        &self,
        load: Option<InstanceLoad>,
        requests_per_second: f64,
    ) -> Result<Vec<Instance>, SharedError> {
        let own = Instance {
            id: self.id.clone(),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: Some(self.started_at),
            requests_per_second,
            in_flight: load.map(|load| load.in_flight as u64),
            queued: load.map(|load| load.queued as u64),
            state: load.map(|load| load.state.to_owned()),
            is_self: true,
        };
        list_instances(&self.link, Some(&own)).await
    }
}

/// All living instances, after this one has been registered.
async fn list_instances(link: &SharedLink, own: Option<&Instance>) -> Result<Vec<Instance>, SharedError> {
    let script = Script::new(REGISTER_SCRIPT);
    let mut invocation = script.prepare_invoke();
    let (id, told) = own.map_or_else(Default::default, |own| (own.id.clone(), own.to_text()));
    invocation.key(instances_key(link)).arg(&id).arg(told);
    parse_listing(&link.run_script(&invocation, REGISTER_TIMEOUT).await?, &id)
}

fn instances_key(link: &SharedLink) -> String {
    link.keys().key("instances")
}

/// The task that registers a process again and again.
struct Registration {
    registry: Arc<InstanceRegistry>,
    directory: Option<Arc<StateDirectory>>,
    saved_count: usize,
    rate: RateMeter,
    connected_at: Instant,
}

impl Registration {
    async fn run(mut self) {
        let mut state = self.registry.link.watch_state();
        let mut ticks = interval(REGISTER_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_problem = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // At once, when there is a connection.
                _ = state.changed() => self.connected_at = Instant::now(),
            }
            let load = (self.registry.measure_load)();
            let rate = load.map_or(0.0, |load| self.rate.observe(Instant::now(), load.requests_finished));
            match self.registry.register(load, rate).await {
                Ok(list) => {
                    last_problem = None;
                    self.on_listed(list).await;
                }
                // Told by the link.
                Err(SharedError::Down | SharedError::Lost | SharedError::TimedOut(_)) => {}
                Err(error) => {
                    let problem = error.to_string();
                    if last_problem.as_ref() != Some(&problem) {
                        warn!("shared.redis: this instance cannot be registered: {problem}");
                        last_problem = Some(problem);
                    }
                }
            }
        }
    }

    async fn on_listed(&mut self, list: Vec<Instance>) {
        let before = self.registry.instances.load().last_seen_count;
        let count = next_count(before, list.len(), self.connected_at.elapsed());
        let seen_at = Some(SystemTime::now());
        self.registry.instances.store(Arc::new(Instances { list, last_seen_count: count, seen_at }));
        let Some(directory) = self.directory.clone().filter(|_| count != self.saved_count) else { return };
        let written = spawn_blocking(move || directory.replace(FILE_NAME, to_text(count).as_bytes())).await;
        match written {
            Ok(Err(problem)) => {
                warn!("server.state_directory: {FILE_NAME} cannot be written: {problem}");
                // Once, not each second.
                self.saved_count = count;
            }
            _ => self.saved_count = count,
        }
    }
}

/// How many instances there are, after so many were seen so long after the connection was made.
fn next_count(before: usize, seen: usize, connected_for: Duration) -> usize {
    let seen = seen.max(1);
    if connected_for < SETTLE_TIME { seen.max(before) } else { seen }
}

/// The number that the directory has, if it has one.
fn read_count(directory: &StateDirectory) -> Option<usize> {
    match directory.read(FILE_NAME) {
        Ok(text) => match parse(&text?) {
            Ok(count) => return Some(count),
            Err(problem) => directory.set_aside_and_log(FILE_NAME, SET_ASIDE, &problem),
        },
        Err(problem) => directory.set_aside_and_log(FILE_NAME, SET_ASIDE, &problem),
    }
    None
}

/// The name of this machine.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// Requests per second over the last observations.
#[derive(Debug, Default)]
struct RateMeter {
    observations: VecDeque<(Instant, usize)>,
}

impl RateMeter {
    /// The rate up to `now`, when so many requests have finished; rounded to a tenth.
    fn observe(&mut self, now: Instant, finished: usize) -> f64 {
        let (first_at, first) = *self.observations.front().unwrap_or(&(now, finished));
        self.observations.push_back((now, finished));
        if self.observations.len() > RATE_WINDOW {
            self.observations.pop_front();
        }
        let seconds = now.saturating_duration_since(first_at).as_secs_f64();
        let rate = if seconds > 0.0 { finished.saturating_sub(first) as f64 / seconds } else { 0.0 };
        (rate * 10.0).round() / 10.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_instances_falls_only_when_all_have_had_time_to_register() {
        let seconds = Duration::from_secs;
        for (before, seen, connected_for, expected) in [
            (1, 3, seconds(0), 3),
            (3, 1, seconds(0), 3),
            (3, 1, Duration::from_millis(2_999), 3),
            (3, 1, seconds(3), 1),
            (3, 2, seconds(60), 2),
            (1, 0, seconds(60), 1),
        ] {
            assert_eq!(
                next_count(before, seen, connected_for),
                expected,
                "{before} {seen} {connected_for:?}"
            );
        }
    }

    #[test]
    fn a_rate_is_of_the_last_ten_seconds() {
        let (mut rate, start) = (RateMeter::default(), Instant::now());
        let at = |second: u64| start + Duration::from_secs(second);
        assert_eq!(rate.observe(at(0), 100), 0.0);
        assert_eq!(rate.observe(at(1), 125), 25.0);
        assert_eq!(rate.observe(at(4), 125), 6.3);
        for second in 5..20 {
            rate.observe(at(second), 125);
        }
        assert_eq!(rate.observe(at(20), 125), 0.0);
    }

    #[test]
    fn a_number_that_cannot_be_read_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(read_count(&state), None);
        state.replace(FILE_NAME, to_text(4).as_bytes()).unwrap();
        assert_eq!(read_count(&state), Some(4));
        state.replace(FILE_NAME, b"four").unwrap();
        assert_eq!((read_count(&state), state.read(FILE_NAME).unwrap()), (None, None));
    }
}
