//! How the delivery of records goes: for the spool and each sink the last delivery, the last error, and what was
//! dropped.
//!
//! The threads that write and deliver records report here; the admin API reads it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

/// The names of the spool and the sinks in the spool's file names, in metrics and in the status.
pub const SPOOL: &str = "spool";
/// The sink that writes lines of JSON to a file.
pub const JSONL: &str = "jsonl";
/// The sink that sends rows to Log Analytics.
pub const LOG_ANALYTICS: &str = "log_analytics";
/// The exporter of traces, which is no sink of records but whose delivery is reported like theirs.
pub const TRACES: &str = "traces";

/// How many of the last minutes dropped records are counted for.
pub const RECENT_MINUTES: usize = 15;
/// An error is cut at this many characters.
const MAX_ERROR_CHARACTERS: usize = 200;

/// Records that are not delivered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many; `None` if some of an earlier process are not counted yet.
    pub records: Option<u64>,
    /// The bytes that they take in memory or in the spool.
    pub bytes: u64,
    /// Since when the oldest waits; `None` if there is none, or if it is not known.
    pub oldest: Option<SystemTime>,
}

/// Resolves when the record is in the kernel, so that it survives the process, or is lost.
pub type WriteReceipt = oneshot::Receiver<()>;

impl Backlog {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.zip(other.records).map(|(one, other)| one + other),
            bytes: self.bytes + other.bytes,
            oldest: self.oldest.into_iter().chain(other.oldest).min(),
        }
    }
}

/// The delivery to the spool and to each sink.
#[derive(Debug, Default)]
pub struct Deliveries {
    spool: Delivery,
    jsonl: Delivery,
    log_analytics: Delivery,
    traces: Delivery,
}

/// The delivery to one of them.
#[derive(Debug, Default)]
pub struct Delivery {
    state: Mutex<DeliveryState>,
}

/// What is known of a delivery.
#[derive(Clone, Debug, Default)]
pub struct DeliveryState {
    /// When records were last delivered.
    pub last_delivery: Option<SystemTime>,
    /// Since when delivery fails; `None` if it does not.
    pub failing_since: Option<SystemTime>,
    /// The last error, also if delivery works again.
    pub last_error: Option<DeliveryError>,
    /// Records that were dropped since the start of the process.
    pub dropped: u64,
    /// Records that the sink rejected and that are in the dead letter file.
    pub dead_letters: u64,
    /// A ring: the minute since 1970, and the records that were dropped in it.
    dropped_by_minute: [(u64, u64); RECENT_MINUTES],
}

/// Why a delivery failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryError {
    /// One line, without a secret.
    pub message: String,
    /// When it was last seen.
    pub at: SystemTime,
}

impl Deliveries {
    /// The delivery to the spool or sink of this name; `None` for another name.
    pub fn get(&self, sink: &str) -> Option<&Delivery> {
        match sink {
            SPOOL => Some(&self.spool),
            JSONL => Some(&self.jsonl),
            LOG_ANALYTICS => Some(&self.log_analytics),
            TRACES => Some(&self.traces),
            _ => None,
        }
    }

    /// Counts records by what became of them, in the words of the metric.
    pub(super) fn count_records(&self, sink: &str, result: &str, count: u64, now: SystemTime) {
        let Some(delivery) = self.get(sink) else { return };
        match result {
            "written" | "delivered" => delivery.lock().last_delivery = Some(now),
            "dropped" | "lost" => delivery.lock().count_dropped(count, now),
            "dead" => delivery.lock().dead_letters += count,
            _ => {}
        }
    }

    /// Delivery to this sink fails.
    pub(super) fn on_failed(&self, sink: &str, message: &str, now: SystemTime) {
        let Some(delivery) = self.get(sink) else { return };
        let line = message.chars().map(|c| if c.is_control() { ' ' } else { c });
        let message = line.take(MAX_ERROR_CHARACTERS).collect();
        let mut state = delivery.lock();
        state.failing_since = state.failing_since.or(Some(now));
        state.last_error = Some(DeliveryError { message, at: now });
    }

    /// Delivery to this sink works, or works again.
    pub(super) fn on_working(&self, sink: &str) {
        if let Some(delivery) = self.get(sink) {
            delivery.lock().failing_since = None;
        }
    }
}

impl Delivery {
    /// What is known now.
    pub fn state(&self) -> DeliveryState {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeliveryState {
    fn count_dropped(&mut self, count: u64, now: SystemTime) {
        self.dropped += count;
        let minute = minute_of(now);
        if let Some(step) = self.dropped_by_minute.get_mut((minute % RECENT_MINUTES as u64) as usize) {
            *step = (minute, if step.0 == minute { step.1 + count } else { count });
        }
    }

    /// Records that were dropped in the last [`RECENT_MINUTES`], the current one included.
    pub fn recently_dropped(&self, now: SystemTime) -> u64 {
        let current = minute_of(now);
        let is_recent = |minute: u64| minute <= current && minute + RECENT_MINUTES as u64 > current;
        self.dropped_by_minute.iter().filter(|(minute, _)| is_recent(*minute)).map(|(_, count)| count).sum()
    }
}

fn minute_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 60
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 * 60 + minute * 60 + 7)
    }

    #[test]
    fn dropped_records_are_counted_in_total_and_for_the_last_minutes() {
        let deliveries = Deliveries::default();
        for (minute, result, count) in
            [(0, "lost", 1), (0, "lost", 2), (14, "dropped", 4), (15, "lost", 8), (15, "retried", 100)]
        {
            deliveries.count_records(JSONL, result, count, at(minute));
        }
        let state = deliveries.get(JSONL).unwrap().state();
        assert_eq!(state.dropped, 15);
        for (minute, expected) in [(15, 12), (28, 12), (29, 8), (30, 0), (10_000, 0)] {
            assert_eq!(state.recently_dropped(at(minute)), expected, "{minute}");
        }
        assert_eq!(deliveries.get(LOG_ANALYTICS).unwrap().state().dropped, 0);
    }

    #[test]
    fn a_failure_has_a_beginning_and_its_last_error_stays() {
        let deliveries = Deliveries::default();
        let state = || deliveries.get(SPOOL).unwrap().state();
        deliveries.count_records(SPOOL, "written", 3, at(0));
        assert_eq!((state().last_delivery, state().failing_since), (Some(at(0)), None));
        deliveries.on_failed(SPOOL, "no space\nleft", at(1));
        deliveries.on_failed(SPOOL, &"x".repeat(1_000), at(2));
        assert_eq!(state().failing_since, Some(at(1)));
        assert_eq!(state().last_error, Some(DeliveryError { message: "x".repeat(200), at: at(2) }));
        deliveries.on_working(SPOOL);
        assert!(state().failing_since.is_none() && state().last_error.is_some());
        deliveries.on_failed(SPOOL, "no space\nleft", at(3));
        assert_eq!(
            (state().failing_since, state().last_error.unwrap().message),
            (Some(at(3)), "no space left".into())
        );
    }
}
