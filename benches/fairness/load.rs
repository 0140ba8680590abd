//! The requests of clients: random, and the same in each run.

use std::time::Duration;

use aoai_lb::config::RequestClass;
use aoai_lb::names::{Caller, ClientName};

use crate::simulation::Arrival;

/// From this time on, and up to [`ANSWER_TIME_RANGE`] longer, a deployment takes to answer.
const SHORTEST_ANSWER_TIME: Duration = Duration::from_secs(1);
const ANSWER_TIME_RANGE: Duration = Duration::from_secs(5);

/// A client and its requests. They come at random times, whether or not others are answered.
#[derive(Clone, Copy, Debug)]
pub struct ClientLoad {
    pub number: usize,
    pub class: RequestClass,
    pub tokens_per_minute: f64,
    /// A request has a fifth to nearly twice as many.
    pub mean_tokens: u64,
}

/// The requests of these clients, until the end of the load. Those of a client do not depend on the others.
pub fn arrivals(clients: &[ClientLoad], length: Duration) -> Vec<Arrival> {
    let of_client = |client: &ClientLoad| {
        let ClientLoad { number, class, tokens_per_minute, mean_tokens } = *client;
        let mut random = fastrand::Rng::with_seed(number as u64 + 1);
        let per_second = tokens_per_minute / 60.0 / mean_tokens as f64;
        let mut at = Duration::ZERO;
        let mut arrivals = Vec::new();
        loop {
            at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / per_second);
            if at >= length {
                break arrivals;
            }
            let tokens = random.u64(mean_tokens / 5..mean_tokens * 9 / 5);
            // Estimates are up to twice too large for some clients, and up to twice too small for the others.
            let exponent = if number.is_multiple_of(2) { random.f64() } else { -random.f64() };
            let estimated_tokens = (tokens as f64 * 2.0_f64.powf(exponent)) as u64;
            let answer_time = SHORTEST_ANSWER_TIME + ANSWER_TIME_RANGE.mul_f64(random.f64());
            let caller = caller(number);
            arrivals.push(Arrival {
                at,
                client: number,
                caller,
                class,
                tokens,
                estimated_tokens,
                answer_time,
            });
        }
    };
    clients.iter().flat_map(of_client).collect()
}

/// So many requests of one client that come at the same time, each with as many tokens.
pub fn burst(requests: usize, tokens: u64) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(1);
    let arrival = |_| Arrival {
        at: Duration::ZERO,
        client: 0,
        caller: caller(0),
        class: RequestClass::Standard,
        tokens,
        estimated_tokens: tokens,
        answer_time: SHORTEST_ANSWER_TIME + ANSWER_TIME_RANGE.mul_f64(random.f64()),
    };
    (0..requests).map(arrival).collect()
}

fn caller(number: usize) -> Caller {
    Caller::Client(ClientName::new(&format!("client-{number}")))
}
