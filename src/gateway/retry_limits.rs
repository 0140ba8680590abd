//! How long and how often a request is tried.

use std::time::{Duration, Instant};

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use crate::routing::retry_plan::{ResourceSearch, RetryLimits};

impl Gateway {
    /// What a request whose body is complete now may spend on retries. `read_timeout` is that of the
    /// client, counted from `arrival`.
    pub fn retry_limits_for_request(
        &self,
        admitted: &AdmittedRequest,
        now: Instant,
        arrival: Instant,
        read_timeout: Option<Duration>,
    ) -> RetryLimits {
        let deadline = now + self.retry_config.retry_start_time_limit;
        let client_deadline = read_timeout.and_then(|timeout| arrival.checked_add(timeout));
        RetryLimits {
            max_retries: self.retry_config.max_retries,
            max_outage: self.retry_config.max_outage,
            max_cooldown_wait: match admitted.search() {
                // No other resource will do. Waits end at the deadline.
                Some(ResourceSearch::Home { .. }) if self.waits_for_home() && self.queue_config.is_none() => {
                    self.retry_config.retry_start_time_limit
                }
                // In the queue it waits behind those that came before.
                Some(ResourceSearch::Home { .. }) => Duration::ZERO,
                _ => self.retry_config.max_cooldown_wait,
            },
            max_queue_wait: self.queue_config.and_then(|queue| match admitted.search() {
                Some(ResourceSearch::Home { .. }) if !self.waits_for_home() => None,
                Some(ResourceSearch::Home { .. }) => Some(self.retry_config.retry_start_time_limit),
                _ => Some(queue.max_wait),
            }),
            retry_budget_percentage: self.retry_config.budget_percentage,
            latest_retry_start: client_deadline.map_or(deadline, |client| client.min(deadline)),
        }
    }
}
