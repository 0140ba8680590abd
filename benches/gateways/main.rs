//! aoai-lb beside what people would put there instead, on one machine in one run.
//!
//! `make bench` runs everything; `cargo bench --bench gateways -- --help` says what else there is.
//! The gateway under test has the first core, the clients and the upstream share the others.
//! Subjects take turns within each run, so that a machine that changes its pace does so for all.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a program that measures and reports"
)]

mod bare;
mod http;
mod load;
mod report;
mod scale;
mod subjects;
#[path = "../../tests/support/mod.rs"]
mod support;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use openssl::ssl::{AlpnError, SslAcceptor, SslConnector, SslMethod, select_next_proto};

use self::load::Target;
use self::report::{Samples, Table};
use self::subjects::{Kind, Setting, Subject};
use self::upstream::{Answer, Pace, Transport, Upstream};

/// What the certificates are for, on both sides.
const HOST: &str = "balancer.test";
const BACKEND_KEY: &str = "key-of-the-resource";

/// The key of one of the clients that the balancer knows; the others take anything.
fn client_key(number: usize) -> String {
    format!("key-of-client-{number}")
}

#[derive(Parser)]
#[command(about = "Compares gateways in front of two upstreams")]
struct Options {
    /// Measurements of each subject in each scenario
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// How long each measurement takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only scenarios or curves whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Only subjects whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Where the results go as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// What a request costs with more backends, clients and streams
    Scale,
    /// Mixed load, and what happens to memory
    Soak { minutes: u64 },
}

/// What is asked of every subject.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    title: &'static str,
    work: Work,
    tls_upstream: bool,
    http2_upstream: bool,
    tls_listener: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Requests of so many bytes; then so many per second.
    Requests { body: usize, per_second: u32 },
    /// The same, where one of two upstreams always refuses.
    Failover { per_second: u32 },
    /// So many streams that are read.
    Streams { count: u32 },
    /// So many streams that are open and silent.
    Held { count: usize },
}

const SCENARIOS: [Scenario; 9] = [
    Scenario::new("json", "1 KB of JSON", Work::Requests { body: 1024, per_second: 1000 }),
    Scenario {
        tls_upstream: true,
        ..Scenario::new(
            "tls-upstream",
            "1 KB of JSON, TLS upstream",
            Work::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario {
        tls_upstream: true,
        tls_listener: true,
        ..Scenario::new(
            "tls-both",
            "1 KB of JSON, TLS on both sides",
            Work::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario {
        tls_upstream: true,
        http2_upstream: true,
        ..Scenario::new(
            "http2-upstream",
            "1 KB of JSON, HTTP/2 upstream",
            Work::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario::new("body-100k", "100 KB of JSON", Work::Requests { body: 100_000, per_second: 300 }),
    Scenario::new("body-1m", "1 MB of JSON", Work::Requests { body: 1_000_000, per_second: 50 }),
    Scenario::new(
        "failover",
        "1 KB of JSON, one of two backends always refuses",
        Work::Failover { per_second: 1000 },
    ),
    Scenario::new("streams", "200 streams of 50 events per second", Work::Streams { count: 200 }),
    Scenario::new("held", "2,000 streams, open and silent", Work::Held { count: 2000 }),
];

impl Scenario {
    const fn new(name: &'static str, title: &'static str, work: Work) -> Self {
        Self { name, title, work, tls_upstream: false, http2_upstream: false, tls_listener: false }
    }

    /// Why a subject is not in it.
    fn leaves_out(&self, kind: Kind) -> Option<&'static str> {
        match (kind, self.work) {
            (Kind::Nginx, _) if self.http2_upstream => Some("this version has no HTTP/2 upstream"),
            (Kind::HaProxy, Work::Failover { .. }) => Some("this version cannot retry a 429"),
            _ => None,
        }
    }

    fn answer(&self) -> Answer {
        match self.work {
            Work::Streams { .. } => Answer::Stream(EVENTS),
            Work::Held { .. } => {
                Answer::Stream(Pace { first: Duration::ZERO, events: 1, ends: false, ..EVENTS })
            }
            _ => Answer::Json,
        }
    }
}

const EVENTS: Pace =
    Pace { first: Duration::from_millis(5), every: Duration::from_millis(20), events: 50, ends: true };
/// Connections of clients where as many requests as will go are asked for.
const CONNECTIONS: usize = 32;
const WARM_UP: Duration = Duration::from_millis(300);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|command| command == bare::COMMAND) {
        bare::run(&arguments[1..]);
    }
    let options = Options::parse();
    prepare_process();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match options.command {
            None => compare(&options).await,
            Some(What::Scale) => scale::curves(&options).await,
            Some(What::Soak { minutes }) => scale::soak(minutes).await,
        }
    });
}

/// Thousands of connections, and away from the first core, which is the subject's.
fn prepare_process() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores > 1, "needs two cores: one for the gateway, one for clients and upstream");
    let pid = std::process::id().to_string();
    let rest = format!("1-{}", cores - 1);
    let done = std::process::Command::new("taskset").args(["-a", "-c", "-p", &rest, &pid]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What all measurements need.
struct Bench {
    directory: tempfile::TempDir,
    acceptors: [Arc<SslAcceptor>; 2],
    connector: Arc<SslConnector>,
    epoch: Instant,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = support::tls::authority();
        std::fs::write(directory.path().join("ca.pem"), authority.certificate.to_pem().unwrap()).unwrap();
        support::tls::write_pair(directory.path(), &authority, 30);
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_ca_file(directory.path().join("ca.pem")).unwrap();
        let connector = Arc::new(connector.build());
        let acceptors =
            [&b"\x08http/1.1"[..], b"\x02h2"].map(|protocols| acceptor(directory.path(), protocols));
        Self { directory, acceptors, connector, epoch: Instant::now() }
    }

    fn transport(&self, tls: bool, http2: bool) -> Transport {
        let [http1, h2] = &self.acceptors;
        match (tls, http2) {
            (false, _) => Transport::Plain,
            (true, false) => Transport::Tls(Arc::clone(http1)),
            (true, true) => Transport::Http2(Arc::clone(h2)),
        }
    }

    fn setting<'a>(&'a self, scenario: &Scenario, upstreams: &'a [SocketAddr]) -> Setting<'a> {
        Setting {
            directory: self.directory.path(),
            upstreams,
            tls_upstream: scenario.tls_upstream,
            http2_upstream: scenario.http2_upstream,
            tls_listener: scenario.tls_listener,
            clients: 1,
        }
    }

    fn target(&self, address: SocketAddr, scenario: &Scenario) -> Target {
        let body = match scenario.work {
            Work::Requests { body, .. } => body,
            _ => 1024,
        };
        let streams = matches!(scenario.work, Work::Streams { .. } | Work::Held { .. });
        Target {
            address,
            tls: scenario.tls_listener.then(|| Arc::clone(&self.connector)),
            requests: Arc::from([load::request(&client_key(0), body, streams)]),
        }
    }
}

fn acceptor(directory: &Path, protocols: &'static [u8]) -> Arc<SslAcceptor> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate_chain_file(directory.join("cert.pem")).unwrap();
    acceptor.set_private_key_file(directory.join("key.pem"), openssl::ssl::SslFiletype::PEM).unwrap();
    acceptor.set_alpn_select_callback(move |_, client| {
        select_next_proto(protocols, client).ok_or(AlpnError::NOACK)
    });
    Arc::new(acceptor.build())
}

async fn compare(options: &Options) {
    let bench = Bench::new();
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        let is_wanted =
            options.subjects.is_empty() || options.subjects.iter().any(|part| kind.name().contains(part));
        match kind.version() {
            Some(version) if is_wanted => kinds.push((kind, version)),
            Some(_) => {}
            None => eprintln!("{} is not installed, and left out", kind.name()),
        }
    }
    let mut report = report::Report::new(options.runs, &kinds);
    for scenario in &SCENARIOS {
        if options.only.as_ref().is_none_or(|part| scenario.name.contains(part)) {
            let kinds: Vec<_> = kinds.iter().map(|(kind, _)| *kind).collect();
            let table = measure(&bench, scenario, &kinds, options).await.unwrap();
            println!("{}", table.as_markdown());
            report.tables.push(table);
        }
    }
    println!("{}", report.summary());
    if let Some(path) = &options.json {
        std::fs::write(path, report.as_json()).unwrap();
    }
}

/// All subjects in one scenario.
async fn measure(bench: &Bench, scenario: &Scenario, kinds: &[Kind], options: &Options) -> io::Result<Table> {
    let transport = bench.transport(scenario.tls_upstream, scenario.http2_upstream);
    let first =
        if matches!(scenario.work, Work::Failover { .. }) { Answer::Refusal } else { scenario.answer() };
    let upstreams = [
        Upstream::start(first, transport.clone(), bench.epoch).await?,
        Upstream::start(scenario.answer(), transport, bench.epoch).await?,
    ];
    let addresses = upstreams.each_ref().map(|upstream| upstream.address);
    let setting = bench.setting(scenario, &addresses);
    let mut table = Table::new(scenario.name, scenario.title);
    // What the machine itself takes, without anybody between.
    let direct = Upstream::start(scenario.answer(), Transport::Plain, bench.epoch).await?;
    let mut subjects = Vec::new();
    for kind in kinds {
        match scenario.leaves_out(*kind) {
            Some(why) => table.left_out.push((kind.name(), why)),
            None => subjects.push(*kind),
        }
    }
    if let Work::Held { count } = scenario.work {
        for _ in 0..options.runs {
            for kind in &subjects {
                // Each time a fresh process.
                let subject = Subject::start(*kind, &setting)?;
                let target = bench.target(subject.address, scenario);
                table.add(*kind, held(&subject, &target, count).await?);
            }
        }
        return Ok(table);
    }
    let subjects: Vec<_> =
        subjects.iter().map(|kind| Subject::start(*kind, &setting)).collect::<Result<_, _>>()?;
    let length = Duration::from_secs_f64(options.seconds);
    for _ in 0..options.runs {
        let plain = Scenario { tls_listener: false, ..*scenario };
        let floor = latencies(bench, &bench.target(direct.address, &plain), scenario, length).await;
        for subject in &subjects {
            let target = bench.target(subject.address, scenario);
            let idle = subject.memory();
            upstreams.iter().for_each(|upstream| upstream.asked.store(0, Ordering::Relaxed));
            let (cpu, mut samples) = load(bench, subject, &target, scenario, length).await;
            let [refused, answered] =
                upstreams.each_ref().map(|upstream| upstream.asked.load(Ordering::Relaxed));
            for (name, value) in &latencies(bench, &target, scenario, length).await {
                let without = floor.iter().find(|(other, _)| other == name).map_or(0.0, |(_, value)| *value);
                samples.push((name, (value - without).max(0.0)));
            }
            if matches!(scenario.work, Work::Failover { .. }) {
                samples.push(("refused_first_percent", refused as f64 * 100.0 / answered.max(1) as f64));
            }
            samples.push(("cpu_us", cpu));
            samples.push(("memory_before_kib", idle as f64));
            samples.push(("memory_kib", subject.memory() as f64));
            table.add(subject.kind, samples);
        }
    }
    Ok(table)
}

/// What a unit of work costs in microseconds, and what else was seen while it was done.
async fn load(
    bench: &Bench,
    subject: &Subject,
    target: &Target,
    scenario: &Scenario,
    length: Duration,
) -> (f64, Samples) {
    if let Work::Streams { count } = scenario.work {
        let before = subject.cpu();
        let seen = load::streams(target, count, length, bench.epoch).await;
        let cost = (subject.cpu() - before).as_secs_f64() * 1e6 / seen.events.max(1) as f64;
        return (cost, vec![("failures", seen.failures as f64)]);
    }
    load::saturate(target, CONNECTIONS, WARM_UP).await;
    let (before, begun) = (subject.cpu(), Instant::now());
    let seen = load::saturate(target, CONNECTIONS, length).await;
    let (used, elapsed) = ((subject.cpu() - before).as_secs_f64(), begun.elapsed().as_secs_f64());
    let samples = vec![
        ("failures", seen.failures as f64),
        ("per_second", seen.answers as f64 / elapsed),
        ("busy_percent", used * 100.0 / elapsed),
    ];
    (used * 1e6 / seen.answers.max(1) as f64, samples)
}

/// What clients wait for, in microseconds.
async fn latencies(bench: &Bench, target: &Target, scenario: &Scenario, length: Duration) -> Samples {
    let micros = |sorted: &[Duration], part: f64| {
        let at = ((sorted.len().max(1) - 1) as f64 * part) as usize;
        sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    };
    match scenario.work {
        Work::Streams { count } => {
            let seen = load::streams(target, count, length, bench.epoch).await;
            vec![
                ("first_p50_us", micros(&seen.first, 0.5)),
                ("first_p99_us", micros(&seen.first, 0.99)),
                ("later_p50_us", micros(&seen.later, 0.5)),
                ("later_p99_us", micros(&seen.later, 0.99)),
            ]
        }
        Work::Requests { per_second, .. } | Work::Failover { per_second } => {
            let seen = load::pace(target, CONNECTIONS as u32, per_second, length).await;
            vec![("p50_us", micros(&seen.latencies, 0.5)), ("p99_us", micros(&seen.latencies, 0.99))]
        }
        Work::Held { .. } => Vec::new(),
    }
}

async fn held(subject: &Subject, target: &Target, count: usize) -> io::Result<Samples> {
    let idle = subject.memory();
    let streams = load::hold(target, count).await?;
    let full = subject.memory();
    drop(streams);
    let each = full.saturating_sub(idle) as f64 / count as f64;
    Ok(vec![("memory_kib", idle as f64), ("each_kib", each)])
}
