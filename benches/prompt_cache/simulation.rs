//! A simulation in virtual time: requests arrive at a balancer and are sent to resources with prompt caches.
//!
//! All decisions are those of the balancer: its pools, plans and health. What is repeated here is the order in which
//! `proxy/attempt` asks for them, with events instead of sockets and timers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant, SystemTime};

use aoai_lb::azure::response::verdict::Verdict;
use aoai_lb::demo::PromptCache;
use aoai_lb::gateway::{AdmittedRequest, Moment, ResponseFacts};
use aoai_lb::routing::headroom::SendTicket;
use aoai_lb::routing::health::probe_permit::ProbePermit;
use aoai_lb::routing::prompt_cache::{LoadTicket, MoveReason};
use aoai_lb::routing::retry_plan::{NextAttempt, NextStep, RetryLimits, RetryPlan, Wait};
use http::HeaderMap;

use crate::azure::{Limit, SimulatedDeployment};
use crate::balancer::{DecidingBalancer, response_facts};
use crate::workload::CacheRequest;

/// When a refusal arrives, after the request was sent.
const REFUSAL_TIME: Duration = Duration::from_millis(20);
/// Until the first byte, without the prompt.
const SHORTEST_FIRST_BYTE_TIME: Duration = Duration::from_millis(250);
/// How long a deployment reads a token that is not cached. For cached ones it takes no time.
const TIME_PER_READ_TOKEN: Duration = Duration::from_micros(150);
const TIME_PER_WRITTEN_TOKEN: Duration = Duration::from_millis(10);
/// The minutes of two resources begin so far from each other.
const MINUTE_OFFSET: Duration = Duration::from_secs(12);

/// How a request ended.
pub struct EndedRequest {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// From its arrival to the first byte of the answer; `None` if the client got 429.
    pub first_byte: Option<Duration>,
    /// Why it was not answered by the first backend of its key.
    pub moved: Option<MoveReason>,
}

/// What has happened.
pub struct SimulationResult {
    pub start: Instant,
    pub end: Instant,
    pub ended: Vec<EndedRequest>,
    pub deployments: Vec<SimulatedDeployment>,
}

/// Sends all requests to so many resources, each with so many tokens per minute.
pub fn simulate(
    resources: usize,
    tokens_per_minute: f64,
    balance_policy: &str,
    arrivals: &[CacheRequest],
) -> SimulationResult {
    // Earlier than this nothing is asked.
    let start = Instant::now();
    let limit = |index: usize| Limit::Standard {
        tokens_per_minute: tokens_per_minute as u64,
        minute_age: MINUTE_OFFSET * u32::try_from(index).unwrap(),
    };
    let blocks = format!("balance: {balance_policy}");
    let mut simulation = Simulation {
        balancer: DecidingBalancer::new(&vec![1; resources], &blocks, start),
        start,
        arrivals,
        deployments: (0..resources).map(|index| SimulatedDeployment::new(limit(index), start)).collect(),
        caches: (0..resources).map(|_| PromptCache::default()).collect(),
        events: BinaryHeap::new(),
        event_count: 0,
        requests: arrivals.iter().map(|_| None).collect(),
        ended: Vec::new(),
    };
    for (number, arrival) in arrivals.iter().enumerate() {
        simulation.schedule(start + arrival.at, Event::Arrival(number));
    }
    let end = simulation.run();
    let Simulation { ended, deployments, .. } = simulation;
    SimulationResult { start, end, ended, deployments }
}

struct Simulation<'a> {
    balancer: DecidingBalancer,
    start: Instant,
    arrivals: &'a [CacheRequest],
    deployments: Vec<SimulatedDeployment>,
    caches: Vec<PromptCache>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    event_count: u64,
    /// Those that have arrived and not ended.
    requests: Vec<Option<Request>>,
    ended: Vec<EndedRequest>,
}

/// What happens, to the request of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Refusal(usize),
    FirstByte(usize),
    End(usize),
    WaitOver(usize),
}

struct Request {
    admitted: AdmittedRequest,
    plan: RetryPlan,
    limits: RetryLimits,
    wait: Option<Wait>,
    attempt: Option<Attempt>,
    cached_tokens: u64,
    first_byte_at: Option<Instant>,
}

struct Attempt {
    candidate_index: usize,
    send_ticket: Option<SendTicket>,
    /// Held until the answer has ended.
    _load: Option<LoadTicket>,
    probe_permit: ProbePermit,
    headers: HeaderMap,
}

impl Attempt {
    fn response_facts<'a>(
        &'a self,
        admitted: &'a AdmittedRequest,
        status: u16,
        now: Instant,
    ) -> ResponseFacts<'a> {
        response_facts(admitted, self.candidate_index, self.send_ticket, &self.headers, status, now)
    }
}

impl Simulation<'_> {
    fn schedule(&mut self, at: Instant, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((at, self.event_count, event)));
    }

    /// Runs until all requests have ended; returns when that was.
    fn run(&mut self) -> Instant {
        let mut last = self.start;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.on_event(event, now);
            last = now;
        }
        assert_eq!(self.ended.len(), self.arrivals.len(), "each request ends");
        last
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Arrival(number) => {
                let received = Moment { instant: now, time: SystemTime::UNIX_EPOCH + (now - self.start) };
                let body = &self.arrivals[number].body();
                let admitted = self.balancer.admit(body, received);
                let route = self.balancer.gateway.prompt_route(&admitted, &HeaderMap::new(), body, now);
                let admitted = admitted.with_prompt_route(route);
                self.requests[number] = Some(Request {
                    plan: admitted.retry_plan(),
                    limits: self.balancer.gateway.retry_limits_for_request(&admitted, now, now, None),
                    admitted,
                    wait: None,
                    attempt: None,
                    cached_tokens: 0,
                    first_byte_at: None,
                });
                self.advance(number, now);
            }
            Event::WaitOver(number) => {
                let request = self.requests[number].as_mut().unwrap();
                let wait = request.wait.take().unwrap();
                request.plan.on_wait_over(wait);
                self.advance(number, now);
            }
            Event::Refusal(number) => self.on_refusal(number, now),
            Event::FirstByte(number) => self.on_first_byte(number, now),
            Event::End(number) => self.finish(number, now),
        }
    }

    /// As `RequestContext::next_backend`.
    fn advance(&mut self, number: usize, now: Instant) {
        let request = self.requests[number].as_mut().unwrap();
        let (pool, operation) = (&request.admitted.pool, request.admitted.routed_operation());
        match request.plan.next_step(pool, operation, &request.limits, now, 0.5) {
            NextStep::Attempt(attempt) => self.begin_attempt(number, attempt, now),
            NextStep::Wait(wait) => {
                request.wait = Some(wait);
                self.schedule(now + wait.duration, Event::WaitOver(number));
            }
            NextStep::Queue | NextStep::AwaitCredential(_) | NextStep::Exhausted => self.finish(number, now),
        }
    }

    fn begin_attempt(&mut self, number: usize, attempt: NextAttempt, now: Instant) {
        let arrival = &self.arrivals[number];
        let request = self.requests[number].as_mut().unwrap();
        let (pool, operation) = (&request.admitted.pool, request.admitted.routed_operation());
        request.plan.note_move(pool, operation, &attempt, false, now);
        request.plan.on_attempt_start(pool, &attempt, now);
        let NextAttempt { candidate_index, probe_permit, .. } = attempt;
        let candidate = request.admitted.pool.candidate(candidate_index).unwrap();
        let send_ticket = candidate.record_send(now);
        let load = request.admitted.prompt_route.and_then(|route| candidate.hold_tokens(route.tokens));
        probe_permit.on_request_sent(now);
        let backend = candidate.backend_index;
        let reply = self.deployments[backend].receive(arrival.prompt_tokens + arrival.output_tokens, now);
        let (at, event) = if reply.is_accepted {
            let cache = &mut self.caches[backend];
            let found = cache.look_up_and_insert("gpt-4o", &arrival.cache_key, &arrival.prompt(), now);
            request.cached_tokens = found.cached_tokens.min(arrival.prompt_tokens);
            let read_tokens = u32::try_from(arrival.prompt_tokens - request.cached_tokens).unwrap();
            let first_byte = SHORTEST_FIRST_BYTE_TIME + TIME_PER_READ_TOKEN * read_tokens;
            (now + first_byte, Event::FirstByte(number))
        } else {
            (now + REFUSAL_TIME, Event::Refusal(number))
        };
        request.attempt =
            Some(Attempt { candidate_index, send_ticket, _load: load, probe_permit, headers: reply.headers });
        self.schedule(at, event);
    }

    fn on_refusal(&mut self, number: usize, now: Instant) {
        let request = self.requests[number].as_mut().unwrap();
        let attempt = request.attempt.take().unwrap();
        let facts = attempt.response_facts(&request.admitted, 429, now);
        let gateway = &self.balancer.gateway;
        let outcome = gateway.learn_and_decide_outcome(&request.admitted, Verdict::Throttled, facts).unwrap();
        request.plan.on_attempt_end(&request.admitted.pool, attempt.candidate_index, outcome);
        drop(attempt);
        self.advance(number, now);
    }

    fn on_first_byte(&mut self, number: usize, now: Instant) {
        let output_tokens = u32::try_from(self.arrivals[number].output_tokens).unwrap();
        let request = self.requests[number].as_mut().unwrap();
        request.first_byte_at = Some(now);
        let attempt = request.attempt.as_mut().unwrap();
        std::mem::take(&mut attempt.probe_permit).mark_all_available();
        let facts = attempt.response_facts(&request.admitted, 200, now);
        self.balancer.gateway.learn_and_decide_outcome(&request.admitted, Verdict::Success, facts);
        self.schedule(now + TIME_PER_WRITTEN_TOKEN * output_tokens, Event::End(number));
    }

    fn finish(&mut self, number: usize, _now: Instant) {
        let arrival = &self.arrivals[number];
        let request = self.requests[number].take().unwrap();
        self.ended.push(EndedRequest {
            prompt_tokens: arrival.prompt_tokens,
            cached_tokens: request.cached_tokens,
            moved: request.plan.move_reason(),
            first_byte: request.first_byte_at.map(|at| at - (self.start + arrival.at)),
        });
    }
}
