//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, which is how Azure dates its objects (`created_at`).
pub(in crate::demo) fn unix_seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
