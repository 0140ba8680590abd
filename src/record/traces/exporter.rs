//! Sends spans to the collector: OTLP over HTTP, protobuf, compressed with gzip.
//! <https://opentelemetry.io/docs/specs/otlp/#otlphttp>
//!
//! While the collector is away, a batch is sent again and again, and what finishes meanwhile waits in the queue.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use log::warn;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::timeout;

use super::otlp::{
    Attributes, ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, MEDIA_TYPE,
    Resource, ResourceSpans, ScopeSpans,
};
use super::queue::{Taken, TraceQueue};
use super::spans::{BackendPlaces, SCHEMA_URL};
use crate::azure::response::hints;
use crate::config::{TracesConfig, load_certificate_authorities};
use crate::outbound::{OutboundClient, OutboundRequest, OutboundResponse};
use crate::record::delivery;
use crate::record::metrics::Metrics;
use crate::record::sinks::backoff::Backoff;
use crate::record::sinks::incident::DeliveryIncident;
use crate::routing::episodes::duration_in_words;

/// About how many spans are sent at once: as many as OpenTelemetry's own exporters send.
const MAX_BATCH_SPANS: usize = 512;
/// How long requests are collected.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How long to wait for requests before looking again whether the queue is closed.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit of one request: the default of OTLP exporters.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long a batch is sent again before it is given up, so that one that a collector cannot process does not
/// hold up others.
const MAX_RETRY_TIME: Duration = Duration::from_secs(300);
/// How long delivery goes on after the process began to shut down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// The task that sends spans.
pub(super) struct TraceExporter {
    config: TracesConfig,
    queue: Arc<TraceQueue>,
    places: Arc<ArcSwap<BackendPlaces>>,
    metrics: Arc<Metrics>,
    /// Whether the process shuts down.
    shutdown_receiver: watch::Receiver<bool>,
    /// `None` until the certificate authorities were read.
    client: Option<OutboundClient>,
    /// Since when and why delivery fails. Each reason is logged once.
    incident: Option<DeliveryIncident>,
    /// When delivery stops; set when the shutdown is first noticed.
    shutdown_deadline: Option<Instant>,
    /// Spans of batches that were given up.
    lost_spans: u64,
}

/// What became of a request.
enum ExportOutcome {
    /// The collector has taken all but so many spans.
    Delivered { rejected: u64 },
    /// It will not take them.
    Rejected(String),
    /// A temporary failure: the `retry-after` of the collector, and the reason.
    RetryLater(Option<Duration>, String),
    /// The process ended before the response came.
    ShutdownTimedOut,
}

impl TraceExporter {
    pub(super) fn new(
        config: TracesConfig,
        queue: Arc<TraceQueue>,
        places: Arc<ArcSwap<BackendPlaces>>,
        metrics: Arc<Metrics>,
        shutdown_receiver: watch::Receiver<bool>,
    ) -> Self {
        Self {
            config,
            queue,
            places,
            metrics,
            shutdown_receiver,
            client: None,
            incident: None,
            shutdown_deadline: None,
            lost_spans: 0,
        }
    }

    /// Sends spans until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            // This call blocks. That is allowed here: the task is the only one on this thread.
            match self.queue.take(MAX_BATCH_SPANS, POLL_INTERVAL) {
                Taken::Requests(requests) => {
                    let places = self.places.load_full();
                    let spans: Vec<_> =
                        requests.iter().flat_map(|request| request.to_spans(&places)).collect();
                    let count = spans.len() as u64;
                    drop(requests);
                    self.deliver(&encode_request(spans), count).await;
                    if self.queue.len() == 0 {
                        self.sleep_unless_shutdown(BATCH_DELAY).await;
                    }
                }
                Taken::Nothing => {}
                Taken::Closed => break,
            }
        }
        if self.lost_spans > 0 {
            warn!("{} spans of traces are lost: the collector has not taken them", self.lost_spans);
        }
    }

    /// Sends a batch until the collector has taken or rejected it, or it has lasted too long.
    async fn deliver(&mut self, body: &Bytes, count: u64) {
        let (mut backoff, began_at) = (Backoff::default(), Instant::now());
        loop {
            match self.send_or_abort(body).await {
                ExportOutcome::Delivered { rejected } => {
                    let rejected = rejected.min(count);
                    self.metrics.count_spans("delivered", count - rejected);
                    if rejected > 0 {
                        self.metrics.count_spans("rejected", rejected);
                        self.report_failure("it has rejected a part of the spans");
                    } else {
                        self.report_recovery();
                    }
                    return;
                }
                ExportOutcome::Rejected(reason) => {
                    self.metrics.count_spans("rejected", count);
                    self.report_failure(&reason);
                    return;
                }
                ExportOutcome::RetryLater(hint, reason) => {
                    self.metrics.count_spans("retried", count);
                    self.report_failure(&reason);
                    let delay = backoff.next_delay(hint);
                    if self.must_stop() || began_at.elapsed() + delay > MAX_RETRY_TIME {
                        return self.lose(count);
                    }
                    self.sleep_unless_shutdown(delay).await;
                    if self.must_stop() {
                        return self.lose(count);
                    }
                }
                ExportOutcome::ShutdownTimedOut => return self.lose(count),
            }
        }
    }

    fn lose(&mut self, count: u64) {
        self.metrics.count_spans("dropped", count);
        self.lost_spans += count;
    }

    /// Reports why spans are not delivered, and logs a new reason once.
    fn report_failure(&mut self, reason: &str) {
        self.metrics.deliveries.on_failed(delivery::TRACES, reason, SystemTime::now());
        if self.incident.get_or_insert_with(|| DeliveryIncident::new(Instant::now())).is_news(reason) {
            warn!("traces are not delivered: the collector does not accept them: {reason}");
        }
    }

    fn report_recovery(&mut self) {
        let Some(incident) = self.incident.take() else { return };
        self.metrics.deliveries.on_working(delivery::TRACES);
        let lasted = duration_in_words(incident.lasted(Instant::now()));
        warn!("traces are delivered again, after {lasted}");
    }

    /// Sleeps, but not longer than until the shutdown begins.
    async fn sleep_unless_shutdown(&self, duration: Duration) {
        let mut shutdown = self.shutdown_receiver.clone();
        let _ = timeout(duration, shutdown.wait_for(|has_begun| *has_begun)).await;
    }

    /// Whether delivery is to stop now because the process ends.
    fn must_stop(&mut self) -> bool {
        *self.shutdown_receiver.borrow() && {
            let deadline = *self.shutdown_deadline.get_or_insert_with(|| Instant::now() + SHUTDOWN_TIMEOUT);
            // After a failure there is no time for another attempt.
            self.incident.is_some() || Instant::now() >= deadline
        }
    }

    /// Sends a request. During a shutdown the response is not waited for longer than [`SHUTDOWN_TIMEOUT`].
    async fn send_or_abort(&mut self, body: &Bytes) -> ExportOutcome {
        let mut shutdown = self.shutdown_receiver.clone();
        if *shutdown.borrow() && self.shutdown_deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return ExportOutcome::ShutdownTimedOut;
        }
        let shutdown_timeout = async {
            let _ = shutdown.wait_for(|has_begun| *has_begun).await;
            tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            outcome = self.send(body.clone()) => outcome,
            () = shutdown_timeout => ExportOutcome::ShutdownTimedOut,
        }
    }

    async fn send(&mut self, body: Bytes) -> ExportOutcome {
        if self.client.is_none() {
            match new_client(&self.config) {
                Ok(client) => self.client = Some(client),
                Err(reason) => return ExportOutcome::RetryLater(None, reason),
            }
        }
        let Some(client) = &self.client else {
            return ExportOutcome::RetryLater(None, "no client".to_owned());
        };
        match send_request(client, &self.config, body).await {
            Ok(response) => classify_response(&response),
            Err(reason) => ExportOutcome::RetryLater(None, reason),
        }
    }
}

/// Sends no spans, which shows whether the collector is there and accepts the headers. Returns its status.
///
/// # Errors
/// What is wrong.
pub async fn send_empty_request(config: &TracesConfig) -> Result<u16, String> {
    let client = new_client(config)?;
    let response = send_request(&client, config, encode_request(Vec::new())).await?;
    match classify_response(&response) {
        ExportOutcome::Delivered { .. } => Ok(response.status),
        ExportOutcome::Rejected(reason) | ExportOutcome::RetryLater(_, reason) => Err(reason),
        ExportOutcome::ShutdownTimedOut => Err("the process ends".to_owned()),
    }
}

fn new_client(config: &TracesConfig) -> Result<OutboundClient, String> {
    let client = OutboundClient::new(EXPORT_TIMEOUT);
    let Some(path) = &config.ca_file else { return Ok(client) };
    let authorities = load_certificate_authorities(path);
    let authorities = authorities.map_err(|problem| format!("{}: {problem}", path.display()))?;
    Ok(client.with_certificate_authorities(authorities))
}

async fn send_request(
    client: &OutboundClient,
    config: &TracesConfig,
    body: Bytes,
) -> Result<OutboundResponse, String> {
    let own = [("content-type", MEDIA_TYPE), ("content-encoding", "gzip")];
    let configured = config.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret()));
    let headers: Vec<(&str, &str)> = configured.chain(own).collect();
    let request =
        OutboundRequest { method: Method::POST, path_and_query: &config.path, headers: &headers, body };
    client.send(&config.endpoint, request).await.map_err(|problem| problem.to_string())
}

/// A request with these spans, compressed. None of them is a request too.
fn encode_request(spans: Vec<super::otlp::Span>) -> Bytes {
    let mut attributes = Attributes::default();
    attributes.add("service.name", env!("CARGO_PKG_NAME"));
    attributes.add("service.version", env!("CARGO_PKG_VERSION"));
    attributes.add("process.pid", u64::from(std::process::id()));
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let scope_spans = ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA_URL.to_owned() };
    let is_empty = scope_spans.spans.is_empty();
    let resource_spans = ResourceSpans {
        resource: Some(Resource { attributes: attributes.0 }),
        scope_spans: if is_empty { Vec::new() } else { vec![scope_spans] },
    };
    let request = ExportTraceServiceRequest {
        resource_spans: if is_empty { Vec::new() } else { vec![resource_spans] },
    };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a `Vec` cannot fail.
    drop(encoder.write_all(&request.encode_to_vec()));
    Bytes::from(encoder.finish().unwrap_or_default())
}

/// What a response means. Its text is not shown: it may quote headers.
fn classify_response(response: &OutboundResponse) -> ExportOutcome {
    match response.status {
        200..300 => {
            // Some collectors answer with JSON whatever they are asked for, and without anything rejected.
            let answer = ExportTraceServiceResponse::decode(response.body.clone()).unwrap_or_default();
            let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
            ExportOutcome::Delivered { rejected: u64::try_from(rejected).unwrap_or(0) }
        }
        // The statuses that OTLP has a client repeat; after others it must not.
        429 | 502 | 503 | 504 => {
            let hint = hints::cooldown_hint(&response.headers, SystemTime::now());
            ExportOutcome::RetryLater(hint, response.status.to_string())
        }
        401 | 403 => ExportOutcome::Rejected(format!(
            "{}: the collector does not accept the credentials in traces.headers",
            response.status
        )),
        404 => ExportOutcome::Rejected(
            "404: the collector has no OTLP receiver for HTTP at this path".to_owned(),
        ),
        status => ExportOutcome::Rejected(status.to_string()),
    }
}
