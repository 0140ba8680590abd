//! Publishes the status every two seconds to all event streams. It is collected once for all of them,
//! and not at all while there are none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::snapshot::StatusSource;

/// How often the status is published.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes the status to event streams.
pub struct StatusFeed {
    latest_event_sender: watch::Sender<Bytes>,
}

impl StatusFeed {
    /// A feed; [`StatusFeed::publish_and_sample_in_flight`] publishes to it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { latest_event_sender: watch::Sender::new(Bytes::new()) })
    }

    /// The newest event, which all event streams share, and those from now on.
    pub(super) fn subscribe(&self, source: &StatusSource) -> (Bytes, watch::Receiver<Bytes>) {
        // Without event streams nothing is published, so the newest event may be old.
        if self.latest_event_sender.receiver_count() == 0 {
            self.latest_event_sender.send_replace(status_event(source));
        }
        let mut events = self.latest_event_sender.subscribe();
        let newest = events.borrow_and_update().clone();
        (newest, events)
    }

    /// Publishes the status until it is dropped. Also samples the requests in flight for the timeline.
    pub async fn publish_and_sample_in_flight(self: Arc<Self>, source: StatusSource) {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let active_config = source.load_active_config();
            let process = &active_config.gateway.process_state;
            let in_flight = process.requests_in_flight.load(Ordering::Relaxed) as u64;
            process.recorder.metrics().statistics.record_in_flight(in_flight, Instant::now());
            if self.latest_event_sender.receiver_count() == 0 {
                continue;
            }
            let source = source.clone();
            if let Ok(event) = spawn_blocking(move || status_event(&source)).await {
                self.latest_event_sender.send_replace(event);
            }
        }
    }
}

/// The status now, as an event (WHATWG HTML, "Server-sent events").
fn status_event(source: &StatusSource) -> Bytes {
    let status = source.collect_status(Instant::now());
    let mut event = b"event: status\ndata: ".to_vec();
    // JSON of strings and numbers cannot fail, and has no line end inside.
    if serde_json::to_writer(&mut event, &status).is_err() {
        return Bytes::new();
    }
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}
