//! Which requests are exported.
//!
//! A trace that a client has begun is the client's decision, up to a rate. Of others, those that failed or were slow
//! are always exported, and of the rest the share that the configuration says.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Percentage;
use crate::names::Caller;
use crate::record::exchange::FinishedExchange;
use crate::record::recent_trouble::is_slow;

/// How many traces of a client a second are exported because it says so.
const MAX_DEMANDED_PER_SECOND: u32 = 50;

/// Decides which requests are exported.
pub(super) struct TraceSampler {
    sample: Percentage,
    /// The second since 1970 that is counted.
    second: u64,
    /// What callers have demanded in it.
    demanded: HashMap<Caller, u32>,
}

impl TraceSampler {
    pub(super) fn new(sample: Percentage) -> Self {
        Self { sample, second: 0, demanded: HashMap::new() }
    }

    /// Whether a request is exported.
    pub(super) fn includes(&mut self, exchange: &FinishedExchange, now: SystemTime) -> bool {
        match exchange.client_headers.trace_context {
            Some(parent) if !parent.is_sampled() => false,
            Some(_) => self.is_within_rate(exchange, now) || self.is_in_share(exchange),
            None => exchange.has_failed() || is_slow(exchange) || self.is_in_share(exchange),
        }
    }

    fn is_in_share(&self, exchange: &FinishedExchange) -> bool {
        exchange.trace_id().is_some_and(|trace_id| trace_id.is_in_share(self.sample))
    }

    /// Counts a request whose client demands that it be exported; whether the client may.
    fn is_within_rate(&mut self, exchange: &FinishedExchange, now: SystemTime) -> bool {
        let second = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        if second != self.second {
            self.second = second;
            self.demanded.clear();
        }
        // All who have not authenticated together: addresses cost an attacker nothing.
        let caller = match &exchange.client {
            Some(client) => Caller::of(client.name.as_ref(), exchange.client_ip),
            None => Caller::Address(None),
        };
        let count = self.demanded.entry(caller).or_default();
        *count += 1;
        *count <= MAX_DEMANDED_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;
    use crate::record::exchange::ExchangeOutcome;
    use crate::record::testing::answered_exchange;
    use crate::record::trace_context::{TraceContext, TraceId};

    const NOW: SystemTime = UNIX_EPOCH;

    fn share(percent: u8) -> Percentage {
        Percentage::new(percent).unwrap()
    }

    /// An exchange whose client sent this `traceparent`. Only the largest shares contain the trace.
    fn exchange_with_parent(flags: &str) -> FinishedExchange {
        let mut exchange = answered_exchange();
        let value = format!("00-ab000000000000000000000000000001-00f067aa0ba902b7-{flags}");
        exchange.client_headers.trace_context = TraceContext::parse(value.as_bytes());
        exchange
    }

    /// One whose trace begins here.
    fn exchange_without_parent() -> FinishedExchange {
        let mut exchange = answered_exchange();
        exchange.own_trace_id = Some(TraceId::of_request("01932c7b-5d5a-7c41-9a00-000000000001"));
        exchange
    }

    #[test]
    fn a_client_decides_about_its_own_traces() {
        for percent in [0, 50, 100] {
            let mut sampler = TraceSampler::new(share(percent));
            assert!(sampler.includes(&exchange_with_parent("01"), NOW), "{percent}");
            assert!(sampler.includes(&exchange_with_parent("03"), NOW), "{percent}");
            for exchange in [exchange_with_parent("00"), exchange_with_parent("02")] {
                let failed = FinishedExchange {
                    outcome: ExchangeOutcome::Failed,
                    client_status: Some(502),
                    ..exchange
                };
                assert!(!sampler.includes(&failed, NOW), "{percent}");
            }
        }
    }

    #[test]
    fn without_a_parent_trouble_is_exported_and_else_a_share() {
        let long = Duration::from_secs(31);
        let with = |change: fn(&mut FinishedExchange)| {
            let mut exchange = exchange_without_parent();
            change(&mut exchange);
            exchange
        };
        for (exchange, percent, expected) in [
            (exchange_without_parent(), 99, false),
            (exchange_without_parent(), 100, true),
            (with(|exchange| exchange.outcome = ExchangeOutcome::Failed), 0, true),
            (with(|exchange| exchange.client_status = Some(503)), 0, true),
            (with(|exchange| exchange.client_status = Some(429)), 0, false),
            (with(|exchange| exchange.outcome = ExchangeOutcome::Refused), 0, false),
            (with(|exchange| exchange.queued = Duration::from_millis(1001)), 0, true),
            (with(|exchange| exchange.waited = Duration::from_millis(999)), 0, false),
            (FinishedExchange { duration: long, ..exchange_without_parent() }, 0, true),
            (
                FinishedExchange {
                    duration: long,
                    time_to_first_body_byte: Some(Duration::ZERO),
                    ..exchange_without_parent()
                },
                0,
                false,
            ),
        ] {
            let mut sampler = TraceSampler::new(share(percent));
            assert_eq!(sampler.includes(&exchange, NOW), expected, "{percent} {:?}", exchange.client_status);
        }
    }

    #[test]
    fn beyond_a_rate_a_client_gets_the_share_as_well() {
        let of_address = |last: u8| FinishedExchange {
            client: Some(crate::record::testing::client(None)),
            client_ip: Some([10, 0, 0, last].into()),
            ..exchange_with_parent("01")
        };
        let mut sampler = TraceSampler::new(share(0));
        let count = |sampler: &mut TraceSampler, exchange: &FinishedExchange, now| {
            (0..200).filter(|_| sampler.includes(exchange, now)).count()
        };
        assert_eq!(count(&mut sampler, &of_address(1), NOW), 50);
        assert_eq!(count(&mut sampler, &of_address(2), NOW), 50);
        assert_eq!(count(&mut sampler, &of_address(1), NOW + Duration::from_millis(999)), 0);
        assert_eq!(count(&mut sampler, &of_address(1), NOW + Duration::from_secs(1)), 50);
        let named = FinishedExchange {
            client: Some(crate::record::testing::client(Some(ClientName::new("a")))),
            ..of_address(1)
        };
        let elsewhere = FinishedExchange { client_ip: None, client: named.client.clone(), ..of_address(9) };
        assert_eq!(count(&mut sampler, &named, NOW + Duration::from_secs(1)), 50);
        assert_eq!(count(&mut sampler, &elsewhere, NOW + Duration::from_secs(1)), 0);
        // Strangers are one client.
        let stranger = |last| FinishedExchange { client: None, ..of_address(last) };
        assert_eq!(count(&mut sampler, &stranger(1), NOW + Duration::from_secs(2)), 50);
        assert_eq!(count(&mut sampler, &stranger(2), NOW + Duration::from_secs(2)), 0);
        let mut sampler = TraceSampler::new(share(100));
        assert_eq!(count(&mut sampler, &of_address(1), NOW), 200);
    }
}
