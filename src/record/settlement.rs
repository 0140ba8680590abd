//! The end of a request for its client's limits: what it has reserved is replaced by what it has used.

use std::time::{Instant, SystemTime};

use super::cost::ResponseCost;
use super::exchange::{AttemptRecord, ExchangeOutcome, FinishedExchange};
use crate::admission::limits::{Reservation, Settlement, UsedTokens};
use crate::azure::response::usage::TokenUsage;

/// The errors of attempts for which nothing was sent to a backend.
const ERRORS_BEFORE_SENDING: [&str; 7] =
    ["dns", "connect_timeout", "connect_refused", "connect", "local_shortage", "tls", "credential"];

impl FinishedExchange {
    /// Settles what the exchange has reserved, now that its tokens are known or never will be.
    /// `is_estimated` says that the backend has reported no usage. `cost` is `None` without prices. Returns the
    /// reservation, if there was one.
    pub(super) fn settle_limits(
        &mut self,
        usage: Option<&TokenUsage>,
        is_estimated: bool,
        cost: Option<ResponseCost>,
    ) -> Option<Box<Reservation>> {
        // What an earlier request has begun counts as estimated for that one.
        let (usage, cost) = if self.fetches_stored_object() { (None, None) } else { (usage, cost) };
        let used = usage.map(used_tokens);
        if let Some(charge) = self.queue_charge.take() {
            match (&used, self.settlement_without_usage()) {
                (Some(used), _) => charge.settle(used.counted(1000)),
                (None, Settlement::Nothing) => charge.settle(0),
                // It counts as estimated.
                (None, _) => drop(charge),
            }
        }
        if let Some(mut reservation) = self.reservation.take() {
            let settlement = match used {
                Some(used) if is_estimated => Settlement::Estimated(used),
                Some(used) => Settlement::Used(used),
                None => self.settlement_without_usage(),
            };
            match cost {
                Some(ResponseCost::Known(amount)) => reservation.set_cost(amount.millionths()),
                Some(ResponseCost::Provisioned | ResponseCost::NotBilled) => reservation.set_cost(0),
                // If its tokens are not known either, it costs as much as estimated.
                Some(ResponseCost::Unknown | ResponseCost::BilledLater) | None => {}
            }
            reservation.settle(settlement, Instant::now(), SystemTime::now());
            return Some(reservation);
        }
        // A response of a realtime session, which has reserved nothing.
        let limiter = self.client.as_ref().and_then(|client| client.limiter.as_ref());
        if let (Some(limiter), Some(used)) = (limiter, used) {
            let cost = cost.and_then(ResponseCost::amount).unwrap_or_default();
            let (deployment, now) = (self.requested_deployment.as_ref(), Instant::now());
            limiter.add_used(deployment, &used, cost.millionths(), now, SystemTime::now());
        }
        None
    }

    /// What counts without usage.
    pub(super) fn settlement_without_usage(&self) -> Settlement {
        let reached_backend = self.attempts.iter().any(may_be_billed);
        let counts = match self.outcome {
            ExchangeOutcome::Answered => self.client_status.is_some_and(|status| status < 400),
            // The backend may go on without the client.
            ExchangeOutcome::ClientGone => reached_backend,
            // The client has seen a part of it.
            ExchangeOutcome::Failed => self.client_status.is_some_and(|status| status < 400),
            ExchangeOutcome::Refused => false,
        };
        if counts && !self.fetches_stored_object() { Settlement::Unknown } else { Settlement::Nothing }
    }
}

/// Whether the backend may have answered the attempt without anybody who reads it.
fn may_be_billed(attempt: &AttemptRecord) -> bool {
    match attempt.status {
        Some(status) => status < 400,
        None => !attempt.error_code.is_some_and(|code| ERRORS_BEFORE_SENDING.contains(&code)),
    }
}

/// If one of the two counts is not reported, it is the total without the other.
pub(super) fn used_tokens(usage: &TokenUsage) -> UsedTokens {
    let TokenUsage { input, output, total, .. } = *usage;
    let rest = |other: Option<u64>| total.unwrap_or_default().saturating_sub(other.unwrap_or_default());
    let input = input.unwrap_or_else(|| rest(output));
    UsedTokens {
        input,
        cached: usage.cached.unwrap_or_default(),
        output: output.unwrap_or_else(|| rest(Some(input))),
    }
}

#[cfg(test)]
#[path = "settlement_tests.rs"]
mod tests;
