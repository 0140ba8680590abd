//! What is counted of every request, whether or not its record is kept. Counted by the records'
//! thread, so that no request pays for a look-up of labels.

use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use super::exchange::{Attempt, Exchange};
use super::statistics::Tally;
use crate::azure::response::usage::Usage;
use crate::names::Deployment;

/// In place of a label that a request has not: no client was found, no deployment was named.
const NONE: &str = "none";
/// In place of a deployment that nobody knows.
const OTHER: &str = "other";

/// The results of a reload.
const RELOADED: &str = "success";
const REFUSED: &str = "failure";

/// Answers of models: from cached embeddings to an hour of reasoning.
const SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// What the balancer itself takes.
const OVERHEAD: &[f64] =
    &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5];

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    overhead: Histogram,
    attempts: IntCounterVec,
    failovers: IntCounterVec,
    tokens: IntCounterVec,
    records: IntCounterVec,
    spool_bytes: IntGauge,
    reloads: IntCounterVec,
    /// Request heads that were no request.
    pub malformed: IntCounter,
    /// The last minutes.
    pub tally: Tally,
}

impl Metrics {
    /// Metrics that all are 0.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let timed = |name, help| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            register(&registry, HistogramVec::new(options, &["operation"]))
        };
        let overhead = HistogramOpts::new(
            "aoai_lb_overhead_seconds",
            "Time a request spent in the balancer itself, waiting for nobody: admitted, decided on, judged.",
        );
        let reloads = counters(
            "aoai_lb_config_reloads_total",
            "Configurations that were put in place, or refused.",
            &["result"],
        );
        for result in [RELOADED, REFUSED] {
            reloads.with_label_values(&[result]).inc_by(0);
        }
        Self {
            requests: counters(
                "aoai_lb_requests_total",
                "Requests that are over, by the status the client saw; none where it saw none.",
                &["client", "deployment", "operation", "status"],
            ),
            duration: timed(
                "aoai_lb_request_duration_seconds",
                "From the complete head of a request to its end.",
            ),
            first_byte: timed(
                "aoai_lb_first_byte_seconds",
                "From the complete head of a request to the first byte of the answer's body.",
            ),
            overhead: register(&registry, Histogram::with_opts(overhead.buckets(OVERHEAD.to_vec()))),
            attempts: counters(
                "aoai_lb_attempts_total",
                "Tries on a backend: answered, throttled, failed, refused, client_gone.",
                &["backend", "outcome"],
            ),
            failovers: counters(
                "aoai_lb_failovers_total",
                "Tries that followed another of the same request, by the status or error of that one.",
                &["reason"],
            ),
            tokens: counters(
                "aoai_lb_tokens_total",
                "Tokens: input and output; cached is a part of input, reasoning one of output.",
                &["client", "deployment", "type"],
            ),
            records: counters(
                "aoai_lb_records_total",
                "Records by sink: the spool's written, dropped and late ones, those that each sink delivered or lost.",
                &["sink", "result"],
            ),
            spool_bytes: register(
                &registry,
                IntGauge::new("aoai_lb_spool_bytes", "Bytes of records that wait in the spool."),
            ),
            reloads,
            malformed: register(
                &registry,
                IntCounter::new(
                    "aoai_lb_malformed_total",
                    "Connections closed over a malformed request head.",
                ),
            ),
            tally: Tally::default(),
            registry,
        }
    }

    /// Counts a request that is over.
    pub fn observe(&self, exchange: &Exchange, usage: Option<&Usage>) {
        let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        let client = client.map_or(NONE, |name| name.as_str());
        // Spelled alike for all who mean the same.
        let key = exchange.deployment.as_ref().map(Deployment::key);
        let deployment = match &key {
            None => NONE,
            Some(_) if !exchange.is_known_deployment => OTHER,
            Some(key) => key,
        };
        let operation = exchange.target.as_ref().map_or(OTHER, |target| target.operation.name());
        let status = exchange.status.map_or_else(|| NONE.to_owned(), |status| status.to_string());
        self.requests.with_label_values(&[client, deployment, operation, &status]).inc();
        self.duration.with_label_values(&[operation]).observe(exchange.duration.as_secs_f64());
        if let Some(first) = exchange.first_byte {
            self.first_byte.with_label_values(&[operation]).observe(first.as_secs_f64());
        }
        self.overhead.observe(exchange.overhead.as_secs_f64());
        for (n, attempt) in exchange.attempts.iter().enumerate() {
            self.attempts.with_label_values(&[attempt.backend.as_str(), outcome(attempt)]).inc();
            if n + 1 < exchange.attempts.len() {
                let status = attempt.status.map(|status| status.to_string());
                let reason = attempt.error.or(status.as_deref()).unwrap_or(OTHER);
                self.failovers.with_label_values(&[reason]).inc();
            }
        }
        self.tally.observe(exchange, exchange.attempts.iter().map(outcome), usage, Instant::now());
        let Some(usage) = usage else { return };
        let kinds = [
            ("input", usage.input),
            ("output", usage.output),
            ("cached", usage.cached),
            ("reasoning", usage.reasoning),
        ];
        for (kind, count) in kinds {
            if let Some(count) = count.filter(|count| *count > 0) {
                self.tokens.with_label_values(&[client, deployment, kind]).inc_by(count);
            }
        }
    }

    /// Counts records of a sink.
    pub fn count(&self, sink: &str, result: &str, count: u64) {
        if count > 0 {
            self.records.with_label_values(&[sink, result]).inc_by(count);
        }
    }

    /// A new configuration was put in place, or refused.
    pub fn reloaded(&self, is_in_place: bool) {
        self.reloads.with_label_values(&[if is_in_place { RELOADED } else { REFUSED }]).inc();
    }

    /// Says how much waits in the spool.
    pub fn spooled(&self, bytes: u64) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// All of it as Prometheus reads it, with what others know at this moment.
    pub fn text(&self, more: &Registry) -> String {
        let mut families = self.registry.gather();
        families.extend(more.gather());
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What became of a try.
fn outcome(attempt: &Attempt) -> &'static str {
    match (attempt.error, attempt.status) {
        (Some("client_gone"), _) => "client_gone",
        (Some(_), _) | (_, Some(408 | 500..)) => "failed",
        (_, Some(429)) => "throttled",
        (_, Some(400..)) => "refused",
        (_, Some(_)) => "answered",
        (None, None) => OTHER,
    }
}

/// Registers a metric under a name of its own.
///
/// # Panics
/// When a name or label is no such thing or is taken, which the first use of any test finds.
pub fn register<M: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<M>) -> M {
    let metric = made.expect("names and labels are constants that follow Prometheus' rules");
    registry.register(Box::new(metric.clone())).expect("every name is used once");
    metric
}
