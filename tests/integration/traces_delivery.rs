//! The delivery of traces: without records, at a stop, while the collector is away or refuses them, and by TLS.

use crate::support;

use std::time::Duration;

use futures::future::join_all;
use support::collector::{Collector, CollectorBehaviour};
use support::{
    Balancer, Client, Response, all_backends_yaml, clients_yaml, free_port, poll, start_simulator, tls,
    wait_until,
};

fn request_id(response: &Response) -> String {
    response.header("x-aoai-lb-request-id").unwrap().to_owned()
}

/// The value of a metric, 0 if it is not there.
async fn metric(balancer: &Balancer, sample: &str) -> u64 {
    let mut admin = Client::connect(balancer.admin_address).await;
    let text = admin.get("/metrics", &[("Host", "localhost")]).await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

async fn wait_for_spans(balancer: &Balancer, result: &str, count: u64) {
    let sample = format!("aoai_lb_spans_total{{result=\"{result}\"}}");
    poll(&format!("{count} spans are {result}"), async || {
        let found = metric(balancer, &sample).await;
        if found >= count { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_need_no_records_and_a_stop_delivers_them() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let (address, admin) = (free_port(), free_port());
    let text = format!(
        "listeners: [ {{ address: '127.0.0.1:{address}' }} ]\nadmin: {{ address: '127.0.0.1:{admin}' }}\n\
         server: {{ drain_delay: 0s }}\n{}\nbackends:\n{}{}",
        collector.traces_yaml("sample: 100%, headers: { x-api-key: '${COLLECTOR_KEY}' }"),
        all_backends_yaml(&azure),
        clients_yaml(),
    );
    let loopback = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let variables =
        [("COLLECTOR_KEY", "a-planted-collector-key".to_owned()), ("RUST_LOG", "trace".to_owned())];
    let mut balancer = Balancer::start_from_file_with_environment(
        tempfile::tempdir().unwrap(),
        loopback(address),
        loopback(admin),
        &text,
        &variables,
    )
    .await;
    let responses = join_all((0..30).map(|_| balancer.post_chat())).await;
    let status = balancer.status().await.to_string();
    assert_eq!(balancer.stop().await, 0);
    let spans = collector.spans();
    for response in responses {
        let id = request_id(&response);
        assert!(spans.iter().any(|span| span.attributes["aoai_lb.request_id"] == id.as_str()), "{id}");
    }
    assert_eq!(spans.len(), 60);
    // The secret is sent, and is in nothing else.
    assert!(
        collector
            .heads()
            .iter()
            .all(|head| support::collector::field(head, "x-api-key") == Some("a-planted-collector-key"))
    );
    assert!(
        !balancer.log().contains("a-planted-collector-key") && !status.contains("a-planted-collector-key")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_traces_and_nothing_else() {
    let azure = start_simulator(&["a"]).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let traces = format!("traces: {{ endpoint: 'http://{address}', sample: 100% }}");
    let balancer = Balancer::start(&all_backends_yaml(&azure), &traces).await;
    let first = balancer.post_chat().await;
    balancer.wait_for_log("traces are not delivered").await;
    // More than the queue holds.
    for _ in 0..45 {
        let responses = join_all((0..50).map(|_| balancer.post_chat())).await;
        assert!(responses.iter().all(|response| response.status == 200));
    }
    wait_for_spans(&balancer, "dropped", 2 * 150).await;
    balancer
        .wait_for_status("it says so", |status| {
            let traces = &status["traces"];
            traces["queued"] == 2048
                && traces["failing_since"].is_string()
                && traces["last_error"].as_str().is_some_and(|error| error.contains("connection refused"))
                && traces["dropped_spans_last_15_minutes"].as_u64() >= Some(300)
        })
        .await;
    // Clients and records are not concerned.
    balancer
        .wait_for_status("the service is healthy", |status| status["service"]["state"] == "healthy")
        .await;
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args(["status", "--admin", &format!("http://{}", balancer.admin_address)])
        .output()
        .await
        .unwrap();
    let shown = String::from_utf8(command.stdout).unwrap();
    assert!(shown.contains("traces do not reach the collector since 20"), "{shown}");

    let collector = Collector::start_at(address).await;
    balancer.wait_for_log("traces are delivered again, after ").await;
    let (_, attempts) = collector.trace_of_request(&request_id(&first)).await;
    assert_eq!(attempts.len(), 1);
    wait_until("what has waited arrives", || collector.spans().len() >= 2 * 2048).await;
    balancer
        .wait_for_status("delivery works", |status| {
            let traces = &status["traces"];
            traces["queued"] == 0 && traces["failing_since"].is_null() && traces["last_delivery"].is_string()
        })
        .await;
    let last = balancer.post_chat().await;
    collector.trace_of_request(&request_id(&last)).await;
    let log = balancer.log();
    assert_eq!(log.matches("traces are not delivered").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_decides_what_is_sent_again() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let balancer = Balancer::start(&all_backends_yaml(&azure), &collector.traces_yaml("sample: 100%")).await;
    // After 3 s, as it asks.
    collector.set_behaviour(CollectorBehaviour::RespondsWith(429, Some("3")));
    let response = balancer.post_chat().await;
    wait_until("it is refused", || collector.heads().len() == 1).await;
    collector.set_behaviour(CollectorBehaviour::Accepts);
    collector.trace_of_request(&request_id(&response)).await;
    let times = collector.request_times();
    assert!(times.len() == 2 && times[1] - times[0] >= Duration::from_millis(2_900), "{times:?}");
    assert_eq!(metric(&balancer, "aoai_lb_spans_total{result=\"retried\"}").await, 2);
    // Never.
    collector.set_behaviour(CollectorBehaviour::RespondsWith(401, None));
    balancer.post_chat().await;
    balancer.wait_for_log("401: the collector does not accept the credentials in traces.headers").await;
    wait_for_spans(&balancer, "rejected", 2).await;
    let count = collector.heads().len();
    // In part.
    collector.set_behaviour(CollectorBehaviour::Rejects(1));
    balancer.post_chat().await;
    wait_for_spans(&balancer, "rejected", 3).await;
    wait_for_spans(&balancer, "delivered", 3).await;
    assert_eq!(collector.heads().len(), count + 1);
    assert!(!balancer.log().contains("planted"), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_collector_that_does_not_respond() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let mut balancer =
        Balancer::start(&all_backends_yaml(&azure), &collector.traces_yaml("sample: 100%")).await;
    collector.set_behaviour(CollectorBehaviour::NeverResponds);
    balancer.post_chat().await;
    wait_until("it is asked", || collector.heads().len() == 1).await;
    balancer.post_chat().await;
    let start = std::time::Instant::now();
    assert_eq!(balancer.stop().await, 0);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(balancer.log().contains("spans of traces are lost"), "{}", balancer.log());
    assert_eq!(balancer.records().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_a_collector_may_come_from_an_own_authority() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let authority = tls::generate_authority();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate.to_pem().unwrap()).unwrap();
    let key = tls::generate_key();
    let certificate = tls::issue_certificate("localhost", (-1, 1), &key, Some(&authority));
    let port = tls::start_tls_proxy(collector.address, &certificate, &key).await.0.port();
    for (more, is_trusted) in [(format!(", tls: {{ ca: {} }}", ca.display()), true), (String::new(), false)] {
        let traces = format!("traces: {{ endpoint: 'https://localhost:{port}', sample: 100%{more} }}");
        let balancer = Balancer::start(&all_backends_yaml(&azure), &traces).await;
        let response = balancer.post_chat().await;
        if is_trusted {
            collector.trace_of_request(&request_id(&response)).await;
        } else {
            balancer.wait_for_log("the TLS handshake failed").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_check_sends_no_spans() {
    let (azure, collector) = (start_simulator(&["a"]).await, Collector::start().await);
    let balancer = Balancer::start(&all_backends_yaml(&azure), &collector.traces_yaml("sample: 0%")).await;
    let check = async || {
        let file = balancer.path("aoai-lb.yaml");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
        let output = command.args(["check", "--live", "-c"]).arg(&file).output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (_, text) = check().await;
    assert!(text.contains("good  traces  collector: an empty request was accepted (200)"), "{text}");
    assert_eq!((collector.heads().len(), collector.spans().len()), (1, 0));
    collector.set_behaviour(CollectorBehaviour::RespondsWith(404, None));
    let (code, text) = check().await;
    let expected = "BAD   traces  collector: 404: the collector has no OTLP receiver for HTTP at this path";
    assert!(code == Some(1) && text.contains(expected), "{text}");
}
