//! What came of a try: the reply, or the lack of one, becomes what the gateway learns and what
//! happens next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pingora::http::ResponseHeader;

use super::final_response::Held;
use super::retry_state::{NO_FAILURE, Step, millis};
use super::upstream_error::Trouble;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::gateway::Answer;
use crate::proxy::context::RequestContext;
use crate::routing::retry_plan::Outcome;

/// What a complete reply means for the client.
pub(in crate::proxy) enum Next {
    /// It is the answer.
    Relay(Held),
    /// Somebody else is asked.
    Retry,
    /// Nobody else can be asked; [`RequestContext::conclude`] says what the client gets.
    Conclude,
}

impl RequestContext {
    /// A reply that is passed on has begun.
    pub(in crate::proxy) fn answered(&mut self, header: &ResponseHeader, now: Instant) {
        let gateway = Arc::clone(&self.serving.gateway);
        let Some(course) = &mut self.course else { return };
        course.open();
        let Some(underway) = &mut course.underway else { return };
        underway.answered = true;
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
                deployment.declines_usage.store(true, Ordering::Relaxed);
            }
            let verdict = if status < 400 { Verdict::Success } else { Verdict::Client };
            let failure = NO_FAILURE;
            gateway.learn(
                &course.admitted,
                verdict,
                Answer {
                    candidate,
                    sent: underway.number,
                    headers: &header.headers,
                    status,
                    secret: underway.secret,
                    failure,
                    now,
                },
            );
        }
    }

    /// A reply that was held back is complete, or as complete as it will be.
    pub(in crate::proxy) fn judge(&mut self, held: Held, now: Instant) -> Next {
        self.judge_held(held, false, now)
    }

    fn judge_held(&mut self, mut held: Held, unfinished: bool, now: Instant) -> Next {
        let gateway = Arc::clone(&self.serving.gateway);
        let Some(course) = &mut self.course else { return Next::Relay(held) };
        let status = held.header.status.as_u16();
        let body = held.text();
        let verdict = gateway.judge(&course.admitted, status, &body);
        // The question was ours, not the client's: the request is put without it.
        let declined = status == 400 && course.asks_usage() && verdict::names_stream_options(&body);
        let retry_after = gateway.hint(verdict, &held.header.headers);
        match verdict {
            Verdict::Client => course.open(),
            Verdict::Failed => {}
            _ => course.open_breaker(),
        }
        let failure = if verdict == Verdict::Failed { course.failure() } else { NO_FAILURE };
        let Some(tried) = course.finish(now, |attempt| {
            attempt.status = Some(status);
            attempt.retry_after_ms = retry_after.map(millis);
        }) else {
            return Next::Relay(held);
        };
        let Some(candidate) = course.admitted.pool.candidate(tried.place) else { return Next::Relay(held) };
        let outcome = if declined {
            course.declined = Some(tried.place);
            Some(Outcome::Again)
        } else {
            let headers = &held.header.headers;
            gateway.learn(
                &course.admitted,
                verdict,
                Answer { candidate, sent: tried.number, headers, status, secret: tried.secret, failure, now },
            )
        };
        let Some(outcome) = outcome else { return Next::Relay(held) };
        let throttled = matches!(outcome, Outcome::Throttled(_));
        course.end(tried.place, outcome);
        held.from = course.last.clone();
        let is_ours_to_mend = is_ours_to_mend(verdict) || outcome == Outcome::Again;
        if !is_ours_to_mend && !unfinished {
            held.is_last_resort = verdict == Verdict::NotHere;
            course.keep(held);
        }
        if verdict == Verdict::Elsewhere && status == 404 && course.admitted.seeks && !course.seeking {
            course.seek(gateway.strangers());
        }
        let is_safe =
            course.admitted.repeatable || throttled || is_ours_to_mend || verdict == Verdict::NotHere;
        if !is_safe || self.body.consumed {
            return Next::Conclude;
        }
        match course.step(now) {
            Step::Spent => Next::Conclude,
            Step::Try(_) | Step::Wait(_) | Step::Renewal(_) => Next::Retry,
        }
    }

    /// A stream of status 200 began with an error: it is the refusal that the error stands
    /// for. `None` when the client is to see it as it is.
    pub(in crate::proxy) fn judge_opening(
        &mut self,
        header: &ResponseHeader,
        event: &[u8],
        now: Instant,
    ) -> Option<Next> {
        let gateway = Arc::clone(&self.serving.gateway);
        let course = self.course.as_mut()?;
        let verdict = verdict::judge_event(event);
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
        if verdict != Verdict::Failed {
            course.open_breaker();
        }
        let failure = if verdict == Verdict::Failed { course.failure() } else { NO_FAILURE };
        let tried = course.finish(now, |attempt| {
            attempt.status = Some(stands_for);
            attempt.retry_after_ms = retry_after.map(millis);
        })?;
        let candidate = course.admitted.pool.candidate(tried.place)?;
        let headers = &header.headers;
        let outcome = gateway.learn(
            &course.admitted,
            verdict,
            Answer {
                candidate,
                sent: tried.number,
                headers,
                status: stands_for,
                secret: tried.secret,
                failure,
                now,
            },
        )?;
        course.end(tried.place, outcome);
        Some(match course.step(now) {
            _ if self.body.consumed => Next::Conclude,
            Step::Spent => Next::Conclude,
            Step::Try(_) | Step::Wait(_) | Step::Renewal(_) => Next::Retry,
        })
    }

    /// A reply that was held back turned out too large to be held: the verdict is that on its
    /// beginning. A relayed one is still the try under way.
    pub(in crate::proxy) fn judge_unfinished(&mut self, held: Held, now: Instant) -> Next {
        let gateway = Arc::clone(&self.serving.gateway);
        let Some(course) = &self.course else { return Next::Relay(held) };
        let verdict = gateway.judge(&course.admitted, held.header.status.as_u16(), &held.text());
        if verdict == Verdict::Client {
            return Next::Relay(held);
        }
        let as_it_is = Held { from: course.last.clone(), ..Held::new(held.header.clone()) };
        match self.judge_held(held, true, now) {
            // There is nothing better for the client than this one, which goes on.
            Next::Conclude
                if !is_ours_to_mend(verdict)
                    && self.course.as_ref().is_none_or(|course| course.best.is_none()) =>
            {
                Next::Relay(as_it_is)
            }
            next => next,
        }
    }

    /// The try under way broke off before a reply. Returns whether another follows.
    pub(in crate::proxy) fn broke_off(&mut self, trouble: Trouble, stale: bool, now: Instant) -> bool {
        let Some(course) = &mut self.course else { return false };
        let may_repeat = course.may_repeat() && !self.body.consumed && self.end.status.is_none();
        // A second time in one request it is the backend's doing.
        let place = course.underway.as_ref().map(|underway| underway.place);
        let stale = stale && !place.is_some_and(|place| course.journey.was_again(place));
        let failure = if stale { NO_FAILURE } else { course.failure() };
        let Some(tried) = course.finish(now, |attempt| attempt.error = Some(trouble.word())) else {
            return false;
        };
        if let Some(candidate) = course.admitted.pool.candidate(tried.place)
            && !stale
        {
            self.serving.gateway.fail(candidate, failure, now);
        }
        course.end(tried.place, if stale { Outcome::Again } else { Outcome::Failed });
        may_repeat && !matches!(course.step(now), Step::Spent)
    }
}

impl RequestContext {
    /// The TLS of the try under way could not be agreed on.
    pub(in crate::proxy) fn distrusts(&self, why: &str, now: Instant) {
        if let Some(answerer) = self.course.as_ref().and_then(|course| course.answerer()) {
            self.serving.gateway.distrusts(answerer.backend, why, now);
        }
    }

    /// There is no secret to show to whom the try under way asks. Returns whether another follows.
    pub(in crate::proxy) fn has_no_secret(&mut self, now: Instant) -> bool {
        let gateway = Arc::clone(&self.serving.gateway);
        let Some(course) = &mut self.course else { return false };
        let Some(tried) = course.finish(now, |attempt| attempt.error = Some("credential")) else {
            return false;
        };
        let candidate = course.admitted.pool.candidate(tried.place);
        if let Some(backend) = candidate.and_then(|candidate| gateway.backends.get(candidate.backend)) {
            backend.rest_without_credential(now);
        }
        course.end(tried.place, Outcome::Refused(0));
        !matches!(course.step(now), Step::Spent)
    }
}

/// Whether a verdict is about the balancer's own credential or configuration, which is never
/// shown to a client.
fn is_ours_to_mend(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Credential | Verdict::PermissionDenied | Verdict::Absent)
}
