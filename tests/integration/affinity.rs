//! What was made on one resource goes back to it: learned from answers, or found by asking.

use crate::support;

use serde_json::{Value, json};
use support::stateful_upstream::StatefulUpstream;
use support::{Balancer, CLIENT_KEY, Client, Response, answering_backend, clients_yaml};

const RESPONSES: &str = "/openai/v1/responses";

/// Three resources in one tier, and a balancer in front of them.
struct Fixture {
    resources: Vec<StatefulUpstream>,
    balancer: Balancer,
}

impl Fixture {
    async fn start(extra_yaml: &str) -> Self {
        Self::start_with_backends(["", "", ""], extra_yaml).await
    }

    async fn start_with_backends(backend_yaml: [&str; 3], extra_yaml: &str) -> Self {
        let mut resources = Vec::new();
        for name in ["a", "b", "c"] {
            resources.push(StatefulUpstream::start(name).await);
        }
        let backends: String = resources
            .iter()
            .zip(backend_yaml)
            .map(|(resource, extra)| resource.backend_yaml(extra))
            .collect();
        Self { balancer: Balancer::start(&backends, extra_yaml).await, resources }
    }

    fn resource(&self, name: &str) -> &StatefulUpstream {
        self.resources.iter().find(|resource| resource.name == name).unwrap()
    }

    async fn post(&self, target: &str, body: &Value) -> Response {
        let headers = [("api-key", CLIENT_KEY), ("content-type", "application/json")];
        self.balancer.post(target, &headers, body.to_string().as_bytes()).await
    }

    async fn respond(&self, body: Value) -> Response {
        let mut request = json!({"model": "gpt-4o", "input": "hi"});
        request.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        self.post(RESPONSES, &request).await
    }

    async fn request(&self, method: &str, target: &str) -> Response {
        let mut client = self.balancer.connect().await;
        client.request(method, target, &[("api-key", CLIENT_KEY)], Some(b"")).await
    }

    /// How many requests the resources have got since the last call, in their order.
    fn take_request_counts(&self) -> Vec<usize> {
        let counts = self.resources.iter().map(|resource| resource.requests().len()).collect();
        self.resources.iter().for_each(StatefulUpstream::forget_requests);
        counts
    }

    async fn metrics(&self) -> String {
        Client::connect(self.balancer.admin_address)
            .await
            .get("/metrics", &[("Host", "localhost")])
            .await
            .text()
    }

    async fn last_record(&self, count: usize) -> Value {
        self.balancer.wait_for_records(count).await.pop().unwrap()
    }
}

fn id_of(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_responses_stays_on_its_resource_and_nobody_is_asked() {
    let fixture = Fixture::start("").await;
    for chain in 0..3 {
        let first = fixture.respond(json!({})).await;
        let home = answering_backend(&first);
        let mut previous = id_of(&first);
        for turn in 0..20 {
            let response = fixture.respond(json!({"previous_response_id": previous})).await;
            assert_eq!(answering_backend(&response), home, "chain {chain}, turn {turn}");
            assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"));
            previous = id_of(&response);
        }
        let fetched = fixture.request("GET", &format!("{RESPONSES}/{previous}")).await;
        assert_eq!((fetched.status, answering_backend(&fetched)), (200, home.clone()));
        let cancelled = fixture.request("POST", &format!("{RESPONSES}/{previous}/cancel")).await;
        assert_eq!((cancelled.status, answering_backend(&cancelled)), (200, home));
    }
    assert_eq!(fixture.take_request_counts(), [23, 23, 23]);
    let record = fixture.last_record(69).await;
    let resource = record["affinity"]["resource"].as_str().unwrap();
    assert!(resource.starts_with("127.0.0.1:"), "{record}");
    assert_eq!(
        (&record["affinity"]["by"], &record["affinity"]["how"], &record["affinity"]["asked"]),
        (&json!("response"), &json!("learned"), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn items_and_encrypted_reasoning_go_back_to_their_resource() {
    let fixture = Fixture::start("").await;
    for _ in 0..6 {
        let first = fixture.respond(json!({"store": false})).await;
        let home = answering_backend(&first);
        let output = first.json()["output"].clone();
        let encrypted = output[0]["encrypted_content"].clone();
        let input = json!([{"type": "reasoning", "encrypted_content": encrypted, "summary": []}]);
        let second = fixture.respond(json!({"input": input, "store": false})).await;
        assert_eq!((second.status, answering_backend(&second)), (200, home.clone()));
        let input = json!([{"type": "item_reference", "id": output[1]["id"]}]);
        assert_eq!(answering_backend(&fixture.respond(json!({ "input": input })).await), home);
    }
    assert_eq!(fixture.take_request_counts(), [6, 6, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_elsewhere_is_found_by_asking_once() {
    let fixture = Fixture::start("").await;
    for name in ["c", "b", "a"] {
        let id = fixture.resource(name).make("resp_");
        fixture.take_request_counts();
        let found = fixture.respond(json!({"previous_response_id": id})).await;
        assert_eq!((found.status, answering_backend(&found).as_str()), (200, name), "{}", found.text());
        assert!(fixture.take_request_counts().iter().all(|count| *count <= 1));
        for _ in 0..3 {
            let again = fixture.respond(json!({"previous_response_id": id})).await;
            assert_eq!(again.header("x-aoai-lb-attempts"), Some("1"));
        }
        assert_eq!(fixture.take_request_counts().iter().sum::<usize>(), 3);
    }
    let id = fixture.resource("c").make("file-");
    let found = fixture.request("GET", &format!("/openai/v1/files/{id}/content")).await;
    assert_eq!((found.status, answering_backend(&found).as_str()), (200, "c"));
    let record = fixture.last_record(13).await;
    assert_eq!(
        (&record["affinity"]["by"], &record["affinity"]["how"], &record["affinity"]["asked"]),
        (&json!("file"), &json!("asked"), &json!(2)),
        "{record}"
    );
    let metrics = fixture.metrics().await;
    assert!(
        metrics.contains(r#"aoai_lb_affinity_requests_total{how="asked",outcome="answered"} 4"#),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_nobody_knows_do_not_hide_an_object_on_another_resource() {
    let fixture = Fixture::start("").await;
    fixture.resources.iter().for_each(|resource| resource.behave(|behaviour| behaviour.unusual_words = true));
    let id = fixture.resource("b").make("batch_");
    let found = fixture.request("GET", &format!("/openai/v1/batches/{id}")).await;
    assert_eq!((found.status, answering_backend(&found).as_str()), (200, "b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_what_is_made_from_them_stay_together() {
    let fixture = Fixture::start_with_backends(["", "", ""], "requests: { home: b }").await;
    let file = fixture.request("POST", "/openai/v1/files").await;
    assert_eq!(answering_backend(&file), "b");
    let file = id_of(&file);
    let batch = fixture.post("/openai/v1/batches", &json!({"input_file_id": file})).await;
    assert_eq!((batch.status, answering_backend(&batch).as_str()), (200, "b"));
    let output = batch.json()["output_file_id"].as_str().unwrap().to_owned();
    let content = fixture.request("GET", &format!("/openai/v1/files/{output}/content")).await;
    assert_eq!((content.status, answering_backend(&content).as_str()), (200, "b"));
    let input = json!([{"role": "user", "content": [{"type": "input_file", "file_id": file}]}]);
    for _ in 0..3 {
        let response = fixture.respond(json!({ "input": input })).await;
        assert_eq!((response.status, answering_backend(&response).as_str()), (200, "b"));
    }
    assert_eq!(fixture.take_request_counts(), [0, 6, 0]);
    // Of a file that is not remembered.
    let elsewhere = fixture.resource("c").make("file-");
    let batch = fixture.post("/openai/v1/batches", &json!({"input_file_id": elsewhere})).await;
    assert_eq!((batch.status, answering_backend(&batch).as_str()), (200, "c"), "{}", batch.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_two_resources_in_one_request_are_refused_by_name() {
    let fixture = Fixture::start("").await;
    let (first, second) = (fixture.respond(json!({})).await, fixture.respond(json!({})).await);
    let (first, second) = (id_of(&first), id_of(&second));
    fixture.take_request_counts();
    let input = json!([{"type": "item_reference", "id": second}]);
    let refused = fixture.respond(json!({"previous_response_id": first, "input": input})).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "mixed_resources"));
    let message = refused.text();
    assert!(
        message.contains(&first) && message.contains(&second) && message.contains("127.0.0.1:"),
        "{message}"
    );
    assert_eq!(fixture.take_request_counts(), [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_bring_their_own_content_follow_what_else_the_request_refers_to() {
    let fixture = Fixture::start("").await;
    let (first, second) = (fixture.respond(json!({})).await, fixture.respond(json!({})).await);
    let message = |id: &Value| json!({"type": "message", "id": id, "role": "user", "content": "x"});
    let of_second = &second.json()["output"][1]["id"];
    // The first response decides; the message can be read anywhere.
    let follow_up = json!({"previous_response_id": id_of(&first), "input": [message(of_second)]});
    let response = fixture.respond(follow_up).await;
    assert_eq!((response.status, answering_backend(&response)), (200, answering_backend(&first)));
    // Of messages alone the last one counts.
    let of_first = &first.json()["output"][1]["id"];
    let response = fixture.respond(json!({"input": [message(of_second), message(of_first)]})).await;
    assert_eq!((response.status, answering_backend(&response)), (200, answering_backend(&first)));
    // An id of the client's own is looked for nowhere.
    let own = json!("msg_1");
    for turn in 0..3 {
        let response = fixture.respond(json!({"input": [message(&own)], "store": false})).await;
        assert_eq!(response.header("x-aoai-lb-attempts"), Some("1"), "{turn}");
    }
    assert_eq!(fixture.take_request_counts(), [3, 2, 2], "all of them together take turns");
    assert_eq!(fixture.last_record(7).await["affinity"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_resource_has_is_not_found_and_not_asked_for_everywhere_again() {
    let fixture = Fixture::start("").await;
    let missing = format!("/openai/v1/files/file-{:032x}", 7);
    let first = fixture.request("GET", &missing).await;
    assert_eq!((first.status, answering_backend(&first).as_str()), (404, "a"), "the first answer");
    assert_eq!(fixture.take_request_counts(), [1, 1, 1]);
    assert_eq!(fixture.request("GET", &missing).await.status, 404);
    assert_eq!(fixture.take_request_counts().iter().sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_not_asked_for_again() {
    let fixture = Fixture::start("").await;
    let response = fixture.respond(json!({})).await;
    let target = format!("{RESPONSES}/{}", id_of(&response));
    assert_eq!(fixture.request("DELETE", &target).await.status, 200);
    fixture.take_request_counts();
    assert_eq!(fixture.request("GET", &target).await.status, 404);
    assert_eq!(fixture.take_request_counts().iter().sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_resource_is_waited_for() {
    let fixture = Fixture::start("affinity: { read_lag: 20s }").await;
    let lag = std::time::Duration::from_millis(600);
    fixture.resources.iter().for_each(|resource| resource.behave(|behaviour| behaviour.read_lag = lag));
    let first = fixture.respond(json!({})).await;
    let second = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((second.status, answering_backend(&second)), (200, answering_backend(&first)));
    assert_eq!(second.header("x-aoai-lb-attempts"), Some("3"), "at once, after 250 ms and after 750 ms");
    let record = fixture.last_record(2).await;
    let waited = record["affinity"]["waited_ms"].as_u64().unwrap();
    assert!((750..10_000).contains(&waited), "{record}");
    let metrics = fixture.metrics().await;
    assert!(metrics.contains("aoai_lb_read_lag_seconds_count"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_object_that_its_resource_denies_is_not_waited_for() {
    let fixture = Fixture::start("affinity: { read_lag: 0s }").await;
    let first = fixture.respond(json!({})).await;
    fixture.resources.iter().for_each(|resource| {
        resource.behave(|behaviour| behaviour.read_lag = std::time::Duration::from_secs(3600));
    });
    let second = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((second.status, second.error_code().as_str()), (400, "previous_response_not_found"));
    assert_eq!(second.header("x-aoai-lb-attempts"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_its_throttled_resource_and_goes_to_no_other() {
    let fixture = Fixture::start("").await;
    let first = fixture.respond(json!({})).await;
    let (home, previous) = (answering_backend(&first), id_of(&first));
    fixture.resource(&home).behave(|behaviour| behaviour.throttled_ms = Some(1_500));
    fixture.take_request_counts();
    let follow_up = json!({"previous_response_id": previous});
    let (second, ()) = tokio::join!(fixture.respond(follow_up), async {
        support::wait_until("the resource is asked", || !fixture.resource(&home).requests().is_empty()).await;
        fixture.resource(&home).behave(|behaviour| behaviour.throttled_ms = None);
    });
    assert_eq!((second.status, answering_backend(&second)), (200, home));
    assert_eq!(fixture.take_request_counts().iter().sum::<usize>(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_resource_is_named_if_the_request_does_not_wait() {
    let fixture = Fixture::start("affinity: { unavailable: refuse }").await;
    let first = fixture.respond(json!({})).await;
    let (home, previous) = (answering_backend(&first), id_of(&first));
    fixture.resource(&home).behave(|behaviour| behaviour.throttled_ms = Some(30_000));
    for attempt in ["1", "0"] {
        let refused = fixture.respond(json!({"previous_response_id": previous})).await;
        assert_eq!(
            (refused.status, refused.error_code().as_str()),
            (429, "all_throttled"),
            "{}",
            refused.text()
        );
        assert!(refused.text().contains("127.0.0.1:"), "{}", refused.text());
        let wait: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
        assert!((20_000..=30_000).contains(&wait), "{wait}");
        assert_eq!(refused.header("x-aoai-lb-attempts"), Some(attempt));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_beyond_the_deadline_is_not_waited_for() {
    let fixture = Fixture::start("retry: { deadline: 5s }").await;
    let first = fixture.respond(json!({})).await;
    fixture.resource(&answering_backend(&first)).behave(|behaviour| behaviour.throttled_ms = Some(30_000));
    for _ in 0..2 {
        let refused = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (429, "all_throttled"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_cannot_be_asked_is_never_a_not_found() {
    let fixture = Fixture::start("retry: { outage: 200ms }").await;
    let id = fixture.resource("c").make("file-");
    fixture.resource("c").behave(|behaviour| behaviour.fails = true);
    let refused = fixture.request("GET", &format!("/openai/v1/files/{id}")).await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "home_unavailable"),
        "{}",
        refused.text()
    );
    fixture.resource("c").behave(|behaviour| behaviour.fails = false);
    let found = fixture.request("GET", &format!("/openai/v1/files/{id}")).await;
    assert_eq!((found.status, answering_backend(&found).as_str()), (200, "c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_of_a_known_resource_is_relayed_and_goes_to_no_other() {
    let fixture = Fixture::start("retry: { outage: 200ms }").await;
    let first = fixture.respond(json!({})).await;
    let home = answering_backend(&first);
    fixture.resource(&home).behave(|behaviour| behaviour.fails = true);
    fixture.take_request_counts();
    let failed = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((failed.status, answering_backend(&failed)), (500, home.clone()));
    let index = fixture.resources.iter().position(|resource| resource.name == home).unwrap();
    let counts = fixture.take_request_counts();
    assert_eq!(counts.iter().sum::<usize>(), counts[index]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_resource_still_answers_for_what_it_has() {
    let fixture = Fixture::start("").await;
    let first = fixture.respond(json!({})).await;
    let home = answering_backend(&first);
    fixture.balancer.post_admin(&format!("/api/backends/{home}/drain")).await;
    let second = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((second.status, answering_backend(&second)), (200, home.clone()));
    for _ in 0..4 {
        assert_ne!(answering_backend(&fixture.respond(json!({})).await), home, "new ones go elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_resource_is_named_and_never_a_not_found() {
    let fixture = Fixture::start("").await;
    let first = fixture.respond(json!({})).await;
    let (home, previous) = (answering_backend(&first), id_of(&first));
    let not_remembered = fixture.resource(&home).make("file-");
    let before = format!("    credential: {{ api_key: {home}-key }}\n");
    fixture.balancer.replace_in_config(&before, &format!("{before}    enabled: false\n"));
    assert_eq!(fixture.balancer.post_admin("/api/reload").await.status, 200);
    let refused = fixture.respond(json!({"previous_response_id": previous})).await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "home_unavailable"),
        "{}",
        refused.text()
    );
    assert!(refused.text().contains(&format!("whose backend {home} is disabled")), "{}", refused.text());
    let refused = fixture.request("GET", &format!("/openai/v1/files/{not_remembered}")).await;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "home_unavailable"),
        "{}",
        refused.text()
    );
    assert!(refused.text().contains("is disabled in the balancer's configuration"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_does_not_change_to_a_resource_that_has_the_deployment() {
    let fixture = Fixture::start_with_backends(
        ["deployments: { one: one, two: two }", "deployments: { one: one }", "deployments: { one: one }"],
        "",
    )
    .await;
    let mut on_b = None;
    while on_b.is_none() {
        let response = fixture.respond(json!({"model": "one"})).await;
        on_b = (answering_backend(&response) == "b").then(|| id_of(&response));
    }
    let refused = fixture.respond(json!({"model": "two", "previous_response_id": on_b})).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (404, "DeploymentNotFound"));
    assert!(refused.text().contains("127.0.0.1:"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_model_goes_to_what_it_refers_to_or_home() {
    let fixture = Fixture::start_with_backends(["", "", ""], "requests: { home: c }").await;
    let first = fixture.respond(json!({})).await;
    let second = fixture.post(RESPONSES, &json!({"previous_response_id": id_of(&first), "input": "x"})).await;
    assert_eq!((second.status, answering_backend(&second)), (200, answering_backend(&first)));
    let template = fixture.post(RESPONSES, &json!({"prompt": {"id": "pmpt_1"}})).await;
    assert_eq!((template.status, answering_backend(&template).as_str()), (200, "c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_of_one_resource_serve_its_conversations_together() {
    let resource = StatefulUpstream::start("a").await;
    let other = StatefulUpstream::start("b").await;
    let twin = resource.backend_yaml("tier: 2").replace("name: a\n", "name: a-standard\n");
    let backends = resource.backend_yaml("") + &twin + &other.backend_yaml("");
    let fixture =
        Fixture { balancer: Balancer::start(&backends, "").await, resources: vec![resource, other] };
    let mut first = fixture.respond(json!({})).await;
    if answering_backend(&first) != "a" {
        first = fixture.respond(json!({})).await;
    }
    assert_eq!(answering_backend(&first), "a");
    fixture.balancer.post_admin("/api/backends/a/drain").await;
    let second = fixture.respond(json!({"previous_response_id": id_of(&first)})).await;
    assert_eq!((second.status, answering_backend(&second).as_str()), (200, "a-standard"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_reach_what_another_has_made_if_owners_are_enforced() {
    let mut resources = Vec::new();
    for name in ["a", "b"] {
        resources.push(StatefulUpstream::start(name).await);
    }
    let backends: String = resources.iter().map(|resource| resource.backend_yaml("")).collect();
    let other_key = support::sha256_hex("key-of-team-b");
    let clients = clients_yaml() + &format!("  - name: team-b\n    keys: [ {{ sha256: {other_key} }} ]\n");
    let balancer = Balancer::start_with_clients(&backends, &clients, "affinity: { owner: enforce }").await;
    let fixture = Fixture { balancer, resources };
    let first = fixture.respond(json!({})).await;
    let id = id_of(&first);
    let made_elsewhere = fixture.resource("b").make("resp_");
    let other = |method: &'static str, target: String, body: Value| {
        let balancer = &fixture.balancer;
        async move {
            let headers = [("api-key", "key-of-team-b"), ("content-type", "application/json")];
            let body = if body.is_null() { String::new() } else { body.to_string() };
            balancer.connect().await.request(method, &target, &headers, Some(body.as_bytes())).await
        }
    };
    for (method, target) in [
        ("GET", format!("{RESPONSES}/{id}")),
        ("DELETE", format!("{RESPONSES}/{id}")),
        ("POST", format!("{RESPONSES}/{id}/cancel")),
        ("GET", format!("{RESPONSES}/{id}/input_items")),
    ] {
        let refused = other(method, target.clone(), Value::Null).await;
        assert_eq!(refused.status, 404, "{method} {target}: {}", refused.text());
        assert_eq!(refused.json()["error"]["code"], Value::Null);
        assert_eq!(refused.json()["error"]["message"], format!("Response with id '{id}' not found."));
    }
    let follow_up = json!({"model": "gpt-4o", "input": "x", "previous_response_id": id});
    let refused = other("POST", RESPONSES.to_owned(), follow_up).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "previous_response_not_found"));
    assert_eq!(fixture.request("GET", "/openai/v1/files").await.status, 403, "a list shows what others made");
    // Its maker is not known.
    let follow_up = json!({"model": "gpt-4o", "input": "x", "previous_response_id": made_elsewhere});
    assert_eq!(other("POST", RESPONSES.to_owned(), follow_up).await.status, 200);
    let second = fixture.respond(json!({"previous_response_id": id})).await;
    assert_eq!(second.status, 200, "its maker may");
}
