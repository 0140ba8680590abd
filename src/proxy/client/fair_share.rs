//! A capacity that all clients share. One client cannot use up what others need.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::names::Caller;

/// A client may hold this many times as much as is free then: alone two thirds of the capacity, and several that
/// take all they can leave something to one more (a dynamic threshold, as switches use it for their shared
/// buffers: Choudhury and Hahne, 1998).
const MAX_MULTIPLE_OF_FREE: u64 = 2;

/// Counts what is in use of a capacity.
#[derive(Debug, Default)]
pub(in crate::proxy) struct FairShare(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    total: u64,
    /// Of each holder that has any.
    by_holder: HashMap<Caller, u64>,
}

impl FairShare {
    /// Takes `more` for something of this holder that has `held` so far; returns whether that is allowed.
    pub(in crate::proxy) fn try_take(&self, holder: &Caller, held: u64, more: u64, capacity: u64) -> bool {
        let mut used = self.lock();
        let held_in_all = used.by_holder.get(holder).copied().unwrap_or(0);
        let Some(free) = used.total.checked_add(more).and_then(|total| capacity.checked_sub(total)) else {
            return false;
        };
        // The only thing that a holder has may take all that is free.
        let is_only = held_in_all == held;
        if !is_only && held_in_all + more > free.saturating_mul(MAX_MULTIPLE_OF_FREE) {
            return false;
        }
        used.total += more;
        *used.by_holder.entry(holder.clone()).or_default() += more;
        true
    }

    /// Gives back what was taken for this holder.
    pub(in crate::proxy) fn give_back(&self, holder: &Caller, amount: u64) {
        let mut used = self.lock();
        used.total -= amount;
        if let Entry::Occupied(mut held) = used.by_holder.entry(holder.clone()) {
            *held.get_mut() -= amount;
            // Removed, so that the map does not grow with every address.
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.lock().total
    }

    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        let used = self.lock();
        used.total == 0 && used.by_holder.is_empty()
    }
}
