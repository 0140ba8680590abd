//! How a request was routed by its prompt, for its record.

use super::retry_state::RetryState;
use crate::record::exchange::CacheRecord;
use crate::routing::prompt_cache::MoveReason;

impl RetryState {
    /// How the request was routed by its prompt; `None` if it was not.
    pub(in crate::proxy) fn cache_record(&self) -> Option<CacheRecord> {
        let route = self.admitted.prompt_route?;
        let moved = self.plan.move_reason().map(MoveReason::as_str);
        Some(CacheRecord { key: route.key, by: route.source.as_str(), moved })
    }
}
