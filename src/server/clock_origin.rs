//! The beginning of time, for all processes of this machine.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The instant at which the clock of `Instant` was 0. All processes of a machine share it, so that they count the same
/// seconds.
pub(super) fn clock_origin() -> Instant {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let since = Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default());
    let now = Instant::now();
    now.checked_sub(since).unwrap_or(now)
}
