//! The decisions about a request, from its target to its record. The methods of [`Gateway`] are in the
//! order in which the proxy calls them.
//!
//! A gateway decides according to one configuration and never changes. What changes, such as the health
//! of backends, is in [`ProcessState`] and outlives it. It knows neither Pingora nor how bytes move.

mod admitted_request;
mod affinity;
mod backend;
mod backend_question;
mod backend_queue;
pub mod budget_books;
mod certificate_expiries;
mod drains;
mod home_lookup;
pub mod homes_keeper;
mod learn;
mod limits;
pub mod log_text;
mod model_list;
mod object_learner;
mod open_sockets;
mod outage_sharing;
mod pool_set;
mod process_state;
mod prompt_route;
mod queue;
mod rates_keeper;
mod records;
mod rejections;
mod request_affinity;
mod request_prices;
mod requested_call;
mod resource_lookup;
mod resources;
mod retry_limits;
pub mod shared_fairness;
mod shared_homes;
pub mod shared_limits;
mod shared_lines;
mod shared_rests;
mod shared_sends;
pub mod unfinished_objects;
mod upstream_request;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::UPGRADE;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use self::model_list::ModelList;
use self::pool_set::PoolSet;
use self::request_prices::RequestPrices;
use self::resources::{list_resources, resources_by_tag};
use self::shared_lines::PoolWithQueue;
use self::upstream_request::ApiVersions;
use crate::admission::client::Client;
use crate::admission::client_registry::{AuthError, ClientRegistry};
use crate::azure::request::subprotocol::subprotocol_keys;
use crate::azure::response::verdict;
use crate::azure::response::verdict::Verdict;
use crate::azure::{DeploymentSource, Operation, RequestTarget, is_non_idempotent_create};
use crate::config::{self, Config, OwnerPolicy, StreamUsageMode};
use crate::names::{BackendName, CertificateSubject, DeploymentName};
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::homes::KnownResources;
use crate::routing::pool::{BackendPool, Candidate};

pub use self::admitted_request::AdmittedRequest;
pub use self::backend::{Backend, DisabledBackend};
pub use self::backend_question::{BackendQuestion, QuestionSubject};
pub use self::backend_queue::{BackendQueue, BackendQueuePlace};
pub use self::certificate_expiries::{CertificateExpiries, LoadedCertificate};
pub use self::drains::{DrainChange, Drains, HandingOver};
pub use self::learn::ResponseFacts;
pub use self::limits::LimitRefusal;
pub use self::model_list::ModelsAnswer;
pub use self::object_learner::ObjectLearner;
pub use self::open_sockets::{OpenSocket, OpenSockets};
pub use self::pool_set::PoolKey;
pub use self::process_state::ProcessState;
pub use self::prompt_route::SESSION_HEADERS;
pub use self::queue::WaitingRequest;
pub use self::request_affinity::{Moment, RequestAffinity};
pub use self::requested_call::{BodyView, RequestedCall};
pub use self::resources::Resource;
pub use self::shared_homes::SharedHomes;
pub use self::shared_rests::{ProbeLead, SharedPart, SharedRests};
pub use self::upstream_request::UpstreamRequest;
pub use crate::routing::health::breaker::FailureFlags;

static API_KEY_HEADER: HeaderName = HeaderName::from_static("api-key");
static SUBSCRIPTION_KEY_HEADER: HeaderName = HeaderName::from_static("ocp-apim-subscription-key");

/// Decides about requests, according to one configuration.
pub struct Gateway {
    /// Those that are enabled, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// Those that the configuration disables.
    pub disabled_backends: Vec<DisabledBackend>,
    /// The Azure resources of all backends.
    pub resources: Vec<Resource>,
    /// The limits for requests, and how they are changed.
    pub request_config: config::RequestsConfig,
    /// How long each step may take.
    pub timeouts: config::TimeoutsConfig,
    /// The limits of Responses WebSockets.
    pub websocket: config::WebSocketConfig,
    /// What outlives this configuration.
    pub process_state: Arc<ProcessState>,
    clients: ClientRegistry,
    pools: PoolSet,
    model_list: ModelList,
    affinity_config: config::AffinityConfig,
    resources_by_tag: KnownResources<usize>,
    retry_config: config::RetryConfig,
    shed_config: config::ShedConfig,
    cooldown_config: config::CooldownConfig,
    queue_config: Option<config::QueueConfig>,
    breaker_config: config::BreakerConfig,
    record_config: Option<config::RecordConfig>,
    traces_config: Option<config::TracesConfig>,
    /// `None` without `prices`.
    request_prices: Option<RequestPrices>,
}

impl Gateway {
    /// The gateway of this configuration. It adopts the health of backends that the process knows already.
    pub fn new(config: &Config, process_state: Arc<ProcessState>, now: Instant) -> Self {
        let resources = list_resources(config, &process_state.homes);
        let new_backend = |(index, backend)| {
            let resource_index =
                resources.iter().position(|resource| resource.backend_indexes.contains(&index));
            Backend::new(backend, resource_index.unwrap_or_default(), &config.key_vault, &process_state)
        };
        let backends: Vec<Backend> = config.backends.iter().enumerate().map(new_backend).collect();
        let signing_keys = config
            .client_tokens
            .as_ref()
            .map(|tokens| process_state.keyring.find_or_start_signing_keys(tokens));
        process_state.homes.set_prefers_makers(config.affinity.owner_policy == OwnerPolicy::Enforce);
        // No request is sent to a backend before its first secret has been fetched.
        for backend in &backends {
            backend.mark_unavailable_if_no_secret(now);
        }
        Self {
            clients: limits::clients_with_limits(config, &process_state, signing_keys),
            pools: PoolSet::new(
                config,
                &backends,
                config.queue.map(|_| Arc::clone(&process_state.queue)),
                now,
            ),
            model_list: ModelList::new(config),
            disabled_backends: config
                .disabled_backends
                .iter()
                .map(|backend| DisabledBackend::new(backend, &process_state))
                .collect(),
            backends,
            resources_by_tag: resources_by_tag(&resources, &process_state.homes),
            resources,
            affinity_config: config.affinity,
            request_config: config.requests.clone(),
            timeouts: config.timeouts,
            websocket: config.websocket,
            retry_config: config.retry.clone(),
            shed_config: config.shed,
            cooldown_config: config.cooldown,
            queue_config: config.queue,
            breaker_config: config.breaker,
            record_config: config.record.clone(),
            traces_config: config.traces.clone(),
            request_prices: RequestPrices::of(config),
            process_state,
        }
    }

    /// Parses the target of a request.
    ///
    /// # Errors
    /// `method_not_allowed`, `bad_request`.
    pub fn check_method_and_parse_target(
        &self,
        method: &Method,
        raw_target: &[u8],
        upgrade: bool,
    ) -> Result<Arc<RequestTarget>, Refusal> {
        if matches!(*method, Method::OPTIONS | Method::TRACE | Method::CONNECT) {
            let message = "OPTIONS, TRACE and CONNECT are not served: keys do not belong in browsers";
            return Err(Refusal::new(RefusalReason::MethodNotAllowed, message));
        }
        crate::azure::parse_target_cached(raw_target, upgrade)
            .map_err(|error| Refusal::bad_request(error.to_string()))
    }

    /// Checks that the configuration allows this method and path.
    ///
    /// # Errors
    /// `path_not_allowed`.
    pub fn check_method_and_path_allowed(
        &self,
        method: &Method,
        target: &RequestTarget,
    ) -> Result<(), Refusal> {
        if self.request_config.allow_rules.iter().any(|rule| rule.permits(method, &target.path)) {
            return Ok(());
        }
        let message = "this method and path are not served here; Azure OpenAI's begin with /openai/, OpenAI's with /v1/";
        Err(Refusal::new(RefusalReason::PathNotAllowed, message))
    }

    /// The client that sent the request. `subject` is that of the certificate that its connection showed.
    ///
    /// # Errors
    /// [`AuthError`] if the credentials are those of no client, or of several.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        target: &RequestTarget,
        subject: Option<&CertificateSubject>,
    ) -> Result<Arc<Client>, AuthError> {
        let query_keys = target.query.credentials().iter().map(|credential| credential.expose().as_bytes());
        // Without an upgrade, the fields of a handshake mean nothing.
        let offered_keys = subprotocol_keys(headers).filter(|_| headers.contains_key(UPGRADE));
        let keys = header_keys_and_tokens(headers).chain(offered_keys).chain(query_keys);
        self.clients.authenticate(keys, subject)
    }

    /// The balancer's own answer to a request for the models that the client may use; `None` for every other
    /// request, which goes to a backend.
    ///
    /// # Errors
    /// `DeploymentNotFound`.
    pub fn answer_models_request(
        &self,
        method: &Method,
        target: &RequestTarget,
        client: &Client,
    ) -> Result<Option<ModelsAnswer>, Refusal> {
        self.model_list.answer(method, target, client)
    }

    /// Checks that the client may make this call, as far as the head of the request tells.
    ///
    /// # Errors
    /// `deployment_not_allowed`, `DeploymentNotFound`.
    pub fn check_permissions_from_head(
        &self,
        method: &Method,
        target: &RequestTarget,
        client: &Client,
    ) -> Result<(), Refusal> {
        match target.deployment_source(method) {
            DeploymentSource::Target => match &target.deployment {
                // In this order: a client learns nothing of deployments that it may not use.
                Some(deployment) => {
                    client.authorize_deployment(deployment)?;
                    self.pools.own_or_unlisted_pool(deployment).map(|_| ())
                }
                None => Ok(()),
            },
            // Checked by `admit`, when the body has been read.
            DeploymentSource::Body | DeploymentSource::OptionalBody => Ok(()),
            DeploymentSource::Unspecified => client.authorize_call_without_deployment(),
        }
    }

    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `bad_request` if the body has to name the deployment and does not, `unsupported_encoding`.
    pub fn parse_requested_call(
        &self,
        method: &Method,
        target: &RequestTarget,
        body: &BodyView<'_>,
    ) -> Result<RequestedCall, Refusal> {
        RequestedCall::parse(method, target, body)
    }

    /// Admits a request whose body has been read, and finds its pool. `body` has the bytes that `call` was parsed
    /// from.
    ///
    /// # Errors
    /// `deployment_not_allowed`, `DeploymentNotFound`, and those of affinity: `mixed_resources`, `home_unavailable`,
    /// and with `affinity.owner: enforce` what Azure answers if there is no such object.
    pub fn admit(
        &self,
        method: &Method,
        target: Arc<RequestTarget>,
        client: &Client,
        call: RequestedCall,
        body: &[u8],
        received: Moment,
    ) -> Result<AdmittedRequest, Refusal> {
        match &call.deployment {
            Some(deployment) => client.authorize_deployment(deployment)?,
            None => client.authorize_call_without_deployment()?,
        }
        let affinity = self.resolve_affinity(method, &target, client, &call, body, received)?;
        let search = affinity.as_deref().and_then(|affinity| affinity.search.as_ref());
        let (PoolWithQueue { pool, line: queue_line }, uses_unlisted_pool) = match &call.deployment {
            Some(deployment) => self.pools.own_or_unlisted_pool(deployment)?,
            None if search.is_some() => (self.pools.all_resources_pool.clone(), false),
            None => {
                self.check_list_allowed(method, target.operation)?;
                (self.pools.default_backend_pool.clone(), false)
            }
        };
        self.check_home_serves(affinity.as_deref(), call.deployment.as_ref(), &pool)?;
        let names_object_in_path =
            target.deployment_source(method) == DeploymentSource::Unspecified && target.has_object_id;
        let RequestedCall { deployment, wants_stream, wants_background_response, parsed_body } = call;
        // A second attempt could create a second object, or run a background response twice.
        let creates_background_response =
            wants_background_response && target.operation == Operation::Responses;
        let is_repeatable =
            !is_non_idempotent_create(method, target.operation) && !creates_background_response;
        Ok(AdmittedRequest {
            target,
            deployment,
            client_name: client.name.clone(),
            pool,
            queue_line,
            wants_stream,
            is_repeatable,
            affinity,
            names_object_in_path,
            parsed_body,
            uses_unlisted_pool,
            shed_rule: None,
            prompt_route: None,
        })
    }

    /// What is sent to a candidate of its pool for an admitted request. `may_add_usage` allows to ask a
    /// stream for its token usage.
    pub fn build_upstream_request(
        &self,
        admitted: &AdmittedRequest,
        candidate: &Candidate,
        may_add_usage: bool,
    ) -> UpstreamRequest {
        let backend = self.backends.get(candidate.backend_index).map(|backend| &backend.config);
        let api_versions = ApiVersions {
            backend_override: backend.and_then(|backend| backend.api_version_override.as_deref()),
            default: self.request_config.default_api_version.as_deref(),
        };
        let wants_usage =
            |record: &config::RecordConfig| record.stream_usage_mode == StreamUsageMode::AskUpstream;
        let may_add_usage = may_add_usage && self.record_config.as_ref().is_some_and(wants_usage);
        UpstreamRequest::new(admitted, candidate, api_versions, may_add_usage)
    }

    /// Whether a response of this status is relayed to the client without reading its body first.
    pub fn relays_without_reading_body(&self, status: u16) -> bool {
        status < 400
            || !(self.retry_config.retryable_statuses.contains(status)
                || verdict::needs_body_to_judge(status))
    }

    /// How long and how much of a stream is held before its first content.
    pub fn stream_hold_limits(&self) -> config::StreamHoldLimits {
        self.retry_config.stream_hold
    }

    /// The verdict on a complete response.
    pub fn judge_complete_response(&self, admitted: &AdmittedRequest, status: u16, body: &[u8]) -> Verdict {
        match verdict::judge_response(status, body, &|status| {
            self.retry_config.retryable_statuses.contains(status)
        }) {
            // Another resource may have the object in the path.
            Verdict::ClientError | Verdict::DeploymentNotFound | Verdict::UnsupportedByBackend
                if admitted.names_object_in_path && status == 404 =>
            {
                Verdict::NotOnThisResource
            }
            // It refers to nothing that the balancer knows as a reference.
            Verdict::NotOnThisResource if admitted.search().is_none() => Verdict::ClientError,
            // The call names no deployment: what is missing is something that the client named.
            Verdict::DeploymentNotFound | Verdict::UnsupportedByBackend if admitted.deployment.is_none() => {
                Verdict::ClientError
            }
            verdict => verdict,
        }
    }

    /// How long a client is told to wait if no backend has said.
    pub fn default_client_retry_after(&self) -> Duration {
        self.cooldown_config.default_duration
    }

    /// Whether the configuration lists a deployment.
    pub fn is_listed_deployment(&self, deployment: &DeploymentName) -> bool {
        self.pools.is_listed(deployment)
    }

    /// Whether the configuration lists a deployment, or a backend has answered for it.
    pub fn is_listed_or_learned_deployment(&self, deployment: &DeploymentName) -> bool {
        self.pools.has_own_pool(deployment)
    }

    /// Deployments that the configuration does not list and that some backend has answered for.
    pub fn learned_deployments(&self) -> Vec<DeploymentName> {
        self.pools.learned_deployments()
    }

    /// Adds a deployment that the gateway of the last configuration, or another process, has learned.
    pub fn adopt_learned_deployment(&self, deployment: &DeploymentName, now: Instant) {
        if !self.pools.has_own_pool(deployment) && self.pools.accepts_unlisted() {
            self.pools.add_learned_deployment(&self.backends, deployment, now);
        }
    }

    /// The names of all backends of the configuration, also of disabled ones.
    pub fn backend_names(&self) -> impl Iterator<Item = &BackendName> {
        let enabled = self.backends.iter().map(|backend| &backend.config.name);
        enabled.chain(self.disabled_backends.iter().map(|backend| &backend.config.name))
    }

    /// All pools, for the status API.
    pub fn pools(&self) -> Vec<(PoolKey, Arc<BackendPool>)> {
        self.pools.pools_by_key()
    }

    /// The clients that may send requests.
    pub fn clients(&self) -> &ClientRegistry {
        &self.clients
    }
}

/// Every key that a request has in its headers.
fn header_keys_and_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let key_headers = [&API_KEY_HEADER, &SUBSCRIPTION_KEY_HEADER];
    let keys = key_headers.into_iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
    let bearer_tokens = headers.get_all(http::header::AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    keys.chain(bearer_tokens)
}
