//! What a process may admit without permission, while the process that keeps the limits does not answer in time.

use std::time::Duration;

use super::limit_key::LimitKind;
use super::sliding_minute::SlidingMinute;

/// The part of a rate: one second of its minute.
const SHARE_DIVISOR: u64 = 60;

/// What was admitted without permission in one scope. In any 60 seconds that is at most a sixtieth of a rate, or one
/// request if that is more.
#[derive(Debug, Default)]
pub(super) struct UnaskedShare {
    requests: SlidingMinute,
    tokens: SlidingMinute,
}

impl UnaskedShare {
    /// How long it takes until such a request may be admitted; zero if it may be admitted now, and for limits other than
    /// rates.
    pub(super) fn time_until_admitted(
        &mut self,
        kind: LimitKind,
        limit: u64,
        demand: u64,
        now: Duration,
    ) -> Duration {
        let window = match kind {
            LimitKind::RequestsPerMinute => &mut self.requests,
            LimitKind::TokensPerMinute => &mut self.tokens,
            _ => return Duration::ZERO,
        };
        window.time_until_fits(demand, (limit / SHARE_DIVISOR).max(demand), &[], now)
    }

    /// A request is admitted.
    pub(super) fn add(&mut self, tokens: u64, now: Duration) {
        self.requests.add(1, now);
        self.tokens.add(tokens, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit, the requests that are admitted, another one, and how many seconds that waits. A request is its tokens
    /// and the second at which it comes.
    type Case = (LimitKind, u64, &'static [(u64, u64)], (u64, u64), u64);

    #[test]
    fn a_share_is_a_sixtieth_of_a_rate_or_one_request_in_any_minute() {
        let (tokens, requests) = (LimitKind::TokensPerMinute, LimitKind::RequestsPerMinute);
        let cases: [Case; 11] = [
            (requests, 120, &[(9, 0)], (9, 0), 0),
            (requests, 120, &[(9, 0), (9, 10)], (9, 20), 41),
            (requests, 120, &[(9, 0), (9, 10)], (9, 61), 0),
            (requests, 120, &[(9, 0), (9, 10), (9, 61)], (9, 61), 10),
            // At least one request.
            (requests, 59, &[], (9, 0), 0),
            (requests, 59, &[(9, 0)], (9, 0), 61),
            (tokens, 6000, &[(60, 0)], (40, 0), 0),
            (tokens, 6000, &[(60, 0)], (41, 0), 61),
            (tokens, 6000, &[], (101, 0), 0),
            (tokens, 6000, &[(1, 0)], (101, 0), 61),
            (LimitKind::InFlight, 1, &[(9, 0)], (9, 0), 0),
        ];
        for (kind, limit, admitted, (demand, second), expected) in cases {
            let mut share = UnaskedShare::default();
            for (tokens, second) in admitted {
                share.add(*tokens, Duration::from_secs(*second));
            }
            let demand = if kind == requests { 1 } else { demand };
            let wait = share.time_until_admitted(kind, limit, demand, Duration::from_secs(second));
            assert_eq!(
                wait,
                Duration::from_secs(expected),
                "{kind:?} {limit} {admitted:?} {demand} {second}"
            );
        }
    }
}
