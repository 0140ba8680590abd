//! Rate limits as Azure applies them: which requests are admitted, and what the counters say.
//!
//! A standard deployment charges an estimate on arrival (characters / 4 + `max_tokens`) against a minute
//! that starts anew, and counts requests in windows of ten seconds, including refused ones. The request that
//! crosses the token limit is still served, so that the remaining tokens can be negative. A provisioned
//! deployment is a leaky bucket: it refuses only while the bucket is more than full, and the estimate is
//! corrected when the response has been sent.

use std::time::{Duration, Instant};

const TOKEN_WINDOW: Duration = Duration::from_secs(60);
const REQUEST_WINDOW: Duration = Duration::from_secs(10);
const REQUEST_WINDOWS_PER_MINUTE: u64 = 6;
/// What Azure asks a request to wait that could never fit.
const RETRY_AFTER_FOR_OVERSIZED_REQUEST: Duration = Duration::from_secs(86_400);

/// How the traffic of a deployment is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentKind {
    /// Without limits; responses carry no counters.
    Unlimited,
    /// By tokens and requests per minute.
    Standard {
        /// Tokens per minute.
        tokens_per_minute: u64,
        /// Requests per minute; 6 per 1 000 tokens if not given, as on Azure.
        requests_per_minute: Option<u64>,
    },
    /// By the utilization of capacity that is bought in advance.
    Provisioned {
        /// Tokens that the capacity processes in a minute, which is also what fills it to 100 %.
        tokens_per_minute: u64,
        /// How many input tokens one output token counts for (3 to 8 on Azure).
        output_weight: u64,
    },
}

/// What a request will cost, as far as that is known on arrival.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::demo) struct RequestCost {
    /// Characters of the prompt. (Bytes, in fact: for an estimate the difference does not matter.)
    pub(in crate::demo) prompt_characters: u64,
    /// Prompt tokens that are in the prompt cache.
    pub(in crate::demo) cached_prompt_tokens: u64,
    /// The most tokens that may be generated, for all choices together; 0 if the request sets no limit.
    pub(in crate::demo) max_output_tokens: u64,
}

/// How a mood changes the configured limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum LimitOverride {
    None,
    PercentOfLimits(u64),
    /// The limits apply, but all counters are -1.
    MinusOneCounters,
}

/// What a request was charged on arrival, and what it really used.
#[derive(Debug, Clone)]
pub(in crate::demo) struct ChargeSettlement {
    pub(in crate::demo) deployment: String,
    pub(in crate::demo) estimated_tokens: u64,
    /// Weighted as [`RateLimiter::weighted_tokens`] does.
    pub(in crate::demo) actual_tokens: u64,
}

/// The counters that a response carries as headers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::demo) enum RateLimitCounters {
    None,
    Standard {
        request_limit: u64,
        remaining_requests: i64,
        token_limit: u64,
        remaining_tokens: i64,
        time_to_reset: Duration,
    },
    MinusOne,
    /// Percent.
    UtilizationPercent(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum ExceededLimit {
    Requests,
    Tokens,
    RequestLargerThanLimit,
    ProvisionedCapacity,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::demo) enum AdmissionDecision {
    Admitted { estimated_tokens: u64, counters: RateLimitCounters },
    Refused { exceeded_limit: ExceededLimit, retry_after: Duration, counters: RateLimitCounters },
}

/// The rate limiter of one deployment.
#[derive(Debug)]
pub(in crate::demo) struct RateLimiter {
    deployment_kind: DeploymentKind,
    created_at: Instant,
    /// Minutes since `created_at`.
    current_minute: u128,
    tokens_this_minute: u64,
    requests_this_minute: u64,
    /// Windows of ten seconds since `created_at`.
    current_request_window: u128,
    requests_this_window: u64,
    /// Weighted tokens in the leaky bucket.
    bucket_level: f64,
    bucket_updated_at: Instant,
}

impl RateLimiter {
    pub(in crate::demo) fn new(deployment_kind: DeploymentKind, now: Instant) -> Self {
        Self {
            deployment_kind,
            created_at: now,
            current_minute: 0,
            tokens_this_minute: 0,
            requests_this_minute: 0,
            current_request_window: 0,
            requests_this_window: 0,
            bucket_level: 0.0,
            bucket_updated_at: now,
        }
    }

    /// Admits or refuses a request. As on Azure, a refused request counts against the limit of requests, too.
    pub(in crate::demo) fn admit_request(
        &mut self,
        cost: RequestCost,
        limit_override: LimitOverride,
        now: Instant,
    ) -> AdmissionDecision {
        let hides_counters = limit_override == LimitOverride::MinusOneCounters;
        match self.deployment_kind {
            DeploymentKind::Unlimited => {
                let counters =
                    if hides_counters { RateLimitCounters::MinusOne } else { RateLimitCounters::None };
                AdmissionDecision::Admitted { estimated_tokens: estimated_tokens(cost), counters }
            }
            DeploymentKind::Standard { tokens_per_minute, requests_per_minute } => {
                let percent =
                    if let LimitOverride::PercentOfLimits(percent) = limit_override { percent } else { 100 };
                let requests =
                    requests_per_minute.unwrap_or(tokens_per_minute.saturating_mul(6) / 1000).max(1);
                let token_limit = percent_of(tokens_per_minute, percent);
                let request_limit = percent_of(requests, percent).max(1);
                self.admit_standard(cost, token_limit, request_limit, hides_counters, now)
            }
            DeploymentKind::Provisioned { tokens_per_minute, output_weight } => {
                self.admit_provisioned(cost, tokens_per_minute.max(1), output_weight, now)
            }
        }
    }

    /// Replaces the estimate by what was really used, once the response has been sent.
    pub(in crate::demo) fn settle_charge(&mut self, charge: &ChargeSettlement) {
        if matches!(self.deployment_kind, DeploymentKind::Provisioned { .. }) {
            let level = self.bucket_level + to_f64(charge.actual_tokens) - to_f64(charge.estimated_tokens);
            self.bucket_level = level.max(0.0);
        }
    }

    /// What tokens count for in this deployment.
    pub(in crate::demo) fn weighted_tokens(&self, input_tokens: u64, output_tokens: u64) -> u64 {
        match self.deployment_kind {
            DeploymentKind::Provisioned { output_weight, .. } => {
                input_tokens.saturating_add(output_tokens.saturating_mul(output_weight))
            }
            _ => input_tokens + output_tokens,
        }
    }

    fn admit_standard(
        &mut self,
        cost: RequestCost,
        token_limit: u64,
        request_limit: u64,
        hides_counters: bool,
        now: Instant,
    ) -> AdmissionDecision {
        let age = now.saturating_duration_since(self.created_at);
        self.reset_ended_windows(age);
        self.requests_this_minute += 1;
        self.requests_this_window += 1;
        let estimated_tokens = estimated_tokens(cost);
        let time_to_reset = time_to_next_window(age, TOKEN_WINDOW);
        let has_too_many_requests =
            self.requests_this_window > request_limit.div_ceil(REQUEST_WINDOWS_PER_MINUTE);
        let refusal = if estimated_tokens > token_limit {
            Some((ExceededLimit::RequestLargerThanLimit, RETRY_AFTER_FOR_OVERSIZED_REQUEST))
        } else if has_too_many_requests {
            Some((ExceededLimit::Requests, time_to_next_window(age, REQUEST_WINDOW)))
        } else if self.tokens_this_minute >= token_limit {
            Some((ExceededLimit::Tokens, time_to_reset))
        } else {
            None
        };
        // A request that is refused for its tokens is charged like one that is served.
        if !matches!(refusal, Some((ExceededLimit::RequestLargerThanLimit | ExceededLimit::Requests, _))) {
            self.tokens_this_minute += estimated_tokens;
        }
        let counters = if hides_counters {
            RateLimitCounters::MinusOne
        } else {
            RateLimitCounters::Standard {
                request_limit,
                remaining_requests: remaining_quota(request_limit, self.requests_this_minute),
                token_limit,
                remaining_tokens: remaining_quota(token_limit, self.tokens_this_minute),
                time_to_reset,
            }
        };
        match refusal {
            Some((exceeded_limit, retry_after)) => {
                AdmissionDecision::Refused { exceeded_limit, retry_after, counters }
            }
            None => AdmissionDecision::Admitted { estimated_tokens, counters },
        }
    }

    /// Sets the counters to zero where a new minute, or a new window of requests, has begun.
    fn reset_ended_windows(&mut self, age: Duration) {
        let minute = age.as_millis() / TOKEN_WINDOW.as_millis();
        if minute != self.current_minute {
            (self.current_minute, self.tokens_this_minute, self.requests_this_minute) = (minute, 0, 0);
        }
        let request_window = age.as_millis() / REQUEST_WINDOW.as_millis();
        if request_window != self.current_request_window {
            (self.current_request_window, self.requests_this_window) = (request_window, 0);
        }
    }

    fn admit_provisioned(
        &mut self,
        cost: RequestCost,
        capacity: u64,
        output_weight: u64,
        now: Instant,
    ) -> AdmissionDecision {
        let drained_per_second = to_f64(capacity) / 60.0;
        let elapsed = now.saturating_duration_since(self.bucket_updated_at).as_secs_f64();
        self.bucket_level = (self.bucket_level - elapsed * drained_per_second).max(0.0);
        self.bucket_updated_at = now;
        let overflow = self.bucket_level - to_f64(capacity);
        if overflow > 0.0 {
            let retry_after =
                Duration::from_secs_f64(overflow / drained_per_second).max(Duration::from_millis(1));
            let counters = RateLimitCounters::UtilizationPercent(self.utilization_percent(capacity));
            let exceeded_limit = ExceededLimit::ProvisionedCapacity;
            return AdmissionDecision::Refused { exceeded_limit, retry_after, counters };
        }
        let estimated_tokens = (cost.prompt_characters / 4)
            .saturating_sub(cost.cached_prompt_tokens)
            .saturating_add(cost.max_output_tokens.saturating_mul(output_weight));
        self.bucket_level += to_f64(estimated_tokens);
        let counters = RateLimitCounters::UtilizationPercent(self.utilization_percent(capacity));
        AdmissionDecision::Admitted { estimated_tokens, counters }
    }

    fn utilization_percent(&self, capacity: u64) -> u64 {
        // The level is never negative, so that the cast only rounds.
        (self.bucket_level * 100.0 / to_f64(capacity)).round() as u64
    }
}

fn percent_of(limit: u64, percent: u64) -> u64 {
    limit.saturating_mul(percent) / 100
}

fn estimated_tokens(cost: RequestCost) -> u64 {
    cost.prompt_characters / 4 + cost.max_output_tokens
}

fn remaining_quota(limit: u64, used: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).saturating_sub(i64::try_from(used).unwrap_or(i64::MAX))
}

/// How long until the next window begins, at least one millisecond.
fn time_to_next_window(age: Duration, window: Duration) -> Duration {
    let elapsed = age.as_millis() % window.as_millis();
    Duration::from_millis(u64::try_from(window.as_millis() - elapsed).unwrap_or(1))
        .max(Duration::from_millis(1))
}

fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD_KIND: DeploymentKind =
        DeploymentKind::Standard { tokens_per_minute: 100, requests_per_minute: Some(600) };

    fn cost(prompt_characters: u64, max_output_tokens: u64) -> RequestCost {
        RequestCost { prompt_characters, cached_prompt_tokens: 0, max_output_tokens }
    }

    /// The exceeded limit, the remaining tokens and the seconds to wait.
    fn decision_summary(decision: &AdmissionDecision) -> (Option<ExceededLimit>, i64, u64) {
        match decision {
            AdmissionDecision::Admitted {
                counters: RateLimitCounters::Standard { remaining_tokens, .. },
                ..
            } => (None, *remaining_tokens, 0),
            AdmissionDecision::Refused {
                exceeded_limit,
                retry_after,
                counters: RateLimitCounters::Standard { remaining_tokens, .. },
            } => (Some(*exceeded_limit), *remaining_tokens, retry_after.as_secs()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn remaining_tokens_can_be_negative_and_return_with_the_next_minute() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(STANDARD_KIND, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        // (second, prompt characters, max_tokens), (exceeded limit, remaining tokens, seconds to wait)
        let cases = [
            ((0, 160, 30), (None, 30, 0)),
            ((1, 160, 30), (None, -40, 0)),
            ((2, 4, 0), (Some(ExceededLimit::Tokens), -41, 58)),
            ((3, 400, 1), (Some(ExceededLimit::RequestLargerThanLimit), -41, 86_400)),
            ((60, 4, 0), (None, 99, 0)),
        ];
        for ((second, prompt_characters, max_output_tokens), expected) in cases {
            let decision = limiter.admit_request(
                cost(prompt_characters, max_output_tokens),
                LimitOverride::None,
                at(second),
            );
            assert_eq!(decision_summary(&decision), expected, "second {second}");
        }
        let reduced = limiter.admit_request(cost(4, 0), LimitOverride::PercentOfLimits(50), at(61));
        assert_eq!(decision_summary(&reduced), (None, 48, 0));
    }

    #[test]
    fn requests_are_limited_per_ten_seconds_and_refused_ones_count() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(
            DeploymentKind::Standard { tokens_per_minute: 100_000, requests_per_minute: Some(12) },
            start,
        );
        let exceeded_limits: Vec<Option<ExceededLimit>> = [0, 1, 2, 9, 10, 11, 12]
            .map(|second| {
                decision_summary(&limiter.admit_request(
                    cost(4, 0),
                    LimitOverride::None,
                    start + Duration::from_secs(second),
                ))
                .0
            })
            .into();
        let refused = Some(ExceededLimit::Requests);
        assert_eq!(exceeded_limits, [None, None, refused, refused, None, None, refused]);
    }

    #[test]
    fn a_provisioned_deployment_refuses_while_its_bucket_is_more_than_full() {
        let start = Instant::now();
        let mut limiter =
            RateLimiter::new(DeploymentKind::Provisioned { tokens_per_minute: 600, output_weight: 4 }, start);
        let mut admit = |cost, millis| {
            limiter.admit_request(cost, LimitOverride::None, start + Duration::from_millis(millis))
        };
        let admitted = admit(cost(400, 50), 0);
        assert_eq!(
            admitted,
            AdmissionDecision::Admitted {
                estimated_tokens: 300,
                counters: RateLimitCounters::UtilizationPercent(50)
            }
        );
        assert!(matches!(
            admit(cost(400, 100), 0),
            AdmissionDecision::Admitted {
                estimated_tokens: 500,
                counters: RateLimitCounters::UtilizationPercent(133)
            }
        ));
        let refused = admit(cost(4, 0), 1000);
        let AdmissionDecision::Refused {
            exceeded_limit: ExceededLimit::ProvisionedCapacity,
            retry_after: wait,
            counters: RateLimitCounters::UtilizationPercent(132),
        } = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(wait.as_millis(), 19_000);
        assert!(matches!(admit(cost(4, 0), 20_000), AdmissionDecision::Admitted { .. }));
        limiter.settle_charge(&ChargeSettlement {
            deployment: String::new(),
            estimated_tokens: 500,
            actual_tokens: 100,
        });
        assert!(limiter.bucket_level < 250.0, "{}", limiter.bucket_level);
    }
}
