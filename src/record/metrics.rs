//! What is counted of every request, whether or not its record is kept. Counted by the records'
//! thread, so that no request pays for a look-up of labels.

use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use super::exchange::FinishedExchange;
use super::statistics::Statistics;
use crate::azure::response::usage::TokenUsage;
use crate::names::DeploymentName;

/// In place of a label that a request has not: no client was found, no deployment was named.
const ABSENT_LABEL: &str = "none";
/// In place of a deployment that nobody knows.
const UNKNOWN_LABEL: &str = "other";

/// The results of a reload.
const RELOAD_SUCCESS: &str = "success";
const RELOAD_FAILURE: &str = "failure";

/// Answers of models: from cached embeddings to an hour of reasoning.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// What the balancer itself takes.
const OVERHEAD_BUCKETS_SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5];

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    finished_requests: IntCounterVec,
    request_duration: HistogramVec,
    time_to_first_byte: HistogramVec,
    balancer_overhead: Histogram,
    attempts: IntCounterVec,
    failovers: IntCounterVec,
    tokens: IntCounterVec,
    records: IntCounterVec,
    spool_bytes: IntGauge,
    config_reloads: IntCounterVec,
    /// Request heads that were no request.
    pub malformed_requests: IntCounter,
    /// The last minutes.
    pub statistics: Statistics,
}

impl Metrics {
    /// Metrics that all are 0.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            register_metric(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let latency_histogram = |name, help| {
            let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS_SECONDS.to_vec());
            register_metric(&registry, HistogramVec::new(options, &["operation"]))
        };
        let overhead_options = HistogramOpts::new(
            "aoai_lb_overhead_seconds",
            "Time a request spent in the balancer itself, waiting for nobody: admitted, decided on, judged.",
        );
        let config_reloads = counters(
            "aoai_lb_config_reloads_total",
            "Configurations that were put in place, or refused.",
            &["result"],
        );
        for result in [RELOAD_SUCCESS, RELOAD_FAILURE] {
            config_reloads.with_label_values(&[result]).inc_by(0);
        }
        Self {
            finished_requests: counters(
                "aoai_lb_requests_total",
                "Requests that are over, by the status the client saw; none where it saw none.",
                &["client", "deployment", "operation", "status"],
            ),
            request_duration: latency_histogram(
                "aoai_lb_request_duration_seconds",
                "From the complete head of a request to its end.",
            ),
            time_to_first_byte: latency_histogram(
                "aoai_lb_first_byte_seconds",
                "From the complete head of a request to the first byte of the answer's body.",
            ),
            balancer_overhead: register_metric(
                &registry,
                Histogram::with_opts(overhead_options.buckets(OVERHEAD_BUCKETS_SECONDS.to_vec())),
            ),
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
            spool_bytes: register_metric(
                &registry,
                IntGauge::new("aoai_lb_spool_bytes", "Bytes of records that wait in the spool."),
            ),
            config_reloads,
            malformed_requests: register_metric(
                &registry,
                IntCounter::new(
                    "aoai_lb_malformed_total",
                    "Connections closed over a malformed request head.",
                ),
            ),
            statistics: Statistics::default(),
            registry,
        }
    }

    /// Counts a request that is over.
    pub fn record_exchange(&self, exchange: &FinishedExchange, usage: Option<&TokenUsage>) {
        let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        let client = client.map_or(ABSENT_LABEL, |name| name.as_str());
        // Spelled alike for all who mean the same.
        let key = exchange.deployment.as_ref().map(DeploymentName::to_lowercase);
        let deployment = match &key {
            None => ABSENT_LABEL,
            Some(_) if !exchange.is_known_deployment => UNKNOWN_LABEL,
            Some(key) => key,
        };
        let operation = exchange.target.as_ref().map_or(UNKNOWN_LABEL, |target| target.operation.name());
        let status =
            exchange.client_status.map_or_else(|| ABSENT_LABEL.to_owned(), |status| status.to_string());
        self.finished_requests.with_label_values(&[client, deployment, operation, &status]).inc();
        self.request_duration.with_label_values(&[operation]).observe(exchange.duration.as_secs_f64());
        if let Some(first) = exchange.time_to_first_byte {
            self.time_to_first_byte.with_label_values(&[operation]).observe(first.as_secs_f64());
        }
        self.balancer_overhead.observe(exchange.balancer_overhead.as_secs_f64());
        for (index, attempt) in exchange.attempts.iter().enumerate() {
            self.attempts.with_label_values(&[attempt.backend.as_str(), attempt.outcome_label()]).inc();
            if index + 1 < exchange.attempts.len() {
                let status = attempt.status.map(|status| status.to_string());
                let reason = attempt.error.or(status.as_deref()).unwrap_or(UNKNOWN_LABEL);
                self.failovers.with_label_values(&[reason]).inc();
            }
        }
        self.statistics.record_exchange(exchange, usage, Instant::now());
        let Some(usage) = usage else { return };
        let token_counts = [
            ("input", usage.input),
            ("output", usage.output),
            ("cached", usage.cached),
            ("reasoning", usage.reasoning),
        ];
        for (kind, count) in token_counts {
            if let Some(count) = count.filter(|count| *count > 0) {
                self.tokens.with_label_values(&[client, deployment, kind]).inc_by(count);
            }
        }
    }

    /// Counts records of a sink.
    pub fn count_records(&self, sink: &str, result: &str, count: u64) {
        if count > 0 {
            self.records.with_label_values(&[sink, result]).inc_by(count);
        }
    }

    /// A new configuration was put in place, or refused.
    pub fn record_config_reload(&self, is_success: bool) {
        self.config_reloads
            .with_label_values(&[if is_success { RELOAD_SUCCESS } else { RELOAD_FAILURE }])
            .inc();
    }

    /// Says how much waits in the spool.
    pub fn set_spool_bytes(&self, bytes: u64) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// All of it as Prometheus reads it, with what others know at this moment.
    pub fn to_prometheus_text(&self, other: &Registry) -> String {
        let mut families = self.registry.gather();
        families.extend(other.gather());
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers a metric under a name of its own.
///
/// # Panics
/// When a name or label is no such thing or is taken, which the first use of any test finds.
pub fn register_metric<M: Collector + Clone + 'static>(
    registry: &Registry,
    created: prometheus::Result<M>,
) -> M {
    let metric = created.expect("names and labels are constants that follow Prometheus' rules");
    registry.register(Box::new(metric.clone())).expect("every name is used once");
    metric
}
