//! Rejections (401, 403, missing deployment): one client's odd request takes nothing away from others, and
//! a rejection that is meant for everybody is found, and found to have ended.

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::upstream::{RawRequest, ScriptedUpstream, complete_response};
use support::websocket::UPGRADE_HEADERS;
use support::yaml::sha256_hex;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, LISTED_DEPLOYMENTS, Response, answering_backend,
    backend_yaml,
};

const JSON_TYPE: &str = "Content-Type: application/json";
const ANSWER: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
const INVALID_KEY: &str = r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#;
const NO_DEPLOYMENT: &str = r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#;
const DENIED: &str = r#"{"error":{"code":"PermissionDenied","message":"lacks the required data action"}}"#;
/// A request that its own content gets rejected.
const ODD_BODY: &str = r#"{"messages":[],"data_sources":[{"type":"odd"}]}"#;
const CLIENTS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn answer(status: u16, body: &str) -> Vec<Vec<u8>> {
    complete_response(status, JSON_TYPE, body)
}

fn is_odd(request: &RawRequest) -> bool {
    String::from_utf8_lossy(&request.body).contains("data_sources")
}

/// Whether this is one of the balancer's own questions.
fn is_question(request: &RawRequest) -> bool {
    request.body == b"{}" || request.head.starts_with("GET /openai/models")
}

/// A balancer with a client for each of [`CLIENTS`], whose key is `key-of-` and its name.
async fn start_with_five_clients(upstreams: &[&ScriptedUpstream]) -> Balancer {
    let names = ["first", "second", "third"];
    let backends: String = upstreams
        .iter()
        .zip(names)
        .map(|(upstream, name)| {
            backend_yaml(name, &format!("http://{}", upstream.address), LISTED_DEPLOYMENTS)
        })
        .collect();
    let clients: String = CLIENTS
        .iter()
        .map(|name| {
            let key = sha256_hex(&format!("key-of-{name}"));
            format!("  - name: {name}\n    keys: [ {{ sha256: {key} }} ]\n")
        })
        .collect();
    Balancer::start_with_clients(&backends, &format!("clients:\n{clients}"), "").await
}

async fn post_as(balancer: &Balancer, client: &str, body: &str) -> Response {
    balancer.post(CHAT_TARGET, &[("api-key", &format!("key-of-{client}"))], body.as_bytes()).await
}

async fn state_of(balancer: &Balancer, backend: usize) -> Value {
    let status = balancer.status().await;
    let backend = &status["backends"][backend];
    serde_json::json!([backend["state"], backend["resting"].as_array().unwrap().len()])
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_of_one_client_take_nothing_away_from_others() {
    for (status, body) in [(401, INVALID_KEY), (404, NO_DEPLOYMENT), (403, DENIED)] {
        let script = move |request: &RawRequest| match is_odd(request) {
            true => answer(status, body),
            // An existing deployment says this of an empty request.
            false if request.body == b"{}" => answer(400, r#"{"error":{"code":"BadRequest"}}"#),
            false => answer(200, ANSWER),
        };
        let (first, second) = (ScriptedUpstream::start(script).await, ScriptedUpstream::start(script).await);
        let balancer = start_with_five_clients(&[&first, &second]).await;
        for round in 0..30 {
            let odd = post_as(&balancer, "a", ODD_BODY).await;
            assert_eq!((odd.status, odd.text().contains("backend_misconfigured")), (503, true), "{status}");
            for client in ["b", "c"] {
                let response = post_as(&balancer, client, CHAT_BODY).await;
                assert_eq!(response.status, 200, "round {round}: {}", response.text());
                assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"));
            }
        }
        for backend in 0..2 {
            assert_eq!(state_of(&balancer, backend).await, serde_json::json!(["healthy", 0]), "{status}");
        }
        // The balancer's own question has its answer for a while.
        let questions = first.requests().iter().filter(|request| is_question(request)).count();
        assert!(questions >= 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_websocket_of_one_client_takes_nothing_away_from_others() {
    for (status, body) in [(401, INVALID_KEY), (404, NO_DEPLOYMENT), (403, DENIED)] {
        let script = move |request: &RawRequest| match request.head.contains("/realtime") {
            true => answer(status, body),
            false if request.body == b"{}" => answer(400, r#"{"error":{"code":"BadRequest"}}"#),
            false => answer(200, ANSWER),
        };
        let (first, second) = (ScriptedUpstream::start(script).await, ScriptedUpstream::start(script).await);
        let balancer = start_with_five_clients(&[&first, &second]).await;
        let headers = UPGRADE_HEADERS.map(|(name, value)| match name {
            "api-key" => (name, "key-of-a"),
            _ => (name, value),
        });
        for round in 0..10 {
            let target = "/openai/realtime?api-version=preview&deployment=gpt-4o";
            let odd = balancer.connect().await.get(target, &headers).await;
            assert_eq!((odd.status, odd.error_code().as_str()), (503, "backend_misconfigured"), "{status}");
            let response = post_as(&balancer, "b", CHAT_BODY).await;
            assert_eq!(response.status, 200, "round {round}: {}", response.text());
            assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"));
        }
        for backend in 0..2 {
            assert_eq!(state_of(&balancer, backend).await, serde_json::json!(["healthy", 0]), "{status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_of_everybody_is_found_by_the_balancers_own_question() {
    for (status, body, state) in [
        (401, INVALID_KEY, ["credential", "0"]),
        (404, NO_DEPLOYMENT, ["absent", "1"]),
        (403, DENIED, ["permission", "1"]),
    ] {
        let rejecting = ScriptedUpstream::start(move |_: &RawRequest| answer(status, body)).await;
        let serving = ScriptedUpstream::start(|_: &RawRequest| answer(200, ANSWER)).await;
        let balancer = start_with_five_clients(&[&rejecting, &serving]).await;
        // One request that meets it is enough for the question.
        while rejecting.requests().is_empty() {
            assert_eq!(answering_backend(&post_as(&balancer, "a", CHAT_BODY).await), "second");
        }
        let [state, parts] = state;
        let expected = serde_json::json!([state, parts.parse::<u64>().unwrap()]);
        support::wait_until_async("the rejection to be found", async || {
            state_of(&balancer, 0).await == expected
        })
        .await;
        let requests = rejecting.requests().len();
        for _ in 0..4 {
            assert_eq!(answering_backend(&post_as(&balancer, "b", CHAT_BODY).await), "second");
        }
        assert_eq!(rejecting.requests().len(), requests, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_to_the_question_three_clients_that_meet_a_rejection_decide() {
    let rejecting = ScriptedUpstream::start(|request: &RawRequest| match is_question(request) {
        true => answer(500, "{}"),
        false => answer(401, INVALID_KEY),
    })
    .await;
    let serving = ScriptedUpstream::start(|_: &RawRequest| answer(200, ANSWER)).await;
    let balancer = start_with_five_clients(&[&rejecting, &serving]).await;
    let meet = async |client: &str| {
        let before = rejecting.requests().iter().filter(|request| !is_question(request)).count();
        while rejecting.requests().iter().filter(|request| !is_question(request)).count() == before {
            assert_eq!(answering_backend(&post_as(&balancer, client, CHAT_BODY).await), "second");
        }
    };
    for client in ["a", "b", "a", "b", "a"] {
        meet(client).await;
        assert_eq!(state_of(&balancer, 0).await[0], "healthy");
    }
    meet("c").await;
    assert_eq!(state_of(&balancer, 0).await[0], "credential");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_rejections_everywhere_ends_when_it_ends() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let script = |is_mended: Arc<AtomicBool>| {
        move |_: &RawRequest| match is_mended.load(Ordering::Acquire) {
            true => answer(200, ANSWER),
            false => answer(401, INVALID_KEY),
        }
    };
    let first = ScriptedUpstream::start(script(Arc::clone(&is_mended))).await;
    let second = ScriptedUpstream::start(script(Arc::clone(&is_mended))).await;
    let balancer = start_with_five_clients(&[&first, &second]).await;
    support::wait_until_async("both rejections to be found", async || {
        let response = post_as(&balancer, "a", CHAT_BODY).await;
        assert_eq!(response.status, 503, "{}", response.text());
        assert!(response.text().contains("backend_misconfigured"));
        state_of(&balancer, 0).await[0] == "credential" && state_of(&balancer, 1).await[0] == "credential"
    })
    .await;
    // While nobody else is left, each is asked about once a second, not by every request.
    let before = first.requests().len() + second.requests().len();
    let began_at = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(post_as(&balancer, "a", CHAT_BODY).await.status, 503);
    }
    let most = 2 * 2 * (usize::try_from(began_at.elapsed().as_secs()).unwrap() + 1);
    let further = first.requests().len() + second.requests().len() - before;
    assert!(further <= most, "{further} requests, expected at most {most}");
    is_mended.store(true, Ordering::Release);
    // Long before the minute after which a rejecting backend is probed anyway.
    let mended_at = std::time::Instant::now();
    support::wait_until_async("an answer after the outage", async || {
        post_as(&balancer, "b", CHAT_BODY).await.status == 200
    })
    .await;
    assert!(mended_at.elapsed() < std::time::Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_no_backend_lists_or_has_is_the_clients_mistake() {
    let script = |request: &RawRequest| {
        let named = request.head.contains("/misspelt/") || request.body.windows(8).any(|w| w == b"misspelt");
        match named {
            true => answer(404, NO_DEPLOYMENT),
            false => answer(200, ANSWER),
        }
    };
    let (first, second) = (ScriptedUpstream::start(script).await, ScriptedUpstream::start(script).await);
    let backends = first.backend_yaml("first") + &second.backend_yaml("second");
    let balancer = Balancer::start(&backends, "").await;
    let key = [("api-key", CLIENT_KEY)];
    let classic = "/openai/deployments/misspelt/chat/completions?api-version=2024-10-21";
    for (target, body) in [
        (classic, CHAT_BODY.to_owned()),
        ("/openai/v1/chat/completions", CHAT_BODY.replacen('{', r#"{"model":"misspelt","#, 1)),
    ] {
        for _ in 0..3 {
            let response = balancer.post(target, &key, body.as_bytes()).await;
            let error: Value = serde_json::from_slice(&response.body).unwrap();
            assert_eq!((response.status, &error["error"]["code"]), (404, &Value::from("DeploymentNotFound")));
            assert_eq!(response.header("retry-after"), None);
        }
    }
    assert_eq!(balancer.post_chat().await.status, 200);
    // Where one backend cannot be asked, nobody knows.
    let third = support::free_port();
    let backends =
        first.backend_yaml("first") + &backend_yaml("third", &format!("http://127.0.0.1:{third}"), "");
    let balancer = Balancer::start(&backends, "retry: { outage: 0s }").await;
    assert_eq!(balancer.post(classic, &key, CHAT_BODY.as_bytes()).await.status, 502);
}
