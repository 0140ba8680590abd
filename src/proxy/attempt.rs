//! One request's tries: who is next, how it is put to them, what came of it, and which of
//! the replies that were held back the client gets when there is no further try.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::context::Flow;
use super::reply;
use crate::azure::verdict::Verdict;
use crate::gateway::{Admitted, Answer, Failure, Outgoing};
use crate::names::Deployment;
use crate::record::exchange::Attempt;
use crate::refusal::{Reason, Refusal};
use crate::routing::health::{self, Claim};
use crate::routing::journey::{Allowance, Choice, Journey, Outcome, Pause, Try};

/// An admitted request on its way through its pool.
pub(super) struct Course {
    pub(super) admitted: Admitted,
    pub(super) attempts: Vec<Attempt>,
    journey: Journey,
    allowance: Allowance,
    /// A choice made early, when a reply was judged.
    chosen: Option<Choice>,
    underway: Option<Underway>,
    last: Option<Answerer>,
    best: Option<Held>,
    /// Home does not know the id, and others are asked for it.
    seeking: bool,
    /// Who refused to be asked for the usage of the stream; nobody else is asked then.
    declined: Option<usize>,
}

struct Underway {
    place: usize,
    begun: Instant,
    sent: bool,
    asks_usage: bool,
    /// What the try finds out for others.
    claim: Claim,
    is_last_hope: bool,
}

/// Whose reply it is.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) backend: usize,
    pub(super) upstream: Option<Deployment>,
}

/// A reply held back: whole, or as far as it went.
pub(super) struct Held {
    pub(super) header: Box<ResponseHeader>,
    pub(super) body: Vec<Bytes>,
    from: Option<Answerer>,
}

impl Held {
    pub(super) fn new(header: Box<ResponseHeader>) -> Self {
        Self { header, body: Vec::new(), from: None }
    }

    pub(super) fn text(&self) -> Bytes {
        match self.body.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => Bytes::from(many.concat()),
        }
    }

    /// The order in which replies are worth relaying: about the request, 429, 5xx, 408.
    fn rank(&self) -> u8 {
        match self.header.status.as_u16() {
            429 => 1,
            500.. => 2,
            408 => 3,
            _ => 0,
        }
    }
}

/// Why a try ended without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The name has never resolved.
    Dns,
    ConnectTimeout,
    ConnectRefused,
    Connect,
    Tls,
    Reset,
    Protocol,
    FirstByteTimeout,
    IdleTimeout,
}

impl Trouble {
    /// The word in the record.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectRefused => "connect_refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::IdleTimeout => "idle_timeout",
        }
    }
}

/// What a deadline of a try is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The try is given up.
    GiveUp(Trouble),
    /// What is held of the stream goes out.
    Release,
}

/// The troubles that are answered with 504 rather than 502.
const TIMEOUTS: [Trouble; 3] = [Trouble::ConnectTimeout, Trouble::FirstByteTimeout, Trouble::IdleTimeout];

const NO_FAILURE: Failure = Failure { is_first: false, is_probe: false };

/// What comes next.
pub(super) enum Step {
    /// A try on this backend.
    Try(usize),
    /// A wait, then [`Course::waited`].
    Wait(Pause),
    /// Nothing.
    Spent,
}

/// What a complete reply means for the client.
pub(super) enum Next {
    /// It is the answer.
    Relay(Held),
    /// Somebody else is asked.
    Retry,
    /// Nobody else can be asked; [`Flow::conclude`] says what the client gets.
    Conclude,
}

impl Course {
    pub(super) fn new(admitted: Admitted, allowance: Allowance) -> Self {
        Self {
            journey: Journey::through(&admitted.pool),
            admitted,
            attempts: Vec::new(),
            allowance,
            chosen: None,
            underway: None,
            last: None,
            best: None,
            seeking: false,
            declined: None,
        }
    }

    /// Goes on with those who may know what home does not.
    fn seek(&mut self, strangers: std::sync::Arc<crate::routing::pool::Pool>) {
        self.seeking = true;
        self.journey = self.journey.onwards(&strangers);
        self.admitted.pool = strangers;
    }

    /// What comes next; asked again before it is done, it is the same.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        let (journey, admitted, allowance) = (&self.journey, &self.admitted, &self.allowance);
        let chosen = self.chosen.get_or_insert_with(|| {
            journey.choose(&admitted.pool, admitted.target.operation, allowance, now, fastrand::f64())
        });
        match chosen {
            Choice::Try(chosen) => match admitted.pool.candidate(chosen.place) {
                Some(candidate) => Step::Try(candidate.backend),
                None => Step::Spent,
            },
            Choice::Wait(pause) => Step::Wait(*pause),
            Choice::Spent => Step::Spent,
        }
    }

    pub(super) fn waited(&mut self, pause: Pause) {
        self.chosen = None;
        self.journey.waited(pause);
    }

    /// The chosen try begins.
    pub(super) fn begin(&mut self, backend_name: &crate::names::BackendName, now: Instant) {
        let Some(Choice::Try(chosen)) = self.chosen.take() else { return };
        self.journey.begin(&self.admitted.pool, &chosen, now);
        let Try { place, claim, is_last_hope, .. } = chosen;
        self.underway =
            Some(Underway { place, begun: now, sent: false, asks_usage: false, claim, is_last_hope });
        if let Some(candidate) = self.admitted.pool.candidate(place) {
            candidate.memory.attempt_begins();
            self.last = Some(Answerer { backend: candidate.backend, upstream: candidate.upstream.clone() });
        }
        self.attempts.push(Attempt {
            backend: backend_name.clone(),
            status: None,
            error: None,
            ms: 0,
            retry_after_ms: None,
        });
    }

    /// The request is about to be sent on the try under way.
    pub(super) fn put(&mut self, gateway: &crate::gateway::Gateway) -> Option<Outgoing> {
        let underway = self.underway.as_mut()?;
        let candidate = self.admitted.pool.candidate(underway.place)?;
        let outgoing = gateway.put(&self.admitted, candidate, self.declined.is_none());
        underway.sent = true;
        underway.asks_usage = outgoing.asks_usage;
        Some(outgoing)
    }

    pub(super) fn asks_usage(&self) -> bool {
        self.underway.as_ref().is_some_and(|underway| underway.asks_usage)
    }

    pub(super) fn answerer(&self) -> Option<&Answerer> {
        self.last.as_ref()
    }

    /// Whether the try under way may be followed by another after it broke off.
    fn may_repeat(&self) -> bool {
        self.admitted.repeatable || !self.underway.as_ref().is_some_and(|underway| underway.sent)
    }

    /// The try under way has been sent whole.
    pub(super) fn sent(&self, now: Instant) {
        if let Some(underway) = &self.underway {
            underway.claim.sent(now);
        }
    }

    /// The try under way is answered by its backend, with whatever that is no refusal.
    fn open(&mut self) {
        let Some(underway) = &mut self.underway else { return };
        std::mem::take(&mut underway.claim).open();
        if underway.is_last_hope
            && let Some(candidate) = self.admitted.pool.candidate(underway.place)
        {
            candidate.memory.breaker.cell.wake();
        }
    }

    /// What a failure of the try under way counts as.
    fn failure(&mut self) -> Failure {
        let Some(underway) = &self.underway else { return NO_FAILURE };
        let place = underway.place;
        let breaker = self.admitted.pool.candidate(place).map(|candidate| &candidate.memory.breaker.cell);
        let is_probe = breaker.is_some_and(|breaker| underway.claim.holds(breaker));
        Failure { is_first: self.journey.fails_first(place), is_probe }
    }

    /// Ends the try under way in the record; returns its place. A claim that was not opened
    /// before lets others try.
    fn finish(&mut self, now: Instant, note: impl FnOnce(&mut Attempt)) -> Option<usize> {
        let underway = self.underway.take()?;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ms =
                u64::try_from(now.saturating_duration_since(underway.begun).as_millis()).unwrap_or(u64::MAX);
            note(attempt);
        }
        if let Some(candidate) = self.admitted.pool.candidate(underway.place) {
            candidate.memory.attempt_ends();
        }
        Some(underway.place)
    }

    /// Ends a try that is still under way when the request ends.
    pub(super) fn close(&mut self, client_gone: bool, now: Instant) {
        self.finish(now, |attempt| {
            if client_gone && attempt.status.is_none() {
                attempt.error = Some("client_gone");
            }
        });
    }
}

impl Flow {
    /// A reply that is passed on has begun.
    pub(super) fn answered(&mut self, header: &ResponseHeader, now: Instant) {
        let gateway = std::sync::Arc::clone(&self.serving.gateway);
        let Some(course) = &mut self.course else { return };
        course.open();
        let Some(underway) = &course.underway else { return };
        let status = header.status.as_u16();
        if let Some(attempt) = course.attempts.last_mut() {
            attempt.status = Some(status);
            attempt.ms = millis(now.saturating_duration_since(underway.begun));
        }
        if let Some(candidate) = course.admitted.pool.candidate(underway.place) {
            // Put without the question it is answered: it was the question that was refused.
            if course.declined == Some(underway.place)
                && header.status.is_success()
                && let Some(deployment) = &candidate.deployment
            {
                deployment.declines_usage.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            let verdict = if status < 400 { Verdict::Success } else { Verdict::Client };
            let failure = NO_FAILURE;
            gateway.learn(
                &course.admitted,
                verdict,
                Answer {
                    candidate,
                    headers: &header.headers,
                    is_success: header.status.is_success(),
                    failure,
                    now,
                },
            );
        }
    }

    /// A reply that was held back is complete, or as complete as it will be.
    pub(super) fn judge(&mut self, held: Held, now: Instant) -> Next {
        self.judge_held(held, false, now)
    }

    fn judge_held(&mut self, mut held: Held, unfinished: bool, now: Instant) -> Next {
        let gateway = std::sync::Arc::clone(&self.serving.gateway);
        let Some(course) = &mut self.course else { return Next::Relay(held) };
        let status = held.header.status.as_u16();
        let body = held.text();
        let verdict = gateway.judge(&course.admitted, status, &body);
        // The question was ours, not the client's: the request is put without it.
        let declined =
            status == 400 && course.asks_usage() && crate::azure::verdict::names_stream_options(&body);
        let retry_after = gateway.hint(verdict, &held.header.headers);
        if verdict == Verdict::Client {
            course.open();
        }
        let failure = if verdict == Verdict::Failed { course.failure() } else { NO_FAILURE };
        let Some(place) = course.finish(now, |attempt| {
            attempt.status = Some(status);
            attempt.retry_after_ms = retry_after.map(millis);
        }) else {
            return Next::Relay(held);
        };
        let Some(candidate) = course.admitted.pool.candidate(place) else { return Next::Relay(held) };
        let outcome = if declined {
            course.declined = Some(place);
            Some(Outcome::Again)
        } else {
            let headers = &held.header.headers;
            gateway.learn(
                &course.admitted,
                verdict,
                Answer { candidate, headers, is_success: false, failure, now },
            )
        };
        let Some(outcome) = outcome else { return Next::Relay(held) };
        let throttled = matches!(outcome, Outcome::Throttled(_));
        course.journey.end(place, outcome);
        course.chosen = None;
        held.from = course.last.clone();
        let is_ours_to_mend =
            matches!(verdict, Verdict::Credential | Verdict::PermissionDenied | Verdict::Absent)
                || outcome == Outcome::Again;
        if !is_ours_to_mend && !unfinished {
            course.keep(held);
        }
        if course.admitted.seeks && outcome == Outcome::Unfit && !course.seeking {
            course.seek(gateway.strangers());
        }
        let is_safe = course.admitted.repeatable || throttled || is_ours_to_mend;
        if !is_safe || self.body.consumed {
            return Next::Conclude;
        }
        match course.step(now) {
            Step::Spent => Next::Conclude,
            Step::Try(_) | Step::Wait(_) => Next::Retry,
        }
    }

    /// A stream of status 200 began with an error: it is the refusal that the error stands
    /// for. `None` when the client is to see it as it is.
    pub(super) fn judge_opening(
        &mut self,
        header: &ResponseHeader,
        event: &[u8],
        now: Instant,
    ) -> Option<Next> {
        let gateway = std::sync::Arc::clone(&self.serving.gateway);
        let course = self.course.as_mut()?;
        let verdict = crate::azure::verdict::judge_event(event);
        let stands_for = match verdict {
            Verdict::Success | Verdict::Client => return None,
            Verdict::Throttled => 429,
            // It may have been begun: the client is to see how it ended.
            _ if !course.admitted.repeatable => return None,
            Verdict::Credential => 401,
            Verdict::PermissionDenied => 403,
            Verdict::Absent | Verdict::NotHere => 404,
            Verdict::Failed | Verdict::Elsewhere => 500,
        };
        let retry_after = gateway.hint(verdict, &header.headers);
        let failure = if verdict == Verdict::Failed { course.failure() } else { NO_FAILURE };
        let place = course.finish(now, |attempt| {
            attempt.status = Some(stands_for);
            attempt.retry_after_ms = retry_after.map(millis);
        })?;
        let candidate = course.admitted.pool.candidate(place)?;
        let headers = &header.headers;
        let outcome = gateway.learn(
            &course.admitted,
            verdict,
            Answer { candidate, headers, is_success: false, failure, now },
        )?;
        course.journey.end(place, outcome);
        course.chosen = None;
        Some(match course.step(now) {
            _ if self.body.consumed => Next::Conclude,
            Step::Spent => Next::Conclude,
            Step::Try(_) | Step::Wait(_) => Next::Retry,
        })
    }

    /// A reply that was held back turned out too large to be held: the verdict is that on its
    /// beginning. A relayed one is still the try under way.
    pub(super) fn judge_unfinished(&mut self, held: Held, now: Instant) -> Next {
        let gateway = std::sync::Arc::clone(&self.serving.gateway);
        let Some(course) = &self.course else { return Next::Relay(held) };
        let verdict = gateway.judge(&course.admitted, held.header.status.as_u16(), &held.text());
        if verdict == Verdict::Client {
            return Next::Relay(held);
        }
        let as_it_is = Held { header: held.header.clone(), body: Vec::new(), from: course.last.clone() };
        match self.judge_held(held, true, now) {
            // There is nothing better for the client than this one, which goes on.
            Next::Conclude if self.course.as_ref().is_none_or(|course| course.best.is_none()) => {
                Next::Relay(as_it_is)
            }
            next => next,
        }
    }

    /// The try under way broke off before a reply. Returns whether another follows.
    pub(super) fn broke_off(&mut self, trouble: Trouble, stale: bool, now: Instant) -> bool {
        let Some(course) = &mut self.course else { return false };
        let may_repeat = course.may_repeat() && !self.body.consumed && self.end.status.is_none();
        let failure = if stale { NO_FAILURE } else { course.failure() };
        let Some(place) = course.finish(now, |attempt| attempt.error = Some(trouble.word())) else {
            return false;
        };
        if let Some(candidate) = course.admitted.pool.candidate(place)
            && !stale
        {
            self.serving.gateway.fail(candidate, failure, now);
        }
        course.journey.end(place, if stale { Outcome::Again } else { Outcome::Failed });
        course.chosen = None;
        may_repeat && !matches!(course.step(now), Step::Spent)
    }

    /// What the client gets when there is no further try: the most useful reply that was
    /// held back, or a refusal of ours.
    pub(super) fn conclude(&mut self, now: Instant) -> pingora::Result<Vec<HttpTask>> {
        if let Some(held) = self.course.as_mut().and_then(|course| course.best.take()) {
            return self.relay(held, now);
        }
        let refusal = self.exhausted(now);
        self.refuse(&refusal)
    }

    /// A refusal as tasks for the session.
    pub(super) fn refuse(&mut self, refusal: &Refusal) -> pingora::Result<Vec<HttpTask>> {
        let (mut header, body) = reply::refusal(refusal, &self.request_id)?;
        self.refused(refusal);
        self.sign(&mut header)?;
        Ok(self.whole(Box::new(header), body))
    }

    /// A held reply as tasks for the session, its hints made true.
    pub(super) fn relay(&mut self, held: Held, now: Instant) -> pingora::Result<Vec<HttpTask>> {
        let body = held.text();
        let Held { mut header, from, .. } = held;
        let status = header.status.as_u16();
        if let Some(course) = &mut self.course {
            course.last = from.or(course.last.take());
        }
        self.correct_hints(&mut header, now)?;
        header.remove_header(&http::header::TRANSFER_ENCODING);
        if self.method != http::Method::HEAD {
            header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        }
        self.end.status = Some(status);
        self.keep_facts(&header);
        self.sign(&mut header)?;
        Ok(self.whole(header, body))
    }

    /// A client is told when some backend can be asked again, not when this one can.
    pub(super) fn correct_hints(&self, header: &mut ResponseHeader, now: Instant) -> pingora::Result<()> {
        if header.status != 429 {
            return Ok(());
        }
        header.remove_header("x-ms-retry-after-ms");
        reply::hint(header, self.soonest(now).as_millis())
    }

    fn whole(&mut self, header: Box<ResponseHeader>, body: Bytes) -> Vec<HttpTask> {
        if body.is_empty() || self.method == http::Method::HEAD {
            return vec![HttpTask::Header(header, true)];
        }
        self.end.sent(body.len(), self.arrival);
        vec![HttpTask::Header(header, false), HttpTask::Body(Some(body), true)]
    }

    /// What every answer carries, and what none does.
    pub(super) fn sign(&self, header: &mut ResponseHeader) -> pingora::Result<()> {
        header.remove_header(&http::header::SET_COOKIE);
        header.remove_header("keep-alive");
        header.insert_header("x-aoai-lb-request-id", &*self.request_id)?;
        let Some(course) = &self.course else { return Ok(()) };
        if self.end.refusal.is_none()
            && let Some(backend) =
                course.last.as_ref().and_then(|last| self.gateway().backends.get(last.backend))
        {
            header.insert_header("x-aoai-lb-backend", backend.config.name.as_str())?;
        }
        header.insert_header("x-aoai-lb-attempts", course.journey.tries().to_string())
    }

    /// How long until some backend that asked to wait is over it.
    fn soonest(&self, now: Instant) -> Duration {
        let soonest = self.course.as_ref().and_then(|course| {
            course.journey.soonest_cooldown(&course.admitted.pool, course.admitted.target.operation, now)
        });
        soonest
            .map_or_else(|| self.gateway().default_cooldown(), |until| until.saturating_duration_since(now))
    }

    fn all_throttled(&self, now: Instant) -> Refusal {
        let wait = self.soonest(now);
        let seconds = wait.as_millis().clamp(1, reply::LONGEST_HINT_MS).div_ceil(1000);
        let message = format!(
            "All backends of this deployment are at their rate limit. Please retry after {seconds} seconds."
        );
        Refusal::new(Reason::AllThrottled, message).after(wait)
    }

    /// Why there is nobody (left) to ask.
    fn exhausted(&self, now: Instant) -> Refusal {
        let Some(course) = &self.course else {
            return Refusal::new(Reason::NoBackend, "no backend can be asked");
        };
        let operation = course.admitted.target.operation;
        let throttled = |attempt: &Attempt| attempt.status == Some(429);
        if course.attempts.iter().any(throttled) {
            return self.all_throttled(now);
        }
        // A status that failed leaves its reply, unless it was an event in a stream.
        let failed = |attempt: &&Attempt| attempt.error.is_some() || attempt.status == Some(500);
        if let Some(last) = course.attempts.iter().rfind(failed) {
            let late = TIMEOUTS.iter().any(|trouble| last.error == Some(trouble.word()));
            let tries = course.attempts.len();
            return if late {
                Refusal::new(Reason::UpstreamTimeout, format!("no backend answered in time ({tries} tried)"))
            } else {
                Refusal::new(Reason::UpstreamFailed, format!("no backend answered ({tries} tried)"))
            };
        }
        let rests = || course.admitted.pool.candidates().iter().filter_map(|c| c.resting(operation, now));
        if course.journey.soonest_cooldown(&course.admitted.pool, operation, now).is_some() {
            return self.all_throttled(now);
        }
        let only_waits = |reason| matches!(reason, health::Reason::Cooling | health::Reason::BreakerOpen);
        if rests().any(|rest| !only_waits(rest.reason)) || !course.attempts.is_empty() {
            let message = "every backend of this deployment refuses the balancer's own credential \
                           or lacks the deployment; its operator has to mend that";
            return Refusal::new(Reason::BackendMisconfigured, message);
        }
        let message = "no backend of this deployment can be asked now: they fail too often or asked to wait";
        let refusal = Refusal::new(Reason::NoBackend, message);
        match rests().map(|rest| rest.until).min() {
            Some(until) => refusal.after(until.saturating_duration_since(now)),
            None => refusal,
        }
    }
}

impl Course {
    /// Keeps the more useful of two replies; of equals the later, except that of several
    /// backends that do not know an id the first, the home, is believed.
    fn keep(&mut self, held: Held) {
        let better = match &self.best {
            None => true,
            Some(best) if best.rank() == held.rank() => !self.admitted.seeks,
            Some(best) => held.rank() < best.rank(),
        };
        if better {
            self.best = Some(held);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
