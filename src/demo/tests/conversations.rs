//! Conversations over several turns: the simulated model shows that it knows the earlier ones.

use super::*;

#[tokio::test]
async fn the_model_knows_the_earlier_turns_of_a_chain_and_of_each_fork() {
    let simulator = start_two_resources().await;
    let first = respond(&simulator, "east", json!({"input": "my name is Ada"})).await.json();
    assert!(!message_text(&first).contains("Turn"));
    let follow_up =
        |previous: &Value, text: &str| json!({"input": text, "previous_response_id": previous["id"]});
    let second = respond(&simulator, "east", follow_up(&first, "go on")).await.json();
    assert_eq!(
        message_text(&second),
        "You said: go on - and this is a simulated answer to it. (Turn 2; you began with: my name is Ada)"
    );
    let third = respond(&simulator, "east", follow_up(&second, "What did I say?")).await.json();
    assert!(message_text(&third).starts_with("You said: my name is Ada | go on (Turn 3;"), "{third}");
    let fork = respond(&simulator, "east", follow_up(&first, "What did I say?")).await.json();
    assert!(message_text(&fork).starts_with("You said: my name is Ada (Turn 2;"), "{fork}");
    let without_input =
        respond(&simulator, "east", json!({"previous_response_id": second["id"]})).await.json();
    assert!(message_text(&without_input).contains("Turn 2"), "{without_input}");
    // A response that is not stored may end a chain, but not go on in one.
    let mut unstored = follow_up(&second, "quietly");
    unstored["store"] = json!(false);
    let unstored = respond(&simulator, "east", unstored).await.json();
    assert!(message_text(&unstored).contains("Turn 3"));
    let refused = respond(&simulator, "east", follow_up(&unstored, "and now?")).await;
    assert_eq!(refused.json()["error"]["code"], "previous_response_not_found");
}

#[tokio::test]
async fn a_conversation_object_collects_the_turns() {
    let simulator = start_two_resources().await;
    let created = post(
        &simulator,
        "east",
        "/conversations",
        &json!({"metadata": {"topic": "t"}, "items": [{"role": "user", "content": "my name is Ada"}]}),
    )
    .await
    .json();
    let id = created["id"].as_str().unwrap();
    let path = format!("/conversations/{id}");
    assert!(id.starts_with("conv_"), "{created}");
    for conversation in [json!(id), json!({"id": id})] {
        let body = json!({"input": "go on", "conversation": conversation});
        let answer = respond(&simulator, "east", body.clone()).await.json();
        assert!(message_text(&answer).contains("you began with: my name is Ada"), "{answer}");
        assert_eq!(answer["conversation"]["id"], id);
        let unknown = respond(&simulator, "west", body).await;
        assert_eq!(unknown.status, 404);
        assert_eq!(unknown.json()["error"]["message"], format!("Conversation with id '{id}' not found."));
    }
    let items = get(&simulator, "east", &format!("{path}/items?order=asc")).await.json();
    let roles: Vec<&str> =
        items["data"].as_array().unwrap().iter().map(|item| item["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "user", "assistant", "user", "assistant"]);
    let added = json!({"items": [{"role": "user", "content": "by hand"}]});
    let added = post(&simulator, "east", &format!("{path}/items"), &added).await.json();
    let item_path = format!("{path}/items/{}", added["first_id"].as_str().unwrap());
    let parts = json!([{"type": "input_text", "text": "by hand"}]);
    assert_eq!(get(&simulator, "east", &item_path).await.json()["content"], parts);
    assert_eq!(get(&simulator, "west", &item_path).await.status, 404);
    let asked = json!({"input": "what did I say", "conversation": id});
    let answer = respond(&simulator, "east", asked.clone()).await.json();
    assert!(
        message_text(&answer).starts_with("You said: my name is Ada | go on | go on | by hand"),
        "{answer}"
    );
    assert_eq!(delete(&simulator, "east", &item_path).await.json()["id"], id);
    assert_eq!(get(&simulator, "east", &item_path).await.status, 404);
    let updated = post(&simulator, "east", &path, &json!({"metadata": {"topic": "u"}})).await.json();
    assert_eq!(updated["metadata"]["topic"], "u");
    let both = json!({"input": "x", "conversation": id, "previous_response_id": answer["id"]});
    let refused = respond(&simulator, "east", both).await;
    assert_eq!(refused.json()["error"]["code"], "mutually_exclusive_parameters");
    assert_eq!(delete(&simulator, "east", &path).await.json()["deleted"], true);
    assert_eq!(respond(&simulator, "east", asked).await.status, 404);
}

#[tokio::test]
async fn a_turn_that_failed_in_its_stream_is_not_part_of_the_conversation() {
    let simulator = start_two_resources().await;
    let created = post(&simulator, "east", "/conversations", &json!({})).await.json();
    let body = json!({"input": "go on", "conversation": created["id"], "stream": true});
    simulator.set_mood("east", Mood::MidStreamError { after_events: 2 });
    let failed = respond(&simulator, "east", body.clone()).await.events();
    let id = failed[0]["response"]["id"].as_str().unwrap();
    simulator.set_mood("east", Mood::Calm);
    assert_eq!(get(&simulator, "east", &format!("/responses/{id}")).await.status, 404);
    let answer = respond(&simulator, "east", body).await.events();
    assert!(!answer.last().unwrap().to_string().contains("Turn 2"));
}

#[tokio::test]
async fn a_tool_loop_ends_in_an_answer_about_the_output() {
    let simulator = start_two_resources().await;
    let parameters = json!({
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
        "required": ["city", "days"], "additionalProperties": false,
    });
    let tools =
        json!([{"type": "web_search"}, {"type": "function", "name": "weather", "parameters": parameters}]);
    let ask = json!({"input": "use the tool", "tools": tools});
    let called = respond(&simulator, "east", ask).await.json();
    let call = &called["output"][0];
    assert_eq!((call["type"].clone(), call["name"].clone()), (json!("function_call"), json!("weather")));
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"city": "use the tool", "days": 2}));
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"});
    let continued =
        |input: Value| json!({"input": input, "previous_response_id": called["id"], "tools": tools});
    let answer = respond(&simulator, "east", continued(json!([output]))).await.json();
    assert_eq!(message_text(&answer), "The tool said: sunny");

    let missing = respond(&simulator, "east", continued(json!("never mind"))).await;
    let message = missing.json()["error"]["message"].to_string();
    assert_eq!(missing.status, 400);
    assert!(message.contains("No tool output found for function call call_"), "{message}");
    let unasked = json!({"type": "function_call_output", "call_id": "call_x", "output": "sunny"});
    let refused = respond(&simulator, "east", json!({"input": [unasked]})).await;
    let message = "No tool call found for function call output with call_id call_x.";
    assert_eq!((refused.status, refused.json()["error"]["message"].clone()), (400, json!(message)));
    // The same without state: the client sends everything.
    let stateless = json!({"store": false, "tools": tools, "input": [{"role": "user", "content": "use the tool"}, call, output]});
    let answer = respond(&simulator, "west", stateless).await.json();
    assert_eq!(message_text(&answer), "The tool said: sunny");
}

#[tokio::test]
async fn a_compacted_conversation_goes_on_where_it_was() {
    let simulator = start_two_resources().await;
    let first = respond(&simulator, "east", json!({"input": "my name is Ada"})).await.json();
    let body = json!({"model": "gpt-4o", "input": "go on", "previous_response_id": first["id"]});
    let compacted = post(&simulator, "east", "/responses/compact", &body).await.json();
    assert_eq!(compacted["object"], "response.compaction");
    let item = &compacted["output"][0];
    assert_eq!(item["type"], "compaction");
    let input = json!([item, {"role": "user", "content": "what did I say"}]);
    let answer = respond(&simulator, "east", json!({"input": input})).await.json();
    assert!(message_text(&answer).starts_with("You said: my name is Ada | go on (Turn 3;"), "{answer}");
    let refused = respond(&simulator, "west", json!({"input": input})).await;
    assert_eq!(refused.json()["error"]["code"], "invalid_encrypted_content");
    let path = format!("/responses/{}", compacted["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &path).await.status, 404, "a compaction is not a stored response");
    assert_eq!(post(&simulator, "west", "/responses/compact", &body).await.status, 400);
}
