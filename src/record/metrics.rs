//! Prometheus metrics of finished exchanges, whether or not records are written.
//!
//! They are counted where their records are made: by the thread that served the request, or by the writer.

use std::time::{Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use super::affinity_statistics::AffinityStatistics;
use super::cost::ResponseCost;
use super::cost_statistics::CostStatistics;
use super::delivery::{self, Deliveries};
use super::exchange::{ExchangeOutcome, FinishedExchange};
use super::prompt_tokens::{PromptTokenStatistics, PromptTokens};
use super::recent_trouble::{BackendFailures, RecentTrouble};
use super::statistics::Statistics;
use crate::azure::Operation;
use crate::azure::response::usage::TokenUsage;
use crate::names::DeploymentName;

/// The label of a request without client, deployment or status.
pub const ABSENT_LABEL: &str = "none";
/// The label of all deployments that are neither configured nor known to a backend, so that clients cannot
/// add time series at will. Also used for an unknown operation or reason.
const UNKNOWN_LABEL: &str = "other";

/// The values of the label `result` of configuration reloads.
const RELOAD_SUCCESS: &str = "success";
const RELOAD_FAILURE: &str = "failure";

/// The operations that WebSockets are opened for.
const WEBSOCKET_OPERATIONS: [Operation; 2] = [Operation::Responses, Operation::Realtime];

/// Buckets for responses of models: from cached embeddings to half an hour of reasoning.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// Buckets for the first byte of an attempt: fewer, since each backend has a series for each deployment.
const ATTEMPT_BUCKETS_SECONDS: &[f64] =
    &[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0, 600.0];
/// Buckets for the time until a resource can read what it has made: the shortest wait before it is asked again, to
/// somewhat more than the longest lag that was seen.
const READ_LAG_BUCKETS_SECONDS: &[f64] = &[0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 40.0, 60.0];
/// Buckets for the time that is spent in the load balancer itself.
const OVERHEAD_BUCKETS_SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5];

/// Buckets for waits in the queue: from the rest after a refusal to the longest wait that is sensible.
const QUEUE_WAIT_BUCKETS_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0];

/// The metrics of this process that are counted; those that are read at the moment of a scrape are in
/// `admin::metrics`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    finished_requests: IntCounterVec,
    request_duration: HistogramVec,
    time_to_first_byte: HistogramVec,
    balancer_overhead: Histogram,
    refusals: IntCounterVec,
    limit_refusals: IntCounterVec,
    attempts: IntCounterVec,
    attempt_first_byte: HistogramVec,
    failovers: IntCounterVec,
    tokens: IntCounterVec,
    cost: CounterVec,
    cost_unknown: IntCounterVec,
    prompt_tokens_by_kind: IntCounterVec,
    cache_moves: IntCounterVec,
    websocket_turns: IntCounterVec,
    affinity_requests: IntCounterVec,
    affinity_asked: IntCounterVec,
    read_lag: HistogramVec,
    queue_wait: HistogramVec,
    records: IntCounterVec,
    spans: IntCounterVec,
    spool_bytes: IntGauge,
    config_reloads: IntCounterVec,
    /// Requests whose head or framing is malformed, including what the engine refuses of HTTP/2 by itself.
    pub malformed_requests: IntCounter,
    /// The statistics of the last minutes, for the status page.
    pub statistics: Statistics,
    /// What the responses to each client cost, for the status page.
    pub costs: CostStatistics,
    /// The input tokens of the last minutes, for the status page and for the choice of backends.
    pub prompt_tokens: PromptTokenStatistics,
    /// What is counted of the resources that have what requests refer to, for the status page.
    pub affinity_statistics: AffinityStatistics,
    /// The last requests that did not go well, for the status page.
    pub recent_trouble: RecentTrouble,
    /// Requests that were refused or failed because of backends.
    pub backend_failures: BackendFailures,
    /// How the delivery of records goes, for the status page.
    pub deliveries: Deliveries,
}

impl Metrics {
    /// Metrics that are all 0.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            register_metric(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let latency_histogram = |name, help| {
            let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS_SECONDS.to_vec());
            register_metric(&registry, HistogramVec::new(options, &["operation"]))
        };
        let attempt_options = HistogramOpts::new(
            "aoai_lb_attempt_seconds",
            "Time from the choice of a backend to the head of its response, by the deployment that the client named.",
        );
        let attempt_options = attempt_options.buckets(ATTEMPT_BUCKETS_SECONDS.to_vec());
        let overhead_options = HistogramOpts::new(
            "aoai_lb_overhead_seconds",
            "Time a request spent in the load balancer itself: admission, routing, verdicts, no waiting.",
        );
        let read_lag_options = HistogramOpts::new(
            "aoai_lb_read_lag_seconds",
            "Time until a resource could read a response that it had made, if it could not at first.",
        );
        let read_lag_options = read_lag_options.buckets(READ_LAG_BUCKETS_SECONDS.to_vec());
        let queue_wait_options = HistogramOpts::new(
            "aoai_lb_queue_wait_seconds",
            "Time that requests waited in the queue, of those that waited, by class: interactive, standard, batch.",
        );
        let queue_wait_options = queue_wait_options.buckets(QUEUE_WAIT_BUCKETS_SECONDS.to_vec());
        let config_reloads = counters(
            "aoai_lb_config_reloads_total",
            "Configuration reloads that succeeded or failed.",
            &["result"],
        );
        // Both series exist from the start, so that `increase()` sees the first reload.
        for result in [RELOAD_SUCCESS, RELOAD_FAILURE] {
            config_reloads.with_label_values(&[result]).inc_by(0);
        }
        let websocket_turns = counters(
            "aoai_lb_websocket_turns_total",
            "Turns of WebSockets by outcome: answered, refused, failed, client_gone.",
            &["operation", "outcome"],
        );
        for operation in WEBSOCKET_OPERATIONS {
            for outcome in ExchangeOutcome::ALL {
                websocket_turns.with_label_values(&[operation.name(), outcome.as_str()]).inc_by(0);
            }
        }
        let started_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let start_gauge =
            Gauge::new("process_start_time_seconds", "When the process started, in seconds since 1970.");
        register_metric(&registry, start_gauge).set(started_at.as_secs_f64());
        Self {
            finished_requests: counters(
                "aoai_lb_requests_total",
                "Finished requests by the status sent to the client; none if no status was sent.",
                &["client", "deployment", "operation", "status"],
            ),
            request_duration: latency_histogram(
                "aoai_lb_request_duration_seconds",
                "Time from the complete request head to the end of the request.",
            ),
            time_to_first_byte: latency_histogram(
                "aoai_lb_first_byte_seconds",
                "Time from the complete request head to the first byte of the response body.",
            ),
            balancer_overhead: register_metric(
                &registry,
                Histogram::with_opts(overhead_options.buckets(OVERHEAD_BUCKETS_SECONDS.to_vec())),
            ),
            refusals: counters(
                "aoai_lb_refusals_total",
                "Responses that the load balancer made itself in place of an answer, by `error.code`.",
                &["client", "code"],
            ),
            limit_refusals: counters(
                "aoai_lb_limit_refused_total",
                "Requests that exceeded a limit of their client; with `limits.mode: observe` they were served.",
                &["client", "limit"],
            ),
            attempt_first_byte: register_metric(
                &registry,
                HistogramVec::new(attempt_options, &["backend", "deployment"]),
            ),
            attempts: counters(
                "aoai_lb_attempts_total",
                "Attempts at a backend by outcome: answered, throttled, failed, refused, client_gone.",
                &["backend", "outcome"],
            ),
            failovers: counters(
                "aoai_lb_failovers_total",
                "Attempts after another one of the same request, by the status or error of that one.",
                &["reason"],
            ),
            tokens: counters(
                "aoai_lb_tokens_total",
                "Tokens by type: input and output; cached and cache_write are parts of input, reasoning of output.",
                &["client", "deployment", "type"],
            ),
            cost: register_metric(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "aoai_lb_cost_total",
                        "What responses cost in the currency of the prices, those of provisioned backends excepted.",
                    ),
                    &["client", "deployment"],
                ),
            ),
            cost_unknown: counters(
                "aoai_lb_cost_unknown_total",
                "Responses that are billed, but have no price or no known tokens: aoai_lb_cost_total leaves them out.",
                &["client", "deployment"],
            ),
            prompt_tokens_by_kind: counters(
                "aoai_lb_prompt_tokens_total",
                "Input tokens by what the prompt cache did with them: cached, written (where that is billed), plain.",
                &["deployment", "kind"],
            ),
            cache_moves: counters(
                "aoai_lb_cache_moves_total",
                "Requests that did not go to the first backend of their prompt's key, by reason: rest, load, hot, home, shed.",
                &["reason"],
            ),
            websocket_turns,
            affinity_requests: counters(
                "aoai_lb_affinity_requests_total",
                "Requests about objects of one resource, by how it was found (learned, asked, default) and their outcome.",
                &["how", "outcome"],
            ),
            affinity_asked: counters(
                "aoai_lb_affinity_asked_total",
                "Resources that were asked for an object, by answer: accepted, denied.",
                &["resource", "outcome"],
            ),
            read_lag: register_metric(&registry, HistogramVec::new(read_lag_options, &["resource"])),
            queue_wait: register_metric(&registry, HistogramVec::new(queue_wait_options, &["class"])),
            records: counters(
                "aoai_lb_records_total",
                "Records by sink: spool written, without_content, dropped, late; others delivered, retried, dead, lost.",
                &["sink", "result"],
            ),
            spans: counters(
                "aoai_lb_spans_total",
                "Spans of traces by what became of them: delivered, retried, rejected by the collector, dropped.",
                &["result"],
            ),
            spool_bytes: register_metric(
                &registry,
                IntGauge::new(
                    "aoai_lb_spool_bytes",
                    "Bytes of records in the spool that are not yet delivered to every sink.",
                ),
            ),
            config_reloads,
            malformed_requests: register_metric(
                &registry,
                IntCounter::new(
                    "aoai_lb_malformed_total",
                    "Requests whose head or framing is malformed, HTTP/2 frames included.",
                ),
            ),
            statistics: Statistics::default(),
            costs: CostStatistics::default(),
            prompt_tokens: PromptTokenStatistics::new(Instant::now()),
            affinity_statistics: AffinityStatistics::new(Instant::now()),
            recent_trouble: RecentTrouble::default(),
            backend_failures: BackendFailures::default(),
            deliveries: Deliveries::default(),
            registry,
        }
    }

    /// Counts a finished exchange.
    pub fn record_exchange(
        &self,
        exchange: &FinishedExchange,
        usage: Option<&TokenUsage>,
        cost: Option<ResponseCost>,
    ) {
        let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        let client = client.map_or(ABSENT_LABEL, |name| name.as_str());
        // Names that differ only in case are the same deployment and get the same label.
        let key = exchange.requested_deployment.as_ref().map(DeploymentName::to_lowercase);
        let deployment = match &key {
            None => ABSENT_LABEL,
            Some(_) if !exchange.is_deployment_known => UNKNOWN_LABEL,
            Some(key) => key,
        };
        let operation = exchange.target.as_ref().map_or(UNKNOWN_LABEL, |target| target.operation.name());
        let status =
            exchange.client_status.map_or_else(|| ABSENT_LABEL.to_owned(), |status| status.to_string());
        self.finished_requests.with_label_values(&[client, deployment, operation, &status]).inc();
        if exchange.socket_id.is_some() {
            self.websocket_turns.with_label_values(&[operation, exchange.outcome.as_str()]).inc();
        }
        // A WebSocket lasts for as long as its client likes.
        if !exchange.is_opened_websocket() {
            self.request_duration.with_label_values(&[operation]).observe(exchange.duration.as_secs_f64());
        }
        if let Some(first) = exchange.time_to_first_body_byte {
            self.time_to_first_byte.with_label_values(&[operation]).observe(first.as_secs_f64());
        }
        self.balancer_overhead.observe(exchange.balancer_overhead.as_secs_f64());
        if !exchange.queued.is_zero() {
            let class = exchange.class.unwrap_or_default().as_str();
            self.queue_wait.with_label_values(&[class]).observe(exchange.queued.as_secs_f64());
        }
        if let Some(code) = exchange.refusal_code {
            self.refusals.with_label_values(&[client, code]).inc();
        }
        if let Some(limit) = &exchange.limited_by {
            self.limit_refusals.with_label_values(&[client, &limit.to_string()]).inc();
        }
        for (index, attempt) in exchange.attempts.iter().enumerate() {
            self.attempts.with_label_values(&[attempt.backend.as_str(), attempt.outcome_label()]).inc();
            if let Some(first) = attempt.time_to_response_head {
                let labels = [attempt.backend.as_str(), deployment];
                self.attempt_first_byte.with_label_values(&labels).observe(first.as_secs_f64());
            }
            if index + 1 < exchange.attempts.len() {
                let status = attempt.status.map(|status| status.to_string());
                let reason = attempt.error_code.or(status.as_deref()).unwrap_or(UNKNOWN_LABEL);
                self.failovers.with_label_values(&[reason]).inc();
            }
        }
        if let Some(affinity) = &exchange.affinity {
            self.affinity_requests.with_label_values(&[affinity.how, exchange.outcome.as_str()]).inc();
            for asked in &affinity.asked {
                self.affinity_asked
                    .with_label_values(&[asked.resource.as_str(), asked.answer.as_str()])
                    .inc();
            }
            if let (Some(resource), Some(lag)) = (&affinity.resource, affinity.read_lag) {
                self.read_lag.with_label_values(&[resource.as_str()]).observe(lag.as_secs_f64());
            }
        }
        let now = Instant::now();
        if let Some(affinity) = &exchange.affinity {
            self.affinity_statistics.record(affinity, now);
        }
        self.statistics.record_exchange(exchange, usage, now);
        if let Some(cost) = cost {
            self.record_cost(exchange, [client, deployment], cost);
        }
        if let Some(request) = self.recent_trouble.note(exchange) {
            self.backend_failures.note(&request);
        }
        if let Some(reason) = exchange.cache.and_then(|cache| cache.moved) {
            self.cache_moves.with_label_values(&[reason]).inc();
        }
        let Some(usage) = usage else { return };
        self.record_prompt_tokens(exchange, usage, deployment, now);
        let token_counts = [
            ("input", usage.input),
            ("output", usage.output),
            ("cached", usage.cached),
            ("cache_write", usage.cache_write),
            ("reasoning", usage.reasoning),
        ];
        for (kind, count) in token_counts {
            if let Some(count) = count.filter(|count| *count > 0) {
                self.tokens.with_label_values(&[client, deployment, kind]).inc_by(count);
            }
        }
    }

    /// Counts what an exchange costs, for its client and deployment.
    fn record_cost(&self, exchange: &FinishedExchange, labels: [&str; 2], cost: ResponseCost) {
        if let ResponseCost::Known(cost) = cost {
            // Exact up to 2^53 millionths of the currency; the records are exact.
            self.cost.with_label_values(&labels).inc_by(cost.millionths() as f64 / 1e6);
        }
        if cost == ResponseCost::Unknown {
            self.cost_unknown.with_label_values(&labels).inc();
        }
        self.costs.record(exchange, cost);
    }

    fn record_prompt_tokens(
        &self,
        exchange: &FinishedExchange,
        usage: &TokenUsage,
        label: &str,
        now: Instant,
    ) {
        let Some(tokens) = PromptTokens::of(usage) else { return };
        let is_reported = |kind| kind != "written" || usage.cache_write.is_some();
        for (kind, count) in tokens.by_kind().into_iter().filter(|(kind, _)| is_reported(*kind)) {
            self.prompt_tokens_by_kind.with_label_values(&[label, kind]).inc_by(count);
        }
        let deployment = exchange.requested_deployment.as_ref().filter(|_| exchange.is_deployment_known);
        // What says nothing of a cache has none.
        if let (Some(deployment), Some(backend), Some(_)) =
            (deployment, &exchange.answering_backend, usage.cached)
        {
            self.prompt_tokens.record(deployment, backend, tokens, now);
        }
        if let (Some(deployment), Some(_)) = (deployment, usage.cache_write) {
            self.prompt_tokens.note_billed_writes(deployment);
        }
    }

    /// Counts records of a sink by what became of them.
    pub fn count_records(&self, sink: &str, result: &str, count: u64) {
        if count > 0 {
            self.records.with_label_values(&[sink, result]).inc_by(count);
            self.deliveries.count_records(sink, result, count, SystemTime::now());
        }
    }

    /// Begins to count the records of the spool and of these sinks: what has not happened yet is 0, so that
    /// `increase()` sees the first record that is dropped.
    pub fn expect_records(&self, sinks: &[&str]) {
        for sink in [delivery::SPOOL].iter().chain(sinks) {
            for result in record_results(sink) {
                self.records.with_label_values(&[*sink, *result]).inc_by(0);
            }
        }
    }

    /// Counts spans of traces by what became of them.
    pub(super) fn count_spans(&self, result: &str, count: u64) {
        if count > 0 {
            self.spans.with_label_values(&[result]).inc_by(count);
            self.deliveries.count_records(delivery::TRACES, result, count, SystemTime::now());
        }
    }

    /// Begins to count spans: what has not happened yet is 0.
    pub(super) fn expect_spans(&self) {
        for result in ["delivered", "retried", "rejected", "dropped"] {
            self.spans.with_label_values(&[result]).inc_by(0);
        }
    }

    /// Counts a configuration reload.
    pub fn record_config_reload(&self, is_success: bool) {
        self.config_reloads
            .with_label_values(&[if is_success { RELOAD_SUCCESS } else { RELOAD_FAILURE }])
            .inc();
    }

    /// Sets the bytes of records that are not yet delivered to every sink.
    pub fn set_spool_bytes(&self, bytes: u64) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// All metrics in the text format of Prometheus, together with those of `other`.
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

/// What can become of a record in the spool or in a sink.
fn record_results(sink: &str) -> &'static [&'static str] {
    match sink {
        delivery::SPOOL => &["written", "without_content", "dropped", "late"],
        delivery::LOG_ANALYTICS => &["delivered", "retried", "dead", "lost"],
        _ => &["delivered", "retried", "lost"],
    }
}

/// Registers a metric.
///
/// # Panics
/// If the name or a label is invalid, or the name is already registered. Names are constants, so any test
/// that creates the metrics finds this.
pub fn register_metric<M: Collector + Clone + 'static>(
    registry: &Registry,
    created: prometheus::Result<M>,
) -> M {
    let metric = created.expect("names and labels are valid constants");
    registry.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
