//! The most useful error response so far, for a client that gets no better one.

use super::held_response::HeldResponse;
use super::retry_state::RetryState;

impl RetryState {
    /// Keeps this response if it is more useful to the client than the best one so far. Of two that are
    /// equally useful it keeps the later, except while resources are asked for an object: what the first one says is
    /// as good as what the others say.
    pub(super) fn keep_best_response(&mut self, held: HeldResponse) {
        let is_better = match &self.best_response {
            None => true,
            Some(best) if best.usefulness_rank() == held.usefulness_rank() => {
                self.admitted.search().is_none()
            }
            Some(best) => held.usefulness_rank() < best.usefulness_rank(),
        };
        if is_better {
            self.best_response = Some(held);
        }
    }

    pub(super) fn has_best_response(&self) -> bool {
        self.best_response.is_some()
    }

    pub(super) fn take_best_response(&mut self) -> Option<HeldResponse> {
        self.best_response.take()
    }
}
