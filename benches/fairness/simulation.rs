//! A simulation in virtual time: requests arrive at a balancer and are sent to simulated deployments.
//!
//! All decisions are those of the balancer: its pools, plans, health, slow start and queue. What is repeated here is the
//! order in which `proxy/attempt` asks for them, with events instead of sockets and timers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use aoai_lb::admission::queue::{QueueCharge, QueueEnd};
use aoai_lb::azure::response::verdict::Verdict;
use aoai_lb::config::RequestClass;
use aoai_lb::gateway::{AdmittedRequest, BackendQueuePlace, ResponseFacts, WaitingRequest};
use aoai_lb::names::Caller;
use aoai_lb::routing::headroom::SendTicket;
use aoai_lb::routing::health::probe_permit::ProbePermit;
use aoai_lb::routing::health::slow_start::UndecidedRequest;
use aoai_lb::routing::retry_plan::{NextAttempt, NextStep, RetryLimits, RetryPlan, Wait};
use http::{HeaderMap, Method};

use crate::azure::{Limit, SimulatedDeployment};
use crate::balancer::{DecidingBalancer, response_facts};

/// When a refusal arrives, after the request was sent.
const REFUSAL_TIME: Duration = Duration::from_millis(20);
/// The shortest wait of the queue's clock, as in `RequestQueue::run_clock`.
const MIN_CLOCK_WAIT: Duration = Duration::from_millis(1);

/// A request that is to arrive.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// After the start.
    pub at: Duration,
    /// The number of its client.
    pub client: usize,
    pub caller: Caller,
    pub class: RequestClass,
    /// What it uses.
    pub tokens: u64,
    /// What it is estimated to use.
    pub estimated_tokens: u64,
    /// How long a deployment takes to answer it.
    pub answer_time: Duration,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct EndedRequest {
    pub client: usize,
    pub arrived_at: Instant,
    pub tokens: u64,
    /// When a deployment accepted it; `None` if its client got 429.
    pub accepted_at: Option<Instant>,
    pub ended_at: Instant,
    /// How long it was in the queue.
    pub queued: Duration,
}

impl EndedRequest {
    /// From its arrival to its end.
    pub fn duration(&self) -> Duration {
        self.ended_at - self.arrived_at
    }
}

/// What has happened.
pub struct SimulationResult {
    pub start: Instant,
    pub ended: Vec<EndedRequest>,
    pub deployments: Vec<SimulatedDeployment>,
    /// The times in which no request was in the queue.
    pub idle_queue: Vec<(Instant, Instant)>,
}

impl SimulationResult {
    /// How many requests were answered.
    pub fn answered(&self) -> usize {
        self.ended.iter().filter(|request| request.accepted_at.is_some()).count()
    }

    /// The attempts that were refused.
    pub fn refusals(&self) -> usize {
        self.deployments.iter().map(|deployment| deployment.refusals).sum()
    }

    /// How long nobody waited between two moments.
    pub fn idle_time(&self, begin: Instant, end: Instant) -> Duration {
        let within = |(from, until): &(Instant, Instant)| {
            (*until).min(end).saturating_duration_since((*from).max(begin))
        };
        self.idle_queue.iter().map(within).sum()
    }
}

/// Runs until all requests have ended. `backends` are the tiers and limits of the deployments, `blocks` the rest of the
/// configuration.
pub fn simulate(backends: &[(u32, Limit)], blocks: &str, arrivals: Vec<Arrival>) -> SimulationResult {
    // Earlier than this nothing is asked.
    let start = Instant::now();
    let tiers: Vec<u32> = backends.iter().map(|(tier, _)| *tier).collect();
    let mut simulation = Simulation {
        balancer: DecidingBalancer::new(&tiers, blocks, start),
        deployments: backends.iter().map(|(_, limit)| SimulatedDeployment::new(*limit, start)).collect(),
        events: BinaryHeap::new(),
        event_count: 0,
        requests: Vec::new(),
        waiting: Vec::new(),
        is_queue_woken: false,
        clock_at: None,
        ended: Vec::new(),
        idle_queue: Vec::new(),
        idle_since: Some(start),
    };
    for arrival in arrivals {
        let number = simulation.requests.len();
        let at = start + arrival.at;
        simulation.requests.push(Request::new(arrival, at, &simulation.balancer));
        simulation.schedule(at, Event::Arrival(number));
    }
    simulation.run();
    let Simulation { ended, deployments, idle_queue, .. } = simulation;
    SimulationResult { start, ended, deployments, idle_queue }
}

struct Simulation {
    balancer: DecidingBalancer,
    deployments: Vec<SimulatedDeployment>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    event_count: u64,
    requests: Vec<Request>,
    /// The numbers of those that are in the queue.
    waiting: Vec<usize>,
    is_queue_woken: bool,
    /// When the clock of the queue rings.
    clock_at: Option<Instant>,
    ended: Vec<EndedRequest>,
    idle_queue: Vec<(Instant, Instant)>,
    idle_since: Option<Instant>,
}

/// What happens, to the request of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Refusal(usize),
    Answer(usize),
    WaitOver(usize),
    QueueDeadline(usize),
    Clock,
}

struct Request {
    arrival: Arrival,
    arrived_at: Instant,
    plan: RetryPlan,
    limits: RetryLimits,
    chosen_step: Option<NextStep>,
    wait: Option<Wait>,
    attempt: Option<Attempt>,
    place: Option<BackendQueuePlace>,
    queue_deadline: Option<Instant>,
    /// When it began to wait in the queue, for the first time and now.
    queued_since: Option<(Instant, Instant)>,
    queued: Duration,
    charge: Option<QueueCharge>,
    /// That of a turn in which the deployment has refused it.
    refused_turn: Option<QueueCharge>,
    accepted_at: Option<Instant>,
}

struct Attempt {
    candidate_index: usize,
    send_ticket: Option<SendTicket>,
    probe_permit: ProbePermit,
    undecided: Option<UndecidedRequest>,
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

impl Request {
    fn new(arrival: Arrival, at: Instant, balancer: &DecidingBalancer) -> Self {
        let limits = balancer.gateway.retry_limits_for_request(&balancer.admitted, at, at, None);
        Self {
            arrival,
            arrived_at: at,
            plan: balancer.admitted.retry_plan(),
            limits,
            chosen_step: None,
            wait: None,
            attempt: None,
            place: None,
            queue_deadline: None,
            queued_since: None,
            queued: Duration::ZERO,
            charge: None,
            refused_turn: None,
            accepted_at: None,
        }
    }

    /// As `RetryState::on_queue_wait_over`.
    fn on_queue_wait_over(&mut self, end: QueueEnd<NextAttempt>, now: Instant) {
        if let Some((_, since)) = self.queued_since {
            self.queued += now - since;
        }
        self.queue_deadline = None;
        self.charge = None;
        self.chosen_step = None;
        match end {
            QueueEnd::Turn(attempt, charge) => {
                self.charge = Some(charge);
                self.chosen_step = Some(NextStep::Attempt(attempt));
            }
            QueueEnd::Full | QueueEnd::TooLate => self.plan.on_queue_given_up(),
        }
    }
}

impl Simulation {
    fn schedule(&mut self, at: Instant, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((at, self.event_count, event)));
    }

    fn run(&mut self) {
        let mut last = None;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.on_event(event, now);
            self.serve_queue(now);
            match self.idle_since {
                None if self.waiting.is_empty() => self.idle_since = Some(now),
                Some(since) if !self.waiting.is_empty() => {
                    self.idle_queue.push((since, now));
                    self.idle_since = None;
                }
                _ => {}
            }
            last = Some(now);
        }
        self.idle_queue.extend(self.idle_since.zip(last));
        assert_eq!(self.ended.len(), self.requests.len(), "each request ends");
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Arrival(number) => self.advance(number, now),
            Event::WaitOver(number) => {
                let request = &mut self.requests[number];
                if let Some(wait) = request.wait.take() {
                    request.plan.on_wait_over(wait);
                }
                self.advance(number, now);
            }
            Event::Refusal(number) => self.on_refusal(number, now),
            Event::Answer(number) => self.on_answer(number, now),
            Event::QueueDeadline(number) => {
                let request = &mut self.requests[number];
                if request.queue_deadline != Some(now) {
                    return;
                }
                let Some(mut place) = request.place.take() else { return };
                self.waiting.retain(|waiting| *waiting != number);
                request.on_queue_wait_over(place.take_end(), now);
                drop(place);
                self.advance(number, now);
            }
            Event::Clock => {
                if self.clock_at == Some(now) {
                    self.clock_at = None;
                    self.is_queue_woken = true;
                }
            }
        }
    }

    /// As `RequestQueue::run_clock`, until nothing more happens in this moment.
    fn serve_queue(&mut self, now: Instant) {
        loop {
            if std::mem::take(&mut self.is_queue_woken) && !self.waiting.is_empty() {
                let next = self.balancer.gateway.process_state.queue.serve(now);
                let next = next.map(|next| next.max(now + MIN_CLOCK_WAIT));
                if let Some(next) = next.filter(|_| next != self.clock_at) {
                    self.schedule(next, Event::Clock);
                }
                self.clock_at = next;
            }
            let queue = &self.balancer.gateway.process_state.queue;
            let in_queue: usize = RequestClass::ALL.into_iter().map(|class| queue.waiting(class)).sum();
            if in_queue == self.waiting.len() && !self.is_queue_woken {
                return;
            }
            let mut over = Vec::new();
            let requests = &mut self.requests;
            self.waiting.retain(|number| {
                let is_over = requests[*number].place.as_mut().is_some_and(BackendQueuePlace::try_end);
                if is_over {
                    over.push(*number);
                }
                !is_over
            });
            for number in over {
                let request = &mut self.requests[number];
                if let Some(mut place) = request.place.take() {
                    request.on_queue_wait_over(place.take_end(), now);
                }
                self.advance(number, now);
            }
        }
    }

    /// As `RequestContext::next_backend`.
    fn advance(&mut self, number: usize, now: Instant) {
        if self.requests[number].plan.attempts_started() > 0 {
            self.is_queue_woken = true;
        }
        loop {
            match self.next_step(number, now) {
                NextStep::Attempt(attempt) => return self.begin_attempt(number, attempt, now),
                NextStep::Wait(wait) => {
                    self.requests[number].wait = Some(wait);
                    return self.schedule(now + wait.duration, Event::WaitOver(number));
                }
                NextStep::Queue => {
                    if self.begin_queue_wait(number, now) {
                        return;
                    }
                }
                NextStep::AwaitCredential(_) | NextStep::Exhausted => return self.finish(number, now),
            }
        }
    }

    /// As `RetryState::next_step`.
    fn next_step(&mut self, number: usize, now: Instant) -> NextStep {
        let DecidingBalancer { gateway, admitted, .. } = &self.balancer;
        let request = &mut self.requests[number];
        if let Some(step) = request.chosen_step.take() {
            return step;
        }
        let (plan, pool, operation) = (&request.plan, &admitted.pool, admitted.routed_operation());
        if gateway.is_queue_before(admitted, plan.has_home())
            && plan.waits_behind_others(pool, operation, &request.limits, now)
        {
            return NextStep::Queue;
        }
        plan.next_step(pool, operation, &request.limits, now, 0.5)
    }

    /// As `RequestContext::begin_queue_wait`: whether it waits.
    fn begin_queue_wait(&mut self, number: usize, now: Instant) -> bool {
        let DecidingBalancer { gateway, admitted, .. } = &self.balancer;
        let request = &mut self.requests[number];
        let since = request.queued_since.map_or(now, |(first, _)| first);
        request.queued_since = Some((since, now));
        let max_wait = request.limits.max_queue_wait.unwrap_or_default();
        let deadline = (since + max_wait).min(request.limits.latest_retry_start);
        let waiting = WaitingRequest {
            class: request.arrival.class,
            caller: request.arrival.caller.clone(),
            since,
            deadline,
            reserved_tokens: Some(request.arrival.estimated_tokens),
            body_bytes: request.arrival.tokens * 4,
            refused_turn: request.refused_turn.take(),
        };
        let choice = request.plan.backend_choice(&admitted.pool, admitted.routed_operation());
        let Some(mut place) = gateway.join_queue(admitted, &Method::POST, choice, waiting, now) else {
            request.on_queue_wait_over(QueueEnd::Full, now);
            return false;
        };
        // The queue serves others, or displaces them, when one joins.
        self.is_queue_woken = true;
        if place.try_end() {
            request.on_queue_wait_over(place.take_end(), now);
            return false;
        }
        request.place = Some(place);
        request.queue_deadline = Some(deadline);
        self.waiting.push(number);
        self.schedule(deadline, Event::QueueDeadline(number));
        true
    }

    fn begin_attempt(&mut self, number: usize, attempt: NextAttempt, now: Instant) {
        let admitted = &self.balancer.admitted;
        let request = &mut self.requests[number];
        request.plan.on_attempt_start(&admitted.pool, &attempt, now);
        let NextAttempt { candidate_index, probe_permit, undecided, .. } = attempt;
        let candidate = admitted.pool.candidate(candidate_index).unwrap();
        let send_ticket = candidate.record_send(now);
        probe_permit.on_request_sent(now);
        if let Some(undecided) = &undecided {
            undecided.on_sent(now);
            self.is_queue_woken = true;
        }
        let reply = self.deployments[candidate.backend_index].receive(request.arrival.tokens, now);
        let headers = reply.headers;
        let event = if reply.is_accepted {
            request.accepted_at = Some(now);
            (now + request.arrival.answer_time, Event::Answer(number))
        } else {
            (now + REFUSAL_TIME, Event::Refusal(number))
        };
        request.attempt = Some(Attempt { candidate_index, send_ticket, probe_permit, undecided, headers });
        self.schedule(event.0, event.1);
    }

    fn on_refusal(&mut self, number: usize, now: Instant) {
        let DecidingBalancer { gateway, admitted, .. } = &self.balancer;
        let request = &mut self.requests[number];
        let Some(mut attempt) = request.attempt.take() else { return };
        drop(attempt.undecided.take());
        let facts = attempt.response_facts(admitted, 429, now);
        let outcome = gateway.learn_and_decide_outcome(admitted, Verdict::Throttled, facts).unwrap();
        request.refused_turn = request.charge.take();
        request.plan.on_attempt_end(&admitted.pool, attempt.candidate_index, outcome);
        drop(attempt);
        self.advance(number, now);
    }

    fn on_answer(&mut self, number: usize, now: Instant) {
        let DecidingBalancer { gateway, admitted, .. } = &self.balancer;
        let request = &mut self.requests[number];
        let Some(mut attempt) = request.attempt.take() else { return };
        std::mem::take(&mut attempt.probe_permit).mark_all_available();
        if let Some(undecided) = attempt.undecided.take() {
            undecided.on_accepted();
        }
        let facts = attempt.response_facts(admitted, 200, now);
        gateway.learn_and_decide_outcome(admitted, Verdict::Success, facts);
        self.finish(number, now);
    }

    fn finish(&mut self, number: usize, now: Instant) {
        let request = &mut self.requests[number];
        if let Some(refused) = request.refused_turn.take() {
            refused.settle(0);
        }
        if let Some(charge) = request.charge.take() {
            charge.settle(if request.accepted_at.is_some() { request.arrival.tokens } else { 0 });
        }
        self.ended.push(EndedRequest {
            client: request.arrival.client,
            arrived_at: request.arrived_at,
            tokens: request.arrival.tokens,
            accepted_at: request.accepted_at,
            ended_at: now,
            queued: request.queued,
        });
        self.is_queue_woken = true;
    }
}
