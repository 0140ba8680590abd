//! Credentials stay on their side: a client's never reaches a backend, and a backend's, which its error
//! responses may quote, never reaches a client, a record or the log.

use crate::support;

use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY};

const BACKEND_KEY: &str = "planted-key-0123456789abcdef+/xyz";
const PLANTED: &str = "planted-key-of-the-client";

/// The YAML of a backend with [`BACKEND_KEY`].
fn backend_with_key_yaml(upstream: &ScriptedUpstream) -> String {
    let address = upstream.address;
    format!("  - name: a\n    endpoint: http://{address}\n    credential: {{ api_key: {BACKEND_KEY} }}\n")
}

/// What an error response may tell of [`BACKEND_KEY`].
fn quotes() -> Vec<String> {
    vec![
        format!("Incorrect API key provided: {BACKEND_KEY}."),
        "Incorrect API key provided: planted-****************/xyz.".to_owned(),
        "invalid subscription key 'planted…'".to_owned(),
        BACKEND_KEY.replace('/', "\\/").replace('+', "\\u002b"),
    ]
}

/// An error response with this quote: whole, divided in the middle of the key, or after more than is held.
fn error_response(status: u16, quote: &str, shape: usize) -> Vec<Vec<u8>> {
    let padding = " ".repeat(if shape == 2 { 100_000 } else { 0 });
    let body = format!(r#"{padding}{{"error":{{"message":"{quote}","code":"x"}}}}"#);
    let headers = format!("Content-Type: application/json\nX-Debug: key={BACKEND_KEY}");
    let response = complete_response(status, &headers, &body).concat();
    if shape == 0 {
        return vec![response];
    }
    let (first, second) = response.split_at(response.len() - 20);
    vec![first.to_vec(), second.to_vec()]
}

fn assert_tells_nothing(text: &str, context: &str) {
    for part in ["planted-", "3456789", "abcdef", "/xyz"] {
        assert!(!text.contains(part), "{part} in {text:?} ({context})");
    }
}

/// Sends a request whose body has this number, and checks that nothing tells the backend's key.
async fn check_error_response(balancer: &Balancer, number: usize, expected: &[Vec<u8>], status: u16) {
    let body = format!(r#"{{"messages":[],"seed":{number}}}"#);
    let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    let context = format!("{status} {}", response.text().trim());
    assert_eq!((response.status, response.is_complete), (status, true), "{context}");
    assert!(expected.concat().len() > response.body.len() && response.text().contains("code"), "{context}");
    assert_tells_nothing(&response.text(), &context);
    assert_tells_nothing(&format!("{:?}", response.headers), &context);
}

#[tokio::test]
async fn a_backends_key_is_removed_from_its_error_responses() {
    // Some of them are held until it is known what they mean, others are relayed as they arrive.
    for status in [302, 400, 404, 405, 409, 422] {
        let cases: Vec<Vec<Vec<u8>>> = quotes()
            .iter()
            .flat_map(|quote| (0..3).map(move |shape| error_response(status, quote, shape)))
            .collect();
        let responses = cases.clone();
        let upstream = ScriptedUpstream::start(move |request: &RawRequest| {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            responses[usize::try_from(body["seed"].as_u64().unwrap()).unwrap()].clone()
        })
        .await;
        let balancer = Balancer::start(&backend_with_key_yaml(&upstream), "retry: { attempts: 0 }").await;
        for (number, case) in cases.iter().enumerate() {
            check_error_response(&balancer, number, case, status).await;
        }
        for record in balancer.wait_for_records(cases.len()).await {
            assert_tells_nothing(&record.to_string(), "record");
        }
        assert_tells_nothing(&balancer.log(), "log");
    }
    // After these the backend is unavailable for a while.
    for status in [429, 500, 503] {
        for quote in quotes() {
            let response = error_response(status, &quote, 0);
            let expected = response.clone();
            let upstream = ScriptedUpstream::start(move |_| response.clone()).await;
            let balancer = Balancer::start(&backend_with_key_yaml(&upstream), "retry: { attempts: 0 }").await;
            check_error_response(&balancer, 0, &expected, status).await;
            assert_tells_nothing(&balancer.wait_for_records(1).await.remove(0).to_string(), "record");
            assert_tells_nothing(&balancer.log(), "log");
        }
    }
}

#[tokio::test]
async fn a_successful_response_is_relayed_unchanged_whatever_it_quotes() {
    let body = format!(r#"{{"text":"{BACKEND_KEY}"}}"#);
    let response = complete_response(200, "Content-Type: application/json", &body);
    let upstream = ScriptedUpstream::start(move |_| response.clone()).await;
    let balancer = Balancer::start(&backend_with_key_yaml(&upstream), "").await;
    assert_eq!(balancer.post_chat().await.text(), body);
}

#[tokio::test]
async fn a_clients_credentials_in_headers_and_query_reach_no_backend() {
    let upstream =
        ScriptedUpstream::start(|_| complete_response(200, "Content-Type: application/json", "{}")).await;
    let balancer = Balancer::start(&backend_with_key_yaml(&upstream), "").await;
    let names = [
        "x-api-key",
        "apikey",
        "ApiKey",
        "Ocp-Apim-Subscription-Key",
        "x-functions-key",
        "X-Auth-Token",
        "X-Session-Token",
        "Helicone-Auth",
        "x-client-secret",
    ];
    for name in names {
        let headers = [("api-key", CLIENT_KEY), (name, PLANTED), ("x-mine", "mine")];
        assert_eq!(balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes()).await.status, 200);
    }
    let keys = [
        "key",
        "KEY",
        "code",
        "sig",
        "c%6Fde",
        "key[]",
        "api_key",
        "x-api-key",
        "access_token",
        "X-Amz-Signature",
        "app_secret",
    ];
    for key in keys {
        let target = format!("{CHAT_TARGET}&{key}={PLANTED}&after=a");
        let response = balancer.post(&target, &[("api-key", CLIENT_KEY), ("x-mine", "mine")], b"{}").await;
        assert_eq!(response.status, 200, "{key}");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), names.len() + keys.len());
    for request in requests {
        assert!(!request.head.contains("planted-key-of-the-client"), "{}", request.head);
        assert!(request.head.contains("mine") && request.head.contains("api-version="), "{}", request.head);
    }
    for record in balancer.wait_for_records(names.len() + keys.len()).await {
        assert!(!record.to_string().contains(PLANTED), "{record}");
    }
    assert!(!balancer.log().contains(PLANTED));
}
