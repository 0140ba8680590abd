//! What a request costs as a deployment grows, and what time does to memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{self, Target};
use super::report::Median;
use super::subjects::{Kind, Setting, Subject};
use super::upstream::{Answer, Pace, Transport, Upstream};
use super::{Bench, CONNECTIONS, EVENTS, Options, WARM_UP, client_key};

/// Events per second, however many streams carry them.
const EVENT_RATE: u32 = 5_000;

/// Prints what a request costs with more and more of everything.
pub async fn curves(options: &Options) {
    let wanted = |name: &str| options.only.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let length = Duration::from_secs_f64(options.seconds);
    println!("| | | CPU µs per request | KiB |\n| --- | ---: | ---: | ---: |");
    if wanted("backends") {
        requests(&[2, 20, 200].map(|backends| ("backends", backends, 1)), options.runs, length).await;
    }
    if wanted("clients") {
        requests(&[1, 100, 5000].map(|clients| ("clients", 2, clients)), options.runs, length).await;
    }
    if wanted("streams") {
        println!("\n| | | CPU µs per event | KiB |\n| --- | ---: | ---: | ---: |");
        streams(&[10, 100, 1000, 5000], options.runs, length.max(Duration::from_secs(4))).await;
    }
}

async fn requests(points: &[(&str, usize, usize)], runs: usize, length: Duration) {
    let bench = Bench::new();
    let mut costs = vec![Vec::new(); points.len()];
    let mut running = Vec::new();
    for (_, backends, clients) in points {
        let mut upstreams = Vec::new();
        for _ in 0..*backends {
            upstreams.push(Upstream::start(Answer::Json, Transport::Plain, bench.epoch).await.unwrap());
        }
        let subject = start(&bench, &upstreams, *clients);
        let requests = (0..*clients).map(|number| load::request(&client_key(number), 1024, false)).collect();
        let target = Target { address: subject.address, tls: None, requests };
        running.push((subject, target, upstreams));
    }
    for _ in 0..runs {
        for ((subject, target, _), costs) in running.iter().zip(&mut costs) {
            load::saturate(target, CONNECTIONS, WARM_UP).await;
            let before = subject.cpu();
            let seen = load::saturate(target, CONNECTIONS, length).await;
            assert_eq!(seen.failures, 0);
            costs.push((subject.cpu() - before).as_secs_f64() * 1e6 / seen.answers as f64);
        }
    }
    for (((name, backends, clients), costs), (subject, ..)) in points.iter().zip(costs).zip(&running) {
        let count = if *name == "clients" { clients } else { backends };
        row(name, *count, costs, subject);
    }
}

async fn streams(points: &[u32], runs: usize, length: Duration) {
    let bench = Bench::new();
    let mut costs = vec![Vec::new(); points.len()];
    let mut running = Vec::new();
    for count in points {
        let pace = Pace { every: Duration::from_secs(1) * *count / EVENT_RATE, ..EVENTS };
        let mut upstreams = Vec::new();
        for _ in 0..2 {
            let answer = Answer::Stream(Pace { events: 1_000_000, ..pace });
            upstreams.push(Upstream::start(answer, Transport::Plain, bench.epoch).await.unwrap());
        }
        let subject = start(&bench, &upstreams, 1);
        let target = Target {
            address: subject.address,
            tls: None,
            requests: Arc::from([load::request(&client_key(0), 1024, true)]),
        };
        running.push((subject, target, upstreams));
    }
    for _ in 0..runs {
        for ((count, (subject, target, _)), costs) in points.iter().zip(&running).zip(&mut costs) {
            let (events, cpu) =
                load::steady_streams(target, *count, length, bench.epoch, || subject.cpu()).await;
            costs.push(cpu.as_secs_f64() * 1e6 / events.max(1) as f64);
        }
    }
    for ((count, costs), (subject, ..)) in points.iter().zip(costs).zip(&running) {
        row("streams", *count as usize, costs, subject);
    }
}

fn start(bench: &Bench, upstreams: &[Upstream], clients: usize) -> Subject {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    let setting = Setting {
        directory: bench.directory.path(),
        upstreams: &addresses,
        tls_upstream: false,
        http2_upstream: false,
        tls_listener: false,
        clients,
    };
    Subject::start(Kind::Full, &setting).unwrap()
}

fn row(name: &str, count: usize, costs: Vec<f64>, subject: &Subject) {
    let Median { value, low, high } = Median::of(costs);
    println!("| {name} | {count} | {value:.1} ({low:.1} to {high:.1}) | {} |", subject.memory());
}

/// Short requests, large ones and streams, a backend that refuses among two that answer; memory
/// every ten seconds.
pub async fn soak(minutes: u64) {
    let bench = Bench::new();
    let mut upstreams = Vec::new();
    for answer in [Answer::Refusal, Answer::Json, Answer::Json] {
        upstreams.push(Upstream::start(answer, Transport::Plain, bench.epoch).await.unwrap());
    }
    let shorts = start(&bench, &upstreams, 50);
    let target = |subject: &Subject, clients: usize, body: usize, streams: bool| Target {
        address: subject.address,
        tls: None,
        requests: (0..clients).map(|number| load::request(&client_key(number), body, streams)).collect(),
    };
    let mut writers = Vec::new();
    for _ in 0..2 {
        writers.push(Upstream::start(Answer::Stream(EVENTS), Transport::Plain, bench.epoch).await.unwrap());
    }
    let streaming = start(&bench, &writers, 1);
    let length = Duration::from_secs(60 * minutes);
    let load = async {
        let (short, large) = (target(&shorts, 50, 1024, false), target(&shorts, 1, 300_000, false));
        let stream = target(&streaming, 1, 1024, true);
        tokio::join!(
            load::pace(&short, 64, 1000, length),
            load::pace(&large, 8, 20, length),
            load::streams(&stream, 100, length, bench.epoch)
        )
    };
    let watch = async {
        let begun = Instant::now();
        println!("second,requests_kib,streams_kib");
        while begun.elapsed() < length {
            println!("{},{},{}", begun.elapsed().as_secs(), shorts.memory(), streaming.memory());
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    };
    let ((short, large, streams), ()) = tokio::join!(load, watch);
    println!(
        "answers {}, failures {}; events {}, failures {}",
        short.answers + large.answers,
        short.failures + large.failures,
        streams.events,
        streams.failures
    );
}
