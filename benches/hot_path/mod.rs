//! The steps that every request goes through, each called as the proxy calls it.

#![allow(dead_code, unreachable_pub, reason = "each benchmark uses its own part")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aoai_lb::admission::limits::{
    ClientAccounts, ClientLimiter, Demand, LeaseDesk, LeaseGrant, LimitKind, ReportKind, Reservation,
    Settlement, UsedTokens,
};
use aoai_lb::azure;
use aoai_lb::azure::Operation;
use aoai_lb::azure::request::json_body::BodyFacts;
use aoai_lb::azure::response::capture::ResponseCapture;
use aoai_lb::azure::response::collected_body::CollectedBody;
use aoai_lb::azure::response::hints;
use aoai_lb::azure::response::sse::{EventScanner, UsageEventRemover};
use aoai_lb::azure::response::verdict::Verdict;
use aoai_lb::config;
use aoai_lb::credentials::Keyring;
use aoai_lb::gateway::{
    AdmittedRequest, BodyView, FailureFlags, Gateway, Moment, ProcessState, ResponseFacts,
};
use aoai_lb::names::DeploymentName;
use aoai_lb::record::Recorder;
use aoai_lb::record::client_headers::ClientHeaders;
use aoai_lb::record::cost::Pricing;
use aoai_lb::record::exchange::{CapturedRequest, CapturedResponse, ExchangeOutcome, FinishedExchange};
use aoai_lb::record::redact::Redactor;
use aoai_lb::routing::retry_plan::{NextStep, RetryPlan};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

const KEY: &str = "key-of-team-a";
const CLASSIC: &[u8] = b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
/// Each limit of a client, which no step reaches.
const LIMIT: u64 = 1 << 40;
const V1: &[u8] = b"/openai/v1/chat/completions";
/// Of a deployment with `balance: prompt_cache`.
const BY_PROMPT: &[u8] = b"/openai/deployments/cached/chat/completions?api-version=2024-10-21";
/// A target of Responses.
const RESPONSES: &[u8] = b"/openai/v1/responses";

/// What a request may use.
const DEMAND: Demand = Demand {
    prompt_bytes: 1000,
    max_output_tokens: Some(50),
    choices: 1,
    has_output: true,
    may_use_tokens: true,
    rates: None,
};

/// A step with its name.
pub type Step = (&'static str, Box<dyn FnMut()>);

/// A gateway with four backends, the headers of a client, and the runtime that the gateway needs.
struct GatewayFixture {
    gateway: Gateway,
    headers: HeaderMap,
    received: Moment,
    _runtime: tokio::runtime::Runtime,
}

impl GatewayFixture {
    /// All limits that need no prices, in total and for the deployment.
    fn limiter(&self, accounts: &ClientAccounts) -> Arc<ClientLimiter> {
        let limit = Some(LIMIT);
        let all = config::LimitSet {
            requests_per_minute: limit,
            tokens_per_minute: limit,
            tokens_per_day: limit,
            tokens_per_month: limit,
            in_flight: limit,
            ..config::LimitSet::default()
        };
        let own = (DeploymentName::parse("gpt-4o").expect("it is a name"), all);
        let limits = Arc::new(config::ClientLimits { total: all, deployments: [own].into() });
        let process = &self.gateway.process_state;
        let account = accounts.find_or_create(None);
        let open_budget = |deployment: Option<&DeploymentName>| process.budgets.open(None, deployment);
        Arc::new(ClientLimiter::new(limits, &config::LimitsConfig::default(), account, &open_budget))
    }

    /// The same limits, shared with other instances, of which this one has leased more than it will need.
    fn shared_limits(&self) -> SharedLimits {
        let now = self.received.instant;
        let (accounts, (desk, _)) = (ClientAccounts::new(now), LeaseDesk::new());
        accounts.share(Arc::clone(&desk));
        let limits = SharedLimits { limiter: self.limiter(&accounts), desk };
        // The server is away: the request is admitted without a lease, and reported afterwards.
        let deployment = DeploymentName::parse("gpt-4o").expect("it is a name");
        let reservation = limits.reserve(Some(&deployment), now, SystemTime::UNIX_EPOCH);
        limits.desk.set_up(0);
        let account = accounts.find(None).expect("the limiter has one");
        let report = account.begin_report(&limits.desk, ReportKind::Changes, now, SystemTime::UNIX_EPOCH);
        let report = report.expect("no other one is on its way");
        let grant = LeaseGrant { granted: LIMIT / 4, room: LIMIT / 2, ..LeaseGrant::default() };
        let grants = vec![grant; report.limits().len()];
        report.finish(grants, now, SystemTime::UNIX_EPOCH);
        drop(reservation);
        limits
    }

    fn new() -> Arc<Self> {
        let digest: String =
            openssl::sha::sha256(KEY.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let backends: String = (0..4)
            .map(|index| {
                format!(
                    "  - {{ name: b{index}, endpoint: \"https://b{index}.openai.azure.com\", credential: {{ api_key: k }}, \
                     deployments: {{ gpt-4o: gpt-4o-{index}, cached: cached-{index} }} }}\n"
                )
            })
            .collect();
        let text = format!(
            "listeners: [ {{ address: 127.0.0.1:8080 }} ]\nbackends:\n{backends}\
             clients: [ {{ name: team-a, keys: [ {{ sha256: {digest} }} ] }} ]\n\
             pools: {{ cached: {{ balance: prompt_cache }} }}\n"
        );
        let checked = config::parse_and_check_yaml(&text, std::path::Path::new("."), &|_| None)
            .expect("the configuration is valid");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be built");
        let keyring = Keyring::offline(runtime.handle());
        let recorder = Recorder::start(&checked.config, &keyring, runtime.handle())
            .expect("a recorder without sinks starts");
        let now = Instant::now();
        let gateway = Gateway::new(&checked.config, Arc::new(ProcessState::new(now, recorder, keyring)), now);
        let mut headers = HeaderMap::new();
        headers.insert("api-key", HeaderValue::from_static(KEY));
        Arc::new(Self { gateway, headers, received: Moment::now(), _runtime: runtime })
    }

    fn admit(&self, target: &[u8], body: &Bytes) -> AdmittedRequest {
        let (gateway, method) = (&self.gateway, &Method::POST);
        let expectation = "the request is valid";
        let target = gateway.check_method_and_parse_target(method, target, false).expect(expectation);
        gateway.check_method_and_path_allowed(method, &target).expect(expectation);
        let Ok(client) = gateway.authenticate(&self.headers, &target, None) else { panic!("{expectation}") };
        gateway.check_permissions_from_head(method, &target, &client).expect(expectation);
        let body = BodyView { bytes: body, content_type: "application/json", is_compressed: false };
        let call = gateway.parse_requested_call(method, &target, &body).expect(expectation);
        gateway.admit(method, target, &client, call, body.bytes, self.received).expect(expectation)
    }
}

/// The limits of a client that several instances share.
struct SharedLimits {
    limiter: Arc<ClientLimiter>,
    desk: Arc<LeaseDesk>,
}

impl SharedLimits {
    fn reserve(&self, deployment: Option<&DeploymentName>, now: Instant, time: SystemTime) -> Reservation {
        let reserved = self.limiter.reserve_with_lease(&self.desk, deployment, &DEMAND, now, time);
        reserved.now_or_never().expect("it need not wait").expect("it has room")
    }
}

/// All steps.
pub fn steps() -> Vec<Step> {
    let fixture = GatewayFixture::new();
    let short_body = chat_body(1_000);
    let now = Instant::now();
    let mut steps: Vec<Step> = Vec::new();

    let (step_fixture, body) = (Arc::clone(&fixture), short_body.clone());
    steps.push(("admit_request", Box::new(move || drop(black_box(step_fixture.admit(CLASSIC, &body))))));

    for (name, items) in [("admit_request_with_a_reference", 1), ("admit_request_with_200_references", 200)] {
        let (step_fixture, body) = (Arc::clone(&fixture), follow_up_body(items));
        steps.push((name, Box::new(move || drop(black_box(step_fixture.admit(RESPONSES, &body))))));
    }

    // The step above finds its target in the cache of parsed targets.
    steps.push(("parse_target", Box::new(|| drop(black_box(azure::parse_target(CLASSIC, false))))));

    let (step_fixture, admitted) = (Arc::clone(&fixture), fixture.admit(CLASSIC, &short_body));
    steps.push((
        "choose_backend",
        Box::new(move || {
            let mut plan = RetryPlan::new(&admitted.pool);
            let limits = step_fixture.gateway.retry_limits_for_request(&admitted, now, now, None);
            let next_step = plan.next_step(&admitted.pool, admitted.routed_operation(), &limits, now, 0.5);
            if let NextStep::Attempt(chosen) = next_step {
                plan.on_attempt_start(&admitted.pool, &chosen, now);
            }
            black_box(plan);
        }),
    ));

    // The key of a prompt that is just long enough for a cache, and the choice by it.
    let cacheable_body = chat_body(4_500);
    let (step_fixture, admitted) = (Arc::clone(&fixture), fixture.admit(BY_PROMPT, &cacheable_body));
    let (headers, mut time) = (client_headers(), now);
    steps.push((
        "choose_backend_by_prompt",
        Box::new(move || {
            // So that the key is not asked often.
            time += Duration::from_secs(60);
            let gateway = &step_fixture.gateway;
            let route = gateway.prompt_route(&admitted, &headers, &cacheable_body, time);
            let (pool, operation) = (&admitted.pool, admitted.routed_operation());
            let mut plan = RetryPlan::new(pool).with_prompt_route(route);
            let limits = gateway.retry_limits_for_request(&admitted, time, time, None);
            let next_step = plan.next_step(pool, operation, &limits, time, 0.5);
            if let NextStep::Attempt(chosen) = next_step {
                plan.note_move(pool, operation, &chosen, false, time);
                plan.on_attempt_start(pool, &chosen, time);
                let candidate = pool.candidate(chosen.candidate_index);
                black_box(candidate.and_then(|candidate| candidate.hold_tokens(route?.tokens)));
            }
            black_box(plan);
        }),
    ));

    let (step_fixture, admitted, body) =
        (Arc::clone(&fixture), fixture.admit(V1, &short_body), short_body.clone());
    steps.push((
        "prepare_upstream_request",
        Box::new(move || {
            let candidate = admitted.pool.candidate(0).expect("the pool has four candidates");
            let upstream_request = step_fixture.gateway.build_upstream_request(&admitted, candidate, true);
            black_box((
                azure::apply_edits(&body, &upstream_request.body_edits),
                upstream_request.path_and_query,
            ));
        }),
    ));

    let (step_fixture, admitted) = (Arc::clone(&fixture), fixture.admit(CLASSIC, &short_body));
    let headers = response_headers();
    steps.push((
        "learn_from_response",
        Box::new(move || {
            let candidate = admitted.pool.candidate(0).expect("the pool has four candidates");
            let send_ticket = candidate.record_send(now);
            let facts = ResponseFacts {
                candidate,
                send_ticket,
                headers: &headers,
                status: 200,
                secret_id: 0,
                body: &[],
                failure_flags: FailureFlags::default(),
                now,
            };
            black_box(step_fixture.gateway.learn_and_decide_outcome(&admitted, Verdict::Success, facts));
        }),
    ));

    let (admitted, limiter) = (
        fixture.admit(CLASSIC, &short_body),
        fixture.limiter(&fixture.gateway.process_state.client_accounts),
    );
    steps.push((
        "apply_limits",
        Box::new(move || {
            let (deployment, time) = (admitted.deployment.as_ref(), SystemTime::UNIX_EPOCH);
            let mut reservation = limiter.reserve(deployment, &DEMAND, now, time).expect("it has room");
            for kind in [LimitKind::RequestsPerMinute, LimitKind::TokensPerMinute] {
                black_box(limiter.rate_state(kind, deployment, now));
            }
            reservation.leave_in_flight(now);
            reservation.settle(Settlement::Used(UsedTokens { input: 230, cached: 0, output: 40 }), now, time);
        }),
    ));

    let (admitted, shared) = (fixture.admit(CLASSIC, &short_body), fixture.shared_limits());
    steps.push((
        "apply_shared_limits",
        Box::new(move || {
            let (deployment, time) = (admitted.deployment.as_ref(), SystemTime::UNIX_EPOCH);
            let mut reservation = shared.reserve(deployment, now, time);
            for kind in [LimitKind::RequestsPerMinute, LimitKind::TokensPerMinute] {
                black_box(shared.limiter.rate_state(kind, deployment, now));
            }
            reservation.leave_in_flight(now);
            reservation.settle(Settlement::Used(UsedTokens { input: 230, cached: 0, output: 40 }), now, time);
        }),
    ));

    for (name, pricing) in
        [("write_record", None), ("write_record_with_its_cost", Some(Arc::new(example_pricing())))]
    {
        let (step_fixture, admitted) = (Arc::clone(&fixture), fixture.admit(CLASSIC, &short_body));
        let (body, response) = (short_body.clone(), completion_body());
        let (redaction, mut written) = (Redactor::new(Vec::new()), Vec::new());
        let write_record = move || {
            let mut exchange = sample_exchange(&admitted, &body, &response);
            let capture_policy = aoai_lb::record::exchange::CapturePolicy {
                captures_prompt: true,
                captures_completion: true,
                max_text_bytes: 64 * 1024,
                max_buffered_text_bytes: 64 * 1024,
                estimates_tokens: true,
            };
            written.clear();
            exchange
                .count_and_render_record(
                    capture_policy,
                    &redaction,
                    step_fixture.gateway.process_state.recorder.metrics(),
                    step_fixture.gateway.process_state.recorder.stored_objects(),
                    pricing.as_ref(),
                )
                .write_json(&mut written);
            black_box(&written);
        };
        steps.push((name, Box::new(write_record)));
    }

    let chunks = stream_chunks();
    steps.push((
        "capture_stream",
        Box::new(move || {
            let (mut scanner, mut capture) =
                (EventScanner::new(1 << 20), ResponseCapture::new(Operation::Chat, 64 * 1024));
            for chunk in &chunks {
                scanner.feed(chunk, &mut |event| capture.capture_event(&event));
            }
            black_box(capture.completion_text());
        }),
    ));

    let chunks = self::stream_chunks();
    steps.push((
        "filter_usage_event",
        Box::new(move || {
            let mut filter = UsageEventRemover::new(1 << 20);
            for chunk in &chunks {
                filter.feed(chunk, &mut |out| drop(black_box(out)));
            }
        }),
    ));

    steps.push(("parse_body_1k", Box::new(move || drop(black_box(BodyFacts::parse(&short_body))))));
    let long_body = chat_body(100_000);
    steps.push(("parse_body_100k", Box::new(move || drop(black_box(BodyFacts::parse(&long_body))))));

    let headers = client_headers();
    steps.push((
        "read_client_headers",
        Box::new(move || drop(black_box(ClientHeaders::read(&headers, true)))),
    ));

    let headers = response_headers();
    steps.push((
        "read_rate_limit_headers",
        Box::new(move || {
            black_box(hints::reported_capacity(&headers));
        }),
    ));
    steps
}

fn chat_body(length: usize) -> Bytes {
    let prompt = "tell me more. ".repeat(length / 14);
    format!(
        r#"{{"model":"gpt-4o","max_tokens":100,"messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{prompt}"}}]}}"#
    )
    .into()
}

/// A request of Responses that refers to this many items of earlier turns.
fn follow_up_body(items: usize) -> Bytes {
    let item = |n: usize| {
        format!(
            r#"{{"id":"msg_{n:048x}","type":"message","role":"assistant","content":[{{"type":"output_text","text":"{}"}}]}}"#,
            "and so on ".repeat(20)
        )
    };
    let input: Vec<String> = (0..items).map(item).collect();
    format!(r#"{{"model":"gpt-4o","input":[{}]}}"#, input.join(",")).into()
}

fn completion_body() -> Bytes {
    let text = "and so on ".repeat(70);
    format!(
        r#"{{"choices":[{{"content_filter_results":{{"hate":{{"filtered":false,"severity":"safe"}}}},"finish_reason":"stop","index":0,"message":{{"content":"{text}","role":"assistant"}}}}],"created":1764000000,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion","usage":{{"completion_tokens":60,"prompt_tokens":200,"total_tokens":260}}}}"#
    )
    .into()
}

/// A hundred events, each in its own chunk.
fn stream_chunks() -> Vec<Bytes> {
    let event = r#"data: {"choices":[{"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}},"delta":{"content":" word"},"finish_reason":null,"index":0,"logprobs":null}],"created":1764000000,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk"}"#;
    vec![Bytes::from(format!("{event}\n\n")); 100]
}

fn response_headers() -> HeaderMap {
    let pairs = [
        ("content-type", "application/json"),
        ("apim-request-id", "0f1a9f8c-2f3b-4c59-a0d0-2a0b7a7f6f11"),
        ("x-ms-region", "East US"),
        ("x-ratelimit-limit-requests", "1000"),
        ("x-ratelimit-remaining-requests", "999"),
        ("x-ratelimit-limit-tokens", "1000000"),
        ("x-ratelimit-remaining-tokens", "999000"),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// What an SDK in a traced application sends.
fn client_headers() -> HeaderMap {
    let pairs = [
        ("host", "balancer.test"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("content-length", "1000"),
        ("api-key", KEY),
        ("user-agent", "AzureOpenAI/Python 1.99.0"),
        ("x-ms-client-request-id", "0b6f4c6e-9f0f-4f6c-8a44-9d7a4f0c8f11"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let pairs = pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    pairs.into_iter().collect()
}

/// Prices by deployment, by model, and from a date on.
fn example_pricing() -> Pricing {
    let text = "listeners: [ { address: 127.0.0.1:8080 } ]\n\
                backends: [ { name: b0, endpoint: \"https://b0.openai.azure.com\", credential: { api_key: k }, deployments: { gpt-4o: gpt-4o } } ]\n\
                clients: open\n\
                prices: { currency: USD, rows: [ { deployment: gpt-4o, input: 2.50, cached: 1.25, output: 10.00 }, \
                { deployment: gpt-4o, input: 2.00, cached: 1.00, output: 8.00, from: 2026-01-01 }, { model: gpt-4.1, input: 2.00, output: 8.00 } ] }\n";
    let checked = config::parse_and_check_yaml(text, std::path::Path::new("."), &|_| None);
    Pricing::of(&checked.expect("the configuration is valid").config).expect("it has prices")
}

fn sample_exchange(admitted: &AdmittedRequest, body: &Bytes, response: &Bytes) -> FinishedExchange {
    let mut collected = CollectedBody::new(1 << 20);
    collected.append(response);
    FinishedExchange {
        received_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000),
        request_id: Arc::from("019ab0d0-0000-7000-8000-000000000000"),
        client_headers: ClientHeaders {
            request_id: Some("0b6f4c6e-9f0f-4f6c-8a44-9d7a4f0c8f11".into()),
            user_agent: Some("AzureOpenAI/Python 1.99.0".into()),
            trace_context: None,
        },
        own_trace_id: None,
        client: None,
        class: None,
        limited_by: None,
        reserved_tokens: None,
        reservation: None,
        client_ip: Some([127, 0, 0, 1].into()),
        peer_ip: Some([127, 0, 0, 1].into()),
        method: "POST".to_owned(),
        target: Some(Arc::clone(&admitted.target)),
        unparsed_path: None,
        api_version: Some("2024-10-21".to_owned()),
        requested_deployment: admitted.deployment.clone(),
        is_deployment_known: true,
        balancer_overhead: Duration::from_micros(100),
        is_stream_requested: Some(false),
        client_status: Some(200),
        outcome: ExchangeOutcome::Answered,
        refusal_code: None,
        answering_backend: None,
        upstream_deployment: admitted.deployment.clone(),
        spilled: None,
        was_spilled_by_azure: false,
        region: Some("East US".to_owned()),
        apim_request_id: Some("0f1a9f8c-2f3b-4c59-a0d0-2a0b7a7f6f11".to_owned()),
        affinity: None,
        cache: None,
        attempts: Vec::new(),
        duration: Duration::from_millis(900),
        queued: Duration::ZERO,
        queue_charge: None,
        waited: Duration::ZERO,
        time_to_first_body_byte: Some(Duration::from_millis(890)),
        request_bytes: Some(body.len() as u64),
        response_bytes: response.len() as u64,
        captured_request: Some(CapturedRequest {
            body: body.clone(),
            content_type: "application/json".to_owned(),
            prompt_parts: admitted.prompt_parts().cloned(),
        }),
        extracted_prompt: None,
        prompt_sample: None,
        usage_missing: None,
        shown_end: None,
        captured_response: CapturedResponse::Buffered {
            has_usage: collected.has_usage(),
            body: collected,
            is_json: true,
        },
        is_content_dropped: false,
        socket_id: None,
    }
}
