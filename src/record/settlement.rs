//! The end of a request for its client's limits: what it has reserved is replaced by what it has used.

use std::time::{Instant, SystemTime};

use super::exchange::{ExchangeOutcome, FinishedExchange};
use crate::admission::limits::{Settlement, UsedTokens};
use crate::azure::response::usage::TokenUsage;

impl FinishedExchange {
    /// Settles what the exchange has reserved, now that its tokens are known or never will be.
    pub(super) fn settle_limits(&mut self, usage: Option<&TokenUsage>) {
        let used = usage.filter(|_| !self.fetches_stored_object()).map(used_tokens);
        if let Some(mut reservation) = self.reservation.take() {
            reservation.settle(
                used.map_or_else(|| self.settlement_without_usage(), Settlement::Used),
                Instant::now(),
                SystemTime::now(),
            );
            return;
        }
        // A response of a realtime session, which has reserved nothing.
        let limiter = self.client.as_ref().and_then(|client| client.limiter.as_ref());
        if let (Some(limiter), Some(used)) = (limiter, used) {
            limiter.add_used(self.requested_deployment.as_ref(), &used, Instant::now(), SystemTime::now());
        }
    }

    /// What counts if no usage is told.
    fn settlement_without_usage(&self) -> Settlement {
        let reached_backend =
            self.attempts.iter().any(|attempt| attempt.status.is_none_or(|status| status < 400));
        let may_be_billed = match self.outcome {
            ExchangeOutcome::Answered => self.client_status.is_some_and(|status| status < 400),
            // The backend may go on without the client.
            ExchangeOutcome::ClientGone => reached_backend,
            // The client has seen a part of it.
            ExchangeOutcome::Failed => self.client_status.is_some_and(|status| status < 400),
            ExchangeOutcome::Refused => false,
        };
        if may_be_billed && !self.fetches_stored_object() { Settlement::Unknown } else { Settlement::Nothing }
    }
}

fn used_tokens(usage: &TokenUsage) -> UsedTokens {
    let input = usage.input.or(usage.total.filter(|_| usage.output.is_none()));
    UsedTokens {
        input: input.unwrap_or_default(),
        cached: usage.cached.unwrap_or_default(),
        output: usage.output.unwrap_or_default(),
    }
}
