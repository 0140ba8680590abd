//! What the client gets: a reply that was held back, its hints made true, or a refusal of ours.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;

use super::retry_state::{Answerer, RetryState};
use super::upstream_error::Trouble;
use crate::azure::response::hints;
use crate::proxy::client::refusal_response;
use crate::proxy::context::RequestContext;
use crate::record::exchange::Attempt;
use crate::refusal::{Reason, Refusal};
use crate::routing::health;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const REQUEST_ID: &str = "x-aoai-lb-request-id";
const BACKEND: &str = "x-aoai-lb-backend";
const ATTEMPTS: &str = "x-aoai-lb-attempts";
/// The troubles that are answered with 504 rather than 502.
const TIMEOUTS: [Trouble; 3] = [Trouble::ConnectTimeout, Trouble::FirstByteTimeout, Trouble::IdleTimeout];

/// A reply held back: whole, or as far as it went.
pub(in crate::proxy) struct Held {
    pub(in crate::proxy) header: Box<ResponseHeader>,
    pub(in crate::proxy) body: Vec<Bytes>,
    pub(in crate::proxy) from: Option<Answerer>,
    /// It says that its backend cannot serve this request: of use only if nobody says more.
    pub(in crate::proxy) is_last_resort: bool,
}

impl Held {
    pub(in crate::proxy) fn new(header: Box<ResponseHeader>) -> Self {
        Self { header, body: Vec::new(), from: None, is_last_resort: false }
    }

    pub(in crate::proxy) fn text(&self) -> Bytes {
        match self.body.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            many => Bytes::from(many.concat()),
        }
    }

    /// The order in which replies are worth relaying: about the request, 429, 5xx, 408.
    fn rank(&self) -> u8 {
        match self.header.status.as_u16() {
            _ if self.is_last_resort => 4,
            429 => 1,
            500.. => 2,
            408 => 3,
            _ => 0,
        }
    }
}

impl RetryState {
    /// Keeps the more useful of two replies; of equals the later, except that of several
    /// backends that do not know an id the first, the home, is believed.
    pub(in crate::proxy) fn keep(&mut self, held: Held) {
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

impl RequestContext {
    /// What the client gets when there is no further try: the most useful reply that was
    /// held back, or a refusal of ours.
    pub(in crate::proxy) fn conclude(&mut self, now: Instant) -> pingora::Result<Vec<HttpTask>> {
        if let Some(held) = self.course.as_mut().and_then(|course| course.best.take()) {
            return self.relay(held, now);
        }
        let refusal = self.exhausted(now);
        self.refuse(&refusal)
    }

    /// A refusal as tasks for the session.
    pub(in crate::proxy) fn refuse(&mut self, refusal: &Refusal) -> pingora::Result<Vec<HttpTask>> {
        let (mut header, body) = refusal_response::refusal(refusal, &self.request_id)?;
        self.refused(refusal);
        self.sign(&mut header)?;
        Ok(self.whole(Box::new(header), body))
    }

    /// A held reply as tasks for the session, its hints made true.
    pub(in crate::proxy) fn relay(&mut self, held: Held, now: Instant) -> pingora::Result<Vec<HttpTask>> {
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

    /// A client is told when some backend can be asked again, not when this one can; and never
    /// to stay away for longer than a minute, since there are SDKs that sleep for a day if told.
    pub(in crate::proxy) fn correct_hints(
        &self,
        header: &mut ResponseHeader,
        now: Instant,
    ) -> pingora::Result<()> {
        let wait = match header.status.as_u16() {
            429 => self.soonest(now),
            408 | 500.. if hints::asks_to_wait(&header.headers) => {
                let hint = hints::cooldown_hint(&header.headers, SystemTime::now());
                hint.unwrap_or_else(|| self.gateway().default_cooldown())
            }
            _ => return Ok(()),
        };
        header.remove_header("x-ms-retry-after-ms");
        refusal_response::hint(header, wait.as_millis())
    }

    fn whole(&mut self, header: Box<ResponseHeader>, body: Bytes) -> Vec<HttpTask> {
        if body.is_empty() || self.method == http::Method::HEAD {
            return vec![HttpTask::Header(header, true)];
        }
        self.end.sent(body.len(), self.arrival);
        vec![HttpTask::Header(header, false), HttpTask::Body(Some(body), true)]
    }

    /// What every answer carries, and what none does.
    pub(in crate::proxy) fn sign(&self, header: &mut ResponseHeader) -> pingora::Result<()> {
        for unwanted in [&http::header::SET_COOKIE, &KEEP_ALIVE] {
            if header.headers.contains_key(unwanted) {
                header.remove_header(unwanted);
            }
        }
        header.insert_header(REQUEST_ID, &*self.request_id)?;
        let Some(course) = &self.course else { return Ok(()) };
        if self.end.refusal.is_none()
            && let Some(backend) =
                course.last.as_ref().and_then(|last| self.gateway().backends.get(last.backend))
        {
            header.insert_header(BACKEND, backend.shown.clone())?;
        }
        header.insert_header(ATTEMPTS, HeaderValue::from(course.journey.tries()))
    }

    /// How long until some backend can be asked, those that asked to wait among them.
    fn soonest(&self, now: Instant) -> Duration {
        let soonest = self.course.as_ref().and_then(|course| {
            let (pool, operation) = (&course.admitted.pool, course.admitted.target.operation);
            if course.journey.has_untried(pool, operation, now) {
                return Some(now);
            }
            course.journey.soonest_cooldown(pool, operation, now)
        });
        soonest
            .map_or_else(|| self.gateway().default_cooldown(), |until| until.saturating_duration_since(now))
    }

    fn all_throttled(&self, now: Instant) -> Refusal {
        let wait = self.soonest(now);
        let seconds = wait.as_millis().clamp(1, refusal_response::LONGEST_HINT_MS).div_ceil(1000);
        let message = format!(
            "The backends of this deployment are at their rate limit or cannot be reached. \
             Please retry after {seconds} seconds."
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
        let cools = course.journey.soonest_cooldown(&course.admitted.pool, operation, now).is_some();
        if cools || course.attempts.iter().any(throttled) {
            return self.all_throttled(now);
        }
        // A status that failed leaves its reply, unless it was an event in a stream or cut off.
        let failed = |attempt: &&Attempt| {
            attempt.error.is_some() || attempt.status.is_some_and(|status| matches!(status, 408 | 500..))
        };
        if let Some(last) = course.attempts.iter().rfind(failed) {
            let late = TIMEOUTS.iter().any(|trouble| last.error == Some(trouble.word()));
            let tries = course.attempts.len();
            return if late {
                Refusal::new(Reason::UpstreamTimeout, format!("no backend answered in time (tries: {tries})"))
            } else {
                Refusal::new(Reason::UpstreamFailed, format!("no backend answered (tries: {tries})"))
            };
        }
        let rests = || course.admitted.pool.candidates().iter().filter_map(|c| c.resting(operation, now));
        use health::Reason as Rests;
        let is_broken = |reason| !matches!(reason, Rests::Cooling | Rests::BreakerOpen | Rests::Drained);
        if rests().any(|rest| is_broken(rest.reason)) || !course.attempts.is_empty() {
            let message = "every backend of this deployment refuses the balancer's own credential \
                           or lacks the deployment; its operator has to mend that";
            return Refusal::new(Reason::BackendMisconfigured, message);
        }
        let soonest = rests().filter(|rest| rest.reason != Rests::Drained).map(|rest| rest.until).min();
        let message = match soonest {
            Some(_) => "no backend of this deployment can be asked now: they fail too often or asked to wait",
            None => "every backend of this deployment is drained by the balancer's operator",
        };
        let refusal = Refusal::new(Reason::NoBackend, message);
        match soonest {
            Some(until) => refusal.after(until.saturating_duration_since(now)),
            None => refusal,
        }
    }
}
