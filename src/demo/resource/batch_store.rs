//! The batches of a resource, and where each is in its course.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::bounded_store::{BoundedStore, StoreLimits};

const LIMITS: StoreLimits = StoreLimits { entries: 1_000, bytes: 256 * 1024 * 1024 };
/// Parts of the duration of a batch after which its status changes, in percent.
const VALIDATED_AT_PERCENT: u32 = 25;
const PROCESSED_AT_PERCENT: u32 = 75;

/// The batches of one resource.
#[derive(Debug)]
pub(in crate::demo) struct BatchStore(BoundedStore<StoredBatch>);

#[derive(Debug, Clone)]
pub(in crate::demo) struct StoredBatch {
    pub(in crate::demo) id: String,
    /// The batch object, without what changes with its status.
    pub(in crate::demo) json: Value,
    /// The input as it was when the batch was created.
    pub(in crate::demo) input: Bytes,
    pub(in crate::demo) created_at: Instant,
    pub(in crate::demo) duration: Duration,
    pub(in crate::demo) cancelled_at: Option<Instant>,
    /// The members of the batch object that say what came out, once that is known.
    pub(in crate::demo) outcome: Option<Value>,
}

/// The course of a batch. Whether it has completed or failed depends on its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum BatchPhase {
    Validating,
    InProgress,
    Finalizing,
    Done,
    Cancelling,
    Cancelled,
}

impl Default for BatchStore {
    fn default() -> Self {
        Self(BoundedStore::new(LIMITS))
    }
}

impl BatchStore {
    pub(in crate::demo) fn insert(&mut self, batch: StoredBatch) {
        let (id, bytes) = (batch.id.clone(), batch.input.len() + 1024);
        self.0.insert(&id, batch, bytes);
    }

    pub(in crate::demo) fn get(&self, id: &str) -> Option<&StoredBatch> {
        self.0.get(id)
    }

    pub(in crate::demo) fn get_mut(&mut self, id: &str) -> Option<&mut StoredBatch> {
        self.0.get_mut(id)
    }

    /// The ids of all batches, oldest first.
    pub(in crate::demo) fn ids(&self) -> Vec<String> {
        self.0.iter().map(|(id, _)| id.to_owned()).collect()
    }
}

impl StoredBatch {
    pub(in crate::demo) fn phase(&self, now: Instant) -> BatchPhase {
        if let Some(cancelled_at) = self.cancelled_at {
            let is_over = now >= cancelled_at + self.duration / 4;
            return if is_over { BatchPhase::Cancelled } else { BatchPhase::Cancelling };
        }
        let after = |percent: u32| now >= self.created_at + self.duration * percent / 100;
        if after(100) {
            BatchPhase::Done
        } else if after(PROCESSED_AT_PERCENT) {
            BatchPhase::Finalizing
        } else if after(VALIDATED_AT_PERCENT) {
            BatchPhase::InProgress
        } else {
            BatchPhase::Validating
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_its_course() {
        use BatchPhase::*;
        let now = Instant::now();
        let mut batch = StoredBatch {
            id: "b".to_owned(),
            json: Value::Null,
            input: Bytes::new(),
            created_at: now,
            duration: Duration::from_secs(100),
            cancelled_at: None,
            outcome: None,
        };
        for (seconds, phase) in [(0, Validating), (25, InProgress), (75, Finalizing), (100, Done)] {
            assert_eq!(batch.phase(now + Duration::from_secs(seconds)), phase, "{seconds} s");
        }
        batch.cancelled_at = Some(now + Duration::from_secs(30));
        for (seconds, phase) in [(30, Cancelling), (54, Cancelling), (55, Cancelled), (200, Cancelled)] {
            assert_eq!(batch.phase(now + Duration::from_secs(seconds)), phase, "{seconds} s");
        }
    }
}
