//! The memory that all held bodies and held responses share (`requests.body_memory`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::refusal::{Refusal, RefusalReason};

/// Memory for all held bodies together; counts what is in use.
#[derive(Debug, Default)]
pub(in crate::proxy) struct BodyMemory {
    used: AtomicU64,
}

impl BodyMemory {
    /// A reservation that holds nothing yet. `limit`, in bytes, is what the configuration of its
    /// request allows for all of them.
    pub(in crate::proxy) fn reservation(memory: &Arc<Self>, limit: u64) -> MemoryReservation {
        MemoryReservation { memory: Arc::clone(memory), limit, bytes: 0 }
    }

    fn try_take(&self, bytes: u64, limit: u64) -> bool {
        let take = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A part of the memory; given back when dropped.
#[derive(Debug)]
pub(in crate::proxy) struct MemoryReservation {
    memory: Arc<BodyMemory>,
    limit: u64,
    bytes: u64,
}

impl MemoryReservation {
    /// Grows to this size, in bytes; does nothing if it is larger already.
    ///
    /// # Errors
    /// `overloaded` when not enough memory is left.
    pub(in crate::proxy) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 || self.memory.try_take(more, self.limit) {
            self.bytes += more;
            return Ok(());
        }
        let message = "the balancer holds too many request bodies at the moment; try again shortly";
        Err(Refusal::new(RefusalReason::Overloaded, message).with_retry_after(Duration::from_secs(1)))
    }

    /// What it holds, in bytes.
    pub(in crate::proxy) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_share_one_limit_and_return_their_memory_when_dropped() {
        let memory = Arc::<BodyMemory>::default();
        let mut first = BodyMemory::reservation(&memory, 100);
        let mut second = BodyMemory::reservation(&memory, 100);
        assert!(first.grow_to(60).is_ok());
        assert_eq!(second.grow_to(50).unwrap_err().reason, RefusalReason::Overloaded);
        drop(first);
        assert!(second.grow_to(100).is_ok());
        drop(second);
        assert!(memory.try_take(100, 100));
    }
}
