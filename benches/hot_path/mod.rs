//! What every request goes through, piece by piece, each as the proxy does it.

#![allow(dead_code, unreachable_pub, reason = "each program uses its own part")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aoai_lb::azure;
use aoai_lb::azure::Operation;
use aoai_lb::azure::request::body;
use aoai_lb::azure::response::answer::Answer as Said;
use aoai_lb::azure::response::body::ReplyBody;
use aoai_lb::azure::response::hints;
use aoai_lb::azure::response::sse::{Scanner, UsageFilter};
use aoai_lb::azure::response::verdict::Verdict;
use aoai_lb::config;
use aoai_lb::credentials::Keyring;
use aoai_lb::gateway::{Admitted, Answer, Body, Failure, Gateway, Process};
use aoai_lb::record::Recorder;
use aoai_lb::record::exchange::{Answered, Asked, Exchange, Outcome};
use aoai_lb::record::redact::Redaction;
use aoai_lb::routing::retry_plan::{Choice, Journey};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

const KEY: &str = "key-of-team-a";
const CLASSIC: &[u8] = b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
const V1: &[u8] = b"/openai/v1/chat/completions";

/// One of them by its name.
pub type Step = (&'static str, Box<dyn FnMut()>);

/// A gateway with four backends and what it needs to live.
struct World {
    gateway: Gateway,
    headers: HeaderMap,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Arc<Self> {
        let digest: String =
            openssl::sha::sha256(KEY.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let backends: String = (0..4)
            .map(|n| {
                format!(
                    "  - {{ name: b{n}, endpoint: \"https://b{n}.openai.azure.com\", credential: {{ api_key: k }}, \
                     deployments: {{ gpt-4o: gpt-4o-{n} }} }}\n"
                )
            })
            .collect();
        let text = format!(
            "listeners: [ {{ address: 127.0.0.1:8080 }} ]\nbackends:\n{backends}\
             clients: [ {{ name: team-a, keys: [ {{ sha256: {digest} }} ] }} ]\n"
        );
        let checked = config::parse(&text, std::path::Path::new("."), &|_| None).expect("it is good");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let keyring = Keyring::offline(runtime.handle());
        let recorder = Recorder::open(&checked.config, &keyring, runtime.handle()).expect("nothing is kept");
        let now = Instant::now();
        let gateway = Gateway::new(&checked.config, Arc::new(Process::new(now, recorder, keyring)), now);
        let mut headers = HeaderMap::new();
        headers.insert("api-key", HeaderValue::from_static(KEY));
        Arc::new(Self { gateway, headers, _runtime: runtime })
    }

    fn admit(&self, target: &[u8], body: &Bytes) -> Admitted {
        let (gateway, method) = (&self.gateway, &Method::POST);
        let is_good = "it is a good request";
        let target = gateway.locate(method, target, false).expect(is_good);
        gateway.allow(method, &target).expect(is_good);
        let Ok(client) = gateway.authenticate(&self.headers, &target, None) else { panic!("{is_good}") };
        gateway.permit(method, &target, &client).expect(is_good);
        let body = Body { bytes: body, content_type: "application/json", encoded: false };
        let asked = gateway.read(method, &target, &body).expect(is_good);
        gateway.admit(method, target, &client, asked).expect(is_good)
    }
}

/// All steps.
pub fn steps() -> Vec<Step> {
    let world = World::new();
    let short = chat(1_000);
    let now = Instant::now();
    let mut steps: Vec<Step> = Vec::new();

    let (at, body) = (Arc::clone(&world), short.clone());
    steps.push(("admit", Box::new(move || drop(black_box(at.admit(CLASSIC, &body))))));

    // That step finds its target among those of late.
    steps.push(("target", Box::new(|| drop(black_box(azure::parse(CLASSIC, false))))));

    let (at, admitted) = (Arc::clone(&world), world.admit(CLASSIC, &short));
    steps.push((
        "pick",
        Box::new(move || {
            let mut journey = Journey::through(&admitted.pool);
            let allowance = at.gateway.allowance(now, now, None);
            let choice = journey.choose(&admitted.pool, Operation::Chat, &allowance, now, 0.5);
            if let Choice::Try(chosen) = choice {
                journey.begin(&admitted.pool, &chosen, now);
            }
            black_box(journey);
        }),
    ));

    let (at, admitted, body) = (Arc::clone(&world), world.admit(V1, &short), short.clone());
    steps.push((
        "rewrite",
        Box::new(move || {
            let candidate = admitted.pool.candidate(0).expect("there are four");
            let outgoing = at.gateway.put(&admitted, candidate, true);
            black_box((body::edit(&body, &outgoing.edits), outgoing.path));
        }),
    ));

    let (at, admitted) = (Arc::clone(&world), world.admit(CLASSIC, &short));
    let headers = reply_headers();
    steps.push((
        "learn",
        Box::new(move || {
            let candidate = admitted.pool.candidate(0).expect("there are four");
            let sent = candidate.sent(now);
            let answer = Answer {
                candidate,
                sent,
                headers: &headers,
                status: 200,
                secret: 0,
                failure: Failure::default(),
                now,
            };
            black_box(at.gateway.learn(&admitted, Verdict::Success, answer));
        }),
    ));

    let (at, admitted, body) = (Arc::clone(&world), world.admit(CLASSIC, &short), short.clone());
    let (reply, redaction, mut written) = (completion(), Redaction::new(Vec::new()), Vec::new());
    steps.push((
        "settle",
        Box::new(move || {
            let mut exchange = exchange(&admitted, &body, &reply);
            let keep = aoai_lb::record::exchange::Keep {
                prompt: true,
                completion: true,
                limit: 64 * 1024,
                gather: 64 * 1024,
                estimates: true,
            };
            written.clear();
            exchange.line(keep, &redaction, at.gateway.process.recorder.metrics()).write(&mut written);
            black_box(&written);
        }),
    ));

    let events = events();
    steps.push((
        "sse_tap",
        Box::new(move || {
            let (mut scanner, mut said) = (Scanner::new(1 << 20), Said::new(Operation::Chat, 64 * 1024));
            for chunk in &events {
                scanner.feed(chunk, &mut |event| said.event(&event));
            }
            black_box(said.completion());
        }),
    ));

    let events = self::events();
    steps.push((
        "usage_filter",
        Box::new(move || {
            let mut filter = UsageFilter::new(1 << 20);
            for chunk in &events {
                filter.feed(chunk, &mut |out| drop(black_box(out)));
            }
        }),
    ));

    steps.push(("body_probe", Box::new(move || drop(black_box(body::probe(&short))))));
    let long = chat(100_000);
    steps.push(("body_probe_100k", Box::new(move || drop(black_box(body::probe(&long))))));

    let headers = reply_headers();
    steps.push((
        "capacity",
        Box::new(move || {
            black_box(hints::capacity(&headers));
        }),
    ));
    steps
}

fn chat(length: usize) -> Bytes {
    let prompt = "tell me more. ".repeat(length / 14);
    format!(
        r#"{{"model":"gpt-4o","max_tokens":100,"messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{prompt}"}}]}}"#
    )
    .into()
}

fn completion() -> Bytes {
    let text = "and so on ".repeat(70);
    format!(
        r#"{{"choices":[{{"content_filter_results":{{"hate":{{"filtered":false,"severity":"safe"}}}},"finish_reason":"stop","index":0,"message":{{"content":"{text}","role":"assistant"}}}}],"created":1764000000,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion","usage":{{"completion_tokens":60,"prompt_tokens":200,"total_tokens":260}}}}"#
    )
    .into()
}

/// A hundred events, each in a chunk of its own.
fn events() -> Vec<Bytes> {
    let event = r#"data: {"choices":[{"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}},"delta":{"content":" word"},"finish_reason":null,"index":0,"logprobs":null}],"created":1764000000,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk"}"#;
    vec![Bytes::from(format!("{event}\n\n")); 100]
}

fn reply_headers() -> HeaderMap {
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

fn exchange(admitted: &Admitted, body: &Bytes, reply: &Bytes) -> Exchange {
    let mut whole = ReplyBody::new(1 << 20);
    whole.feed(reply);
    Exchange {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000),
        request_id: Arc::from("019ab0d0-0000-7000-8000-000000000000"),
        client: None,
        client_ip: Some([127, 0, 0, 1].into()),
        peer_ip: Some([127, 0, 0, 1].into()),
        method: "POST".to_owned(),
        target: Some(Arc::clone(&admitted.target)),
        raw_path: None,
        api_version: Some("2024-10-21".to_owned()),
        deployment: admitted.deployment.clone(),
        is_known_deployment: true,
        overhead: Duration::from_micros(100),
        stream: Some(false),
        status: Some(200),
        outcome: Outcome::Answered,
        refusal: None,
        backend: None,
        upstream_deployment: admitted.deployment.clone(),
        region: Some("East US".to_owned()),
        apim_request_id: Some("0f1a9f8c-2f3b-4c59-a0d0-2a0b7a7f6f11".to_owned()),
        attempts: Vec::new(),
        duration: Duration::from_millis(900),
        first_byte: Some(Duration::from_millis(890)),
        request_bytes: Some(body.len() as u64),
        response_bytes: reply.len() as u64,
        asked: Some(Asked {
            body: body.clone(),
            content_type: "application/json".to_owned(),
            prompt: admitted.prompt().cloned(),
        }),
        prompt: None,
        answered: Answered::Reply { body: whole, is_json: true },
        lightened: false,
    }
}
