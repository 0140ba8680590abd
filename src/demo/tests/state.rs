//! State: what a resource remembers, and that another resource does not know it.

use super::*;
use crate::demo::BodyPosition;

const RESPONSES_TARGET: &str = "/openai/v1/responses";

/// A request for a response, with additional parameters.
fn responses_request(parameters: &Value) -> String {
    let mut body = json!({"model": "gpt-4o", "input": "hello there"});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    post_request(RESPONSES_TARGET, &body.to_string())
}

#[tokio::test]
async fn only_the_resource_that_created_a_response_knows_it() {
    let simulator = start_two_resources().await;
    let created = send_to(&simulator, "east", responses_request(&json!({}))).await.json();
    let id = created["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), created["model"].clone()), ("resp_".len() + 50, json!("gpt-4o")));
    assert_eq!(created["usage"]["total_tokens"], 22);
    let continuation = responses_request(&json!({"previous_response_id": id}));
    assert_eq!(
        send_to(&simulator, "east", continuation.clone()).await.json()["usage"]["input_tokens"],
        4 + 20 + 3
    );
    let unknown = send_to(&simulator, "west", continuation).await;
    assert_eq!(
        (unknown.status, unknown.json()["error"]["code"].clone()),
        (400, json!("previous_response_not_found"))
    );

    let target = format!("{RESPONSES_TARGET}/{id}");
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("GET", &target)).await.json()["status"],
        "completed"
    );
    let items =
        send_to(&simulator, "east", bodiless_request("GET", &format!("{target}/input_items"))).await.json();
    assert_eq!(items["data"][0]["content"][0]["text"], "hello there");
    assert_eq!(send_to(&simulator, "west", bodiless_request("GET", &target)).await.status, 404);
    assert_eq!(
        send_to(&simulator, "east", bodiless_request("DELETE", &target)).await.json()["deleted"],
        true
    );
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &target)).await.status, 404);

    let unstored = send_to(&simulator, "east", responses_request(&json!({"store": false}))).await.json();
    let target = format!("{RESPONSES_TARGET}/{}", unstored["id"].as_str().unwrap());
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &target)).await.status, 404);
    let classic = "/openai/responses?api-version=2024-10-21";
    assert_eq!(send_to(&simulator, "east", post_request(classic, "{}")).await.status, 400);
}

#[tokio::test]
async fn only_the_resource_that_encrypted_reasoning_accepts_it() {
    let simulator = start_two_resources().await;
    let body = responses_request(&json!({"store": false, "include": ["reasoning.encrypted_content"]}));
    let created = send_to(&simulator, "east", body).await.json();
    assert_eq!(created["output"][0]["type"], "reasoning");
    let next_request = responses_request(
        &json!({"store": false, "input": [created["output"][0], {"role": "user", "content": "on"}]}),
    );
    assert_eq!(send_to(&simulator, "east", next_request.clone()).await.status, 200);
    let refused = send_to(&simulator, "west", next_request).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("could not be verified"));
}

#[tokio::test]
async fn responses_can_be_streamed_and_cut_off() {
    let simulator = start_two_resources().await;
    let response = send_to(&simulator, "east", responses_request(&json!({"stream": true}))).await;
    let events = response.events();
    assert!(response.text().starts_with("event: response.created\ndata: {"));
    assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
    assert_eq!(
        (last["type"].clone(), last["response"]["usage"]["output_tokens"].clone()),
        (json!("response.completed"), json!(18))
    );
    assert_eq!(events[0]["response"]["usage"], Value::Null);

    let truncated =
        send_to(&simulator, "east", responses_request(&json!({"max_output_tokens": 4}))).await.json();
    assert_eq!(truncated["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn background_responses_take_their_time_and_can_be_resumed_and_cancelled() {
    let duration = Duration::from_secs(1);
    let resource = SimulatedResource { background_response_duration: duration, ..east_resource() };
    let simulator = start_simulator(resource).await;
    let start = || async {
        let created = respond(&simulator, "east", json!({"input": "hello", "background": true})).await.json();
        assert_eq!((created["status"].clone(), created["output"].clone()), (json!("queued"), json!([])));
        format!("/responses/{}", created["id"].as_str().unwrap())
    };
    let path = start().await;
    wait_for_status(&simulator, &path, &["in_progress"]).await;
    let done = wait_for_status(&simulator, &path, &["completed"]).await;
    assert!(message_text(&done).starts_with("You said: hello"));

    let path = start().await;
    let resumed = get(&simulator, "east", &format!("{path}?stream=true&starting_after=4")).await;
    assert_eq!(resumed.events()[0]["sequence_number"], 5);
    assert_eq!(resumed.event_types().last().map(String::as_str), Some("response.completed"));
    assert_eq!(get(&simulator, "east", &path).await.json()["status"], "completed", "its stream has ended");
    assert_eq!(get(&simulator, "east", &format!("{path}?stream=true&starting_after=x")).await.status, 400);

    let path = start().await;
    let cancelled = post(&simulator, "east", &format!("{path}/cancel"), &json!({})).await.json();
    assert_eq!((cancelled["status"].clone(), cancelled["output"].clone()), (json!("cancelled"), json!([])));
    assert_eq!(get(&simulator, "east", &path).await.json()["status"], "cancelled");
    let events = get(&simulator, "east", &format!("{path}?stream=true")).await.event_types();
    assert_eq!(events, ["response.created", "response.queued", "response.in_progress"]);

    // A stream that is cut off goes on in the background; one that was sent is complete.
    let body = json!({"input": "hello", "background": true, "stream": true});
    simulator.set_mood("east", Mood::CloseMidStream { after: BodyPosition::Events(3) });
    let cut = respond(&simulator, "east", body.clone()).await;
    simulator.set_mood("east", Mood::Calm);
    let path = format!("/responses/{}", cut.events()[0]["response"]["id"].as_str().unwrap());
    assert!(!cut.is_complete);
    assert_ne!(get(&simulator, "east", &path).await.json()["status"], "completed");
    let rest = get(&simulator, "east", &format!("{path}?stream=true&starting_after=2")).await.events();
    let numbers: Vec<u64> = rest.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (3..3 + numbers.len() as u64).collect::<Vec<_>>());
    let sent = respond(&simulator, "east", body).await.events();
    let path = format!("/responses/{}", sent[0]["response"]["id"].as_str().unwrap());
    wait_for_status(&simulator, &path, &["completed"]).await;

    let synchronous = respond(&simulator, "east", json!({"input": "hello"})).await.json();
    let path = format!("/responses/{}/cancel", synchronous["id"].as_str().unwrap());
    let refused = post(&simulator, "east", &path, &json!({})).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["message"], "Cannot cancel a synchronous response.");
    let unstored = json!({"input": "hello", "background": true, "store": false});
    assert_eq!(respond(&simulator, "east", unstored).await.status, 400);
}

#[tokio::test]
async fn each_resource_has_its_own_prompt_cache() {
    let simulator = start_two_resources().await;
    let words: String = (0..1000).map(|index| format!("w{index} ")).collect();
    let body = json!({"messages": [{"role": "system", "content": words}, {"role": "user", "content": "hi"}]})
        .to_string();
    let mut cached_tokens = Vec::new();
    for name in ["east", "east", "west"] {
        let usage = send_to(&simulator, name, post_request(CHAT_TARGET, &body)).await.json()["usage"].clone();
        cached_tokens.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached_tokens, [0, 1280, 0]);
}
