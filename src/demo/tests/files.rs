//! Files, uploads, vector stores and containers, which only the resource that has them knows.

use super::*;

const RECIPE: &str = "Pancakes need flour, milk and eggs.\nLet the batter rest.\n";
const GUIDE: &str = "The tram to the harbour leaves every ten minutes.\n";

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

/// The error is a 404 whose message says that this object is not found.
fn assert_not_found(response: &TestResponse, kind: &str, id: &str) {
    assert_eq!(response.status, 404, "{response:?}");
    assert_eq!(response.json()["error"]["message"], format!("{kind} with id '{id}' not found."));
}

#[tokio::test]
async fn files_are_stored_listed_read_and_deleted() {
    let simulator = start_two_resources().await;
    let batch = upload(&simulator, "east", "batch", "in.jsonl", "{}").await;
    let document = upload(&simulator, "east", "assistants", "recipe.txt", RECIPE).await;
    assert_eq!((batch.len(), document.len()), ("file-".len() + 32, "assistant-".len() + 22));
    assert_eq!(ids(&get(&simulator, "east", "/files").await.json()), [document.as_str(), batch.as_str()]);
    assert_eq!(ids(&get(&simulator, "east", "/files?purpose=batch").await.json()), [batch.as_str()]);
    assert_eq!(ids(&get(&simulator, "west", "/files").await.json()), [""; 0]);
    let path = format!("/files/{document}");
    assert_eq!(get(&simulator, "east", &path).await.json()["bytes"], RECIPE.len());
    let classic = format!("/openai/files/{document}/content?api-version=2024-10-21");
    assert_eq!(send_to(&simulator, "east", bodiless_request("GET", &classic)).await.text(), RECIPE);
    assert_not_found(&get(&simulator, "west", &format!("{path}/content")).await, "File", &document);
    assert_eq!(delete(&simulator, "east", &path).await.json()["deleted"], true);
    assert_not_found(&get(&simulator, "east", &path).await, "File", &document);
    let refused = send_to(&simulator, "east", upload_request("holiday", "a", "b")).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].clone()), (400, json!("purpose")));
}

#[tokio::test]
async fn a_file_that_is_given_to_the_model_is_read() {
    let simulator = start_two_resources().await;
    let id = upload(&simulator, "east", "user_data", "recipe.txt", RECIPE).await;
    let part = json!({"type": "input_file", "file_id": id});
    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "read"}, part]}]);
    let answer = respond(&simulator, "east", json!({"input": input})).await.json();
    let expected = format!("I read recipe.txt, {} bytes.", RECIPE.len());
    assert!(message_text(&answer).ends_with(&expected), "{answer}");
    assert_not_found(&respond(&simulator, "west", json!({"input": input})).await, "File", &id);
    let content = json!([{"type": "text", "text": "read"}, {"type": "file", "file": {"file_id": id}}]);
    let chat = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]});
    assert_eq!(post(&simulator, "east", "/chat/completions", &chat).await.status, 200);
    assert_not_found(&post(&simulator, "west", "/chat/completions", &chat).await, "File", &id);
    let job = json!({"model": "gpt-4o", "training_file": id});
    let created = post(&simulator, "east", "/fine_tuning/jobs", &job).await.json();
    assert_not_found(&post(&simulator, "west", "/fine_tuning/jobs", &job).await, "File", &id);
    let path = format!("/fine_tuning/jobs/{}", created["id"].as_str().unwrap());
    let cancelled = post(&simulator, "east", &format!("{path}/cancel"), &json!({})).await.json();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(get(&simulator, "west", &path).await.status, 404);
}

#[tokio::test]
async fn an_upload_in_parts_becomes_a_file() {
    let simulator = start_two_resources().await;
    let body = json!({"purpose": "assistants", "filename": "a.txt", "bytes": 6, "mime_type": "text/plain"});
    let created = post(&simulator, "east", "/uploads", &body).await.json();
    let path = format!("/uploads/{}", created["id"].as_str().unwrap());
    let mut part_ids = Vec::new();
    for content in ["abc", "def"] {
        let form = format!(
            "--b\r\nContent-Disposition: form-data; name=\"data\"; filename=\"p\"\r\n\r\n{content}\r\n--b--\r\n"
        );
        let request = multipart_request(&format!("/openai/v1{path}/parts"), &form);
        assert_eq!(send_to(&simulator, "west", &request).await.status, 404);
        let part = send_to(&simulator, "east", request).await.json();
        part_ids.insert(0, part["id"].as_str().unwrap().to_owned());
    }
    let complete = |part_ids: Value| json!({"part_ids": part_ids});
    let unknown = post(&simulator, "east", &format!("{path}/complete"), &complete(json!(["part_x"]))).await;
    assert_not_found(&unknown, "Part", "part_x");
    let completed =
        post(&simulator, "east", &format!("{path}/complete"), &complete(json!(part_ids))).await.json();
    assert_eq!(completed["status"], "completed", "{completed}");
    let content = format!("/files/{}/content", completed["file"]["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &content).await.text(), "defabc", "in the order of the list");
    for action in ["complete", "cancel"] {
        let refused = post(&simulator, "east", &format!("{path}/{action}"), &complete(json!(part_ids))).await;
        assert_eq!(refused.status, 400, "{action}");
    }
}

#[tokio::test]
async fn vector_stores_are_searched_by_themselves_and_as_a_tool() {
    let simulator = start_two_resources().await;
    let recipe = upload(&simulator, "east", "assistants", "recipe.txt", RECIPE).await;
    let guide = upload(&simulator, "east", "assistants", "guide.txt", GUIDE).await;
    let body = json!({"name": "n", "file_ids": [recipe]});
    assert_not_found(&post(&simulator, "west", "/vector_stores", &body).await, "File", &recipe);
    let store = post(&simulator, "east", "/vector_stores", &body).await.json();
    let id = store["id"].as_str().unwrap();
    let path = format!("/vector_stores/{id}");
    assert_eq!(store["file_counts"]["completed"], 1);
    let query = json!({"query": "TRAM, harbour: how many minutes? milk!"});
    let hits = post(&simulator, "east", &format!("{path}/search"), &query).await.json();
    assert_eq!(hits["data"][0]["file_id"], recipe);

    let file_ids = json!({"file_ids": [guide]});
    let batch = post(&simulator, "east", &format!("{path}/file_batches"), &file_ids).await.json();
    let batch_path = format!("{path}/file_batches/{}", batch["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &batch_path).await.json()["status"], "completed");
    assert_eq!(ids(&get(&simulator, "east", &format!("{batch_path}/files")).await.json()), [guide.as_str()]);
    let unknown = post(&simulator, "east", &format!("{path}/files"), &json!({"file_id": "file-x"})).await;
    assert_not_found(&unknown, "File", "file-x");
    let hits = post(&simulator, "east", &format!("{path}/search"), &query).await.json();
    let found: Vec<&str> =
        hits["data"].as_array().unwrap().iter().map(|hit| hit["filename"].as_str().unwrap()).collect();
    assert_eq!(found, ["guide.txt", "recipe.txt"], "the best first");
    assert_eq!(hits["data"][0]["content"][0]["text"], GUIDE.trim());

    let tools = json!([{"type": "file_search", "vector_store_ids": [id]}]);
    let ask = json!({"input": "When is the tram?", "tools": tools, "include": ["file_search_call.results"]});
    let answer = respond(&simulator, "east", ask.clone()).await.json();
    assert_eq!(answer["output"][0]["results"][0]["file_id"], guide);
    let (text, annotation) = (message_text(&answer), &answer["output"][1]["content"][0]["annotations"][0]);
    assert!(text.ends_with(&format!("I found in guide.txt: {}", GUIDE.trim())), "{text}");
    assert_eq!(annotation["type"], "file_citation");
    assert_eq!(
        (annotation["file_id"].as_str(), annotation["index"].as_u64()),
        (Some(guide.as_str()), Some(text.len() as u64))
    );
    assert_not_found(&respond(&simulator, "west", ask).await, "Vector store", id);

    assert_eq!(delete(&simulator, "east", &format!("{path}/files/{guide}")).await.json()["deleted"], true);
    let listed = get(&simulator, "east", &format!("{path}/files")).await.json();
    assert_eq!(ids(&listed), [recipe.as_str()]);
    delete(&simulator, "east", &format!("/files/{recipe}")).await;
    let hits = post(&simulator, "east", &format!("{path}/search"), &query).await.json();
    assert_eq!(hits["data"], json!([]), "deleted files are not searched");
    assert_eq!(delete(&simulator, "east", &path).await.json()["deleted"], true);
    assert_not_found(&get(&simulator, "east", &path).await, "Vector store", id);
}

#[tokio::test]
async fn code_runs_in_containers_and_leaves_files_in_them() {
    let simulator = start_two_resources().await;
    let file = upload(&simulator, "east", "assistants", "recipe.txt", RECIPE).await;
    let created =
        post(&simulator, "east", "/containers", &json!({"name": "n", "file_ids": [file]})).await.json();
    let id = created["id"].as_str().unwrap();
    assert!(id.starts_with("cntr_") && created["status"] == "running", "{created}");
    let path = format!("/containers/{id}");
    let files = get(&simulator, "east", &format!("{path}/files")).await.json();
    assert_eq!(files["data"][0]["path"], "/mnt/data/recipe.txt");

    let ask = |container: Value| json!({"input": "compute", "tools": [{"type": "code_interpreter", "container": container}]});
    for container in [json!(id), json!({"type": "auto", "file_ids": [file]})] {
        let events = {
            let mut body = ask(container);
            body["stream"] = json!(true);
            respond(&simulator, "east", body).await
        };
        assert!(events.event_types().contains(&"response.output_text.annotation.added".to_owned()));
        let answer = events.events().last().unwrap()["response"].clone();
        let call = &answer["output"][0];
        assert_eq!(call["type"], "code_interpreter_call");
        let annotation = &answer["output"][1]["content"][0]["annotations"][0];
        assert_eq!(annotation["type"], "container_file_citation");
        assert_eq!(annotation["container_id"], call["container_id"]);
        let end = annotation["end_index"].as_u64().unwrap();
        assert_eq!(end, message_text(&answer).chars().count() as u64);
        let (container, file) =
            (call["container_id"].as_str().unwrap(), annotation["file_id"].as_str().unwrap());
        let content = format!("/containers/{container}/files/{file}/content");
        assert_eq!(get(&simulator, "east", &content).await.text(), "compute");
        assert_eq!(get(&simulator, "west", &content).await.status, 404);
    }
    assert_not_found(&respond(&simulator, "west", ask(json!(id))).await, "Container", id);
    let auto = json!({"type": "auto", "file_ids": [file]});
    assert_not_found(&respond(&simulator, "west", ask(auto)).await, "File", &file);
    let shell = json!({"input": "x", "tools": [{"type": "shell", "environment": {"container_id": id}}]});
    assert_eq!(respond(&simulator, "east", shell.clone()).await.status, 200);
    assert_not_found(&respond(&simulator, "west", shell).await, "Container", id);

    let form =
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"own.txt\"\r\n\r\nown\r\n--b--\r\n";
    let added =
        send_to(&simulator, "east", multipart_request(&format!("/openai/v1{path}/files"), form)).await.json();
    let added_path = format!("{path}/files/{}", added["id"].as_str().unwrap());
    assert_eq!(get(&simulator, "east", &format!("{added_path}/content")).await.text(), "own");
    assert_eq!(delete(&simulator, "east", &added_path).await.json()["deleted"], true);
    assert_eq!(get(&simulator, "east", &added_path).await.status, 404);
    assert_eq!(delete(&simulator, "east", &path).await.json()["deleted"], true);
    assert_not_found(&respond(&simulator, "east", ask(json!(id))).await, "Container", id);
}
