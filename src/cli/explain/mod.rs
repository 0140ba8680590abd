//! `aoai-lb explain`: shows what would happen to a request.
//!
//! It builds a gateway from the file, admits the request and follows its retry plan, with the same code
//! that routes requests. Nothing is sent; only what is left of a client's limits is asked of the running process.

mod affinity;
mod prompt_cache;
mod queue;
mod reference;
mod remaining;
mod responses;
mod shed;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use clap::Args;
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use self::affinity::{References, RememberedHomes, describe_search};
use self::prompt_cache::cache_lines;
use self::queue::queue_lines;
use self::reference::{PLACEHOLDER, refer_in_body};
use self::remaining::{Remaining, ask_for_remaining, describe_remaining};
use self::responses::response_lines;
use self::shed::shed_lines;
use super::cli_error::CliError;
use super::config_file::{ConfigArguments, print_warnings};
use super::runtime::start_background_runtime;
use crate::admission::client::Client;
use crate::azure::request::references::visit_references;
use crate::azure::{Operation, RequestTarget, hide_secrets_in_target, parse_target};
use crate::config::{BalancePolicy, Config, LimitMode, RequestClass};
use crate::credentials::Keyring;
use crate::gateway::{AdmittedRequest, BodyView, Gateway, ModelsAnswer, Moment, ProcessState};
use crate::names::DeploymentName;
use crate::proxy::upstream::headers;
use crate::record::{Recorder, RecorderError};
use crate::refusal::Refusal;
use crate::routing::attempt_outcome::AttemptOutcome;
use crate::routing::retry_plan::NextStep;

/// What the ids of objects do not have, escaped.
const ESCAPED_IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'=').remove(b'~');

/// The arguments of `aoai-lb explain`.
#[derive(Args)]
pub(super) struct ExplainArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// GET, POST or DELETE. A GET of /openai/v1/responses or a realtime path is the handshake of a WebSocket.
    method: String,
    /// The path and query, such as /openai/v1/responses.
    path: String,
    /// The `model` in the request body, or in a turn of a WebSocket.
    #[arg(long)]
    model: Option<String>,
    /// The name of the client that sends it.
    #[arg(long)]
    client: Option<String>,
    /// The id of an object that it refers to, such as resp_…, file-… or conv_…. It takes the place of {id} in the path;
    /// without that it is put into the body. Its resource is looked up in the state directory.
    #[arg(long, value_name = "ID")]
    refers_to: Option<String>,
    /// The `prompt_cache_key` in the body of a request with a long prompt: with `balance: prompt_cache` it decides the
    /// order of the backends.
    #[arg(long, value_name = "KEY")]
    cache_key: Option<String>,
    /// Also show what each response would lead to.
    #[arg(short, long)]
    verbose: bool,
}

/// The request to explain.
struct ExplainedRequest {
    /// The method.
    method: Method,
    /// The path and query.
    path_and_query: String,
    /// `model` in the body.
    model: Option<String>,
    /// The id of an object that the body refers to.
    referenced_id: Option<String>,
    /// `prompt_cache_key` in the body, of a long prompt.
    cache_key: Option<String>,
    /// The name of the client.
    client_name: Option<String>,
    /// What is left of the limits of the client; `None` if nobody was asked.
    remaining: Option<Remaining>,
    /// Whether the responses of a backend are explained as well.
    shows_responses: bool,
}

/// Why the request cannot be explained.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    /// The recorder, which a gateway needs, cannot start.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// There is no such client.
    #[error("--client: there is no client {name}; the clients are {known}")]
    UnknownClient {
        /// The name that was given.
        name: String,
        /// The names of all clients.
        known: String,
    },
    /// The id cannot be put into the request.
    #[error("--refers-to: {0}")]
    MisplacedReference(String),
}

/// Prints the explanation of a request.
pub(super) fn run(arguments: ExplainArguments) -> Result<(), CliError> {
    let ExplainArguments { config, method, path, model, client, refers_to, cache_key, verbose } = arguments;
    let checked = config.load_without_secrets()?.checked;
    print_warnings(&checked)?;
    let invalid_method = |_| CliError(format!("{method} is not an HTTP method; use GET, POST or DELETE"));
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(invalid_method)?;
    let runtime = start_background_runtime()?;
    let asked_client = client.as_deref().filter(|_| checked.config.admin.is_some());
    let remaining = asked_client.map(|client| ask_for_remaining(&config, client, &runtime));
    let in_path = refers_to.as_ref().filter(|_| path.contains(PLACEHOLDER));
    let request = ExplainedRequest {
        method,
        path_and_query: in_path.map_or(path.clone(), |id| path.replace(PLACEHOLDER, &escape_in_path(id))),
        model,
        referenced_id: refers_to.filter(|id| !path.contains(PLACEHOLDER) && !path.contains(id.as_str())),
        cache_key,
        client_name: client,
        remaining,
        shows_responses: verbose,
    };
    let text = explain_request(&checked.config, &request, runtime.handle())?;
    write!(io::stdout(), "{text}")?;
    Ok(())
}

/// Explains a request.
///
/// # Errors
/// [`ExplainError`].
fn explain_request(
    config: &Config,
    request: &ExplainedRequest,
    runtime: &tokio::runtime::Handle,
) -> Result<String, ExplainError> {
    let now = Instant::now();
    let keyring = Keyring::offline(runtime);
    // The explained request is not recorded.
    let recorder =
        Recorder::start(&Config { record: None, traces: None, ..config.clone() }, &keyring, runtime)?;
    let remembered = RememberedHomes::read(config);
    let process = match &remembered.homes {
        Some(homes) => ProcessState::with_homes(now, now, recorder, keyring, Arc::clone(homes)),
        None => ProcessState::new(now, recorder, keyring),
    };
    let gateway = Gateway::new(config, Arc::new(process), now);
    let mut text = format!("{} {}\n", request.method, hide_secrets_in_target(&request.path_and_query));
    let client = select_and_write_client(&gateway, request, &mut text)?;
    let body = request.body()?;
    match admit_and_write_request(&gateway, request, &body, &client, &remembered, &mut text) {
        Ok(Some(admitted)) => write_routing(&gateway, config, request, &admitted, now, &mut text),
        Ok(None) => write_line(&mut text, "", "no request is sent to a backend"),
        Err(refusal) => {
            let reason = refusal.reason;
            write_line(
                &mut text,
                "response",
                &format!("{} {}: {}", reason.status(), reason.code(), refusal.message),
            );
            write_line(&mut text, "", "no request is sent to a backend");
        }
    }
    gateway.process_state.recorder.shut_down();
    Ok(text)
}

impl ExplainedRequest {
    /// The target, if the request is the handshake of a WebSocket: a GET of these paths is nothing else.
    fn websocket_target(&self) -> Option<RequestTarget> {
        let target = parse_target(self.path_and_query.as_bytes(), true).ok()?;
        let is_websocket = target.is_responses_socket() || target.operation == Operation::Realtime;
        (self.method == Method::GET && is_websocket).then_some(target)
    }

    /// Whether it opens a WebSocket whose turns are routed like requests.
    fn opens_responses_socket(&self) -> bool {
        self.websocket_target().is_some_and(|target| target.is_responses_socket())
    }

    /// The method of what is routed.
    fn routed_method(&self) -> Method {
        if self.opens_responses_socket() { Method::POST } else { self.method.clone() }
    }

    /// The body, with what is known of it.
    ///
    /// # Errors
    /// If it cannot have the id.
    fn body(&self) -> Result<Bytes, ExplainError> {
        let mut body = Map::new();
        if let Some(model) = &self.model {
            body.insert("model".to_owned(), model.as_str().into());
        }
        if let Some(id) = &self.referenced_id {
            if self.routed_method() != Method::POST {
                let message =
                    format!("{} has no body: write {PLACEHOLDER} where the path has the id", self.method);
                return Err(ExplainError::MisplacedReference(message));
            }
            let target = parse_target(self.path_and_query.as_bytes(), false);
            let operation = target.map_or(Operation::Other, |target| target.operation);
            refer_in_body(&mut body, id, operation).map_err(ExplainError::MisplacedReference)?;
        }
        Ok(match body.is_empty() && self.method != Method::POST {
            true => Bytes::new(),
            false => Bytes::from(Value::Object(body).to_string()),
        })
    }
}

/// An id as a path has it.
fn escape_in_path(id: &str) -> String {
    utf8_percent_encode(id, ESCAPED_IN_PATHS).to_string()
}

fn write_line(text: &mut String, label: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{label:<12}{value}");
}

/// The client of the request.
fn select_and_write_client(
    gateway: &Gateway,
    request: &ExplainedRequest,
    text: &mut String,
) -> Result<Arc<Client>, ExplainError> {
    let all = gateway.clients().listed_clients();
    let Some(name) = &request.client_name else {
        let description = match all.len() {
            0 => "any (clients: open)",
            _ => "not given: assumed to have access to everything (--client NAME selects one)",
        };
        write_line(text, "client", description);
        return Ok(Arc::new(Client::unrestricted()));
    };
    let known =
        || all.iter().filter_map(|client| Some(client.name.as_ref()?.to_string())).collect::<Vec<_>>();
    let client = gateway.clients().find_by_name(name).ok_or_else(|| ExplainError::UnknownClient {
        name: name.clone(),
        known: if all.is_empty() { "not listed (clients: open)".to_owned() } else { known().join(", ") },
    })?;
    write_line(text, "client", name);
    write_class_and_limits(client, request.remaining.as_ref(), text);
    Ok(Arc::clone(client))
}

fn write_class_and_limits(client: &Client, remaining: Option<&Remaining>, text: &mut String) {
    if client.class != RequestClass::default() {
        write_line(text, "class", client.class.as_str());
    }
    let Some(limiter) = &client.limiter else { return };
    let limits = limiter.uses(Instant::now(), SystemTime::now());
    let limits: Vec<String> =
        limits.iter().map(|used| format!("{} {}", used.key, used.key.kind.shown(used.limit))).collect();
    let mode = if limiter.mode() == LimitMode::Observe { " (observed only)" } else { "" };
    write_line(text, "may use", &format!("{}{mode}", limits.join(", ")));
    if let Some(remaining) = remaining {
        write_line(text, "has left", &describe_remaining(remaining));
    }
}

/// Admits the request with the same steps as `proxy/client/admit.rs`; `None` if the balancer answers it itself.
fn admit_and_write_request(
    gateway: &Gateway,
    request: &ExplainedRequest,
    body: &Bytes,
    client: &Client,
    remembered: &RememberedHomes,
    text: &mut String,
) -> Result<Option<AdmittedRequest>, Refusal> {
    let raw_target = request.path_and_query.as_bytes();
    let is_websocket = request.websocket_target().is_some();
    let mut target = gateway.check_method_and_parse_target(&request.method, raw_target, is_websocket)?;
    write_line(
        text,
        "path",
        &format!("{} ({}, {})", target.path, target.api_style.name(), target.operation.name()),
    );
    gateway.check_method_and_path_allowed(&request.method, &target)?;
    if let Some(answer) = gateway.answer_models_request(&request.method, &target, client)? {
        let names = match &answer {
            ModelsAnswer::List(names) => names.as_slice(),
            ModelsAnswer::Model(name) => std::slice::from_ref(name),
        };
        let names: Vec<&str> = names.iter().map(DeploymentName::as_str).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        write_line(text, "response", &format!("200: the deployments that the client may use: {names}"));
        return Ok(None);
    }
    let method = request.routed_method();
    if request.opens_responses_socket() {
        let path = &target.path;
        write_line(
            text,
            "websocket",
            &format!("answered by the balancer (101); each of its turns is routed like POST {path}"),
        );
        if request.model.is_none() {
            write_line(text, "", "a turn names its model: --model NAME shows where it goes");
            return Ok(None);
        }
        target = gateway.check_method_and_parse_target(&method, raw_target, false)?;
    } else if is_websocket {
        write_line(text, "websocket", "tunnelled to the backend that answers its handshake");
    }
    gateway.check_permissions_from_head(&method, &target, client)?;
    let view = BodyView { bytes: body, content_type: "application/json", is_compressed: false };
    let call = gateway.parse_requested_call(&method, &target, &view)?;
    match &call.deployment {
        Some(deployment) => write_line(text, "deployment", deployment.as_str()),
        None => write_line(text, "deployment", "none: the call is not balanced"),
    }
    let now = Moment::now();
    let mut references = References::new();
    visit_references(&target, call.json_facts().map(|facts| (facts, body.as_ref())), &mut |kind, id| {
        references.push((kind, id.to_owned()));
    });
    if let (Some(id), true) = (&request.referenced_id, references.is_empty()) {
        write_line(
            text,
            "refers to",
            &format!("{id} in the body, in which such a call is not searched for ids"),
        );
    }
    for line in remembered.describe_objects(gateway, &references, now) {
        write_line(text, "refers to", &line);
    }
    let admitted = gateway.admit(&method, target, client, call, body, now)?;
    let prompt_route = request.cache_key.as_ref().and_then(|key| gateway.prompt_route_of_key(&admitted, key));
    let admitted = admitted.with_shed_rule(gateway.shed_rule(client.class)).with_prompt_route(prompt_route);
    if let Some(affinity) = &admitted.affinity {
        let lines = describe_search(affinity, gateway, &references, now);
        for (index, line) in lines.iter().enumerate() {
            write_line(text, if index == 0 { "affinity" } else { "" }, line);
        }
    }
    Ok(Some(admitted))
}

/// Writes the attempts in their order, and what each response would lead to.
fn write_routing(
    gateway: &Gateway,
    config: &Config,
    request: &ExplainedRequest,
    admitted: &AdmittedRequest,
    now: Instant,
    text: &mut String,
) {
    write_attempts(gateway, request, admitted, now, text);
    for backend in &config.disabled_backends {
        let serves = |deployment| backend.deployments.upstream_name(deployment).is_some();
        if admitted.deployment.as_ref().is_some_and(serves) {
            write_line(text, "", &format!("{}: disabled (enabled: false)", backend.name));
        }
    }
    if admitted.pool.candidates().is_empty() {
        write_line(text, "response", "503 no_backend: the default backend (requests.home) is disabled");
    }
    let balance_policy = match admitted.pool.balance_policy() {
        BalancePolicy::Headroom => {
            "within a tier by weight, less often to backends whose quota runs low (balance: headroom)"
        }
        BalancePolicy::RoundRobin => "within a tier by weight (balance: round_robin)",
        BalancePolicy::PromptCache => "within a tier by the key of the prompt (balance: prompt_cache)",
    };
    write_line(text, "", balance_policy);
    for (index, line) in cache_lines(gateway, admitted, request.cache_key.as_deref()).iter().enumerate() {
        write_line(text, if index == 0 { "cache" } else { "" }, line);
    }
    for (index, line) in shed_lines(gateway, admitted).iter().enumerate() {
        write_line(text, if index == 0 { "shed" } else { "" }, line);
    }
    if request.shows_responses {
        write_line(text, "responses", "");
        for (label, consequence) in response_lines(gateway, config, admitted) {
            write_line(text, &label, &consequence);
        }
    }
    for (index, line) in queue_lines(gateway, &config.retry, admitted, now).iter().enumerate() {
        write_line(text, if index == 0 { "queue" } else { "" }, line);
    }
    write_limits(config, admitted, text);
}

/// Writes the attempts of the retry plan, each of which is assumed to fail.
fn write_attempts(
    gateway: &Gateway,
    request: &ExplainedRequest,
    admitted: &AdmittedRequest,
    now: Instant,
    text: &mut String,
) {
    let retry_limits = gateway.retry_limits_for_request(admitted, now, now, None);
    let mut retry_plan = admitted.retry_plan();
    let operation = admitted.routed_operation();
    let asks = admitted.affinity.as_ref().is_some_and(|affinity| affinity.asks());
    let (order, outcome) = match asks {
        true => (
            "while all are available, this one first; then the next resource if this one does not have the object",
            AttemptOutcome::NotOnThisResource,
        ),
        false => (
            "while all are available, this one first; then the next if it fails",
            AttemptOutcome::CannotServe,
        ),
    };
    write_line(text, "order", order);
    let mut rank = 0;
    while let NextStep::Attempt(chosen) =
        retry_plan.next_step(&admitted.pool, operation, &retry_limits, now, 0.0)
    {
        rank += 1;
        if let Some(candidate) = admitted.pool.candidate(chosen.candidate_index)
            && let Some(backend) = gateway.backends.get(candidate.backend_index)
        {
            let place = match admitted.deployment {
                Some(_) => format!(": tier {}, weight {}", candidate.tier.get(), candidate.weight.get()),
                // Tiers and weights are those of deployments.
                None => String::new(),
            };
            write_line(text, &format!("  {rank}."), &format!("{}{place}", backend.config.name));
            let upstream_request = gateway.build_upstream_request(admitted, candidate, true);
            let path_and_query = &upstream_request.path_and_query;
            let authority = backend.config.endpoint.authority();
            write_line(text, "", &format!("  {} {authority}{path_and_query}", request.method));
            for header in headers::preview_header_lines(
                &request.method,
                backend,
                &gateway.request_config,
                path_and_query,
            ) {
                write_line(text, "", &format!("    {header}"));
            }
            for edit in &upstream_request.body_edits {
                let replacement = String::from_utf8_lossy(&edit.replacement);
                let place = if request.opens_responses_socket() { "message" } else { "body" };
                write_line(text, "", &format!("    in the {place}: {replacement}"));
            }
        }
        retry_plan.on_attempt_start(&admitted.pool, &chosen, now);
        retry_plan.on_attempt_end(&admitted.pool, chosen.candidate_index, outcome);
    }
}

fn write_limits(config: &Config, admitted: &AdmittedRequest, text: &mut String) {
    let retry = &config.retry;
    let mut limits = format!(
        "at most {} retries, none started after more than {}",
        retry.max_retries,
        humantime::format_duration(retry.retry_start_time_limit)
    );
    if !admitted.is_repeatable {
        limits += "; not retried once a byte was sent, except after 429 (it could be carried out twice)";
    }
    write_line(text, "limits", &limits);
}
