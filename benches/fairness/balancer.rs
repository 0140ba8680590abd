//! The gateway of a configuration, and a request that it has admitted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use aoai_lb::config;
use aoai_lb::credentials::Keyring;
use aoai_lb::gateway::{
    AdmittedRequest, BodyView, FailureFlags, Gateway, Moment, ProcessState, ResponseFacts,
};
use aoai_lb::record::Recorder;
use aoai_lb::routing::headroom::SendTicket;
use bytes::Bytes;
use http::{HeaderMap, Method};

const TARGET: &[u8] = b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";
const BODY: &[u8] = br#"{"messages":[{"role":"user","content":"Good morning."}]}"#;

/// The decisions of a balancer, without its sockets and its clock.
pub struct DecidingBalancer {
    pub gateway: Gateway,
    /// All requests of a simulation are of this kind.
    pub admitted: AdmittedRequest,
    _runtime: tokio::runtime::Runtime,
}

impl DecidingBalancer {
    /// That of a configuration with a backend in each of these tiers and these `blocks`.
    pub fn new(tiers: &[u32], blocks: &str, now: Instant) -> Self {
        let backend = |(index, tier): (usize, &u32)| {
            format!(
                "  - {{ name: b{index}, endpoint: \"https://b{index}.openai.azure.com\", tier: {tier}, \
                 credential: {{ api_key: k }}, deployments: {{ gpt-4o: gpt-4o }} }}\n"
            )
        };
        let backends: String = tiers.iter().enumerate().map(backend).collect();
        let text = format!(
            "listeners: [ {{ address: 127.0.0.1:8080 }} ]\nbackends:\n{backends}clients: open\n{blocks}\n"
        );
        let checked = config::parse_and_check_yaml(&text, Path::new("."), &|_| None)
            .unwrap_or_else(|problems| panic!("the configuration is not valid: {problems:?}\n{text}"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let keyring = Keyring::offline(runtime.handle());
        let recorder = Recorder::start(&checked.config, &keyring, runtime.handle()).unwrap();
        let gateway = Gateway::new(&checked.config, Arc::new(ProcessState::new(now, recorder, keyring)), now);
        let received = Moment { instant: now, time: SystemTime::now() };
        let admitted = admit(&gateway, &Bytes::from_static(BODY), received);
        Self { gateway, admitted, _runtime: runtime }
    }

    /// Admits a chat request with this body.
    pub fn admit(&self, body: &Bytes, received: Moment) -> AdmittedRequest {
        admit(&self.gateway, body, received)
    }
}

/// What the gateway learns from a response to an attempt on the candidate at this index.
pub fn response_facts<'a>(
    admitted: &'a AdmittedRequest,
    candidate_index: usize,
    send_ticket: Option<SendTicket>,
    headers: &'a HeaderMap,
    status: u16,
    now: Instant,
) -> ResponseFacts<'a> {
    ResponseFacts {
        candidate: admitted.pool.candidate(candidate_index).unwrap(),
        send_ticket,
        headers,
        status,
        secret_id: 1,
        body: &[],
        failure_flags: FailureFlags::default(),
        now,
    }
}

fn admit(gateway: &Gateway, body: &Bytes, received: Moment) -> AdmittedRequest {
    let expectation = "the request is valid";
    let method = &Method::POST;
    let target = gateway.check_method_and_parse_target(method, TARGET, false).expect(expectation);
    let Ok(client) = gateway.authenticate(&HeaderMap::new(), &target, None) else { panic!("{expectation}") };
    let view = BodyView { bytes: body, content_type: "application/json", is_compressed: false };
    let call = gateway.parse_requested_call(method, &target, &view).expect(expectation);
    gateway.admit(method, target, &client, call, body, received).expect(expectation)
}
