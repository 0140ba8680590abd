//! The order of decisions: admit, pick, learn, settle.
//!
//! Holds the rooms; knows neither Pingora nor how bytes move. A gateway is immutable; what
//! changes lives in [`Memory`] and outlives it. Admitting is here; what a request asks for is
//! read in `inquiry.rs`, who serves it is in `pools.rs`, learning in `lessons.rs`.

mod learn;
mod pools;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use self::pools::Pools;
use self::request::Form;
use crate::admission::clients::{Client, Clients, Stranger};
use crate::azure::request::prompt::Parts;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::azure::{Naming, Operation, Target, is_create_without_idempotence};
use crate::config::{self, Config, Content};
use crate::credentials::{Credential, Keyring};
use crate::names::{Deployment, Subject};
use crate::record::Recorder;
use crate::record::exchange::{Exchange, Keep};
use crate::record::writer::Receipt;
use crate::refusal::{Reason, Refusal};
use crate::routing::health::{self, BackendMemory, Incident, Memory, Rest};
use crate::routing::pool::Pool;
use crate::routing::retry_plan::Allowance;

pub use self::learn::Answer;
pub use self::pools::Pooled;
pub use self::request::{Asked, Body, Outgoing};
pub use crate::routing::breaker::Failure;

static API_KEY: HeaderName = HeaderName::from_static("api-key");
static OCP_APIM_SUBSCRIPTION_KEY: HeaderName = HeaderName::from_static("ocp-apim-subscription-key");
/// How long a backend rests whose credential could not be fetched; it ends with the credential.
const UNTIL_THERE_IS_ONE: Duration = Duration::from_secs(86_400);
/// How much of an answer is gathered beyond its limit, so that what is to be taken out is found
/// whole where it crosses it.
const BEYOND: usize = 16 * 1024;

/// A backend as the proxy needs it.
#[derive(Debug)]
pub struct Backend {
    /// As configured.
    pub config: config::Backend,
    /// The value of `Host`: a resource answers only to its own name, of which an endpoint may be a
    /// private address.
    pub host: HeaderValue,
    /// Its name, as clients are shown it.
    pub shown: HeaderValue,
    /// What it is called with.
    pub credential: Arc<Credential>,
    /// What is remembered of it.
    pub memory: Arc<BackendMemory>,
}

impl Backend {
    /// Why, since when and until when all of it rests, if it does.
    pub fn resting(&self, now: Instant) -> Option<Incident> {
        self.memory.incident(&self.credential, now)
    }

    /// While there is no secret to show it is not asked. The first one ends that.
    pub fn rest_without_credential(&self, now: Instant) {
        if self.credential.kept().number() == 0 {
            let rest = Rest { reason: health::Reason::Credential, until: now + UNTIL_THERE_IS_ONE };
            self.memory.refuse(&self.credential, 0, rest, now);
        }
    }
}

/// What is shared by every gateway of a process, whatever its configuration.
#[derive(Debug)]
pub struct Process {
    /// Cooldowns and the like.
    pub memory: Memory,
    /// Requests from the parsed head until the record is settled and the answer has gone out.
    pub in_flight: AtomicUsize,
    /// Requests settled so far.
    pub settled: AtomicUsize,
    /// The process has begun to stop: readiness fails.
    pub stopping: AtomicBool,
    /// It stops, or another has taken over: connections are for one more request.
    pub leaving: AtomicBool,
    /// Where records go.
    pub recorder: Recorder,
    /// Secrets and tokens.
    pub keyring: Keyring,
}

impl Process {
    /// A process that begins now.
    pub fn new(now: Instant, recorder: Recorder, keyring: Keyring) -> Self {
        Self {
            memory: Memory::new(now),
            in_flight: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            recorder,
            keyring,
        }
    }
}

/// A word of the configuration as a header's value, which it is checked to be fit for.
fn value(word: String) -> HeaderValue {
    HeaderValue::try_from(word).unwrap_or(HeaderValue::from_static("unknown"))
}

/// One configuration, ready to decide.
pub struct Gateway {
    /// In the order of the configuration.
    pub backends: Vec<Backend>,
    /// Limits on requests and their rewriting.
    pub requests: config::Requests,
    /// How long each step may take.
    pub timeouts: config::Timeouts,
    /// The rest of the process.
    pub process: Arc<Process>,
    clients: Clients,
    pools: Pools,
    retry: config::Retry,
    cooldown: config::Cooldown,
    breaker: config::Breaker,
    record: Option<config::Record>,
}

/// A request that may go to a backend.
pub struct Admitted {
    /// Its target.
    pub target: Arc<Target>,
    /// The deployment it asks for.
    pub deployment: Option<Deployment>,
    /// Who can serve it.
    pub pool: Arc<Pool>,
    /// Whether it asks for a stream, if its body could be read.
    pub stream: Option<bool>,
    /// Whether it may be tried again after a part of it was sent and no 429 came back.
    pub repeatable: bool,
    /// Whether a 404 means "not here": a call by id that goes home first.
    pub seeks: bool,
    form: Form,
    unlisted: bool,
}

impl Admitted {
    /// Where the body's prompt lies, if that is known.
    pub fn prompt(&self) -> Option<&Parts> {
        match &self.form {
            Form::Json(probe) => Some(&probe.prompt),
            Form::Multipart(_) | Form::Opaque => None,
        }
    }
}

impl Gateway {
    /// The gateway of this configuration, adopting what the process remembers.
    pub fn new(config: &Config, process: Arc<Process>, now: Instant) -> Self {
        let backends: Vec<Backend> = config
            .backends
            .iter()
            .map(|backend| Backend {
                config: backend.clone(),
                host: value(backend.tls.server_name.clone().unwrap_or_else(|| backend.endpoint.authority())),
                shown: value(backend.name.as_str().to_owned()),
                credential: Arc::new(process.keyring.credential(&backend.credential, &config.key_vault)),
                memory: process.memory.backend(&backend.name),
            })
            .collect();
        let signers = config.entra.as_ref().map(|tokens| process.keyring.signers(tokens));
        for backend in &backends {
            backend.rest_without_credential(now);
        }
        Self {
            clients: Clients::new(&config.clients, config.entra.as_ref(), signers),
            pools: Pools::new(config, &backends, now),
            backends,
            requests: config.requests.clone(),
            timeouts: config.timeouts,
            retry: config.retry.clone(),
            cooldown: config.cooldown,
            breaker: config.breaker,
            record: config.record.clone(),
            process,
        }
    }

    /// Deployments that no file names and some backend has answered for.
    pub fn learned(&self) -> Vec<Deployment> {
        self.pools.learned()
    }

    /// Takes it from another gateway, or another process, that such a deployment exists.
    pub fn learn_of(&self, deployment: &Deployment, now: Instant) {
        if !self.pools.knows(deployment) && self.pools.passes_unlisted() {
            self.pools.learn(&self.backends, deployment, now);
        }
    }

    /// The pools, as an operator wants to see them.
    pub fn pools(&self) -> Vec<(Pooled, Arc<Pool>)> {
        self.pools.all()
    }

    /// Who may call.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Understands a request's target.
    ///
    /// # Errors
    /// `method_not_allowed`, `bad_request`.
    pub fn locate(&self, method: &Method, raw_target: &[u8], upgrade: bool) -> Result<Arc<Target>, Refusal> {
        if matches!(*method, Method::OPTIONS | Method::TRACE | Method::CONNECT) {
            let message = "OPTIONS, TRACE and CONNECT are not served: keys do not belong in browsers";
            return Err(Refusal::new(Reason::MethodNotAllowed, message));
        }
        crate::azure::parse_recent(raw_target, upgrade).map_err(|bad| Refusal::bad_request(bad.to_string()))
    }

    /// Whether this method and path may be asked at all.
    ///
    /// # Errors
    /// `path_not_allowed`.
    pub fn allow(&self, method: &Method, target: &Target) -> Result<(), Refusal> {
        if self.requests.allow.iter().any(|allow| allow.permits(method, &target.path)) {
            return Ok(());
        }
        let message = "this method and path are not served here; Azure OpenAI's begin with /openai/";
        Err(Refusal::new(Reason::PathNotAllowed, message))
    }

    /// Whose request this is; `subject` is that of the certificate that its connection showed.
    ///
    /// # Errors
    /// [`Stranger`] when it is nobody's.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        target: &Target,
        subject: Option<&Subject>,
    ) -> Result<Arc<Client>, Stranger> {
        let in_query = target.query.credentials().iter().map(|credential| credential.expose().as_bytes());
        self.clients.admit(presented_keys(headers).chain(in_query), subject)
    }

    /// Whether this client may make this call, as far as the head tells.
    ///
    /// # Errors
    /// `deployment_not_allowed`, `DeploymentNotFound`.
    pub fn permit(&self, method: &Method, target: &Target, client: &Client) -> Result<(), Refusal> {
        match target.naming(method) {
            Naming::Target => match &target.deployment {
                Some(deployment) => {
                    client.may_use(deployment)?;
                    self.pools.of(deployment).map(|_| ())
                }
                None => Ok(()),
            },
            Naming::Body => Ok(()),
            Naming::Home => client.may_keep_state(),
        }
    }

    /// Admits a request to its pool.
    ///
    /// # Errors
    /// `deployment_not_allowed`, `DeploymentNotFound`.
    pub fn admit(
        &self,
        method: &Method,
        target: Arc<Target>,
        client: &Client,
        asked: Asked,
    ) -> Result<Admitted, Refusal> {
        let Asked { deployment, stream, background, form } = asked;
        let finds = matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
        let seeks = target.naming(method) == Naming::Home && target.item && finds;
        let (pool, unlisted) = match &deployment {
            Some(deployment) => {
                client.may_use(deployment)?;
                self.pools.of(deployment)?
            }
            None => (Arc::clone(&self.pools.home), false),
        };
        let makes_more = is_create_without_idempotence(method, target.operation);
        let repeatable = !(makes_more || (background && target.operation == Operation::Responses));
        Ok(Admitted { target, deployment, pool, stream, repeatable, seeks, form, unlisted })
    }

    /// What a request whose body ended just now may spend on tries. `read_timeout` is the
    /// client's own, counted from `arrival`.
    pub fn allowance(&self, now: Instant, arrival: Instant, read_timeout: Option<Duration>) -> Allowance {
        let deadline = now + self.retry.deadline;
        let clients = read_timeout.and_then(|timeout| arrival.checked_add(timeout));
        Allowance {
            attempts: self.retry.attempts,
            wait: self.retry.wait,
            budget: self.retry.budget,
            latest_start: clients.map_or(deadline, |clients| clients.min(deadline)),
        }
    }

    /// Whether a reply of this status is given to the client without a look at its body.
    pub fn passes(&self, status: u16) -> bool {
        status < 400 || !(self.retry.statuses.contains(status) || verdict::needs_body(status))
    }

    /// How much of a stream may be held before its first content.
    pub fn hold(&self) -> config::Hold {
        self.retry.hold
    }

    /// The verdict on a complete reply.
    pub fn judge(&self, admitted: &Admitted, status: u16, body: &[u8]) -> Verdict {
        match verdict::judge(status, body, &|status| self.retry.statuses.contains(status)) {
            // The id may be another resource's.
            Verdict::Client | Verdict::Absent | Verdict::NotHere if admitted.seeks && status == 404 => {
                Verdict::Elsewhere
            }
            // What is missing is not a deployment that anybody balances: the client named it.
            Verdict::Absent | Verdict::NotHere if admitted.deployment.is_none() => Verdict::Client,
            verdict => verdict,
        }
    }

    /// Who else is asked for an id that home does not know.
    pub fn strangers(&self) -> Arc<Pool> {
        Arc::clone(&self.pools.strangers)
    }

    /// How long a client is told to wait when nothing better is known.
    pub fn default_cooldown(&self) -> Duration {
        self.cooldown.default
    }

    /// Whether prompts and answers of this client are looked at for the record at all.
    pub fn keep(&self, client: Option<&Client>) -> Keep {
        let Some(record) = &self.record else { return Keep::default() };
        let content = client.and_then(|client| client.content).unwrap_or(record.content);
        let limit = usize::try_from(record.content_limit).unwrap_or(usize::MAX);
        let beyond = if record.redact.is_empty() { 0 } else { BEYOND };
        Keep {
            prompt: content != Content::None,
            completion: content == Content::Full,
            limit,
            gather: limit.saturating_add(beyond),
            estimates: true,
        }
    }

    /// The end of every request's story: it is counted and, where records are kept, written, once.
    /// Returns word of when it is; [`Gateway::write_down`] has to follow.
    pub fn settle(&self, exchange: Box<Exchange>, keep: Keep) -> Option<Receipt> {
        self.process.settled.fetch_add(1, Ordering::Relaxed);
        self.process.recorder.write(exchange, keep)
    }

    /// Has the records written that were settled so far.
    pub fn write_down(&self) {
        self.process.recorder.wake();
    }

    /// Whether a deployment is one of the configuration's, or a backend has answered for it.
    pub fn knows(&self, deployment: &Deployment) -> bool {
        self.pools.knows(deployment)
    }

    /// The last bytes of an answer went out before its record was written.
    pub fn late(&self) {
        self.process.recorder.metrics().count("spool", "late", 1);
    }

    /// The client has all it gets.
    pub fn leave(&self) {
        self.write_down();
        self.process.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Every key a request presents in its headers.
fn presented_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let plain = [&API_KEY, &OCP_APIM_SUBSCRIPTION_KEY];
    let plain = plain.into_iter().flat_map(|name| headers.get_all(name)).map(|value| value.as_bytes());
    let bearer = headers.get_all(http::header::AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    plain.chain(bearer)
}
