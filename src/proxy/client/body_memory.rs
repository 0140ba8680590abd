//! The memory limit that all held request bodies and held streams share (`requests.body_memory`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::refusal::{Refusal, RefusalReason};

/// Counts the memory of all held bodies and streams. It allocates nothing.
#[derive(Debug, Default)]
pub(in crate::proxy) struct BodyMemory {
    used_bytes: AtomicU64,
}

impl BodyMemory {
    /// An empty reservation. `max_total_bytes` is the limit for all reservations together, from the
    /// configuration of this request: after a reload it may differ from that of others.
    pub(in crate::proxy) fn empty_reservation(memory: &Arc<Self>, max_total_bytes: u64) -> MemoryReservation {
        MemoryReservation { memory: Arc::clone(memory), max_total_bytes, reserved_bytes: 0 }
    }

    fn try_reserve(&self, bytes: u64, max_total_bytes: u64) -> bool {
        let add = |used: u64| used.checked_add(bytes).filter(|used| *used <= max_total_bytes);
        self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A part of the memory, which is released when this is dropped.
#[derive(Debug)]
pub(in crate::proxy) struct MemoryReservation {
    memory: Arc<BodyMemory>,
    max_total_bytes: u64,
    reserved_bytes: u64,
}

impl MemoryReservation {
    /// Grows to this size, in bytes; does nothing if it is larger already.
    ///
    /// # Errors
    /// `overloaded` if the limit would be exceeded.
    pub(in crate::proxy) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.reserved_bytes);
        if more == 0 || self.memory.try_reserve(more, self.max_total_bytes) {
            self.reserved_bytes += more;
            return Ok(());
        }
        let message = "the balancer holds too many request bodies at the moment; try again shortly";
        Err(Refusal::new(RefusalReason::Overloaded, message).with_retry_after(Duration::from_secs(1)))
    }

    /// Its size.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.memory.release(self.reserved_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_share_one_limit_and_release_their_memory_when_dropped() {
        let memory = Arc::<BodyMemory>::default();
        let mut first = BodyMemory::empty_reservation(&memory, 100);
        let mut second = BodyMemory::empty_reservation(&memory, 100);
        assert!(first.grow_to(60).is_ok());
        assert_eq!(second.grow_to(50).unwrap_err().reason, RefusalReason::Overloaded);
        drop(first);
        assert!(second.grow_to(100).is_ok());
        drop(second);
        assert!(memory.try_reserve(100, 100));
    }
}
