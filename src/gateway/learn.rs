//! What a reply means for its backend: rests, breaker, and deployments that turn out to exist.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use log::{error, info, warn};

use super::{Admitted, Backend, Gateway};
use crate::azure::response::hints;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::config;
use crate::names::Deployment;
use crate::routing::breaker::Failure;
use crate::routing::headroom::Sent;
use crate::routing::health::{self, Rest, Standing};
use crate::routing::pool::Candidate;
use crate::routing::retry_plan::Outcome;

/// How long a backend is left alone that cannot serve (deployment missing, credential
/// refused) before it is asked again.
const UNFIT_REST: Duration = Duration::from_secs(60);

/// Most characters of somebody else's words in a line of the log.
const MESSAGE_MAX: usize = 256;

/// A reply of a backend, as far as learning from it goes.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Who replied.
    pub candidate: &'a Candidate,
    /// The attempt it replies to.
    pub sent: Option<Sent>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its status, or the one that it stands for.
    pub status: u16,
    /// The number of the secret that it was shown; 0: none.
    pub secret: u64,
    /// What it counts as if it is a failure.
    pub failure: Failure,
    /// The moment.
    pub now: Instant,
}

impl Gateway {
    /// Takes note of what a reply means for its backend, and says what it means for the
    /// request: `None` when it is to be relayed.
    pub fn learn(&self, admitted: &Admitted, verdict: Verdict, reply: Answer<'_>) -> Option<Outcome> {
        let Answer { candidate, headers, now, .. } = reply;
        let rest = |reason, length: Duration| Rest { reason, until: now + length };
        let unfit = |reason| rest(reason, UNFIT_REST);
        let deployment = candidate.deployment.as_ref().map(|deployment| &deployment.cell);
        if let (Some(sent), Some(deployment)) = (reply.sent, &candidate.deployment) {
            deployment.headroom.told(sent, &hints::capacity(headers));
        }
        if verdict != Verdict::Failed {
            candidate.memory.breaker.succeeded(&self.breaker, now);
        }
        if matches!(verdict, Verdict::Success | Verdict::Client | Verdict::Throttled) {
            candidate.memory.trusts();
        }
        match verdict {
            Verdict::Success => {
                let is_success = (200..300).contains(&reply.status);
                if let (true, true, Some(deployment)) = (is_success, admitted.unlisted, &admitted.deployment)
                    && self.pools.learn(&self.backends, deployment, now)
                {
                    info!("deployment '{deployment}' is served, though no backend lists it");
                }
                None
            }
            Verdict::Client => None,
            Verdict::Elsewhere => Some(Outcome::Unfit),
            Verdict::Throttled => {
                let rest = rest(health::Reason::Cooling, self.cooldown_asked(headers));
                self.mark(candidate, deployment, rest, now);
                Some(Outcome::Throttled(rest.until))
            }
            Verdict::Failed => {
                if hints::asks_to_wait(headers) {
                    let rest = rest(health::Reason::Cooling, self.cooldown_asked(headers));
                    self.mark(candidate, deployment, rest, now);
                }
                self.fail(candidate, reply.failure, now);
                Some(Outcome::Failed)
            }
            Verdict::Credential => {
                if let Some(backend) = self.backends.get(candidate.backend) {
                    Self::refused(backend, reply.status, reply.secret, now);
                }
                Some(Outcome::Refused(reply.secret))
            }
            Verdict::PermissionDenied => {
                let cell = candidate.memory.operation(admitted.target.operation);
                self.mark(candidate, Some(cell), unfit(health::Reason::PermissionDenied), now);
                Some(Outcome::Unfit)
            }
            Verdict::Absent => {
                self.mark(candidate, deployment, unfit(health::Reason::Absent), now);
                Some(Outcome::Unfit)
            }
            Verdict::NotHere => Some(Outcome::Unfit),
        }
    }

    /// Takes note that a backend refuses our credential, or our network.
    fn refused(backend: &Backend, status: u16, secret: u64, now: Instant) {
        let kept = backend.credential.kept();
        if kept.number() != secret {
            // It was the one before, and there is a new one by now.
            return;
        }
        // First, so that nobody finds the backend resting and nothing to wait for.
        if status == 401 && backend.memory.may_renew(secret, now) {
            kept.refuse(secret);
        }
        let rest = Rest { reason: health::Reason::Credential, until: now + UNFIT_REST };
        if backend.memory.refuse(&backend.credential, secret, rest, now) {
            let name = &backend.config.name;
            error!("backend {name}: its credential or our network is refused; asked again in {UNFIT_REST:?}");
        }
    }

    /// Says why a backend's certificate is not believed, which no record tells: once in a while.
    pub fn distrusts(&self, backend: usize, why: &str, now: Instant) {
        let Some(backend) = self.backends.get(backend) else { return };
        if backend.memory.may_complain(now) {
            let config::Backend { name, endpoint, tls, .. } = &backend.config;
            let host = tls.server_name.as_ref().unwrap_or(&endpoint.host);
            let whose = if tls.ca.is_some() { "in tls.ca" } else { "of the system" };
            let why: String = why.escape_default().take(MESSAGE_MAX).collect();
            error!(
                "backend {name}: no TLS connection; expected a certificate, not expired, for {host}, \
                 of an authority {whose}: {why}"
            );
        }
    }

    /// Takes note that a try broke off.
    pub fn fail(&self, candidate: &Candidate, failure: Failure, now: Instant) {
        if let Some(open) = candidate.memory.breaker.failed(&self.breaker, failure, now) {
            let name =
                self.backends.get(candidate.backend).map_or("?", |backend| backend.config.name.as_str());
            error!("backend {name} fails too often: left alone for {open:?}");
        }
    }

    /// Takes note of what a probe of a backend without traffic found: the status and body of
    /// its reply, or `None` if there was none. It was shown the secret of this number. `repeated`
    /// says that the one before had failed too. Returns whether this one went well.
    pub fn probed(
        &self,
        backend: &Backend,
        reply: Option<(u16, &[u8])>,
        secret: u64,
        repeated: bool,
        now: Instant,
    ) -> bool {
        let name = &backend.config.name;
        let memory = &backend.memory;
        match reply.map(|(status, body)| verdict::judge(status, body, &|_| true)) {
            // No reply, or one that says that it is ill.
            None | Some(Verdict::Failed) => {
                // One lost probe is no outage; but it is enough where another was to find out.
                let is_probe = match memory.breaker.cell.standing(now) {
                    Standing::Awake => repeated,
                    Standing::Due => true,
                    Standing::Resting(_) => false,
                };
                let failure = Failure { is_first: true, is_probe, was_answered: false };
                if let Some(open) = memory.breaker.failed(&self.breaker, failure, now) {
                    error!("backend {name} does not answer its probe: left alone for {open:?}");
                }
                return false;
            }
            Some(Verdict::Credential) => {
                Self::refused(backend, reply.map_or(0, |(status, _)| status), secret, now);
            }
            Some(Verdict::Success) => {
                memory.breaker.close();
                memory.credential(&backend.credential).wake();
            }
            // Whatever else it says, it is there.
            Some(_) => memory.breaker.close(),
        }
        true
    }

    /// How long a throttled reply asks to wait, within bounds.
    pub fn cooldown_asked(&self, headers: &HeaderMap) -> Duration {
        let hint = hints::cooldown_hint(headers, SystemTime::now());
        hint.unwrap_or(self.cooldown.default).min(self.cooldown.maximum)
    }

    /// How long a reply asked to wait, as it said, if it said so in earnest.
    pub fn hint(&self, verdict: Verdict, headers: &HeaderMap) -> Option<Duration> {
        let asks = verdict == Verdict::Throttled || hints::asks_to_wait(headers);
        asks.then(|| hints::cooldown_hint(headers, SystemTime::now())).flatten()
    }

    fn mark(&self, candidate: &Candidate, cell: Option<&Arc<health::Cell>>, rest: Rest, now: Instant) {
        let Some(cell) = cell else { return };
        if !cell.rest(rest, now) {
            return;
        }
        // Once per incident: the cell was awake until now.
        let backend =
            self.backends.get(candidate.backend).map_or("?", |backend| backend.config.name.as_str());
        let length = rest.until.saturating_duration_since(now);
        let deployment = candidate.upstream.as_ref().map_or("", Deployment::as_str);
        match rest.reason {
            health::Reason::Cooling => {
                info!("backend {backend}: deployment '{deployment}' asks to wait {length:?}");
            }
            health::Reason::Absent => {
                warn!(
                    "backend {backend}: deployment '{deployment}' does not exist there; asked again in {length:?}"
                );
            }
            health::Reason::PermissionDenied => {
                error!(
                    "backend {backend}: its credential may not do this operation; asked again in {length:?}"
                );
            }
            // Logged where they begin.
            health::Reason::BreakerOpen | health::Reason::Credential | health::Reason::Drained => {}
        }
    }
}
