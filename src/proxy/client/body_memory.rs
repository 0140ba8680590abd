//! The memory limit that all held request bodies, held streams and unread responses share
//! (`requests.body_memory`). One client cannot use up what others need.

use std::sync::Arc;
use std::time::Duration;

use log::warn;

use super::fair_share::FairShare;
use crate::names::Caller;
use crate::refusal::{Refusal, RefusalReason};

/// What a response counts as that waits for its client: what one takes with HTTP/2 on both sides. Each side has
/// up to 64 KiB, and there is the part that is being written.
const UNREAD_RESPONSE_BYTES: u64 = 192 * 1024;

/// Counts the memory of all held bodies and streams, in bytes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct BodyMemory(FairShare);

impl BodyMemory {
    /// An empty reservation. `max_total_bytes` is the limit for all reservations together, from the
    /// configuration of this request: after a reload it may differ from that of others.
    pub(in crate::proxy) fn empty_reservation(
        memory: &Arc<Self>,
        holder: Caller,
        max_total_bytes: u64,
    ) -> MemoryReservation {
        MemoryReservation { memory: Arc::clone(memory), holder, max_total_bytes, reserved_bytes: 0 }
    }

    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.0.is_unused()
    }
}

/// A part of the memory, which is released when this is dropped.
#[derive(Debug)]
pub(in crate::proxy) struct MemoryReservation {
    memory: Arc<BodyMemory>,
    holder: Caller,
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
        if more == 0 || self.memory.0.try_take(&self.holder, self.reserved_bytes, more, self.max_total_bytes)
        {
            self.reserved_bytes += more;
            return Ok(());
        }
        let message = "the balancer holds too many request bodies at the moment, all together or of this client; \
                       try again shortly";
        Err(Refusal::new(RefusalReason::Overloaded, message).with_retry_after(Duration::from_secs(1)))
    }

    /// Moves what it has beyond so many bytes into a reservation of its own.
    pub(in crate::proxy) fn split_off(&mut self, kept_bytes: u64) -> Self {
        let moved_bytes = self.reserved_bytes.saturating_sub(kept_bytes);
        self.reserved_bytes -= moved_bytes;
        let (memory, holder) = (Arc::clone(&self.memory), self.holder.clone());
        Self { memory, holder, max_total_bytes: self.max_total_bytes, reserved_bytes: moved_bytes }
    }

    /// Grows by what a response takes that the client does not read; `None` if the limit would be exceeded.
    pub(in crate::proxy) fn grow_for_unread_response(mut self) -> Option<Self> {
        let bytes = self.reserved_bytes + UNREAD_RESPONSE_BYTES;
        self.grow_for_unread_responses(bytes).then_some(self)
    }

    /// Grows to this size, in bytes, for responses that the client does not read; returns whether the limit allows it.
    pub(super) fn grow_for_unread_responses(&mut self, bytes: u64) -> bool {
        if self.grow_to(bytes).is_ok() {
            return true;
        }
        // Without the address, so that the line is limited for all addresses together.
        let client = match &self.holder {
            Caller::Client(name) => format!("client {name}"),
            Caller::Address(_) => "an address".to_owned(),
        };
        warn!(
            "{client} does not read its responses, which take too much memory (requests.body_memory): those that \
             have waited for more than a second are broken off"
        );
        false
    }

    /// Its size.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        if self.reserved_bytes > 0 {
            self.memory.0.give_back(&self.holder, self.reserved_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;

    fn client(name: &str) -> Caller {
        Caller::Client(ClientName::new(name))
    }

    #[test]
    fn reservations_share_one_limit_and_release_their_memory_when_dropped() {
        let memory = Arc::<BodyMemory>::default();
        let mut first = BodyMemory::empty_reservation(&memory, client("a"), 100);
        let mut second = BodyMemory::empty_reservation(&memory, client("b"), 100);
        assert!(first.grow_to(60).is_ok());
        assert_eq!(second.grow_to(50).unwrap_err().reason, RefusalReason::Overloaded);
        drop(first);
        assert!(second.grow_to(100).is_ok(), "the only body of a client may take all that is free");
        drop(second);
        assert!(memory.is_unused());
    }

    #[test]
    fn a_part_of_a_reservation_is_released_apart() {
        let memory = Arc::<BodyMemory>::default();
        let mut whole = BodyMemory::empty_reservation(&memory, client("a"), 100);
        assert!(whole.grow_to(60).is_ok());
        let part = whole.split_off(20);
        assert_eq!((whole.reserved_bytes(), part.reserved_bytes(), memory.0.total()), (20, 40, 60));
        drop(whole);
        assert_eq!(memory.0.total(), 40);
        drop(part);
        assert!(memory.is_unused());
    }

    #[test]
    fn clients_that_take_all_they_can_leave_something_to_one_more() {
        let memory = Arc::<BodyMemory>::default();
        let mut reservations = Vec::new();
        let mut take_all = |holder: Caller| {
            let mut held = 0;
            loop {
                let mut reservation = BodyMemory::empty_reservation(&memory, holder.clone(), 1200);
                if reservation.grow_to(10).is_err() {
                    return held;
                }
                held += 10;
                reservations.push(reservation);
            }
        };
        assert_eq!(take_all(client("a")), 800);
        // Twice the 140 that are free afterwards would be 280.
        assert_eq!(take_all(client("b")), 260);
        assert!(take_all(Caller::Address(None)) >= 90);
        assert!(take_all(client("c")) >= 20);
        assert_eq!(take_all(client("a")), 0);
    }
}
