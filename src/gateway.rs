//! The order of decisions: admit, pick, learn, settle.
//!
//! Holds the rooms; knows neither Pingora nor how bytes move. A gateway is immutable; what
//! changes lives in [`Memory`] and outlives it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method};
use log::{error, info, warn};

use crate::admission::clients::{Client, Clients};
use crate::azure::body::{self, Edit, Probe};
use crate::azure::hints;
use crate::azure::multipart::{self, BadForm, FormProbe};
use crate::azure::verdict::{self, Verdict};
use crate::azure::{Naming, Operation, Target, is_create_without_idempotence};
use crate::config::{self, Config, Content, UsageMode};
use crate::names::{Deployment, Tier, Weight};
use crate::record::exchange::{Exchange, Keep};
use crate::record::sinks::jsonl::Jsonl;
use crate::refusal::{Reason, Refusal};
use crate::routing::health::{self, BackendMemory, Memory, Rest};
use crate::routing::journey::{Allowance, Outcome};
use crate::routing::pool::{Candidate, Pool};

/// How long a backend is left alone that cannot serve (deployment missing, credential
/// refused) before it is asked again.
const UNFIT_REST: Duration = Duration::from_secs(60);
/// Most deployments that are learned from answers rather than named in the configuration.
const LEARNED_MAX: usize = 500;

/// A backend as the proxy needs it.
#[derive(Debug)]
pub struct Backend {
    /// As configured.
    pub config: config::Backend,
    /// What is remembered of it.
    pub memory: Arc<BackendMemory>,
}

/// What is shared by every gateway of a process, whatever its configuration.
#[derive(Debug)]
pub struct Process {
    /// Cooldowns and the like.
    pub memory: Memory,
    /// Requests from the parsed head until the record is settled.
    pub in_flight: AtomicUsize,
    /// Requests settled so far.
    pub settled: AtomicUsize,
    /// The process has begun to stop: readiness fails.
    pub stopping: AtomicBool,
    /// Where records go.
    pub recorder: Option<Jsonl>,
}

impl Process {
    /// A process that begins now.
    pub fn new(now: Instant, recorder: Option<Jsonl>) -> Self {
        Self {
            memory: Memory::new(now),
            in_flight: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            recorder,
        }
    }
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
    pools: HashMap<Deployment, Arc<Pool>>,
    unlisted: Option<Arc<Pool>>,
    learned: ArcSwap<HashMap<Deployment, Arc<Pool>>>,
    home: Arc<Pool>,
    strangers: Arc<Pool>,
    retry: config::Retry,
    cooldown: config::Cooldown,
    breaker: config::Breaker,
    record: Option<config::Record>,
}

/// A request's body, as far as deciding needs it.
pub struct Body<'a> {
    /// The bytes; empty when there are none or they are not held.
    pub bytes: &'a Bytes,
    /// `content-type`.
    pub content_type: &'a str,
    /// Whether `content-encoding` hides the bytes.
    pub encoded: bool,
}

/// What a request asks for, body included.
pub struct Asked {
    /// The deployment it names, if it is one that names one.
    pub deployment: Option<Deployment>,
    /// Whether it asks for a stream, if its body could be read.
    pub stream: Option<bool>,
    background: bool,
    form: Form,
}

/// What the body turned out to be.
#[derive(Debug)]
enum Form {
    Opaque,
    Json(Probe),
    Multipart(FormProbe),
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

/// A reply of a backend, as far as learning from it goes.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Who replied.
    pub candidate: &'a Candidate,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Whether its status is a 2xx.
    pub is_success: bool,
    /// What it counts as if it is a failure.
    pub failure: Failure,
    /// The moment.
    pub now: Instant,
}

/// What a failure of a backend counts as.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// It is this request's first on this backend.
    pub is_first: bool,
    /// The try was to find out whether the backend is back.
    pub is_probe: bool,
}

/// How a request is put to one backend.
pub struct Outgoing {
    /// Path and query.
    pub path: String,
    /// Changes to the body.
    pub edits: Vec<Edit>,
    /// Whether the stream's usage is asked for on our account, and to be taken out again.
    pub asks_usage: bool,
}

impl Gateway {
    /// The gateway of this configuration, adopting what the process remembers.
    pub fn new(config: &Config, process: Arc<Process>, now: Instant) -> Self {
        let backends: Vec<Backend> = config
            .backends
            .iter()
            .map(|backend| Backend { config: backend.clone(), memory: process.memory.backend(&backend.name) })
            .collect();
        let names = config.backends.iter().flat_map(|backend| backend.deployments.listed());
        let pools = names
            .map(|(name, _)| name.clone())
            .map(|name| {
                let pool = serving(&backends, &name);
                (name, Arc::new(Pool::new(pool, now)))
            })
            .collect();
        let passing =
            backends.iter().enumerate().filter(|(_, backend)| backend.config.deployments.passes_all());
        let passing: Vec<Candidate> =
            passing.map(|(index, backend)| candidate(index, backend, None, false)).collect();
        let home = config.requests.home;
        Self {
            clients: Clients::new(&config.clients),
            pools,
            unlisted: (!passing.is_empty()).then(|| Arc::new(Pool::new(passing, now))),
            learned: ArcSwap::default(),
            home: Arc::new(Pool::new(home_pool(&backends, home), now)),
            strangers: Arc::new(Pool::new(strangers(&backends, home), now)),
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

    /// Understands a request's target.
    ///
    /// # Errors
    /// `method_not_allowed`, `bad_request`.
    pub fn locate(&self, method: &Method, raw_target: &[u8], upgrade: bool) -> Result<Target, Refusal> {
        if matches!(*method, Method::OPTIONS | Method::TRACE | Method::CONNECT) {
            let message = "OPTIONS, TRACE and CONNECT are not served: keys do not belong in browsers";
            return Err(Refusal::new(Reason::MethodNotAllowed, message));
        }
        crate::azure::parse(raw_target, upgrade).map_err(|bad| Refusal::bad_request(bad.to_string()))
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

    /// Whose request this is, and whether that client may make it, as far as the head tells.
    ///
    /// # Errors
    /// `invalid_api_key`, `deployment_not_allowed`, `DeploymentNotFound`.
    pub fn authenticate(&self, headers: &HeaderMap, target: &Target) -> Result<Arc<Client>, Refusal> {
        let in_query = target.query.credentials().iter().map(|credential| credential.expose().as_bytes());
        self.clients.admit(presented_keys(headers).chain(in_query))
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
                    self.pool(deployment).map(|_| ())
                }
                None => Ok(()),
            },
            Naming::Body => Ok(()),
            Naming::Home => client.may_keep_state(),
        }
    }

    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `bad_request` for a body that does not say what it has to, `unsupported_encoding`.
    pub fn read(&self, method: &Method, target: &Target, body: &Body<'_>) -> Result<Asked, Refusal> {
        let naming = target.naming(method);
        let form = understand(naming, target, body)?;
        let (stream, background, named) = match &form {
            Form::Opaque => (None, false, None),
            Form::Json(probe) => (Some(probe.stream), probe.background, Some(&probe.model)),
            Form::Multipart(form) => (Some(form.stream), false, Some(&form.model)),
        };
        let deployment = match (naming, named) {
            (Naming::Target, _) => target.deployment.clone(),
            (Naming::Body, Some(model)) => {
                let model = model.deployment().map_err(|bad| Refusal::bad_request(bad.to_string()))?;
                Some(model.ok_or_else(no_model)?.clone())
            }
            (Naming::Body, None) => return Err(no_model()),
            (Naming::Home, _) => None,
        };
        Ok(Asked { deployment, stream, background, form })
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
                self.pool(deployment)?
            }
            None => (Arc::clone(&self.home), false),
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

    /// How an admitted request is put to a candidate of its pool.
    pub fn put(&self, admitted: &Admitted, candidate: &Candidate, ask_usage: bool) -> Outgoing {
        let backend = self.backends.get(candidate.backend).map(|backend| &backend.config);
        let own_version = backend.and_then(|backend| backend.api_version.as_deref());
        let default_version = self.requests.api_version.as_deref();
        let target = &admitted.target;
        let path = target.upstream_path(candidate.upstream.as_ref(), own_version, default_version);
        let mut edits = Vec::new();
        let mut asks_usage = false;
        let renames = target.naming(&Method::POST) == Naming::Body;
        match &admitted.form {
            Form::Opaque => {}
            Form::Json(probe) => {
                if renames {
                    edits.extend(candidate.upstream.as_ref().and_then(|upstream| probe.rename(upstream)));
                }
                let declined = || {
                    candidate
                        .deployment
                        .as_ref()
                        .is_some_and(|known| known.declines_usage.load(Ordering::Relaxed))
                };
                let wanted = || self.record.as_ref().is_some_and(|record| record.usage == UsageMode::Ask);
                let version = || target.effective_api_version(own_version, default_version);
                if ask_usage
                    && probe.stream
                    && wanted()
                    && body::may_ask_usage(target.operation, target.api, version().as_deref(), probe)
                    && !declined()
                {
                    let edit = probe.ask_usage();
                    asks_usage = edit.is_some();
                    edits.extend(edit);
                }
            }
            Form::Multipart(form) if renames => {
                edits.extend(candidate.upstream.as_ref().and_then(|upstream| form.rename(upstream)));
            }
            Form::Multipart(_) => {}
        }
        Outgoing { path, edits, asks_usage }
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
        Arc::clone(&self.strangers)
    }

    /// Takes note of what a reply means for its backend, and says what it means for the
    /// request: `None` when it is to be relayed.
    pub fn learn(&self, admitted: &Admitted, verdict: Verdict, reply: Answer<'_>) -> Option<Outcome> {
        let Answer { candidate, headers, now, .. } = reply;
        let rest = |reason, length: Duration| Rest { reason, until: now + length };
        let unfit = |reason| rest(reason, UNFIT_REST);
        let deployment = candidate.deployment.as_ref().map(|deployment| &deployment.cell);
        if verdict != Verdict::Failed {
            candidate.memory.breaker.succeeded(&self.breaker, now);
        }
        match verdict {
            Verdict::Success => {
                if reply.is_success {
                    self.learn_deployment(admitted, now);
                }
                None
            }
            Verdict::Client => None,
            Verdict::Elsewhere if admitted.seeks => Some(Outcome::Unfit),
            Verdict::Elsewhere => Some(Outcome::Refused),
            Verdict::Throttled => {
                let rest = rest(health::Reason::Cooling, self.cooldown_asked(headers));
                self.mark(candidate, deployment, rest, now);
                Some(Outcome::Throttled(rest.until))
            }
            Verdict::Failed => {
                if asks_to_wait(headers) {
                    let rest = rest(health::Reason::Cooling, self.cooldown_asked(headers));
                    self.mark(candidate, deployment, rest, now);
                }
                self.fail(candidate, reply.failure, now);
                Some(Outcome::Failed)
            }
            Verdict::Credential => {
                self.mark(
                    candidate,
                    Some(&candidate.memory.credential),
                    unfit(health::Reason::Credential),
                    now,
                );
                Some(Outcome::Unfit)
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

    /// Takes note that a try broke off.
    pub fn fail(&self, candidate: &Candidate, failure: Failure, now: Instant) {
        let Failure { is_first, is_probe } = failure;
        if let Some(open) = candidate.memory.breaker.failed(&self.breaker, is_first, is_probe, now) {
            let name =
                self.backends.get(candidate.backend).map_or("?", |backend| backend.config.name.as_str());
            error!("backend {name} fails too often: left alone for {open:?}");
        }
    }

    /// How long a throttled reply asks to wait, within bounds.
    pub fn cooldown_asked(&self, headers: &HeaderMap) -> Duration {
        let hint = hints::cooldown_hint(headers, SystemTime::now());
        hint.unwrap_or(self.cooldown.default).min(self.cooldown.maximum)
    }

    /// How long a reply asked to wait, as it said, if it said so in earnest.
    pub fn hint(&self, verdict: Verdict, headers: &HeaderMap) -> Option<Duration> {
        let asks = verdict == Verdict::Throttled || asks_to_wait(headers);
        asks.then(|| hints::cooldown_hint(headers, SystemTime::now())).flatten()
    }

    /// How long a client is told to wait when nothing better is known.
    pub fn default_cooldown(&self) -> Duration {
        self.cooldown.default
    }

    /// Whether prompts and answers of this client are looked at for the record at all.
    pub fn keep(&self, client: Option<&Client>) -> Option<Keep> {
        let record = self.record.as_ref()?;
        let content = client.and_then(|client| client.content).unwrap_or(record.content);
        Some(Keep {
            prompt: content != Content::None,
            completion: content == Content::Full,
            limit: usize::try_from(record.content_limit).unwrap_or(usize::MAX),
        })
    }

    /// The end of every request: its record is written, once.
    pub fn settle(&self, exchange: Box<Exchange>) {
        if let (Some(recorder), Some(keep)) = (&self.process.recorder, self.keep(exchange.client.as_deref()))
        {
            recorder.write(exchange, keep);
        }
        self.process.settled.fetch_add(1, Ordering::Relaxed);
        self.process.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    fn pool(&self, deployment: &Deployment) -> Result<(Arc<Pool>, bool), Refusal> {
        if let Some(pool) = self.pools.get(deployment).or(self.learned.load().get(deployment)) {
            return Ok((Arc::clone(pool), false));
        }
        if let Some(pool) = &self.unlisted {
            return Ok((Arc::clone(pool), true));
        }
        let message = format!("The API deployment '{deployment}' does not exist: no backend serves it.");
        Err(Refusal::new(Reason::DeploymentNotFound, message))
    }

    /// A deployment that the configuration does not name has been answered for: from now on
    /// it has a wheel and rests of its own.
    fn learn_deployment(&self, admitted: &Admitted, now: Instant) {
        let (true, Some(deployment)) = (admitted.unlisted, &admitted.deployment) else { return };
        let known = self.learned.load();
        if known.contains_key(deployment) || known.len() >= LEARNED_MAX {
            return;
        }
        drop(known);
        let pool = Pool::new(serving(&self.backends, deployment), now);
        pool.continue_from(&admitted.pool);
        let pool = Arc::new(pool);
        info!("deployment '{deployment}' is served, though no backend lists it");
        self.learned.rcu(|known| {
            let mut known = HashMap::clone(known);
            if known.len() < LEARNED_MAX {
                known.entry(deployment.clone()).or_insert_with(|| Arc::clone(&pool));
            }
            known
        });
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
            health::Reason::Credential => {
                error!(
                    "backend {backend}: its credential or our network is refused; asked again in {length:?}"
                );
            }
            health::Reason::PermissionDenied => {
                error!(
                    "backend {backend}: its credential may not do this operation; asked again in {length:?}"
                );
            }
            // Logged where it opens.
            health::Reason::BreakerOpen => {}
        }
    }
}

/// Whether a reply that is no 429 asks to be left alone: the reset of the rate limits is told
/// on every reply and no such wish.
fn asks_to_wait(headers: &HeaderMap) -> bool {
    ["retry-after-ms", "x-ms-retry-after-ms", "retry-after"].iter().any(|name| headers.contains_key(*name))
}

/// Every key a request presents in its headers.
fn presented_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let plain = ["api-key", "ocp-apim-subscription-key"];
    let plain = plain.into_iter().flat_map(|name| headers.get_all(name)).map(|value| value.as_bytes());
    let bearer = headers.get_all(http::header::AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    plain.chain(bearer)
}

fn no_model() -> Refusal {
    Refusal::bad_request("the body must have `model`: on /openai/v1 it names the deployment")
}

/// Reads the body as far as it matters: where it names the deployment, it must be readable.
fn understand(naming: Naming, target: &Target, body: &Body<'_>) -> Result<Form, Refusal> {
    let names = naming == Naming::Body;
    if naming == Naming::Home || (body.bytes.is_empty() && !names) {
        return Ok(Form::Opaque);
    }
    if body.encoded {
        if names {
            let message = "the body must not be compressed: on /openai/v1 its `model` names the deployment";
            return Err(Refusal::new(Reason::UnsupportedEncoding, message));
        }
        return Ok(Form::Opaque);
    }
    let bad = |message: String| Refusal::bad_request(message);
    if multipart::is_form(body.content_type) && takes_forms(target.operation) {
        let Some(boundary) = multipart::boundary(body.content_type) else {
            return match names {
                true => Err(bad("content-type: multipart/form-data needs a `boundary`".to_owned())),
                false => Ok(Form::Opaque),
            };
        };
        if names && !body.bytes.strip_prefix(b"--").is_some_and(|rest| rest.starts_with(boundary.as_bytes()))
        {
            // What stands before the first boundary is for nobody; another reader might disagree.
            return Err(bad("the form must begin with its boundary".to_owned()));
        }
        return match multipart::probe(body.bytes, &boundary) {
            Ok(form) => Ok(Form::Multipart(form)),
            Err(problem @ BadForm::Duplicate(_)) => Err(bad(problem.to_string())),
            Err(problem) if names => Err(bad(problem.to_string())),
            Err(_) => Ok(Form::Opaque),
        };
    }
    if !names && !takes_json(target.operation) {
        return Ok(Form::Opaque);
    }
    match body::probe(body.bytes) {
        Ok(probe) => Ok(Form::Json(probe)),
        Err(problem @ body::BadBody::Duplicate(_)) => Err(bad(problem.to_string())),
        Err(problem) if names => Err(bad(problem.to_string())),
        // On a classic path Azure says itself what is wrong with the body.
        Err(_) => Ok(Form::Opaque),
    }
}

fn takes_forms(operation: Operation) -> bool {
    matches!(operation, Operation::Audio | Operation::Images)
}

fn takes_json(operation: Operation) -> bool {
    !matches!(operation, Operation::Realtime)
}

/// The backends that serve a deployment, each with its memory of it.
fn serving(backends: &[Backend], deployment: &Deployment) -> Vec<Candidate> {
    let serving = backends.iter().enumerate().filter_map(|(index, backend)| {
        let upstream = backend.config.deployments.upstream(deployment)?;
        let mapped = backend.config.deployments.listed().any(|(name, _)| name == deployment);
        // Where the name passes as it is, the client's spelling goes upstream.
        let mut candidate = candidate(index, backend, mapped.then(|| upstream.clone()), false);
        candidate.deployment = Some(backend.memory.deployment(Some(upstream)));
        Some(candidate)
    });
    serving.collect()
}

/// The home backend alone.
fn home_pool(backends: &[Backend], home: usize) -> Vec<Candidate> {
    let home = backends.iter().enumerate().filter(|(index, _)| *index == home);
    home.map(|(index, backend)| candidate(index, backend, None, true)).collect()
}

/// Every endpoint but home's, once: two backends on one endpoint are one resource, and asking
/// it twice finds nothing more.
fn strangers(backends: &[Backend], home: usize) -> Vec<Candidate> {
    let mut asked: Vec<_> = backends.get(home).map(|home| &home.config.endpoint).into_iter().collect();
    let mut candidates = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let endpoint = &backend.config.endpoint;
        if asked.contains(&endpoint) {
            continue;
        }
        asked.push(endpoint);
        let candidate = candidate(index, backend, None, true);
        candidates.push(Candidate { tier: Tier::FIRST, weight: Weight::ONE, ..candidate });
    }
    candidates
}

fn candidate(index: usize, backend: &Backend, upstream: Option<Deployment>, remembered: bool) -> Candidate {
    Candidate {
        backend: index,
        tier: backend.config.tier,
        weight: backend.config.weight,
        upstream,
        memory: Arc::clone(&backend.memory),
        deployment: remembered.then(|| backend.memory.deployment(None)),
    }
}
