//! The states of backends, as an operator sees them: each kind of trouble has its word, within half a minute and
//! with little traffic.

use crate::support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aoai_lb::demo::{Mood, SimulatedError};
use support::upstream::{PAUSE_100_MS, RawRequest, ScriptedUpstream, complete_response};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Response, answering_backend, backend_yaml,
    listed_backends_yaml, poll_within, simulated_backend_yaml, start_simulator,
};

async fn state_of(balancer: &Balancer, backend: usize) -> String {
    balancer.status().await["backends"][backend]["state"].as_str().unwrap().to_owned()
}

/// Sends a chat on a connection of its own, in the background.
fn post_in_background(balancer: &Arc<Balancer>) -> tokio::task::JoinHandle<Response> {
    let balancer = Arc::clone(balancer);
    tokio::spawn(async move {
        let mut client = balancer.connect().await;
        client.send_chat(CHAT_BODY).await;
        tokio::time::timeout(Duration::from_secs(120), client.read_response()).await.unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_hangs_is_left_within_half_a_minute_and_what_waits_there_is_repeated_once() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Arc::new(Balancer::start(&listed_backends_yaml(&azure), "").await);
    for _ in 0..2 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    azure.set_mood("a", Mood::Mute);
    let began = Instant::now();
    let waiting = [post_in_background(&balancer), post_in_background(&balancer)];
    balancer
        .wait_for_status("backend a is stalled", |status| status["backends"][0]["state"] == "stalled")
        .await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let status = balancer.status().await;
    let backend = &status["backends"][0];
    assert!(backend["reason"].as_str().unwrap().contains("does not answer any more"), "{backend}");
    assert!(backend["oldest_attempt_seconds"].as_f64().unwrap() > 10.0, "{backend}");
    // New requests do not try it.
    let hits = azure.request_count("a");
    for _ in 0..10 {
        let response = balancer.post_chat().await;
        assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (200, Some("1")));
    }
    let questions = azure.request_count("a") - hits;
    assert!(questions <= 1, "{questions}");
    // One of the two waits there. It is repeated after 30 s of silence, and not before.
    for request in waiting {
        let response = request.await.unwrap();
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    }
    assert!(began.elapsed() > Duration::from_secs(30), "{:?}", began.elapsed());
    let records = balancer.wait_for_records(14).await;
    let left: Vec<_> = records.iter().filter(|record| record["attempts"][0]["error"] == "stalled").collect();
    assert_eq!(left.len(), 1, "{records:?}");
    assert_eq!(left[0]["attempts"].as_array().unwrap().len(), 2);
    // The free questions find out that it answers again.
    azure.set_mood("a", Mood::Calm);
    balancer
        .wait_for_status("backend a is no longer stalled", |status| {
            status["backends"][0]["state"] != "stalled"
        })
        .await;
    assert_eq!(state_of(&balancer, 0).await, "healthy", "the stall explains its failures");
    let log = balancer.log();
    assert_eq!(log.matches("backend a: stalled: ").count(), 1, "{log}");
    assert_eq!(log.matches("backend a: answers again").count(), 1, "{log}");
    assert!(!log.contains("backend a: failing"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_thinks_for_long_is_waited_for() {
    let thinking = ScriptedUpstream::start(|request: &RawRequest| {
        if request.head.starts_with("GET /openai/models") {
            return complete_response(200, "", r#"{"data":[]}"#);
        }
        let mut pieces = vec![PAUSE_100_MS.to_vec(); 330];
        pieces.extend(complete_response(200, "Content-Type: application/json", r#"{"choices":[]}"#));
        pieces
    })
    .await;
    let spare =
        ScriptedUpstream::start(|_: &RawRequest| complete_response(200, "", r#"{"choices":[]}"#)).await;
    let backends =
        thinking.backend_yaml("a") + &spare.backend_yaml("b").replace("name: b", "name: b\n    tier: 2");
    let balancer = Arc::new(Balancer::start(&backends, "").await);
    let response = post_in_background(&balancer).await.unwrap();
    assert_eq!((response.status, response.header("x-aoai-lb-attempts")), (200, Some("1")));
    assert_eq!(answering_backend(&response), "a");
    let questions =
        thinking.requests().iter().filter(|request| request.head.starts_with("GET /openai/models")).count();
    assert!((1..=6).contains(&questions), "{questions}");
    assert_eq!(state_of(&balancer, 0).await, "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_all_it_is_asked_is_failing_even_at_little_traffic() {
    let azure = start_simulator(&["a", "b"]).await;
    let yaml = "breaker: { failures: 5, ratio: 50%, window: 1s, open: 1m, maximum: 5m }";
    let balancer = Balancer::start(&listed_backends_yaml(&azure), yaml).await;
    azure.set_mood("a", Mood::Refuses(SimulatedError::ServerError));
    let mut states = Vec::new();
    // Ten requests, of which backend a gets every other one as long as its circuit is closed.
    for _ in 0..10 {
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
        assert_eq!(response.status, 200);
        states.push(state_of(&balancer, 0).await);
        // Little traffic is what is tested: the failures in a row are further apart than the breaker's window allows.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // The window of the breaker is shorter than the time between the failures: they count in a row.
    states.dedup();
    assert_eq!(states, ["healthy", "failing", "breaker_open"]);
    let status = balancer.status().await;
    let backend = &status["backends"][0];
    assert_eq!(backend["last_error"]["status"], 500, "{backend}");
    assert!(backend["reason"].as_str().unwrap().starts_with("failed too often; last: 500"), "{backend}");
    balancer.wait_for_log("circuit open for 60s: 5 attempts in a row failed, last: 500").await;
}

/// The lines of the log that an operator sees who asks for warnings and errors only.
fn warnings(balancer: &Balancer) -> Vec<String> {
    let log = balancer.log();
    let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    log.lines().filter(is_warning).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_is_failing_while_clients_are_refused_and_degraded_while_others_serve() {
    let azure = start_simulator(&["a", "b"]).await;
    let balancer = Balancer::start(&listed_backends_yaml(&azure), "retry: { outage: 0s }").await;
    let state = async |expected: &'static str| {
        let what = format!("the whole is {expected}");
        balancer.wait_for_status(&what, |status| status["service"]["state"] == expected).await;
        balancer.status().await
    };
    state("healthy").await;
    azure.set_mood("a", Mood::ResetBeforeHead);
    for _ in 0..8 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    let status = state("degraded").await;
    let problem = &status["service"]["problems"][0];
    assert_eq!(problem["subject"], "a", "{problem}");
    assert!(problem["text"].as_str().unwrap().starts_with("failing: "), "{problem}");
    azure.set_mood("b", Mood::ResetBeforeHead);
    let response = balancer.post_chat().await;
    assert_eq!((response.status, response.error_code().as_str()), (502, "upstream_failed"));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "no backend answered (a: connection reset, b: connection reset)");
    let status = state("failing").await;
    let problem = &status["service"]["problems"][0];
    assert_eq!(
        (&problem["state"], &problem["subject"]),
        (&serde_json::json!("failing"), &serde_json::json!("requests")),
        "{status}"
    );
    let warnings = warnings(&balancer);
    for expected in [
        "backend a: failing: ",
        "the service is degraded: a: failing: the last ",
        "requests fail because of backends: gpt-4o: 502, no backend answered: a: connection reset, b: connection reset",
        "the service is failing: requests: ",
    ] {
        assert_eq!(warnings.iter().filter(|line| line.contains(expected)).count(), 1, "{warnings:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provisioned_backend_that_fails_with_retry_after_is_not_told_as_full() {
    for (status, expected) in [(429, "spilling"), (503, "degraded")] {
        let refusing = ScriptedUpstream::start(move |_: &RawRequest| {
            complete_response(status, "Retry-After: 30", r#"{"error":{"code":"x","message":"later"}}"#)
        })
        .await;
        let spare =
            ScriptedUpstream::start(|_: &RawRequest| complete_response(200, "", r#"{"choices":[]}"#)).await;
        let deployments = "deployments: { gpt-4o: gpt-4o }";
        let backends =
            backend_yaml(
                "a",
                &format!("http://{}", refusing.address),
                &format!("{deployments}\nprovisioned: {{ units: 100 }}"),
            ) + &backend_yaml("b", &format!("http://{}", spare.address), &format!("{deployments}\ntier: 2"));
        let balancer = Balancer::start(&backends, "").await;
        assert_eq!(balancer.post_chat().await.status, 200);
        balancer
            .wait_for_status("the whole is judged", |status| status["service"]["state"] == expected)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_traffic_a_state_lasts_until_the_balancer_has_seen_itself_that_it_is_over() {
    let azure = start_simulator(&["a", "failing", "rejecting", "lacking"]).await;
    let listed = "deployments: { gpt-4o: gpt-4o }";
    let backends: String = ["failing", "rejecting", "lacking"]
        .iter()
        .map(|name| simulated_backend_yaml(&azure, name, listed))
        .collect::<String>()
        + &simulated_backend_yaml(&azure, "a", &format!("tier: 2\n{listed}"));
    let balancer = Balancer::start(&backends, "").await;
    azure.set_mood("failing", Mood::Refuses(SimulatedError::ServerError));
    azure.set_mood("rejecting", Mood::Refuses(SimulatedError::InvalidKey));
    azure.set_mood("lacking", Mood::Refuses(SimulatedError::DeploymentNotFound));
    for _ in 0..6 {
        assert_eq!(answering_backend(&balancer.post_chat().await), "a");
    }
    let states =
        async || [state_of(&balancer, 0).await, state_of(&balancer, 1).await, state_of(&balancer, 2).await];
    let trouble = ["breaker_open", "credential", "absent"];
    balancer
        .wait_for_status("each has its state", |status| {
            (0..3).all(|index| status["backends"][index]["state"] == trouble[index])
        })
        .await;
    // From now on there is no request. What is broken does not become healthy by that.
    let (began, hits) =
        (Instant::now(), ["failing", "rejecting", "lacking"].map(|name| azure.request_count(name)));
    poll_within(Duration::from_secs(100), "each is asked again", async || {
        let found = states().await;
        assert_ne!(found[0], "healthy");
        assert_eq!(found[1..], trouble[1..], "{:?}", began.elapsed());
        let asked = ["failing", "rejecting", "lacking"].map(|name| azure.request_count(name));
        if asked.iter().zip(hits).all(|(count, before)| *count > before) { Ok(()) } else { Err(asked) }
    })
    .await;
    for name in ["failing", "rejecting", "lacking"] {
        azure.set_mood(name, Mood::Calm);
    }
    let questions = azure.received_requests("failing");
    assert!(questions.iter().skip(hits[0]).all(|request| request.target.starts_with("/openai/models")));
    poll_within(Duration::from_secs(100), "each is healthy again", async || {
        let found = states().await;
        if found.iter().all(|state| state == "healthy") { Ok(()) } else { Err(found) }
    })
    .await;
    assert!(balancer.records().iter().all(|record| record["backend"] == "a"), "questions are not recorded");
}
