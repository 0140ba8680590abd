//! Simulated deployments of Azure: which requests they accept, and what their responses say. Time is an argument.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

const MINUTE: Duration = Duration::from_secs(60);

/// How a deployment limits its traffic.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// By tokens per minute. A request is charged its tokens on arrival, whether or not its prompt is cached. The request
    /// that crosses the limit is still served; those after it are refused until the minute ends.
    Standard {
        /// Tokens per minute.
        tokens_per_minute: u64,
        /// How much of the first minute is over at the start.
        minute_age: Duration,
    },
    /// A leaky bucket that the tokens of a minute fill. A request is refused while it is more than full.
    Provisioned {
        /// Tokens that drain in a minute.
        tokens_per_minute: u64,
        /// The utilization at the start, as a fraction.
        utilization: f64,
    },
}

/// What a deployment says to a request at once. The rest of an answer comes later.
pub struct Reply {
    pub is_accepted: bool,
    pub headers: HeaderMap,
}

/// One deployment.
pub struct SimulatedDeployment {
    limit: Limit,
    started_at: Instant,
    /// The tokens of this minute, or those in the bucket.
    level: f64,
    updated_at: Instant,
    /// When so many tokens were accepted.
    pub accepted: Vec<(Instant, u64)>,
    /// How many requests were refused.
    pub refusals: usize,
}

impl SimulatedDeployment {
    pub fn new(limit: Limit, now: Instant) -> Self {
        let level = match limit {
            Limit::Standard { .. } => 0.0,
            Limit::Provisioned { tokens_per_minute, utilization } => tokens_per_minute as f64 * utilization,
        };
        Self { limit, started_at: now, level, updated_at: now, accepted: Vec::new(), refusals: 0 }
    }

    /// A request of this many tokens arrives.
    pub fn receive(&mut self, tokens: u64, now: Instant) -> Reply {
        let mut headers = HeaderMap::new();
        let refusal = match self.limit {
            Limit::Standard { tokens_per_minute, .. } => {
                let (begin, end) = self.minute_at(now);
                if self.updated_at < begin {
                    self.level = 0.0;
                }
                let has_room = self.level < tokens_per_minute as f64;
                if has_room {
                    self.level += tokens as f64;
                }
                set(&mut headers, "x-ratelimit-limit-tokens", tokens_per_minute);
                let remaining = tokens_per_minute as i64 - self.level as i64;
                headers.insert("x-ratelimit-remaining-tokens", HeaderValue::from(remaining));
                (!has_room).then(|| end - now)
            }
            Limit::Provisioned { tokens_per_minute, .. } => {
                let (full, per_second) = (tokens_per_minute as f64, tokens_per_minute as f64 / 60.0);
                let elapsed = (now - self.updated_at).as_secs_f64();
                self.level = (self.level - elapsed * per_second).max(0.0);
                let overflow = self.level - full;
                if overflow <= 0.0 {
                    self.level += tokens as f64;
                }
                let percent = (self.level * 100.0 / full).round() as u64;
                let name = "azure-openai-deployment-utilization";
                headers.insert(name, HeaderValue::from_str(&format!("{percent}%")).unwrap());
                (overflow > 0.0).then(|| Duration::from_secs_f64(overflow / per_second))
            }
        };
        self.updated_at = now;
        if let Some(wait) = refusal {
            self.refusals += 1;
            let millis = wait.as_micros().div_ceil(1000).max(1) as u64;
            set(&mut headers, "retry-after-ms", millis);
            set(&mut headers, "retry-after", millis.div_ceil(1000));
        } else {
            self.accepted.push((now, tokens));
        }
        Reply { is_accepted: refusal.is_none(), headers }
    }

    /// The tokens that it accepted from `begin` until `end`.
    pub fn accepted_between(&self, begin: Instant, end: Instant) -> u64 {
        let within = self.accepted.iter().filter(|(at, _)| (begin..end).contains(at));
        within.map(|(_, tokens)| tokens).sum()
    }

    /// The share of its capacity that was used from `begin` until `end`. Of a standard deployment, whole minutes count
    /// only.
    pub fn used_share(&self, begin: Instant, end: Instant) -> f64 {
        match self.limit {
            Limit::Standard { tokens_per_minute, .. } => {
                let (first, last) = (self.minute_at(begin).1, self.minute_at(end).0);
                let minutes = (last - first).as_secs_f64() / MINUTE.as_secs_f64();
                self.accepted_between(first, last) as f64 / (tokens_per_minute as f64 * minutes)
            }
            Limit::Provisioned { tokens_per_minute, .. } => {
                let minutes = (end - begin).as_secs_f64() / MINUTE.as_secs_f64();
                self.accepted_between(begin, end) as f64 / (tokens_per_minute as f64 * minutes)
            }
        }
    }

    /// The begin and the end of the minute of a standard deployment.
    fn minute_at(&self, now: Instant) -> (Instant, Instant) {
        let Limit::Standard { minute_age, .. } = self.limit else { return (now, now) };
        let first = self.started_at - minute_age;
        let begin = first + MINUTE * u32::try_from((now - first).as_secs() / MINUTE.as_secs()).unwrap();
        (begin, begin + MINUTE)
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: u64) {
    headers.insert(name, HeaderValue::from(value));
}
