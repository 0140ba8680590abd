//! Storms of one client beside 100 streams and 1,000 small requests per second of another one, on the running binary.
//!
//! `cargo bench --bench storms` prints a table and fails if a request of the other client failed, if its p99 grew to
//! more than twice of what it was before, or if the memory exceeded its budgets. The balancer has the first core, the
//! clients and the simulated resources have the others: the times mean nothing while the machine does other work.
//!
//! With two cores, a storm also takes from the other client the core that its own requests are made on. So the storm
//! is made by a thread of the lowest priority, as if on a machine of its own, and a third client sends requests
//! straight to a simulated resource: by what its p99 grows, that of the other client may grow as well.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that prints its results"
)]

mod calm_client;
#[allow(dead_code, unused_imports, reason = "a benchmark uses a part of the harness")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, Mood, SimulatedError, SimulatedResource, Simulator};
use clap::Parser;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::calm_client::{CalmClient, CalmStats, STREAM_DEPLOYMENT};
use self::support::storms::{STORM_DEPLOYMENT, Storm, storm_clients_yaml};
use self::support::{Balancer, CLIENT_KEY, instant_resource, simulated_backend_yaml};

const STORM_WORKERS: usize = 16;
/// Between two actions of a task, on average: 800 a second at most.
const STORM_PAUSE: Duration = Duration::from_millis(20);
/// Before each event of a stream.
const EVENT_INTERVAL: Duration = Duration::from_millis(20);
/// How often memory is read.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);
/// Memory has this long to shrink after a storm.
const REST: Duration = Duration::from_secs(12);
/// The budgets that a storm may use up: bodies, records that wait for the disk, and connections of its address.
const BODY_MEMORY_MIB: u64 = 64;
const RECORD_QUEUE_MIB: u64 = 192;
const CONNECTIONS_MIB: u64 = 4096 * 12 / 1024;
/// `getconf CLK_TCK`, the same on all Linux systems.
const TICKS_PER_SECOND: u64 = 100;
const MAX_P99_RATIO: f64 = 2.0;
/// The niceness of the thread of a storm.
const LOWEST_PRIORITY: i32 = 19;
/// How many of the other client's requests there is one of, straight to the resource.
const REQUESTS_PER_DIRECT_REQUEST: u32 = 10;
const DIRECT_RESOURCE: &str = "direct";

#[derive(Parser)]
#[command(about = "Storms of one client beside the load of another")]
struct StormOptions {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Small requests per second of the other client
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Streams of the other client at the same time
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// Only storms whose name has this part
    #[arg(long, default_value = "")]
    only: String,
    /// Connections and responses that the storm keeps open
    #[arg(long, default_value_t = 1000)]
    kept: usize,
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured of one storm.
struct StormResult {
    calm: CalmStats,
    stormy: CalmStats,
    /// Of the requests that do not pass the balancer, before and during the storm.
    direct: [CalmStats; 2],
    actions: usize,
    calm_kib: u64,
    peak_kib: u64,
    rested_kib: u64,
    /// How busy the balancer and this process were during the storm, in percent of one core.
    cpu_percent: [u64; 2],
}

fn main() -> ExitCode {
    let options = StormOptions::parse();
    pin(std::process::id(), "1-");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(&options))
}

/// Keeps all threads of a process on the first core (`0`), or off it (`1-`).
fn pin(pid: u32, cores: &str) {
    let last_core = std::thread::available_parallelism().unwrap().get() - 1;
    let cores = if cores == "0" { cores.to_owned() } else { format!("{cores}{}", last_core.max(1)) };
    let output = Command::new("taskset").args(["-a", "-c", "-p", &cores, &pid.to_string()]).output().unwrap();
    assert!(output.status.success(), "two cores are needed: {}", String::from_utf8_lossy(&output.stderr));
}

async fn run(options: &StormOptions) -> ExitCode {
    let rejections = [
        Mood::Refuses(SimulatedError::InvalidKey),
        Mood::Refuses(SimulatedError::ServerError),
        Mood::Throttled { retry_after_ms: None, retry_after: Some("20".to_owned()) },
    ];
    let rejected = rejections.into_iter().map(|mood| (Storm::Rejected, mood));
    let others = [Storm::Malformed, Storm::Unread, Storm::LargePrompts, Storm::StalledUploads];
    let storms = rejected.chain(others.map(|storm| (storm, Mood::Calm)));
    println!(
        "| storm | actions | requests | streams | failed | p50, p99 before (ms) | during | without balancer before | during | p99 of streams before | during | MiB before, most, {} s later | CPU % of balancer, of clients |",
        REST.as_secs()
    );
    println!("| --- |{}", " ---: |".repeat(12));
    let mut is_good = true;
    for (storm, mood) in storms {
        let name = if storm == Storm::Rejected { format!("{mood:?}") } else { format!("{storm:?}") };
        if !name.contains(&options.only) {
            continue;
        }
        let result = measure(options, storm, mood).await;
        print_row(&name, &result);
        is_good &= is_within_limits(&result);
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(options: &StormOptions, storm: Storm, storm_mood: Mood) -> StormResult {
    let azure = start_azure(storm_mood).await;
    let names = ["gpt-4o", STORM_DEPLOYMENT, STREAM_DEPLOYMENT].map(|name| format!("{name}: {name}"));
    let deployments = format!("deployments: {{ {} }}", names.join(", "));
    let backends = ["a", "b"].map(|name| simulated_backend_yaml(&azure, name, &deployments)).concat();
    let extra_yaml = format!(
        "requests: {{ max_body: 1MiB, max_streamed_body: 1MiB, body_memory: {BODY_MEMORY_MIB}MiB }}\nserver: {{ threads: 1, drain_delay: 0s }}\nretry: {{ outage: 0s }}"
    );
    let balancer = Balancer::start_with_clients(&backends, &storm_clients_yaml(), &extra_yaml).await;
    pin(balancer.pid(), "0");
    let client = CalmClient::start(balancer.address, options.rate, options.streams);
    let direct_address = azure.address(DIRECT_RESOURCE);
    let direct_client = CalmClient::start(direct_address, options.rate / REQUESTS_PER_DIRECT_REQUEST, 0);
    let length = Duration::from_secs(options.seconds);
    // The first seconds fill caches and pools.
    sleep(length / 4).await;
    client.take_stats();
    direct_client.take_stats();
    sleep(length).await;
    let (calm, calm_kib) = (client.take_stats(), resident_kib(&balancer));
    let direct_before = direct_client.take_stats();
    let pids = [balancer.pid(), std::process::id()];
    let ticks_before = pids.map(cpu_ticks);
    let running_storm = RunningStorm::start(storm, balancer.address, options.kept);
    let (mut peak_kib, mut left) = (calm_kib, length);
    while !left.is_zero() {
        sleep(MEMORY_INTERVAL).await;
        peak_kib = peak_kib.max(resident_kib(&balancer));
        left = left.saturating_sub(MEMORY_INTERVAL);
    }
    let stormy = client.take_stats();
    let direct = [direct_before, direct_client.take_stats()];
    let percent =
        |after: u64, before: u64| after.saturating_sub(before) * 100 / TICKS_PER_SECOND / options.seconds;
    let [balancer_ticks, own_ticks] = pids.map(cpu_ticks);
    let cpu_percent = [percent(balancer_ticks, ticks_before[0]), percent(own_ticks, ticks_before[1])];
    let actions = running_storm.stop();
    client.stop().await;
    direct_client.stop().await;
    sleep(REST).await;
    StormResult {
        calm,
        stormy,
        direct,
        actions,
        calm_kib,
        peak_kib,
        rested_kib: resident_kib(&balancer),
        cpu_percent,
    }
}

/// Two resources whose streams take their time, and that have this mood for the deployment of the storm.
async fn start_azure(storm_mood: Mood) -> Simulator {
    let moods_by_deployment = HashMap::from([
        (STORM_DEPLOYMENT.to_owned(), storm_mood),
        (STREAM_DEPLOYMENT.to_owned(), Mood::Drip(EVENT_INTERVAL)),
    ]);
    let mood = Mood::PerDeployment { moods_by_deployment, default_mood: Box::new(Mood::Calm) };
    let resources: Vec<SimulatedResource> = ["a", "b"]
        .map(|name| {
            instant_resource(name, DeploymentKind::Unlimited)
                .with_deployment(STORM_DEPLOYMENT, "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
                .with_deployment(STREAM_DEPLOYMENT, "gpt-4o-2024-11-20", DeploymentKind::Unlimited)
                .with_mood(mood.clone())
        })
        .into();
    let direct = instant_resource(DIRECT_RESOURCE, DeploymentKind::Unlimited).with_api_key(CLIENT_KEY);
    Simulator::start(resources.into_iter().chain([direct]).collect()).await.unwrap()
}

/// A storm, on a thread of its own.
struct RunningStorm {
    stop_sender: oneshot::Sender<()>,
    thread: JoinHandle<usize>,
}

impl RunningStorm {
    /// Begins at once. `kept` is the number of connections and responses that it keeps open.
    fn start(storm: Storm, address: SocketAddr, kept: usize) -> Self {
        let (stop_sender, stopped) = oneshot::channel();
        let run = move || {
            // On Linux the priority is that of the thread.
            rustix::process::nice(LOWEST_PRIORITY).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let actions = Arc::<AtomicUsize>::default();
                let mut workers = JoinSet::new();
                for _ in 0..STORM_WORKERS {
                    workers.spawn(act_again_and_again(
                        storm,
                        address,
                        kept / STORM_WORKERS,
                        Arc::clone(&actions),
                    ));
                }
                let _ = stopped.await;
                workers.shutdown().await;
                actions.load(Ordering::Relaxed)
            })
        };
        Self { stop_sender, thread: std::thread::spawn(run) }
    }

    /// Returns how many actions there were.
    fn stop(self) -> usize {
        self.stop_sender.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

async fn act_again_and_again(storm: Storm, address: SocketAddr, kept: usize, actions: Arc<AtomicUsize>) {
    let mut kept_results = VecDeque::new();
    loop {
        kept_results.push_back(storm.act(address).await);
        actions.fetch_add(1, Ordering::Relaxed);
        if kept_results.len() > kept {
            kept_results.pop_front();
        }
        // Not always the same: the tasks are not to act all at once.
        sleep(STORM_PAUSE.mul_f64(2.0 * fastrand::f64())).await;
    }
}

fn resident_kib(balancer: &Balancer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The processor time that a process has used, in ticks of the kernel (`man 5 proc_pid_stat`).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may contain spaces.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn print_row(name: &str, result: &StormResult) {
    let StormResult { calm, stormy, direct, actions, calm_kib, peak_kib, rested_kib, cpu_percent } = result;
    let times = |stats: &CalmStats| format!("{:.1}, {:.1}", stats.request_ms(0.5), stats.request_ms(0.99));
    println!(
        "| {name} | {actions} | {} | {} | {} | {} | {} | {} | {} | {:.0} | {:.0} | {}, {}, {} | {}, {} |",
        calm.requests.len() + stormy.requests.len(),
        calm.streams.len() + stormy.streams.len(),
        calm.failures.len() + stormy.failures.len(),
        times(calm),
        times(stormy),
        times(&direct[0]),
        times(&direct[1]),
        calm.stream_ms(0.99),
        stormy.stream_ms(0.99),
        calm_kib / 1024,
        peak_kib / 1024,
        rested_kib / 1024,
        cpu_percent[0],
        cpu_percent[1],
    );
    for failure in calm.failures.iter().chain(&stormy.failures).take(5) {
        println!("failed: {failure}");
    }
}

fn is_within_limits(result: &StormResult) -> bool {
    let StormResult { calm, stormy, direct: [direct_before, direct_during], calm_kib, peak_kib, .. } = result;
    let machine_ms = (direct_during.request_ms(0.99) - direct_before.request_ms(0.99)).max(0.0);
    let budget_kib = (BODY_MEMORY_MIB + RECORD_QUEUE_MIB + CONNECTIONS_MIB) * 1024;
    calm.failures.is_empty()
        && stormy.failures.is_empty()
        && stormy.request_ms(0.99) <= MAX_P99_RATIO * calm.request_ms(0.99) + machine_ms
        && stormy.stream_ms(0.99) <= MAX_P99_RATIO * calm.stream_ms(0.99)
        && peak_kib.saturating_sub(*calm_kib) <= budget_kib
}
