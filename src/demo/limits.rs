//! Rate limits as Azure keeps them: which requests are let in, and what the counters say.
//!
//! Standard deployments charge an estimate on arrival (characters / 4 + `max_tokens`) against a minute
//! that starts anew, and count requests, refused ones too, in slices of ten seconds. The request that
//! crosses the token limit is still served, so the remainder can go negative. Provisioned deployments
//! are a leaky bucket: refused only while it is more than full, corrected when the answer is out.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const SLICE: Duration = Duration::from_secs(10);
/// What Azure says when a request could never fit.
const A_DAY: Duration = Duration::from_secs(86_400);

/// How the traffic of a deployment is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not at all; answers carry no counters.
    Unlimited,
    /// By tokens and requests per minute.
    Standard {
        /// Tokens per minute.
        tokens_per_minute: u64,
        /// Requests per minute; Azure's ratio of 6 per 1 000 tokens where not given.
        requests_per_minute: Option<u64>,
    },
    /// By utilisation of capacity bought in advance.
    Provisioned {
        /// Tokens the capacity works off in a minute, which is also what fills it to 100 %.
        tokens_per_minute: u64,
        /// How many input tokens one output token weighs (3 to 8 on Azure).
        output_weight: u64,
    },
}

/// What a request will cost, as far as that is known on arrival.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ask {
    /// Characters of the prompt.
    pub(super) characters: u64,
    /// Prompt tokens found in the prefix cache.
    pub(super) cached: u64,
    /// Most tokens that may be generated, over all choices; 0 when not said.
    pub(super) output: u64,
}

/// How the configured limits apply just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Regime {
    AsConfigured,
    Percent(u64),
    Unknown,
}

/// What a provisioned deployment charged on arrival, and what it came to.
#[derive(Debug, Clone)]
pub(super) struct Charge {
    pub(super) deployment: String,
    pub(super) estimated: u64,
    pub(super) actual: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Counters {
    None,
    Standard {
        requests: u64,
        requests_left: i64,
        tokens: u64,
        tokens_left: i64,
        reset: Duration,
    },
    MinusOne,
    /// Percent.
    Utilization(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Requests,
    Tokens,
    LargerThanLimit,
    Capacity,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ruling {
    Admitted { estimated: u64, counters: Counters },
    Refused { cause: Cause, wait: Duration, counters: Counters },
}

/// The running account of one deployment.
#[derive(Debug)]
pub(super) struct Meter {
    kind: Kind,
    opened: Instant,
    minute: u128,
    tokens: u64,
    requests: u64,
    slice: u128,
    slice_requests: u64,
    /// Weighted tokens in the leaky bucket.
    level: f64,
    drained: Instant,
}

impl Meter {
    pub(super) fn new(kind: Kind, now: Instant) -> Self {
        Self {
            kind,
            opened: now,
            minute: 0,
            tokens: 0,
            requests: 0,
            slice: 0,
            slice_requests: 0,
            level: 0.0,
            drained: now,
        }
    }

    /// Lets a request in, or not. Refused requests count as well.
    pub(super) fn admit(&mut self, ask: Ask, regime: Regime, now: Instant) -> Ruling {
        match self.kind {
            Kind::Unlimited => {
                let counters = if regime == Regime::Unknown { Counters::MinusOne } else { Counters::None };
                Ruling::Admitted { estimated: estimate(ask), counters }
            }
            Kind::Standard { tokens_per_minute, requests_per_minute } => {
                let percent = if let Regime::Percent(percent) = regime { percent } else { 100 };
                let requests =
                    requests_per_minute.unwrap_or(tokens_per_minute.saturating_mul(6) / 1000).max(1);
                let limits = (share(tokens_per_minute, percent), share(requests, percent).max(1));
                self.admit_standard(ask, limits, regime == Regime::Unknown, now)
            }
            Kind::Provisioned { tokens_per_minute, output_weight } => {
                self.admit_provisioned(ask, tokens_per_minute.max(1), output_weight, now)
            }
        }
    }

    /// Puts an estimate right once the answer is out.
    pub(super) fn settle(&mut self, charge: &Charge) {
        if matches!(self.kind, Kind::Provisioned { .. }) {
            self.level = (self.level + as_float(charge.actual) - as_float(charge.estimated)).max(0.0);
        }
    }

    /// What the tokens really used weigh in this deployment.
    pub(super) fn weight(&self, input: u64, output: u64) -> u64 {
        match self.kind {
            Kind::Provisioned { output_weight, .. } => {
                input.saturating_add(output.saturating_mul(output_weight))
            }
            _ => input + output,
        }
    }

    fn admit_standard(&mut self, ask: Ask, limits: (u64, u64), hidden: bool, now: Instant) -> Ruling {
        let (token_limit, request_limit) = limits;
        let open = now.saturating_duration_since(self.opened);
        let minute = open.as_millis() / MINUTE.as_millis();
        if minute != self.minute {
            (self.minute, self.tokens, self.requests) = (minute, 0, 0);
        }
        let slice = open.as_millis() / SLICE.as_millis();
        if slice != self.slice {
            (self.slice, self.slice_requests) = (slice, 0);
        }
        self.requests += 1;
        self.slice_requests += 1;
        let estimated = estimate(ask);
        let until_minute = until_next(open, MINUTE);
        let too_many = self.slice_requests > request_limit.div_ceil(6);
        let cause = if estimated > token_limit {
            Some((Cause::LargerThanLimit, A_DAY))
        } else if too_many {
            Some((Cause::Requests, until_next(open, SLICE)))
        } else if self.tokens >= token_limit {
            Some((Cause::Tokens, until_minute))
        } else {
            None
        };
        if !matches!(cause, Some((Cause::LargerThanLimit | Cause::Requests, _))) {
            self.tokens += estimated;
        }
        let counters = if hidden {
            Counters::MinusOne
        } else {
            Counters::Standard {
                requests: request_limit,
                requests_left: left(request_limit, self.requests),
                tokens: token_limit,
                tokens_left: left(token_limit, self.tokens),
                reset: until_minute,
            }
        };
        match cause {
            Some((cause, wait)) => Ruling::Refused { cause, wait, counters },
            None => Ruling::Admitted { estimated, counters },
        }
    }

    fn admit_provisioned(&mut self, ask: Ask, capacity: u64, output_weight: u64, now: Instant) -> Ruling {
        let per_second = as_float(capacity) / 60.0;
        let passed = now.saturating_duration_since(self.drained).as_secs_f64();
        self.level = (self.level - passed * per_second).max(0.0);
        self.drained = now;
        let over = self.level - as_float(capacity);
        if over > 0.0 {
            let wait = Duration::from_secs_f64(over / per_second).max(Duration::from_millis(1));
            let counters = Counters::Utilization(self.utilization(capacity));
            return Ruling::Refused { cause: Cause::Capacity, wait, counters };
        }
        let estimated = (ask.characters / 4)
            .saturating_sub(ask.cached)
            .saturating_add(ask.output.saturating_mul(output_weight));
        self.level += as_float(estimated);
        Ruling::Admitted { estimated, counters: Counters::Utilization(self.utilization(capacity)) }
    }

    fn utilization(&self, capacity: u64) -> u64 {
        // A percentage of a small positive number: rounding is all that is lost.
        (self.level * 100.0 / as_float(capacity)).round() as u64
    }
}

fn share(limit: u64, percent: u64) -> u64 {
    limit.saturating_mul(percent) / 100
}

fn estimate(ask: Ask) -> u64 {
    ask.characters / 4 + ask.output
}

fn left(limit: u64, used: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).saturating_sub(i64::try_from(used).unwrap_or(i64::MAX))
}

fn until_next(open: Duration, period: Duration) -> Duration {
    let into = open.as_millis() % period.as_millis();
    Duration::from_millis(u64::try_from(period.as_millis() - into).unwrap_or(1)).max(Duration::from_millis(1))
}

fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: Kind = Kind::Standard { tokens_per_minute: 100, requests_per_minute: Some(600) };

    fn ask(characters: u64, output: u64) -> Ask {
        Ask { characters, cached: 0, output }
    }

    fn tokens_left(ruling: &Ruling) -> (Option<Cause>, i64, u64) {
        match ruling {
            Ruling::Admitted { counters: Counters::Standard { tokens_left, .. }, .. } => {
                (None, *tokens_left, 0)
            }
            Ruling::Refused { cause, wait, counters: Counters::Standard { tokens_left, .. } } => {
                (Some(*cause), *tokens_left, wait.as_secs())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tokens_run_below_zero_and_return_with_the_minute() {
        let start = Instant::now();
        let mut meter = Meter::new(STANDARD, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        // (second, characters, max_tokens) and (cause, left, wait)
        let cases = [
            ((0, 160, 30), (None, 30, 0)),
            ((1, 160, 30), (None, -40, 0)),
            ((2, 4, 0), (Some(Cause::Tokens), -41, 58)),
            ((3, 400, 1), (Some(Cause::LargerThanLimit), -41, 86_400)),
            ((60, 4, 0), (None, 99, 0)),
        ];
        for ((second, characters, output), expected) in cases {
            let ruling = meter.admit(ask(characters, output), Regime::AsConfigured, at(second));
            assert_eq!(tokens_left(&ruling), expected, "second {second}");
        }
        let reduced = meter.admit(ask(4, 0), Regime::Percent(50), at(61));
        assert_eq!(tokens_left(&reduced), (None, 48, 0));
    }

    #[test]
    fn requests_are_counted_in_slices_refused_ones_too() {
        let start = Instant::now();
        let mut meter =
            Meter::new(Kind::Standard { tokens_per_minute: 100_000, requests_per_minute: Some(12) }, start);
        let causes: Vec<Option<Cause>> = [0, 1, 2, 9, 10, 11, 12]
            .map(|second| {
                tokens_left(&meter.admit(
                    ask(4, 0),
                    Regime::AsConfigured,
                    start + Duration::from_secs(second),
                ))
                .0
            })
            .into();
        let over = Some(Cause::Requests);
        assert_eq!(causes, [None, None, over, over, None, None, over]);
    }

    #[test]
    fn a_provisioned_bucket_overflows_once_then_drains() {
        let start = Instant::now();
        let mut meter = Meter::new(Kind::Provisioned { tokens_per_minute: 600, output_weight: 4 }, start);
        let mut admit =
            |ask, millis| meter.admit(ask, Regime::AsConfigured, start + Duration::from_millis(millis));
        let admitted = admit(ask(400, 50), 0);
        assert_eq!(admitted, Ruling::Admitted { estimated: 300, counters: Counters::Utilization(50) });
        assert!(matches!(
            admit(ask(400, 100), 0),
            Ruling::Admitted { estimated: 500, counters: Counters::Utilization(133) }
        ));
        let refused = admit(ask(4, 0), 1000);
        let Ruling::Refused { cause: Cause::Capacity, wait, counters: Counters::Utilization(132) } = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(wait.as_millis(), 19_000);
        assert!(matches!(admit(ask(4, 0), 20_000), Ruling::Admitted { .. }));
        meter.settle(&Charge { deployment: String::new(), estimated: 500, actual: 100 });
        assert!(meter.level < 250.0, "{}", meter.level);
    }
}
