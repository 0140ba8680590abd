//! The cost of a request as the number of backends, clients and streams grows, and memory over time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{self, LoadTarget};
use super::report::MedianInterval;
use super::running_gateway::{GatewayKind, GatewaySetup, RunningGateway};
use super::upstream::{BenchUpstream, EventPace, Transport, UpstreamBehaviour};
use super::{BenchContext, BenchOptions, CLIENT_CONNECTIONS, STREAM_PACE, WARM_UP_TIME, client_key};

/// Events per second in total, for any number of streams.
const EVENTS_PER_SECOND: u32 = 5_000;

/// Prints the cost of a request with more and more backends, clients and streams.
pub async fn print_cost_curves(options: &BenchOptions) {
    let is_wanted = |name: &str| options.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let length = Duration::from_secs_f64(options.seconds);
    println!("| | | CPU µs per request | KiB |\n| --- | ---: | ---: | ---: |");
    if is_wanted("backends") {
        measure_request_costs(&[2, 20, 200].map(|backends| ("backends", backends, 1)), options.runs, length)
            .await;
    }
    if is_wanted("clients") {
        measure_request_costs(&[1, 100, 5000].map(|clients| ("clients", 2, clients)), options.runs, length)
            .await;
    }
    if is_wanted("streams") {
        println!("\n| | | CPU µs per event | KiB |\n| --- | ---: | ---: | ---: |");
        measure_stream_costs(&[10, 100, 1000, 5000], options.runs, length.max(Duration::from_secs(4))).await;
    }
}

async fn measure_request_costs(points: &[(&str, usize, usize)], runs: usize, length: Duration) {
    let bench = BenchContext::new();
    let mut costs = vec![Vec::new(); points.len()];
    let mut running = Vec::new();
    for (_, backends, clients) in points {
        let mut upstreams = Vec::new();
        for _ in 0..*backends {
            upstreams.push(
                BenchUpstream::start(UpstreamBehaviour::Json, Transport::Plain, bench.epoch).await.unwrap(),
            );
        }
        let gateway = start_balancer(&bench, &upstreams, *clients);
        let requests =
            (0..*clients).map(|number| load::chat_request(&client_key(number), 1024, false)).collect();
        let target = LoadTarget { address: gateway.address, tls: None, requests };
        running.push((gateway, target, upstreams));
    }
    for _ in 0..runs {
        for ((gateway, target, _), costs) in running.iter().zip(&mut costs) {
            load::run_saturated(target, CLIENT_CONNECTIONS, WARM_UP_TIME).await;
            let before = gateway.cpu_time();
            let stats = load::run_saturated(target, CLIENT_CONNECTIONS, length).await;
            assert_eq!(stats.failures, 0);
            costs.push((gateway.cpu_time() - before).as_secs_f64() * 1e6 / stats.responses as f64);
        }
    }
    for (((name, backends, clients), costs), (gateway, ..)) in points.iter().zip(costs).zip(&running) {
        let count = if *name == "clients" { clients } else { backends };
        print_row(name, *count, costs, gateway);
    }
}

async fn measure_stream_costs(points: &[u32], runs: usize, length: Duration) {
    let bench = BenchContext::new();
    let mut costs = vec![Vec::new(); points.len()];
    let mut running = Vec::new();
    for count in points {
        let pace =
            EventPace { event_interval: Duration::from_secs(1) * *count / EVENTS_PER_SECOND, ..STREAM_PACE };
        let mut upstreams = Vec::new();
        for _ in 0..2 {
            let behaviour = UpstreamBehaviour::Stream(EventPace { event_count: 1_000_000, ..pace });
            upstreams.push(BenchUpstream::start(behaviour, Transport::Plain, bench.epoch).await.unwrap());
        }
        let gateway = start_balancer(&bench, &upstreams, 1);
        let target = LoadTarget {
            address: gateway.address,
            tls: None,
            requests: Arc::from([load::chat_request(&client_key(0), 1024, true)]),
        };
        running.push((gateway, target, upstreams));
    }
    for _ in 0..runs {
        for ((count, (gateway, target, _)), costs) in points.iter().zip(&running).zip(&mut costs) {
            let (events, cpu) =
                load::measure_steady_streams(target, *count, length, bench.epoch, || gateway.cpu_time())
                    .await;
            costs.push(cpu.as_secs_f64() * 1e6 / events.max(1) as f64);
        }
    }
    for ((count, costs), (gateway, ..)) in points.iter().zip(costs).zip(&running) {
        print_row("streams", *count as usize, costs, gateway);
    }
}

fn start_balancer(bench: &BenchContext, upstreams: &[BenchUpstream], clients: usize) -> RunningGateway {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    let setup = GatewaySetup {
        directory: bench.directory.path(),
        upstreams: &addresses,
        tls_upstream: false,
        http2_upstream: false,
        tls_listener: false,
        clients,
    };
    RunningGateway::start(GatewayKind::Balancer, &setup).unwrap()
}

fn print_row(name: &str, count: usize, costs: Vec<f64>, gateway: &RunningGateway) {
    let MedianInterval { value, low, high } = MedianInterval::of(costs);
    println!("| {name} | {count} | {value:.1} ({low:.1} to {high:.1}) | {} |", gateway.memory_kib());
}

/// Runs short requests, large ones and streams, with one refusing backend among three, and prints memory every
/// ten seconds.
pub async fn run_soak(minutes: u64) {
    let bench = BenchContext::new();
    let mut upstreams = Vec::new();
    for behaviour in [UpstreamBehaviour::Refusal, UpstreamBehaviour::Json, UpstreamBehaviour::Json] {
        upstreams.push(BenchUpstream::start(behaviour, Transport::Plain, bench.epoch).await.unwrap());
    }
    let request_balancer = start_balancer(&bench, &upstreams, 50);
    let load_target = |gateway: &RunningGateway, clients: usize, body: usize, streams: bool| LoadTarget {
        address: gateway.address,
        tls: None,
        requests: (0..clients).map(|number| load::chat_request(&client_key(number), body, streams)).collect(),
    };
    let mut stream_upstreams = Vec::new();
    for _ in 0..2 {
        stream_upstreams.push(
            BenchUpstream::start(UpstreamBehaviour::Stream(STREAM_PACE), Transport::Plain, bench.epoch)
                .await
                .unwrap(),
        );
    }
    let stream_balancer = start_balancer(&bench, &stream_upstreams, 1);
    let length = Duration::from_secs(60 * minutes);
    let load = async {
        let (short, large) = (
            load_target(&request_balancer, 50, 1024, false),
            load_target(&request_balancer, 1, 300_000, false),
        );
        let stream = load_target(&stream_balancer, 1, 1024, true);
        tokio::join!(
            load::run_at_rate(&short, 64, 1000, length),
            load::run_at_rate(&large, 8, 20, length),
            load::run_streams(&stream, 100, length, bench.epoch)
        )
    };
    let memory_log = async {
        let start = Instant::now();
        println!("second,requests_kib,streams_kib");
        while start.elapsed() < length {
            println!(
                "{},{},{}",
                start.elapsed().as_secs(),
                request_balancer.memory_kib(),
                stream_balancer.memory_kib()
            );
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    };
    let ((short, large, streams), ()) = tokio::join!(load, memory_log);
    println!(
        "answers {}, failures {}; events {}, failures {}",
        short.responses + large.responses,
        short.failures + large.failures,
        streams.events,
        streams.failures
    );
}
