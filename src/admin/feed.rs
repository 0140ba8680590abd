//! The state of things as it changes, for those who watch: made once, however many they are, and
//! not at all while there is nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::status;
use crate::server::reload::Live;

/// How often it is told.
const TICK: Duration = Duration::from_secs(2);

/// Events for those who watch.
pub struct Feed {
    events: watch::Sender<Bytes>,
}

impl Feed {
    /// A feed that [`Feed::run`] fills.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { events: watch::Sender::new(Bytes::new()) })
    }

    /// What comes from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Bytes> {
        self.events.subscribe()
    }

    /// Tells how things are, for as long as it is polled.
    pub async fn run(self: Arc<Self>, live: Arc<Live>, started: Instant) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let process = live.process();
            let in_flight = process.in_flight.load(Ordering::Relaxed) as u64;
            process.recorder.metrics().tally.sample(in_flight, Instant::now());
            if self.events.receiver_count() == 0 {
                continue;
            }
            let live = Arc::clone(&live);
            if let Ok(event) = spawn_blocking(move || event(&live, started)).await {
                self.events.send_replace(event);
            }
        }
    }
}

/// The state now, as an event (WHATWG HTML, "Server-sent events").
pub(super) fn event(live: &Live, started: Instant) -> Bytes {
    let status = status::of(live, started, Instant::now());
    let mut event = b"event: status\ndata: ".to_vec();
    // Of strings and numbers; it has no line end inside.
    if serde_json::to_writer(&mut event, &status).is_err() {
        return Bytes::new();
    }
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}
