//! Compares aoai-lb with nginx, HAProxy, Envoy and a bare Pingora proxy on one machine.
//!
//! `make bench` runs everything; `cargo bench --bench gateways -- --help` lists the options. The gateway
//! under test runs on the first core, the clients and the upstream share the others. The gateways take turns
//! within each run, so that changes of the speed of the machine affect all of them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that prints its results"
)]

mod bare;
mod http;
mod load;
mod report;
mod running_gateway;
mod scale;
#[allow(dead_code, unused_imports, reason = "a benchmark uses a part of the harness")]
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

use self::load::LoadTarget;
use self::report::{Samples, ScenarioTable};
use self::running_gateway::{GatewayKind, GatewaySetup, RunningGateway};
use self::upstream::{BenchUpstream, EventPace, Transport, UpstreamBehaviour};

/// The host name in the certificates of both sides.
const HOST: &str = "balancer.test";
const BACKEND_KEY: &str = "key-of-the-resource";

/// The key of a client of the balancer. The other gateways accept any key.
fn client_key(number: usize) -> String {
    format!("key-of-client-{number}")
}

#[derive(Parser)]
#[command(about = "Compares gateways in front of two upstreams")]
struct BenchOptions {
    /// Number of measurements of each gateway in each scenario
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Duration of each measurement in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Run only scenarios or curves whose name contains this text
    #[arg(long)]
    only: Option<String>,
    /// Run only gateways whose name contains one of these texts
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Write the results as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Added by cargo, ignored
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<BenchCommand>,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure the cost of a request with more and more backends, clients and streams
    Scale,
    /// Run mixed load and print memory every ten seconds
    Soak { minutes: u64 },
}

/// A scenario that every gateway runs.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    title: &'static str,
    work: Workload,
    tls_upstream: bool,
    http2_upstream: bool,
    tls_listener: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Workload {
    /// As many requests of `body` bytes as possible; then `per_second`, for the latencies and for the cost when the
    /// gateway is not busy: then nothing is done for several requests at once.
    Requests { body: usize, per_second: u32 },
    /// The same, while one of two upstreams always refuses.
    Failover { per_second: u32 },
    /// This many streams that are read.
    Streams { count: u32 },
    /// This many streams that are open and silent.
    Held { count: usize },
}

const SCENARIOS: [Scenario; 9] = [
    Scenario::new("json", "1 KB of JSON", Workload::Requests { body: 1024, per_second: 1000 }),
    Scenario {
        tls_upstream: true,
        ..Scenario::new(
            "tls-upstream",
            "1 KB of JSON, TLS upstream",
            Workload::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario {
        tls_upstream: true,
        tls_listener: true,
        ..Scenario::new(
            "tls-both",
            "1 KB of JSON, TLS on both sides",
            Workload::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario {
        tls_upstream: true,
        http2_upstream: true,
        ..Scenario::new(
            "http2-upstream",
            "1 KB of JSON, HTTP/2 upstream",
            Workload::Requests { body: 1024, per_second: 1000 },
        )
    },
    Scenario::new("body-100k", "100 KB of JSON", Workload::Requests { body: 100_000, per_second: 200 }),
    Scenario::new("body-1m", "1 MB of JSON", Workload::Requests { body: 1_000_000, per_second: 50 }),
    Scenario::new(
        "failover",
        "1 KB of JSON, one of two backends always refuses",
        Workload::Failover { per_second: 1000 },
    ),
    Scenario::new("streams", "200 streams of 50 events per second", Workload::Streams { count: 200 }),
    Scenario::new("held", "2,000 streams, open and silent", Workload::Held { count: 2000 }),
];

impl Scenario {
    const fn new(name: &'static str, title: &'static str, work: Workload) -> Self {
        Self { name, title, work, tls_upstream: false, http2_upstream: false, tls_listener: false }
    }

    /// Why a gateway cannot run this scenario, if so.
    fn exclusion_reason(&self, kind: GatewayKind) -> Option<&'static str> {
        match (kind, self.work) {
            (GatewayKind::Nginx, _) if self.http2_upstream => Some("this version has no HTTP/2 upstream"),
            (GatewayKind::HaProxy, Workload::Failover { .. }) => Some("this version cannot retry a 429"),
            _ => None,
        }
    }

    fn upstream_behaviour(&self) -> UpstreamBehaviour {
        match self.work {
            Workload::Streams { .. } => UpstreamBehaviour::Stream(STREAM_PACE),
            Workload::Held { .. } => UpstreamBehaviour::Stream(EventPace {
                first_event_delay: Duration::ZERO,
                event_count: 1,
                ends: false,
                ..STREAM_PACE
            }),
            _ => UpstreamBehaviour::Json,
        }
    }
}

const STREAM_PACE: EventPace = EventPace {
    first_event_delay: Duration::from_millis(5),
    event_interval: Duration::from_millis(20),
    event_count: 50,
    ends: true,
};
/// The number of client connections in measurements of requests.
const CLIENT_CONNECTIONS: usize = 32;
const WARM_UP_TIME: Duration = Duration::from_millis(300);
/// The longest measurement at a fixed rate, unless all are longer.
const MAX_PACED_TIME: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|command| command == bare::BARE_COMMAND) {
        bare::run(&arguments[1..]);
    }
    let options = BenchOptions::parse();
    raise_file_limit_and_pin_cores();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match options.command {
            None => compare_gateways(&options).await,
            Some(BenchCommand::Scale) => scale::print_cost_curves(&options).await,
            Some(BenchCommand::Soak { minutes }) => scale::run_soak(minutes).await,
        }
    });
}

/// Allows thousands of connections, and keeps this process off the first core, which the gateway uses.
fn raise_file_limit_and_pin_cores() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores > 1, "two cores are needed: one for the gateway, one for clients and upstream");
    let pid = std::process::id().to_string();
    let other_cores = format!("1-{}", cores - 1);
    let output =
        std::process::Command::new("taskset").args(["-a", "-c", "-p", &other_cores, &pid]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Shared by all measurements.
struct BenchContext {
    directory: tempfile::TempDir,
    acceptors: [Arc<SslAcceptor>; 2],
    connector: Arc<SslConnector>,
    epoch: Instant,
}

impl BenchContext {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = support::tls::generate_authority();
        std::fs::write(directory.path().join("ca.pem"), authority.certificate.to_pem().unwrap()).unwrap();
        support::tls::write_certificate_and_key(directory.path(), &authority, 30);
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_ca_file(directory.path().join("ca.pem")).unwrap();
        let connector = Arc::new(connector.build());
        let acceptors =
            [&b"\x08http/1.1"[..], b"\x02h2"].map(|protocols| tls_acceptor(directory.path(), protocols));
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

    fn gateway_setup<'a>(&'a self, scenario: &Scenario, upstreams: &'a [SocketAddr]) -> GatewaySetup<'a> {
        GatewaySetup {
            directory: self.directory.path(),
            upstreams,
            tls_upstream: scenario.tls_upstream,
            http2_upstream: scenario.http2_upstream,
            tls_listener: scenario.tls_listener,
            clients: 1,
        }
    }

    fn load_target(&self, address: SocketAddr, scenario: &Scenario) -> LoadTarget {
        let body = match scenario.work {
            Workload::Requests { body, .. } => body,
            _ => 1024,
        };
        let streams = matches!(scenario.work, Workload::Streams { .. } | Workload::Held { .. });
        LoadTarget {
            address,
            tls: scenario.tls_listener.then(|| Arc::clone(&self.connector)),
            requests: Arc::from([load::chat_request(&client_key(0), body, streams)]),
        }
    }
}

fn tls_acceptor(directory: &Path, protocols: &'static [u8]) -> Arc<SslAcceptor> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate_chain_file(directory.join("cert.pem")).unwrap();
    acceptor.set_private_key_file(directory.join("key.pem"), openssl::ssl::SslFiletype::PEM).unwrap();
    acceptor.set_alpn_select_callback(move |_, client| {
        select_next_proto(protocols, client).ok_or(AlpnError::NOACK)
    });
    Arc::new(acceptor.build())
}

async fn compare_gateways(options: &BenchOptions) {
    let bench = BenchContext::new();
    let mut kinds = Vec::new();
    for kind in GatewayKind::ALL {
        let is_wanted =
            options.subjects.is_empty() || options.subjects.iter().any(|part| kind.name().contains(part));
        match kind.version() {
            Some(version) if is_wanted => kinds.push((kind, version)),
            Some(_) => {}
            None => eprintln!("{} is not installed and is left out", kind.name()),
        }
    }
    let mut report = report::BenchReport::new(options.runs, &kinds);
    for scenario in &SCENARIOS {
        if options.only.as_ref().is_none_or(|quantile| scenario.name.contains(quantile)) {
            let kinds: Vec<_> = kinds.iter().map(|(kind, _)| *kind).collect();
            let table = measure_scenario(&bench, scenario, &kinds, options).await.unwrap();
            println!("{}", table.as_markdown());
            report.tables.push(table);
        }
    }
    println!("{}", report.summary());
    if let Some(path) = &options.json {
        std::fs::write(path, report.as_json()).unwrap();
    }
}

/// Measures all gateways in one scenario.
async fn measure_scenario(
    bench: &BenchContext,
    scenario: &Scenario,
    kinds: &[GatewayKind],
    options: &BenchOptions,
) -> io::Result<ScenarioTable> {
    let transport = bench.transport(scenario.tls_upstream, scenario.http2_upstream);
    let first = if matches!(scenario.work, Workload::Failover { .. }) {
        UpstreamBehaviour::Refusal
    } else {
        scenario.upstream_behaviour()
    };
    let upstreams = [
        BenchUpstream::start(first, transport.clone(), bench.epoch).await?,
        BenchUpstream::start(scenario.upstream_behaviour(), transport, bench.epoch).await?,
    ];
    let addresses = upstreams.each_ref().map(|upstream| upstream.address);
    let setup = bench.gateway_setup(scenario, &addresses);
    let mut table = ScenarioTable::new(scenario.name, scenario.title);
    // Without a gateway, for the latency of the machine itself.
    let direct = BenchUpstream::start(scenario.upstream_behaviour(), Transport::Plain, bench.epoch).await?;
    let mut gateways = Vec::new();
    for kind in kinds {
        match scenario.exclusion_reason(*kind) {
            Some(why) => table.excluded.push((kind.name(), why)),
            None => gateways.push(*kind),
        }
    }
    if let Workload::Held { count } = scenario.work {
        for _ in 0..options.runs {
            for kind in &gateways {
                // A new process each time, so that memory starts from the same level.
                let gateway = RunningGateway::start(*kind, &setup)?;
                let target = bench.load_target(gateway.address, scenario);
                table.add(*kind, measure_held_streams(&gateway, &target, count).await?);
            }
        }
        return Ok(table);
    }
    let gateways: Vec<_> =
        gateways.iter().map(|kind| RunningGateway::start(*kind, &setup)).collect::<Result<_, _>>()?;
    let length = Duration::from_secs_f64(options.seconds);
    for _ in 0..options.runs {
        let plain = Scenario { tls_listener: false, ..*scenario };
        let direct_latencies =
            measure_latencies(bench, &bench.load_target(direct.address, &plain), scenario, length).await;
        for gateway in &gateways {
            let target = bench.load_target(gateway.address, scenario);
            let memory_before = gateway.memory_kib();
            if !matches!(scenario.work, Workload::Streams { .. }) {
                load::run_saturated(&target, CLIENT_CONNECTIONS, WARM_UP_TIME).await;
            }
            // Not after the saturation: what a gateway still does in the background then, such as the compression of
            // files, would count here.
            let (cpu_before, switches_before) = (gateway.cpu_time(), gateway.context_switches());
            let latencies = measure_latencies(bench, &target, scenario, length).await;
            let mut samples = Vec::new();
            if let Workload::Requests { per_second, .. } = scenario.work {
                let requests = f64::from(per_second) * paced_time(per_second, length).as_secs_f64();
                let cpu = (gateway.cpu_time() - cpu_before).as_secs_f64() * 1e6;
                let switches = gateway.context_switches().saturating_sub(switches_before) as f64;
                samples.push(("paced_cpu_us", cpu / requests));
                samples.push(("paced_switches", switches / requests));
            }
            upstreams.iter().for_each(|upstream| upstream.request_count.store(0, Ordering::Relaxed));
            let (cpu, load_samples) = measure_load(bench, gateway, &target, scenario, length).await;
            samples.extend(load_samples);
            let [refused, answered] =
                upstreams.each_ref().map(|upstream| upstream.request_count.load(Ordering::Relaxed));
            for (name, value) in &latencies {
                let direct_latency =
                    direct_latencies.iter().find(|(other, _)| other == name).map_or(0.0, |(_, value)| *value);
                samples.push((name, (value - direct_latency).max(0.0)));
            }
            if matches!(scenario.work, Workload::Failover { .. }) {
                samples.push(("refused_first_percent", refused as f64 * 100.0 / answered.max(1) as f64));
            }
            samples.push(("cpu_us", cpu));
            samples.push(("memory_before_kib", memory_before as f64));
            samples.push(("memory_kib", gateway.memory_kib() as f64));
            table.add(gateway.kind, samples);
        }
    }
    Ok(table)
}

/// The processor time of one request or event in microseconds, and the other samples of the measurement.
async fn measure_load(
    bench: &BenchContext,
    gateway: &RunningGateway,
    target: &LoadTarget,
    scenario: &Scenario,
    length: Duration,
) -> (f64, Samples) {
    if let Workload::Streams { count } = scenario.work {
        let before = gateway.cpu_time();
        let stats = load::run_streams(target, count, length, bench.epoch).await;
        let cost = (gateway.cpu_time() - before).as_secs_f64() * 1e6 / stats.events.max(1) as f64;
        return (cost, vec![("failures", stats.failures as f64)]);
    }
    let (before, start) = (gateway.cpu_time(), Instant::now());
    let stats = load::run_saturated(target, CLIENT_CONNECTIONS, length).await;
    let (used, elapsed) = ((gateway.cpu_time() - before).as_secs_f64(), start.elapsed().as_secs_f64());
    let samples = vec![
        ("failures", stats.failures as f64),
        ("per_second", stats.responses as f64 / elapsed),
        ("busy_percent", used * 100.0 / elapsed),
    ];
    (used * 1e6 / stats.responses.max(1) as f64, samples)
}

/// How long requests are made at a fixed rate: a slow rate needs longer, since processor time is known to 10 ms.
fn paced_time(per_second: u32, length: Duration) -> Duration {
    Duration::from_secs_f64(1000.0 / f64::from(per_second)).clamp(length, length.max(MAX_PACED_TIME))
}

/// The latencies that clients see, in microseconds.
async fn measure_latencies(
    bench: &BenchContext,
    target: &LoadTarget,
    scenario: &Scenario,
    length: Duration,
) -> Samples {
    let quantile_us = |sorted: &[Duration], quantile: f64| {
        let at = ((sorted.len().max(1) - 1) as f64 * quantile) as usize;
        sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    };
    match scenario.work {
        Workload::Streams { count } => {
            let stats = load::run_streams(target, count, length, bench.epoch).await;
            vec![
                ("first_p50_us", quantile_us(&stats.first, 0.5)),
                ("first_p99_us", quantile_us(&stats.first, 0.99)),
                ("later_p50_us", quantile_us(&stats.later, 0.5)),
                ("later_p99_us", quantile_us(&stats.later, 0.99)),
            ]
        }
        Workload::Requests { per_second, .. } | Workload::Failover { per_second } => {
            let length = paced_time(per_second, length);
            let stats = load::run_at_rate(target, CLIENT_CONNECTIONS as u32, per_second, length).await;
            vec![
                ("p50_us", quantile_us(&stats.latencies, 0.5)),
                ("p99_us", quantile_us(&stats.latencies, 0.99)),
            ]
        }
        Workload::Held { .. } => Vec::new(),
    }
}

async fn measure_held_streams(
    gateway: &RunningGateway,
    target: &LoadTarget,
    count: usize,
) -> io::Result<Samples> {
    let memory_before = gateway.memory_kib();
    let streams = load::open_held_streams(target, count).await?;
    let memory_after = gateway.memory_kib();
    drop(streams);
    let each = memory_after.saturating_sub(memory_before) as f64 / count as f64;
    Ok(vec![("memory_kib", memory_before as f64), ("each_kib", each)])
}
