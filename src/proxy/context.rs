//! What one request carries from step to step: its story so far.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::Method;
use ipnet::IpNet;

use super::attempt::relay::{Ending, Facts, Reply};
use super::attempt::retry_state::{Due, RetryState};
use super::attempt::upstream_error::Trouble;
use super::client::request_body::{Budget, Intake};
use super::upstream::peer::{Peers, Turn};
use crate::admission::clients::Client;
use crate::azure::Target;
use crate::config::Listener;
use crate::credentials::Kept;
use crate::gateway::Gateway;
use crate::names::{Deployment, Subject};
use crate::record::exchange::{Asked, Exchange, Keep, Outcome};
use crate::record::writer::Receipt;
use crate::refusal::{Reason, Refusal};

/// A configuration at work: what decides, and how to reach what it decided on.
pub struct Serving {
    /// Decides.
    pub gateway: Arc<Gateway>,
    /// Reaches.
    pub peers: Peers,
    /// The listeners as they are configured now, which may be newer than those that are open.
    pub listeners: Vec<Listener>,
    /// What the admin API wants to be shown; `None`: nothing.
    pub admin_token: Option<Kept>,
}

impl Serving {
    /// The networks that are believed on this listener.
    pub(super) fn trusted_proxies<'s>(&'s self, open: &'s Listener) -> &'s [IpNet] {
        &self.listener(open).trusted_proxies
    }

    /// An open listener as it is configured now.
    pub(super) fn listener<'s>(&'s self, open: &'s Listener) -> &'s Listener {
        self.listeners.iter().find(|now| now.address == open.address).unwrap_or(open)
    }
}

/// Pingora's context of one request.
#[derive(Default)]
pub struct Context {
    /// The listener it came through.
    pub(super) listener: Option<Arc<Listener>>,
    /// The right to look for a connection, while it does.
    pub(super) turn: Option<Turn>,
    /// Its story; none for health probes.
    pub(super) flow: Option<Box<RequestContext>>,
}

/// The story of a request.
pub(super) struct RequestContext {
    pub(super) serving: Arc<Serving>,
    pub(super) request_id: Arc<str>,
    pub(super) time: SystemTime,
    pub(super) arrival: Instant,
    pub(super) method: Method,
    pub(super) client_ip: Option<IpAddr>,
    pub(super) peer_ip: Option<IpAddr>,
    /// The subject of the certificate that the client showed.
    pub(super) subject: Option<Subject>,
    pub(super) target: Option<Arc<Target>>,
    pub(super) raw_path: Option<String>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) content_type: String,
    pub(super) body: Intake,
    /// What is held of it as the try under way sends it.
    pub(super) pieces: VecDeque<Bytes>,
    /// Memory for what is held.
    pub(super) budget: Arc<Budget>,
    /// The deployment it asks for, as far as it is known.
    pub(super) deployment: Option<Deployment>,
    /// Whether it asks for a stream, if its body was read.
    pub(super) stream: Option<bool>,
    /// Whether the client can tell the end of a chunked body: HTTP/1.0 cannot.
    pub(super) knows_chunks: bool,
    /// Whether the client asked for a protocol switch.
    pub(super) upgrades: bool,
    /// When something has to happen although nothing comes in, and what.
    pub(super) deadline: Option<(Instant, Due)>,
    /// The client has sent something after its request: it is not listened to any more.
    pub(super) deaf: bool,
    /// The way through the pool, once admitted.
    pub(super) course: Option<RetryState>,
    /// What the balancer itself took so far.
    pub(super) overhead: Duration,
    /// Since when it is the balancer that everybody waits for, if it is.
    busy_since: Option<Instant>,
    /// The reply under way.
    pub(super) reply: Reply,
    pub(super) end: End,
}

/// How it ended, as far as that is known.
#[derive(Default)]
pub(super) struct End {
    pub(super) status: Option<u16>,
    pub(super) refusal: Option<Reason>,
    pub(super) client_gone: bool,
    pub(super) failed: bool,
    pub(super) first_byte: Option<Duration>,
    pub(super) response_bytes: u64,
    settled: bool,
    left: bool,
}

impl End {
    /// Takes note of bytes of the answer's body that go to the client.
    pub(super) fn sent(&mut self, bytes: usize, arrival: Instant) {
        if bytes > 0 && self.first_byte.is_none() {
            self.first_byte = Some(arrival.elapsed());
        }
        self.response_bytes += bytes as u64;
    }
}

impl RequestContext {
    pub(super) fn new(serving: Arc<Serving>, budget: Arc<Budget>, method: Method) -> Self {
        serving.gateway.process.in_flight.fetch_add(1, Ordering::AcqRel);
        let time = SystemTime::now();
        Self {
            serving,
            request_id: request_id(time),
            time,
            arrival: Instant::now(),
            method,
            client_ip: None,
            peer_ip: None,
            subject: None,
            target: None,
            raw_path: None,
            client: None,
            content_type: String::new(),
            body: Intake::default(),
            pieces: VecDeque::new(),
            budget,
            deployment: None,
            stream: None,
            knows_chunks: true,
            upgrades: false,
            deadline: None,
            deaf: false,
            course: None,
            overhead: Duration::ZERO,
            busy_since: Some(Instant::now()),
            reply: Reply::None,
            end: End::default(),
        }
    }

    /// From now on it is the balancer's turn.
    pub(super) fn busy(&mut self, since: Instant) {
        self.busy_since.get_or_insert(since);
    }

    /// From now on somebody else's.
    pub(super) fn idle(&mut self, now: Instant) {
        if let Some(since) = self.busy_since.take() {
            self.overhead += now.saturating_duration_since(since);
        }
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.serving.gateway
    }

    /// Takes note that the client is answered with a refusal of ours.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.idle(Instant::now());
        self.end.status = Some(refusal.reason.status());
        self.end.refusal = Some(refusal.reason);
    }

    /// Nothing is under way; returns how many tries there have been.
    pub(super) fn between_tries(&mut self) -> u32 {
        self.deadline = None;
        self.course.as_ref().map_or(0, |course| course.journey.tries())
    }

    /// The request has been handed over whole to the try under way: now its backend is to
    /// say something.
    pub(super) fn sent(&mut self, now: Instant) {
        if let (Reply::None, None, Some(course)) = (&self.reply, &self.deadline, &self.course)
            && course.is_underway()
        {
            course.sent(now);
            let timeouts = &self.serving.gateway.timeouts;
            let stream = course.admitted.stream == Some(true);
            let most = if stream { timeouts.first_byte_stream } else { timeouts.first_byte };
            self.deadline = Some((now + most, Due::GiveUp(Trouble::FirstByteTimeout)));
        }
    }

    /// Whether the client has been shown a final response head.
    pub(super) fn is_committed(&self) -> bool {
        self.end.status.is_some()
    }

    fn outcome(&self) -> Outcome {
        match () {
            () if self.end.client_gone => Outcome::ClientGone,
            () if self.end.failed || self.end.status.is_none() => Outcome::Failed,
            () => match self.end.refusal {
                Some(reason) if reason.is_failure() => Outcome::Failed,
                Some(_) => Outcome::Refused,
                None => Outcome::Answered,
            },
        }
    }

    /// Whether nothing that is still to come could change the record: the answer has ended, or
    /// said that it is over.
    pub(super) fn is_told(&self) -> bool {
        let ended = matches!(&self.reply, Reply::Passing(passing) if passing.is_told());
        !self.end.settled && self.end.status != Some(101) && (ended || self.end.refusal.is_some())
    }

    /// The end of the story: hands the record over, and returns word of when it is written. Later
    /// calls do nothing.
    pub(super) fn settle(&mut self) -> Option<Receipt> {
        if std::mem::replace(&mut self.end.settled, true) {
            return None;
        }
        let now = Instant::now();
        let facts = self.end_of_reply();
        let outcome = self.outcome();
        if let Some(course) = &mut self.course {
            course.close(self.end.client_gone, now);
        }
        let gateway = Arc::clone(&self.serving.gateway);
        let keep = gateway.keep(self.client.as_deref());
        let exchange = self.exchange(&gateway, keep, facts, outcome, now);
        gateway.settle(Box::new(exchange), keep)
    }

    /// The client has all it gets.
    pub(super) fn leave(&mut self) {
        if !std::mem::replace(&mut self.end.left, true) {
            drop(self.settle());
            self.serving.gateway.leave();
        }
    }

    /// What was seen of the answer, and what its end says about the request's.
    fn end_of_reply(&mut self) -> Facts {
        let Reply::Passing(passing) = &mut self.reply else { return Facts::default() };
        let (facts, ending) = passing.tell();
        // SDKs hang up on the last event, before the end of the body: that is an answer.
        self.end.client_gone &= ending != Ending::Said;
        self.end.failed |= ending == Ending::Broken;
        facts
    }

    /// Everything that the record needs, taken out of the story.
    fn exchange(
        &mut self,
        gateway: &Gateway,
        keep: Keep,
        facts: Facts,
        outcome: Outcome,
        now: Instant,
    ) -> Exchange {
        let shown = self.end.status.is_some() && self.end.refusal.is_none();
        let last = self.course.as_ref().filter(|_| shown).and_then(|course| course.answerer()).cloned();
        let backend = last.as_ref().and_then(|last| gateway.backends.get(last.backend));
        let own_version = backend.and_then(|backend| backend.config.api_version.as_deref());
        let api_version = self.target.as_ref().and_then(|target| {
            let version = target.effective_api_version(own_version, gateway.requests.api_version.as_deref());
            version.map(std::borrow::Cow::into_owned)
        });
        let named = || self.target.as_ref().and_then(|target| target.deployment.clone());
        let deployment = self.deployment.take().or_else(named);
        let attempts = self.course.as_mut().map(|course| std::mem::take(&mut course.attempts));
        Exchange {
            time: self.time,
            request_id: Arc::clone(&self.request_id),
            client: self.client.clone(),
            client_ip: self.client_ip,
            peer_ip: self.peer_ip,
            method: self.method.to_string(),
            target: self.target.clone(),
            raw_path: self.raw_path.take(),
            api_version,
            is_known_deployment: deployment.as_ref().is_some_and(|deployment| gateway.knows(deployment)),
            overhead: self.overhead,
            upstream_deployment: facts
                .spilled_to
                .or_else(|| last.and_then(|last| last.upstream.or_else(|| deployment.clone()))),
            deployment,
            stream: self.stream,
            status: self.end.status,
            outcome,
            refusal: self.end.refusal.map(Reason::code),
            backend: backend.map(|backend| backend.config.name.clone()),
            region: facts.region,
            apim_request_id: facts.apim_request_id,
            attempts: attempts.unwrap_or_default(),
            duration: now.saturating_duration_since(self.arrival),
            first_byte: self.end.first_byte,
            request_bytes: self.body.is_complete().then_some(self.body.length),
            response_bytes: self.end.response_bytes,
            asked: self.asked(keep, outcome),
            prompt: None,
            answered: facts.answered,
            lightened: false,
        }
    }

    /// The request's body, if its prompt is kept or what it cost may have to be estimated.
    fn asked(&mut self, keep: Keep, outcome: Outcome) -> Option<Asked> {
        // Before the client has the end of its answer, and may send the next request.
        let body = self.body.release();
        let content_type = std::mem::take(&mut self.content_type);
        let may_estimate = keep.estimates && matches!(outcome, Outcome::ClientGone | Outcome::Failed);
        let prompt = || self.course.as_ref().and_then(|course| course.admitted.prompt()).cloned();
        ((keep.prompt || may_estimate) && !body.is_empty()).then(|| Asked {
            body,
            content_type,
            prompt: prompt(),
        })
    }
}

impl Drop for RequestContext {
    /// A request whose task was torn down still has its record and leaves the count.
    fn drop(&mut self) {
        if !self.end.settled {
            self.end.client_gone = self.end.status.is_none();
        }
        self.leave();
    }
}

/// A UUIDv7: in order of time, unique without coordination.
pub(super) fn request_id(time: SystemTime) -> Arc<str> {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut random = [0_u8; 10];
    fastrand::fill(&mut random);
    let id =
        uuid::Builder::from_unix_timestamp_millis(u64::try_from(millis).unwrap_or(0), &random).into_uuid();
    let mut buffer = uuid::Uuid::encode_buffer();
    Arc::from(&*id.hyphenated().encode_lower(&mut buffer))
}
