//! Traces: spans of finished requests for an OpenTelemetry collector.
//!
//! The thread that writes records passes requests on to the queue here, with or without records; another thread makes
//! their spans and sends them. Nothing of this delays a request, and a collector that is away loses its traces only.

mod exporter;
mod otlp;
mod queue;
mod sampling;
mod spans;
#[cfg(test)]
mod testing;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::exporter::TraceExporter;
use self::queue::TraceQueue;
use self::sampling::TraceSampler;
use self::spans::{BackendPlaces, TracedRequest};
use super::exchange::FinishedExchange;
use super::metrics::Metrics;
use super::trace_context::TraceId;
use crate::config::{Config, TracesConfig};

pub use self::exporter::send_empty_request;
pub(super) use self::spans::AnswerFacts;

/// Passes finished requests on to the exporter. The queue is closed when this is dropped.
pub(super) struct Tracer {
    sampler: TraceSampler,
    queue: Arc<TraceQueue>,
    metrics: Arc<Metrics>,
}

/// The exporter, as the rest of the program sees it.
pub struct TracesControl {
    queue: Arc<TraceQueue>,
    places: Arc<ArcSwap<BackendPlaces>>,
    shutdown_sender: watch::Sender<bool>,
}

/// Starts the thread of the exporter. Its HTTP calls are made on `runtime`.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn start_exporter(
    traces: &TracesConfig,
    config: &Config,
    metrics: &Arc<Metrics>,
    runtime: Handle,
) -> io::Result<(Tracer, TracesControl, JoinHandle<()>)> {
    metrics.expect_spans();
    let queue = Arc::<TraceQueue>::default();
    let places = Arc::new(ArcSwap::from_pointee(BackendPlaces::of(&[config])));
    let (shutdown_sender, shutdown) = watch::channel(false);
    let exporter = TraceExporter::new(
        traces.clone(),
        Arc::clone(&queue),
        Arc::clone(&places),
        Arc::clone(metrics),
        shutdown,
    );
    let run = move || runtime.block_on(exporter.run());
    let thread = std::thread::Builder::new().name("traces".into()).spawn(run)?;
    let tracer = Tracer {
        sampler: TraceSampler::new(traces.sample),
        queue: Arc::clone(&queue),
        metrics: Arc::clone(metrics),
    };
    Ok((tracer, TracesControl { queue, places, shutdown_sender }, thread))
}

impl Tracer {
    /// Gives a request an id for its trace, unless its client has one.
    pub(super) fn identify(&self, exchange: &mut FinishedExchange) {
        if exchange.client_headers.trace_context.is_none() {
            exchange.own_trace_id = Some(TraceId::of_request(&exchange.request_id));
        }
    }

    /// Whether a request that has an id is exported.
    pub(super) fn includes(&mut self, exchange: &FinishedExchange) -> bool {
        self.sampler.includes(exchange, SystemTime::now())
    }

    /// Queues a request for the exporter. If the queue is full, it is lost and counted.
    pub(super) fn enqueue(&self, mut exchange: FinishedExchange, answer: AnswerFacts) {
        let Some(trace_id) = exchange.trace_id() else { return };
        exchange.discard_content();
        let request = TracedRequest { exchange: Box::new(exchange), trace_id, answer };
        if let Err(lost) = self.queue.push(request) {
            self.metrics.count_spans("dropped", lost as u64);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl TracesControl {
    /// Begins the shutdown: what cannot be delivered soon is lost.
    pub(super) fn begin_shutdown(&self) {
        self.shutdown_sender.send_replace(true);
    }

    /// Sets where backends are from now on. Those of the configuration before are still known, for the requests that
    /// have begun with it.
    pub(super) fn set_backends(&self, before: &Config, after: &Config) {
        self.places.store(Arc::new(BackendPlaces::of(&[before, after])));
    }

    /// How many requests wait.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl std::fmt::Debug for TracesControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TracesControl").field("queued", &self.queued()).finish_non_exhaustive()
    }
}
