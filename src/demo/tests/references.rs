//! References between requests: ids in the form of Azure's, items, and encrypted reasoning.

use super::*;

#[tokio::test]
async fn a_response_shares_its_chain_key_with_its_items_and_tells_its_time() {
    let simulator = start_two_resources().await;
    let body = json!({"input": "hello", "reasoning": {"effort": "low"}});
    let created = respond(&simulator, "east", body).await.json();
    let digits = |id: &Value| id.as_str().unwrap().split_once('_').unwrap().1.to_owned();
    let response = digits(&created["id"]);
    assert_eq!(response.len(), 50);
    assert_eq!(&response[16..18], "00");
    let created_at = u64::from_str_radix(&response[18..26], 16).unwrap();
    assert!(created["created_at"].as_u64().unwrap().abs_diff(created_at) <= 1);
    for (item, prefix) in created["output"].as_array().unwrap().iter().zip(["rs_", "msg_"]) {
        assert!(item["id"].as_str().unwrap().starts_with(prefix));
        assert_eq!(digits(&item["id"])[..26], response[..26]);
    }
}

#[tokio::test]
async fn items_are_found_only_where_they_are_stored() {
    let simulator = start_two_resources().await;
    let body = json!({"input": "hello", "reasoning": {"effort": "low"}});
    let stored = respond(&simulator, "east", body.clone()).await.json();
    let mut unstored = body;
    unstored["store"] = json!(false);
    let unstored = respond(&simulator, "east", unstored).await.json();
    let reference = |response: &Value, index: usize| {
        json!([
            {"type": "item_reference", "id": response["output"][index]["id"]}, {"role": "user", "content": "on"},
        ])
    };
    let bare =
        |response: &Value| json!([{"id": response["output"][1]["id"]}, {"role": "user", "content": "on"}]);
    let reasoning = |response: &Value| json!([response["output"][0], {"role": "user", "content": "on"}]);
    let not_persisted = "Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove \
                         this item from your input.";
    let cases = [
        ("east", reference(&stored, 1), true, 200, ""),
        ("east", bare(&stored), true, 200, ""),
        ("east", reasoning(&stored), true, 200, ""),
        ("west", reference(&stored, 1), true, 404, "' not found."),
        ("west", bare(&stored), true, 404, "' not found."),
        ("west", reasoning(&stored), true, 404, "' not found."),
        ("west", reasoning(&stored), false, 404, not_persisted),
        ("east", reference(&unstored, 0), true, 404, not_persisted),
        ("east", reasoning(&unstored), true, 404, not_persisted),
        ("west", reasoning(&unstored), true, 404, "' not found."),
    ];
    for (name, input, is_stored, status, words) in cases {
        let response = respond(&simulator, name, json!({"input": input, "store": is_stored})).await;
        assert_eq!(response.status, status, "{name} {input}: {response:?}");
        if status != 200 {
            let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
            let id = input[0]["id"].as_str().unwrap();
            assert!(message.starts_with(&format!("Item with id '{id}' not found.")), "{message}");
            assert!(message.ends_with(words), "{message}");
        }
    }
    // A message that is given in full need not be known.
    let foreign = json!([stored["output"][1], {"role": "user", "content": "on"}]);
    assert_eq!(respond(&simulator, "west", json!({"input": foreign})).await.status, 200);
    // An item that was input can be referred to as well, until its response is deleted.
    let path = format!("/responses/{}", stored["id"].as_str().unwrap());
    let items = get(&simulator, "east", &format!("{path}/input_items")).await.json();
    let body = json!({"input": [{"type": "item_reference", "id": items["first_id"]}]});
    let answer = respond(&simulator, "east", body.clone()).await.json();
    assert!(message_text(&answer).starts_with("You said: hello"), "{answer}");
    let answer_path = format!("/responses/{}/input_items", answer["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &answer_path).await.json()["data"], items["data"]);
    delete(&simulator, "east", &path).await;
    assert_eq!(respond(&simulator, "east", body).await.status, 404);
}

#[tokio::test]
async fn encrypted_reasoning_is_read_by_its_resource_alone() {
    let resource = |name: &str| SimulatedResource {
        name: name.to_owned(),
        ..east_resource().with_deployment("thinker", "gpt-5", DeploymentKind::Unlimited)
    };
    let simulator = Simulator::start(vec![resource("east"), resource("west")]).await.unwrap();
    let included = json!({"input": "why is it blue", "include": ["reasoning.encrypted_content"]});
    let of_reasoning_model = json!({"input": "why is it blue", "model": "thinker", "store": false});
    for body in [included, of_reasoning_model] {
        let created = respond(&simulator, "east", body).await.json();
        let reasoning = &created["output"][0];
        let token = reasoning["encrypted_content"].as_str().unwrap();
        assert!(reasoning["type"] == "reasoning" && token.starts_with("gAAAAAB"), "{created}");
        let next = |token: &Value| {
            let item = json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": token});
            json!({"store": false, "input": [item, {"role": "user", "content": "what did you think?"}]})
        };
        let answer = respond(&simulator, "east", next(&json!(token))).await.json();
        assert_eq!(message_text(&answer), "I thought: why is it blue");
        let changed = token.replacen("gAAAAAB", "gAAAAAC", 1);
        let nested = json!({"input": [
            {"type": "agent_message", "content": [{"type": "encrypted", "encrypted_content": token}]},
            {"role": "user", "content": "on"},
        ]});
        assert_eq!(respond(&simulator, "east", nested.clone()).await.status, 200);
        let refusals = [
            respond(&simulator, "west", next(&json!(token))).await,
            respond(&simulator, "east", next(&json!(changed))).await,
            respond(&simulator, "west", nested).await,
        ];
        for refused in refusals {
            let error = refused.json()["error"].clone();
            assert_eq!((refused.status, error["code"].clone()), (400, json!("invalid_encrypted_content")));
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with("The encrypted content gAAA..."), "{message}");
            assert!(message.contains("could not be verified."), "{message}");
        }
    }
    // Where reasoning is stored, it is not returned.
    let stored = respond(&simulator, "east", json!({"input": "why", "model": "thinker"})).await.json();
    assert_eq!(stored["output"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn encrypted_content_may_come_with_the_last_event_alone() {
    let simulator = start_two_resources().await;
    let body = json!({"input": "why", "include": ["reasoning.encrypted_content"], "stream": true});
    let with_content =
        |events: &[Value]| events.iter().filter(|event| event.to_string().contains("gAAAAAB")).count();
    let events = respond(&simulator, "east", body.clone()).await.events();
    assert_eq!(with_content(&events), 3, "the item appears, is done, and is part of the response");
    simulator.set_mood("east", Mood::LateEncryptedContent);
    let events = respond(&simulator, "east", body).await.events();
    assert_eq!((with_content(&events), with_content(&events[events.len() - 1..])), (1, 1));
}

#[tokio::test]
async fn an_approval_is_accepted_where_it_was_asked_for() {
    let simulator = start_two_resources().await;
    let tools = json!([{"type": "mcp", "server_label": "docs", "server_url": "https://example.com"}]);
    let asked = respond(&simulator, "east", json!({"input": "look it up", "tools": tools})).await.json();
    assert_eq!(asked["output"][0]["type"], "mcp_approval_request");
    let approval = json!({"type": "mcp_approval_response", "approval_request_id": asked["output"][0]["id"], "approve": true});
    let body = json!({"input": [approval], "tools": tools});
    let answer = respond(&simulator, "east", body.clone()).await.json();
    assert!(message_text(&answer).starts_with("The tool was approved."), "{answer}");
    assert_eq!(respond(&simulator, "west", body).await.status, 404);
}

#[tokio::test]
async fn input_items_come_in_pages() {
    let simulator = start_two_resources().await;
    let input: Vec<Value> = (0..5)
        .map(|number| json!({"role": "user", "content": number.to_string(), "id": format!("msg_{number}")}))
        .collect();
    let created = respond(&simulator, "east", json!({"input": input})).await.json();
    let path = format!("/responses/{}/input_items", created["id"].as_str().unwrap());
    let cases = [
        ("", "43210", false),
        ("?order=asc", "01234", false),
        ("?limit=2", "43", true),
        ("?limit=2&after=msg_3", "21", true),
        ("?limit=2&after=msg_1", "0", false),
        ("?order=asc&after=msg_2", "34", false),
        ("?limit=2&before=msg_1", "32", true),
        ("?order=asc&before=msg_2", "01", false),
    ];
    for (query, expected, has_more) in cases {
        let list = get(&simulator, "east", &format!("{path}{query}")).await.json();
        let found: String = list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["content"][0]["text"].as_str().unwrap())
            .collect();
        assert_eq!((found.as_str(), list["has_more"].clone()), (expected, json!(has_more)), "{query}");
        assert_eq!(list["last_id"], list["data"].as_array().unwrap().last().unwrap()["id"]);
    }
    for query in ["?limit=0", "?limit=101", "?order=up"] {
        assert_eq!(get(&simulator, "east", &format!("{path}{query}")).await.status, 400, "{query}");
    }
    assert_eq!(get(&simulator, "east", &format!("{path}?after=msg_9")).await.status, 404);
}
