//! Which requests are trouble.

use std::time::Duration;

use crate::record::exchange::{ExchangeOutcome, FinishedExchange};

/// A request that had no first byte for longer than this was slow.
const SLOW_FIRST_BYTE: Duration = Duration::from_secs(30);
/// A request that waited longer than this between attempts and in the queue was slow.
pub(super) const SLOW_WAIT: Duration = Duration::from_secs(1);

/// Why a request is kept. The first that applies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// The client got a status 4xx, or the balancer's own refusal.
    Refused,
    /// The client got a status 5xx, a response that broke off, or none.
    Failed,
    /// The first attempt did not lead to the response.
    Retried,
    /// The first byte of the response came late, or the request waited for a backend.
    Slow,
}

impl TroubleKind {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 4;

    /// The word for it in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Slow => "slow",
        }
    }

    /// The kind of an exchange; `None` if it went well.
    pub(in crate::record) fn of(exchange: &FinishedExchange) -> Option<Self> {
        let (outcome, status) = (exchange.outcome, exchange.client_status);
        Self::from_facts(outcome, status, exchange.attempts.len(), is_slow(exchange))
    }

    fn from_facts(
        outcome: ExchangeOutcome,
        status: Option<u16>,
        attempt_count: usize,
        is_slow: bool,
    ) -> Option<Self> {
        match (outcome, status) {
            (ExchangeOutcome::Refused, _) | (_, Some(400..=499)) => Some(Self::Refused),
            (ExchangeOutcome::Failed, _) | (_, Some(500..)) => Some(Self::Failed),
            _ if attempt_count > 1 => Some(Self::Retried),
            _ => is_slow.then_some(Self::Slow),
        }
    }
}

/// Whether the first byte of the response came late, or the request waited for a backend.
pub(in crate::record) fn is_slow(exchange: &FinishedExchange) -> bool {
    time_without_first_byte(exchange) > SLOW_FIRST_BYTE || exchange.waited + exchange.queued > SLOW_WAIT
}

/// How long the client had no byte of a response body.
fn time_without_first_byte(exchange: &FinishedExchange) -> Duration {
    // The bytes of a WebSocket are no response body, and its client may be silent for as long as it likes.
    let is_tunnel = exchange.client_status == Some(101);
    exchange.time_to_first_body_byte.unwrap_or(if is_tunnel { Duration::ZERO } else { exchange.duration })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::answered_exchange;

    #[test]
    fn waits_and_the_queue_count_together() {
        let slow = Some(TroubleKind::Slow);
        for (waited, queued, expected) in [
            (1000, 0, None),
            (1001, 0, slow),
            (0, 1000, None),
            (0, 1001, slow),
            (500, 501, slow),
            (500, 500, None),
        ] {
            let [waited, queued] = [waited, queued].map(Duration::from_millis);
            let exchange = FinishedExchange { waited, queued, ..answered_exchange() };
            assert_eq!(TroubleKind::of(&exchange), expected, "{waited:?} {queued:?}");
        }
    }

    #[test]
    fn the_first_kind_that_applies_counts() {
        use ExchangeOutcome::{Answered, ClientGone, Failed, Refused};
        let table = [
            (Answered, Some(200), 1, false, None),
            (Answered, Some(200), 1, true, Some(TroubleKind::Slow)),
            (Answered, Some(200), 2, true, Some(TroubleKind::Retried)),
            (Answered, Some(429), 2, true, Some(TroubleKind::Refused)),
            (Answered, Some(400), 1, false, Some(TroubleKind::Refused)),
            (Answered, Some(503), 1, false, Some(TroubleKind::Failed)),
            (Refused, Some(503), 0, false, Some(TroubleKind::Refused)),
            (Refused, Some(401), 0, false, Some(TroubleKind::Refused)),
            (Failed, Some(502), 3, false, Some(TroubleKind::Failed)),
            (Failed, Some(200), 1, false, Some(TroubleKind::Failed)),
            (Failed, None, 1, false, Some(TroubleKind::Failed)),
            (ClientGone, None, 1, false, None),
            (ClientGone, None, 1, true, Some(TroubleKind::Slow)),
            (ClientGone, Some(200), 2, false, Some(TroubleKind::Retried)),
        ];
        for (outcome, status, attempts, is_slow, expected) in table {
            let found = TroubleKind::from_facts(outcome, status, attempts, is_slow);
            assert_eq!(found, expected, "{outcome:?} {status:?} {attempts} {is_slow}");
        }
    }
}
