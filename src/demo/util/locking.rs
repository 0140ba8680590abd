//! Locking without poisoning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the mutex even if another thread has panicked while it held the lock.
///
/// The simulator serves many connections; a panic on one of them must not break the others.
pub(in crate::demo) fn lock_ignoring_poison<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
